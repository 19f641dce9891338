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

    /// The elements, to be changed in place; a copy of them where they are shared.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let data: &mut Vec<f32> = Arc::make_mut(&mut self.data);
        data
    }

    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.data[rows.start * self.shape.cols..rows.end * self.shape.cols]
    }
}
