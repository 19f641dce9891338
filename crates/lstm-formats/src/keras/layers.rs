//! Converts the layers of a Keras model.
//!
//! A layer with `go_backwards` reads a sequence from its end, and returns the outputs in the order in which it computed
//! them, so the layers after it see a reversed sequence. [`Builder`] keeps track of that: a layer that reads a reversed
//! sequence backwards reads it in the original order. A model must not return a reversed sequence.

use std::collections::BTreeSet;

use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2, concatenate, s};

use lstm_core::{
    Activation, Bias, Direction, GateActivation, GateActivations, LayerWeights, LstmConfig, ModelLayer, ModelWeights,
    Weights,
};

use super::{
    config::{LayerConfig, Place, identify},
    store::Store,
};
use crate::json::{Json, Object};

/// Options of layers that have no effect on the results of a trained model.
const WITHOUT_EFFECT: [&str; 22] = [
    "name",
    "trainable",
    "seed",
    "noise_shape",
    "input_length",
    "activity_regularizer",
    "kernel_initializer",
    "kernel_regularizer",
    "kernel_constraint",
    "recurrent_initializer",
    "recurrent_regularizer",
    "recurrent_constraint",
    "bias_initializer",
    "bias_regularizer",
    "bias_constraint",
    "embeddings_initializer",
    "embeddings_regularizer",
    "embeddings_constraint",
    "optional",
    "data_format",
    "implementation",
    "use_cudnn",
];

/// Options of recurrent layers that have no effect on the results of a trained model.
const WITHOUT_EFFECT_LSTM: [&str; 7] =
    ["dropout", "recurrent_dropout", "unit_forget_bias", "unroll", "stateful", "return_state", "zero_output_for_mask"];

/// Element types in which a model computes. The parameters are stored in the first part of the name.
const DTYPES: [&str; 6] = ["float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"];

/// Makes a model of layers that are added one after the other.
pub(super) struct Builder {
    layers: Vec<ModelLayer>,
    store: Store,
    /// Whether Keras 2 wrote the file.
    is_keras_2: bool,
    names: BTreeSet<String>,
    /// Whether the output is a sequence, after the layers so far. It is not known before the first layer.
    is_sequence: Option<bool>,
    /// Whether the model reads one step only, as the file says.
    has_one_step: bool,
    /// The LSTM with `go_backwards` that makes the output of the layers so far a reversed sequence.
    reversed_by: Option<String>,
    /// Number of features of the output of the layers so far, if it is known.
    size: Option<usize>,
}

impl Builder {
    pub(super) fn new(store: Store, is_keras_2: bool) -> Self {
        Builder {
            layers: Vec::new(),
            store,
            is_keras_2,
            names: BTreeSet::new(),
            is_sequence: None,
            has_one_step: false,
            reversed_by: None,
            size: None,
        }
    }

    /// Adds a layer.
    pub(super) fn add(&mut self, layer: LayerConfig) -> Result<(), String> {
        let at = format!("layer `{}` ({})", layer.name, layer.class);
        self.store.check_name(&layer.place, &layer.name).map_err(|why| format!("{at}: {why}"))?;
        self.add_part(layer, "").map_err(|why| format!("{at}: {why}"))
    }

    /// The model, the element types of its parameters, and whether it is for a single time step.
    pub(super) fn finish(self) -> Result<(ModelWeights, Vec<String>, bool), String> {
        if !self.layers.iter().any(|layer| matches!(layer, ModelLayer::Lstm { .. })) {
            return Err("expected an LSTM layer, found none".into());
        }
        if let Some(name) = self.reversed_by {
            return Err(format!(
                "layer `{name}` (LSTM): `go_backwards` with `return_sequences` returns the time steps in reverse order, \
                 as does the model; remove `go_backwards`, or add a second LSTM with it"
            ));
        }
        let dtypes = self.store.finish()?;
        Ok((ModelWeights::new(self.layers).map_err(|error| error.to_string())?, dtypes, self.has_one_step))
    }

    #[cfg(test)]
    pub(super) fn into_layers(self) -> Vec<ModelLayer> {
        self.layers
    }

