//! Models from files, by extension: which LSTM of a file it is, and what the file says besides its weights.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use lstm_core::{CellKind, HostState, LstmConfig, StateDict, Weights, ndarray::Axis};
use lstm_formats::{
    OnnxLstm, OnnxModel, RtNeural,
    onnx::{Initial, Lengths, Port, PortKind},
};

use crate::error::{Error, Result};

/// The key of a checkpoint's metadata under which [`lstm_core::train`] keeps the configuration, and what its other tensors
/// begin with.
const CHECKPOINT: &str = "trainer.model";
const CHECKPOINT_OWN: [&str; 2] = ["optimizer.", "extra."];

/// Which model.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// The model: a .safetensors or .onnx file, or a .json file of RTNeural's
    #[arg(value_name = "MODEL")]
    pub(crate) path: PathBuf,

    /// Which LSTM, where a file has more: of .safetensors, what its tensors' names begin with; of .onnx, its nodes' names
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name: Vec<String>,

    /// The cell, where names of tensors leave it open: fused, unfused, peephole-dense or peephole-diagonal
    #[arg(long, value_name = "CELL", value_parser = cell)]
    cell: Option<CellKind>,

    /// The bound on the gate activations' inputs, which no tensor of a .safetensors file tells
    #[arg(long, value_name = "BOUND", allow_negative_numbers = true, value_parser = clip)]
    clip: Option<f32>,

    /// The gates are coupled, f = 1 - i, which no tensor of a .safetensors file tells
    #[arg(long)]
    coupled: bool,
}

/// A cell by its name, as a configuration's text has it.
fn cell(name: &str) -> Result<CellKind, String> {
    Ok(match name {
        "fused" => CellKind::Fused,
        "unfused" => CellKind::Unfused,
        "peephole-dense" => CellKind::PeepholeDense,
        "peephole-diagonal" => CellKind::PeepholeDiagonal,
        _ => return Err("expected fused, unfused, peephole-dense or peephole-diagonal".into()),
    })
}

fn clip(text: &str) -> Result<f32, String> {
    let found = text.parse().ok().filter(|&bound: &f32| bound.is_finite() && bound > 0.0);
    found.ok_or_else(|| "expected a positive finite bound, such as 1.5".into())
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Safetensors,
    Onnx,
    RtNeural,
}

impl Kind {
    /// That of a path.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Kind::Safetensors),
            Some("onnx") => Ok(Kind::Onnx),
            Some("json") => Ok(Kind::RtNeural),
            _ => Err(Error::file(path, "expected the extension .safetensors, .onnx or .json")),
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Safetensors => "safetensors",
            Kind::Onnx => "onnx",
            Kind::RtNeural => "rtneural",
        }
    }
}

/// A model and what its file says besides.
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) weights: Arc<Weights>,
    /// Prefix or nodes of this LSTM.
    pub(crate) names: Vec<String>,
    /// Element types in the file.
    pub(crate) dtypes: Vec<String>,
    /// Where it comes from that the configuration is not only inferred.
    pub(crate) config_from: &'static str,
    /// A state to start from that the file fixes.
    pub(crate) state: Option<HostState>,
    /// Lengths that the file fixes.
    pub(crate) lengths: Option<Vec<usize>>,
    /// Inputs of an ONNX graph for initial states.
    pub(crate) state_inputs: Vec<String>,
    /// Its input for lengths.
    pub(crate) lengths_input: Option<String>,
    /// The outputs of an ONNX graph none of which is the last layer's whole sequence; none if the user named the LSTM.
    pub(crate) partial: Vec<String>,
    /// Tensors or nodes that are no part of this LSTM.
    pub(crate) unused: Vec<String>,
    /// Whether these were left out because the user named the LSTM.
    pub(crate) chosen: bool,
}

impl ModelArgs {
    /// Reads the model.
    pub(crate) fn load(&self) -> Result<Loaded> {
        let loaded = match Kind::of(&self.path)? {
            Kind::Safetensors => self.safetensors(),
            Kind::Onnx => self.onnx(),
            Kind::RtNeural => self.rtneural(),
        };
        loaded.map_err(|e| e.of(&self.path))
    }

