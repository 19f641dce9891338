//! Converts the library's errors to Python exceptions, with their texts in the terms of Python.

use std::io::ErrorKind;

use lstm::Error;
use pyo3::{
    exceptions::{
        PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyTypeError, PyValueError,
    },
    prelude::*,
};

/// What the library advises to do in Rust, and what Python code does.
const ADVICE: [(&str, &str); 7] = [
    ("use Model::forward", "use Model.run"),
    (
        "read a model without the state of a run with StateDict::take_lstm and Linear::take, or with ModelWeights::open, and \
         start a run with Trainer::new or ModelTrainer::new",
        "read a model without the state of a run with lstm.Model.open, or an LSTM with load_state_dict; start a run with \
         lstm.Trainer",
    ),
    (
        "continue the run with ModelTrainer::resume, and save its model with ModelTrainer::model and ModelWeights::save",
        "continue the run with lstm.Trainer.resume, and save its model with trainer.model.save",
    ),
    ("continue the run with Trainer::resume", "continue the run with lstm.Trainer.resume"),
    (
        "run it with `OnnxGraph::run` in Rust, or select its LSTM nodes by name",
        "select its LSTM nodes with the argument name",
    ),
    ("set_config: expected no", "expected no"),
    (
        "omit the options (a name, layers, values, a cell, a clip or coupled gates)",
        "omit the arguments name, layers, set, cell, clip and coupled",
    ),
];

/// The text of an error, with Python's names: arguments of methods without the name of a Rust function, and options.
fn text(error: &Error) -> String {
    let text = match error {
        Error::Shape { op, expected, got } => {
            let argument = op.split_once(": ").map_or(&**op, |(_, argument)| argument);
            let argument = if argument == "input" { "x" } else { argument };
            format!("{argument}: expected {expected}, got {got}")
        }
        Error::Config { option: "accumulated", reason } => reason.clone(),
        Error::Config { option, reason } => {
            let name = match *option {
                "backend" => "device",
                "direction" => "bidirectional",
                option => option,
            };
            format!("{name}: {reason}")
        }
        // An error about an option may be part of one about a file or a text.
        error => error.to_string().replace(": option ", ": "),
    };
    ADVICE.iter().fold(text, |text, (rust, python)| text.replace(rust, python))
}

/// The Python exception for an error of the library.
pub(crate) fn to_python(error: Error) -> PyErr {
    let text = text(&error);
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