    /// Adds a layer, or the layer inside of another one. `part` is the path from the outer layer to it, for parameters.
    fn add_part(&mut self, layer: LayerConfig, part: &str) -> Result<(), String> {
        let LayerConfig { class, name, mut config, place } = layer;
        self.take_common(&mut config)?;
        match &*class {
            "InputLayer" => {
                for key in ["sparse", "ragged"] {
                    if config.take(key).is_some_and(|value| value != Json::Bool(false)) {
                        return Err(format!("`{key}` inputs are not supported"));
                    }
                }
            }
            "Embedding" => self.add_embedding(&name, &mut config, &place)?,
            "LSTM" | "CuDNNLSTM" => self.add_lstm(&class, &name, &mut config, &place)?,
            "Bidirectional" => self.add_bidirectional(&name, &mut config, &place)?,
            "TimeDistributed" => {
                let mut inner = config.require("layer")?.object("`layer`")?;
                let (class, inner_name) = identify(&mut inner)?;
                if !["Dense", "Activation", "Dropout", "ReLU", "Softmax"].contains(&&*class) {
                    return Err(format!("expected a Dense layer inside, got `{inner_name}` ({class})"));
                }
                if self.is_sequence == Some(false) {
                    return Err("expected a sequence, got a single step".into());
                }
                let config = inner.require("config")?.object("`config`")?;
                self.add_part(LayerConfig { class, name: name.clone(), config, place }, "/layer")?;
            }
            "Dense" => self.add_dense(&name, &mut config, &place, part)?,
            "Activation" => {
                let activation = config.require("activation")?;
                self.add_activation(activation)?;
            }
            "ReLU" => {
                for (key, default) in [("negative_slope", 0.0), ("threshold", 0.0)] {
                    if config.take(key).is_some_and(|value| value != Json::Number(default)) {
                        return Err(format!("`{key}`: expected {default}"));
                    }
                }
                if let Some(max) = config.take("max_value") {
                    return Err(format!("`max_value`: expected none, got {max}"));
                }
                self.layers.push(ModelLayer::Activation(Activation::Relu));
            }
            "Softmax" => {
                if config.take("axis").is_some_and(|axis| axis != Json::Number(-1.0)) {
                    return Err("`axis`: expected -1, the features".into());
                }
                self.layers.push(ModelLayer::Activation(Activation::Softmax));
            }
            "Dropout" | "SpatialDropout1D" => {
                let rate = config.require("rate")?.number("`rate`")?;
                self.layers.push(ModelLayer::Dropout(rate as f32));
            }
            // These have an effect in training only.
            "GaussianNoise" | "GaussianDropout" | "AlphaDropout" | "ActivityRegularization" => {
                for key in ["stddev", "rate", "l1", "l2"] {
                    config.take(key);
                }
            }
            "Identity" => {}
            "Flatten" => {
                if !self.take_only_step() {
                    return Err("it joins the time steps of a sequence; expected a single step before it".into());
                }
            }
            "Reshape" => {
                let target = config.require("target_shape")?.list("`target_shape`")?;
                self.reshape(&target)?;
            }
            "GRU" | "SimpleRNN" | "RNN" | "ConvLSTM1D" | "ConvLSTM2D" | "CuDNNGRU" => {
                return Err("a recurrent layer of another kind; of those, only LSTM can be opened".into());
            }
            "Masking" => {
                return Err("it skips time steps by their values, which is not supported; remove it, and give each \
                            sequence with its length instead"
                    .into());
            }
            _ => {
                return Err("layers of this class can't be opened; expected Embedding, LSTM, Bidirectional, \
                            TimeDistributed, Dense, Activation, Dropout or Flatten"
                    .into());
            }
        }
        config.finish("the layer")
    }

    /// Removes the time axis of the output if it has exactly one step. Returns whether the output has no time axis now.
    fn take_only_step(&mut self) -> bool {
        if self.is_sequence == Some(true) && self.has_one_step {
            self.layers.push(ModelLayer::LastStep);
            self.is_sequence = Some(false);
        }
        self.is_sequence == Some(false)
    }

