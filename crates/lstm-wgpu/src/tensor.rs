//! A matrix in device memory.

use std::sync::Arc;

use lstm_core::MatrixShape;

use crate::{
    guards::Unchecked,
    pool::{Pool, lock},
};

/// A row-major matrix in an adapter's memory. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) shape: MatrixShape,
    pub(crate) memory: Arc<Memory>,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) buffer: wgpu::Buffer,
    /// How much of it is used.
    pub(crate) bytes: u64,
    /// Who asked for it.
    pub(crate) op: &'static str,
    pub(crate) pool: Arc<Pool>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (buffer, bytes, op) = (self.buffer.clone(), self.bytes, self.op);
        match &self.pool.unchecked {
            Some(unchecked) if bytes < buffer.size() => lock(unchecked).push(Unchecked { buffer, bytes, op }),
            _ => self.pool.give(buffer),
        }
    }
}

impl Memory {
    /// Bytes of it that kernels see: with its guards, where it has any.
    pub(crate) fn visible(&self) -> u64 {
        if self.pool.unchecked.is_some() { self.buffer.size() } else { self.bytes }
    }
}

impl Tensor {
    /// Its shape.
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// The buffer that holds it from the start, with `STORAGE`, `COPY_SRC` and `COPY_DST` usage: for programs that use the
    /// result on the device. It may be longer than the matrix; work on it is submitted by
    /// [`Wgpu::submit`](crate::Wgpu::submit).
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }
}
