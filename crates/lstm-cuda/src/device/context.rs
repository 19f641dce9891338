//! A device's primary context and streams in it, each given back when it is dropped, whatever failed in between.

use std::sync::Arc;

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

/// A device's primary context, which everybody in the process shares.
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: any thread may make a context its own.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn new(device: sys::CUdevice) -> Result<Arc<Self>, DriverError> {
        // SAFETY: a device that the driver named; released once, in `drop`.
        let raw = unsafe { result::primary_ctx::retain(device) }?;
        Ok(Arc::new(Context { device, raw }))
    }

    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Makes it the calling thread's.
    pub(super) fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: it is retained as long as this lives.
        unsafe { result::ctx::set_current(self.raw) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`. Nobody is left to tell of an error.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Work in order, and in no order with other streams.
pub(super) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: streams may be used from any thread that has their context.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The context must be the thread's.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Stream { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits for all that it was asked for.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: it lives.
        unsafe { result::stream::synchronize(self.raw) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: made in `new`, and destroyed once.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}
