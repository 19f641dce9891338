//! A list of freed memory that is kept for reuse.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, TryLockError},
};

use lstm_core::{Result, shape::checked_len};

use crate::memory::buffer::Buffer;

/// Freed allocations that are kept for reuse, up to a total number of floats. Without this list, large allocations come
/// from the operating system each time, page by page. In measurements, that took a fifth of the time of a training step
/// and a tenth of that of a forward pass.
pub(crate) struct FreeList<T> {
    /// The freed allocations, from the oldest to the newest.
    entries: Mutex<VecDeque<T>>,
    /// Maximum total number of floats.
    max_floats: usize,
}

/// Number of attempts to lock a list, some tens of microseconds.
const MAX_LOCK_ATTEMPTS: u32 = 1 << 11;

/// Maximum number of allocations in a list.
const MAX_ENTRIES: usize = 64;

impl<T: AsRef<[f32]>> FreeList<T> {
    /// An empty list that keeps at most `max_floats` floats.
    pub(crate) fn new(max_floats: usize) -> Self {
        FreeList { entries: Mutex::default(), max_floats }
    }

    /// The list; `None` if another thread holds it for too long. In a child process that was forked meanwhile, that
    /// thread does not exist, and would hold it forever.
    fn lock(&self) -> Option<MutexGuard<'_, VecDeque<T>>> {
        for _ in 0..MAX_LOCK_ATTEMPTS {
            match self.entries.try_lock() {
                Ok(entries) => return Some(entries),
                Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// Removes and returns the newest allocation of exactly `len` floats.
    pub(crate) fn take_exact(&self, len: usize) -> Option<T> {
        let mut entries = self.lock()?;
        let index = entries.iter().rposition(|entry| entry.as_ref().len() == len)?;
        entries.remove(index)
    }

    /// Adds an allocation and drops the oldest ones if the list exceeds its limits. An allocation that is larger than
    /// `max_floats` is dropped at once.
    pub(crate) fn put(&self, entry: T) {
        if entry.as_ref().len() > self.max_floats {
            return;
        }
        let Some(mut entries) = self.lock() else { return };
        entries.push_back(entry);
        let total_floats = |entries: &VecDeque<T>| entries.iter().map(|entry| entry.as_ref().len()).sum::<usize>();
        while entries.len() > MAX_ENTRIES || total_floats(&entries) > self.max_floats {
            entries.pop_front();
        }
    }
}

impl FreeList<Buffer> {
    /// A buffer of zeros, reused or new, as long as the product of `sizes`.
    pub(crate) fn zeros(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        match self.take_exact(checked_len(op, sizes)?) {
            Some(mut buffer) => {
                buffer.as_mut_slice().fill(0.0);
                Ok(buffer)
            }
            None => Buffer::zeros(op, sizes),
        }
    }

    /// A buffer with unspecified contents, reused or new, as long as the product of `sizes`.
    pub(crate) fn unspecified_buffer(&self, op: &'static str, sizes: &[usize]) -> Result<Buffer> {
        self.take_exact(checked_len(op, sizes)?).map_or_else(|| Buffer::zeros(op, sizes), Ok)
    }
}
