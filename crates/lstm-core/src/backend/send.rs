//! Trait bounds that require `Send` and `Sync`, except on wasm32, where they require nothing.

/// A trait bound that requires [`Send`], except on wasm32. There the handles of WebGPU belong to one thread, so every
/// type satisfies the bound.
#[cfg(not(target_arch = "wasm32"))]
pub trait MaybeSend: Send {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + ?Sized> MaybeSend for T {}

/// A trait bound that requires [`Send`], except on wasm32. There the handles of WebGPU belong to one thread, so every
/// type satisfies the bound.
#[cfg(target_arch = "wasm32")]
pub trait MaybeSend {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> MaybeSend for T {}

/// A trait bound that requires [`Sync`], except on wasm32, where every type satisfies it, as for [`MaybeSend`].
#[cfg(not(target_arch = "wasm32"))]
pub trait MaybeSync: Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Sync + ?Sized> MaybeSync for T {}

/// A trait bound that requires [`Sync`], except on wasm32, where every type satisfies it, as for [`MaybeSend`].
#[cfg(target_arch = "wasm32")]
pub trait MaybeSync {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> MaybeSync for T {}
