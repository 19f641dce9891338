//! `lstm convert`: a model from one format to the other.

use std::{fmt, path::PathBuf, process::ExitCode};

use lstm_core::{StateDictWriter, TensorNames, weights::state_dict::Dtype};
use lstm_formats::OnnxWriter;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::{self, Kind, list},
    output::{check_apart, check_extension},
    report::{Output, text},
};

/// Convert a model to .safetensors (PyTorch's names) or .onnx
///
/// What the other format can't hold is an error, as is what is not the LSTM's unless it was chosen with --name. Options
/// that no tensor tells are kept in the metadata of a .safetensors file.
///
/// Of an .onnx graph, this goes for its inputs for initial states and lengths, which --inputs keeps in a new .onnx file,
/// and for its outputs where they are not the last layer's whole sequence, which a new file gives, with the final states.
/// --name takes LSTMs without either.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    /// The new file, .safetensors or .onnx
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// What names of tensors begin with in a new .safetensors file, up to a dot, as `lstm.`
    #[arg(long, value_name = "PREFIX", default_value = "", value_parser = prefix)]
    prefix: String,

    /// The type of elements in a new .safetensors file: F32, F64, F16 or BF16
    #[arg(long, value_name = "TYPE", default_value = "F32", value_parser = dtype)]
    dtype: Dtype,

    /// Let a new .onnx file take initial states and lengths as inputs
    #[arg(long)]
    inputs: bool,
}

/// Names are told from what stands before them by a dot only.
fn prefix(text: &str) -> Result<String, String> {
    match text.is_empty() || text.ends_with('.') {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a final dot, `{text}.`")),
    }
}

fn dtype(name: &str) -> Result<Dtype, String> {
    let known = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16];
    let found = known.into_iter().find(|dtype| dtype.to_string().eq_ignore_ascii_case(name));
    found.ok_or_else(|| "expected F32, F64, F16 or BF16".into())
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

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    check_extension("OUT", Some(&args.out), &["safetensors", "onnx"])?;
    check_apart("OUT", Some(&args.out), &[("MODEL", Some(&args.model.path))])?;
    let onnx = Kind::of(&args.out)? == Kind::Onnx;
    let loaded = args.model.load()?;
    let lost = |why: &str| Error::file(&args.model.path, why);
    if loaded.state.is_some() || loaded.lengths.is_some() {
        return Err(lost("the states or lengths that its graph fixes would be lost"));
    }
    if let Some(left_out) = loaded.left_out() {
        return Err(lost(&format!("{left_out}: these would be lost")));
    }
    // Who names LSTMs wants them without what the graph has around them.
    let alone = format!("to take LSTMs alone, --name them: {}", list(&loaded.names));
    let inputs: Vec<String> = loaded.state_inputs.iter().chain(&loaded.lengths_input).cloned().collect();
    if !(inputs.is_empty() || loaded.chosen || args.inputs) {
        let keep = if onnx { "; --inputs keeps such inputs" } else { "" };
        return Err(lost(&format!(
            "its graph's inputs for states or lengths, {}, would be lost{keep}; {alone}",
            list(&inputs)
        )));
    }
    if !loaded.partial.is_empty() {
        let outputs = list(&loaded.partial);
        return Err(lost(&format!(
            "its graph's outputs {outputs} would become the last layer's whole sequence; {alone}"
        )));
    }
    let weights = &loaded.weights;
    match onnx {
        false if args.inputs => return Err(Error::option("inputs", "only an .onnx file has inputs")),
        false => {
            let writer = StateDictWriter::new().dtype(args.dtype);
            writer.lstm(&args.prefix, weights, TensorNames::PyTorch)?.save(&args.out)?;
        }
        true if args.dtype != Dtype::F32 => return Err(Error::option("dtype", ".onnx files are written in F32")),
        true if !args.prefix.is_empty() => return Err(Error::option("prefix", "is of .safetensors files")),
        true => {
            let writer = OnnxWriter::new(weights);
            let writer = if args.inputs { writer.initial_state().lengths() } else { writer };
            writer.save(&args.out)?;
        }
    }
    output.report(&Report {
        model: text(&args.model.path),
        out: text(&args.out),
        config: weights.config().to_string(),
        parameters: weights.len(),
    })?;
    Ok(ExitCode::SUCCESS)
}
