//! The result of opening a device: the open backend, and the backends that were tried before it and not taken.

use std::{fmt, ops::Deref, sync::Arc};

use lstm_core::Error;

/// An open backend inside a [`Device`](crate::Device). It dereferences to the backend, so that all of the backend's own
/// methods can be called.
#[derive(Clone)]
pub struct Opened<B> {
    backend: B,
    skipped: Arc<[Skipped]>,
}

impl<B> Opened<B> {
    pub(super) fn set_skipped(&mut self, skipped: Vec<Skipped>) {
        self.skipped = skipped.into();
    }

    /// The backends that were tried before this one and not taken; see [`Device::skipped`](crate::Device::skipped).
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Returns the backend itself.
    pub fn into_backend(self) -> B {
        self.backend
    }
}

impl<B> From<B> for Opened<B> {
    fn from(backend: B) -> Self {
        Opened { backend, skipped: Arc::default() }
    }
}

impl<B> Deref for Opened<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.backend
    }
}

impl<B: fmt::Debug> fmt::Debug for Opened<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.backend.fmt(f)
    }
}

/// A backend that an automatic choice did not take, with the reason. It displays as `cuda: no NVIDIA driver: ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Name of the backend.
    pub name: &'static str,
    /// The reason why the backend was not taken.
    pub reason: String,
}

impl Skipped {
    pub(super) fn new(name: &'static str, reason: String) -> Self {
        Skipped { name, reason }
    }

    /// Returns a skipped backend for an error of opening it. The reason is the error's message without the backend's
    /// name, which is displayed before the reason.
    pub(super) fn from_error(name: &'static str, error: Error) -> Self {
        match error {
            Error::Device { reason, .. } => Skipped { name, reason },
            other => Skipped { name, reason: other.to_string() },
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}
