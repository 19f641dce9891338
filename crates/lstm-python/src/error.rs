//! Converts the library's errors to Python exceptions with the same text.

use std::io::ErrorKind;

use lstm::Error;
use pyo3::{
    exceptions::{
        PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyTypeError, PyValueError,
    },
    prelude::*,
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
