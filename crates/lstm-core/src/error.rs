//! The error type of this crate.

use std::path::PathBuf;

use crate::{config::Precision, shape::MatrixShape};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate or of a backend. The message says which operation failed, what it expected and what it got. A
/// call that returns an error changes nothing, except that a [`ModelStream`](crate::ModelStream) may lose its states.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has an invalid shape, size or value.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// The operation and the argument, such as `forward: state.h`.
        op: String,
        /// The required shape or condition.
        expected: String,
        /// The actual shape or value.
        got: String,
    },

    /// The shapes of two operands are incompatible.
    #[error("{op}: shapes {lhs} and {rhs} are incompatible")]
    Mismatch {
        /// The operation.
        op: &'static str,
        /// Shape of the left operand.
        lhs: MatrixShape,
        /// Shape of the right operand.
        rhs: MatrixShape,
    },

    /// An array is too large for memory.
    #[error("{op}: {sizes:?} elements do not fit in memory")]
    TooLarge {
        /// The operation.
        op: &'static str,
        /// Sizes of the array; the number of elements is their product.
        sizes: Vec<usize>,
    },

    /// An option, or a combination of options, is invalid.
    #[error("option {option}: {reason}")]
    Config {
        /// Name of the option.
        option: &'static str,
        /// The expected value and the actual value.
        reason: String,
    },

    /// A required tensor is missing.
    #[error("tensor `{name}` is missing; expected {expected}")]
    MissingTensor {
        /// Full name of the tensor, including the prefix.
        name: String,
        /// The required shape or a description of the tensor.
        expected: String,
    },

    /// A tensor has the wrong shape.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// Full name of the tensor, including the prefix.
        name: String,
        /// The required shape.
        expected: Vec<usize>,
        /// The actual shape.
        found: Vec<usize>,
    },

    /// A tensor has an unsupported element type.
    #[error("tensor `{name}`: expected element type {expected}, found {found}")]
    TensorType {
        /// Full name of the tensor, including the prefix.
        name: String,
        /// The supported element types.
        expected: &'static str,
        /// The actual element type.
        found: String,
    },

    /// A file has tensors that were not read, for example tensors of a layer or option that the model does not have.
    #[error("unused tensors: {}{}", names.join(", "), advice.map(|advice| format!("; {advice}")).unwrap_or_default())]
    UnusedTensors {
        /// Full names of the tensors, at least one.
        names: Vec<String>,
        /// A hint about what the tensors are and what the user can do, if that is known.
        advice: Option<&'static str>,
    },

    /// A file or a text has an invalid format.
    #[error("{input}: {reason}")]
    Format {
        /// The invalid input: a file, a tensor, a metadata key or a text.
        input: String,
        /// What is invalid.
        reason: String,
    },

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },

    /// A value in training is infinite or NaN.
    #[error("training step {step}: {quantity} is {value}")]
    NotFinite {
        /// Number of the training step, counted from 1.
        step: u64,
        /// The quantity that is infinite or NaN: the loss, or the gradient, value or optimizer state of a parameter.
        quantity: String,
        /// The value: infinite or NaN.
        value: f64,
    },

    /// A shard of a training step's batch failed.
    #[error("shard {index} (of {shards}, counted from 0): {source}")]
    Shard {
        /// Number of the shard, counted from 0.
        index: usize,
        /// Number of shards of the batch.
        shards: usize,
        /// The error.
        source: Box<Error>,
    },

    /// A rank of a run on several ranks failed, or differs from rank 0. All ranks return this error, except that an
    /// error of the caller's loss function comes back unchanged on its own rank.
    #[error("rank {rank}: {reason}")]
    Rank {
        /// Number of the rank, counted from 0.
        rank: usize,
        /// Its error message.
        reason: String,
    },

    /// A call to the device failed.
    #[error("{backend}: {op}: {reason}")]
    Device {
        /// Name of the backend.
        backend: String,
        /// The call that failed.
        op: &'static str,
        /// Error message of the device.
        reason: String,
    },
}

impl Error {
    /// Creates an [`Error::Shape`].
    pub fn shape(op: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Error::Shape { op: op.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// Creates an [`Error::Config`].
    pub fn config(option: &'static str, reason: impl ToString) -> Self {
        Error::Config { option, reason: reason.to_string() }
    }

    /// The error for gradients of quantized weights.
    pub(crate) fn quantized_gradients(precision: Precision) -> Self {
        let reason = format!("training needs f32 weights, got {precision}; train in f32 and quantize the result");
        Error::config("precision", reason)
    }

    /// Creates an [`Error::Format`].
    pub fn format(input: impl Into<String>, reason: impl ToString) -> Self {
        Error::Format { input: input.into(), reason: reason.to_string() }
    }
}
