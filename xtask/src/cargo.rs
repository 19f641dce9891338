//! Starting cargo, and what it says about the workspace.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The backends that are meant to exist, in the order of tables. Which of them a build can hold is cargo's to say.
pub(crate) const BACKENDS: [&str; 4] = ["cpu", "wgpu", "cuda", "cuda-host"];

/// The package whose features are the backends.
pub(crate) const TESTS: &str = "lstm-tests";

/// The tool, which has a feature for each backend too.
pub(crate) const TOOL: &str = "lstm-cli";

/// What is timed, with a feature for each backend too.
pub(crate) const BENCHES: &str = "lstm-benches";

/// A `cargo` in the workspace's root, with the cargo that runs this.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

/// The part of `cargo metadata` that is needed.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

/// What the workspace holds.
pub(crate) struct Workspace {
    /// Backends that the tests have a feature for.
    pub(crate) backends: Vec<String>,
    /// Where builds go.
    pub(crate) target: PathBuf,
    packages: Vec<Package>,
}

/// Asks cargo.
pub(crate) fn workspace() -> Result<Workspace> {
    let output = cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let tests = metadata.packages.iter().find(|package| package.name == TESTS);
    let features = &tests.with_context(|| format!("no package {TESTS} in the workspace"))?.features;
    let mut backends: Vec<String> = features.keys().filter(|feature| *feature != "default").cloned().collect();
    // The order of tables, then any other.
    backends.sort_by_key(|name| BACKENDS.iter().position(|known| known == name).unwrap_or(BACKENDS.len()));
    Ok(Workspace { backends, target: metadata.target_directory, packages: metadata.packages })
}

impl Workspace {
    /// cargo's arguments that build some packages with those of `wanted` that there are.
    pub(crate) fn features(&self, packages: &[&str], wanted: Option<&[String]>) -> Vec<String> {
        let wanted = wanted.unwrap_or(&self.backends);
        let built = self.packages.iter().filter(|package| packages.contains(&package.name.as_str()));
        let list = built.flat_map(|Package { name, features }| {
            let there = self.backends.iter().filter(|backend| wanted.contains(backend));
            there.filter(|backend| features.contains_key(*backend)).map(move |backend| format!("{name}/{backend}"))
        });
        let list = list.collect::<Vec<_>>().join(",");
        if list.is_empty() { Vec::new() } else { vec!["--features".to_owned(), list] }
    }
}
