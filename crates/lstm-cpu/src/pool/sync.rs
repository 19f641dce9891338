//! The types and functions of the standard library that the barrier uses. The test `barrier` replaces this module by one
//! with the types of the crate shuttle, which runs the threads in many orders.

pub(super) use std::{
    hint::spin_loop,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Number of spins before a waiting thread sleeps. One spin takes 10 to 50 ns, so this is some tens of microseconds.
pub(super) const MAX_SPINS: u32 = 1 << 11;
