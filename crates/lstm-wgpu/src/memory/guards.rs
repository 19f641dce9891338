//! Guard words after tensors. With them, tests check that no kernel accesses memory outside of its tensors. Bindings
//! cover the whole buffer, so kernels can access the guard words, and indices beyond the buffer are clamped to its last
//! word.

use std::sync::Arc;

use lstm_core::Result;

use super::{BufferPool, DeviceMemory, lock, transfer::TENSOR_USAGE};
use crate::device::{Gpu, device_error};

/// Value of the guard words and of memory that was not written yet: a NaN that no computation produces.
pub(super) const GUARD_WORD: u32 = 0x7fc5_e47e;

/// Smallest number of guard words after a tensor.
const MIN_GUARD_WORDS: usize = 256;

/// A buffer of a dropped tensor whose guard words were not checked yet.
#[derive(Debug)]
pub(crate) struct UncheckedBuffer {
    pub(super) buffer: wgpu::Buffer,
    /// Size of the tensor in bytes, which is the offset of the guard words in the buffer.
    pub(super) bytes: u64,
    /// Operation that allocated the tensor.
    pub(super) op: &'static str,
}

impl Gpu {
    pub(crate) fn has_guards(&self) -> bool {
        self.pool.unchecked_buffers.is_some()
    }

    /// Allocates memory for `len` words, followed by guard words, and copies `data` to its start.
    pub(super) fn allocate_guarded(&self, op: &'static str, len: usize, data: &[u8]) -> Result<Arc<DeviceMemory>> {
        let size = BufferPool::size_class(self.checked_bytes(op, len + MIN_GUARD_WORDS)?);
        let mut words = vec![GUARD_WORD; size as usize / 4];
        bytemuck::cast_slice_mut(&mut words)[..data.len()].copy_from_slice(data);
        let buffer = self.pool.take_free_buffer(size, TENSOR_USAGE, true);
        self.with_error_scopes(op, || {
            let buffer = buffer.unwrap_or_else(|| self.create_buffer(size, TENSOR_USAGE));
            self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
            Arc::new(DeviceMemory { buffer, bytes: 4 * len as u64, op, pool: self.pool.clone() })
        })
    }

    /// Checks the guard words of all memory that was dropped since the last check. Returns the number of buffers
    /// checked.
    pub(crate) async fn check_guards(&self) -> Result<usize> {
        let op = "check_guards";
        let Some(unchecked_buffers) = &self.pool.unchecked_buffers else {
            return Err(device_error(op, "tensors have no guard words; enable them with `WgpuBuilder::guards`"));
        };
        let dropped_buffers = std::mem::take(&mut *lock(unchecked_buffers));
        self.submit(op)?;
        if dropped_buffers.is_empty() {
            return Ok(0);
        }
        let mut words = vec![0u32; dropped_buffers.iter().map(UncheckedBuffer::guard_bytes).sum::<u64>() as usize / 4];
        let size = self.checked_bytes(op, words.len())?;
        let gathered_guards = self.with_error_scopes(op, || {
            let gathered_guards = self.create_buffer(size, TENSOR_USAGE);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut offset = 0;
            for dropped_buffer in &dropped_buffers {
                encoder.copy_buffer_to_buffer(
                    &dropped_buffer.buffer,
                    dropped_buffer.bytes,
                    &gathered_guards,
                    offset,
                    dropped_buffer.guard_bytes(),
                );
                offset += dropped_buffer.guard_bytes();
            }
            self.queue.submit([encoder.finish()]);
            DeviceMemory { buffer: gathered_guards, bytes: size, op, pool: self.pool.clone() }
        })?;
        self.download(op, &gathered_guards, 0, bytemuck::cast_slice_mut(&mut words)).await?;
        let mut remaining_words = &words[..];
        for dropped_buffer in &dropped_buffers {
            let (guards, later_words) = remaining_words.split_at(dropped_buffer.guard_bytes() as usize / 4);
            remaining_words = later_words;
            if let Some(k) = guards.iter().position(|&word| word != GUARD_WORD) {
                let (len, word) = (dropped_buffer.bytes / 4, guards[k]);
                let reason = format!(
                    "a kernel wrote {word:08x} out of bounds, {k} words after the end of a tensor of {len} elements \
                     that `{}` allocated",
                    dropped_buffer.op
                );
                return Err(device_error(op, reason));
            }
        }
        let count = dropped_buffers.len();
        dropped_buffers.into_iter().for_each(|dropped_buffer| self.pool.recycle(dropped_buffer.buffer));
        Ok(count)
    }
}

impl UncheckedBuffer {
    /// Size in bytes of the guard words.
    fn guard_bytes(&self) -> u64 {
        self.buffer.size() - self.bytes
    }
}