    fn fail(&self, why: impl ToString) -> Error {
        Error::file(&self.path, why)
    }

    fn safetensors(&self) -> Result<Loaded> {
        let mut file = StateDict::open(&self.path)?;
        let checkpoint = file.metadata().get(CHECKPOINT).cloned();
        let mut prefixes = file.lstm_prefixes();
        if checkpoint.is_some() {
            prefixes.retain(|prefix| CHECKPOINT_OWN.iter().all(|own| !prefix.starts_with(own)));
        }
        let prefix = match (&self.name[..], &prefixes[..]) {
            ([], [only]) => only.clone(),
            // The library says what it looked for.
            ([], []) => String::new(),
            ([], several) => {
                let why = format!("it holds {} LSTMs, choose one with --name: {}", several.len(), list(several));
                return Err(self.fail(why));
            }
            ([name], _) => {
                let found = prefixes.iter().find(|prefix| *prefix == name || **prefix == format!("{name}."));
                found
                    .ok_or_else(|| self.fail(format!("no LSTM is called `{name}`; there are: {}", list(&prefixes))))?
                    .clone()
            }
            (names, _) => {
                return Err(Error::option(
                    "name",
                    format!("a .safetensors file's LSTM has one name, got {}", names.len()),
                ));
            }
        };
        // No name of an LSTM's own has a dot: what has one, such as another LSTM's, is not part of it.
        let inner = |name: &&str| name.strip_prefix(&*prefix).is_some_and(|rest| rest.contains('.'));
        let mut unused: Vec<String> = file.names().filter(inner).map(str::to_owned).collect();
        // What is of another type stays, and is an error.
        unused.retain(|name| file.take_any(name).is_ok() || file.take_i64(name).is_ok());
        let dtypes: BTreeSet<String> = file
            .names()
            .filter(|name| name.starts_with(&prefix))
            .filter_map(|name| file.dtype(name))
            .map(|dtype| dtype.to_string())
            .collect();
        let (said, config_from) = match (file.lstm_config(&prefix)?, checkpoint) {
            (Some(config), _) => (Some(config), "metadata"),
            (None, Some(text)) => (Some(text.parse::<LstmConfig>()?), "checkpoint"),
            (None, None) => (None, "names and shapes of tensors"),
        };
        if let Some(config) = &said
            && (self.clip.is_some() || self.coupled || self.cell.is_some_and(|cell| cell != config.cell))
        {
            return Err(self.fail(format!(
                "its metadata say which options it has ({config}): leave out --cell, --clip and --coupled"
            )));
        }
        let weights = match said.as_ref().map(|config| config.cell).or(self.cell) {
            Some(cell) => file.take_lstm_as(&prefix, cell),
            None => file.take_lstm(&prefix),
        }?;
        let config = said.unwrap_or_else(|| {
            let mut config = weights.config().clone();
            (config.clip, config.coupled) = (self.clip, self.coupled);
            config
        });
        let weights = weights.with_config(config)?;
        unused.extend(file.names().map(str::to_owned));
        unused.sort();
        let config_from = if self.clip.is_some() || self.coupled { "names, shapes and options" } else { config_from };
        Ok(Loaded {
            path: self.path.clone(),
            kind: Kind::Safetensors,
            weights: weights.into(),
            names: vec![prefix],
            dtypes: dtypes.into_iter().collect(),
            config_from,
            state: None,
            lengths: None,
            state_inputs: Vec::new(),
            lengths_input: None,
            partial: Vec::new(),
            unused,
            chosen: !self.name.is_empty(),
        })
    }

    /// That no options are given which the file tells.
    fn no_options(&self) -> Result<()> {
        for (option, given) in [("cell", self.cell.is_some()), ("clip", self.clip.is_some()), ("coupled", self.coupled)]
        {
            if given {
                return Err(Error::option(option, "only a .safetensors file leaves it open"));
            }
        }
        Ok(())
    }

