//! `cargo xtask python`: builds the wheel of the Python package, installs it and runs its tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, succeed};

/// Folder of the package in the repository.
const PACKAGE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/lstm-python");

/// The file with the licences of the crates that are linked into the wheel.
const LICENSES: &str = "THIRD-PARTY-LICENSES.txt";

/// What builds and tests the package, with versions.
const TOOLS: [&str; 4] = ["maturin==1.16.0", "mypy==2.4.1", "numpy==2.4.6", "pytest==9.2.0"];

/// Build the wheel of the Python package, install it into a fresh virtual environment, and run its tests and mypy
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Python interpreter, 3.10 or later
    #[arg(long, default_value = "python3")]
    python: OsString,
    /// Other packages to install, such as torch, with which the tests compare
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Features of the wheel besides the CPU
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// Only write the file with the licences of the crates in the wheel
    #[arg(long)]
    write_licenses: bool,
}

/// Builds, installs and tests. Returns whether all tests passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let (licenses, path) = (licenses()?, Path::new(PACKAGE_DIR).join(LICENSES));
    if args.write_licenses {
        fs::write(&path, licenses).with_context(|| format!("{}", path.display()))?;
        return Ok(true);
    }
    // Git may have changed the ends of lines.
    let current = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?.replace("\r\n", "\n");
    ensure!(current == licenses, "{LICENSES} is not that of Cargo.lock; run `cargo xtask python --write-licenses`");
    let target_dir = cargo::read_workspace()?.target_dir;
    let (venv, wheels) = (target_dir.join("python-package"), target_dir.join("wheels"));
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if wheels.exists() {
        fs::remove_dir_all(&wheels).with_context(|| format!("{}", wheels.display()))?;
    }
    succeed(Command::new(&args.python).args(["-m", "venv", "--clear"]).arg(&venv))?;
    pip(&python, |pip| pip.args(TOOLS).args(&args.with))?;

    let mut maturin = Command::new(&python);
    maturin.args(["-m", "maturin", "build", "--release", "--locked", "--out"]).arg(&wheels).args(["--interpreter"]);
    maturin.arg(&python).current_dir(PACKAGE_DIR).env("CARGO_TARGET_DIR", &target_dir);
    if !args.features.is_empty() {
        maturin.args(["--features", &args.features.join(",")]);
    }
    succeed(&mut maturin)?;
    let wheel = only_file(&wheels)?;
    println!("{}: {} bytes", wheel.display(), fs::metadata(&wheel)?.len());
    pip(&python, |pip| pip.args(["--no-deps", "--force-reinstall"]).arg(&wheel))?;

    // `torch`, or with a version as in `torch==2.9`.
    let has_torch = args.with.iter().any(|package| package.split(['=', '<', '>', '~', '!']).next() == Some("torch"));
    let test = |args: &[&str]| -> Result<bool> {
        let mut command = Command::new(&python);
        command.arg("-m").args(args).current_dir(PACKAGE_DIR).env("PYTHONDONTWRITEBYTECODE", "1");
        if has_torch {
            // The tests that need it must not be skipped.
            command.env("LSTM_REQUIRE_TORCH", "1");
        }
        Ok(command.status().with_context(|| format!("{command:?}"))?.success())
    };
    let tests = test(&["pytest", "-q", "-rs", "-p", "no:cacheprovider"])?;
    let types = test(&["mypy", "--cache-dir", "/dev/null"])?;
    // The declarations have the names and arguments of the compiled module.
    let stubs = test(&["mypy.stubtest", "lstm._lstm"])?;
    Ok(tests && types && stubs)
}

/// The output of `cargo metadata`, without the fields that are not used.
#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A package in the output of `cargo metadata`.
#[derive(serde::Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

/// The licence texts of the crates that are linked into the wheel on any system, each text once.
fn licenses() -> Result<String> {
    let run = |args: &[&str]| -> Result<String> {
        let output = cargo::cargo_command().args(args).output().with_context(|| format!("{args:?}"))?;
        ensure!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let tree = ["tree", "--locked", "--package", "lstm-python", "--features", "wgpu,cuda", "--target", "all"];
    let format = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--no-dedupe", "--format", "{p}"];
    let tree = run(&[&tree[..], &format[..]].concat())?;
    let linked: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        .collect();
    let metadata = run(&["metadata", "--format-version", "1", "--locked", "--all-features"])?;
    let mut packages = serde_json::from_str::<Metadata>(&metadata)?.packages;
    packages.retain(|p| p.source.is_some() && linked.contains(&(p.name.as_str(), p.version.as_str())));
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));

    let mut list = String::new();
    let mut crates_of_text: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Package { name, version, license, manifest_path, .. } in packages {
        let license = license.with_context(|| format!("{name}: no licence in its manifest"))?;
        list += &format!("{name} {version}: {license}\n");
        let dir = manifest_path.parent().context("a manifest is in a folder")?;
        for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            if path.is_file() && ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|start| file.starts_with(start))
            {
                let text = String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n");
                let text = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
                crates_of_text.entry(text.trim_matches('\n').to_owned()).or_default().push(format!("{name} {version}"));
            }
        }
    }
    let mut text = format!("The wheel contains these crates of Rust:\n\n{list}\nTheir licence files follow.\n");
    let mut texts: Vec<_> = crates_of_text.into_iter().collect();
    texts.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
    for (license, mut crates) in texts {
        crates.dedup();
        text += &format!("\n{}\n{}\n\n{license}\n", "=".repeat(80), crates.join(", "));
    }
    Ok(text)
}

/// Runs `pip install` with the arguments that `add` adds.
fn pip(python: &Path, add: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let mut command = Command::new(python);
    succeed(add(command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])))
}

/// The path of the only file in a folder.
fn only_file(dir: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(paths.len() == 1, "{}: expected one file, got {paths:?}", dir.display());
    paths.into_iter().next().context("no file")
}
