//! `lstm inspect`: shows the contents of a model file, and which backends can run it.

use std::{collections::BTreeMap, fmt, process::ExitCode};

use lstm::{BACKENDS, BackendInfo, LayerSpec, Ops};
use serde::Serialize;
use serde_json::Value;

use crate::{
    backends::{self, describe_paths},
    error::Result,
    model::{self, quoted_list},
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
    format: &'static str,
    names: Vec<String>,
    dtypes: Vec<String>,
    /// All options of the configuration, by name.
    config: BTreeMap<String, Value>,
    config_from: &'static str,
    parameters: usize,
    layers: Vec<Layer>,
    /// Whether the model can run sequences in chunks of steps, rather than only as a whole.
    streams: bool,
    fixed_state: bool,
    fixed_lengths: Option<Vec<usize>>,
    state_inputs: Vec<String>,
    lengths_input: Option<String>,
    unused: Vec<String>,
    backends: Vec<BackendSupport>,
}

#[derive(Serialize)]
struct Layer {
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
        writeln!(
            f,
            "{}: {} of {}, LSTM {}",
            self.model,
            self.format,
            self.dtypes.join(", "),
            quoted_list(&self.names)
        )?;
        writeln!(f, "{} parameters; options, from {}:", self.parameters, self.config_from)?;
        self.config.iter().try_for_each(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            writeln!(f, "  {name:<12} {text}")
        })?;
        for Layer { layer, reverse, input_size, hidden_size, output_size, parameters } in &self.layers {
            let direction = if *reverse { "reverse" } else { "forward" };
            writeln!(
                f,
                "layer {layer} {direction}: {input_size} -> {hidden_size} -> {output_size}, {parameters} parameters"
            )?;
        }
        let streaming_text = if self.streams { "can run in chunks of any length" } else { "needs whole sequences" };
        writeln!(f, "{streaming_text}")?;
        if self.fixed_state || self.fixed_lengths.is_some() {
            writeln!(f, "the graph has constant initial states or sequence lengths")?;
        }
        let inputs: Vec<_> = self.state_inputs.iter().chain(&self.lengths_input).cloned().collect();
        if !inputs.is_empty() {
            writeln!(f, "inputs of the graph for states and lengths: {}", quoted_list(&inputs))?;
        }
        if !self.unused.is_empty() {
            writeln!(f, "not part of this LSTM: {}", quoted_list(&self.unused))?;
        }
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

/// Converts the text of an option's value to JSON: a number, `true`, `false`, `null` for `none`, otherwise a string.
fn option_to_json(text: &str) -> Value {
    match text {
        "none" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    let loaded_model = args.model.load()?;
    let config = loaded_model.weights.config();
    let num_params = |spec: &LayerSpec| spec.params().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let layer = |(k, spec): (usize, LayerSpec)| Layer {
        layer: k / config.num_directions(),
        reverse: spec.reverse,
        input_size: spec.input_size,
        hidden_size: spec.hidden_size,
        output_size: spec.state_size(),
        parameters: num_params(&spec),
    };
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
    output.report(&Report {
        model: path_text(&args.model.path),
        format: loaded_model.format.name(),
        names: loaded_model.names.clone(),
        dtypes: loaded_model.dtypes.clone(),
        config: config.options().into_iter().map(|(name, text)| (name.to_owned(), option_to_json(&text))).collect(),
        config_from: loaded_model.config_source,
        parameters: loaded_model.weights.len(),
        layers: config.layer_specs().into_iter().enumerate().map(layer).collect(),
        streams: config.direction == lstm::Direction::Forward && loaded_model.lengths.is_none(),
        fixed_state: loaded_model.state.is_some(),
        fixed_lengths: loaded_model.lengths.clone(),
        state_inputs: loaded_model.state_inputs.clone(),
        lengths_input: loaded_model.lengths_input.clone(),
        unused: loaded_model.unused_names.clone(),
        backends: BACKENDS.iter().map(backend_support).collect(),
    })?;
    Ok(ExitCode::SUCCESS)
}
