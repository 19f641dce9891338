//! The primitive `Ops::gemm`: the product of two matrices of any shape.

use lstm_core::{
    MatrixRef, Result,
    shape::{check_gemm, zeros},
};

use crate::{
    kernel::{
        matmul::{Addend, MatMul, scratch_len},
        strided::StridedMatrix,
        table::Kernels,
    },
    memory::{buffer::Buffer, tensor::Tensor},
    pool::{SyncPtr, ThreadPool},
};

/// Minimum number of multiply-adds per thread, so that waking the thread is worth its cost.
const MIN_MULTIPLY_ADDS_PER_THREAD: usize = 500_000;

/// Computes the matrix product `a . b`, or `acc + a . b` if `acc` is given. Each thread computes some columns of the
/// result.
pub(crate) fn gemm(
    kernels: &Kernels,
    pool: &ThreadPool,
    a: MatrixRef<'_, Tensor>,
    b: MatrixRef<'_, Tensor>,
    acc: Option<&Tensor>,
) -> Result<Tensor> {
    let (a_shape, b_shape) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
    let shape = check_gemm(a_shape, b_shape, acc.map(|acc| acc.shape))?;
    let mut data = zeros("gemm", &[shape.rows, shape.cols])?;
    let strided_matrix = |m: MatrixRef<'_, Tensor>| {
        let matrix = StridedMatrix::row_major(m.tensor.as_slice().as_ptr(), m.tensor.shape.cols);
        if m.transposed { matrix.transposed() } else { matrix }
    };
    let matmul = MatMul {
        kernels,
        m: shape.rows,
        k: a_shape.cols,
        n: shape.cols,
        a: strided_matrix(a),
        b: strided_matrix(b),
        addend: match acc {
            Some(acc) if acc.shape.rows == 1 => Addend::Matrix { ptr: acc.as_slice().as_ptr(), row_stride: 0 },
            Some(acc) => Addend::Matrix { ptr: acc.as_slice().as_ptr(), row_stride: shape.cols },
            None => Addend::None,
        },
        prefetch_ptr: std::ptr::null(),
        out: data.as_mut_ptr(),
        ldo: shape.cols,
    };
    let panels = matmul.panel_count();
    let useful_threads = 1 + shape.len().saturating_mul(matmul.k) / MIN_MULTIPLY_ADDS_PER_THREAD;
    let threads = useful_threads.min(panels).min(pool.threads());
    let len = scratch_len(kernels, matmul.k);
    let mut scratch = Buffer::zeros("gemm", &[threads, len])?;
    let shared_ptrs = SyncPtr((&matmul, scratch.as_mut_ptr()));
    pool.run(threads, &|member| {
        let (matmul, scratch) = shared_ptrs.get();
        // SAFETY: the scratch memory has a part for each rank, and ranks are distinct. Shapes were checked above. Each
        // thread writes to the columns of its own panels.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch.add(member.rank * len), len);
            for p in (member.rank..panels).step_by(member.size) {
                matmul.compute_panel(p, 0..matmul.m, scratch);
            }
        }
    });
    Ok(Tensor::new(shape, data))
}
