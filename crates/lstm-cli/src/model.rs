//! Loads models from files of any format.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use lstm::{
    CellKind, Direction, HostState, ModelWeights, Precision,
    formats::{
        Format, OpenOptions, detect,
        onnx::{ModelArguments, OnnxGraph, OnnxInputKind, OnnxOutputKind, StateRows},
        open,
    },
};

use crate::error::{Error, Result};

/// Command-line options for the model.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model file: .safetensors, PyTorch (.pt, .pth, .ckpt, .bin), Keras (.keras, .h5), .onnx, RTNeural, GuitarML or AIDA-X
    /// (.json), or NAM (.nam); the content determines the format
    #[arg(value_name = "MODEL")]
    pub(crate) path: PathBuf,

    /// Use one LSTM of the file alone: the prefix of its tensor names, or the names of its nodes in an .onnx file
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name: Vec<String>,

    /// Layers of a file that has tensors but no graph, in order, such as "embedding, rec, last, lin:relu, out": prefixes
    /// of tensor names, an activation after a colon, and `last` for the last time step
    #[arg(long, value_name = "LAYERS")]
    layers: Option<String>,

    /// Value of a scalar input of an .onnx graph, such as sr=16000; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    set: Vec<(String, f64)>,

    /// Cell kind, if the tensor names do not determine it: fused, unfused, peephole-dense or peephole-diagonal
    #[arg(long, value_name = "CELL", value_parser = parse_cell)]
    cell: Option<CellKind>,

    /// Bound on the inputs of the gate activations (ONNX's clip), if a file of tensors does not contain it
    #[arg(long, value_name = "BOUND", allow_negative_numbers = true, value_parser = parse_clip)]
    clip: Option<f32>,

    /// Use coupled input and forget gates, f = 1 - i, if a file of tensors does not say so
    #[arg(long)]
    coupled: bool,

    /// Convert the weights: f32, int8 or int12; `compare` takes several [default: as in the file]
    #[arg(long, value_name = "PRECISION", value_delimiter = ',', value_parser = parse_precision)]
    pub(crate) precision: Vec<Precision>,
}

/// Parses the name of a cell kind.
fn parse_cell(name: &str) -> Result<CellKind, String> {
    name.parse().map_err(|_| format!("expected one of {}", CellKind::ALL.map(CellKind::name).join(", ")))
}

/// Parses the name of a precision.
fn parse_precision(name: &str) -> Result<Precision, String> {
    name.parse().map_err(|_| format!("expected one of {}", Precision::ALL.map(Precision::name).join(", ")))
}

/// Parses a clip bound.
fn parse_clip(text: &str) -> Result<f32, String> {
    let bound = text.parse().ok().filter(|&bound: &f32| bound.is_finite() && bound > 0.0);
    bound.ok_or_else(|| "expected a positive finite bound, such as 1.5".into())
}

/// Parses a name and a number.
fn parse_setting(text: &str) -> Result<(String, f64), String> {
    let parsed = text.rsplit_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
    match parsed {
        Some((name, value)) if !name.is_empty() && f64::is_finite(value) => Ok((name.to_owned(), value)),
        _ => Err("expected a name and a number, such as sr=16000".into()),
    }
}

/// A model that was loaded from a file, and what else the file contains.
pub(crate) struct LoadedModel {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) weights: Arc<ModelWeights>,
    /// Element types of the parameters in the file.
    pub(crate) dtypes: Vec<String>,
    /// Names of the tensors or nodes in the file that are not part of the model.
    pub(crate) unused_names: Vec<String>,
    /// Whether the user selected an LSTM with `--name`.
    pub(crate) selected_by_name: bool,
    /// The inputs and outputs of an ONNX graph; empty for other formats.
    pub(crate) ports: Vec<GraphPort>,
    /// Names of the LSTM nodes of an ONNX file.
    pub(crate) nodes: Vec<String>,
    /// The initial states that an ONNX graph has for each sequence, if it does.
    pub(crate) states: Option<Vec<HostState>>,
    /// The constant lengths of the sequences in an ONNX graph, if it has them.
    pub(crate) lengths: Option<Vec<usize>>,
    /// How an ONNX graph rearranges the inputs or outputs of its model, in words, if it does.
    rearrangement: Option<String>,
    /// The number of time steps that an ONNX graph fixes for its input, if it does.
    pub(crate) fixed_steps: Option<usize>,
    /// The number of time steps that the model is for; `None` for any number.
    pub(crate) required_steps: Option<usize>,
}

/// An input or output of an ONNX graph.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct GraphPort {
    pub(crate) name: String,
    pub(crate) is_output: bool,
    /// What it holds, in words.
    pub(crate) holds: String,
    #[serde(skip)]
    pub(crate) kind: PortKind,
}

