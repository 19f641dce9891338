//! The product of two strided matrices, computed panel by panel with the tile kernels. Used for the `gemm` primitive
//! and for weight gradients.

use std::ops::Range;

use lstm_core::arithmetic::DOT_BLOCK;

use crate::kernel::{strided::StridedMatrix, table::Kernels, tile::TileArgs};

/// Maximum number of rows that are multiplied by a packed panel at once. Their sums are kept in scratch memory, after
/// the panel.
pub(crate) const MAX_ROWS_PER_PRODUCT: usize = 96;

/// The matrix to which a matrix product is added. Each element of the product is summed completely before the addition.
#[derive(Clone, Copy)]
pub(crate) enum Addend {
    /// Nothing is added: the output is the product.
    None,
    /// The present contents of the output.
    ExistingOutput,
    /// A matrix with as many columns as the output. `row_stride` is in floats; 0 broadcasts a single row.
    Matrix { ptr: *const f32, row_stride: usize },
}

/// A matrix product `out = addend + a . b`. `a` is `m` by `k`, `b` is `k` by `n`.
pub(crate) struct MatMul<'a> {
    /// Kernels of an available instruction set.
    pub(crate) kernels: &'a Kernels,
    /// Number of rows of `a` and `out`.
    pub(crate) m: usize,
    /// Number of columns of `a` and rows of `b`.
    pub(crate) k: usize,
    /// Number of columns of `b` and `out`.
    pub(crate) n: usize,
    /// Left operand, `[m, k]`.
    pub(crate) a: StridedMatrix,
    /// Right operand, `[k, n]`.
    pub(crate) b: StridedMatrix,
    /// The matrix to which the product is added.
    pub(crate) addend: Addend,
    /// An address to prefetch during the product, or null; see [`TileArgs::prefetch_ptr`].
    pub(crate) prefetch_ptr: *const f32,
    /// Output, `[m, n]`.
    pub(crate) out: *mut f32,
    /// Leading dimension of `out`, in floats.
    pub(crate) ldo: usize,
}

/// Number of floats of scratch memory for a product with inner dimension `k`: one packed panel and the sums.
pub(crate) fn scratch_len(kernels: &Kernels, k: usize) -> usize {
    (k + MAX_ROWS_PER_PRODUCT) * kernels.panel_width()
}

impl MatMul<'_> {
    /// Number of panels that the columns of `b` fill.
    pub(crate) fn panel_count(&self) -> usize {
        self.n.div_ceil(self.kernels.panel_width())
    }

    /// Computes the columns of panel `p` of the output, for some rows.
    ///
    /// # Safety
    /// The matrices are valid for their sizes. `scratch` has at least [`scratch_len`] floats. No other thread accesses
    /// these rows and columns of the output.
    pub(crate) unsafe fn compute_panel(&self, p: usize, rows: Range<usize>, scratch: &mut [f32]) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.pack_panel(p, scratch);
            self.multiply_packed_panel(p, rows, scratch);
        }
    }

    /// [`compute_panel`](Self::compute_panel) with a panel that [`pack_panel`](Self::pack_panel) has put into
    /// `scratch`. A packed panel can be used for all products with the same `b`.
    ///
    /// # Safety
    /// As for [`compute_panel`](Self::compute_panel).
    pub(crate) unsafe fn multiply_packed_panel(&self, p: usize, rows: Range<usize>, scratch: &mut [f32]) {
        let (k, width) = (self.k, self.kernels.panel_width());
        let (first_col, len) = (p * width, width.min(self.n - p * width));
        let (panel, sums) = scratch.split_at_mut(k * width);
        for first_row in rows.clone().step_by(MAX_ROWS_PER_PRODUCT) {
            let row_count = MAX_ROWS_PER_PRODUCT.min(rows.end - first_row);
            // SAFETY: `a` has `row_count` rows from `first_row` on; the panel and `sums` are as large as the kernel
            // needs.
            unsafe {
                let args = TileArgs::new(k, self.a.offset(first_row, 0), panel.as_ptr(), sums.as_mut_ptr(), width);
                let args = TileArgs { prefetch_ptr: self.prefetch_ptr, prefetch_stride: DOT_BLOCK, ..args };
                self.kernels.multiply_panel(row_count, args);
            }
            for (row, sums) in (first_row..first_row + row_count).zip(sums.chunks_exact(width)) {
                // SAFETY: the row and its columns are within the output and within the addend.
                unsafe {
                    let out = std::slice::from_raw_parts_mut(self.out.add(row * self.ldo + first_col), len);
                    match self.addend {
                        Addend::None => out.copy_from_slice(&sums[..len]),
                        Addend::ExistingOutput => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                        Addend::Matrix { ptr, row_stride } => {
                            let addend = std::slice::from_raw_parts(ptr.add(row * row_stride + first_col), len);
                            out.iter_mut().zip(sums).zip(addend).for_each(|((out, sum), addend)| *out = addend + sum);
                        }
                    }
                }
            }
        }
    }

    /// Packs the columns of panel `p` of `b` into the first `k` panel rows of `scratch`. Columns beyond `n` are zero.
    ///
    /// # Safety
    /// As for [`compute_panel`](Self::compute_panel).
    pub(crate) unsafe fn pack_panel(&self, p: usize, scratch: &mut [f32]) {
        let width = self.kernels.panel_width();
        let (first_col, len) = (p * width, width.min(self.n - p * width));
        let panel = &mut scratch[..self.k * width];
        for (k, row) in panel.chunks_exact_mut(width).enumerate() {
            // SAFETY: row `k` of `b` has columns `first_col..first_col + len`.
            unsafe {
                let source = self.b.ptr.add(k * self.b.row_stride + first_col * self.b.col_stride);
                if self.b.col_stride == 1 {
                    row[..len].copy_from_slice(std::slice::from_raw_parts(source, len));
                } else {
                    row[..len].iter_mut().enumerate().for_each(|(j, v)| *v = *source.add(j * self.b.col_stride));
                }
            }
            row[len..].fill(0.0);
        }
    }
}
