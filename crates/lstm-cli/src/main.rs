//! The binary of the command-line tool `lstm`. The code is in the library crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    lstm_cli::main()
}
