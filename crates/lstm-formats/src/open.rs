//! Opens a model file of any supported format, which the content of the file determines.

use std::{fs, io, path::Path};

use lstm_core::{Backend, Error, FloatEnvironment, Model, Result, weights::file::read_regular};

use crate::{
    detect::{check_shard, describe_unknown, detect},
    file::{Format, ModelFile, OpenOptions},
};

/// Reads a model file of any supported format. The content of the file determines the format, not its name.
///
/// # Errors
/// [`Error::Io`] if the file can't be read or is not a regular file; [`Error::Format`] for a file of an unknown format
/// or with a layer that is not supported, for one shard of a checkpoint in several files, the errors of the format's
/// reader, and those of [`ModelWeights::quantize`](lstm_core::ModelWeights::quantize). The message names the file.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<ModelFile> {
    let path = path.as_ref();
    let bytes = read_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    check_shard(&name).map_err(|why| Error::format(path.display().to_string(), why))?;
    read(&bytes, &path.display().to_string(), path.parent(), options)
}

/// Reads a model file of any supported format, and loads it on a device. The model computes what the file computes.
///
/// ```no_run
/// # fn example<B: lstm_core::Backend>(device: &B) -> lstm_core::Result<()> {
/// let model = lstm_formats::open_model(device, "amp.nam")?;
/// let mut stream = model.stream(1)?;
/// let mut y = [0.0];
/// stream.step(&[0.25], &mut y)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`open`], [`ModelFile::check_weights_suffice`] and [`Model::new`], and [`Error::Format`] for a model of a
/// fixed [number of time steps](ModelFile::steps), which the returned model would not check.
pub fn open_model<B: Backend>(device: &B, path: impl AsRef<Path>) -> Result<Model<B>> {
    let path = path.as_ref();
    let name = || path.display().to_string();
    let file = open(path, &OpenOptions::default())?;
    file.check_weights_suffice().map_err(|e| Error::format(name(), e))?;
    if let Some(steps) = file.steps {
        let reason = format!(
            "the model is for sequences of {steps} time steps; open it with `open`, pass such sequences alone, and take the \
             weights from there"
        );
        return Err(Error::format(name(), reason));
    }
    Model::new(device, file.weights)
}

/// Reads a model file of any supported format from its bytes.
///
/// # Errors
/// Those of [`open`], without a name of the file.
pub fn open_bytes(bytes: &[u8], options: &OpenOptions) -> Result<ModelFile> {
    read(bytes, "model file", None, options)
}

/// Reads a model file. `source` is its name for error messages, `folder` where it is, for ONNX's external data.
#[cfg_attr(not(feature = "onnx"), allow(unused_variables, reason = "only ONNX has external data"))]
fn read(bytes: &[u8], source: &str, folder: Option<&Path>, options: &OpenOptions) -> Result<ModelFile> {
    let _environment = FloatEnvironment::set_default();
    let Some(format) = detect(bytes) else { return Err(Error::format(source, describe_unknown(bytes))) };
    // One arm for each format, such as `Format::Nam => nam::read(bytes, source, options)`. A reader has the form
    // `fn read(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile>`, where `source` is the name of the
    // file for error messages.
    let no_reader = |format: Format| {
        Error::format(source, format!("this build has no reader for the format {format}; enable the feature `formats`"))
    };
    let precision = options.precision;
    // The readers know nothing of precisions, except that of ONNX, whose graph has weights of its own.
    let options = &OpenOptions { precision: precision.filter(|_| format == Format::Onnx), ..options.clone() };
    let mut file: ModelFile = match format {
        #[cfg(feature = "keras")]
        Format::Keras => crate::keras::read(bytes, source, options),
        #[cfg(feature = "safetensors")]
        Format::Safetensors => crate::state_dict::read_safetensors(bytes, source, options),
        #[cfg(feature = "pytorch")]
        Format::PyTorch => crate::pytorch::read(bytes, source, options),
        #[cfg(feature = "onnx")]
        Format::Onnx => read_onnx(bytes, source, folder, options),
        #[cfg(feature = "audio")]
        Format::RtNeural => crate::audio::read_rtneural(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::GuitarMl => crate::audio::read_guitarml(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::AidaX => crate::audio::read_aidax(bytes, source, options),
        #[cfg(feature = "audio")]
        Format::Nam => crate::audio::read_nam(bytes, source, options),
        #[allow(unreachable_patterns, reason = "a build may lack the features of other formats")]
        format => Err(no_reader(format)),
    }?;
    file.is_selection = !options.names.is_empty();
    if let Some(precision) = precision {
        file.weights = file.weights.quantize(precision).map_err(|e| Error::format(source, e))?;
    }
    Ok(file)
}

/// Reads an ONNX file. `folder` is where it is, for external data.
#[cfg(feature = "onnx")]
fn read_onnx(bytes: &[u8], source: &str, folder: Option<&Path>, options: &OpenOptions) -> Result<ModelFile> {
    for (name, is_given) in [
        ("layers", options.layers.is_some()),
        ("cell", options.cell.is_some()),
        ("clip", options.clip.is_some()),
        ("coupled", options.coupled),
    ] {
        if is_given {
            let why =
                format!("the option `{name}` is for files without a graph; the graph of an ONNX file has its own");
            return Err(Error::format(source, why));
        }
    }
    let folder = folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let graph = crate::OnnxModel::parse(bytes, source.to_owned(), folder.map(Path::to_owned))?.graph(options)?;
    let (weights, dtypes) = (graph.weights().clone(), graph.dtypes().to_vec());
    let file = ModelFile::new(Format::Onnx, weights, dtypes, graph.ignored_nodes().to_vec());
    Ok(ModelFile { onnx: Some(Box::new(graph)), ..file })
}

/// Reads a regular file. A pipe or a device could be endless, or block.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        let reason =
            "it is a directory; expected a model file (of a TensorFlow SavedModel, export an ONNX file with tf2onnx)";
        let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
        return Err(Error::Io { path: path.into(), source });
    }
    read_regular(path)
}
