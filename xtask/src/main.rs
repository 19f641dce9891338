//! `cargo xtask COMMAND`, with one file for each command. The program starts cargo and reads JSON; it does not link the
//! library.

mod bench;
mod c;
mod cargo;
mod check_features;
mod mpi;
mod python;
mod soak;
mod table;
mod test_all;
mod verify;
mod verify_models;
mod web;

use std::process::ExitCode;

use clap::Parser;

/// Commands for working on this repository
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    TestAll(test_all::Args),
    Bench(bench::Args),
    C(c::Args),
    CheckFeatures(check_features::Args),
    Mpi(mpi::Args),
    Verify(verify::Args),
    /// Compare every backend with ONNX models and the outputs of other runtimes (same program as `verify`)
    VerifyOnnx(verify::Args),
    VerifyModels(verify_models::Args),
    Python(python::Args),
    Soak(soak::Args),
    Web(web::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::TestAll(args) => test_all::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::C(args) => c::run(&args),
        Command::CheckFeatures(args) => check_features::run(&args),
        Command::Mpi(args) => mpi::run(&args),
        Command::Verify(args) | Command::VerifyOnnx(args) => verify::run(&args),
        Command::VerifyModels(args) => verify_models::run(&args),
        Command::Python(args) => python::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Web(args) => web::run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