/// What an input or output of an ONNX graph holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortKind {
    Values,
    State,
    Lengths,
    Other,
}

impl ModelArgs {
    /// Loads the model, in the precision that the user wants.
    pub(crate) fn load(&self) -> Result<LoadedModel> {
        match self.precision[..] {
            [] => self.load_as(None),
            [precision] => self.load_as(Some(precision)),
            _ => Err(Error::option("precision", "only `compare` takes several")),
        }
    }

    /// Loads the model in a precision; `None` for that of the file.
    pub(crate) fn load_as(&self, precision: Option<Precision>) -> Result<LoadedModel> {
        let mut options = OpenOptions::default();
        options.names = self.name.clone();
        options.layers = self.layers.clone();
        options.set = self.settings()?;
        (options.cell, options.clip, options.coupled) = (self.cell, self.clip, self.coupled);
        if options != OpenOptions::default() {
            self.check_applicable(&options)?;
        }
        options.precision = precision;
        let file = open(&self.path, &options).map_err(|e| Error::from(e).with_path(&self.path))?;
        let (mut ports, mut nodes, mut constants) = (Vec::new(), Vec::new(), ModelArguments::default());
        let (mut rearrangement, mut fixed_steps) = (None, None);
        if let Some(graph) = &file.onnx {
            nodes = graph.lstm_nodes().to_vec();
            ports = graph_ports(graph);
            rearrangement = graph.rearrangement();
            fixed_steps = graph.fixed_sizes().1;
            constants = graph.constants().map_err(|e| Error::from(e).with_path(&self.path))?;
        }
        Ok(LoadedModel {
            path: self.path.clone(),
            ports,
            nodes,
            states: constants.states,
            lengths: constants.lengths,
            rearrangement,
            fixed_steps,
            required_steps: file.steps,
            format: file.format,
            weights: file.weights.into(),
            dtypes: file.dtypes,
            unused_names: file.unused,
            selected_by_name: !self.name.is_empty(),
        })
    }

    /// The values of `--set` by name.
    fn settings(&self) -> Result<BTreeMap<String, f64>> {
        let mut settings = BTreeMap::new();
        for (name, value) in &self.set {
            if settings.insert(name.clone(), *value).is_some() {
                return Err(Error::option("set", format!("`{name}` is set twice")));
            }
        }
        Ok(settings)
    }

    /// Fails if an option is given that does not apply to the format of the file.
    fn check_applicable(&self, options: &OpenOptions) -> Result<()> {
        let Some(format) = std::fs::read(&self.path).ok().and_then(|bytes| detect(&bytes)) else { return Ok(()) };
        let is_state_dict = matches!(format, Format::Safetensors | Format::PyTorch);
        let state_dict = "files of tensors: .safetensors and PyTorch";
        for (option, is_given, applies, formats) in [
            (
                "name",
                !options.names.is_empty(),
                is_state_dict || format == Format::Onnx,
                ".safetensors, PyTorch and .onnx files",
            ),
            ("layers", options.layers.is_some(), is_state_dict, state_dict),
            ("set", !options.set.is_empty(), format == Format::Onnx, ".onnx files"),
            ("cell", options.cell.is_some(), is_state_dict, state_dict),
            ("clip", options.clip.is_some(), is_state_dict, state_dict),
            ("coupled", options.coupled, is_state_dict, state_dict),
        ] {
            if is_given && !applies {
                let why = format!("only applies to {formats}; {} is of the format {format}", self.path.display());
                return Err(Error::option(option, why));
            }
        }
        Ok(())
    }
}

/// Lists the inputs and outputs of a graph.
fn graph_ports(graph: &OnnxGraph) -> Vec<GraphPort> {
    let inputs = graph.inputs().iter().map(|input| {
        let (holds, kind) = match &input.kind {
            OnnxInputKind::Features => ("the features".into(), PortKind::Values),
            OnnxInputKind::Tokens => ("the tokens".into(), PortKind::Values),
            OnnxInputKind::Lengths => ("the lengths of the sequences".into(), PortKind::Lengths),
            OnnxInputKind::State(rows) => (describe_state("initial", rows), PortKind::State),
            OnnxInputKind::Scalar(value) => (format!("a scalar, set to {value}"), PortKind::Other),
            _ => ("not used".into(), PortKind::Other),
        };
        GraphPort { name: input.name.clone(), is_output: false, holds, kind }
    });
    let outputs = graph.outputs().iter().map(|output| {
        let (holds, kind) = match &output.kind {
            OnnxOutputKind::Outputs => ("outputs of the model".into(), PortKind::Values),
            OnnxOutputKind::State(rows) => (describe_state("final", rows), PortKind::State),
            OnnxOutputKind::Lengths => ("the lengths of the sequences".into(), PortKind::Lengths),
            _ => ("not known".into(), PortKind::Other),
        };
        GraphPort { name: output.name.clone(), is_output: true, holds, kind }
    });
    inputs.chain(outputs).collect()
}

