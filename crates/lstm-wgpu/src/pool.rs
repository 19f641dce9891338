//! Device memory that is used again: buffers go back to the pool when the last tensor that shares them is gone. Bind groups
//! of buffers that there are, as passes of the same sizes take the same buffers.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{guards::Unchecked, shader::Kernel};

/// How many buffers wait at most, and how many bytes.
const MAX_BUFFERS: usize = 128;
const MAX_BYTES: u64 = 256 << 20;
/// Bind groups kept at most.
const MAX_GROUPS: usize = 512;

/// A kernel, its buffers, and how much it sees of each.
pub(crate) type Binding = (Kernel, Vec<(wgpu::Buffer, u64)>);

/// Buffers without an owner.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Free>>,
    /// Counts submissions: work recorded now belongs to this one.
    epoch: AtomicU64,
    /// None holds a buffer that neither waits here nor belongs to someone.
    groups: Mutex<HashMap<Binding, wgpu::BindGroup>>,
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
            return self.forget(&buffer);
        }
        let mut free = lock(&self.free);
        free.push(Free { buffer, epoch });
        while free.len() > MAX_BUFFERS || free.iter().map(|f| f.buffer.size()).sum::<u64>() > MAX_BYTES {
            self.forget(&free.remove(0).buffer);
        }
    }

    /// Drops the bind groups that hold a buffer.
    fn forget(&self, buffer: &wgpu::Buffer) {
        lock(&self.groups).retain(|(_, buffers), _| buffers.iter().all(|(other, _)| other != buffer));
    }

    /// A bind group that was made before.
    pub(crate) fn group(&self, binding: &Binding) -> Option<wgpu::BindGroup> {
        lock(&self.groups).get(binding).cloned()
    }

    /// Keeps a bind group of buffers that belong to someone.
    pub(crate) fn keep(&self, binding: Binding, group: &wgpu::BindGroup) {
        let mut groups = lock(&self.groups);
        if groups.len() == MAX_GROUPS {
            groups.clear();
        }
        groups.insert(binding, group.clone());
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

    #[test]
    #[cfg(not(target_arch = "wasm32"))]
    fn bind_groups_are_kept_as_long_as_their_buffers() {
        use crate::shader::Unary::Snap;
        use lstm_core::{MatrixShape, Ops};
        let Some(wgpu) = crate::guards::tests::open(false) else { return };
        let (gpu, x) = (wgpu.gpu(), wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3]).unwrap());
        let snapped = || gpu.unary("snap", Snap, &x, 0.0).unwrap();
        let count = || lock(&gpu.pool.groups).len();
        drop(snapped());
        let before = count();
        drop(snapped());
        assert_eq!(count(), before, "the same buffers again");

        // Of more than the pool keeps, the oldest go, and their groups with them.
        let many: Vec<_> = (0..MAX_BUFFERS + 10).map(|_| snapped()).collect();
        let made = count();
        assert!(made > before + 100);
        drop(many);
        assert!(count() < made);
        let free = lock(&gpu.pool.free);
        for (buffer, _) in lock(&gpu.pool.groups).keys().flat_map(|(_, buffers)| buffers) {
            assert!(buffer == x.buffer() || free.iter().any(|f| f.buffer == *buffer), "held by a bind group alone");
        }
        drop(free);

        // And never more than so many.
        let others: Vec<_> = (0..MAX_GROUPS + 10).map(|_| snapped()).collect();
        assert!(count() <= MAX_GROUPS && others.len() > MAX_GROUPS);
    }
}
