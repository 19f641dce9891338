//! `lstm inspect`: what a file holds, and what can run it.

use std::{collections::BTreeMap, fmt, process::ExitCode};

use lstm_core::LayerSpec;
use serde::Serialize;
use serde_json::Value;

use crate::{
    backends::{self, KNOWN, Known, describe, describe_paths},
    error::Result,
    model::{self, list},
    report::{Output, text},
};

/// Show a model's layers, sizes, options and element types, and which backends can run it, by which code
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
    /// Every option by name.
    config: BTreeMap<String, Value>,
    config_from: &'static str,
    parameters: usize,
    layers: Vec<Layer>,
    /// Whether it can be run chunk by chunk.
    streams: bool,
    fixed_state: bool,
    fixed_lengths: Option<Vec<usize>>,
    state_inputs: Vec<String>,
    lengths_input: Option<String>,
    unused: Vec<String>,
    backends: Vec<Runs>,
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
struct Runs {
    backend: String,
    path: Option<String>,
    arithmetic: Option<String>,
    /// Whether it gives the bits that all exact backends give.
    exact: Option<bool>,
    why_not: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} of {}, LSTM {}", self.model, self.format, self.dtypes.join(", "), list(&self.names))?;
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
        let streams = if self.streams { "runs in chunks of any length" } else { "needs whole sequences" };
        writeln!(f, "{streams}")?;
        if self.fixed_state || self.fixed_lengths.is_some() {
            writeln!(f, "the graph fixes initial states or lengths")?;
        }
        let inputs: Vec<_> = self.state_inputs.iter().chain(&self.lengths_input).cloned().collect();
        if !inputs.is_empty() {
            writeln!(f, "inputs of the graph for states and lengths: {}", list(&inputs))?;
        }
        if !self.unused.is_empty() {
            writeln!(f, "not part of this LSTM: {}", list(&self.unused))?;
        }
        let width = backends::width();
        for Runs { backend, path, arithmetic, why_not, .. } in &self.backends {
            match (path, arithmetic) {
                (Some(path), Some(arithmetic)) => writeln!(f, "{backend:<width$} {path}, arithmetic {arithmetic}")?,
                _ => writeln!(f, "{backend:<width$} can't run it: {}", why_not.as_deref().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

/// An option's value: a number, `true` or `false`, `null` for none, else a word.
fn value(text: &str) -> Value {
    match text {
        "none" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let loaded = args.model.load()?;
    let config = loaded.weights.config();
    let size = |spec: &LayerSpec| spec.params().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let layer = |(k, spec): (usize, LayerSpec)| Layer {
        layer: k / config.num_directions(),
        reverse: spec.reverse,
        input_size: spec.input_size,
        hidden_size: spec.hidden_size,
        output_size: spec.state_size(),
        parameters: size(&spec),
    };
    let runs = |&known: &Known| {
        let tried = backends::open(known, backends::Options::default()).and_then(|device| {
            let model = device.load(&loaded.weights, false)?;
            Ok((describe_paths(&model.paths()), device.arithmetic()))
        });
        let backend = known.name.to_owned();
        match tried {
            Ok((path, arithmetic)) => Runs {
                backend,
                path: Some(path),
                arithmetic: Some(describe(&arithmetic)),
                exact: Some(arithmetic.is_exact()),
                why_not: None,
            },
            Err(error) => Runs { backend, path: None, arithmetic: None, exact: None, why_not: Some(error.to_string()) },
        }
    };
    let described = config.to_string();
    let options = described.split(' ').filter_map(|option| option.split_once('='));
    output.report(&Report {
        model: text(&args.model.path),
        format: loaded.kind.name(),
        names: loaded.names.clone(),
        dtypes: loaded.dtypes.clone(),
        config: options.map(|(name, text)| (name.to_owned(), value(text))).collect(),
        config_from: loaded.config_from,
        parameters: loaded.weights.len(),
        layers: config.layer_specs().into_iter().enumerate().map(layer).collect(),
        streams: config.direction == lstm_core::Direction::Forward && loaded.lengths.is_none(),
        fixed_state: loaded.state.is_some(),
        fixed_lengths: loaded.lengths.clone(),
        state_inputs: loaded.state_inputs.clone(),
        lengths_input: loaded.lengths_input.clone(),
        unused: loaded.unused.clone(),
        backends: KNOWN.iter().map(runs).collect(),
    })?;
    Ok(ExitCode::SUCCESS)
}
