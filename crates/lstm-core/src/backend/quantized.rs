//! Quantized weight matrices on a device.

use crate::{
    backend::shape::MatrixShape,
    error::{Error, Result},
    quantized::{Format, INT12},
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

    /// Checks the operands of [`Ops::gemm_quantized`] and returns the shape of the result. `shape` returns the shape of
    /// a tensor.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::Shape`] gives the shapes.
    pub fn check_gemm(
        &self,
        a: MatrixShape,
        acc: Option<MatrixShape>,
        shape: impl Fn(&T) -> MatrixShape,
    ) -> Result<MatrixShape> {
        let q = shape(&self.q);
        if self.format.block == 0 || self.format.max > INT12.max {
            let reason =
                format!("expected blocks of at least 1 and integers of at most {}, got {:?}", INT12.max, self.format);
            return Err(Error::config("precision", reason));
        }
        let (expected, got) = (MatrixShape::new(1, q.rows), shape(&self.scale));
        if got != expected {
            return Err(Error::shape("gemm_quantized: scale", expected, got));
        }
        super::shape::check_gemm(a, MatrixShape::new(q.cols, q.rows), acc)
    }
}
