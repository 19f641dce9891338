//! `cargo xtask web`: builds the WebAssembly modules and the npm package, runs its tests in a browser, and serves its demo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, cargo_command, succeed};

/// Folder of the package in the repository.
const PACKAGE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/lstm-web");

/// The modules: name, feature of the crate, and the target features that the browser must have.
const MODULES: [(&str, &str, &str); 3] = [
    ("relaxed", "runtime", "+simd128,+relaxed-simd"),
    ("simd128", "runtime", "+simd128"),
    ("convert", "convert", "+simd128"),
];

/// The target of the modules. It has a standard library that needs no JavaScript.
const TARGET: &str = "wasm32-wasip1";

/// Build the npm package lstm-web, test it in headless Chromium, or serve its demo
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program `web_cases` of lstm-tests, which computes models and expected results [default: built here]
    #[arg(long, value_name = "PROGRAM")]
    cases: Option<PathBuf>,
    /// Run the tests in Chromium, of which the environment variable CHROMIUM has the path [default: /usr/bin/chromium]
    #[arg(long)]
    test: bool,
    /// Take screenshots of the demo during the tests
    #[arg(long, value_name = "DIR", requires = "test")]
    screenshots: Option<PathBuf>,
    /// Serve the demo on this machine
    #[arg(long)]
    serve: bool,
    /// Port of the demo
    #[arg(long, default_value_t = 8080, requires = "serve")]
    port: u16,
}

/// Builds the package, and runs what the options ask for. Returns whether all tests passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let out = cargo::read_workspace()?.target_dir.join("web");
    let (package, site) = (out.join("package"), out.join("site"));
    for dir in [&package, &site] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
    }
    build_package(&package)?;
    succeed(Command::new("npm").args(["pack", "--silent", "--pack-destination"]).arg(&out).current_dir(&package))?;

    let source = Path::new(PACKAGE_DIR);
    copy_files(&source.join("demo"), &site)?;
    copy_files(&package, &site.join("lstm-web"))?;
    // Models and expected results, of native code.
    let mut cases = args.cases.as_ref().map_or_else(cargo_command, Command::new);
    if args.cases.is_none() {
        cases.args(["run", "--quiet", "--release", "--package", cargo::TESTS_PACKAGE, "--bin", "web_cases", "--"]);
    }
    succeed(cases.arg(site.join("data")))?;

    let passed = !args.test || {
        copy_files(&source.join("tests"), &site)?;
        // What drives the browser, with its version and its hash.
        for file in ["package.json", "package-lock.json"] {
            copy(&source.join("tests").join(file), &out.join(file))?;
        }
        succeed(Command::new("npm").args(["ci", "--prefer-offline", "--loglevel=error"]).current_dir(&out))?;
        let mut test = Command::new("node");
        test.arg(source.join("tests/browser.mjs")).arg(&site).current_dir(&out);
        if let Some(screenshots) = &args.screenshots {
            test.arg(std::path::absolute(screenshots)?);
        }
        test.status().context("node")?.success()
    };
    if args.serve {
        succeed(Command::new("node").arg(source.join("tests/serve.mjs")).arg(&site).arg(args.port.to_string()))?;
    }
    Ok(passed)
}

/// Builds the modules and puts the files of the npm package into a folder.
fn build_package(package: &Path) -> Result<()> {
    let source = Path::new(PACKAGE_DIR);
    copy_files(&source.join("npm"), package)?;
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    let manifest = source.join("npm/package.json");
    ensure!(fs::read_to_string(&manifest)?.contains(&version), "{}: expected {version}", manifest.display());
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&source.join("../..").join(license), &package.join(license))?;
    }
    // Side by side, because the optimization of a whole module, which takes longest, uses one core.
    let target_dir = cargo::read_workspace()?.target_dir.join("web-modules");
    let builds = MODULES.map(|(module, feature, target_features)| {
        let mut build = cargo_command();
        build.args(["build", "--profile", "web", "--package", "lstm-web", "--target", TARGET]);
        build.args(["--no-default-features", "--features", feature, "--target-dir"]).arg(target_dir.join(module));
        build.env("RUSTFLAGS", format!("-Ctarget-feature={target_features}")).spawn()
    });
    let statuses = builds.map(|build| build.and_then(|mut build| build.wait()));
    for ((module, ..), status) in MODULES.into_iter().zip(statuses) {
        let status = status.context("cargo build")?;
        ensure!(status.success(), "building the module {module} failed: {status}");
        let to = package.join(format!("lstm-web-{module}.wasm"));
        copy(&target_dir.join(module).join(TARGET).join("web/lstm_web.wasm"), &to)?;
        println!("{}: {} bytes", to.display(), fs::metadata(&to)?.len());
    }
    Ok(())
}

/// Copies the files of a folder.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        ensure!(entry.file_type()?.is_file(), "{}: expected a file", entry.path().display());
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Copies a file.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("{} to {}", from.display(), to.display()))
}
