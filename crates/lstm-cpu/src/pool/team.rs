//! The threads of a job and the barrier between them.

use std::ops::Range;

use super::{
    sleep::Sleepers,
    sync::{AtomicU64, AtomicUsize, Ordering},
};

/// A group of threads that share a barrier: all threads of a job, or some of them.
pub(crate) struct Team {
    /// Number of threads.
    pub(super) size: usize,
    /// Number of threads that have arrived at the current barrier.
    arrived_threads: AtomicUsize,
    /// Number of times that all threads have passed the barrier.
    generation: AtomicUsize,
    /// The threads that sleep at the barrier.
    sleepers: Sleepers,
}

impl Team {
    /// A team of `size` threads.
    pub(crate) fn new(size: usize) -> Self {
        Team {
            size,
            arrived_threads: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            sleepers: Sleepers::default(),
        }
    }

    /// The thread `rank` of the team, which adds the time that it sleeps to `slept`, in nanoseconds.
    pub(crate) fn member<'a>(&'a self, rank: usize, slept: &'a AtomicU64) -> TeamMember<'a> {
        TeamMember { rank, size: self.size, team: self, slept }
    }
}

/// One thread of a [`Team`]. The function of a job receives it as its argument.
#[derive(Clone, Copy)]
pub(crate) struct TeamMember<'a> {
    /// Index of this thread, from 0 to `size - 1`.
    pub(crate) rank: usize,
    /// Number of threads in the team.
    pub(crate) size: usize,
    team: &'a Team,
    /// Total time that threads of the job have slept while they waited for others, in nanoseconds.
    slept: &'a AtomicU64,
}

impl<'a> TeamMember<'a> {
    /// Splits the team into the two given teams. Returns the index of the team to which this thread belongs, and this
    /// thread as its member. Returns `None` if this is the only thread, which happens when the workers are busy.
    pub(crate) fn split<'t>(&self, teams: &'t [Team; 2]) -> Option<(usize, TeamMember<'t>)>
    where
        'a: 't,
    {
        let first_size = teams[0].size;
        debug_assert!(self.size == 1 || self.size == first_size + teams[1].size);
        (self.size == first_size + teams[1].size).then(|| {
            let index = usize::from(self.rank >= first_size);
            let (rank, team) = (self.rank - index * first_size, &teams[index]);
            (index, TeamMember { rank, size: team.size, team, slept: self.slept })
        })
    }

    /// The part of `n` items that this thread handles. The parts of all threads are contiguous, disjoint and of nearly
    /// equal size.
    pub(crate) fn partition(&self, n: usize) -> Range<usize> {
        match self.size {
            1 => 0..n, // Saves the divisions in a streaming step.
            size => n * self.rank / size..n * (self.rank + 1) / size,
        }
    }

    /// Waits until all threads of the team have called this method. Writes before the barrier are visible to all
    /// threads after it.
    pub(crate) fn barrier(&self) {
        if self.size == 1 {
            return;
        }
        let generation = self.team.generation.load(Ordering::Acquire);
        if self.team.arrived_threads.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.team.arrived_threads.store(0, Ordering::Relaxed);
            // Sequentially consistent, as `Sleepers::wake` requires.
            self.team.generation.store(generation.wrapping_add(1), Ordering::SeqCst);
            self.team.sleepers.wake();
        } else {
            let slept = self.team.sleepers.wait_until(|| self.team.generation.load(Ordering::SeqCst) != generation);
            if slept > 0 {
                self.slept.fetch_add(slept, Ordering::Relaxed);
            }
        }
    }
}
