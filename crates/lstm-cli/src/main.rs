//! The tool `lstm`; all of it is in the library, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    lstm_cli::main()
}
