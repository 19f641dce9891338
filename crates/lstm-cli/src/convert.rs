//! `lstm convert`: converts a model to another file format.

use std::{fmt, path::PathBuf, process::ExitCode};

use lstm::{
    ModelLayer, ModelWeights, OnnxWriter, StateDictWriter, TensorNames, Weights, formats::onnx::model_to_bytes,
    weights::state_dict::Dtype,
};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    input::extension,
    model::{self, PortKind, quoted_list},
    output::{PendingFile, check_distinct_paths, check_extension, commit_files},
    report::{OutputSettings, path_text},
};

/// Convert a model of any format to .safetensors (with PyTorch's tensor names) or .onnx
///
/// Nothing is dropped silently: what the new file can't hold is an error. This includes tensors and nodes that are not
/// part of the model, unless --name selects an LSTM. The layers, and options that no tensor implies, such as the clip
/// bound, are stored in the metadata of a .safetensors file. With `--precision int8` or `int12` the new file holds
/// quantized weights.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    /// The file to write, .safetensors or .onnx
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// Prefix of the tensor names in a new .safetensors file of a model that is one LSTM, with a final dot, such as `lstm.`
    #[arg(long, value_name = "PREFIX", default_value = "", value_parser = parse_prefix)]
    prefix: String,

    /// Element type of a new .safetensors file: F32, F64, F16 or BF16
    #[arg(long, value_name = "TYPE", default_value = "F32", value_parser = parse_dtype)]
    dtype: Dtype,

    /// Give a new .onnx file inputs for initial states and sequence lengths
    #[arg(long)]
    inputs: bool,
}

/// Parses a tensor name prefix, which is empty or ends with a dot.
fn parse_prefix(text: &str) -> Result<String, String> {
    match text.is_empty() || text.ends_with('.') {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a final dot, `{text}.`")),
    }
}

fn parse_dtype(name: &str) -> Result<Dtype, String> {
    let dtypes = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16];
    let dtype = dtypes.into_iter().find(|dtype| dtype.to_string().eq_ignore_ascii_case(name));
    dtype.ok_or_else(|| "expected F32, F64, F16 or BF16".into())
}

