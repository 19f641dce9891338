//! Errors of the device, tied to the calls that cause them.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use lstm_core::{Error, Result};

use crate::pool::lock;

/// The backend's name.
pub(crate) const NAME: &str = "wgpu";

/// A device error of ours.
pub(crate) fn device_error(op: &'static str, why: impl ToString) -> Error {
    Error::Device { backend: NAME.to_owned(), op, reason: why.to_string() }
}

/// The call, and what it will be known to have caused.
pub(crate) type Late = (&'static str, Pin<Box<LateError>>);

#[cfg(not(target_arch = "wasm32"))]
pub(crate) type LateError = dyn Future<Output = Option<wgpu::Error>> + Send;
#[cfg(target_arch = "wasm32")]
pub(crate) type LateError = dyn Future<Output = Option<wgpu::Error>>;

/// Catches all kinds of errors of the calls made while it is open.
pub(crate) struct Scopes([wgpu::ErrorScopeGuard; 3]);

impl Scopes {
    pub(crate) fn open(device: &wgpu::Device) -> Self {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        Scopes([OutOfMemory, Validation, Internal].map(|filter| device.push_error_scope(filter)))
    }

    /// The first error, where the platform knows by now; otherwise what it will know later.
    pub(crate) fn close(self, op: &'static str) -> Result<Vec<Late>> {
        let [outer, middle, inner] = self.0;
        // Scopes close in the reverse order.
        let mut found = None;
        let mut late: Vec<Late> = Vec::new();
        let errors: [Pin<Box<LateError>>; 3] = [Box::pin(inner.pop()), Box::pin(middle.pop()), Box::pin(outer.pop())];
        for mut error in errors {
            match error.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(error)) => found = found.or(Some(error)),
                Poll::Ready(None) => {}
                Poll::Pending => late.push((op, error)),
            }
        }
        match found {
            Some(error) => Err(device_error(op, describe(&error))),
            None => Ok(late),
        }
    }
}

pub(crate) fn describe(error: &wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => "out of memory".to_owned(),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => description.clone(),
    }
}

/// What a mapping's callback told.
#[derive(Default)]
struct Mapping {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// A future, and the callback that completes it.
pub(crate) fn signal() -> (
    impl Future<Output = std::result::Result<(), wgpu::BufferAsyncError>>,
    impl FnOnce(std::result::Result<(), wgpu::BufferAsyncError>) + Send + 'static,
) {
    let shared = Arc::new(Mutex::new(Mapping::default()));
    let told = shared.clone();
    let future = std::future::poll_fn(move |context| {
        let mut mapping = lock(&shared);
        match mapping.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                mapping.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    });
    let callback = move |result| {
        let waker = {
            let mut mapping = lock(&told);
            mapping.result = Some(result);
            mapping.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    (future, callback)
}
