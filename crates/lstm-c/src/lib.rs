//! The C library. `include/lstm.h` declares its functions, and `docs/c.md` describes them.
//!
//! Every function checks its pointers, catches panics and returns a status. Text about the last error is kept for each
//! thread.

mod model;
mod options;
mod pointers;
mod status;
mod stream;
#[cfg(test)]
mod tests;

pub use model::*;
pub use options::*;
pub use status::*;
pub use stream::*;

use std::ffi::{CStr, c_char};

/// The version of the library, such as `0.1.0`. The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn lstm_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version without zeros"),
    };
    VERSION.as_ptr()
}
