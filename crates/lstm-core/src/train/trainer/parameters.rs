//! The parameters of an LSTM and its head: names, shapes, and elements in a common order.

use std::{fmt, str::FromStr};

use ndarray::{Array1, Array2};

use super::shards::GradientArrays;
use crate::{
    backend::Backend,
    config::{
        LstmConfig,
        text::{OptionValue, ParsedOptions, write_options},
    },
    error::{Error, Result},
    model::Linear,
    weights::{Weights, names},
};

/// Prefix of the names of the LSTM's parameters, in files and in the optimizer.
pub(super) const LSTM_PREFIX: &str = "lstm.";

/// Prefix of the names of the head's parameters, in files and in the optimizer.
pub(super) const HEAD_PREFIX: &str = "head.";

/// Output size of a [`Linear`] head, and whether it has a bias. The input size is the output size of the LSTM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadSpec {
    /// Number of output features.
    pub(super) output_size: usize,
    /// Whether the head has a bias.
    pub(super) bias: bool,
}

impl HeadSpec {
    /// The output size of the given head, and whether it has a bias.
    pub(super) fn of<B: Backend>(head: &Linear<B>) -> Self {
        HeadSpec { output_size: head.output_size(), bias: head.bias().is_some() }
    }
}

/// Writes `linear outputs=1 bias=true`, the text form in checkpoints.
impl fmt::Display for HeadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_options(f, "linear", &[("outputs", self.output_size.to_text()), ("bias", self.bias.to_text())])
    }
}

/// Parses the text that [`Display`](fmt::Display) writes.
impl FromStr for HeadSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("head", text)?;
        if options.kind() != "linear" {
            return Err(options.unexpected_kind("linear"));
        }
        let head = HeadSpec { output_size: options.read_required("outputs")?, bias: options.read_required("bias")? };
        options.finish()?;
        Ok(head)
    }
}

/// Names and shapes of all parameters: those of the LSTM in the order of [`LstmConfig::layer_specs`] and
/// [`LayerSpec::params`](crate::LayerSpec::params), then the weight and bias of the head.
pub(super) fn parameter_shapes(config: &LstmConfig, head: Option<HeadSpec>) -> Vec<(String, Vec<usize>)> {
    let of_lstm = names::parameter_shapes(config).into_iter();
    let mut shapes: Vec<_> = of_lstm.map(|(name, shape)| (format!("{LSTM_PREFIX}{name}"), shape)).collect();
    if let Some(HeadSpec { output_size, bias }) = head {
        shapes.push((format!("{HEAD_PREFIX}weight"), vec![output_size, config.output_size()]));
        shapes.extend(bias.then(|| (format!("{HEAD_PREFIX}bias"), vec![output_size])));
    }
    shapes
}

/// The values, or the gradients, of all parameters on the host, row-major.
#[derive(Clone, Debug)]
pub(super) struct ModelArrays {
    /// Arrays of the LSTM.
    pub(super) lstm: Weights,
    /// Weight and bias of the head; `None` for a model without a head.
    pub(super) head: Option<(Array2<f32>, Option<Array1<f32>>)>,
}

impl GradientArrays for ModelArrays {
    /// The elements of each array, in the order of [`parameter_shapes`].
    fn slices(&mut self) -> Result<Vec<&mut [f32]>> {
        const ROW_MAJOR_MESSAGE: &str = "layers keep their arrays row-major";
        let mut slices: Vec<_> = self.lstm.iter_mut().map(|(_, values)| values).collect();
        if let Some((weight, bias)) = &mut self.head {
            slices.push(weight.as_slice_mut().expect(ROW_MAJOR_MESSAGE));
            slices.extend(bias.as_mut().map(|bias| bias.as_slice_mut().expect(ROW_MAJOR_MESSAGE)));
        }
        Ok(slices)
    }
}
