//! Rules of the repository that the compiler does not check: the direction of dependencies among packages and modules,
//! and no absolute paths of a development machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

mod module_cycles;

/// The packages of the workspace that each package may depend on, dev-dependencies and build-dependencies included.
/// `xtask` starts other packages as processes and links none.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("lstm-core", &[]),
    ("lstm-formats", &["lstm-core"]),
    ("lstm-cpu", &["lstm-core", "lstm-formats"]),
    ("lstm-wgpu", &["lstm-core", "lstm-formats"]),
    ("lstm-cuda", &["lstm-core", "lstm-formats"]),
    ("lstm", &["lstm-core", "lstm-formats", "lstm-cpu", "lstm-wgpu", "lstm-cuda"]),
    // What users see of the library is the facade.
    ("lstm-cli", &["lstm"]),
    ("lstm-c", &["lstm"]),
    ("lstm-python", &["lstm"]),
    ("lstm-web", &["lstm"]),
    ("lstm-examples", &["lstm"]),
    // Its tests run the tool on the simulated driver.
    ("lstm-cuda-sim", &["lstm-core", "lstm-cuda", "lstm-cli"]),
    ("lstm-tests", &["lstm", "lstm-core", "lstm-formats", "lstm-cpu", "lstm-wgpu", "lstm-cuda", "lstm-cuda-sim"]),
    ("lstm-benches", &["lstm", "lstm-core", "lstm-formats", "lstm-cpu", "lstm-cuda", "lstm-tests"]),
    ("xtask", &[]),
];

/// Folders whose modules must not depend on each other in a circle.
const ACYCLIC_FOLDERS: &[&str] = &[
    "crates/lstm/src",
    "crates/lstm-cli/src",
    "crates/lstm-cli/src/input",
    "crates/lstm-core/src/backend",
    "crates/lstm-core/src/cell",
    "crates/lstm-core/src/reference",
    "crates/lstm-core/src/train",
    "crates/lstm-core/src/weights",
    "crates/lstm-cpu/src/pass",
    "crates/lstm-cuda/src/device",
    "crates/lstm-cuda/src/launch",
    "crates/lstm-cuda/src/layer",
    "crates/lstm-formats/src",
    "crates/lstm-formats/src/audio",
    "crates/lstm-formats/src/keras",
    "crates/lstm-formats/src/onnx",
];

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the manifest is in a folder of the repository")
}

/// The packages of the workspace, each with the packages of the workspace that it depends on.
fn dependencies() -> Result<BTreeMap<String, Vec<String>>> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(cargo.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: Value = serde_json::from_slice(&cargo.stdout)?;
    let list = |value: &Value, key: &str| {
        value[key].as_array().cloned().with_context(|| format!("cargo metadata: `{key}` is missing"))
    };
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata, "packages")?;
    let members: Vec<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let dependencies = list(package, "dependencies")?;
            Ok((name(package), dependencies.iter().map(name).filter(|name| members.contains(name)).collect()))
        })
        .collect()
}

