//! Activation functions between and after the layers of a model.

use std::fmt;

/// An activation function, applied to each element or, for the softmax functions, to the features of one time step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + exp(-x))`: [`arithmetic::sigmoid`](crate::arithmetic::sigmoid).
    Sigmoid,
    /// [`arithmetic::tanh`](crate::arithmetic::tanh).
    Tanh,
    /// `min(max(alpha * x + beta, 0), 1)`. ONNX's default and Keras 2 have alpha 0.2 and beta 0.5; Keras 3 and PyTorch
    /// have alpha 1/6 and beta 0.5.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at 0.
        beta: f32,
    },
    /// `exp(x_k) / sum_j exp(x_j)` over the features. Only as the last layer of a model.
    Softmax,
    /// `x_k - log(sum_j exp(x_j))` over the features. Only as the last layer of a model.
    LogSoftmax,
}

impl Activation {
    /// Whether this is one of the softmax functions, which a model has only as its last layer.
    pub fn is_softmax(self) -> bool {
        matches!(self, Activation::Softmax | Activation::LogSoftmax)
    }
}

/// Writes the name as in PyTorch and ONNX, in lower case: `relu`, `hard_sigmoid(alpha=0.2, beta=0.5)`.
impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::Relu => f.write_str("relu"),
            Activation::Sigmoid => f.write_str("sigmoid"),
            Activation::Tanh => f.write_str("tanh"),
            Activation::HardSigmoid { alpha, beta } => write!(f, "hard_sigmoid(alpha={alpha}, beta={beta})"),
            Activation::Softmax => f.write_str("softmax"),
            Activation::LogSoftmax => f.write_str("log_softmax"),
        }
    }
}
