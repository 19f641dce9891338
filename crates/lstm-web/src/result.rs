//! The buffer for texts, bytes and messages of errors, which JavaScript reads after a call.

use std::{cell::RefCell, fmt::Display};

thread_local! {
    static RESULT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Puts bytes into the buffer.
pub(crate) fn set(bytes: impl Into<Vec<u8>>) {
    RESULT.with(|result| *result.borrow_mut() = bytes.into());
}

/// Returns the value of a call, or leaves the message of its error in the buffer.
pub(crate) fn checked<T, E: Display>(value: Result<T, E>) -> Option<T> {
    value.map_err(|error| set(error.to_string())).ok()
}

/// Address of the buffer. The buffer is valid until the next call.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn result_address() -> *const u8 {
    RESULT.with(|result| result.borrow().as_ptr())
}

/// Number of bytes in the buffer.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn result_size() -> usize {
    RESULT.with(|result| result.borrow().len())
}

/// Prepares the module: the message of a panic, which ends in a trap, is left in the buffer.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn start() {
    std::panic::set_hook(Box::new(|panic| set(format!("internal error, please report it: {panic}"))));
}
