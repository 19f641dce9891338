//! `cargo xtask check-features`: checks that every package compiles alone, without warnings, with each of its features.

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Check that every package compiles alone: without features, with each single feature, and with all
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Packages to check (default: all of the workspace)
    #[arg(long, value_delimiter = ',')]
    packages: Option<Vec<String>>,
}

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
    let is_requested = |name: &&str| args.packages.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
    let (mut check_count, mut failures) = (0, Vec::new());
    for package in workspace.package_names().filter(is_requested) {
        let features: Vec<_> = workspace.features(package).collect();
        let mut feature_choices = vec![vec!["--no-default-features"]];
        feature_choices.extend(features.iter().map(|feature| vec!["--no-default-features", "--features", feature]));
        if features.len() > 1 {
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