    fn onnx(&self) -> Result<Loaded> {
        self.no_options()?;
        let model = OnnxModel::open(&self.path)?;
        let names: Vec<&str> = self.name.iter().map(String::as_str).collect();
        let onnx = if names.is_empty() { model.lstm() } else { model.lstm_named(&names) };
        let onnx = onnx.map_err(|error| match error {
            // Whatever surrounds the LSTMs is refused unless they are named.
            lstm_core::Error::Format { what, why } if names.is_empty() && !model.lstm_nodes().is_empty() => {
                let hint = format!("{why}; to take LSTMs alone, --name them: {}", list(&model.lstm_nodes()));
                lstm_core::Error::Format { what, why: hint }
            }
            other => other,
        })?;
        let mut state_inputs = Vec::new();
        for initial in [&onnx.initial_h, &onnx.initial_c] {
            if let Initial::Inputs(ports) = initial {
                state_inputs.extend(ports.iter().map(|port| port.name.clone()));
            }
        }
        let (lengths, lengths_input) = match &onnx.lengths {
            Lengths::Whole => (None, None),
            Lengths::Fixed(lengths) => (Some(lengths.clone()), None),
            Lengths::Input(name) => (None, Some(name.clone())),
        };
        Ok(Loaded {
            path: self.path.clone(),
            kind: Kind::Onnx,
            state: fixed_state(&onnx)?,
            lengths,
            state_inputs,
            lengths_input,
            partial: if names.is_empty() { partial(&onnx) } else { Vec::new() },
            names: if names.is_empty() { model.lstm_nodes() } else { self.name.clone() },
            dtypes: onnx.dtypes.iter().map(ToString::to_string).collect(),
            config_from: "the graph",
            unused: onnx.ignored.clone(),
            chosen: !names.is_empty(),
            weights: onnx.weights.into(),
        })
    }

    fn rtneural(&self) -> Result<Loaded> {
        self.no_options()?;
        if !self.name.is_empty() {
            return Err(Error::option("name", "a .json file of RTNeural's has one LSTM without a name"));
        }
        let RtNeural { lstm, head, .. } = RtNeural::open(&self.path)?;
        Ok(Loaded {
            path: self.path.clone(),
            kind: Kind::RtNeural,
            weights: lstm.into(),
            names: Vec::new(),
            dtypes: vec!["decimal numbers".into()],
            config_from: "the layers",
            state: None,
            lengths: None,
            state_inputs: Vec::new(),
            lengths_input: None,
            partial: Vec::new(),
            unused: head.map(|(weight, _)| format!("dense layer {:?}", weight.shape())).into_iter().collect(),
            chosen: false,
        })
    }
}

/// The state that a file's constants give, if any.
fn fixed_state(onnx: &OnnxLstm) -> Result<Option<HostState>> {
    let fixed = |initial: &Initial| if let Initial::Fixed(array) = initial { Some(array.clone()) } else { None };
    let (h, c) = (fixed(&onnx.initial_h), fixed(&onnx.initial_c));
    let Some(batch) = h.as_ref().or(c.as_ref()).map(|array| array.len_of(Axis(1))) else { return Ok(None) };
    let zeros = HostState::zeros(onnx.weights.config(), batch)?;
    Ok(Some(HostState { h: h.unwrap_or(zeros.h), c: c.unwrap_or(zeros.c) }))
}

/// The outputs of a graph, if together they are not all steps of the last layer in all directions.
fn partial(onnx: &OnnxLstm) -> Vec<String> {
    let whole = |port: &&Port| port.kind == PortKind::Sequence && port.step.is_none();
    let given = |row| onnx.outputs.iter().filter(whole).any(|port| port.rows.contains(&row));
    match (0..onnx.weights.config().num_directions()).all(given) {
        true => Vec::new(),
        false => onnx.outputs.iter().map(|port| port.name.clone()).collect(),
    }
}

pub(crate) fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Loaded {
    /// What was left out, in words; none if the user chose so by naming the LSTM.
    pub(crate) fn left_out(&self) -> Option<String> {
        (!self.chosen && !self.unused.is_empty())
            .then(|| format!("not part of the LSTM, and not used: {}", self.unused.join(", ")))
    }
}
