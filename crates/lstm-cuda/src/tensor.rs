//! Matrices in device memory.

use std::{fmt, sync::Arc};

use lstm_core::MatrixShape;

use crate::driver::Driver;

/// A row-major matrix in device memory. Clones share the memory.
pub struct Tensor<D: Driver> {
    pub(crate) shape: MatrixShape,
    pub(crate) data: Arc<D::Memory>,
}

impl<D: Driver> Tensor<D> {
    /// Shape of the matrix.
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }
}

impl<D: Driver> Clone for Tensor<D> {
    fn clone(&self) -> Self {
        Tensor { shape: self.shape, data: self.data.clone() }
    }
}

impl<D: Driver> fmt::Debug for Tensor<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({})", self.shape)
    }
}
