//! Loads models from files: selects an LSTM and reads what the file contains besides its weights.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use lstm::{
    CellKind, HostState, LstmConfig, OnnxLstm, OnnxModel, StateDict, Weights,
    formats::{
        OpenOptions,
        onnx::{GraphPort, GraphPortKind, InitialState, SequenceLengths},
    },
    ndarray::Axis,
};

use crate::error::{Error, Result};

/// Metadata key under which a checkpoint of [`lstm::train`] stores the model's configuration.
const CHECKPOINT_CONFIG_KEY: &str = "trainer.model";

/// Command-line options for the model.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model file: .safetensors, .onnx, or RTNeural's .json
    #[arg(value_name = "MODEL")]
    pub(crate) path: PathBuf,

    /// Which LSTM to use, if the file has several: the prefix of its tensor names (.safetensors), or its node names
    /// (.onnx)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name: Vec<String>,

    /// Cell kind, if the tensor names do not determine it: fused, unfused, peephole-dense or peephole-diagonal
    #[arg(long, value_name = "CELL", value_parser = parse_cell)]
    cell: Option<CellKind>,

    /// Bound on the inputs of the gate activations (ONNX's clip), if a .safetensors file does not contain it
    #[arg(long, value_name = "BOUND", allow_negative_numbers = true, value_parser = parse_clip)]
    clip: Option<f32>,

    /// Use coupled input and forget gates, f = 1 - i, if a .safetensors file does not say so
    #[arg(long)]
    coupled: bool,
}

/// Parses the name of a cell kind.
fn parse_cell(name: &str) -> Result<CellKind, String> {
    name.parse().map_err(|_| format!("expected one of {}", CellKind::ALL.map(CellKind::name).join(", ")))
}

/// Parses a clip bound.
fn parse_clip(text: &str) -> Result<f32, String> {
    let bound = text.parse().ok().filter(|&bound: &f32| bound.is_finite() && bound > 0.0);
    bound.ok_or_else(|| "expected a positive finite bound, such as 1.5".into())
}

/// File format of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelFormat {
    Safetensors,
    Onnx,
    RtNeural,
}

impl ModelFormat {
    /// Format of a file, by its extension.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(ModelFormat::Safetensors),
            Some("onnx") => Ok(ModelFormat::Onnx),
            Some("json") => Ok(ModelFormat::RtNeural),
            _ => Err(Error::file(path, "expected the extension .safetensors, .onnx or .json")),
        }
    }

    /// Name of the format in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ModelFormat::Safetensors => "safetensors",
            ModelFormat::Onnx => "onnx",
            ModelFormat::RtNeural => "rtneural",
        }
    }
}

/// A model that was loaded from a file, and what else the file contains.
pub(crate) struct LoadedModel {
    pub(crate) path: PathBuf,
    pub(crate) format: ModelFormat,
    pub(crate) weights: Arc<Weights>,
    /// The prefix of the LSTM's tensor names (.safetensors), or the names of its nodes (.onnx).
    pub(crate) names: Vec<String>,
    /// Element types of the LSTM's tensors in the file.
    pub(crate) dtypes: Vec<String>,
    /// A phrase for reports that says where the configuration comes from, such as `metadata`.
    pub(crate) config_source: &'static str,
    /// The constant initial state that the file contains, if it does.
    pub(crate) state: Option<HostState>,
    /// The constant sequence lengths that the file contains, if it does.
    pub(crate) lengths: Option<Vec<usize>>,
    /// For an ONNX file, the names of the graph's inputs for initial states.
    pub(crate) state_inputs: Vec<String>,
    /// For an ONNX file, the name of the graph's input for sequence lengths, if it has one.
    pub(crate) lengths_input: Option<String>,
    /// For an ONNX file, the names of all graph outputs, if they lack a part of the last layer's output sequence. Empty
    /// if they lack nothing, or if the user selected the LSTM by name.
    pub(crate) partial_outputs: Vec<String>,
    /// Names of the tensors or nodes in the file that are not part of the LSTM.
    pub(crate) unused_names: Vec<String>,
    /// Whether the user selected the LSTM with `--name`.
    pub(crate) selected_by_name: bool,
}

impl ModelArgs {
    /// Loads the model.
    pub(crate) fn load(&self) -> Result<LoadedModel> {
        let loaded_model = match ModelFormat::of(&self.path)? {
            ModelFormat::Safetensors => self.load_safetensors(),
            ModelFormat::Onnx => self.load_onnx(),
            ModelFormat::RtNeural => self.load_rtneural(),
        };
        loaded_model.map_err(|e| e.with_path(&self.path))
    }

