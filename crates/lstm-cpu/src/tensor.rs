//! Matrices in memory.

use std::sync::Arc;

use lstm_core::Shape;

/// A row-major matrix. Cloning shares the memory; who changes it in place copies it first if it is shared.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: Shape,
    pub(crate) data: Arc<Vec<f32>>,
}

impl Tensor {
    pub(crate) fn new(shape: Shape, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), data.len());
        Tensor { shape, data: Arc::new(data) }
    }

    /// The elements, row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.data[rows.start * self.shape.cols..rows.end * self.shape.cols]
    }
}
