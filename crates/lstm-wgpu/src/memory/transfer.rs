//! Allocating device memory, and copying between the host and the device.

use std::sync::Arc;

use lstm_core::{MatrixShape, Result};

use super::{BufferPool, DeviceMemory, Tensor};
use crate::device::{Gpu, device_error, map_async_future};

/// Usage of the buffers of all tensors.
pub(super) const TENSOR_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// Size in bytes of `len` 32-bit elements.
    ///
    /// # Errors
    /// If a buffer of that size is too large for a kernel.
    pub(super) fn checked_bytes(&self, op: &'static str, len: usize) -> Result<u64> {
        match (len as u64).checked_mul(4).filter(|&bytes| bytes <= self.max_buffer_bytes()) {
            Some(bytes) => Ok(bytes),
            None => Err(device_error(
                op,
                format!(
                    "{len} elements do not fit in memory: the largest buffer on {} has {} bytes",
                    self.info.name,
                    self.max_buffer_bytes()
                ),
            )),
        }
    }

    /// Size of the buffer to allocate for `bytes` bytes.
    fn buffer_size(&self, bytes: u64) -> u64 {
        BufferPool::size_class(bytes).min(self.max_buffer_bytes() & !3)
    }

    /// Allocates memory for `len` elements. The contents are unspecified.
    pub(crate) fn allocate(&self, op: &'static str, len: usize) -> Result<Arc<DeviceMemory>> {
        if self.has_guards() {
            return self.allocate_guarded(op, len, &[]);
        }
        let bytes = self.checked_bytes(op, len)?;
        let size = self.buffer_size(bytes);
        let buffer = match self.pool.take_free_buffer(size, TENSOR_USAGE, false) {
            Some(buffer) => buffer,
            None => self.with_error_scopes(op, || self.create_buffer(size, TENSOR_USAGE))?,
        };
        Ok(Arc::new(DeviceMemory { buffer, bytes, op, pool: self.pool.clone() }))
    }

    pub(super) fn create_buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lstm"),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// Allocates a tensor. The contents are unspecified.
    pub(crate) fn allocate_tensor(&self, op: &'static str, shape: MatrixShape) -> Result<Tensor> {
        Ok(Tensor { shape, memory: self.allocate(op, shape.len())? })
    }

    /// Allocates memory and copies `data` to it. The length of `data` must be a multiple of 4.
    pub(crate) fn upload(&self, op: &'static str, data: &[u8]) -> Result<Arc<DeviceMemory>> {
        if self.has_guards() {
            return self.allocate_guarded(op, data.len() / 4, data);
        }
        let bytes = self.checked_bytes(op, data.len() / 4)?;
        let size = self.buffer_size(bytes);
        // The write takes effect before all recorded work, so the buffer must not be used by any of it.
        let buffer = self.pool.take_free_buffer(size, TENSOR_USAGE, true);
        self.with_error_scopes(op, || {
            let buffer = buffer.unwrap_or_else(|| self.create_buffer(size, TENSOR_USAGE));
            self.queue.write_buffer(&buffer, 0, data);
            Arc::new(DeviceMemory { buffer, bytes, op, pool: self.pool.clone() })
        })
    }

    /// Copies `data` to memory that no recorded work uses.
    pub(crate) fn write(&self, op: &'static str, memory: &DeviceMemory, data: &[u8]) -> Result<()> {
        self.check_owner(op, memory)?;
        self.with_error_scopes(op, || self.queue.write_buffer(&memory.buffer, 0, data))
    }

    /// Submits all recorded work, waits for it, and copies `memory` to `out`, starting at element `start`.
    pub(crate) async fn download(
        &self,
        op: &'static str,
        memory: &DeviceMemory,
        start: usize,
        out: &mut [u8],
    ) -> Result<()> {
        self.check_owner(op, memory)?;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = out.len() as u64;
        let size = self.buffer_size(bytes);
        let staging = match self.pool.take_free_buffer(size, usage, false) {
            Some(buffer) => buffer,
            None => self.with_error_scopes(op, || self.create_buffer(size, usage))?,
        };
        self.submit_copy(op, &memory.buffer, 4 * start as u64, &staging, bytes)?;
        let (mapping, callback) = map_async_future();
        self.with_error_scopes(op, || staging.slice(..bytes).map_async(wgpu::MapMode::Read, callback))?;
        // In a browser this has no effect; there the event loop completes the mapping.
        let poll_result = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check_usable(op)?;
        poll_result.map_err(|e| self.poison(device_error(op, e)))?;
        mapping.await.map_err(|e| self.poison(device_error(op, e)))?;
        let mapped_view = staging.slice(..bytes).get_mapped_range().map_err(|e| device_error(op, e))?;
        out.copy_from_slice(&mapped_view);
        drop(mapped_view);
        staging.unmap();
        self.pool.recycle(staging);
        self.check_deferred_errors().await
    }
}
