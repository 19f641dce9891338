//! Detects that the process was forked. A child process has a copy of the pool, but none of its threads.

#[cfg(unix)]
use std::{
    ffi::c_int,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Number of forks between the first process that used a pool and this one.
#[cfg(unix)]
static FORK_COUNT: AtomicUsize = AtomicUsize::new(0);

#[cfg(unix)]
type Handler = Option<extern "C" fn()>;

#[cfg(unix)]
unsafe extern "C" {
    /// POSIX: registers functions to be called before a fork, and after it in the parent and in the child.
    fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int;
}

/// Called in a child process.
#[cfg(unix)]
extern "C" fn count_fork() {
    FORK_COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Number of forks between the first process that called this and the calling one.
#[cfg(unix)]
pub(super) fn count() -> usize {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // The only failure is lack of memory. Then forks are not detected.
        // SAFETY: the handler only changes an atomic, which is allowed in a child process.
        let _ = unsafe { pthread_atfork(None, None, Some(count_fork)) };
    });
    FORK_COUNT.load(Ordering::Relaxed)
}

/// Other systems do not have `fork`.
#[cfg(not(unix))]
pub(super) fn count() -> usize {
    0
}
