//! The product of two strided matrices, panel by panel, out of the same tiles as the layers: general products and the
//! weights' gradients.

use std::ops::Range;

use lstm_core::arithmetic::BLOCK;

use crate::kernels::{Kernels, Strided, TileArgs};

/// Rows whose sums are kept beside a panel.
pub(crate) const ROWS: usize = 96;

/// What is added to a product, last.
#[derive(Clone, Copy)]
pub(crate) enum Onto {
    Nothing,
    /// What the output holds.
    Output,
    /// A matrix of the output's shape, or, with a distance of 0, one row for all.
    Matrix(*const f32, usize),
}

/// `out = onto + a . b`, with `a` of `m` by `k` and `b` of `k` by `n`.
pub(crate) struct Product<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) a: Strided,
    pub(crate) b: Strided,
    pub(crate) onto: Onto,
    /// What is used next, or null; see [`TileArgs::ahead`].
    pub(crate) ahead: *const f32,
    pub(crate) out: *mut f32,
    /// Distance between rows of `out`.
    pub(crate) ldo: usize,
}

/// Floats of scratch memory that a product of `k` terms needs.
pub(crate) fn scratch(kernels: &Kernels, k: usize) -> usize {
    (k + ROWS) * kernels.panel()
}

impl Product<'_> {
    /// Panels of columns.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(self.kernels.panel())
    }

    /// Some rows of the columns of panel `p`.
    ///
    /// # Safety
    /// The matrices cover their sizes; `scratch` is as long as [`scratch`] says; nobody else writes to these rows and
    /// columns of the output.
    pub(crate) unsafe fn panel(&self, p: usize, rows: Range<usize>, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.pack(p, scratch);
            self.multiply(p, rows, scratch);
        }
    }

    /// [`panel`](Self::panel) with what [`pack`](Self::pack) put into `scratch`, for a product with the same `b`.
    ///
    /// # Safety
    /// As for `panel`.
    pub(crate) unsafe fn multiply(&self, p: usize, rows: Range<usize>, scratch: &mut [f32]) {
        let (k, width) = (self.k, self.kernels.panel());
        let (first_col, len) = (p * width, width.min(self.n - p * width));
        let (panel, sums) = scratch.split_at_mut(k * width);
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            // SAFETY: `count` rows of `a` from `first` on; the panel and `sums` are as large as the kernel needs.
            unsafe {
                let args = TileArgs::new(k, self.a.from(first, 0), panel.as_ptr(), sums.as_mut_ptr(), width);
                self.kernels.rows(count, TileArgs { ahead: self.ahead, pace: BLOCK, ..args });
            }
            for (row, sums) in (first..first + count).zip(sums.chunks_exact(width)) {
                // SAFETY: row and columns lie within the output, and within `onto`.
                unsafe {
                    let out = std::slice::from_raw_parts_mut(self.out.add(row * self.ldo + first_col), len);
                    match self.onto {
                        Onto::Nothing => out.copy_from_slice(&sums[..len]),
                        Onto::Output => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                        Onto::Matrix(at, stride) => {
                            let onto = std::slice::from_raw_parts(at.add(row * stride + first_col), len);
                            out.iter_mut().zip(sums).zip(onto).for_each(|((out, sum), onto)| *out = onto + sum);
                        }
                    }
                }
            }
        }
    }

    /// The columns of panel `p`, padded with zeros.
    ///
    /// # Safety
    /// As for [`panel`](Self::panel).
    pub(crate) unsafe fn pack(&self, p: usize, scratch: &mut [f32]) {
        let width = self.kernels.panel();
        let (start, len) = (p * width, width.min(self.n - p * width));
        let panel = &mut scratch[..self.k * width];
        for (k, row) in panel.chunks_exact_mut(width).enumerate() {
            // SAFETY: row k has columns start..start + len.
            unsafe {
                let from = self.b.at.add(k * self.b.row + start * self.b.col);
                if self.b.col == 1 {
                    row[..len].copy_from_slice(std::slice::from_raw_parts(from, len));
                } else {
                    row[..len].iter_mut().enumerate().for_each(|(j, v)| *v = *from.add(j * self.b.col));
                }
            }
            row[len..].fill(0.0);
        }
    }
}
