//! `cargo xtask bench`: builds the benchmark programs with the requested backends and runs `bench`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Benchmark every backend against other libraries and the limits of the machine; `--help` lists the options
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Options of the program `bench` of the package `lstm-benches`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let workspace = cargo::read_workspace()?;
    let requested_backends = option_value(&args.options, "--backends");
    let requested_backends: Option<Vec<String>> =
        requested_backends.map(|list| list.split(',').map(str::to_owned).collect());
    let mut build_command = cargo::cargo_command();
    build_command.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        cargo::BENCHES_PACKAGE,
        "--bin",
        "bench",
        "--bin",
        "worker",
    ]);
    // Only the requested backends, without the default feature.
    build_command
        .arg("--no-default-features")
        .args(workspace.feature_args(&[cargo::BENCHES_PACKAGE], requested_backends.as_deref()));
    ensure!(build_command.status().context("cargo build")?.success(), "building the benchmarks failed");
    let program = workspace.target_dir.join("release").join(format!("bench{}", std::env::consts::EXE_SUFFIX));
    // Runs in the user's current directory, because paths in the options are relative to it.
    let mut bench_command = std::process::Command::new(&program);
    bench_command.args(&args.options);
    if option_value(&args.options, "--out").is_none() {
        bench_command.arg("--out").arg(Path::new(&workspace.target_dir).join("bench"));
    }
    Ok(bench_command.status().with_context(|| program.display().to_string())?.success())
}

/// The value of an option, given as `NAME VALUE` or `NAME=VALUE`.
fn option_value<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    let index = options.iter().position(|word| word == name || word.starts_with(&format!("{name}=")))?;
    match options[index].split_once('=') {
        Some((_, value)) => Some(value),
        None => options.get(index + 1).map(String::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_values_follow_as_word_or_after_equals_sign() {
        let options = ["--quick", "--backends", "cpu,cuda", "--out=x", "--json"].map(str::to_owned);
        assert_eq!(option_value(&options, "--backends"), Some("cpu,cuda"));
        assert_eq!(option_value(&options, "--out"), Some("x"));
        assert_eq!(option_value(&options, "--json"), None);
        assert_eq!(option_value(&options, "--back"), None);
    }
}
