//! Runs cargo and reads the metadata of the workspace.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Names of the known backends, in the order of the columns of tables. The workspace may have other backends.
pub(crate) const BACKENDS: [&str; 4] = ["cpu", "wgpu", "cuda", "cuda-host"];

/// Name of the package with the tests. It has a feature for each backend.
pub(crate) const TESTS_PACKAGE: &str = "lstm-tests";

/// Name of the package with the command-line tool. It has a feature for each backend.
pub(crate) const TOOL_PACKAGE: &str = "lstm-cli";

/// Name of the package that chooses a backend at run time. It has a feature for each backend.
pub(crate) const FACADE_PACKAGE: &str = "lstm";

/// Name of the package with the benchmarks. It has a feature for each backend.
pub(crate) const BENCHES_PACKAGE: &str = "lstm-benches";

/// A command that runs cargo in the root of the workspace. Uses the cargo that started this program.
pub(crate) fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Says that a check is not run. With the environment variable `LSTM_REQUIRE`, that is an error.
pub(crate) fn not_run(what: &str) -> Result<()> {
    ensure!(std::env::var_os("LSTM_REQUIRE").is_none(), "not run, but LSTM_REQUIRE is set: {what}");
    println!("not run: {what}");
    Ok(())
}

/// Builds and runs a program of the tests in a release build, with these arguments and, as its option `--backends`, the
/// requested backends. Returns whether it succeeded.
pub(crate) fn run_verification(program: &str, args: Vec<OsString>, backends: Option<&[String]>) -> Result<bool> {
    let workspace = read_workspace()?;
    let mut command = cargo_command();
    command.args(["run", "--quiet", "--release", "--package", TESTS_PACKAGE, "--bin", program]);
    command.args(workspace.feature_args(&[TESTS_PACKAGE], backends)).arg("--").args(args);
    if let Some(backends) = backends {
        command.args(["--backends", &backends.join(",")]);
    }
    Ok(command.status().context("cargo run")?.success())
}

/// The output of `cargo metadata`, without the fields that are not used.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

/// A package in the output of `cargo metadata`.
#[derive(Deserialize)]
struct Package {
    name: String,
    /// The registries to which the package may be published: any if `None`.
    publish: Option<Vec<String>>,
    features: BTreeMap<String, Vec<String>>,
}

/// Metadata of the workspace.
pub(crate) struct Workspace {
    /// Names of the backends for which the tests have a feature.
    pub(crate) backends: Vec<String>,
    /// Directory of build outputs.
    pub(crate) target_dir: PathBuf,
    packages: Vec<Package>,
}

/// Reads the metadata of the workspace from cargo.
pub(crate) fn read_workspace() -> Result<Workspace> {
    let output =
        cargo_command().args(["metadata", "--format-version", "1", "--no-deps"]).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let tests = metadata.packages.iter().find(|package| package.name == TESTS_PACKAGE);
    let features = &tests.with_context(|| format!("no package {TESTS_PACKAGE} in the workspace"))?.features;
    let mut backends: Vec<String> = features.keys().filter(|feature| *feature != "default").cloned().collect();
    // In the order of BACKENDS; unknown backends come last.
    backends.sort_by_key(|name| BACKENDS.iter().position(|known| known == name).unwrap_or(BACKENDS.len()));
    Ok(Workspace { backends, target_dir: metadata.target_directory, packages: metadata.packages })
}

impl Workspace {
    /// Names of all packages.
    pub(crate) fn package_names(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(|package| package.name.as_str())
    }

    /// Names of the packages that are published.
    pub(crate) fn published_packages(&self) -> impl Iterator<Item = &str> {
        let is_published =
            |package: &&Package| package.publish.as_ref().is_none_or(|registries| !registries.is_empty());
        self.packages.iter().filter(is_published).map(|package| package.name.as_str())
    }

    /// The features of a package that a feature enables, itself included, sorted.
    pub(crate) fn enabled_features(&self, package: &str, feature: &str) -> Vec<&str> {
        let features =
            self.packages.iter().find(|candidate| candidate.name == package).map(|package| &package.features);
        let mut enabled = BTreeSet::new();
        let mut unread: Vec<_> = features.and_then(|features| features.get_key_value(feature)).into_iter().collect();
        while let Some((name, enables)) = unread.pop() {
            if enabled.insert(name.as_str()) {
                let of_this_package = enables.iter().filter_map(|name| features?.get_key_value(name));
                unread.extend(of_this_package);
            }
        }
        enabled.into_iter().collect()
    }

    /// Names of the features of a package, sorted.
    pub(crate) fn features(&self, package: &str) -> impl Iterator<Item = &str> {
        let packages = self.packages.iter().filter(move |candidate| candidate.name == package);
        packages.flat_map(|package| package.features.keys()).map(String::as_str)
    }

    /// Returns arguments for cargo that enable the requested backends, or all backends if `None`, in the given
    /// packages. If a package has no feature for a backend, the backend is not enabled in it.
    pub(crate) fn feature_args(&self, packages: &[&str], requested_backends: Option<&[String]>) -> Vec<String> {
        let requested_backends = requested_backends.unwrap_or(&self.backends);
        let selected_packages = self.packages.iter().filter(|package| packages.contains(&package.name.as_str()));
        let feature_list = selected_packages.flat_map(|Package { name, features, .. }| {
            let backends = self.backends.iter().filter(|backend| requested_backends.contains(backend));
            backends.filter(|backend| features.contains_key(*backend)).map(move |backend| format!("{name}/{backend}"))
        });
        let feature_list = feature_list.collect::<Vec<_>>().join(",");
        if feature_list.is_empty() { Vec::new() } else { vec!["--features".to_owned(), feature_list] }
    }
}
