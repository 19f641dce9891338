//! Runs cargo and reads the metadata of the workspace.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Names of all backends, in the order of the columns of tables. A workspace may have fewer or more.
pub(crate) const BACKENDS: [&str; 4] = ["cpu", "wgpu", "cuda", "cuda-host"];

/// Package of the tests. It has a feature for each backend.
pub(crate) const TESTS: &str = "lstm-tests";

/// Package of the command-line tool. It has a feature for each backend.
pub(crate) const TOOL: &str = "lstm-cli";

/// Package of the benchmarks. It has a feature for each backend.
pub(crate) const BENCHES: &str = "lstm-benches";

/// A command that runs cargo in the root of the workspace. Uses the cargo that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

/// The fields of the output of `cargo metadata` that are used.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

/// A package in the output of `cargo metadata`.
#[derive(Deserialize)]
struct Package {
    name: String,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

/// Metadata of the workspace.
pub(crate) struct Workspace {
    /// Names of the backends for which the tests have a feature.
    pub(crate) backends: Vec<String>,
    /// Folder of build outputs.
    pub(crate) target: PathBuf,
    packages: Vec<Package>,
}

/// Reads the metadata of the workspace from cargo.
pub(crate) fn workspace() -> Result<Workspace> {
    let output = cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let tests = metadata.packages.iter().find(|package| package.name == TESTS);
    let features = &tests.with_context(|| format!("no package {TESTS} in the workspace"))?.features;
    let mut backends: Vec<String> = features.keys().filter(|feature| *feature != "default").cloned().collect();
    // In the order of BACKENDS; unknown backends come last.
    backends.sort_by_key(|name| BACKENDS.iter().position(|known| known == name).unwrap_or(BACKENDS.len()));
    Ok(Workspace { backends, target: metadata.target_directory, packages: metadata.packages })
}

impl Workspace {
    /// Returns arguments for cargo that enable the requested backends in the given packages, or all backends if `None`.
    /// Backends without a feature are left out.
    pub(crate) fn features(&self, packages: &[&str], requested: Option<&[String]>) -> Vec<String> {
        let requested = requested.unwrap_or(&self.backends);
        let selected = self.packages.iter().filter(|package| packages.contains(&package.name.as_str()));
        let list = selected.flat_map(|Package { name, features }| {
            let backends = self.backends.iter().filter(|backend| requested.contains(backend));
            backends.filter(|backend| features.contains_key(*backend)).map(move |backend| format!("{name}/{backend}"))
        });
        let list = list.collect::<Vec<_>>().join(",");
        if list.is_empty() { Vec::new() } else { vec!["--features".to_owned(), list] }
    }
}
