//! Device memory that is used again: buffers go back to the pool when the last tensor that shares them is gone.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::guards::Unchecked;

/// How many buffers wait at most, and how many bytes.
const MAX_BUFFERS: usize = 128;
const MAX_BYTES: u64 = 256 << 20;

/// Buffers without an owner.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Free>>,
    /// Counts submissions: work recorded now belongs to this one.
    epoch: AtomicU64,
    /// With guards: what came back, before they were looked at.
    pub(crate) unchecked: Option<Mutex<Vec<Unchecked>>>,
}

#[derive(Debug)]
struct Free {
    buffer: wgpu::Buffer,
    /// The last submission that may use it.
    epoch: u64,
}

/// Locks even where another thread panicked: nothing here is left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool for memory with guards, or without.
    pub(crate) fn new(guards: bool) -> Self {
        Pool { unchecked: guards.then(Mutex::default), ..Pool::default() }
    }

    /// The size that a buffer for `bytes` gets: a multiple of an eighth of the power of two below it, so that buffers of
    /// nearly the same size serve one another.
    pub(crate) fn size_class(bytes: u64) -> u64 {
        let step = (bytes.max(256).next_power_of_two() / 8).max(32);
        bytes.max(256).next_multiple_of(step)
    }

    /// A buffer of this very size. Work that was recorded with it comes before what is recorded from now on; if the host
    /// is to `write` it, that work must have been submitted.
    pub(crate) fn take(&self, size: u64, usage: wgpu::BufferUsages, write: bool) -> Option<wgpu::Buffer> {
        let now = self.epoch.load(Ordering::Acquire);
        let mut free = lock(&self.free);
        let fits = |f: &Free| f.buffer.size() == size && f.buffer.usage() == usage && !(write && f.epoch >= now);
        let place = free.iter().rposition(fits)?;
        Some(free.remove(place).buffer)
    }

    /// Takes a buffer back; the oldest go where there are too many.
    pub(crate) fn give(&self, buffer: wgpu::Buffer) {
        let epoch = self.epoch.load(Ordering::Acquire);
        if buffer.size() > MAX_BYTES {
            return;
        }
        let mut free = lock(&self.free);
        free.push(Free { buffer, epoch });
        while free.len() > MAX_BUFFERS || free.iter().map(|f| f.buffer.size()).sum::<u64>() > MAX_BYTES {
            free.remove(0);
        }
    }

    /// Notes that all recorded work was submitted.
    pub(crate) fn submitted(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_was_asked_for_and_waste_little() {
        for bytes in (4..100_000).step_by(4).chain([1 << 20, (1 << 20) + 4, (1 << 27) - 4]) {
            let size = Pool::size_class(bytes);
            assert!(size >= bytes && size.is_multiple_of(4) && size <= (bytes + bytes / 4).max(256), "{bytes}: {size}");
            assert_eq!(Pool::size_class(size), size);
        }
    }
}
