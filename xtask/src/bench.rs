//! `cargo xtask bench`: builds the programs of `benches` with the backends that are wanted, and starts the one that times.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Time every backend, beside other libraries and the machine's own limits; `--help` tells its options
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// The options of the program `bench` of the package `lstm-benches`, which knows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let workspace = cargo::workspace()?;
    let wanted = value(&args.options, "--backends");
    let wanted: Option<Vec<String>> = wanted.map(|list| list.split(',').map(str::to_owned).collect());
    let mut build = cargo::cargo();
    build.args(["build", "--quiet", "--release", "--package", cargo::BENCHES, "--bin", "bench", "--bin", "worker"]);
    // Features are what is asked for, without the default.
    build.arg("--no-default-features").args(workspace.features(&[cargo::BENCHES], wanted.as_deref()));
    ensure!(build.status().context("cargo build")?.success(), "the benches did not build");
    let program = workspace.target.join("release").join(format!("bench{}", std::env::consts::EXE_SUFFIX));
    // Where the user is: paths among the options are relative to that.
    let mut bench = std::process::Command::new(&program);
    bench.args(&args.options);
    if value(&args.options, "--out").is_none() {
        bench.arg("--out").arg(Path::new(&workspace.target).join("bench"));
    }
    Ok(bench.status().with_context(|| program.display().to_string())?.success())
}

/// What is given to an option, as the next word or behind `=`.
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
    fn an_option_s_value_is_the_next_word_or_behind_the_sign() {
        let options = ["--quick", "--backends", "cpu,cuda", "--out=x", "--json"].map(str::to_owned);
        assert_eq!(value(&options, "--backends"), Some("cpu,cuda"));
        assert_eq!(value(&options, "--out"), Some("x"));
        assert_eq!(value(&options, "--json"), None);
        assert_eq!(value(&options, "--back"), None);
    }
}
