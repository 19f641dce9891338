//! The command-line tool `lstm`. It inspects models, runs them over files of any length, compares backends bit by bit,
//! and converts models between formats.
//!
//! ```text
//! cargo install --path crates/lstm-cli
//!
//! lstm devices                                              the backends that run here
//! lstm inspect model.onnx                                   layers, sizes, options
//! lstm run model.safetensors --input x.npy --output y.npy   .csv and .wav as well
//! lstm compare model.keras --input x.npy                    every backend: bits that differ
//! lstm convert model.h5 model.safetensors                   to PyTorch's names; .onnx as well
//! ```
//!
//! `lstm --help` and `lstm run --help` describe every option. `docs/formats.md` in the repository lists the formats.
//!
//! Results go to stdout, as text or, with `--json`, as one JSON object. Progress and notes go to stderr. The exit code tells
//! how the command ended:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success |
//! | 1 | a file can't be read or written, is invalid, or does not match the model |
//! | 2 | the command line is invalid |
//! | 3 | `compare`: the outputs of exact backends differ, or an inexact backend exceeds `--tolerance` |
//! | 4 | a requested backend is not available |
//! | 130 | interrupted by Ctrl-C, SIGTERM or SIGHUP; no output file is written |
//!
//! The first interrupt ends the command after the current chunk. A second one ends it at once and may leave a temporary
//! file `.lstm-*` behind.

#![deny(unsafe_code)]

mod backends;
mod compare;
mod convert;
mod devices;
mod error;
mod input;
mod inspect;
mod model;
mod output;
mod report;
mod run;
mod sequences;
mod state;

pub use error::{Error, Result};
pub use input::{Format, Layout, Reader, SequenceShape};

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::OutputSettings;

/// Inspect, run, compare and convert models with LSTMs; every exact backend computes bit-identical outputs
///
/// Sequences are .npy, .csv or .wav files. An .npy file has elements of type f32, f64 or f16 and shape (steps, features),
/// (batch, steps, features) or, with --time-major, (steps, batch, features). A .csv file has one row per step; blank
/// lines are allowed only at its end. In a .wav file, each channel is a sequence. Outputs are f32 and have the same axes
/// as the input. Files may be larger than memory, unless the model has a reverse direction: then whole sequences are held
/// in memory.
#[derive(Parser)]
#[command(name = "lstm", version, after_help = EXIT_CODES_HELP)]
struct Args {
    /// Write one JSON object to stdout instead of text; usage errors are still text on stderr
    #[arg(long, global = true)]
    json: bool,

    /// Do not show progress and notes
    #[arg(long, short, global = true)]
    quiet: bool,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES_HELP: &str = "\
Exit codes:
  0    success
  1    a file can't be read or written, is invalid, or does not match the model
  2    the command line is invalid
  3    `compare`: exact backends differ, or an inexact backend exceeds --tolerance
  4    a requested backend is not available
  130  interrupted: the first interrupt ends the command after the current chunk, a second
       one at once; only then may a temporary file .lstm-* remain";

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Run(run::Args),
    Compare(compare::Args),
    Convert(convert::Args),
    Devices(devices::Args),
}

/// Runs the tool with the process's command-line arguments and returns the exit code.
pub fn main() -> ExitCode {
    let Args { json, quiet, command } = Args::parse();
    quiet_driver();
    let output = OutputSettings { json, quiet };
    let result = match command {
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Compare(args) => compare::run(&args, output),
        Command::Convert(args) => convert::run(&args, output),
        Command::Devices(args) => devices::run(&args, output),
    };
    result.unwrap_or_else(|error| output.report_error(&error))
}

/// Starts the tool again with `XDG_RUNTIME_DIR` set, if it is not. Mesa's Vulkan drivers look for a display and print
/// lines to stderr if the variable is missing. The directory does not exist, so they find none, and the tool needs none.
/// Environment variables are only set for a new process, because other threads could read them.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
fn quiet_driver() {
    use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    if env::var_os(VARIABLE).is_some_and(|dir| Path::new(&dir).is_absolute()) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut args = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    // `exec` only returns if it fails. Then the tool runs with the driver's lines.
    let _ = command.args(args).env(VARIABLE, "/nonexistent").exec();
}

#[cfg(not(all(feature = "wgpu", target_os = "linux")))]
fn quiet_driver() {}
