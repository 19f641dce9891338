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
    /// Not inlined: the compiler assumes that float operations do not depend on the floating-point environment, so it may
    /// move them across a change of it. It can't move a call that is not inlined.
    #[inline(never)]
    fn call<F: Future>(future: F) -> F::Output {
        block_on_inlined(future)
    }
    let _environment = FloatEnvironment::set_default();
    call(future)
}

/// [`block_on`], inlined, for a future that reads all floats from memory of its caller and writes all results there. Setting and
/// restoring the settings may change memory, as far as the compiler knows, so that the operations stay in between. A call
/// that is not inlined would take a tenth of a small step.
pub(crate) fn block_on_inlined<F: Future>(future: F) -> F::Output {
    let _environment = FloatEnvironment::set_default();
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => pollster::block_on(future),
    }
}
