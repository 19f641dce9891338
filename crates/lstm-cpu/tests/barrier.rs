//! Runs the barrier of the thread pool, compiled with the types of shuttle, in many orders of its threads. A lost
//! wake-up is a deadlock, which shuttle reports.

#[allow(dead_code, reason = "the pool uses the rest")]
#[path = "../src/pool"]
mod pool {
    mod sleep;
    pub(crate) mod team;

    mod sync {
        pub(super) use shuttle::{
            hint::spin_loop,
            sync::{
                Condvar, Mutex,
                atomic::{AtomicU64, AtomicUsize, Ordering},
            },
        };
        pub(super) use std::sync::PoisonError;

        /// One: after it, a thread sleeps.
        pub(super) const MAX_SPINS: u32 = 1;
    }
}

use pool::team::Team;
use shuttle::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// `size` threads that meet at four barriers: behind each, every thread sees what all have done before it.
fn meet(size: usize) {
    let (team, slept) = (Arc::new(Team::new(size)), Arc::new(AtomicU64::new(0)));
    let arrived = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..size)
        .map(|rank| {
            let (team, slept, arrived) = (team.clone(), slept.clone(), arrived.clone());
            thread::spawn(move || {
                let member = team.member(rank, &slept);
                for round in 1..=2 {
                    arrived.fetch_add(1, Ordering::Relaxed);
                    member.barrier();
                    assert_eq!(arrived.load(Ordering::Relaxed), round * size);
                    member.barrier();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// How often to run each number of threads: 100 times `LSTM_SOAK_SECONDS`.
fn iterations() -> usize {
    let seconds = std::env::var("LSTM_SOAK_SECONDS").map_or(10.0, |text| text.parse().expect("a number of seconds"));
    (seconds * 100.0) as usize
}

#[test]
fn no_order_of_the_threads_loses_a_wake_up() {
    for size in 2..=4 {
        shuttle::check_random(move || meet(size), iterations());
        shuttle::check_pct(move || meet(size), iterations(), 3);
    }
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_missing_thread_is_found() {
    shuttle::check_random(
        || {
            let (team, slept) = (Team::new(2), AtomicU64::new(0));
            team.member(0, &slept).barrier();
        },
        10,
    );
}
