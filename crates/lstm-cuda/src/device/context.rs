//! Types that own a device's primary context and CUDA streams, and release them on drop.

use std::sync::Arc;

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

/// A device's primary context, which the whole process shares.
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: any thread may make a context current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device.
    pub(super) fn new(device: sys::CUdevice) -> Result<Arc<Self>, DriverError> {
        // SAFETY: the device handle comes from the driver; the context is released once, in `drop`.
        let raw = unsafe { result::primary_ctx::retain(device) }?;
        Ok(Arc::new(Context { device, raw }))
    }

    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Makes this context the current context of the calling thread.
    pub(super) fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.raw) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context was retained in `new`. An error here can't be reported.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A CUDA stream. Its work runs in order, but is not synchronized with other streams, not even the default stream.
pub(super) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a stream may be used from any thread in which its context is current.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Creates a stream. The context must be current.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Stream { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits for all work of this stream.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream exists as long as `self` lives.
        unsafe { result::stream::synchronize(self.raw) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: the stream was created in `new`, and is destroyed once.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}
