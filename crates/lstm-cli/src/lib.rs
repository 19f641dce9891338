//! The tool `lstm`: looks into models, runs them over files of any length, compares backends to the bit, converts.
//!
//! One file per command. Results go to stdout, as text or, with `--json`, as one JSON object; progress and remarks go to
//! stderr. A script can tell by the exit code how it went:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a file can't be read or written, is not what it should be, or does not fit the model |
//! | 2 | the command line is wrong |
//! | 3 | `compare`: backends that promise the same bits gave others, or one that does not is further away than `--tolerance` |
//! | 4 | a backend that was asked for can't run here |
//! | 130 | interrupted, by Ctrl-C, SIGTERM or SIGHUP, and no file was left behind; if twice, a temporary `.lstm-*` may be |

#![deny(unsafe_code)]

mod backends;
mod compare;
mod convert;
mod devices;
mod error;
mod feed;
mod input;
mod inspect;
mod model;
mod output;
mod report;
mod run;
mod state;

pub use error::{Error, Result};
pub use input::{Extent, Format, Layout, Reader, hostile};

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Output;

/// LSTMs that give the same bits everywhere: look into models, run, compare and convert them
///
/// Sequences are .npy files of f32, f64 or f16: (steps, features), (batch, steps, features), or, with --time-major,
/// (steps, batch, features); or .csv files with a row per step and no blank line but at the end. Outputs lie as their
/// inputs do, of f32. Files may be larger than memory; only a model that walks backwards holds its sequences whole.
#[derive(Parser)]
#[command(name = "lstm", version, after_help = EXIT_CODES)]
struct Args {
    /// Write one JSON object to stdout instead of text; errors of the command line's form are told on stderr only
    #[arg(long, global = true)]
    json: bool,

    /// Show neither progress nor remarks
    #[arg(long, short, global = true)]
    quiet: bool,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 a file can't be read or written, or does not fit; 2 the command line is wrong;
3 `compare` found other bits, or more than --tolerance; 4 a backend that was asked for can't run here;
130 interrupted: once ends at the next chunk, twice at once and may leave a temporary file, .lstm-*";

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Run(run::Args),
    Compare(compare::Args),
    Convert(convert::Args),
    Devices(devices::Args),
}

/// Runs the tool with the process's arguments.
pub fn main() -> ExitCode {
    let Args { json, quiet, command } = Args::parse();
    let output = Output { json, quiet };
    let result = match command {
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Compare(args) => compare::run(&args, output),
        Command::Convert(args) => convert::run(&args, output),
        Command::Devices(args) => devices::run(&args, output),
    };
    result.unwrap_or_else(|error| output.fail(&error))
}
