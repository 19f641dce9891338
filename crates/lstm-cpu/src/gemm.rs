//! The product of two matrices of any shape, out of the same tiles as the layers.

use std::ptr::null;

use lstm_core::{
    Mat, Result, Shape,
    shape::{check_gemm, zeros},
};

use crate::{
    buffer::Buffer,
    kernels::{Kernels, TileArgs},
    pool::Pool,
    tensor::Tensor,
};

/// Rows whose sums are kept beside a panel.
const ROWS: usize = 96;

struct Out(*mut f32);

// SAFETY: each thread writes to the columns of its own panels only, and to its own scratch.
unsafe impl Sync for Out {}

/// `acc + a . b`; see `Backend::gemm`.
pub(crate) fn gemm(
    kernels: &Kernels,
    pool: &Pool,
    a: Mat<'_, Tensor>,
    b: Mat<'_, Tensor>,
    acc: Option<&Tensor>,
) -> Result<Tensor> {
    let (a_shape, b_shape) = (a.view(a.tensor.shape), b.view(b.tensor.shape));
    let shape = check_gemm(a_shape, b_shape, acc.map(|acc| acc.shape))?;
    let (k, width) = (a_shape.cols, kernels.panel());
    let transposed;
    let rows = if a.transposed {
        transposed = transpose(a.tensor);
        &transposed[..]
    } else {
        a.tensor.as_slice()
    };
    let panels = shape.cols.div_ceil(width);
    let mut data = zeros("gemm", &[shape.rows, shape.cols])?;
    let out = Out(data.as_mut_ptr());
    let out = &out;
    let enough = 1 + shape.len().saturating_mul(k) / 500_000;
    let threads = enough.min(panels).min(pool.threads());
    // A panel of `b` and the sums of some rows for each thread.
    let mut scratch = Buffer::zeros("gemm", &[threads, k + ROWS, width])?;
    let scratch = Out(scratch.as_mut_ptr());
    let scratch = &scratch;

    pool.run(threads, &|member| {
        // SAFETY: there is a part for each rank; no two members have the same.
        let scratch = unsafe {
            let len = (k + ROWS) * width;
            std::slice::from_raw_parts_mut(scratch.0.add(member.rank * len), len)
        };
        let (panel, sums) = scratch.split_at_mut(k * width);
        for p in (member.rank..panels).step_by(member.size) {
            let cols = p * width..shape.cols.min((p + 1) * width);
            pack(b, cols.start, cols.len(), width, panel);
            for first in (0..shape.rows).step_by(ROWS) {
                let count = ROWS.min(shape.rows - first);
                // SAFETY: `rows` has `shape.rows` rows of k; the panel and `sums` are as large as the kernel needs.
                unsafe {
                    let a = rows.as_ptr().add(first * k);
                    let (panel, out) = (panel.as_ptr(), sums.as_mut_ptr());
                    kernels.rows(count, TileArgs { k, a, lda: k, panel, out, ldo: width, add: false, ahead: null() });
                }
                for (row, sums) in sums.chunks_exact(width).take(count).enumerate() {
                    let row = first + row;
                    // SAFETY: row and columns lie within the output; no other thread has these columns.
                    let out =
                        unsafe { std::slice::from_raw_parts_mut(out.0.add(row * shape.cols + cols.start), cols.len()) };
                    match acc {
                        Some(acc) => {
                            let acc = if acc.shape.rows == 1 { acc.rows(0..1) } else { acc.rows(row..row + 1) };
                            let acc = acc[cols.clone()].iter();
                            out.iter_mut().zip(sums).zip(acc).for_each(|((out, sum), acc)| *out = acc + sum);
                        }
                        None => out.copy_from_slice(&sums[..cols.len()]),
                    }
                }
            }
        }
    });
    Ok(Tensor::new(shape, data))
}

/// Columns `start..start + len` of `b`, padded with zeros to `width`.
fn pack(b: Mat<'_, Tensor>, start: usize, len: usize, width: usize, panel: &mut [f32]) {
    let Shape { cols, .. } = b.tensor.shape;
    for (k, row) in panel.chunks_exact_mut(width).enumerate() {
        if b.transposed {
            for (j, v) in row[..len].iter_mut().enumerate() {
                *v = b.tensor.as_slice()[(start + j) * cols + k];
            }
        } else {
            row[..len].copy_from_slice(&b.tensor.as_slice()[k * cols + start..][..len]);
        }
        row[len..].fill(0.0);
    }
}

fn transpose(x: &Tensor) -> Vec<f32> {
    let Shape { rows, cols } = x.shape;
    (0..cols).flat_map(|col| (0..rows).map(move |row| x.as_slice()[row * cols + col])).collect()
}