#[test]
fn packages_depend_only_on_allowed_packages() -> Result<()> {
    for (package, dependencies) in dependencies()? {
        let entry = ALLOWED_DEPENDENCIES.iter().find(|(name, _)| *name == package);
        let (_, allowed) = entry.with_context(|| format!("{package} is missing in ALLOWED_DEPENDENCIES: add it"))?;
        for dependency in dependencies {
            ensure!(
                allowed.contains(&dependency.as_str()),
                "{package} depends on {dependency}; it may depend on {allowed:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn allowed_dependencies_are_acyclic() {
    let mut allowed: BTreeMap<&str, &[&str]> = ALLOWED_DEPENDENCIES.iter().copied().collect();
    while !allowed.is_empty() {
        let before = allowed.len();
        let remaining: Vec<&str> = allowed.keys().copied().collect();
        allowed.retain(|_, dependencies| dependencies.iter().any(|dependency| remaining.contains(dependency)));
        assert!(allowed.len() < before, "ALLOWED_DEPENDENCIES has a cycle among {:?}", allowed.keys());
    }
}

#[test]
fn modules_have_no_circular_dependencies() -> Result<()> {
    for folder in ACYCLIC_FOLDERS {
        if let Some(cycle) = module_cycles::find(&root().join(folder))? {
            anyhow::bail!("{folder}: circular dependency among the modules {}", cycle.join(" -> "));
        }
    }
    Ok(())
}

/// The most packages of a build of `lstm-cpu` without features, itself included.
const MAX_PACKAGES: usize = 30;

#[test]
fn lstm_cpu_without_features_has_few_dependencies() -> Result<()> {
    let cargo = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--package", "lstm-cpu", "--no-default-features"])
        .args(["--prefix", "none", "--format", "{p}", "--no-dedupe"])
        .current_dir(root())
        .output()?;
    ensure!(cargo.status.success(), "cargo tree: {}", String::from_utf8_lossy(&cargo.stderr));
    let output = String::from_utf8(cargo.stdout)?;
    let packages: BTreeSet<&str> = output.lines().collect();
    ensure!(packages.iter().any(|package| package.starts_with("lstm-core ")), "cargo tree: {output}");
    ensure!(packages.len() <= MAX_PACKAGES, "expected at most {MAX_PACKAGES}, got {}: {packages:#?}", packages.len());
    for unwanted in ["prost", "serde", "serde_core", "serde_json", "safetensors"] {
        let is_absent = !packages.iter().any(|package| package.split(' ').next() == Some(unwanted));
        ensure!(is_absent, "lstm-cpu without features depends on {unwanted}");
    }
    Ok(())
}

/// The crates that re-export what is public in lstm-core, and lstm-formats.
const RE_EXPORTING_CRATES: &[&str] = &["lstm-cpu", "lstm-wgpu", "lstm-cuda", "lstm"];

/// The statements of a crate's `lib.rs` that start with one of `starts`, after an optional attribute. Each is one line.
fn statements(package: &str, starts: &[&str]) -> Result<BTreeSet<String>> {
    let path = root().join(format!("crates/{package}/src/lib.rs"));
    let source = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let code: Vec<&str> =
        source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).collect();
    let is_requested = |statement: &&str| {
        let after_attribute = statement.rsplit_once(")] ").map_or(*statement, |(_, statement)| statement);
        starts.iter().any(|start| after_attribute.starts_with(start))
    };
    Ok(code.join(" ").split(';').map(str::trim).filter(is_requested).map(str::to_owned).collect())
}

/// The names that `pub use` and `pub mod` statements make public.
fn public_names(statements: &BTreeSet<String>) -> BTreeSet<String> {
    let parts = statements.iter().map(|statement| statement.replace("::{self,", ", {"));
    let names = parts.flat_map(|statement| {
        let names = statement.split([',', '{', '}']).filter_map(|part| part.trim().rsplit([':', ' ']).next());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    names.collect()
}

#[test]
fn backends_re_export_everything_of_the_core() -> Result<()> {
    let core = public_names(&statements("lstm-core", &["pub use ", "pub mod "])?);
    let list = |package| statements(package, &["pub use lstm_core::", "pub use lstm_formats"]);
    let first = list(RE_EXPORTING_CRATES[0])?;
    for package in RE_EXPORTING_CRATES {
        let names = public_names(&statements(package, &["pub use lstm_core::"])?);
        let difference: Vec<_> = core.symmetric_difference(&names).collect();
        ensure!(core.len() > 50 && difference.is_empty(), "lstm-core and {package} do not both export {difference:?}");
        let difference: Vec<_> = first.symmetric_difference(&list(package)?).cloned().collect();
        ensure!(
            difference.is_empty(),
            "the re-exports of {} and {package} differ: {difference:#?}",
            RE_EXPORTING_CRATES[0]
        );
    }
    Ok(())
}

/// Collects all files below `folder`, except build outputs and the data of version control.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // In a worktree `.git` is a file.
        if ["target", ".git", ".venv", "node_modules"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            if !path.is_symlink() {
                files(&path, found)?;
            }
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// The path and the contents of every text file of the repository.
fn text_files() -> Result<Vec<(PathBuf, String)>> {
    let mut paths = Vec::new();
    files(root(), &mut paths)?;
    let read = |path: PathBuf| {
        let text = String::from_utf8(std::fs::read(&path).ok()?).ok()?;
        Some((path, text))
    };
    Ok(paths.into_iter().filter_map(read).collect())
}

#[test]
fn files_contain_no_absolute_paths_of_a_development_machine() -> Result<()> {
    // Concatenated, so that the test does not find this line.
    let absolute = ["/", "work"].concat();
    let contains_path = |line: &str| {
        line.match_indices(&absolute).any(|(at, matched)| {
            let before = line[..at].chars().next_back();
            let after = line[at + matched.len()..].chars().next();
            // With a letter on either side it is part of another name.
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.')
                && !after.is_some_and(char::is_alphanumeric)
        })
    };
    let mut found = Vec::new();
    for (path, text) in text_files()? {
        let lines = text.lines().enumerate().filter(|(_, line)| contains_path(line));
        found.extend(lines.map(|(k, line)| format!("{}:{}: {}", path.display(), k + 1, line.trim())));
    }
    ensure!(found.is_empty(), "absolute paths:\n{}", found.join("\n"));
    Ok(())
}