    /// `Reshape`, which may add or take an axis of one step.
    fn reshape(&mut self, target: &[Json]) -> Result<(), String> {
        let is = |size: &Json, n: usize| *size == Json::Number(n as f64);
        let features = self.size;
        let is_features = |size: &Json| *size == Json::Number(-1.0) || features.is_some_and(|n| is(size, n));
        let is_given = !self.layers.iter().any(|layer| matches!(layer, ModelLayer::Lstm { .. }));
        match target {
            [features] if is_features(features) && self.take_only_step() => Ok(()),
            [steps, features]
                if is(steps, 1) && is_features(features) && self.is_sequence == Some(false) && is_given =>
            {
                (self.is_sequence, self.has_one_step) = (Some(true), true);
                Ok(())
            }
            [steps, features] if is(steps, 1) && is_features(features) && self.has_one_step => Ok(()),
            _ => Err("it changes the order of values; expected one that adds or takes an axis of one step".into()),
        }
    }

    /// Takes the options that all layers have, and the shape of the input.
    fn take_common(&mut self, config: &mut Object) -> Result<(), String> {
        for key in WITHOUT_EFFECT {
            config.take(key);
        }
        let dtype = match config.take("dtype") {
            Some(Json::Object(mut policy)) => match policy.take("config") {
                Some(Json::Object(mut inner)) => inner.take("name"),
                _ => None,
            },
            other => other,
        };
        if let Some(Json::Text(name)) = &dtype
            && !DTYPES.contains(&&**name)
            // The tokens of an Embedding.
            && !(name.starts_with("int") || name.starts_with("uint"))
        {
            return Err(format!("`dtype`: expected a floating-point type, got `{name}`"));
        }
        if let Some(quantization) = config.take("quantization_config") {
            return Err(format!("quantized layers are not supported, got {}", quantization.describe()));
        }
        for key in ["batch_shape", "batch_input_shape"] {
            let Some(shape) = config.take(key) else { continue };
            let shape = shape.list("the shape of the input")?;
            let is_sequence = match shape.len() {
                2 => false,
                3 => true,
                _ => return Err(format!("expected an input (batch, steps, features), got {} sizes", shape.len())),
            };
            if self.layers.is_empty() {
                self.is_sequence = Some(is_sequence);
                self.has_one_step = is_sequence && shape[1] == Json::Number(1.0);
                self.size = shape.last().filter(|size| **size != Json::Null).map(|n| n.size("a size")).transpose()?;
            }
        }
        Ok(())
    }

    /// A name for a layer in a state dict: without dots and slashes, and unique.
    fn name(&mut self, name: &str) -> String {
        let base = name.replace(['.', '/'], "_");
        let base = if base.is_empty() { "layer".to_owned() } else { base };
        let mut unique = base.clone();
        for k in 2.. {
            if self.names.insert(unique.clone()) {
                break;
            }
            unique = format!("{base}_{k}");
        }
        unique
    }

    /// Number of features of the input of a layer. A model that was built by a call may have it in its kernel only.
    fn inputs(&self, place: &Place, part: &str) -> Result<usize, String> {
        match self.size {
            Some(size) => Ok(size),
            None => self.store.rows(place, part),
        }
    }

    fn matrix(
        &mut self,
        place: &Place,
        part: &str,
        parameter: (usize, &str),
        shape: (usize, usize),
    ) -> Result<Array2<f32>, String> {
        let array = self.store.take(place, part, parameter, &[shape.0, shape.1])?;
        array.into_dimensionality::<Ix2>().map_err(|error| error.to_string())
    }

    fn vector(&mut self, place: &Place, part: &str, index: usize, len: usize) -> Result<Array1<f32>, String> {
        let array = self.store.take(place, part, (index, "bias"), &[len])?;
        array.into_dimensionality::<Ix1>().map_err(|error| error.to_string())
    }