#[derive(Serialize)]
struct Report {
    model: String,
    out: String,
    layers: String,
    parameters: usize,
    /// The precision of the weights in the new file.
    precision: String,
    /// Names of the tensors or nodes that are not in the new file. Not empty only if an LSTM or a part was selected by name.
    unused: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = if self.precision == "f32" { String::new() } else { format!(", {}", self.precision) };
        writeln!(f, "{}: {}, {} parameters{precision}", self.out, self.layers, self.parameters)?;
        model::write_unused(f, &self.unused)
    }
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    check_extension("OUT", Some(&args.out), &["safetensors", "onnx"])?;
    check_distinct_paths("OUT", Some(&args.out), &[("MODEL", Some(&args.model.path))])?;
    let writes_onnx = extension(&args.out) == "onnx";
    let loaded_model = args.model.load()?;
    loaded_model.check_arrangement()?;
    if let Some(unused_text) = loaded_model.describe_unused() {
        return Err(Error::file(&args.model.path, format!("{unused_text}; this would be lost")));
    }
    if loaded_model.states.is_some() || loaded_model.lengths.is_some() {
        let why = "its graph has constant initial states or lengths of each sequence, which would be lost";
        return Err(Error::file(&args.model.path, why));
    }
    let hint =
        format!("to convert the LSTM nodes alone, select them with --name: {}", quoted_list(&loaded_model.nodes));
    let inputs: Vec<String> =
        [PortKind::State, PortKind::Lengths].into_iter().flat_map(|kind| loaded_model.input_names(kind)).collect();
    if !inputs.is_empty() && !args.inputs && !loaded_model.selected_by_name {
        let inputs_hint = if writes_onnx { "; --inputs keeps them" } else { "" };
        let inputs = quoted_list(&inputs);
        let why = format!("its graph's inputs for states or lengths, {inputs}, would be lost{inputs_hint}; {hint}");
        return Err(Error::file(&args.model.path, why));
    }
    let outputs = loaded_model.outputs_without_sequence();
    if !outputs.is_empty() {
        let outputs = quoted_list(&outputs);
        let why = format!(
            "its graph's outputs {outputs} would be replaced by the whole output sequence of the last layer; {hint}"
        );
        return Err(Error::file(&args.model.path, why));
    }
    let weights = &loaded_model.weights;
    let (metadata, by_name) = (weights.metadata(), loaded_model.selected_by_name);
    let precision = loaded_model.precisions();
    if precision != "f32" && (writes_onnx || args.dtype != Dtype::F32) {
        let target =
            if writes_onnx { "an .onnx file holds".into() } else { format!("`--dtype {}` is for", args.dtype) };
        let why = format!("{target} f32 weights, got {precision}; use `--precision f32`");
        return Err(Error::option("precision", why));
    }
    if let Some(steps) = loaded_model.required_steps
        && (writes_onnx || by_name || !args.prefix.is_empty() || args.dtype != Dtype::F32)
    {
        let why = format!(
            "it is for sequences of {steps} time steps, which only a .safetensors file without --name, --prefix and --dtype \
             says"
        );
        return Err(Error::file(&args.model.path, why));
    }
    match (writes_onnx, single_lstm(weights)) {
        (false, _) if args.inputs => return Err(Error::option("inputs", "only an .onnx file can have inputs")),
        // The whole-model form keeps the metadata; the plain one has PyTorch's names alone.
        (false, Some(lstm))
            if metadata.is_empty() || !args.prefix.is_empty() || args.dtype != Dtype::F32 || by_name =>
        {
            let writer = StateDictWriter::new().dtype(args.dtype);
            writer.lstm(&args.prefix, lstm, TensorNames::PyTorch)?.save(&args.out)?;
            note_lost_metadata(weights, output);
        }
        (false, _) if args.dtype != Dtype::F32 => {
            return Err(Error::option("dtype", "a model of several layers is always written in F32"));
        }
        (false, _) if !args.prefix.is_empty() => {
            return Err(Error::option("prefix", "only for a model that is one LSTM; other layers have names"));
        }
        (false, _) => weights.save(&args.out)?,
        (true, _) if args.dtype != Dtype::F32 => {
            return Err(Error::option("dtype", "an .onnx file is always written in F32"));
        }
        (true, _) if !args.prefix.is_empty() => {
            return Err(Error::option("prefix", "only a .safetensors file has a prefix"));
        }
        (true, Some(lstm)) => {
            let writer = OnnxWriter::new(lstm);
            let writer = if args.inputs { writer.initial_state().lengths() } else { writer };
            writer.save(&args.out)?;
            note_lost_metadata(weights, output);
        }
        (true, None) if args.inputs => return Err(Error::option("inputs", "only for a model that is one LSTM")),
        (true, None) => {
            let bytes = model_to_bytes(weights).map_err(|e| Error::from(e).with_path(&args.model.path))?;
            let mut file = PendingFile::create(&args.out)?;
            file.write(&bytes)?;
            commit_files([file])?;
            note_lost_metadata(weights, output);
        }
    }
    let kinds: Vec<_> = weights.layers().iter().map(ModelLayer::kind).collect();
    let report = Report {
        model: path_text(&args.model.path),
        out: path_text(&args.out),
        layers: kinds.join(", "),
        parameters: weights.num_params(),
        precision: loaded_model.precisions(),
        unused: loaded_model.unused_names.clone(),
    };
    output.report_with_files(&report, std::slice::from_ref(&args.out))?;
    Ok(ExitCode::SUCCESS)
}

/// Notes which texts of the model, such as its author, the new file does not have.
fn note_lost_metadata(weights: &ModelWeights, output: OutputSettings) {
    let keys: Vec<String> = weights.metadata().keys().cloned().collect();
    if !keys.is_empty() {
        output.note(format!("the new file has no metadata; not written: {}", quoted_list(&keys)));
    }
}

/// The LSTM of a model that is nothing else.
fn single_lstm(weights: &ModelWeights) -> Option<&Weights> {
    let is_plain = !weights.skip() && (weights.input_gain(), weights.output_gain()) == (1.0, 1.0);
    match weights.layers() {
        [ModelLayer::Lstm { weights, initial_state: None, .. }] if is_plain => Some(weights),
        _ => None,
    }
}
