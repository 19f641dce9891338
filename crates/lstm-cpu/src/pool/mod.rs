//! A thread pool with a barrier. Idle threads spin for a while before they sleep, because waking a thread takes longer
//! than a time step.

mod contention;
mod fork;
mod sleep;
mod sync;
mod sync_ptr;
mod team;

use std::{
    io,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    process,
    ptr::null_mut,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::Instant,
};

pub(crate) use sync_ptr::SyncPtr;
pub(crate) use team::{Team, TeamMember};

use lstm_core::FloatEnvironment;

use crate::{
    memory::{buffer::Buffer, free_list::FreeList},
    pool::{contention::Contention, sleep::Sleepers, sync::MAX_SPINS},
};

/// A thread pool: the calling thread and `threads - 1` workers. It runs one job at a time. While the workers are busy,
/// the job of another caller runs on that caller's thread alone. The pool also owns the free lists of reusable memory.
pub(crate) struct ThreadPool {
    threads: usize,
    /// Locked while a job runs on the workers.
    workers: Mutex<Workers>,
    /// `None` if jobs always run on as many threads as they ask for.
    contention: Option<Contention>,
    /// Freed buffers, at most 192 MiB.
    pub(crate) free_buffers: FreeList<Buffer>,
    /// Freed memory of tensors, at most 64 MiB.
    pub(crate) free_tensors: FreeList<Vec<f32>>,
}

/// The threads of the pool, except the calling one.
struct Workers {
    list: Vec<Worker>,
    /// The caller of [`ThreadPool::run`], when it waits for them to finish.
    caller: Arc<Sleepers>,
    /// The number of forks before this process began, when the workers were started. A child process has the memory of
    /// its parent, but not its threads.
    fork_count: usize,
}

/// A thread of the pool.
struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Thread,
    join_handle: JoinHandle<()>,
}

/// Shared memory through which the pool passes jobs to one worker.
struct Mailbox {
    /// The next job, or null.
    job: AtomicPtr<Job>,
    /// Whether the worker should exit.
    stop: AtomicBool,
    /// The caller of [`ThreadPool::run`], when it waits for the workers to finish.
    caller: Arc<Sleepers>,
}

