//! Audio models: GuitarML, AIDA-X, Neural Amp Modeler and RTNeural. All are JSON.
//!
//! | format | key by which it is recognized | layout of the weights |
//! |---|---|---|
//! | GuitarML, Automated-GuitarAmpModelling | `model_data` | PyTorch's state dict as nested lists |
//! | AIDA-X | `layers`, and `in_skip`, a gain or a self-test | RTNeural's layers |
//! | RTNeural | `layers` | Keras's kernels as nested lists |
//! | Neural Amp Modeler | `architecture` | one flat list |
//!
//! Text and numbers that describe a model, such as its author, become [metadata](lstm_core::ModelWeights::metadata).
//! Other keys of a file's top level are errors if their names tell that they change the results, as `output_gain` does.
//! The sample rate has the key `sample_rate` there, whatever the file calls it.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};

use lstm_core::{Activation, Bias, Error, LayerWeights, LstmConfig, ModelLayer, ModelWeights, Result, Weights};

use crate::{
    file::{Format, ModelFile, OpenOptions},
    json::{Json, Object},
};

mod aidax;
mod guitarml;
mod nam;
mod rtneural;

/// The metadata key of the sample rate in Hz, as a decimal number.
const SAMPLE_RATE: &str = "sample_rate";

/// Parts of keys that name something that changes the results, rather than describing the model. A reader takes the keys
/// that its format defines, so that what is left may ask for something that the model would not do.
const WITH_EFFECT: [&str; 6] = ["gain", "skip", "activation", "scale", "norm", "bias"];

/// Reads a GuitarML file.
pub(crate) fn read_guitarml(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, source, options, Format::GuitarMl, guitarml::read)
}

/// Reads an AIDA-X file.
pub(crate) fn read_aidax(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, source, options, Format::AidaX, aidax::read)
}

/// Reads an RTNeural file.
pub(crate) fn read_rtneural(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, source, options, Format::RtNeural, rtneural::read)
}

/// Reads a Neural Amp Modeler file.
pub(crate) fn read_nam(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, source, options, Format::Nam, nam::read)
}

/// Parses a file, calls the reader of its format, and stores what the reader left as metadata.
fn read(
    bytes: &[u8],
    source: &str,
    options: &OpenOptions,
    format: Format,
    reader: fn(&mut Object) -> Result<ModelWeights, String>,
) -> Result<ModelFile> {
    let error = |why: String| Error::format(source, why);
    if *options != OpenOptions::default() {
        return Err(error(format!(
            "a file of the format {format} says everything about its model; omit the options (a name, layers, \
             values, a cell, a clip or coupled gates)"
        )));
    }
    let mut root = Object::parse(bytes).map_err(error)?;
    let weights = reader(&mut root).map_err(error)?;
    let metadata = metadata(root).map_err(error)?;
    Ok(ModelFile::new(format, weights.with_metadata(metadata), vec!["decimal numbers".into()], Vec::new()))
}

/// The text and numbers that a reader left, by key. Those inside `metadata` come without that word.
fn metadata(root: Object) -> Result<BTreeMap<String, String>, String> {
    let mut texts = BTreeMap::new();
    for (key, value) in root {
        match value {
            Json::Object(entries) if key == "metadata" => {
                for (inner, value) in entries {
                    let taken = texts.contains_key(&inner);
                    value.add_to(if taken { format!("metadata.{inner}") } else { inner }, &mut texts);
                }
            }
            Json::List(_) | Json::Object(_) if key != "metadata" => return Err(format!("unknown key `{key}`")),
            value if value != Json::Null && WITH_EFFECT.iter().any(|part| key.to_lowercase().contains(part)) => {
                return Err(format!(
                    "unknown key `{key}`, which may change the results, got {}; move it into `metadata` if it only \
                     describes the model",
                    value.describe()
                ));
            }
            value => value.add_to(key, &mut texts),
        }
    }
    let names = [SAMPLE_RATE, "samplerate", "sampleRate", "metadata.sample_rate", "metadata.samplerate"];
    let mut rate: Option<f64> = None;
    for name in names {
        let Some(text) = texts.remove(name) else { continue };
        let value = text.trim().parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
        let value = value.ok_or_else(|| format!("`{name}`: expected a sample rate in Hz, got `{text}`"))?;
        if rate.is_some_and(|rate| rate != value) {
            return Err(format!("two different sample rates: {} Hz and {value} Hz", rate.unwrap_or_default()));
        }
        rate = Some(value);
    }
    texts.extend(rate.map(|rate| (SAMPLE_RATE.to_owned(), rate.to_string())));
    Ok(texts)
}

/// A stack of LSTM layers. `params` has the arrays of each layer, in the order of
/// [`LayerSpec::params`](lstm_core::LayerSpec::params).
fn lstm(name: &str, config: LstmConfig, params: Vec<Vec<ndarray::ArrayD<f32>>>) -> Result<ModelLayer, String> {
    let layers = config.layer_specs().into_iter().zip(params);
    let layers = layers.map(|(spec, params)| LayerWeights::new(spec, params)).collect::<Result<Vec<_>>>();
    let weights = layers.and_then(|layers| Weights::new(config, layers)).map_err(|error| format!("{name}: {error}"))?;
    Ok(ModelLayer::Lstm { name: name.into(), weights: weights.into(), initial_state: None })
}

/// A single forward LSTM layer from Keras's `kernel`, shape `(input, 4 * hidden)`, `recurrent_kernel`, shape
/// `(hidden, 4 * hidden)`, and `bias`, with the gates i, f, c, o.
fn keras_lstm(
    name: &str,
    kernel: Array2<f32>,
    recurrent_kernel: Array2<f32>,
    bias: Option<Array1<f32>>,
) -> Result<ModelLayer, String> {
    let (input, hidden) = (kernel.nrows(), recurrent_kernel.nrows());
    let config = LstmConfig::new(input, hidden).bias(if bias.is_some() { Bias::One } else { Bias::None });
    let mut params = vec![kernel.reversed_axes().into_dyn(), recurrent_kernel.reversed_axes().into_dyn()];
    params.extend(bias.map(Array1::into_dyn));
    lstm(name, config, vec![params])
}

/// The activation function of this name; `None` for the identity.
fn activation(name: &str) -> Result<Option<Activation>, String> {
    Ok(Some(match name {
        "" | "linear" => return Ok(None),
        "relu" => Activation::Relu,
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        "softmax" => Activation::Softmax,
        other => return Err(format!("expected the activation tanh, relu, sigmoid or softmax, got `{other}`")),
    }))
}

/// The model of these layers.
fn model(layers: Vec<ModelLayer>) -> Result<ModelWeights, String> {
    if !layers.iter().any(|layer| matches!(layer, ModelLayer::Lstm { .. })) {
        return Err("expected an LSTM layer, found none".into());
    }
    ModelWeights::new(layers).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
