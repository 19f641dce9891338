//! Threads that wait spinning for a while, because a time step is shorter than waking a thread, and a barrier between them.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    ptr::null_mut,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

use crate::buffer::{Buffer, Spares};

/// Spins before a waiting thread sleeps or yields: some tens of microseconds, as a pause takes 10 to 50 ns.
const SPINS: u32 = 1 << 11;

/// `threads - 1` workers beside the thread that calls. One job runs at a time; who comes second runs alone.
pub(crate) struct Pool {
    workers: Vec<Worker>,
    busy: Mutex<()>,
    /// Memory that was used before: 192 MiB of buffers and 64 MiB of tensors at most.
    pub(crate) spares: Spares<Buffer>,
    pub(crate) tensors: Spares<Vec<f32>>,
}

struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Mailbox {
    job: AtomicPtr<Job>,
    stop: AtomicBool,
}

/// Lives on the caller's stack until `remaining` is 0.
struct Job {
    run: *const (dyn Fn(Member<'_>) + Sync),
    team: *const Team,
    /// Rank of the next worker to take the job.
    rank: AtomicUsize,
    remaining: AtomicUsize,
}

/// What the threads that meet at a barrier share: those of one job, or a part of them.
pub(crate) struct Team {
    size: usize,
    waiting: AtomicUsize,
    generation: AtomicUsize,
}

/// Pointers that the threads of a job share; who writes through one says why no other thread writes there.
pub(crate) struct Shared<T>(pub(crate) T);

// SAFETY: as above: every use is in an unsafe block of its own.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// A method, so that a closure captures the whole.
    pub(crate) fn get(&self) -> T {
        self.0
    }
}

/// One thread's place in a job.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    /// 0 to `size - 1`.
    pub(crate) rank: usize,
    /// Threads in the job.
    pub(crate) size: usize,
    team: &'a Team,
}

impl Team {
    pub(crate) fn new(size: usize) -> Self {
        Team { size, waiting: AtomicUsize::new(0), generation: AtomicUsize::new(0) }
    }
}

impl Member<'_> {
    /// The place in one of two teams that the members of this one part into, and which of them it is; `None` if there is one
    /// member alone, as when the workers are busy.
    pub(crate) fn part<'t>(&self, teams: &'t [Team; 2]) -> Option<(usize, Member<'t>)> {
        let first = teams[0].size;
        debug_assert!(self.size == 1 || self.size == first + teams[1].size);
        (self.size == first + teams[1].size).then(|| {
            let part = usize::from(self.rank >= first);
            let (rank, team) = (self.rank - part * first, &teams[part]);
            (part, Member { rank, size: team.size, team })
        })
    }

    /// Waits until all members have come here; what they wrote before is seen after.
    pub(crate) fn barrier(&self) {
        if self.size == 1 {
            return;
        }
        let generation = self.team.generation.load(Ordering::Acquire);
        if self.team.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.team.waiting.store(0, Ordering::Relaxed);
            self.team.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            wait_until(|| self.team.generation.load(Ordering::Acquire) != generation);
        }
    }
}

/// Spins, then lets others run: with more threads than cores the one waited for may need this one's core.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let (spares, tensors) = (Spares::new(3 << 24), Spares::new(1 << 24));
        let mut pool = Pool { workers: Vec::new(), busy: Mutex::new(()), spares, tensors };
        for k in 1..threads {
            let mailbox = Arc::new(Mailbox { job: AtomicPtr::new(null_mut()), stop: AtomicBool::new(false) });
            let theirs = mailbox.clone();
            let handle = thread::Builder::new().name(format!("lstm-cpu-{k}")).spawn(move || work(&theirs))?;
            pool.workers.push(Worker { mailbox, thread: handle.thread().clone(), handle: Some(handle) });
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` on `threads` threads, or as many as there are, or on the caller alone where the workers are busy with
    /// another caller's job: `f` must do the right thing for any `size`. Allocates nothing.
    pub(crate) fn run(&self, threads: usize, f: &(dyn Fn(Member<'_>) + Sync)) {
        let mut team = Team::new(1);
        let wanted = threads.min(self.threads());
        let guard = if wanted > 1 { self.busy.try_lock() } else { Err(TryLockError::WouldBlock) };
        let Ok(_guard) = guard else {
            return f(Member { rank: 0, size: 1, team: &team });
        };
        team.size = wanted;
        let mut job = Job {
            // SAFETY: only the lifetime changes; this function does not return, nor unwind, before `remaining` is 0.
            run: unsafe {
                std::mem::transmute::<*const (dyn Fn(Member<'_>) + Sync + '_), *const (dyn Fn(Member<'_>) + Sync)>(f)
            },
            team: &team,
            rank: AtomicUsize::new(1),
            remaining: AtomicUsize::new(wanted - 1),
        };
        let pointer: *mut Job = &mut job;
        for worker in &self.workers[..wanted - 1] {
            worker.mailbox.job.store(pointer, Ordering::Release);
            worker.thread.unpark();
        }
        no_unwind(|| f(Member { rank: 0, size: wanted, team: &team }));
        // SAFETY: `job` lives here; workers only touch its atomics.
        let remaining = unsafe { &(*pointer).remaining };
        wait_until(|| remaining.load(Ordering::Acquire) == 0);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.mailbox.stop.store(true, Ordering::Release);
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// A panic in a job would leave the others waiting at a barrier for ever, and the caller's stack in use.
fn no_unwind(f: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(f)).is_err() {
        eprintln!("lstm-cpu: a kernel panicked; this is a defect of lstm-cpu");
        process::abort();
    }
}

fn work(mailbox: &Mailbox) {
    let mut spins = 0;
    loop {
        let job = mailbox.job.swap(null_mut(), Ordering::AcqRel);
        if !job.is_null() {
            // SAFETY: the caller keeps the job, its team and its closure alive until `remaining` is 0, which takes this
            // worker's decrement, its last access to them.
            unsafe {
                let (run, team) = (&*(*job).run, &*(*job).team);
                let rank = (*job).rank.fetch_add(1, Ordering::Relaxed);
                no_unwind(|| run(Member { rank, size: team.size, team }));
                (*job).remaining.fetch_sub(1, Ordering::Release);
            }
            spins = 0;
        } else if mailbox.stop.load(Ordering::Acquire) {
            return;
        } else if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            // An `unpark` since the swap makes this return at once.
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_runs_once_and_barriers_order() {
        let pool = Pool::new(4).unwrap();
        for threads in [1, 2, 3, 4, 9] {
            for _ in 0..200 {
                let (sum, ranks) = (AtomicUsize::new(0), AtomicUsize::new(0));
                pool.run(threads, &|member| {
                    assert_eq!(member.size, threads.min(4));
                    ranks.fetch_or(1 << member.rank, Ordering::Relaxed);
                    for round in 1..=5 {
                        sum.fetch_add(1, Ordering::Relaxed);
                        member.barrier();
                        assert_eq!(sum.load(Ordering::Relaxed), round * member.size);
                        member.barrier();
                    }
                });
                assert_eq!(ranks.load(Ordering::Relaxed), (1 << threads.min(4)) - 1);
            }
        }
    }

    #[test]
    fn callers_at_the_same_time_all_finish() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(2, &|member| {
                            member.barrier();
                            if member.rank == 0 {
                                total.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 2000);
    }
}
