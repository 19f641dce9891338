//! The functions that the WebAssembly modules export. `npm/lstm-web.js`, which is the public API, is their only caller.
//!
//! The feature `runtime` is the module that runs models, `convert` the one that reads files of all formats, which is larger and
//! which a page fetches only if it needs to.
//!
//! Arguments are numbers and addresses in the module's memory, so that an AudioWorklet, which lacks most of what browsers
//! offer elsewhere, can call them too. A function that fails returns 0, or NaN for a loss, and puts the message into
//! the buffer of [`result::result_address`], where other functions put their text or bytes.

#![cfg_attr(not(any(feature = "runtime", feature = "convert")), allow(unused, reason = "nothing is exported"))]

#[cfg(feature = "convert")]
mod convert;
mod memory;
mod metadata;
#[cfg(feature = "runtime")]
mod model;
mod result;
#[cfg(feature = "runtime")]
mod stream;
#[cfg(feature = "runtime")]
mod train;
