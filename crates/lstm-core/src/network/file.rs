//! Saved models: safetensors files with the chain of layers as JSON in the metadata.

use std::path::Path;

use ndarray::{Array1, Array2, ArrayD, Dimension, Ix1, Ix2, Ix3};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    model::HostState,
    network::{
        Activation,
        weights::{ModelLayer, ModelWeights},
    },
    weights::{
        Scales, check_finite,
        names::TensorNames,
        state_dict::{CHECKPOINT_KEY, StateDict, StateDictWriter, config_key},
    },
};

/// Version of the chain of layers in the metadata.
const VERSION: u32 = 1;

/// The chain of layers in the metadata, and what surrounds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chain {
    version: u32,
    layers: Vec<Layer>,
    skip: bool,
    // All f32 are f64 in the file: parsing a rounded decimal number as f64 and then rounding it could give another f32.
    input_gain: f64,
    output_gain: f64,
}

/// One layer of the chain. The tensors hold its parameters and sizes.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Layer {
    Embedding { name: String },
    Lstm { name: String, initial_state: bool },
    Linear { name: String, bias: bool },
    // Variants with braces, because serde would ignore unknown fields of the others.
    Relu {},
    Sigmoid {},
    Tanh {},
    HardSigmoid { alpha: f64, beta: f64 },
    Softmax {},
    LogSoftmax {},
    LastStep {},
    FinalState {},
    Dropout { p: f64 },
}

impl Layer {
    fn of(layer: &ModelLayer) -> Self {
        match layer {
            ModelLayer::Embedding { name, .. } => Layer::Embedding { name: name.clone() },
            ModelLayer::Lstm { name, initial_state, .. } => {
                Layer::Lstm { name: name.clone(), initial_state: initial_state.is_some() }
            }
            ModelLayer::Linear { name, bias, .. } => Layer::Linear { name: name.clone(), bias: bias.is_some() },
            ModelLayer::Activation(activation) => match *activation {
                Activation::Relu => Layer::Relu {},
                Activation::Sigmoid => Layer::Sigmoid {},
                Activation::Tanh => Layer::Tanh {},
                Activation::HardSigmoid { alpha, beta } => {
                    Layer::HardSigmoid { alpha: alpha.into(), beta: beta.into() }
                }
                Activation::Softmax => Layer::Softmax {},
                Activation::LogSoftmax => Layer::LogSoftmax {},
            },
            ModelLayer::LastStep => Layer::LastStep {},
            ModelLayer::FinalState => Layer::FinalState {},
            ModelLayer::Dropout(p) => Layer::Dropout { p: (*p).into() },
        }
    }

    /// Takes the layer's tensors from a state dict. Returns also the scales of a quantized matrix.
    fn take(self, dict: &mut StateDict) -> Result<(ModelLayer, Option<Scales>)> {
        let mut scales = None;
        let layer = match self {
            Layer::Embedding { name } => {
                let weight = take_matrix(dict, &format!("{name}.weight"), &mut scales)?;
                ModelLayer::Embedding { weight, name }
            }
            Layer::Lstm { name, initial_state } => {
                let mut take = |part| take_array::<Ix3>(dict, &format!("{name}.initial_{part}"), "(layers, 1, size)");
                let initial_state = if initial_state { Some(HostState { h: take("h")?, c: take("c")? }) } else { None };
                let weights = dict.take_lstm(&format!("{name}."))?.into();
                ModelLayer::Lstm { name, weights, initial_state }
            }
            Layer::Linear { name, bias } => {
                let weight = take_matrix(dict, &format!("{name}.weight"), &mut scales)?;
                let bias: Option<Array1<f32>> = match bias {
                    true => Some(take_array::<Ix1>(dict, &format!("{name}.bias"), "(out)")?),
                    false => None,
                };
                if let (Some(bias), Some(_)) = (&bias, &scales) {
                    check_finite(&format!("tensor `{name}.bias`"), bias.as_slice().unwrap_or_default())?;
                }
                ModelLayer::Linear { name, weight, bias }
            }
            Layer::Relu {} => ModelLayer::Activation(Activation::Relu),
            Layer::Sigmoid {} => ModelLayer::Activation(Activation::Sigmoid),
            Layer::Tanh {} => ModelLayer::Activation(Activation::Tanh),
            Layer::HardSigmoid { alpha, beta } => {
                ModelLayer::Activation(Activation::HardSigmoid { alpha: alpha as f32, beta: beta as f32 })
            }
            Layer::Softmax {} => ModelLayer::Activation(Activation::Softmax),
            Layer::LogSoftmax {} => ModelLayer::Activation(Activation::LogSoftmax),
            Layer::LastStep {} => ModelLayer::LastStep,
            Layer::FinalState {} => ModelLayer::FinalState,
            Layer::Dropout { p } => ModelLayer::Dropout(p as f32),
        };
        Ok((layer, scales))
    }
}

