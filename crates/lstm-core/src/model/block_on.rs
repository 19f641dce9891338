//! Waiting for a future on the current thread.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use crate::float_environment::FloatEnvironment;

/// Blocks until `future` is ready, with the default floating-point settings. A future that is ready at once, as on the
/// CPU, costs no allocation.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let _environment = FloatEnvironment::set_default();
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => pollster::block_on(future),
    }
}
