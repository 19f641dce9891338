//! `cargo xtask verify-models DIR`: starts the program `verify_models` in a release build.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;

/// Open every model file in a directory, run it on every backend, and compare the outputs with right ones
///
/// The right outputs of NAME.EXT are in NAME.expected.safetensors (`x` or `tokens`; `y` or `last`; `state.h` and `state.c`),
/// or for NAME.onnx in NAME.safetensors (`in.` and `out.` before the names of the graph's inputs and outputs).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of model files
    dir: PathBuf,
    /// Backends to run; it is an error if one can't run (default: all backends of the build)
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// File of models that may be refused, with lines `NAME: reason`; an entry that can be opened is an error
    #[arg(long)]
    allow: Option<PathBuf>,
}

/// Builds and runs the program. Returns whether it succeeded.
pub(crate) fn run(args: &Args) -> Result<bool> {
    // Paths are relative to the user's current directory, but cargo starts in the root of the workspace.
    let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| format!("{}", path.display()));
    let mut program_args = vec![absolute(&args.dir)?.into_os_string()];
    if let Some(path) = &args.allow {
        program_args.extend(["--allow".into(), absolute(path)?.into_os_string()]);
    }
    cargo::run_verification("verify_models", program_args, args.backends.as_deref())
}
