//! The product of two matrices of any shape; see `Backend::gemm`.

use lstm_core::{
    MatrixRef, Result,
    shape::{check_gemm, zeros},
};

use crate::{
    buffer::Buffer,
    kernels::{Kernels, Strided},
    pool::{Pool, Shared},
    product::{self, Onto, Product},
    tensor::Tensor,
};

/// `acc + a . b`
pub(crate) fn gemm(
    kernels: &Kernels,
    pool: &Pool,
    a: MatrixRef<'_, Tensor>,
    b: MatrixRef<'_, Tensor>,
    acc: Option<&Tensor>,
) -> Result<Tensor> {
    let (a_shape, b_shape) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
    let shape = check_gemm(a_shape, b_shape, acc.map(|acc| acc.shape))?;
    let mut data = zeros("gemm", &[shape.rows, shape.cols])?;
    let strided = |m: MatrixRef<'_, Tensor>| {
        let own = Strided::rows(m.tensor.as_slice().as_ptr(), m.tensor.shape.cols);
        if m.transposed { own.t() } else { own }
    };
    let product = Product {
        kernels,
        m: shape.rows,
        k: a_shape.cols,
        n: shape.cols,
        a: strided(a),
        b: strided(b),
        onto: match acc {
            Some(acc) if acc.shape.rows == 1 => Onto::Matrix(acc.as_slice().as_ptr(), 0),
            Some(acc) => Onto::Matrix(acc.as_slice().as_ptr(), shape.cols),
            None => Onto::Nothing,
        },
        ahead: std::ptr::null(),
        out: data.as_mut_ptr(),
        ldo: shape.cols,
    };
    let panels = product.panels();
    let enough = 1 + shape.len().saturating_mul(product.k) / 500_000;
    let threads = enough.min(panels).min(pool.threads());
    let len = product::scratch(kernels, product.k);
    let mut scratch = Buffer::zeros("gemm", &[threads, len])?;
    let shared = Shared((&product, scratch.as_mut_ptr()));
    pool.run(threads, &|member| {
        let (product, scratch) = shared.get();
        // SAFETY: there is a part of the scratch memory for each rank, and no two members have the same; shapes were
        // checked; each thread writes to its own panels' columns.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch.add(member.rank * len), len);
            for p in (member.rank..panels).step_by(member.size) {
                product.panel(p, 0..product.m, scratch);
            }
        }
    });
    Ok(Tensor::new(shape, data))
}