/// Takes a matrix from a state dict. Sets `scales` if it is quantized.
fn take_matrix(dict: &mut StateDict, name: &str, scales: &mut Option<Scales>) -> Result<Array2<f32>> {
    let (values, matrix_scales) = dict.take_matrix(name)?;
    *scales = matrix_scales;
    into_dimension::<Ix2>(name, values, "a matrix")
}

/// Takes an array with a certain number of axes from a state dict. `expected` describes its shape.
fn take_array<D: Dimension>(dict: &mut StateDict, name: &str, expected: &str) -> Result<ndarray::Array<f32, D>> {
    into_dimension(name, dict.take_any(name)?, expected)
}

/// The array with a certain number of axes. `expected` describes its shape.
fn into_dimension<D: Dimension>(name: &str, array: ArrayD<f32>, expected: &str) -> Result<ndarray::Array<f32, D>> {
    let shape = format!("{:?}", array.shape());
    array.into_dimensionality().map_err(|_| Error::shape(format!("tensor `{name}`"), expected, shape))
}

impl ModelWeights {
    /// The metadata key by which a saved model is recognized. Its text is the chain of layers as JSON.
    pub const METADATA_KEY: &str = "lstm.model";

    /// Saves the model to a safetensors file, which is replaced atomically. [`open`](Self::open) reads it with every
    /// bit unchanged.
    ///
    /// The tensors have the names of PyTorch's modules below each layer's name: `emb.weight`; `rec.weight_ih_l0` and so
    /// on; `lin.weight`, `lin.bias`. A quantized matrix is two tensors, such as `lin.weight.q` and `lin.weight.scale`. Initial states are `rec.initial_h` and `rec.initial_c`. The metadata are those of
    /// the model, the configuration of each LSTM whose options do not follow from its tensors, and the chain of layers
    /// under the key `lstm.model`:
    ///
    /// ```json
    /// {"version":1,"layers":[{"type":"lstm","name":"rec","initial_state":false},{"type":"last_step"},
    ///  {"type":"linear","name":"lin","bias":true},{"type":"softmax"}],"skip":false,"input_gain":1.0,"output_gain":1.0}
    /// ```
    ///
    /// The other types are `embedding` with `name`, `relu`, `sigmoid`, `tanh`, `hard_sigmoid` with `alpha` and `beta`,
    /// `log_softmax`, `final_state`, and `dropout` with `p`.
    ///
    /// # Errors
    /// [`Error::Format`] if the model's own metadata have a key that the file needs; [`Error::Io`] if the file cannot be
    /// written. An existing file is unchanged after an error.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.writer()?.save(path)
    }

    /// The bytes of the file that [`save`](Self::save) writes.
    ///
    /// # Errors
    /// As for [`save`](Self::save), except [`Error::Io`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.writer()?.to_bytes()
    }

    /// Opens a model that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`], which names the file, if it is not a safetensors
    /// file; the errors of [`from_state_dict`](Self::from_state_dict).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_state_dict(StateDict::open(path)?)
    }

    /// Reads a model from the bytes of a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are not a safetensors file; the errors of
    /// [`from_state_dict`](Self::from_state_dict).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_state_dict(StateDict::from_bytes(bytes)?)
    }

    /// Reads a model from a state dict with the metadata key [`METADATA_KEY`](Self::METADATA_KEY).
    ///
    /// # Errors
    /// [`Error::Format`] if the key is missing, if the file is a training checkpoint, or if the text of the key is not a chain of layers of version 1: an unknown type, a
    /// field that is missing or unknown. [`Error::MissingTensor`], [`Error::UnusedTensors`], [`Error::Shape`] or
    /// [`Error::TensorType`] if the tensors are not those of the chain. [`Error::Config`] if the layers do not fit
    /// together; see [`new`](Self::new).
    pub fn from_state_dict(mut dict: StateDict) -> Result<Self> {
        if dict.metadata().contains_key(CHECKPOINT_KEY) && dict.metadata().contains_key(Self::METADATA_KEY) {
            let reason = "expected a saved model, got a training checkpoint: continue the run with ModelTrainer::resume, and \
                          save its model with ModelTrainer::model and ModelWeights::save";
            return Err(Error::format(format!("metadata `{CHECKPOINT_KEY}`"), reason));
        }
        let model = Self::take(&mut dict)?;
        dict.finish()?;
        Ok(model)
    }

    /// Takes the tensors of a model from a state dict, which may have other tensors. See
    /// [`from_state_dict`](Self::from_state_dict).
    pub(crate) fn take(dict: &mut StateDict) -> Result<Self> {
        let mut metadata = dict.metadata().clone();
        let input = format!("metadata `{}`", Self::METADATA_KEY);
        let Some(text) = metadata.remove(Self::METADATA_KEY) else {
            let reason = "expected the layers of a saved model, but the key is missing; of a state dict without layers, \
                          read the LSTM with StateDict::take_lstm";
            return Err(Error::format(input, reason));
        };
        // The version comes first: the fields of another one may differ.
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::format(&*input, e))?;
        if json.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
            let got = json.get("version").map_or("none".into(), ToString::to_string);
            return Err(Error::format(input, format!("expected version {VERSION}, got {got}")));
        }
        let chain: Chain = serde_json::from_str(&text).map_err(|e| Error::format(&*input, e))?;
        for layer in &chain.layers {
            if let Layer::Lstm { name, .. } = layer {
                metadata.remove(&config_key(&format!("{name}.")));
            }
        }
        let layers = chain.layers.into_iter().map(|layer| layer.take(dict)).collect::<Result<Vec<_>>>()?;
        let (layers, scales): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let mut model = ModelWeights::new(layers)?;
        scales.into_iter().enumerate().for_each(|(k, scales)| model.set_scales(k, scales));
        if chain.skip {
            model = model.with_skip()?;
        }
        Ok(model.with_gains(chain.input_gain as f32, chain.output_gain as f32)?.with_metadata(metadata))
    }

    /// A writer with the tensors and metadata of the model.
    pub(crate) fn writer(&self) -> Result<StateDictWriter> {
        let chain = Chain {
            version: VERSION,
            layers: self.layers().iter().map(Layer::of).collect(),
            skip: self.skip(),
            input_gain: self.input_gain().into(),
            output_gain: self.output_gain().into(),
        };
        let input = || format!("metadata `{}`", Self::METADATA_KEY);
        let chain = serde_json::to_string(&chain).map_err(|e| Error::format(input(), e))?;
        let mut writer = StateDictWriter::new();
        for (key, value) in self.metadata() {
            if key == Self::METADATA_KEY {
                return Err(Error::format(input(), "the model's own metadata must not have this key"));
            }
            writer = writer.metadata(key, value);
        }
        writer = writer.metadata(Self::METADATA_KEY, chain);
        let matrix = |writer: StateDictWriter, k, name: &str, weight: &Array2<f32>| {
            let name = format!("{name}.weight");
            match self.quantized(k)? {
                Some(rows) => writer.quantized(&name, [weight.nrows(), weight.ncols()], rows),
                None => writer.tensor(name, weight),
            }
        };
        for (k, layer) in self.layers().iter().enumerate() {
            match layer {
                ModelLayer::Embedding { name, weight } => writer = matrix(writer, k, name, weight)?,
                ModelLayer::Lstm { name, weights, initial_state } => {
                    writer = writer.lstm(&format!("{name}."), weights, TensorNames::PyTorch)?;
                    if let Some(HostState { h, c }) = initial_state {
                        writer = writer.tensor(format!("{name}.initial_h"), h)?;
                        writer = writer.tensor(format!("{name}.initial_c"), c)?;
                    }
                }
                ModelLayer::Linear { name, weight, bias } => {
                    writer = matrix(writer, k, name, weight)?;
                    if let Some(bias) = bias {
                        writer = writer.tensor(format!("{name}.bias"), bias)?;
                    }
                }
                _ => {}
            }
        }
        Ok(writer)
    }
}