    fn add_embedding(&mut self, name: &str, config: &mut Object, place: &Place) -> Result<(), String> {
        let mask = config.take("mask_zero").map_or(Ok(false), |mask| mask.flag("`mask_zero`"))?;
        if mask {
            return Err("`mask_zero` skips the time steps of token 0, which is not supported; train without it, and \
                        give each sequence with its length instead"
                .into());
        }
        let (rows, size) = (config.take_size("input_dim", None)?, config.take_size("output_dim", None)?);
        config.finish("the layer")?;
        let weight = self.matrix(place, "", (0, "embeddings"), (rows, size))?;
        let name = self.name(name);
        self.layers.push(ModelLayer::Embedding { name, weight });
        (self.size, self.is_sequence) = (Some(size), Some(true));
        Ok(())
    }

    fn add_dense(&mut self, name: &str, config: &mut Object, place: &Place, part: &str) -> Result<(), String> {
        let units = config.take_size("units", None)?;
        let has_bias = flag(config, "use_bias", true)?;
        let activation = config.take("activation").unwrap_or(Json::Text("linear".into()));
        config.finish("the layer")?;
        let inputs = self.inputs(place, part)?;
        let weight = self.matrix(place, part, (0, "kernel"), (inputs, units))?;
        let weight = weight.t().as_standard_layout().into_owned();
        let bias = if has_bias { Some(self.vector(place, part, 1, units)?) } else { None };
        let name = self.name(name);
        self.layers.push(ModelLayer::Linear { name, weight, bias });
        self.size = Some(units);
        self.add_activation(activation)
    }

    fn add_activation(&mut self, activation: Json) -> Result<(), String> {
        let name = activation_name(activation)?;
        let activation = match &*name {
            "linear" => return Ok(()),
            "relu" => Activation::Relu,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "hard_sigmoid" => {
                let (alpha, beta) = hard_sigmoid(self.is_keras_2);
                Activation::HardSigmoid { alpha, beta }
            }
            "softmax" => Activation::Softmax,
            "log_softmax" => Activation::LogSoftmax,
            _ => {
                return Err(format!(
                    "expected the activation linear, relu, sigmoid, tanh, hard_sigmoid, softmax or log_softmax, got \
                     `{name}`"
                ));
            }
        };
        self.layers.push(ModelLayer::Activation(activation));
        Ok(())
    }

    fn add_lstm(&mut self, class: &str, name: &str, config: &mut Object, place: &Place) -> Result<(), String> {
        let options = LstmOptions::take(class, config, self.is_keras_2)?;
        config.finish("the layer")?;
        let is_reverse = options.go_backwards != self.reversed_by.is_some();
        let direction = if is_reverse { Direction::Reverse } else { Direction::Forward };
        self.push_lstm(name, &options, direction, place, &["/cell"])?;
        self.reversed_by = (is_reverse && options.return_sequences).then(|| name.to_owned());
        Ok(())
    }

    fn add_bidirectional(&mut self, name: &str, config: &mut Object, place: &Place) -> Result<(), String> {
        let merge = match config.take("merge_mode") {
            Some(Json::Text(mode)) if ["concat", "sum", "ave"].contains(&&*mode) => mode,
            Some(Json::Text(mode)) => return Err(format!("`merge_mode`: expected concat, sum or ave, got `{mode}`")),
            _ => return Err("`merge_mode`: expected concat, sum or ave, got none".into()),
        };
        let mut options = Vec::new();
        for (key, go_backwards) in [("layer", false), ("backward_layer", true)] {
            let Some(layer) = config.take(key) else { continue };
            let mut layer = layer.object(key)?;
            let (class, inner_name) = identify(&mut layer)?;
            let at = |why: String| format!("`{key}`, `{inner_name}` ({class}): {why}");
            if !["LSTM", "CuDNNLSTM"].contains(&&*class) {
                return Err(at("expected an LSTM".into()));
            }
            let mut config = layer.require("config").and_then(|config| config.object("`config`")).map_err(at)?;
            self.take_common(&mut config).map_err(at)?;
            let layer = LstmOptions::take(&class, &mut config, self.is_keras_2).map_err(at)?;
            config.finish("the layer").map_err(at)?;
            if layer.go_backwards != go_backwards {
                return Err(at(format!("`go_backwards`: expected {go_backwards}")));
            }
            options.push(LstmOptions { go_backwards: false, ..layer });
        }
        config.finish("the layer")?;
        // Keras's files of one layer mean a backward layer of the same options.
        if options.iter().any(|layer| *layer != options[0]) {
            return Err("expected a backward layer with the options of the forward layer".into());
        }
        let options = options.into_iter().next().ok_or("expected the key `layer`, which is missing")?;
        if let Some(other) = &self.reversed_by {
            return Err(format!(
                "it reads the reversed sequence that layer `{other}` returns; expected the original order"
            ));
        }
        let parts = ["/forward_layer/cell", "/backward_layer/cell"];
        self.push_lstm(name, &options, Direction::Bidirectional, place, &parts)?;
        let factor = match &*merge {
            "sum" => 1.0,
            "ave" => 0.5,
            _ => return Ok(()),
        };
        // A linear layer adds the directions.
        let half = Array2::eye(options.units) * factor;
        let weight = concatenate(ndarray::Axis(1), &[half.view(), half.view()]).map_err(|error| error.to_string())?;
        let name = self.name(&format!("{name}_{merge}"));
        self.layers.push(ModelLayer::Linear { name, weight, bias: None });
        self.size = Some(options.units);
        Ok(())
    }

