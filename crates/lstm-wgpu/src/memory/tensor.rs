//! A matrix in device memory.

use std::sync::Arc;

use lstm_core::MatrixShape;

use super::DeviceMemory;

/// A row-major matrix in an adapter's memory. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: MatrixShape,
    pub(crate) memory: Arc<DeviceMemory>,
}

impl Tensor {
    /// Shape of the matrix.
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Buffer that holds the matrix, for programs that use a result on the device. The matrix starts at offset 0, and
    /// the buffer may be larger. Its usages are `STORAGE`, `COPY_SRC` and `COPY_DST`. Call
    /// [`Wgpu::submit`](crate::Wgpu::submit) first to submit the work that computes the matrix.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }
}
