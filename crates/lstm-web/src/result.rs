//! The buffer through which calls return text, bytes and error messages to JavaScript.

use std::{cell::RefCell, fmt::Display};

thread_local! {
    static RESULT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Puts bytes into the buffer.
pub(crate) fn set_result(bytes: impl Into<Vec<u8>>) {
    RESULT.with(|result| *result.borrow_mut() = bytes.into());
}

/// Returns the value of a call, or puts the message of its error into the buffer.
pub(crate) fn ok_or_set_message<T, E: Display>(value: Result<T, E>) -> Option<T> {
    value.map_err(|error| set_result(error.to_string())).ok()
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

/// Installs the panic hook, which puts the message of a panic into the buffer. The panic then ends in a trap.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn start() {
    std::panic::set_hook(Box::new(|panic| set_result(format!("internal error, please report it: {panic}"))));
}