    /// Adds an LSTM. `parts` are the paths from the layer to the cell of each direction.
    fn push_lstm(
        &mut self,
        name: &str,
        options: &LstmOptions,
        direction: Direction,
        place: &Place,
        parts: &[&str],
    ) -> Result<(), String> {
        if self.is_sequence == Some(false) {
            return Err("expected a sequence as input, (batch, steps, features)".into());
        }
        let (inputs, units) = (self.inputs(place, parts[0])?, options.units);
        let bias = if options.use_bias { Bias::One } else { Bias::None };
        let config = LstmConfig::new(inputs, units).direction(direction).bias(bias).activations(options.activations);
        config.validate().map_err(|error| error.to_string())?;
        let gates = 4 * units;
        let mut layers = Vec::new();
        for (spec, part) in config.layer_specs().into_iter().zip(parts) {
            // Keras's gates i, f, c, o have the order of PyTorch's i, f, g, o.
            let kernel = self.matrix(place, part, (0, "kernel"), (inputs, gates))?;
            let recurrent_kernel = self.matrix(place, part, (1, "recurrent_kernel"), (units, gates))?;
            let kernels = [kernel, recurrent_kernel];
            let kernels = if options.is_cudnn { kernels.map(from_cudnn) } else { kernels.map(Array2::reversed_axes) };
            let mut arrays: Vec<ArrayD<f32>> = kernels.map(Array2::into_dyn).into();
            if options.is_cudnn {
                // The biases of the input and of the recurrent kernel.
                let bias = self.vector(place, part, 2, 2 * gates)?;
                arrays.push((&bias.slice(s![..gates]) + &bias.slice(s![gates..])).into_dyn());
            } else if options.use_bias {
                arrays.push(self.vector(place, part, 2, gates)?.into_dyn());
            }
            layers.push(LayerWeights::new(spec, arrays).map_err(|error| error.to_string())?);
        }
        let weights = Weights::new(config, layers).map_err(|error| error.to_string())?;
        self.size = Some(weights.config().output_size());
        let name = self.name(name);
        self.layers.push(ModelLayer::Lstm { name, weights: weights.into(), initial_state: None });
        self.is_sequence = Some(options.return_sequences);
        if !options.return_sequences {
            self.layers.push(ModelLayer::FinalState);
        }
        Ok(())
    }
}

/// The weights `[4 * units, inputs]` of a kernel `[inputs, 4 * units]` of `CuDNNLSTM`. The block of each gate is reshaped, not
/// transposed: its elements are a row-major matrix `[units, inputs]`.
fn from_cudnn(kernel: Array2<f32>) -> Array2<f32> {
    let (inputs, units) = (kernel.nrows(), kernel.ncols() / 4);
    let gates = (0..4)
        .flat_map(|gate| kernel.slice(s![.., gate * units..(gate + 1) * units]).iter().copied().collect::<Vec<_>>());
    Array2::from_shape_vec((4 * units, inputs), gates.collect()).expect("the number of elements is the same")
}

