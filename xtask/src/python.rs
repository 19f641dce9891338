//! `cargo xtask python`: builds the wheel of the Python package, installs it and runs its tests.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, succeed};

/// Folder of the package in the repository.
const PACKAGE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/lstm-python");

/// What builds and tests the package, with versions.
const TOOLS: [&str; 4] = ["maturin==1.16.0", "mypy==2.4.1", "numpy==2.4.6", "pytest==9.2.0"];

/// Build the wheel of the Python package, install it into a fresh virtual environment, and run its tests and mypy
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Python interpreter, 3.10 or later
    #[arg(long, default_value = "python3")]
    python: OsString,
    /// Other packages to install, such as torch, with which the tests compare
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Features of the wheel besides the CPU
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
}

/// Builds, installs and tests. Returns whether all tests passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let target_dir = cargo::read_workspace()?.target_dir;
    let (venv, wheels) = (target_dir.join("python-package"), target_dir.join("wheels"));
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if wheels.exists() {
        fs::remove_dir_all(&wheels).with_context(|| format!("{}", wheels.display()))?;
    }
    succeed(Command::new(&args.python).args(["-m", "venv", "--clear"]).arg(&venv))?;
    pip(&python, |pip| pip.args(TOOLS).args(&args.with))?;

    let mut maturin = Command::new(&python);
    maturin.args(["-m", "maturin", "build", "--release", "--locked", "--out"]).arg(&wheels).args(["--interpreter"]);
    maturin.arg(&python).current_dir(PACKAGE_DIR).env("CARGO_TARGET_DIR", &target_dir);
    if !args.features.is_empty() {
        maturin.args(["--features", &args.features.join(",")]);
    }
    succeed(&mut maturin)?;
    let wheel = only_file(&wheels)?;
    println!("{}: {} bytes", wheel.display(), fs::metadata(&wheel)?.len());
    pip(&python, |pip| pip.args(["--no-deps", "--force-reinstall"]).arg(&wheel))?;

    // `torch`, or with a version as in `torch==2.9`.
    let has_torch = args.with.iter().any(|package| package.split(['=', '<', '>', '~', '!']).next() == Some("torch"));
    let test = |args: &[&str]| -> Result<bool> {
        let mut command = Command::new(&python);
        command.arg("-m").args(args).current_dir(PACKAGE_DIR).env("PYTHONDONTWRITEBYTECODE", "1");
        if has_torch {
            // The tests that need it must not be skipped.
            command.env("LSTM_REQUIRE_TORCH", "1");
        }
        Ok(command.status().with_context(|| format!("{command:?}"))?.success())
    };
    let tests = test(&["pytest", "-q", "-rs", "-p", "no:cacheprovider"])?;
    let types = test(&["mypy", "--cache-dir", "/dev/null"])?;
    // The declarations have the names and arguments of the compiled module.
    let stubs = test(&["mypy.stubtest", "lstm._lstm"])?;
    Ok(tests && types && stubs)
}

/// Runs `pip install` with the arguments that `add` adds.
fn pip(python: &Path, add: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let mut command = Command::new(python);
    succeed(add(command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])))
}

/// The path of the only file in a folder.
fn only_file(dir: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(paths.len() == 1, "{}: expected one file, got {paths:?}", dir.display());
    paths.into_iter().next().context("no file")
}
