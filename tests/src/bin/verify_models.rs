//! `verify_models DIR`: opens every model file in a directory, runs it on every backend, and compares the outputs with
//! right ones. Prints one line for each file.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use lstm_tests::verify_models;

/// Opens and runs every model file in a directory. The right outputs of NAME.EXT are in NAME.expected.safetensors, or for
/// NAME.onnx in NAME.safetensors. Fails unless every model is right, |error| <= 1e-5 + 1e-5 |y|, on every backend, or is
/// refused and listed with a reason.
#[derive(Parser)]
struct Args {
    /// Directory of model files
    dir: PathBuf,
    /// Backends to run; it is an error if one can't run (default: all backends of this build)
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// File of models that may be refused, with lines `NAME: reason`; an entry that can be opened is an error
    #[arg(long)]
    allow: Option<PathBuf>,
}

fn run(args: &Args) -> Result<bool> {
    let allowed = match &args.allow {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
            verify_models::parse_allowed(&text).with_context(|| format!("{}", path.display()))?
        }
        None => BTreeMap::new(),
    };
    let summary = verify_models::run(&args.dir, args.backends.as_deref(), &allowed)?;
    Ok(summary.failures.is_empty())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
