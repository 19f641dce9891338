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
    pub steps: Option<usize>,
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
            #[cfg(feature = "onnx")]
            onnx: None,
        }
    }
}

/// Calls a reader of another crate. A panic inside it becomes an error.
#[allow(unused, reason = "a build may lack the readers of PyTorch and Keras files")]
pub(crate) fn catch_panic<T>(source: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Error::format(source, "the file is damaged: its reader failed");
    catch_unwind(AssertUnwindSafe(read)).map_err(panicked)?
}
