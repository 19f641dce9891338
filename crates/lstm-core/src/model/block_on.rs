//! Waiting for a future on the current thread.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use crate::float_environment::FloatEnvironment;

/// Blocks until `future` is ready, with the default floating-point settings. A future that is ready at once, as on the
/// CPU, costs no allocation.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let _environment = FloatEnvironment::set_default();
    let mut future = pin!(future);
    match poll(future.as_mut()) {
        Poll::Ready(output) => output,
        Poll::Pending => pollster::block_on(future),
    }
}

/// Polls a future once. Not inlined: the compiler may move operations on floats, which it takes for functions of their
/// operands alone, out of the time in which [`FloatEnvironment`] sets the settings, but not this call.
#[inline(never)]
fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
