//! `verify DIR`: how far each backend is from golden cases, one line per case, backend and array.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lstm_tests::{golden::Golden, verify};

/// Runs every golden case in a directory (format: tests/data/golden/make.py) and fails where an error exceeds
/// 4 x the file's float32_error + 1e-7.
#[derive(Parser)]
struct Args {
    /// Directory of *.safetensors files
    dir: PathBuf,
    /// Backends to run, each of which must; by default all in this build
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    verify::main::<Golden>(&args.dir, args.backends.as_deref())
}
