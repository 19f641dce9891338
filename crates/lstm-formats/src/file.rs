//! What is common to the readers of model files.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use lstm_core::{Error, ModelWeights, Result};

#[allow(unused, reason = "a build may lack all readers")]
pub(crate) use crate::options::OpenOptions;

/// The format of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// A safetensors file.
    Safetensors,
    /// A file that `torch.save` wrote: `.pt`, `.pth`, `.ckpt` or `.bin`.
    PyTorch,
    /// A Keras model: `.keras`, or a whole-model `.h5` file.
    Keras,
    /// An ONNX file.
    Onnx,
    /// RTNeural's JSON.
    RtNeural,
    /// The JSON of GuitarML and of Automated-GuitarAmpModelling.
    GuitarMl,
    /// AIDA-X's JSON: RTNeural's layers with gains, a skip connection and a self-test.
    AidaX,
    /// Neural Amp Modeler's `.nam`.
    Nam,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::PyTorch => "pytorch",
            Format::Keras => "keras",
            Format::Onnx => "onnx",
            Format::RtNeural => "rtneural",
            Format::GuitarMl => "guitarml",
            Format::AidaX => "aida-x",
            Format::Nam => "nam",
        })
    }
}

/// A model file that was read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelFile {
    /// The format of the file.
    pub format: Format,
    /// The layers and parameters.
    pub weights: ModelWeights,
    /// Element types of the parameters in the file, as text.
    pub dtypes: Vec<String>,
    /// Names of the tensors or nodes in the file that are not part of the model. Not empty only if the user selected an
    /// LSTM by name.
    pub unused: Vec<String>,
    /// The number of time steps that the model is for; other sequences would have wrong results. `None` for any number.
    /// The weights' metadata have it under [`STEPS_KEY`](Self::STEPS_KEY), so that saved weights keep it.
    pub steps: Option<usize>,
    /// Whether the user selected a part of the file by name.
    pub(crate) is_selection: bool,
    /// The inputs and outputs of the graph of an ONNX file; `None` for other formats.
    #[cfg(feature = "onnx")]
    pub onnx: Option<Box<crate::onnx::OnnxGraph>>,
}

impl ModelFile {
    /// A file of a format without a graph.
    #[allow(unused, reason = "a build may lack all readers")]
    pub(crate) fn new(format: Format, weights: ModelWeights, dtypes: Vec<String>, unused: Vec<String>) -> Self {
        ModelFile {
            format,
            weights,
            dtypes,
            unused,
            steps: None,
            is_selection: false,
            #[cfg(feature = "onnx")]
            onnx: None,
        }
    }
}

impl ModelFile {
    /// Key of the number of time steps in the metadata of weights.
    pub const STEPS_KEY: &str = "lstm.steps";

    /// The file of a model that is for sequences of `steps` time steps alone.
    #[allow(unused, reason = "a build may lack the readers of such models")]
    pub(crate) fn for_steps(self, steps: usize) -> Self {
        let mut metadata = self.weights.metadata().clone();
        metadata.insert(Self::STEPS_KEY.to_owned(), steps.to_string());
        ModelFile { steps: Some(steps), weights: self.weights.with_metadata(metadata), ..self }
    }

    /// Checks that [`weights`](Self::weights) alone compute what the file computes, for sequences of [`steps`](Self::steps)
    /// time steps. The graph of an ONNX file may compute something else, such as a part of the outputs, or have constant
    /// states or lengths of each sequence.
    ///
    /// # Errors
    /// Those of [`check_weights_and_constants_suffice`](Self::check_weights_and_constants_suffice), and [`Error::Format`] if
    /// the graph has constants.
    pub fn check_weights_suffice(&self) -> Result<()> {
        self.check_weights_and_constants_suffice()?;
        #[cfg(feature = "onnx")]
        if let Some(graph) = &self.onnx {
            let constants = graph.constants()?;
            if constants.states.is_some() || constants.lengths.is_some() {
                let reason = "it has constant initial states or lengths of each sequence, which are not part of the \
                              weights; run it with `OnnxGraph::run` in Rust, with the Python package or with the tool \
                              `lstm`, which apply them";
                return Err(Error::format("onnx graph", reason));
            }
        }
        Ok(())
    }

    /// Like [`check_weights_suffice`](Self::check_weights_suffice), for a caller that passes the states and lengths of
    /// `OnnxGraph::constants` with each input. Outputs of LSTMs that were selected by name are what the user wants, so the
    /// check passes.
    ///
    /// # Errors
    /// [`Error::Format`] says what the graph does besides, and how to use it.
    pub fn check_weights_and_constants_suffice(&self) -> Result<()> {
        #[cfg(feature = "onnx")]
        if let Some(graph) = self.onnx.as_deref().filter(|_| !self.is_selection) {
            let has_values = graph.outputs().iter().any(|output| output.kind == crate::onnx::OnnxOutputKind::Outputs);
            let reason = match graph.rearrangement() {
                Some(reason) => reason,
                None if !has_values => "all its outputs are final states".into(),
                None => return Ok(()),
            };
            let names = graph.lstm_nodes().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let reason = format!(
                "the graph is not the model alone: {reason}; run it with `OnnxGraph::run` in Rust, or select \
                 its LSTM nodes by name: {names}"
            );
            return Err(Error::format("onnx graph", reason));
        }
        Ok(())
    }
}

/// Calls a reader of another crate. A panic inside it becomes an error.
#[allow(unused, reason = "a build may lack the readers of PyTorch and Keras files")]
pub(crate) fn catch_panic<T>(source: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Error::format(source, "the file is damaged: its reader failed");
    catch_unwind(AssertUnwindSafe(read)).map_err(panicked)?
}
