//! All parameters of a model with a head, in the order in which training takes them.

use std::{fmt, str::FromStr};

use ndarray::{Array1, Array2};

use crate::{
    backend::Backend,
    config::{
        LstmConfig,
        text::{OptionValue, ParsedOptions, write_options},
    },
    error::{Error, Result},
    train::Linear,
    weights::{Weights, names::pytorch},
};

/// What the LSTM's names begin with, and the head's, in files and in the optimizer.
pub(super) const LSTM: &str = "lstm.";
pub(super) const HEAD: &str = "head.";

/// What a head is, besides its input size, which is the LSTM's output size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadKind {
    pub(super) outputs: usize,
    pub(super) bias: bool,
}

impl HeadKind {
    pub(super) fn of<B: Backend>(head: &Linear<B>) -> Self {
        HeadKind { outputs: head.output_size(), bias: head.bias().is_some() }
    }
}

impl fmt::Display for HeadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_options(f, "linear", &[("outputs", self.outputs.to_text()), ("bias", self.bias.to_text())])
    }
}

impl FromStr for HeadKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("head", text)?;
        if options.kind() != "linear" {
            return Err(options.unexpected_kind("linear"));
        }
        let head = HeadKind { outputs: options.required("outputs")?, bias: options.required("bias")? };
        options.finish()?;
        Ok(head)
    }
}

/// Names and shapes.
pub(super) fn layout(config: &LstmConfig, head: Option<HeadKind>) -> Vec<(String, Vec<usize>)> {
    let mut layout = Vec::new();
    for (k, spec) in config.layer_specs().into_iter().enumerate() {
        let layer = k / config.num_directions();
        let name = |param| format!("{LSTM}{}", pytorch(layer, spec.reverse, spec.cell, param));
        layout.extend(spec.params().into_iter().map(|(param, shape)| (name(param), shape)));
    }
    if let Some(HeadKind { outputs, bias }) = head {
        layout.push((format!("{HEAD}weight"), vec![outputs, config.output_size()]));
        layout.extend(bias.then(|| (format!("{HEAD}bias"), vec![outputs])));
    }
    layout
}

/// Values, or gradients, of all parameters on the host; row-major.
#[derive(Clone, Debug)]
pub(super) struct Values {
    pub(super) lstm: Weights,
    pub(super) head: Option<(Array2<f32>, Option<Array1<f32>>)>,
}

impl Values {
    /// The elements of each, in the order of [`layout`].
    pub(super) fn slices(&mut self) -> Vec<&mut [f32]> {
        const ROW_MAJOR: &str = "values come from layers, which keep them row-major";
        let mut slices: Vec<_> = self.lstm.iter_mut().map(|(_, values)| values).collect();
        if let Some((weight, bias)) = &mut self.head {
            slices.push(weight.as_slice_mut().expect(ROW_MAJOR));
            slices.extend(bias.as_mut().map(|bias| bias.as_slice_mut().expect(ROW_MAJOR)));
        }
        slices
    }
}
