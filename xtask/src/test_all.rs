//! `cargo xtask test-all`: runs the tests and prints a table of the results by backend.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{self, BACKENDS, BENCHES_PACKAGE, FACADE_PACKAGE, TESTS_PACKAGE, TOOL_PACKAGE, Workspace},
    table::{Column, ResultLine, Table},
};

/// Run the tests and print a table of the results: groups of cases by backend
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Backends to test (default: all that can be built)
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// Backends that must run: fail if one of them does not
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
    /// Build in release mode: slower to build, several times faster to run
    #[arg(long)]
    release: bool,
    /// Also run the tests of programs, bindings and what is inside the backends, and variants of backends that share
    /// nearly all of their code with those that run anyway
    #[arg(long)]
    exhaustive: bool,
}

/// Packages whose tests run with `--exhaustive` only: programs, bindings and backends. The conformance tests run what the
/// backends compute, in inference and training; the tests of lstm-cpu, which use the CPU, also cover the trainers' options.
const EXHAUSTIVE_PACKAGES: [&str; 8] =
    [BENCHES_PACKAGE, TOOL_PACKAGE, "lstm-c", "lstm-cpu", "lstm-cuda", "lstm-cuda-sim", "lstm-examples", "lstm-wgpu"];

pub(crate) fn run(args: &Args) -> Result<bool> {
    let workspace = cargo::read_workspace()?;
    for name in args.backends.iter().flatten().chain(&args.require) {
        let is_known = BACKENDS.contains(&name.as_str()) || workspace.backends.contains(name);
        ensure!(is_known, "unknown backend `{name}`; expected one of: {}", BACKENDS.join(", "));
    }
    let dir = workspace.target_dir.join("test-all");
    std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let results = dir.join("results.jsonl");
    std::fs::write(&results, "").with_context(|| format!("{}", results.display()))?;

    // Unit, integration and documentation tests of all packages. A failure does not stop the others.
    let workspace_args = ["--workspace", "--no-fail-fast"];
    let workspace_args = workspace_args.into_iter().chain(args.release.then_some("--release")).collect::<Vec<_>>();
    let all_passed = run_cargo_test(args, &workspace, &results, &workspace_args)?;

    let text = std::fs::read_to_string(&results).with_context(|| format!("{}", results.display()))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<ResultLine>, _>>();
    let table = Table::new(lines.with_context(|| format!("{}", results.display()))?, columns(args, &workspace));
    println!("\n{table}");
    let missing_backends: Vec<_> = args.require.iter().filter(|name| !table.ran_all(name)).collect();
    for name in &missing_backends {
        println!("required backend did not run completely: {name}");
    }
    println!("cargo test: {}", if all_passed { "passed" } else { "FAILED" });
    Ok(all_passed && missing_backends.is_empty() && table.failure_count() == 0)
}

/// Runs `cargo test` with the backends as features. Returns whether all tests passed.
fn run_cargo_test(args: &Args, workspace: &Workspace, results: &Path, cargo_args: &[&str]) -> Result<bool> {
    let mut packages = vec![FACADE_PACKAGE, TESTS_PACKAGE];
    let mut command = cargo::cargo_command();
    command.arg("test").args(cargo_args);
    if args.exhaustive {
        packages.push(TOOL_PACKAGE);
        command.env("LSTM_EXHAUSTIVE", "1");
    } else {
        command.args(EXHAUSTIVE_PACKAGES.iter().flat_map(|package| ["--exclude", package]));
        command.env_remove("LSTM_EXHAUSTIVE");
    }
    command.args(workspace.feature_args(&packages, args.backends.as_deref()));
    let defaults = [
        // Mesa's software Vulkan without threads of its own: tests that run at the same time have all cores.
        ("LP_NUM_THREADS", "0"),
        // Incremental builds make the first one half as long again.
        ("CARGO_INCREMENTAL", "0"),
    ];
    command.envs(defaults.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    command.env("LSTM_RESULTS", results);
    match &args.backends {
        // Backends that are not built are reported in the table.
        Some(requested) => {
            let built_backends = requested.iter().filter(|name| workspace.backends.contains(name)).cloned();
            command.env("LSTM_BACKENDS", built_backends.collect::<Vec<_>>().join(","))
        }
        None => command.env_remove("LSTM_BACKENDS"),
    };
    Ok(command.status().context("cargo test")?.success())
}

/// The columns of the table: all backends, with the reason if one was not built or not requested.
fn columns(args: &Args, workspace: &Workspace) -> Vec<Column> {
    let mut names: Vec<String> = BACKENDS.map(str::to_owned).to_vec();
    names.extend(workspace.backends.iter().filter(|name| !BACKENDS.contains(&name.as_str())).cloned());
    let reason = |name: &String| {
        if !workspace.backends.contains(name) {
            return Some("not built: the tests have no such feature");
        }
        let is_requested = args.backends.as_ref().is_none_or(|requested| requested.contains(name));
        (!is_requested).then_some("not requested")
    };
    names.into_iter().map(|name| Column { reason_not_run: reason(&name).map(str::to_owned), backend: name }).collect()
}
