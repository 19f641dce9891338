//! A buffer that a pool recycles.

use std::sync::Arc;

use super::{
    guards::UncheckedBuffer,
    pool::{BufferPool, lock},
};

/// A buffer in device memory. Dropping it returns the buffer to the pool.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub(crate) buffer: wgpu::Buffer,
    /// Number of bytes in use; the buffer may be larger.
    pub(crate) bytes: u64,
    /// Operation that allocated it, for error messages.
    pub(crate) op: &'static str,
    pub(crate) pool: Arc<BufferPool>,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let (buffer, bytes, op) = (self.buffer.clone(), self.bytes, self.op);
        match &self.pool.unchecked_buffers {
            Some(unchecked_buffers) if bytes < buffer.size() => {
                lock(unchecked_buffers).push(UncheckedBuffer { buffer, bytes, op })
            }
            _ => self.pool.recycle(buffer),
        }
    }
}

impl DeviceMemory {
    /// Number of bytes that kernels can access. Includes the guard words, if there are any.
    pub(crate) fn accessible_bytes(&self) -> u64 {
        if self.pool.unchecked_buffers.is_some() { self.buffer.size() } else { self.bytes }
    }
}
