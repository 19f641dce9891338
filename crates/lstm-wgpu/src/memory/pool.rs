//! A pool of free buffers, and a cache of bind groups. Passes of the same sizes take the same buffers from the pool, so
//! their bind groups can be reused too.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::guards::UncheckedBuffer;
use crate::shader::Kernel;

/// Largest number of free buffers.
pub(super) const MAX_FREE_BUFFERS: usize = 128;
/// Largest total size of the free buffers, in bytes.
const MAX_FREE_BYTES: u64 = 256 << 20;
/// Largest number of cached bind groups.
pub(super) const MAX_BIND_GROUPS: usize = 512;

/// Identifies a bind group: a kernel and its buffers. With each buffer is the number of bytes that the kernel can
/// access.
pub(crate) type BindGroupKey = (Kernel, Vec<(wgpu::Buffer, u64)>);

/// Free buffers, and bind groups of buffers that are free or in use.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    pub(super) free_buffers: Mutex<Vec<FreeBuffer>>,
    /// Number of submissions so far, which identifies the submission that recorded work will be part of.
    submission_count: AtomicU64,
    /// Cached bind groups. A bind group is dropped with the first of its buffers that this pool drops.
    pub(super) bind_groups: Mutex<HashMap<BindGroupKey, wgpu::BindGroup>>,
    /// Buffers of dropped tensors whose guard words were not checked yet. `None` if tensors have no guard words.
    pub(super) unchecked_buffers: Option<Mutex<Vec<UncheckedBuffer>>>,
}

/// A buffer that can be reused.
#[derive(Debug)]
pub(super) struct FreeBuffer {
    pub(super) buffer: wgpu::Buffer,
    /// Number of the last submission whose work may use the buffer.
    last_submission: u64,
}

/// Locks a mutex, even if another thread panicked while it held the lock: the data is consistent at every point where a
/// critical section of this crate can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BufferPool {
    /// Creates an empty pool, for memory with or without guard words.
    pub(crate) fn new(guards: bool) -> Self {
        BufferPool { unchecked_buffers: guards.then(Mutex::default), ..BufferPool::default() }
    }

    /// Buffer size to allocate for `bytes` bytes. Sizes are rounded up to one of a few per power of two, so that a
    /// buffer can be reused for another tensor of nearly the same size.
    pub(crate) fn size_class(bytes: u64) -> u64 {
        let size_step = (bytes.max(256).next_power_of_two() / 8).max(32);
        bytes.max(256).next_multiple_of(size_step)
    }

    /// Takes a free buffer of exactly this size and usage. With `host_write`, only a buffer that no unsubmitted work
    /// uses: a write by the host takes effect before unsubmitted work.
    pub(crate) fn take_free_buffer(
        &self,
        size: u64,
        usage: wgpu::BufferUsages,
        host_write: bool,
    ) -> Option<wgpu::Buffer> {
        let current_submission = self.submission_count.load(Ordering::Acquire);
        let mut free_buffers = lock(&self.free_buffers);
        let is_usable = |f: &FreeBuffer| {
            f.buffer.size() == size
                && f.buffer.usage() == usage
                && !(host_write && f.last_submission >= current_submission)
        };
        let index = free_buffers.iter().rposition(is_usable)?;
        Some(free_buffers.remove(index).buffer)
    }

    /// Adds a buffer to the free buffers. Drops the oldest ones if there are too many.
    pub(crate) fn recycle(&self, buffer: wgpu::Buffer) {
        let last_submission = self.submission_count.load(Ordering::Acquire);
        if buffer.size() > MAX_FREE_BYTES {
            return self.drop_bind_groups(&buffer);
        }
        let mut free_buffers = lock(&self.free_buffers);
        free_buffers.push(FreeBuffer { buffer, last_submission });
        while free_buffers.len() > MAX_FREE_BUFFERS
            || free_buffers.iter().map(|f| f.buffer.size()).sum::<u64>() > MAX_FREE_BYTES
        {
            self.drop_bind_groups(&free_buffers.remove(0).buffer);
        }
    }

    /// Drops the cached bind groups that hold `buffer`.
    fn drop_bind_groups(&self, buffer: &wgpu::Buffer) {
        lock(&self.bind_groups).retain(|(_, buffers), _| buffers.iter().all(|(other, _)| other != buffer));
    }

    /// Returns a cached bind group.
    pub(crate) fn cached_bind_group(&self, key: &BindGroupKey) -> Option<wgpu::BindGroup> {
        lock(&self.bind_groups).get(key).cloned()
    }

    /// Caches a bind group of buffers that are in use.
    pub(crate) fn cache_bind_group(&self, key: BindGroupKey, bind_group: &wgpu::BindGroup) {
        let mut bind_groups = lock(&self.bind_groups);
        if bind_groups.len() == MAX_BIND_GROUPS {
            bind_groups.clear();
        }
        bind_groups.insert(key, bind_group.clone());
    }

    /// Counts a submission of all recorded work.
    pub(crate) fn note_submission(&self) {
        self.submission_count.fetch_add(1, Ordering::AcqRel);
    }
}
