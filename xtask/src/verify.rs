//! `cargo xtask verify DIR` and `cargo xtask verify-onnx DIR`: both start the program `verify` in a release build.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;

/// Compare every backend with the golden or ONNX cases in a directory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of golden cases (tests/data/golden/make.py) or ONNX cases (tests/data/onnx/make_onnx.py)
    dir: PathBuf,
    /// Backends to run; it is an error if one can't run (default: all backends of the build)
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

/// Builds and runs the program `verify` of the package `lstm-tests`. Returns whether it succeeded.
pub(crate) fn run(args: &Args) -> Result<bool> {
    // The path is relative to the user's current directory, but cargo starts in the root of the workspace.
    let dir = std::path::absolute(&args.dir).with_context(|| format!("{}", args.dir.display()))?;
    cargo::run_verification("verify", vec![dir.into_os_string()], args.backends.as_deref())
}
