//! `verify DIR`: compares every backend with the golden and ONNX cases in a directory. Prints one line for each case,
//! backend and array.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lstm_tests::verify;

/// Compares every backend with the cases in a directory. Each NAME.onnx is run on the inputs in NAME.safetensors (written
/// by tests/data/onnx/make_onnx.py); any other *.safetensors file is a golden case (written by
/// tests/data/golden/make.py). Fails if an error exceeds its limit: 4 x float32_error + 1e-7 for golden cases,
/// 1e-5 + 1e-5 |want| for ONNX cases.
#[derive(Parser)]
struct Args {
    /// Directory of *.safetensors and *.onnx files
    dir: PathBuf,
    /// Backends to run; it is an error if one can't run (default: all backends of this build)
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match verify::run(&args.dir, args.backends.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
