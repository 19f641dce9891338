//! `lstm inspect`: shows the contents of a model file, and which backends can run it.

use std::{collections::BTreeMap, fmt, process::ExitCode};

use lstm::{BACKENDS, BackendInfo, LayerSpec, ModelLayer, ModelWeights, Ops, Precision};
use serde::Serialize;
use serde_json::Value;

use crate::{
    backends::{self, describe_paths},
    error::Result,
    model::{self, GraphPort},
    report::{OutputSettings, path_text},
};

/// Show a model's layers, sizes, options and element types, and which backends can run it on which execution path
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    format: String,
    dtypes: Vec<String>,
    /// Whether the input is tokens rather than features.
    tokens: bool,
    /// Number of features of the input; for tokens, the number of tokens that exist.
    input_size: usize,
    output_size: usize,
    /// Whether the model has one output for each sequence, rather than one for each step.
    returns_last_step: bool,
    /// The layers, from the first to the last.
    layers: Vec<Layer>,
    skip: bool,
    input_gain: f32,
    output_gain: f32,
    /// Text by key that the file carries along.
    metadata: BTreeMap<String, String>,
    parameters: usize,
    /// Whether the model can run sequences in chunks of steps, rather than only as a whole.
    streams: bool,
    /// Inputs and outputs of an ONNX graph.
    ports: Vec<GraphPort>,
    unused: Vec<String>,
    backends: Vec<BackendSupport>,
}

/// A layer of the model. The fields that a kind of layer does not have are `None`.
#[derive(Serialize)]
struct Layer {
    kind: &'static str,
    name: Option<String>,
    input_size: Option<usize>,
    output_size: Option<usize>,
    /// The function and its parameters, or the probability of dropout.
    value: Option<String>,
    parameters: usize,
    /// The precision of the weights, such as `int8`.
    precision: Option<&'static str>,
    lstm: Option<LstmDetails>,
}

#[derive(Serialize)]
struct LstmDetails {
    /// All options of the configuration, by name.
    config: BTreeMap<String, Value>,
    /// Whether the file has an initial state for this LSTM.
    initial_state: bool,
    stack: Vec<StackLayer>,
}

/// A layer of a stack of LSTM layers, in one direction.
#[derive(Serialize)]
struct StackLayer {
    layer: usize,
    reverse: bool,
    input_size: usize,
    hidden_size: usize,
    output_size: usize,
    parameters: usize,
}

