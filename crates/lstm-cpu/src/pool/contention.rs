//! Whether other programs need the cores, so that threads of a job wait for each other most of the time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A job suffers from contention if each of its threads but one sleeps for at least this part of the time. One thread
/// alone would then need at most 1.25 times as long as two, even if they only sleep because their parts of the job
/// differ. If they sleep less, two threads need at most twice as long as one.
const SLEEPING_PART: f64 = 0.75;

/// After a job that suffered from contention, jobs run on one thread for this number of times its duration, so that
/// trying again with all threads costs little.
const DURATIONS_ALONE: u32 = 16;

/// The longest time after which all threads are tried again.
const MAX_ALONE: Duration = Duration::from_millis(500);

/// Observes the jobs of a pool, and decides whether the next one should run on one thread.
pub(super) struct Contention {
    start: Instant,
    /// Nanoseconds after `start` until which jobs run on one thread.
    alone_until: AtomicU64,
}

impl Contention {
    pub(super) fn new() -> Self {
        Contention { start: Instant::now(), alone_until: AtomicU64::new(0) }
    }

    /// Whether the next job should run on one thread.
    pub(super) fn is_high(&self) -> bool {
        match self.alone_until.load(Ordering::Relaxed) {
            0 => false,
            end if nanoseconds(self.start.elapsed()) < end => true,
            _ => {
                self.alone_until.store(0, Ordering::Relaxed);
                false
            }
        }
    }

    /// Records a job of `team_size` threads, which have slept for `slept` nanoseconds in total.
    pub(super) fn record(&self, team_size: usize, duration: Duration, slept: u64) {
        if slept as f64 >= SLEEPING_PART * (team_size - 1) as f64 * nanoseconds(duration) as f64 {
            let alone = (duration * DURATIONS_ALONE).min(MAX_ALONE);
            self.alone_until.store(nanoseconds(self.start.elapsed() + alone), Ordering::Relaxed);
        }
    }
}

/// A duration in nanoseconds.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_alone_after_contention_and_not_for_long() {
        let contention = Contention::new();
        let duration = Duration::from_millis(1);
        for (team_size, slept) in [(2, 0), (2, 700_000), (4, 2_000_000)] {
            contention.record(team_size, duration, slept);
            assert!(!contention.is_high(), "{team_size} threads, {slept} ns");
        }
        for (team_size, slept) in [(2, 800_000), (4, 2_900_000)] {
            contention.record(team_size, duration, slept);
            assert!(contention.is_high(), "{team_size} threads, {slept} ns");
            std::thread::sleep(duration * DURATIONS_ALONE);
            assert!(!contention.is_high(), "{team_size} threads, {slept} ns");
        }
    }
}
