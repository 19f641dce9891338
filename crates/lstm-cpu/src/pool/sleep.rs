//! Waiting for another thread: a short spin, then sleep.

use std::time::Instant;

use super::sync::{AtomicUsize, Condvar, MAX_SPINS, Mutex, Ordering, PoisonError, spin_loop};

/// The threads that sleep until a condition on atomics is true. Waking a thread takes longer than a time step, so they
/// spin first. Spinning for longer would take the core that the awaited thread needs, if there are more threads than
/// free cores.
#[derive(Default)]
pub(super) struct Sleepers {
    count: AtomicUsize,
    lock: Mutex<()>,
    condition: Condvar,
}

impl Sleepers {
    /// Waits until `is_done` returns true. It must read an atomic in sequentially consistent order. The thread that
    /// makes it true calls [`wake`](Self::wake) afterwards. Returns the time that this thread has slept, in nanoseconds.
    pub(super) fn wait_until(&self, is_done: impl Fn() -> bool) -> u64 {
        for _ in 0..MAX_SPINS {
            if is_done() {
                return 0;
            }
            spin_loop();
        }
        let start = Instant::now();
        self.count.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !is_done() {
            guard = self.condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.count.fetch_sub(1, Ordering::SeqCst);
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Wakes the threads that sleep, after a sequentially consistent store made their condition true. Either this sees
    /// that a thread sleeps, or that thread sees the store before it sleeps.
    pub(super) fn wake(&self) {
        if self.count.load(Ordering::SeqCst) > 0 {
            // A thread that has checked its condition under the lock is now asleep.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.condition.notify_all();
        }
    }
}