/// A job: a function that several threads run at the same time. It lies on the stack of the thread that called
/// [`ThreadPool::run`], which waits until `running_workers` is 0.
struct Job {
    function: *const (dyn Fn(TeamMember<'_>) + Sync),
    team: *const Team,
    /// Rank of the next worker that starts the job.
    next_rank: AtomicUsize,
    /// Number of workers that have not finished.
    running_workers: AtomicUsize,
    /// Total time that threads have slept while they waited for others, in nanoseconds.
    slept: AtomicU64,
}

impl ThreadPool {
    /// Starts `threads - 1` workers. If `adaptive`, jobs run on the calling thread alone while other programs need the
    /// cores.
    pub(crate) fn new(threads: usize, adaptive: bool) -> io::Result<Self> {
        let (free_buffers, free_tensors) = (FreeList::new(3 << 24), FreeList::new(1 << 24));
        let workers = Mutex::new(Workers::start(threads - 1)?);
        let contention = adaptive.then(Contention::new);
        Ok(ThreadPool { threads, workers, contention, free_buffers, free_tensors })
    }

    /// Number of threads, including the calling one.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` on `threads` threads, the caller's included, and returns when all have finished. It uses fewer threads
    /// if the pool has fewer, and only the caller's while the workers are busy with another job or other programs need
    /// the cores. So `f` must be correct for any [`TeamMember::size`]. Allocates nothing, except in the first job of a
    /// child process, which starts its own workers.
    pub(crate) fn run(&self, threads: usize, f: &(dyn Fn(TeamMember<'_>) + Sync)) {
        let team_size = threads.min(self.threads);
        let is_alone = team_size <= 1 || self.contention.as_ref().is_some_and(Contention::is_high);
        if !is_alone
            && let Ok(mut workers) = self.workers.try_lock()
            && workers.restart_after_fork(self.threads - 1)
        {
            return self.run_team(&workers, team_size, f);
        }
        f(Team::new(1).member(0, &AtomicU64::new(0)));
    }

    /// Runs the parts `0..part_count` of a job one after another, `parts_per_run` in each call of `f`. Between calls the
    /// number of threads may change, so that a long job does not suffer from other programs until its end.
    pub(crate) fn run_parts(
        &self,
        threads: usize,
        part_count: usize,
        parts_per_run: usize,
        f: &(dyn Fn(TeamMember<'_>, Range<usize>) + Sync),
    ) {
        for start in (0..part_count).step_by(parts_per_run) {
            let parts = start..part_count.min(start + parts_per_run);
            self.run(threads, &|member| f(member, parts.clone()));
        }
    }

    /// Runs `f` on the calling thread and the first `team_size - 1` of `workers`.
    fn run_team(&self, workers: &Workers, team_size: usize, f: &(dyn Fn(TeamMember<'_>) + Sync)) {
        let start = Instant::now();
        let team = Team::new(team_size);
        let mut job = Job {
            // SAFETY: this changes only the lifetime. The function neither returns nor unwinds before `running_workers`
            // is 0.
            function: unsafe {
                std::mem::transmute::<*const (dyn Fn(TeamMember<'_>) + Sync + '_), *const (dyn Fn(TeamMember<'_>) + Sync)>(
                    f,
                )
            },
            team: &team,
            next_rank: AtomicUsize::new(1),
            running_workers: AtomicUsize::new(team_size - 1),
            slept: AtomicU64::new(0),
        };
        let job_ptr: *mut Job = &mut job;
        for worker in &workers.list[..team_size - 1] {
            worker.mailbox.job.store(job_ptr, Ordering::Release);
            worker.thread.unpark();
        }
        // SAFETY: `job` is a local variable that is still alive; the workers change only its atomics.
        let (running_workers, slept) = unsafe { (&(*job_ptr).running_workers, &(*job_ptr).slept) };
        abort_on_panic(|| f(team.member(0, slept)));
        let nanoseconds = workers.caller.wait_until(|| running_workers.load(Ordering::SeqCst) == 0);
        if let Some(contention) = &self.contention {
            contention.record(team_size, start.elapsed(), slept.load(Ordering::Relaxed) + nanoseconds);
        }
    }
}

impl Workers {
    /// Starts `count` workers.
    fn start(count: usize) -> io::Result<Self> {
        let caller = Arc::new(Sleepers::default());
        let mut workers = Workers { list: Vec::new(), caller: caller.clone(), fork_count: fork::count() };
        for k in 1..=count {
            let (job, stop) = (AtomicPtr::new(null_mut()), AtomicBool::new(false));
            let mailbox = Arc::new(Mailbox { job, stop, caller: caller.clone() });
            let worker_mailbox = mailbox.clone();
            let join_handle =
                thread::Builder::new().name(format!("lstm-cpu-{k}")).spawn(move || worker_loop(&worker_mailbox))?;
            workers.list.push(Worker { mailbox, thread: join_handle.thread().clone(), join_handle });
        }
        Ok(workers)
    }

    /// In a child process, replaces the workers, which exist only in the parent. Returns false if that fails.
    fn restart_after_fork(&mut self, count: usize) -> bool {
        if self.fork_count != fork::count() {
            // The handles belong to threads of the parent, and must not be used.
            std::mem::forget(std::mem::take(&mut self.list));
            match Workers::start(count) {
                Ok(workers) => *self = workers,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.list);
        if self.fork_count != fork::count() {
            std::mem::forget(workers);
            return;
        }
        for worker in workers {
            worker.mailbox.stop.store(true, Ordering::Release);
            worker.thread.unpark();
            let _ = worker.join_handle.join();
        }
    }
}

/// Runs `f` and aborts the process if it panics. After a panic, other threads would wait at a barrier forever, or use
/// the caller's stack after it is gone.
fn abort_on_panic(f: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(f)).is_err() {
        eprintln!("lstm-cpu: a kernel panicked; this is a bug in lstm-cpu");
        process::abort();
    }
}

/// The main function of a worker: runs jobs from its mailbox until `stop` is set.
fn worker_loop(mailbox: &Mailbox) {
    // A new thread inherits the settings of the thread that creates it.
    let _environment = FloatEnvironment::set_default();
    let mut spins = 0;
    loop {
        let job = mailbox.job.swap(null_mut(), Ordering::AcqRel);
        if !job.is_null() {
            // SAFETY: the caller keeps the job, its team and its closure alive until `running_workers` is 0. This
            // worker's last access to them is its decrement.
            unsafe {
                let (function, team, slept) = (&*(*job).function, &*(*job).team, &(*job).slept);
                let rank = (*job).next_rank.fetch_add(1, Ordering::Relaxed);
                abort_on_panic(|| function(team.member(rank, slept)));
                (*job).running_workers.fetch_sub(1, Ordering::SeqCst);
            }
            mailbox.caller.wake();
            spins = 0;
        } else if mailbox.stop.load(Ordering::Acquire) {
            return;
        } else if spins < MAX_SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            // Returns at once if `unpark` was called since the swap.
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_runs_once_and_barriers_synchronize() {
        let pool = ThreadPool::new(4, false).unwrap();
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
    fn concurrent_callers_all_finish() {
        let pool = ThreadPool::new(2, false).unwrap();
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
