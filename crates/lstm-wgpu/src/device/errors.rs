//! Errors of the device, attributed to the calls that cause them.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use lstm_core::{Error, Result};

use crate::memory::lock;

/// Name of this backend.
pub(crate) const BACKEND_NAME: &str = "wgpu";

/// Creates an [`Error::Device`] of this backend for operation `op`.
pub(crate) fn device_error(op: &'static str, reason: impl ToString) -> Error {
    Error::Device { backend: BACKEND_NAME.to_owned(), op, reason: reason.to_string() }
}

/// A possible error that the platform has not reported yet: the name of an operation, and a future that resolves to the
/// error that the operation caused, or to `None`.
pub(crate) type DeferredError = (&'static str, Pin<Box<ErrorFuture>>);

#[cfg(not(target_arch = "wasm32"))]
pub(crate) type ErrorFuture = dyn Future<Output = Option<wgpu::Error>> + Send;
#[cfg(target_arch = "wasm32")]
pub(crate) type ErrorFuture = dyn Future<Output = Option<wgpu::Error>>;

/// Open error scopes that catch out-of-memory, validation and internal errors of all device calls until they are
/// closed.
pub(crate) struct ErrorScopes([wgpu::ErrorScopeGuard; 3]);

impl ErrorScopes {
    pub(crate) fn open(device: &wgpu::Device) -> Self {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        ErrorScopes([OutOfMemory, Validation, Internal].map(|filter| device.push_error_scope(filter)))
    }

    /// Closes the scopes. Returns the errors that the platform has not reported yet.
    ///
    /// # Errors
    /// The first error that the platform has reported already.
    pub(crate) fn close(self, op: &'static str) -> Result<Vec<DeferredError>> {
        let [outer_scope, middle_scope, inner_scope] = self.0;
        // Scopes must be closed in reverse order.
        let mut first_error = None;
        let mut deferred_errors: Vec<DeferredError> = Vec::new();
        let errors: [Pin<Box<ErrorFuture>>; 3] =
            [Box::pin(inner_scope.pop()), Box::pin(middle_scope.pop()), Box::pin(outer_scope.pop())];
        for mut error in errors {
            match error.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(error)) => first_error = first_error.or(Some(error)),
                Poll::Ready(None) => {}
                Poll::Pending => deferred_errors.push((op, error)),
            }
        }
        match first_error {
            Some(error) => Err(device_error(op, error_text(&error))),
            None => Ok(deferred_errors),
        }
    }
}

/// Text of a wgpu error.
pub(crate) fn error_text(error: &wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => "out of memory".to_owned(),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => description.clone(),
    }
}

/// State shared by the future and the callback of [`map_async_future`].
#[derive(Default)]
struct MapState {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// Returns a future and the callback that completes it, for `map_async`.
pub(crate) fn map_async_future() -> (
    impl Future<Output = std::result::Result<(), wgpu::BufferAsyncError>>,
    impl FnOnce(std::result::Result<(), wgpu::BufferAsyncError>) + Send + 'static,
) {
    let shared_state = Arc::new(Mutex::new(MapState::default()));
    let callback_state = shared_state.clone();
    let future = std::future::poll_fn(move |context| {
        let mut state = lock(&shared_state);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    });
    let callback = move |result| {
        let waker = {
            let mut state = lock(&callback_state);
            state.result = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    (future, callback)
}
