//! The one error type: every variant names the operation, what was expected and what came.

use std::path::PathBuf;

use crate::shape::MatrixShape;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Nothing is changed by a call that returns one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has a shape that the operation can't take.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// The operation and argument, such as `forward: state.h`.
        op: String,
        /// The shape or condition it needs.
        expected: String,
        /// The shape that came.
        got: String,
    },

    /// Two operands don't fit together.
    #[error("{op}: {lhs} does not fit {rhs}")]
    Mismatch {
        /// The operation.
        op: &'static str,
        /// Shape of the left operand.
        lhs: MatrixShape,
        /// Shape of the right operand.
        rhs: MatrixShape,
    },

    /// Sizes whose product is more than memory holds.
    #[error("{op}: {sizes:?} elements do not fit in memory")]
    TooLarge {
        /// The operation.
        op: &'static str,
        /// The sizes that are multiplied.
        sizes: Vec<usize>,
    },

    /// An option, or a combination of options, that does not exist.
    #[error("option {option}: {why}")]
    Config {
        /// The option's name.
        option: &'static str,
        /// What was given and what would be accepted.
        why: String,
    },

    /// A tensor that the weights need is not there.
    #[error("tensor `{name}` is missing; needed: {expected}")]
    MissingTensor {
        /// Its full name, prefix included.
        name: String,
        /// The shape or role it should have.
        expected: String,
    },

    /// A tensor has the wrong shape.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// Its full name, prefix included.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },

    /// A tensor has an element type that is not a float this crate reads.
    #[error("tensor `{name}`: element type {found} can't be read as {expected}")]
    TensorType {
        /// Its full name, prefix included.
        name: String,
        /// The types that would be accepted.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },

    /// Tensors that nobody asked for: an option or a layer this model does not have.
    #[error("unused tensors: {}", names.join(", "))]
    UnusedTensors {
        /// Their full names.
        names: Vec<String>,
    },

    /// The bytes are not what they claim to be.
    #[error("{what}: {why}")]
    Format {
        /// What was being read.
        what: String,
        /// What is wrong with it.
        why: String,
    },

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// Training met a number that is not finite.
    #[error("training step {step}: {what} is {value}")]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// Which number.
        what: String,
        /// NaN or an infinity.
        value: f64,
    },

    /// The device refused.
    #[error("{backend}: {op}: {why}")]
    Device {
        /// The backend's name.
        backend: String,
        /// The call that failed.
        op: &'static str,
        /// The device's reason.
        why: String,
    },
}

impl Error {
    /// An [`Error::Shape`] from anything printable.
    pub fn shape(op: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Error::Shape { op: op.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// An [`Error::Config`] from anything printable.
    pub fn config(option: &'static str, why: impl ToString) -> Self {
        Error::Config { option, why: why.to_string() }
    }

    /// An [`Error::Format`] from anything printable.
    pub fn format(what: impl Into<String>, why: impl ToString) -> Self {
        Error::Format { what: what.into(), why: why.to_string() }
    }
}