    fn file_error(&self, why: impl ToString) -> Error {
        Error::file(&self.path, why)
    }

    fn load_safetensors(&self) -> Result<LoadedModel> {
        let mut file = StateDict::open(&self.path)?;
        let checkpoint_config = file.metadata().get(CHECKPOINT_CONFIG_KEY).cloned();
        let prefixes = file.lstm_prefixes();
        let prefix = match (&self.name[..], &prefixes[..]) {
            ([], [only]) => only.clone(),
            // Loading with an empty prefix gives an error that lists the expected tensors.
            (_, []) => String::new(),
            ([], several) => {
                let why = format!(
                    "the file contains {} LSTMs; select one with --name: {}",
                    several.len(),
                    quoted_list(several)
                );
                return Err(self.file_error(why));
            }
            ([name], _) => {
                let matching_prefix = prefixes.iter().find(|prefix| *prefix == name || **prefix == format!("{name}."));
                matching_prefix
                    .ok_or_else(|| {
                        self.file_error(format!(
                            "no LSTM is named `{name}`; expected one of: {}",
                            quoted_list(&prefixes)
                        ))
                    })?
                    .clone()
            }
            (names, _) => {
                return Err(Error::option(
                    "name",
                    format!("expected one name for an LSTM in a .safetensors file, got {}", names.len()),
                ));
            }
        };
        // Tensor names of the LSTM have no dot after the prefix. Names with a dot belong to something else, such as
        // another LSTM.
        let is_outside_lstm = |name: &&str| name.strip_prefix(&*prefix).is_some_and(|rest| rest.contains('.'));
        let mut unused_names: Vec<String> = file.names().filter(is_outside_lstm).map(str::to_owned).collect();
        // Tensors of other element types stay in the file and cause an error below.
        unused_names.retain(|name| file.take_any(name).is_ok() || file.take_i64(name).is_ok());
        let dtypes: BTreeSet<String> = file
            .names()
            .filter(|name| name.starts_with(&prefix))
            .filter_map(|name| file.dtype(name))
            .map(|dtype| dtype.to_string())
            .collect();
        let (stored_config, config_source) = match (file.lstm_config(&prefix)?, checkpoint_config) {
            (Some(config), _) => (Some(config), "metadata"),
            (None, Some(text)) => (Some(text.parse::<LstmConfig>()?), "checkpoint"),
            (None, None) => (None, "names and shapes of tensors"),
        };
        if let Some(config) = &stored_config
            && (self.clip.is_some() || self.coupled || self.cell.is_some_and(|cell| cell != config.cell))
        {
            return Err(self.file_error(format!(
                "its metadata contains the configuration ({config}); omit --cell, --clip and --coupled"
            )));
        }
        let weights = match stored_config.as_ref().map(|config| config.cell).or(self.cell) {
            Some(cell) => file.take_lstm_as(&prefix, cell),
            None => file.take_lstm(&prefix),
        }?;
        let config = stored_config.unwrap_or_else(|| {
            let mut config = weights.config().clone();
            (config.clip, config.coupled) = (self.clip, self.coupled);
            config
        });
        let weights = weights.with_config(config)?;
        unused_names.extend(file.names().map(str::to_owned));
        unused_names.sort();
        let config_source =
            if self.clip.is_some() || self.coupled { "names, shapes and options" } else { config_source };
        Ok(LoadedModel {
            path: self.path.clone(),
            format: ModelFormat::Safetensors,
            weights: weights.into(),
            names: vec![prefix],
            dtypes: dtypes.into_iter().collect(),
            config_source,
            state: None,
            lengths: None,
            state_inputs: Vec::new(),
            lengths_input: None,
            partial_outputs: Vec::new(),
            unused_names,
            selected_by_name: !self.name.is_empty(),
        })
    }

    /// Fails if an option is given that only applies to .safetensors files.
    fn reject_config_options(&self) -> Result<()> {
        for (option, is_given) in
            [("cell", self.cell.is_some()), ("clip", self.clip.is_some()), ("coupled", self.coupled)]
        {
            if is_given {
                return Err(Error::option(option, "only applies to .safetensors files"));
            }
        }
        Ok(())
    }

