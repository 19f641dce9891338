//! The primitive operations of the CPU backend.

use std::{
    future::{Future, ready},
    ops::Range,
    ptr::null,
};

use lstm_core::{
    Arithmetic, ConcatAxis, MatrixRef, MatrixShape, MaybeSend, Ops, QuantizedMatrix, Result,
    quantized::OperandRange,
    shape::{
        check_clip, check_concat, check_download, check_row_broadcast, check_select_between, check_slice, check_upload,
        memory, zeros,
    },
};

use crate::{Cpu, Tensor, kernel::gemm};

impl Ops for Cpu {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        "cpu"
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Exact
    }

    fn shape(&self, x: &Tensor) -> MatrixShape {
        x.shape
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Tensor::copy_from("upload", &self.pool, shape, data)
    }

    fn download(&self, x: &Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(check_download(x.shape, out.len()).map(|()| out.copy_from_slice(x.as_slice())))
    }

    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor::new(shape, data))
    }

    fn download_vec(&self, x: Tensor) -> impl Future<Output = Result<Vec<f32>>> + MaybeSend {
        ready(x.into_vec())
    }

    fn snap(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: the processor supports the kernels; pointer and length are those of a slice.
        Ok(apply_kernel("snap", x, |p, n| unsafe { (self.kernels.snap)(p, n) })?.assume_snapped(true))
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        gemm::gemm(self.kernels, &self.pool, a, b, acc)
    }

    fn gemm_quantized(
        &self,
        a: &Tensor,
        w: &QuantizedMatrix<Tensor>,
        range: OperandRange,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = w.check_gemm(a.shape, acc.map(|acc| acc.shape), |t| t.shape)?;
        let q = integers("gemm_quantized", &w.q)?;
        let mut z = zeros("gemm_quantized", &[shape.rows, shape.cols])?;
        if let Some(acc) = acc {
            let rows = acc.as_slice().chunks_exact(shape.cols).cycle();
            z.chunks_exact_mut(shape.cols).zip(rows).for_each(|(z, acc)| z.copy_from_slice(acc));
        }
        for (z, a) in z.chunks_exact_mut(shape.cols).zip(a.as_slice().chunks_exact(a.shape.cols)) {
            w.format.multiply_row(a, range, &q, w.scale.as_slice(), z);
        }
        Ok(Tensor::new(shape, z))
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        let shape = check_row_broadcast("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_row_broadcast("mul_add summand", shape, c.map(|c| c.shape))?;
        let mut data = zeros("mul_add", &[shape.rows, shape.cols])?;
        let row_ptr = |x: Option<&Tensor>, row: usize| match x {
            Some(x) if x.shape.rows == 1 => x.rows(0..1).as_ptr(),
            Some(x) => x.rows(row..row + 1).as_ptr(),
            None => null(),
        };
        for (k, out) in data.chunks_exact_mut(shape.cols).enumerate() {
            let (a, b, c) = (row_ptr(Some(a), k), row_ptr(b, k), row_ptr(c, k));
            // SAFETY: the processor supports the kernels. The shapes were checked: all rows have as many columns as
            // `out`.
            unsafe { (self.kernels.mul_add)(alpha, a, b, c, out.as_mut_ptr(), out.len()) };
        }
        Ok(Tensor::new(shape, data))
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: the processor supports the kernels; pointer and length are those of a slice.
        apply_kernel("sigmoid", x, |p, n| unsafe { (self.kernels.sigmoid)(p, n) })
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: the processor supports the kernels; pointer and length are those of a slice.
        apply_kernel("tanh", x, |p, n| unsafe { (self.kernels.tanh)(p, n) })
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        check_clip(bound)?;
        // SAFETY: the processor supports the kernels; pointer and length are those of a slice.
        apply_kernel("clip", x, |p, n| unsafe { (self.kernels.clip)(p, n, bound) })
    }

    fn select_between(&self, mut x: Tensor, by: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        let bounds = || low.as_slice().iter().zip(high.as_slice()).cycle();
        for ((x, by), (low, high)) in x.as_mut_slice("select_between")?.iter_mut().zip(by.as_slice()).zip(bounds()) {
            if by <= low || by >= high {
                *x = 0.0;
            }
        }
        Ok(x)
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let mut data = memory::with_capacity("slice", &[shape.rows, shape.cols])?;
        for row in x.rows(rows).chunks_exact(x.shape.cols) {
            data.extend_from_slice(&row[cols.clone()]);
        }
        Ok(Tensor::new(shape, data))
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let mut data = memory::with_capacity("concat", &[shape.rows, shape.cols])?;
        match axis {
            ConcatAxis::Rows => parts.iter().for_each(|part| data.extend_from_slice(part.as_slice())),
            ConcatAxis::Cols => (0..shape.rows)
                .for_each(|row| parts.iter().for_each(|part| data.extend_from_slice(part.rows(row..row + 1)))),
        }
        Ok(Tensor::new(shape, data))
    }
}

/// The integers of a quantized matrix, which a tensor holds as floats. An error names `op`.
pub(crate) fn integers(op: &'static str, q: &Tensor) -> Result<Vec<i16>> {
    memory::collect(op, q.as_slice().len(), q.as_slice().iter().map(|&q| q as i16))
}

/// Applies a kernel to all elements. Works in place if the memory is not shared, else on a copy. An error names `op`.
fn apply_kernel(op: &'static str, mut x: Tensor, kernel: impl Fn(*mut f32, usize)) -> Result<Tensor> {
    let data = x.as_mut_slice(op)?;
    kernel(data.as_mut_ptr(), data.len());
    Ok(x)
}
