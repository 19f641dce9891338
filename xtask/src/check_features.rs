//! `cargo xtask check-features`: checks that every package for users compiles alone, without warnings, with each of its
//! features. clippy checks the other packages, with all features.

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Check that every package for users compiles alone: without features, with each single feature, and with all
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Packages to check (default: those that are published, and the C, Python and web libraries)
    #[arg(long, value_delimiter = ',')]
    packages: Option<Vec<String>>,
}

/// Packages for users that are not published as crates.
const BINDINGS: [&str; 3] = ["lstm-c", "lstm-python", "lstm-web"];

/// Runs `cargo check` for every package and choice of features. Returns whether all compiled without warnings.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let workspace = cargo::read_workspace()?;
    for name in args.packages.iter().flatten() {
        let is_known = workspace.package_names().any(|known| known == name);
        ensure!(
            is_known,
            "unknown package `{name}`; expected one of: {}",
            workspace.package_names().collect::<Vec<_>>().join(", ")
        );
    }
    let packages: Vec<_> = match &args.packages {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => workspace.published_packages().chain(BINDINGS).collect(),
    };
    let (mut check_count, mut failures) = (0, Vec::new());
    for package in packages {
        let features: Vec<_> = workspace.features(package).collect();
        let mut feature_choices = vec![vec!["--no-default-features"]];
        // Features that enable all others are checked once, and so are those that enable the same ones.
        let all: Vec<_> = features.iter().copied().filter(|name| *name != "default").collect();
        let mut checked = vec![all, Vec::new()];
        for feature in &features {
            let others = workspace.enabled_features(package, feature).into_iter().filter(|name| *name != "default");
            let enabled: Vec<_> = others.collect();
            if !checked.contains(&enabled) {
                checked.push(enabled);
                feature_choices.push(vec!["--no-default-features", "--features", feature]);
            }
        }
        if !features.is_empty() {
            feature_choices.push(vec!["--all-features"]);
        }
        for feature_args in feature_choices {
            let description = format!("{package} {}", feature_args.join(" "));
            println!("cargo check --package {description}");
            check_count += 1;
            if !check(package, &feature_args)? {
                failures.push(description);
            }
        }
    }
    println!("{check_count} checks, {} failed", failures.len());
    failures.iter().for_each(|description| println!("  failed: {description}"));
    Ok(failures.is_empty())
}

/// Runs `cargo check` for one package. Returns whether it compiled without warnings; otherwise prints the messages.
fn check(package: &str, features: &[&str]) -> Result<bool> {
    let mut command = cargo::cargo_command();
    // A warning is a failure, but denying warnings by flags of rustc would compile the dependencies again.
    command.args(["check", "--quiet", "--package", package]).args(features);
    let output = command.output().context("cargo check")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    let is_clean = output.status.success() && !messages.lines().any(|line| line.starts_with("warning"));
    if !is_clean {
        eprint!("{messages}");
    }
    Ok(is_clean)
}
