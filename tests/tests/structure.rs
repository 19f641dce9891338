//! Rules of the repository that a compiler does not hold: which way dependencies point, how long files are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Which packages of the workspace each may depend on, also for its tests. Core <- backends <- tests <- benches; xtask
/// meets them only through processes.
const ARROWS: &[(&str, &[&str])] = &[
    ("lstm-core", &[]),
    ("lstm-cpu", &["lstm-core"]),
    ("lstm-wgpu", &["lstm-core"]),
    ("lstm-cuda", &["lstm-core"]),
    ("lstm-tests", &["lstm-core", "lstm-cpu", "lstm-wgpu", "lstm-cuda"]),
    ("lstm-benches", &["lstm-core", "lstm-cpu", "lstm-wgpu", "lstm-cuda", "lstm-tests"]),
    ("lstm-examples", &["lstm-core", "lstm-cpu", "lstm-wgpu", "lstm-cuda"]),
    ("lstm-cli", &["lstm-core", "lstm-cpu", "lstm-wgpu", "lstm-cuda"]),
    ("xtask", &[]),
];

/// Lines that a source file may have.
const MAX_LINES: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// Each package of the workspace and the packages of the workspace that it depends on.
fn dependencies() -> Result<BTreeMap<String, Vec<String>>> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(cargo.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: Value = serde_json::from_slice(&cargo.stdout)?;
    let list =
        |value: &Value, key: &str| value[key].as_array().cloned().with_context(|| format!("`{key}` in the metadata"));
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata, "packages")?;
    let ours: Vec<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let needs = list(package, "dependencies")?.iter().map(name).filter(|n| ours.contains(n)).collect();
            Ok((name(package), needs))
        })
        .collect()
}

#[test]
fn arrows_point_one_way() -> Result<()> {
    for (package, needs) in dependencies()? {
        let arrow = ARROWS.iter().find(|(name, _)| *name == package);
        let (_, allowed) = arrow.with_context(|| format!("{package} is not in the list of arrows: add it"))?;
        for need in needs {
            ensure!(allowed.contains(&need.as_str()), "{package} depends on {need}; allowed: {allowed:?}");
        }
    }
    Ok(())
}

/// All files below `dir` but build outputs and what version control keeps for itself.
fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
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

/// Path and contents of every text file.
fn texts() -> Result<Vec<(PathBuf, String)>> {
    let mut paths = Vec::new();
    files(root(), &mut paths)?;
    let text = |path: PathBuf| {
        let text = String::from_utf8(std::fs::read(&path).ok()?).ok()?;
        Some((path, text))
    };
    Ok(paths.into_iter().filter_map(text).collect())
}

#[test]
fn source_files_are_short() -> Result<()> {
    let is_source = |path: &Path| path.extension().is_some_and(|e| ["rs", "wgsl", "cu", "cuh"].iter().any(|s| e == *s));
    let long: Vec<String> = texts()?
        .iter()
        .filter(|(path, text)| is_source(path) && text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    ensure!(long.is_empty(), "more than {MAX_LINES} lines:\n{}", long.join("\n"));
    Ok(())
}

#[test]
fn nothing_names_a_machine_s_directories() -> Result<()> {
    // Put together here, or this file would be found.
    let absolute = ["/", "work"].concat();
    let names_it = |line: &str| {
        line.match_indices(&absolute).any(|(at, found)| {
            let before = line[..at].chars().next_back();
            let after = line[at + found.len()..].chars().next();
            // A letter on either side makes it part of another name.
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.')
                && !after.is_some_and(char::is_alphanumeric)
        })
    };
    let mut found = Vec::new();
    for (path, text) in texts()? {
        let lines = text.lines().enumerate().filter(|(_, line)| names_it(line));
        found.extend(lines.map(|(k, line)| format!("{}:{}: {}", path.display(), k + 1, line.trim())));
    }
    ensure!(found.is_empty(), "absolute paths:\n{}", found.join("\n"));
    Ok(())
}
