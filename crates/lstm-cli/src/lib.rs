//! The command-line tool `lstm`. It inspects models, runs them over files of any length, compares backends bit by bit,
//! and converts models between formats.
//!
//! Each command has its own module. Results go to stdout, as text or, with `--json`, as one JSON object. Progress and
//! notes go to stderr. The exit code tells how the command ended:
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

/// Inspect, run, compare and convert LSTM models; every exact backend computes bit-identical outputs
///
/// Sequences are .npy or .csv files. An .npy file has elements of type f32, f64 or f16 and shape (steps, features),
/// (batch, steps, features) or, with --time-major, (steps, batch, features). A .csv file has one row per step; blank
/// lines are allowed only at its end. Outputs are f32 and have the same axes as the input. Files may be larger than
/// memory, unless the model has a reverse direction: then whole sequences are held in memory.
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
