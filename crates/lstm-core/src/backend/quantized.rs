//! Quantized weight matrices on a device.

use crate::{
    backend::shape::MatrixShape,
    error::{Error, Result},
    quantized::{Format, INT8, INT12},
};

/// A quantized weight matrix on a device: the weight of output `n` and input `k` is about `q[n, k] * scale[n]`. See
/// [`quantized`](crate::quantized).
#[derive(Clone, Debug)]
pub struct QuantizedMatrix<T> {
    /// The integers, `[out, in]`, as floats: these hold them exactly.
    pub q: T,
    /// The scales, `[1, out]`.
    pub scale: T,
    /// The constants of the matrix's precision.
    pub format: Format,
}

impl<T> QuantizedMatrix<T> {
    /// The same matrix with other tensors, such as those of a backend inside another.
    pub fn map<'a, U>(&'a self, mut map: impl FnMut(&'a T) -> Result<U>) -> Result<QuantizedMatrix<U>> {
        Ok(QuantizedMatrix { q: map(&self.q)?, scale: map(&self.scale)?, format: self.format })
    }

    /// Checks the operands of [`Ops::gemm_quantized`](crate::Ops::gemm_quantized) and returns the shape of the result.
    /// `shape` returns the shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::Shape`] gives the shapes; [`Error::Config`] if the sum of a block could exceed 32
    /// bits.
    pub fn check_gemm(
        &self,
        a: MatrixShape,
        acc: Option<MatrixShape>,
        shape: impl Fn(&T) -> MatrixShape,
    ) -> Result<MatrixShape> {
        let q = shape(&self.q);
        let Format { max, block, .. } = self.format;
        // The sum of a block must fit in 32 bits.
        let largest_sum = i64::from(max).pow(2).saturating_mul(block as i64);
        if !(1..=INT8.block).contains(&block) || !(1..=INT12.max).contains(&max) || largest_sum > i32::MAX.into() {
            let reason = format!("expected the constants of int8 or int12, got {:?}", self.format);
            return Err(Error::config("precision", reason));
        }
        let (expected, got) = (MatrixShape::new(1, q.rows), shape(&self.scale));
        if got != expected {
            return Err(Error::shape("gemm_quantized: scale", expected, got));
        }
        super::shape::check_gemm(a, MatrixShape::new(q.cols, q.rows), acc)
    }
}