/// The options of an LSTM layer that determine its results.
#[derive(PartialEq)]
struct LstmOptions {
    /// Whether the parameters are those of the class `CuDNNLSTM` of Keras 2.
    is_cudnn: bool,
    activations: GateActivations,
    units: usize,
    use_bias: bool,
    return_sequences: bool,
    go_backwards: bool,
}

impl LstmOptions {
    fn take(class: &str, config: &mut Object, is_keras_2: bool) -> Result<Self, String> {
        for key in WITHOUT_EFFECT_LSTM {
            config.take(key);
        }
        let defaults = GateActivations::default();
        let output = gate_activation(config, "activation", defaults.output, is_keras_2)?;
        let gate = gate_activation(config, "recurrent_activation", defaults.gate, is_keras_2)?;
        if flag(config, "time_major", false)? {
            return Err("`time_major` is not supported; expected (batch, steps, features)".into());
        }
        Ok(LstmOptions {
            is_cudnn: class == "CuDNNLSTM",
            activations: GateActivations { gate, candidate: output, output },
            units: config.take_size("units", None)?,
            use_bias: flag(config, "use_bias", true)?,
            return_sequences: flag(config, "return_sequences", false)?,
            go_backwards: flag(config, "go_backwards", false)?,
        })
    }
}

/// Alpha and beta of Keras's hard sigmoid, which changed with Keras 3.
fn hard_sigmoid(is_keras_2: bool) -> (f32, f32) {
    (if is_keras_2 { 0.2 } else { 1.0 / 6.0 }, 0.5)
}

/// The function of an LSTM with the option `key`.
fn gate_activation(
    config: &mut Object,
    key: &str,
    default: GateActivation,
    is_keras_2: bool,
) -> Result<GateActivation, String> {
    let Some(function) = config.take(key) else { return Ok(default) };
    match &*activation_name(function)? {
        "sigmoid" => Ok(GateActivation::Sigmoid),
        "tanh" => Ok(GateActivation::Tanh),
        "relu" => Ok(GateActivation::Relu),
        "hard_sigmoid" => {
            let (alpha, beta) = hard_sigmoid(is_keras_2);
            Ok(GateActivation::HardSigmoid { alpha, beta })
        }
        name => Err(format!("`{key}`: expected sigmoid, tanh, relu or hard_sigmoid, got `{name}`")),
    }
}

fn flag(config: &mut Object, key: &str, default: bool) -> Result<bool, String> {
    config.take(key).map_or(Ok(default), |flag| flag.flag(&format!("`{key}`")))
}

/// The name of an activation function. A function is a text, or an object whose `config` is the text. Keras keeps the
/// package of a user's function only if it was registered: as `package>name`, or in the other keys of the object.
fn activation_name(activation: Json) -> Result<String, String> {
    let of_user = |name: &str| {
        Err(format!(
            "expected an activation function of Keras, got the user's function `{name}`, whose code is not in the file"
        ))
    };
    let name = match activation {
        Json::Object(mut function) => {
            let is_of_keras = |value: Option<Json>, own: &str| match value {
                None | Some(Json::Null) => true,
                Some(Json::Text(text)) => {
                    text == own || ["keras", "tf_keras"].contains(&text.split('.').next().unwrap_or_default())
                }
                Some(_) => false,
            };
            let has_other_origin = !is_of_keras(function.take("module"), "builtins")
                || !is_of_keras(function.take("registered_name"), "function")
                || !is_of_keras(function.take("package"), "builtins");
            match (function.take("config"), function.take("class_name")) {
                (Some(Json::Text(name)), _) if has_other_origin => return of_user(&name),
                (Some(Json::Text(name)), _) => name,
                (_, Some(Json::Text(class))) => {
                    return Err(format!("expected an activation function, got the layer `{class}`"));
                }
                _ => return Err("expected an activation function".into()),
            }
        }
        other => other.text("the activation")?,
    };
    if name.contains('>') { of_user(&name) } else { Ok(name) }
}
