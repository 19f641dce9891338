//! The status of a call and the text about the last error.

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use library::Error;

/// How a call ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LstmStatus {
    /// The call succeeded.
    Ok = 0,
    /// An argument is invalid: a null or unaligned pointer, overlapping arrays, a wrong size, or an invalid option.
    InvalidArgument = 1,
    /// The content of the file is not a supported model.
    InvalidFile = 2,
    /// The file could not be read.
    Io = 3,
    /// The device is not available, or failed.
    Device = 4,
    /// An array does not fit in memory.
    OutOfMemory = 5,
    /// A fault of this library. A stream in whose call this occurs can't be used any more.
    Internal = 6,
}

/// A failed call: its status and the text about it.
pub(crate) struct Failure {
    pub(crate) status: LstmStatus,
    text: String,
}

impl Failure {
    /// An invalid argument.
    pub(crate) fn argument(text: impl fmt::Display) -> Self {
        Failure { status: LstmStatus::InvalidArgument, text: text.to_string() }
    }

    /// A fault of this library.
    pub(crate) fn internal(text: impl fmt::Display) -> Self {
        Failure { status: LstmStatus::Internal, text: text.to_string() }
    }
}

/// The status of an error of the library.
pub(crate) fn status_of(error: &Error) -> LstmStatus {
    match error {
        Error::Shape { .. } | Error::Mismatch { .. } | Error::Config { .. } => LstmStatus::InvalidArgument,
        Error::TooLarge { .. } => LstmStatus::OutOfMemory,
        Error::MissingTensor { .. }
        | Error::TensorShape { .. }
        | Error::TensorType { .. }
        | Error::UnusedTensors { .. }
        | Error::Format { .. } => LstmStatus::InvalidFile,
        Error::Io { .. } => LstmStatus::Io,
        Error::Device { .. } => LstmStatus::Device,
        _ => LstmStatus::Internal,
    }
}

/// Words of the library's errors, and what they are called in C.
const NAMES_IN_C: [(&str, &str); 4] = [
    ("option backend:", "option device:"),
    ("use Model::forward", "use lstm_model_forward"),
    (
        "run it with `OnnxGraph::run` in Rust, or select its LSTM nodes by name",
        "select its LSTM nodes by the option name",
    ),
    ("build with the feature `", "build it with `cargo xtask c --features "),
];

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = NAMES_IN_C.iter().fold(error.to_string(), |text, (rust, c)| text.replace(rust, c));
        Failure { status: status_of(&error), text: text.replace("` of the crate `lstm`", "`") }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Calls `f`. If it fails or panics, keeps the text for [`lstm_last_error`].
pub(crate) fn call(f: impl FnOnce() -> Result<(), Failure>) -> LstmStatus {
    let failure = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return LstmStatus::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Failure::internal(format_args!("internal error: {}", text.unwrap_or("a panic")))
        }
    };
    let text = CString::new(failure.text.replace('\0', " ")).unwrap_or_default();
    // At the end of a thread its text may be gone already.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = text);
    failure.status
}

/// The text about the last call of this thread that failed: what was expected, what was given, and what to do. Empty if
/// none failed. Valid until the next call of this thread that fails. `lstm_stream_step`, `lstm_stream_run` and their
/// forms for tokens set no text.
#[unsafe(no_mangle)]
pub extern "C" fn lstm_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// A few words about a status, such as `invalid argument`. The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn lstm_status_text(status: i32) -> *const c_char {
    let text: &CStr = match status {
        0 => c"ok",
        1 => c"invalid argument",
        2 => c"invalid file",
        3 => c"input/output error",
        4 => c"device error",
        5 => c"out of memory",
        6 => c"internal error",
        _ => c"unknown status",
    };
    text.as_ptr()
}
