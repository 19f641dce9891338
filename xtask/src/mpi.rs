//! `cargo xtask mpi`: trains on several ranks of this machine and compares the results.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo_command, read_workspace, succeed};

/// Train briefly on several numbers of MPI ranks on this machine, and compare the digests of losses, weights and optimizer
///
/// Needs the Debian packages libopenmpi-dev, openmpi-bin and libclang-dev.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of ranks, at most 7
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 4])]
    ranks: Vec<usize>,
    /// Also run the tests of the crate, in which ranks fail, differ and resume
    #[arg(long)]
    tests: bool,
}

/// The crate is no member of the workspace, which does not need MPI.
const MANIFEST: &str = "crates/lstm-mpi/Cargo.toml";

/// Number of shards of the run, and so the largest number of ranks.
const SHARDS: usize = 7;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let valid = args.ranks.iter().any(|ranks| *ranks != args.ranks[0])
        && args.ranks.iter().all(|ranks| (1..=SHARDS).contains(ranks));
    ensure!(valid, "--ranks: expected two or more different numbers from 1 to {SHARDS}, got {:?}", args.ranks);
    let target = read_workspace()?.target_dir.join("mpi");
    let cargo = |args: &[&str]| {
        let mut command = cargo_command();
        command.args(args).args(["--manifest-path", MANIFEST, "--locked", "--target-dir"]).arg(&target);
        command
    };
    succeed(&mut cargo(&["build", "--examples"]))?;
    let program = target.join("debug/examples/check");
    let mut first: Option<String> = None;
    let mut is_equal = true;
    for &ranks in &args.ranks {
        // Root needs the flag, which others may use as well.
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()]).arg(&program);
        let output = command.output().context("mpirun does not start; install the Debian package openmpi-bin")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{command:?} failed: {}\n{err}", output.status);
        let digest = out.lines().find_map(|line| line.split("digest ").nth(1));
        let digest = digest.with_context(|| format!("{command:?}: expected a digest, got {out}"))?;
        println!("{ranks} ranks: {digest}");
        is_equal &= first.get_or_insert_with(|| digest.to_owned()) == digest;
    }
    if !is_equal {
        eprintln!("error: the digests differ");
    }
    if args.tests {
        succeed(&mut cargo(&["test"]))?;
    }
    Ok(is_equal)
}
