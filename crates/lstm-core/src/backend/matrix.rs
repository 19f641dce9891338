//! Weight matrices on a device, in f32 or quantized.

use crate::{
    backend::{
        ops::Ops,
        quantized::QuantizedMatrix,
        shape::{MatrixRef, MatrixShape},
    },
    config::Precision,
    error::{Error, Result},
    memory,
    quantized::OperandRange,
    weights::QuantizedRows,
};

/// A weight matrix `W` on a device, `[out, in]`, which multiplies rows of inputs: `W x` for each row `x`.
#[derive(Clone, Debug)]
pub enum DeviceMatrix<T> {
    /// Floats, after [`snap`](crate::arithmetic::snap).
    F32(T),
    /// Integers and scales.
    Quantized(QuantizedMatrix<T>),
}

impl<T> DeviceMatrix<T> {
    /// The same matrix with other tensors, such as those of a backend inside another.
    pub fn map<'a, U>(&'a self, mut map: impl FnMut(&'a T) -> Result<U>) -> Result<DeviceMatrix<U>> {
        Ok(match self {
            DeviceMatrix::F32(w) => DeviceMatrix::F32(map(w)?),
            DeviceMatrix::Quantized(w) => DeviceMatrix::Quantized(w.map(map)?),
        })
    }
}

impl<T: Clone> DeviceMatrix<T> {
    /// Uploads a matrix of `cols` columns: the integers and scales of `quantized`, or else `values`, snapped.
    pub fn load<B: Ops<Tensor = T>>(
        b: &B,
        cols: usize,
        values: &[f32],
        quantized: Option<QuantizedRows<'_>>,
    ) -> Result<Self> {
        let shape = MatrixShape::new(values.len() / cols, cols);
        let Some(QuantizedRows { q, scale, format }) = quantized else {
            return Ok(DeviceMatrix::F32(b.snap(b.upload(shape, values)?)?));
        };
        let q = b.upload_vec(shape, memory::collect("load", q.len(), q.iter().map(|&q| q.into()))?)?;
        let scale = b.upload(MatrixShape::new(1, shape.rows), scale)?;
        Ok(DeviceMatrix::Quantized(QuantizedMatrix { q, scale, format }))
    }

    /// The shape `[out, in]`. `shape` returns the shape of a tensor.
    pub fn shape(&self, shape: impl Fn(&T) -> MatrixShape) -> MatrixShape {
        match self {
            DeviceMatrix::F32(w) => shape(w),
            DeviceMatrix::Quantized(w) => shape(&w.q),
        }
    }

    /// The precision of the weights.
    pub fn precision(&self) -> Precision {
        match self {
            DeviceMatrix::F32(_) => Precision::F32,
            DeviceMatrix::Quantized(w) => w.format.precision,
        }
    }

    /// The float matrix, which gradients are computed with.
    ///
    /// # Errors
    /// [`Error::Config`] for a quantized matrix.
    pub fn as_f32(&self) -> Result<&T> {
        match self {
            DeviceMatrix::F32(w) => Ok(w),
            DeviceMatrix::Quantized(_) => Err(Error::quantized_gradients(self.precision())),
        }
    }

    /// Computes `acc + a W^T`: one row of outputs for each row of `a`, whose values must be snapped. `acc` has the shape
    /// of the result, or is one row that is added to every row. `range` is that of `a`.
    pub fn multiply<B: Ops<Tensor = T>>(&self, b: &B, a: &T, range: OperandRange, acc: Option<&T>) -> Result<T> {
        match self {
            DeviceMatrix::F32(w) => b.gemm(a.into(), MatrixRef::from(w).t(), acc),
            DeviceMatrix::Quantized(w) => b.gemm_quantized(a, w, range, acc),
        }
    }

    /// The matrices of the four gates, which are stacked in this one.
    pub(crate) fn split_gates<B: Ops<Tensor = T>>(&self, b: &B) -> Result<[Self; 4]> {
        let hidden = self.shape(|t| b.shape(t)).rows / 4;
        let rows = |t: &T, k: usize| b.slice(t, k * hidden..(k + 1) * hidden, 0..b.shape(t).cols);
        let gate = |k: usize| {
            Ok(match self {
                DeviceMatrix::F32(w) => DeviceMatrix::F32(rows(w, k)?),
                DeviceMatrix::Quantized(QuantizedMatrix { q, scale, format }) => {
                    let scale = b.slice(scale, 0..1, k * hidden..(k + 1) * hidden)?;
                    DeviceMatrix::Quantized(QuantizedMatrix { q: rows(q, k)?, scale, format: *format })
                }
            })
        };
        Ok([gate(0)?, gate(1)?, gate(2)?, gate(3)?])
    }
}
