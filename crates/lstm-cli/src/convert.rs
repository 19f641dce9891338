//! `lstm convert`: converts a model to another file format.

use std::{fmt, path::PathBuf, process::ExitCode};

use lstm::{OnnxWriter, StateDictWriter, TensorNames, weights::state_dict::Dtype};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::{self, ModelFormat, quoted_list},
    output::{check_distinct_paths, check_extension},
    report::{OutputSettings, path_text},
};

/// Convert a model to .safetensors (with PyTorch's tensor names) or .onnx
///
/// Nothing is dropped silently: what the new file can't hold is an error. This includes tensors and nodes that are not
/// part of the LSTM, unless --name selects the LSTM. Options that no tensor implies, such as the clip bound, are stored
/// in the metadata of a .safetensors file.
///
/// An .onnx graph may have inputs for initial states and sequence lengths; --inputs keeps them in a new .onnx file. The
/// graph's outputs must include the whole output sequence of the last layer, because that and the final states are the
/// outputs of the new file. --name takes the LSTM nodes without the graph's inputs and outputs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    /// The file to write, .safetensors or .onnx
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// Prefix of the tensor names in a new .safetensors file, with a final dot, such as `lstm.`
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
    config: String,
    parameters: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}, {} parameters", self.out, self.config, self.parameters)
    }
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    check_extension("OUT", Some(&args.out), &["safetensors", "onnx"])?;
    check_distinct_paths("OUT", Some(&args.out), &[("MODEL", Some(&args.model.path))])?;
    let writes_onnx = ModelFormat::of(&args.out)? == ModelFormat::Onnx;
    let loaded_model = args.model.load()?;
    let lost_content_error = |why: &str| Error::file(&args.model.path, why);
    if loaded_model.state.is_some() || loaded_model.lengths.is_some() {
        return Err(lost_content_error(
            "its graph has constant initial states or sequence lengths, which would be lost",
        ));
    }
    if let Some(unused_text) = loaded_model.describe_unused() {
        return Err(lost_content_error(&format!("{unused_text}; this would be lost")));
    }
    let hint =
        format!("to convert the LSTM nodes alone, select them with --name: {}", quoted_list(&loaded_model.names));
    let inputs: Vec<String> = loaded_model.state_inputs.iter().chain(&loaded_model.lengths_input).cloned().collect();
    if !(inputs.is_empty() || loaded_model.selected_by_name || args.inputs) {
        let inputs_hint = if writes_onnx { "; --inputs keeps them" } else { "" };
        return Err(lost_content_error(&format!(
            "its graph's inputs for states or lengths, {}, would be lost{inputs_hint}; {hint}",
            quoted_list(&inputs)
        )));
    }
    if !loaded_model.partial_outputs.is_empty() {
        let outputs = quoted_list(&loaded_model.partial_outputs);
        return Err(lost_content_error(&format!(
            "its graph's outputs {outputs} would be replaced by the whole output sequence of the last layer; {hint}"
        )));
    }
    let weights = &loaded_model.weights;
    match writes_onnx {
        false if args.inputs => return Err(Error::option("inputs", "only an .onnx file can have inputs")),
        false => {
            let writer = StateDictWriter::new().dtype(args.dtype);
            writer.lstm(&args.prefix, weights, TensorNames::PyTorch)?.save(&args.out)?;
        }
        true if args.dtype != Dtype::F32 => {
            return Err(Error::option("dtype", "an .onnx file is always written in F32"));
        }
        true if !args.prefix.is_empty() => {
            return Err(Error::option("prefix", "only a .safetensors file has a prefix"));
        }
        true => {
            let writer = OnnxWriter::new(weights);
            let writer = if args.inputs { writer.initial_state().lengths() } else { writer };
            writer.save(&args.out)?;
        }
    }
    output.report(&Report {
        model: path_text(&args.model.path),
        out: path_text(&args.out),
        config: weights.config().to_string(),
        parameters: weights.len(),
    })?;
    Ok(ExitCode::SUCCESS)
}
