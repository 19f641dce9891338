//! `cargo xtask test-all`: all tests, and a table of what ran where.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{self, BACKENDS, TESTS, TOOL, Workspace},
    table::{Line, NotRun, Table},
};

/// Run all tests and end with a table: backends by groups of cases
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Backends to test; by default all that can be built
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// Backends that must run: it is a failure if one does not
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
    /// Build for speed: slower to build, several times faster to run
    #[arg(long)]
    release: bool,
    /// Also run the activations over all 2^32 inputs (minutes)
    #[arg(long)]
    exhaustive: bool,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let workspace = cargo::workspace()?;
    for name in args.backends.iter().flatten().chain(&args.require) {
        let known = BACKENDS.contains(&name.as_str()) || workspace.backends.contains(name);
        ensure!(known, "no backend is called `{name}`; there are: {}", BACKENDS.join(", "));
    }
    let dir = workspace.target.join("test-all");
    std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let results = dir.join("results.jsonl");
    std::fs::write(&results, "").with_context(|| format!("{}", results.display()))?;

    let run = |packages: &[&str], cargo_args: &[&str], test_args: &[&str]| {
        let features = workspace.features(packages, args.backends.as_deref());
        test(args, &workspace, &results, features, cargo_args, test_args)
    };
    // Backends first to last: unit, integration and documentation tests of every package, whatever fails.
    let all = ["--workspace", "--no-fail-fast"];
    let all = all.into_iter().chain(args.release.then_some("--release")).collect::<Vec<_>>();
    let mut passed = run(&[TESTS, TOOL], &all, &[])?;
    if args.exhaustive {
        passed &= run(&[TESTS], &["--release", "--package", TESTS, "--test", "conformance"], &["--ignored"])?;
    }

    let text = std::fs::read_to_string(&results).with_context(|| format!("{}", results.display()))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Line>, _>>();
    let table = Table::new(lines.with_context(|| format!("{}", results.display()))?, absent(args, &workspace));
    println!("\n{table}");
    let missing: Vec<_> = args.require.iter().filter(|name| !table.ran_all(name)).collect();
    for name in &missing {
        println!("required, did not run, or not all of it: {name}");
    }
    println!("cargo test: {}", if passed { "passed" } else { "FAILED" });
    Ok(passed && missing.is_empty() && table.failures() == 0)
}

/// One run of `cargo test`; whether all of it passed.
fn test(
    args: &Args,
    workspace: &Workspace,
    results: &Path,
    features: Vec<String>,
    cargo_args: &[&str],
    test_args: &[&str],
) -> Result<bool> {
    let mut command = cargo::cargo();
    command.arg("test").args(cargo_args).args(features);
    if !test_args.is_empty() {
        command.arg("--").args(test_args);
    }
    command.env("LSTM_RESULTS", results);
    match &args.backends {
        // Those that are not built are reported below.
        Some(wanted) => {
            let built = wanted.iter().filter(|name| workspace.backends.contains(name)).cloned();
            command.env("LSTM_BACKENDS", built.collect::<Vec<_>>().join(","))
        }
        None => command.env_remove("LSTM_BACKENDS"),
    };
    Ok(command.status().context("cargo test")?.success())
}

/// Backends that no test can have reported on, because they were not built or not asked for.
fn absent(args: &Args, workspace: &Workspace) -> Vec<NotRun> {
    let mut names: Vec<String> = BACKENDS.map(str::to_owned).to_vec();
    names.extend(workspace.backends.iter().filter(|name| !BACKENDS.contains(&name.as_str())).cloned());
    let why = |name: &String| {
        if !workspace.backends.contains(name) {
            return Some("not built: no such feature yet");
        }
        let asked = args.backends.as_ref().is_none_or(|wanted| wanted.contains(name));
        (!asked).then_some("not asked for")
    };
    names.into_iter().map(|name| NotRun { why: why(&name).map(str::to_owned), name }).collect()
}
