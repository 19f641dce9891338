//! `cargo xtask verify DIR` and `verify-onnx DIR`: cases against every backend, in a release build.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;

/// Compare every backend with the cases in a directory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of cases in the format of tests/data/golden/make.py, or for ONNX of tests/data/onnx/make_onnx.py
    dir: PathBuf,
    /// Backends to run, each of which must; by default all that are built
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

/// Starts the program of the tests that is called so.
pub(crate) fn run(bin: &str, args: &Args) -> Result<bool> {
    let workspace = cargo::workspace()?;
    // Relative to where the user is, which is not where cargo starts.
    let dir = std::path::absolute(&args.dir).with_context(|| format!("{}", args.dir.display()))?;
    let mut command = cargo::cargo();
    command.args(["run", "--quiet", "--release", "--package", cargo::TESTS, "--bin", bin]);
    command.args(workspace.features(&[cargo::TESTS], args.backends.as_deref()));
    command.arg("--").arg(dir);
    if let Some(backends) = &args.backends {
        command.args(["--backends", &backends.join(",")]);
    }
    Ok(command.status().context("cargo run")?.success())
}
