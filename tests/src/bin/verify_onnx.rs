//! `verify_onnx DIR`: how far each backend is from ONNX cases, one line per case, backend and output.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lstm_tests::{onnx::OnnxCase, verify};

/// Runs every NAME.onnx in a directory on the inputs in NAME.safetensors (format: tests/data/onnx/make_onnx.py) and
/// fails where |got - want| > 1e-5 + 1e-5 |want|.
#[derive(Parser)]
struct Args {
    /// Directory of *.onnx and *.safetensors files
    dir: PathBuf,
    /// Backends to run, each of which must; by default all in this build
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    verify::main::<OnnxCase>(&args.dir, args.backends.as_deref())
}