#[derive(Serialize)]
struct BackendSupport {
    backend: String,
    path: Option<String>,
    arithmetic: Option<String>,
    /// Whether the backend's results are bit-identical to those of other exact backends; `None` if it can't be used.
    exact: Option<bool>,
    why_not: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { model, format, input_size, output_size, parameters, .. } = self;
        write!(f, "{model}: {format}")?;
        if !self.dtypes.is_empty() {
            write!(f, " of {}", self.dtypes.join(", "))?;
        }
        writeln!(f, ", {parameters} parameters")?;
        let input =
            if self.tokens { format!("tokens 0 to {}", input_size - 1) } else { format!("{input_size} features") };
        let per = if self.returns_last_step { "sequence" } else { "step" };
        writeln!(f, "{input} per step -> {output_size} outputs per {per}")?;
        self.layers.iter().enumerate().try_for_each(|(k, layer)| write!(f, "{k:>3} {layer}"))?;
        if self.skip {
            writeln!(f, "skip connection: the first features of the input are added to the output")?;
        }
        if (self.input_gain, self.output_gain) != (1.0, 1.0) {
            writeln!(f, "gain of the input {}, of the output {}", self.input_gain, self.output_gain)?;
        }
        self.metadata.iter().try_for_each(|(key, value)| writeln!(f, "{key}: {}", shortened(value)))?;
        let streaming_text = if self.streams { "can run in chunks of any length" } else { "needs whole sequences" };
        writeln!(f, "{streaming_text}")?;
        for GraphPort { name, is_output, holds, .. } in &self.ports {
            writeln!(f, "{} of the graph `{name}`: {holds}", if *is_output { "output" } else { "input" })?;
        }
        model::write_unused(f, &self.unused)?;
        let width = backends::max_name_len();
        for BackendSupport { backend, path, arithmetic, why_not, .. } in &self.backends {
            match (path, arithmetic) {
                (Some(path), Some(arithmetic)) => writeln!(f, "{backend:<width$} {path}, arithmetic {arithmetic}")?,
                _ => writeln!(f, "{backend:<width$} can't run this model: {}", why_not.as_deref().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        if let Some(value) = &self.value {
            write!(f, " {value}")?;
        }
        if let (Some(input), Some(output)) = (self.input_size, self.output_size) {
            write!(f, ": {input} -> {output}, {} parameters", self.parameters)?;
        }
        if let Some(precision) = self.precision.filter(|precision| *precision != "f32") {
            write!(f, " in {precision}")?;
        }
        writeln!(f)?;
        let Some(LstmDetails { config, initial_state, stack }) = &self.lstm else { return Ok(()) };
        let option = |(name, value): (&String, &Value)| {
            format!("{name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        writeln!(f, "      {}", config.iter().map(option).collect::<Vec<_>>().join(", "))?;
        if *initial_state {
            writeln!(f, "      with an initial state of its own")?;
        }
        for StackLayer { layer, reverse, input_size, hidden_size, output_size, parameters } in stack {
            let direction = if *reverse { "reverse" } else { "forward" };
            writeln!(
                f,
                "      layer {layer} {direction}: {input_size} -> {hidden_size} -> {output_size}, {parameters} parameters"
            )?;
        }
        Ok(())
    }
}

/// The first line of a text, and at most 100 characters of it.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(MAX_CHARS).collect();
    if short.len() < text.len() { format!("{short}...") } else { short }
}

/// Describes a layer.
fn describe_layer(weights: &ModelWeights, index: usize) -> Layer {
    let layer = &weights.layers()[index];
    let sizes = match layer {
        ModelLayer::Embedding { weight, .. } => Some((weight.nrows(), weight.ncols())),
        ModelLayer::Lstm { weights, .. } => Some((weights.config().input_size, weights.config().output_size())),
        ModelLayer::Linear { weight, .. } => Some((weight.ncols(), weight.nrows())),
        _ => None,
    };
    let (value, lstm) = match layer {
        ModelLayer::Activation(activation) => (Some(activation.to_string()), None),
        ModelLayer::Dropout(probability) => (Some(probability.to_string()), None),
        ModelLayer::Lstm { weights, initial_state, .. } => {
            let config = weights.config();
            let options = config.options().into_iter();
            let details = LstmDetails {
                config: options.map(|(name, text)| (name.to_owned(), option_to_json(&text))).collect(),
                initial_state: initial_state.is_some(),
                stack: config
                    .layer_specs()
                    .into_iter()
                    .enumerate()
                    .map(|(k, spec)| describe_stack_layer(k / config.num_directions(), &spec))
                    .collect(),
            };
            (None, Some(details))
        }
        _ => (None, None),
    };
    Layer {
        kind: layer.kind(),
        name: layer.name().map(str::to_owned),
        input_size: sizes.map(|sizes| sizes.0),
        output_size: sizes.map(|sizes| sizes.1),
        value,
        parameters: layer.num_params(),
        precision: weights.layer_precision(index).map(Precision::name),
        lstm,
    }
}

fn describe_stack_layer(layer: usize, spec: &LayerSpec) -> StackLayer {
    StackLayer {
        layer,
        reverse: spec.reverse,
        input_size: spec.input_size,
        hidden_size: spec.hidden_size,
        output_size: spec.state_size(),
        parameters: spec.params().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum(),
    }
}

/// Converts the text of an option's value to JSON: a number, `true`, `false`, `null` for `none`, otherwise a string.
fn option_to_json(text: &str) -> Value {
    match text {
        "none" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    let loaded_model = args.model.load()?;
    let weights = &loaded_model.weights;
    let backend_support = |info: &BackendInfo| {
        let result = backends::open_device(info, backends::BackendOptions::default()).and_then(|device| {
            let model = backends::load_model(&device, &loaded_model.weights, false)?;
            Ok((describe_paths(&model.paths()), device.arithmetic()))
        });
        let backend = info.name.to_owned();
        match result {
            Ok((path, arithmetic)) => BackendSupport {
                backend,
                path: Some(path),
                arithmetic: Some(arithmetic.to_string()),
                exact: Some(arithmetic.is_exact()),
                why_not: None,
            },
            Err(error) => {
                BackendSupport { backend, path: None, arithmetic: None, exact: None, why_not: Some(error.to_string()) }
            }
        }
    };
    let input_size = match weights.layers().first() {
        Some(ModelLayer::Embedding { weight, .. }) => weight.nrows(),
        _ => weights.input_size(),
    };
    output.report(&Report {
        model: path_text(&args.model.path),
        format: loaded_model.format.to_string(),
        dtypes: loaded_model.dtypes.clone(),
        tokens: weights.reads_tokens(),
        input_size,
        output_size: weights.output_size(),
        returns_last_step: weights.returns_last_step(),
        layers: (0..weights.layers().len()).map(|k| describe_layer(weights, k)).collect(),
        skip: weights.skip(),
        input_gain: weights.input_gain(),
        output_gain: weights.output_gain(),
        metadata: weights.metadata().clone(),
        parameters: weights.num_params(),
        streams: loaded_model.streams(),
        ports: loaded_model.ports.clone(),
        unused: loaded_model.unused_names.clone(),
        backends: BACKENDS.iter().map(backend_support).collect(),
    })?;
    Ok(ExitCode::SUCCESS)
}
