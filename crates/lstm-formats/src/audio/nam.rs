//! Neural Amp Modeler's `.nam` files with the architecture `LSTM`.
//!
//! `weights` is one list. For each layer it has `[W_ih | W_hh]`, shape `(4 * hidden, input + hidden)`, row-major, with
//! the gates i, f, g, o; one bias; the initial hidden state; the initial cell state. The weight and the bias of the
//! output layer follow.

use ndarray::{Array1, Array2, Array3, s};

use lstm_core::{Bias, HostState, LstmConfig, ModelLayer, ModelWeights};

use super::{lstm, model};
use crate::json::{Json, Object};

/// Reads the model. Leaves in `root` what describes it.
pub(super) fn read(root: &mut Object) -> Result<ModelWeights, String> {
    let architecture = root.require("architecture")?.text("`architecture`")?;
    if architecture != "LSTM" {
        let what = match &*architecture {
            "WaveNet" | "SlimmableWaveNet" | "ConvNet" => "a convolutional network",
            "Linear" => "an impulse response",
            "SlimmableContainer" | "Sequential" | "Container" => "several models in one file",
            "CatLSTM" => "an LSTM with knobs whose parameters come with their own description",
            _ => "not an LSTM",
        };
        return Err(format!("`architecture`: expected LSTM, got `{architecture}`, {what}; only LSTMs can be opened"));
    }
    let version = root.require("version")?.text("`version`")?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    if !matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(0), Some(5..))) {
        return Err(format!("`version`: expected 0.5 or a later 0.x, got `{version}`"));
    }
    root.insert("version", Json::Text(version))?;
    let mut config = root.require("config")?.object("`config`")?;
    let mut size =
        |key: &str, default: Option<usize>| config.take_size(key, default).map_err(|why| format!("`config`: {why}"));
    let (input_size, hidden_size) = (size("input_size", None)?, size("hidden_size", None)?);
    let num_layers = size("num_layers", None)?;
    let (in_channels, out_channels) = (size("in_channels", Some(input_size))?, size("out_channels", Some(1))?);
    config.finish("`config`")?;
    if in_channels != input_size {
        return Err(format!("`config`: expected as many channels as inputs, got {in_channels} and {input_size}"));
    }

    let weights = root.require("weights")?.vector("`weights`")?;
    let expected = num_weights(num_layers, input_size, hidden_size, out_channels);
    if expected != Some(weights.len()) {
        let expected = expected.map_or("more than fit in memory".into(), |n| n.to_string());
        return Err(format!(
            "`weights`: expected {expected} numbers for {num_layers} layers of hidden size {hidden_size}, {input_size} \
             inputs and {out_channels} outputs, got {}",
            weights.len()
        ));
    }
    let mut rest = weights.view();
    let mut take = |len: usize| {
        let (first, others) = rest.split_at(ndarray::Axis(0), len);
        rest = others;
        first.to_owned()
    };
    let config = LstmConfig::new(input_size, hidden_size).layers(num_layers).bias(Bias::One);
    config.validate().map_err(|error| error.to_string())?;
    let shape = (num_layers, 1, hidden_size);
    let (mut params, mut h, mut c) = (Vec::new(), Array3::zeros(shape), Array3::zeros(shape));
    for k in 0..num_layers {
        let inputs = if k == 0 { input_size } else { hidden_size };
        let joined = matrix(take(4 * hidden_size * (inputs + hidden_size)), 4 * hidden_size)?;
        let (weight_ih, weight_hh) = (joined.slice(s![.., ..inputs]), joined.slice(s![.., inputs..]));
        params.push(vec![
            weight_ih.to_owned().into_dyn(),
            weight_hh.to_owned().into_dyn(),
            take(4 * hidden_size).into_dyn(),
        ]);
        h.slice_mut(s![k, 0, ..]).assign(&take(hidden_size));
        c.slice_mut(s![k, 0, ..]).assign(&take(hidden_size));
    }
    let weight = matrix(take(out_channels * hidden_size), out_channels)?;
    let head = ModelLayer::Linear { name: "head".into(), weight, bias: Some(take(out_channels)) };
    let mut lstm = lstm("lstm", config, params)?;
    if let ModelLayer::Lstm { initial_state, .. } = &mut lstm {
        *initial_state = Some(HostState { h, c });
    }
    model(vec![lstm, head])
}

/// The number of weights in a file; `None` if it is too large for a `usize`.
fn num_weights(layers: usize, inputs: usize, hidden: usize, outputs: usize) -> Option<usize> {
    let gates = hidden.checked_mul(4)?;
    // Besides the gates' weights: the bias, h and c.
    let layer = |inputs: usize| gates.checked_mul(inputs.checked_add(hidden)?)?.checked_add(hidden.checked_mul(6)?);
    let upper = layers.checked_sub(1)?.checked_mul(layer(hidden)?)?;
    layer(inputs)?.checked_add(upper)?.checked_add(outputs.checked_mul(hidden.checked_add(1)?)?)
}

/// A matrix of this height from its elements in row-major order.
fn matrix(elements: Array1<f32>, height: usize) -> Result<Array2<f32>, String> {
    let width = elements.len().checked_div(height).unwrap_or(0);
    elements.into_shape_with_order((height, width)).map_err(|error| format!("`weights`: {error}"))
}