/// Describes states: `initial h and c of LSTM 0`.
fn describe_state(which: &str, rows: &[StateRows]) -> String {
    let parts = rows.iter().map(|StateRows { lstm, is_c, rows, .. }| {
        format!(
            "{} of LSTM {lstm}, rows {} to {}",
            if *is_c { "c" } else { "h" },
            rows.start,
            rows.end.saturating_sub(1)
        )
    });
    format!("{which} states: {}", parts.collect::<Vec<_>>().join("; "))
}

/// Formats names in backquotes, separated by commas. Long lists are cut.
pub(crate) fn quoted_list(names: &[String]) -> String {
    const MAX_NAMES: usize = 12;
    let mut text = names.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMES {
        text += &format!(" and {} more", names.len() - MAX_NAMES);
    }
    text
}

/// Writes which tensors or nodes of a file are not part of the model that was selected by name.
pub(crate) fn write_unused(f: &mut fmt::Formatter<'_>, names: &[String]) -> fmt::Result {
    if names.is_empty() { Ok(()) } else { writeln!(f, "not part of this model: {}", quoted_list(names)) }
}

impl LoadedModel {
    /// Fails if the graph of an ONNX file computes something else than the model, unless the user selected an LSTM by
    /// name.
    pub(crate) fn check_arrangement(&self) -> Result<()> {
        match &self.rearrangement {
            Some(why) if !self.selected_by_name => {
                let why = format!(
                    "the graph is not the model alone: {why}; to use the LSTM nodes alone, select them with --name: {}",
                    quoted_list(&self.nodes)
                );
                Err(Error::file(&self.path, why))
            }
            _ => Ok(()),
        }
    }

    /// The precisions of the layers with parameters, without repetition, such as `int8`.
    pub(crate) fn precisions(&self) -> String {
        let weights = &self.weights;
        let mut names: Vec<&str> = Vec::new();
        for precision in (0..weights.layers().len()).filter_map(|k| weights.layer_precision(k)) {
            if !names.contains(&precision.name()) {
                names.push(precision.name());
            }
        }
        names.join(", ")
    }

    /// Describes the contents of the file that are not used. `None` if everything is used, or if the user selected
    /// an LSTM by name.
    pub(crate) fn describe_unused(&self) -> Option<String> {
        (!self.selected_by_name && !self.unused_names.is_empty())
            .then(|| format!("not part of the model and not used: {}", quoted_list(&self.unused_names)))
    }

    /// Names of the outputs of an ONNX graph, if all of them are states, so that the model's outputs are not among them.
    /// Empty if the user selected an LSTM by name.
    pub(crate) fn outputs_without_sequence(&self) -> Vec<String> {
        let outputs = || self.ports.iter().filter(|port| port.is_output);
        match self.selected_by_name || outputs().any(|port| port.kind == PortKind::Values) {
            true => Vec::new(),
            false => outputs().map(|port| port.name.clone()).collect(),
        }
    }

    /// Names of the inputs of an ONNX graph of this kind.
    pub(crate) fn input_names(&self, kind: PortKind) -> Vec<String> {
        let ports = self.ports.iter().filter(|port| !port.is_output && port.kind == kind);
        ports.map(|port| port.name.clone()).collect()
    }

    /// Whether the model can run sequences in chunks of steps, rather than only as a whole.
    pub(crate) fn streams(&self) -> bool {
        self.lengths.is_none() && self.weights.lstms().all(|lstm| lstm.config().direction == Direction::Forward)
    }

    /// The sample rate in Hz of the audio that the model was made for, if its file says so.
    pub(crate) fn sample_rate(&self) -> Result<Option<u32>> {
        let Some(text) = self.weights.metadata().get(SAMPLE_RATE_KEY) else { return Ok(None) };
        let rate = text.trim().parse::<f64>().ok().filter(|rate| rate.fract() == 0.0 && (1.0..1e9).contains(rate));
        let error = || Error::file(&self.path, format!("expected a sample rate in Hz in its metadata, got `{text}`"));
        rate.map(|rate| rate as u32).ok_or_else(error).map(Some)
    }
}

/// The entry of a model's metadata with its sample rate.
pub(crate) const SAMPLE_RATE_KEY: &str = "sample_rate";
