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
    let workspace = cargo::workspace()?;
    let requested = value(&args.options, "--backends");
    let requested: Option<Vec<String>> = requested.map(|list| list.split(',').map(str::to_owned).collect());
    let mut build = cargo::cargo();
    build.args(["build", "--quiet", "--release", "--package", cargo::BENCHES, "--bin", "bench", "--bin", "worker"]);
    // Only the requested backends, without the default feature.
    build.arg("--no-default-features").args(workspace.features(&[cargo::BENCHES], requested.as_deref()));
    ensure!(build.status().context("cargo build")?.success(), "building the benchmarks failed");
    let program = workspace.target.join("release").join(format!("bench{}", std::env::consts::EXE_SUFFIX));
    // Runs in the user's current directory, because paths in the options are relative to it.
    let mut bench = std::process::Command::new(&program);
    bench.args(&args.options);
    if value(&args.options, "--out").is_none() {
        bench.arg("--out").arg(Path::new(&workspace.target).join("bench"));
    }
    Ok(bench.status().with_context(|| program.display().to_string())?.success())
}

/// The value of an option, given as `NAME VALUE` or `NAME=VALUE`.
fn value<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    let at = options.iter().position(|word| word == name || word.starts_with(&format!("{name}=")))?;
    match options[at].split_once('=') {
        Some((_, value)) => Some(value),
        None => options.get(at + 1).map(String::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_values_follow_as_word_or_after_equals_sign() {
        let options = ["--quick", "--backends", "cpu,cuda", "--out=x", "--json"].map(str::to_owned);
        assert_eq!(value(&options, "--backends"), Some("cpu,cuda"));
        assert_eq!(value(&options, "--out"), Some("x"));
        assert_eq!(value(&options, "--json"), None);
        assert_eq!(value(&options, "--back"), None);
    }
}
