//! Opens a model file of any supported format, which the content of the file determines.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use lstm_core::{CellKind, Error, ModelWeights, Result};

use crate::detect::{describe_unknown, detect};

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

/// What the user knows about a file that the file does not say. The default opens a file that says everything.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Which LSTM to open, alone, if the file has more than that: the prefix of its tensor names, or the names of its
    /// nodes in an ONNX file. Empty for the whole model.
    pub names: Vec<String>,
    /// The layers of a state dict, which has no graph, in order: `"embedding, rec, last, lin:relu, out"`. Each entry is
    /// the prefix of a layer's tensors, with an optional activation after a colon, or `last` for the last time step.
    pub layers: Option<String>,
    /// Values of scalar graph inputs of an ONNX file, by name, such as the sample rate `sr`.
    pub set: BTreeMap<String, f64>,
    /// The cell, for tensor names that do not determine it.
    pub cell: Option<CellKind>,
    /// Bound on the inputs of the gate activations, for a state dict, which does not contain it.
    pub clip: Option<f32>,
    /// Whether the input and forget gates are coupled, for a state dict, which does not say so.
    pub coupled: bool,
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
}

/// Reads a model file of any supported format. The content of the file determines the format, not its name.
///
/// # Errors
/// [`Error::Io`] if the file can't be read or is not a regular file; [`Error::Format`] for a file of an unknown format
/// or with a layer that is not supported, and the errors of the format's reader. The message names the file.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<ModelFile> {
    let path = path.as_ref();
    let bytes = read_regular_file(path).map_err(|source| Error::Io { path: path.into(), source })?;
    read(&bytes, path.parent(), &path.display().to_string(), options)
}

/// Reads a model file of any supported format from its bytes.
///
/// # Errors
/// Those of [`open`], without a name of the file.
pub fn open_bytes(bytes: &[u8], options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, None, "model file", options)
}

/// Reads a model file. `source` is its name for error messages; `dir` is the folder of the files that hold external data.
fn read(bytes: &[u8], dir: Option<&Path>, source: &str, options: &OpenOptions) -> Result<ModelFile> {
    let Some(format) = detect(bytes) else { return Err(Error::format(source, describe_unknown(bytes))) };
    // One arm for each format, such as `Format::Nam => nam::read(bytes, source, options)`. A reader has the form
    // `fn read(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile>`, where `source` is the name of the
    // file for error messages.
    match format {
        #[cfg(feature = "onnx")]
        Format::Onnx => crate::onnx::read(bytes, dir, source, options),
        #[cfg(feature = "keras")]
        Format::Keras => crate::keras::read(bytes, source, options),
        #[cfg(feature = "safetensors")]
        Format::Safetensors => crate::state_dict::read_safetensors(bytes, source, options),
        #[cfg(feature = "pytorch")]
        Format::PyTorch => crate::pytorch::read(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::RtNeural => crate::audio::read_rtneural(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::GuitarMl => crate::audio::read_guitarml(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::AidaX => crate::audio::read_aidax(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::Nam => crate::audio::read_nam(bytes, source, options),
        #[allow(unreachable_patterns, reason = "a build may lack the features of other formats")]
        format => Err(Error::format(source, format!("this build has no reader for the format {format}"))),
    }
}

/// Reads a regular file. A pipe or a device could be endless, or block.
fn read_regular_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        return fs::read(path);
    }
    let reason = if metadata.is_dir() {
        "it is a directory; expected a model file (of a TensorFlow SavedModel, export an ONNX file with tf2onnx)"
    } else {
        "expected a regular file, got a pipe or a device; save the model to a file first"
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Calls a reader of another crate. A panic inside it becomes an error.
#[allow(unused, reason = "a build may lack the readers of PyTorch and Keras files")]
pub(crate) fn catch_panic<T>(source: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Error::format(source, "the file is damaged: its reader failed");
    catch_unwind(AssertUnwindSafe(read)).map_err(panicked)?
}
