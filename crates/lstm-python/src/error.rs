//! Python exceptions with the library's text.

use std::io::ErrorKind;

use lstm::Error;
use pyo3::{
    PyErr,
    exceptions::{
        PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyTypeError, PyValueError,
    },
};

/// The Python exception for an error of the library.
pub(crate) fn to_python(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => PyFileNotFoundError::new_err(text),
            ErrorKind::PermissionDenied => PyPermissionError::new_err(text),
            _ => PyOSError::new_err(text),
        },
        Error::Device { .. } => PyRuntimeError::new_err(text),
        Error::TooLarge { .. } => PyMemoryError::new_err(text),
        Error::TensorType { .. } => PyTypeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// A size or a seed, which Python code may give as a negative or a large number.
///
/// # Errors
/// `ValueError` if it does not fit.
pub(crate) fn whole<T: TryFrom<i128>>(name: &str, value: i128) -> Result<T, PyErr> {
    let error = |_| PyValueError::new_err(format!("{name}: expected a number from 0 to 2^64 - 1, got {value}"));
    T::try_from(value).map_err(error)
}

/// Results of the library as results of Python.
pub(crate) trait IntoPyResult<T> {
    /// Converts the error to a Python exception.
    fn py(self) -> Result<T, PyErr>;
}

impl<T> IntoPyResult<T> for lstm::Result<T> {
    fn py(self) -> Result<T, PyErr> {
        self.map_err(to_python)
    }
}
