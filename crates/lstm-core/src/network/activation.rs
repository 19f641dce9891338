//! Activation functions between and after the layers of a model.

use std::fmt;

use crate::{activation, arithmetic, backend::Ops, error::Result};

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

impl Activation {
    /// Applies the function to each element of a matrix on the device. The softmax functions are computed on the host
    /// instead; here they change nothing.
    pub(super) fn apply<B: Ops>(self, b: &B, x: B::Tensor) -> Result<B::Tensor> {
        match self {
            Activation::Relu => activation::relu(b, x),
            Activation::Sigmoid => b.sigmoid(b.snap(x)?),
            Activation::Tanh => b.tanh(b.snap(x)?),
            Activation::HardSigmoid { alpha, beta } => activation::hard_sigmoid(b, x, alpha, beta),
            Activation::Softmax | Activation::LogSoftmax => Ok(x),
        }
    }

    /// Computes the gradient of the function's input from the gradient `dy` and the function's result `y`. It is
    /// snapped.
    pub(super) fn gradient<B: Ops>(self, b: &B, dy: B::Tensor, y: &B::Tensor) -> Result<B::Tensor> {
        let dy = b.snap(dy)?;
        let times = |factor: &B::Tensor| b.mul_add(1.0, &dy, Some(factor), None);
        let dx = match self {
            Activation::Relu => activation::relu_gradient(b, dy, y)?,
            Activation::Sigmoid => times(&b.mul_add(-1.0, y, Some(y), Some(y))?)?,
            Activation::Tanh => {
                let cols = b.shape(y).cols;
                let ones = activation::constant_row(b, cols, 1.0)?;
                times(&b.mul_add(-1.0, y, Some(y), Some(&ones))?)?
            }
            Activation::HardSigmoid { alpha, .. } => activation::hard_sigmoid_gradient(b, &dy, y, alpha)?,
            Activation::Softmax | Activation::LogSoftmax => dy,
        };
        b.snap(dx)
    }

    /// Applies the function to each value on the host, with the results of [`apply`](Self::apply).
    pub(super) fn apply_on_host(self, values: &mut [f32]) {
        let map = |values: &mut [f32], function: fn(f32) -> f32| values.iter_mut().for_each(|v| *v = function(*v));
        match self {
            Activation::Relu => map(values, arithmetic::relu),
            Activation::Sigmoid => map(values, |v| arithmetic::sigmoid(arithmetic::snap(v))),
            Activation::Tanh => map(values, |v| arithmetic::tanh(arithmetic::snap(v))),
            Activation::HardSigmoid { alpha, beta } => {
                values.iter_mut().for_each(|v| *v = arithmetic::hard_sigmoid(*v, alpha, beta));
            }
            Activation::Softmax | Activation::LogSoftmax => {}
        }
    }

    /// Applies a softmax function to the features of one time step. It is computed in f64, in the order of the
    /// features, with the exponential and the logarithm of the `libm` crate, and rounded once. Other functions change
    /// nothing.
    pub(super) fn apply_softmax(self, values: &mut [f32]) {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let minus_max = |x: f32| f64::from(x) - f64::from(max);
        let exp_sum = |values: &[f32]| values.iter().fold(0.0, |sum, &x| sum + libm::exp(minus_max(x)));
        match self {
            Activation::Softmax => {
                let sum = exp_sum(values);
                values.iter_mut().for_each(|v| *v = (libm::exp(minus_max(*v)) / sum) as f32);
            }
            Activation::LogSoftmax => {
                let log_sum = libm::log(exp_sum(values));
                values.iter_mut().for_each(|v| *v = (minus_max(*v) - log_sum) as f32);
            }
            _ => {}
        }
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
