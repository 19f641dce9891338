//! Files of GuitarML and of Automated-GuitarAmpModelling: an LSTM and a linear layer with the names, shapes and gates of
//! PyTorch.
//!
//! With `skip`, the first features of the input are added to the output. The second feature and those after it are
//! knobs.

use ndarray::Array1;

use lstm_core::{Bias, LstmConfig, ModelLayer, ModelWeights};

use super::{lstm, model};
use crate::json::{Json, Object};

/// Keys of `model_data` that describe a model and do not change its results.
const DESCRIPTIVE: [&str; 9] =
    ["name", "author", "date", "description", "device", "loss", "epoch", "samplerate", "sample_rate"];

/// Reads the model. Leaves in `root` what describes it.
pub(super) fn read(root: &mut Object) -> Result<ModelWeights, String> {
    let mut data = root.require("model_data")?.object("`model_data`")?;
    let mut tensors = root.require("state_dict")?.object("`state_dict`")?;
    let in_data = |why: String| format!("`model_data`: {why}");
    if let Some(kind) = data.take("model") {
        let kind = kind.text("`model`").map_err(in_data)?;
        if kind != "SimpleRNN" {
            return Err(in_data(format!("`model`: expected SimpleRNN, an LSTM and a linear layer, got `{kind}`")));
        }
    }
    let unit = data.require("unit_type").and_then(|unit| unit.text("`unit_type`")).map_err(in_data)?;
    if unit != "LSTM" {
        return Err(in_data(format!("`unit_type`: expected LSTM, got `{unit}`; only LSTMs can be opened")));
    }
    // `true` is Python's 1.
    let skip = match data.require("skip").map_err(in_data)? {
        Json::Bool(skip) => usize::from(skip),
        skip => skip.size("`skip`").map_err(in_data)?,
    };
    let mut size = |key: &str, default: Option<usize>| data.take_size(key, default).map_err(in_data);
    let (input_size, hidden_size) = (size("input_size", None)?, size("hidden_size", None)?);
    let (num_layers, output_size) = (size("num_layers", Some(1))?, size("output_size", Some(1))?);
    let mut flag = |key: &str, default: bool| {
        data.take(key).map_or(Ok(default), |flag| flag.flag(&format!("`{key}`")).map_err(in_data))
    };
    let (head_bias, bidirectional) = (flag("bias_fl", true)?, flag("bidirectional", false)?);
    for key in DESCRIPTIVE {
        if let Some(value) = data.take(key) {
            root.insert(key, value)?;
        }
    }
    data.finish("`model_data`")?;

    // Each layer has at least one tensor in the file, so that the number of layers is bounded before anything is made.
    if num_layers > tensors.keys().count() {
        return Err(in_data(format!("`num_layers`: {num_layers}, but the state dict has fewer tensors")));
    }
    let has_bias = tensors.contains("rec.bias_ih_l0");
    let config =
        LstmConfig::new(input_size, hidden_size).layers(num_layers).bias(if has_bias { Bias::Two } else { Bias::None });
    let config = if bidirectional { config.bidirectional() } else { config };
    config.validate().map_err(|error| error.to_string())?;
    let mut params = Vec::new();
    for (k, spec) in config.layer_specs().into_iter().enumerate() {
        let directions = config.num_directions();
        let suffix = format!("l{}{}", k / directions, if k % directions == 1 { "_reverse" } else { "" });
        let mut arrays = Vec::new();
        for (name, (_, shape)) in ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].iter().zip(spec.params()) {
            let name = format!("rec.{name}_{suffix}");
            let tensor = tensors.require(&name)?;
            let array = match shape.len() {
                1 => tensor.vector(&name)?.into_dyn(),
                _ => tensor.matrix(&name)?.into_dyn(),
            };
            check_shape(&name, array.shape(), &shape)?;
            arrays.push(array);
        }
        params.push(arrays);
    }
    let weight = tensors.require("lin.weight")?.matrix("lin.weight")?;
    check_shape("lin.weight", weight.shape(), &[output_size, config.output_size()])?;
    let bias = match head_bias {
        true => Some(tensors.require("lin.bias")?.vector("lin.bias")?),
        false => None,
    };
    if let Some(bias) = &bias {
        check_shape("lin.bias", Array1::shape(bias), &[output_size])?;
    }
    tensors.finish("`state_dict`")?;
    let model = model(vec![lstm("rec", config, params)?, ModelLayer::Linear { name: "lin".into(), weight, bias }])?;
    match skip {
        0 => Ok(model),
        // The training code adds the first `skip` features of the input to the outputs.
        _ if skip == output_size => model.with_skip().map_err(|error| error.to_string()),
        _ => Err(in_data(format!("`skip`: expected 0 or {output_size}, the number of outputs, got {skip}"))),
    }
}

/// Checks the shape of a tensor against that which `model_data` determines.
fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{name}: expected the shape {expected:?} by `model_data`, got {found:?}")),
    }
}
