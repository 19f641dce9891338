//! A thread pool with a barrier. Idle threads spin for a while before they sleep, because waking a thread takes longer
//! than a time step.

mod sync_ptr;
mod team;

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

pub(crate) use sync_ptr::SyncPtr;
pub(crate) use team::{Team, TeamMember};

use crate::memory::{buffer::Buffer, free_list::FreeList};

/// Number of spins before a waiting thread sleeps or yields. One spin takes 10 to 50 ns, so this is some tens of
/// microseconds.
const MAX_SPINS: u32 = 1 << 11;

/// A thread pool: the calling thread and `threads - 1` workers. It runs one job at a time. While the workers are busy,
/// the job of another caller runs on that caller's thread alone. The pool also owns the free lists of reusable memory.
pub(crate) struct ThreadPool {
    workers: Vec<Worker>,
    /// Locked while a job runs on the workers.
    job_lock: Mutex<()>,
    /// Freed buffers, at most 192 MiB.
    pub(crate) free_buffers: FreeList<Buffer>,
    /// Freed memory of tensors, at most 64 MiB.
    pub(crate) free_tensors: FreeList<Vec<f32>>,
}

/// A thread of the pool.
struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Thread,
    join_handle: Option<JoinHandle<()>>,
}

/// Shared memory through which the pool passes jobs to one worker.
struct Mailbox {
    /// The next job, or null.
    job: AtomicPtr<Job>,
    /// Whether the worker should exit.
    stop: AtomicBool,
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
}

/// Waits until `is_done` returns true: spins first, then yields. Yielding matters if there are more threads than cores:
/// the awaited thread may need the core of the waiting thread.
fn wait_until(is_done: impl Fn() -> bool) {
    let mut spins = 0;
    while !is_done() {
        if spins < MAX_SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

impl ThreadPool {
    /// Starts `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let (free_buffers, free_tensors) = (FreeList::new(3 << 24), FreeList::new(1 << 24));
        let mut pool = ThreadPool { workers: Vec::new(), job_lock: Mutex::new(()), free_buffers, free_tensors };
        for k in 1..threads {
            let mailbox = Arc::new(Mailbox { job: AtomicPtr::new(null_mut()), stop: AtomicBool::new(false) });
            let worker_mailbox = mailbox.clone();
            let join_handle =
                thread::Builder::new().name(format!("lstm-cpu-{k}")).spawn(move || worker_loop(&worker_mailbox))?;
            pool.workers.push(Worker { mailbox, thread: join_handle.thread().clone(), join_handle: Some(join_handle) });
        }
        Ok(pool)
    }

    /// Number of threads, including the calling one.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` on `threads` threads, the caller's included, and returns when all have finished. It uses fewer threads
    /// if the pool has fewer, and only the caller's while the workers are busy with another job. So `f` must be correct
    /// for any [`TeamMember::size`]. Allocates nothing.
    pub(crate) fn run(&self, threads: usize, f: &(dyn Fn(TeamMember<'_>) + Sync)) {
        let mut team = Team::new(1);
        let team_size = threads.min(self.threads());
        let lock_result = if team_size > 1 { self.job_lock.try_lock() } else { Err(TryLockError::WouldBlock) };
        let Ok(_guard) = lock_result else {
            return f(TeamMember { rank: 0, size: 1, team: &team });
        };
        team.size = team_size;
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
        };
        let job_ptr: *mut Job = &mut job;
        for worker in &self.workers[..team_size - 1] {
            worker.mailbox.job.store(job_ptr, Ordering::Release);
            worker.thread.unpark();
        }
        abort_on_panic(|| f(TeamMember { rank: 0, size: team_size, team: &team }));
        // SAFETY: `job` is a local variable that is still alive; the workers change only its atomics.
        let running_workers = unsafe { &(*job_ptr).running_workers };
        wait_until(|| running_workers.load(Ordering::Acquire) == 0);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.mailbox.stop.store(true, Ordering::Release);
            worker.thread.unpark();
            if let Some(join_handle) = worker.join_handle.take() {
                let _ = join_handle.join();
            }
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
    let mut spins = 0;
    loop {
        let job = mailbox.job.swap(null_mut(), Ordering::AcqRel);
        if !job.is_null() {
            // SAFETY: the caller keeps the job, its team and its closure alive until `running_workers` is 0. This
            // worker's last access to them is its decrement.
            unsafe {
                let (function, team) = (&*(*job).function, &*(*job).team);
                let rank = (*job).next_rank.fetch_add(1, Ordering::Relaxed);
                abort_on_panic(|| function(TeamMember { rank, size: team.size, team }));
                (*job).running_workers.fetch_sub(1, Ordering::Release);
            }
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
        let pool = ThreadPool::new(4).unwrap();
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
        let pool = ThreadPool::new(2).unwrap();
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
