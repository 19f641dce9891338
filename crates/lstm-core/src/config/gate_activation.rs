//! The activation functions of a cell and their text form.

use std::{fmt, str::FromStr};

use super::text::OptionValue;
use crate::error::{Error, Result};

/// An activation function inside a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GateActivation {
    /// `1 / (1 + exp(-x))`: [`arithmetic::sigmoid`](crate::arithmetic::sigmoid).
    Sigmoid,
    /// [`arithmetic::tanh`](crate::arithmetic::tanh).
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(alpha * x + beta, 0), 1)`. ONNX's default and Keras 2 have alpha 0.2 and beta 0.5; Keras 3 and PyTorch
    /// have alpha 1/6 and beta 0.5.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at 0.
        beta: f32,
    },
}

/// The activation functions of a cell: ONNX's attribute `activations`, whose functions are called f, g and h there.
///
/// The kernels of the backends compute the [default](Self::default) functions. A model with other functions runs by the
/// [reference path](crate::reference) on every backend. This is slower, and the results are bit-identical too.
///
/// ```
/// use lstm_core::{GateActivation, GateActivations, LstmConfig};
/// // keras.layers.LSTM(5, activation="relu", recurrent_activation="hard_sigmoid") of Keras 2.
/// let hard_sigmoid = GateActivation::HardSigmoid { alpha: 0.2, beta: 0.5 };
/// let relu = GateActivation::Relu;
/// let config = LstmConfig::new(3, 5).activations(GateActivations { gate: hard_sigmoid, candidate: relu, output: relu });
/// assert_eq!(config.activations.to_string(), "hard_sigmoid(0.2,0.5)/relu/relu");
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateActivations {
    /// ONNX's f, Keras's `recurrent_activation`: the function of the gates i, f and o, and of the candidate g of the
    /// dense peephole cell; sigmoid by default.
    pub gate: GateActivation,
    /// ONNX's g, Keras's `activation`: the function of the candidate g; tanh by default. The dense peephole cell has no
    /// function of its own for the candidate, and only the default is valid.
    pub candidate: GateActivation,
    /// ONNX's h, Keras's `activation`: the function of the cell state in `h' = o tanh(c')`, or of the product in the
    /// dense peephole cell's `h' = tanh(o c')`; tanh by default.
    pub output: GateActivation,
}

/// Sigmoid for the gates, tanh for the candidate and the output.
impl Default for GateActivations {
    fn default() -> Self {
        GateActivations { gate: GateActivation::Sigmoid, candidate: GateActivation::Tanh, output: GateActivation::Tanh }
    }
}

impl GateActivations {
    /// Whether these are the default functions, sigmoid, tanh and tanh.
    pub fn is_default(&self) -> bool {
        *self == GateActivations::default()
    }

    /// Checks that parameters are finite.
    pub(super) fn validate(&self) -> Result<()> {
        for activation in [self.gate, self.candidate, self.output] {
            if let GateActivation::HardSigmoid { alpha, beta } = activation
                && !(alpha.is_finite() && beta.is_finite())
            {
                return Err(Error::config("activations", format!("expected finite parameters, got {activation}")));
            }
        }
        Ok(())
    }
}

/// Writes the name as in ONNX, in lower case, with the parameters alpha and beta: `relu`, `hard_sigmoid(0.2,0.5)`.
/// Parsing the text gives an equal activation.
impl fmt::Display for GateActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GateActivation::Sigmoid => f.write_str("sigmoid"),
            GateActivation::Tanh => f.write_str("tanh"),
            GateActivation::Relu => f.write_str("relu"),
            GateActivation::HardSigmoid { alpha, beta } => write!(f, "hard_sigmoid({alpha:?},{beta:?})"),
        }
    }
}

/// Writes the functions of the gates, the candidate and the output: `sigmoid/tanh/tanh`. Parsing the text gives equal
/// activations.
impl fmt::Display for GateActivations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.gate, self.candidate, self.output)
    }
}

/// Parses the text of an activation, as `Display` writes it. Fails with [`Error::Config`] for any other text.
impl FromStr for GateActivation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parameters = || {
            let (alpha, beta) = text.strip_prefix("hard_sigmoid(")?.strip_suffix(')')?.split_once(',')?;
            Some(GateActivation::HardSigmoid { alpha: alpha.parse().ok()?, beta: beta.parse().ok()? })
        };
        match text {
            "sigmoid" => Ok(GateActivation::Sigmoid),
            "tanh" => Ok(GateActivation::Tanh),
            "relu" => Ok(GateActivation::Relu),
            _ => parameters().ok_or_else(|| {
                let expected = "sigmoid, tanh, relu or hard_sigmoid(alpha,beta)";
                Error::config("activations", format!("expected {expected}, got `{text}`"))
            }),
        }
    }
}

/// Parses the text of three activations, as `Display` writes it. Fails with [`Error::Config`] for any other text.
impl FromStr for GateActivations {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let [gate, candidate, output] = parts[..] else {
            let expected = GateActivations::describe_valid_text();
            return Err(Error::config("activations", format!("expected {expected}, got `{text}`")));
        };
        Ok(GateActivations { gate: gate.parse()?, candidate: candidate.parse()?, output: output.parse()? })
    }
}

impl OptionValue for GateActivations {
    fn describe_valid_text() -> String {
        "three of sigmoid, tanh, relu, hard_sigmoid(alpha,beta), such as sigmoid/tanh/tanh".into()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_is_exact() {
        let hard_sigmoid = GateActivation::HardSigmoid { alpha: 1.0 / 6.0, beta: -1e-30 };
        for gate in [GateActivation::Sigmoid, GateActivation::Tanh, GateActivation::Relu, hard_sigmoid] {
            assert_eq!(gate.to_string().parse::<GateActivation>().unwrap(), gate);
            let activations = GateActivations { gate, candidate: hard_sigmoid, output: GateActivation::Relu };
            assert_eq!(activations.to_string().parse::<GateActivations>().unwrap(), activations);
        }
        for text in ["", "Relu", "relu ", "hard_sigmoid", "hard_sigmoid(0.2)", "hard_sigmoid(0.2,0.5", "softsign"] {
            let error = text.parse::<GateActivation>().unwrap_err().to_string();
            assert!(error.contains(&format!("got `{text}`")), "{error}");
        }
        for text in ["relu", "relu/relu", "relu/relu/relu/relu", "sigmoid/tanh/elu"] {
            assert!(text.parse::<GateActivations>().is_err(), "{text}");
        }
    }
}