    fn load_onnx(&self) -> Result<LoadedModel> {
        self.reject_config_options()?;
        let model = OnnxModel::open(&self.path)?;
        let names: Vec<&str> = self.name.iter().map(String::as_str).collect();
        let onnx = if names.is_empty() { model.lstm() } else { model.lstm_named(&names) };
        let onnx = onnx.map_err(|error| match error {
            // A graph with other nodes can be used only if the LSTM nodes are named.
            lstm::Error::Format { input, reason } if names.is_empty() && !model.lstm_nodes().is_empty() => {
                let hint = format!(
                    "{reason}; to use the LSTM nodes alone, select them with --name: {}",
                    quoted_list(&model.lstm_nodes())
                );
                lstm::Error::Format { input, reason: hint }
            }
            other => other,
        })?;
        let mut state_inputs = Vec::new();
        for initial in [&onnx.initial_h, &onnx.initial_c] {
            if let InitialState::Inputs(ports) = initial {
                state_inputs.extend(ports.iter().map(|port| port.name.clone()));
            }
        }
        let (lengths, lengths_input) = match &onnx.lengths {
            SequenceLengths::Full => (None, None),
            SequenceLengths::Constant(lengths) => (Some(lengths.clone()), None),
            SequenceLengths::Input(name) => (None, Some(name.clone())),
        };
        Ok(LoadedModel {
            path: self.path.clone(),
            format: ModelFormat::Onnx,
            state: constant_state(&onnx)?,
            lengths,
            state_inputs,
            lengths_input,
            partial_outputs: if names.is_empty() { partial_outputs(&onnx) } else { Vec::new() },
            names: if names.is_empty() { model.lstm_nodes() } else { self.name.clone() },
            dtypes: onnx.dtypes.iter().map(ToString::to_string).collect(),
            config_source: "the graph",
            unused_names: onnx.ignored_nodes.clone(),
            selected_by_name: !names.is_empty(),
            weights: onnx.weights.into(),
        })
    }

    fn load_rtneural(&self) -> Result<LoadedModel> {
        self.reject_config_options()?;
        if !self.name.is_empty() {
            return Err(Error::option("name", "the LSTM in an RTNeural .json file has no name"));
        }
        let model = lstm::formats::open(&self.path, &OpenOptions::default())?.weights;
        let [weights] = &model.lstms().collect::<Vec<_>>()[..] else {
            return Err(self.file_error(format!("expected one LSTM, got {}", model.lstms().count())));
        };
        let others = model.layers().iter().filter(|layer| layer.kind() != "lstm");
        let others = others.map(|layer| format!("{} {}", layer.kind(), layer.name().unwrap_or_default()));
        Ok(LoadedModel {
            path: self.path.clone(),
            format: ModelFormat::RtNeural,
            weights: Arc::clone(weights),
            names: Vec::new(),
            dtypes: vec!["decimal numbers".into()],
            config_source: "the layers",
            state: None,
            lengths: None,
            state_inputs: Vec::new(),
            lengths_input: None,
            partial_outputs: Vec::new(),
            unused_names: others.collect(),
            selected_by_name: false,
        })
    }
}

/// Constant initial state of an ONNX graph, if it has one.
fn constant_state(onnx: &OnnxLstm) -> Result<Option<HostState>> {
    let constant_array =
        |initial: &InitialState| if let InitialState::Constant(array) = initial { Some(array.clone()) } else { None };
    let (h, c) = (constant_array(&onnx.initial_h), constant_array(&onnx.initial_c));
    let Some(batch) = h.as_ref().or(c.as_ref()).map(|array| array.len_of(Axis(1))) else { return Ok(None) };
    let zeros = HostState::zeros(onnx.weights.config(), batch)?;
    Ok(Some(HostState { h: h.unwrap_or(zeros.h), c: c.unwrap_or(zeros.c) }))
}

/// Names of all outputs of an ONNX graph, if they lack a step or a direction of the last layer's output sequence. Empty
/// if they lack nothing.
fn partial_outputs(onnx: &OnnxLstm) -> Vec<String> {
    let is_whole_sequence = |port: &&GraphPort| port.kind == GraphPortKind::Sequence && port.step.is_none();
    let is_direction_output = |row| onnx.outputs.iter().filter(is_whole_sequence).any(|port| port.rows.contains(&row));
    match (0..onnx.weights.config().num_directions()).all(is_direction_output) {
        true => Vec::new(),
        false => onnx.outputs.iter().map(|port| port.name.clone()).collect(),
    }
}

/// Formats names in backquotes, separated by commas.
pub(crate) fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl LoadedModel {
    /// Describes the contents of the file that are not used. `None` if everything is used, or if the user selected
    /// the LSTM by name.
    pub(crate) fn describe_unused(&self) -> Option<String> {
        (!self.selected_by_name && !self.unused_names.is_empty())
            .then(|| format!("not part of the LSTM and not used: {}", self.unused_names.join(", ")))
    }
}
