//! A trained model in PyTorch: its own `load_state_dict` takes what was saved, and it gives the same outputs.
//!
//! Needs a Python with torch and safetensors: `python3`, or what the environment variable `LSTM_PYTHON` names. Without
//! one the test says that it did not run, and so does the table of `cargo xtask test-all`.

mod python_peer;

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, StateDictWriter};
use lstm_tests::{
    python,
    training::{self, Run, Temporary},
};
use python_peer::Compare;

/// The greatest relative difference that passes: some roundings of binary32.
const TOLERANCE: f64 = 2e-6;

/// Trains, and compares.
fn compare<B: Backend>(b: &B, run: &Run) -> Result<f64> {
    let mut trainer = run.start(b)?;
    run.train(&mut trainer, 50)?;
    let (model, data) = (Temporary::new(), Temporary::new());
    trainer.save_model(&model.0, &BTreeMap::new())?;
    let x = run.inputs(0);
    let (y, _) = trainer.predict(&x)?;
    StateDictWriter::new().tensor("x", &x)?.tensor("y", &y)?.save(&data.0)?;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/train/load.py");
    let output = Command::new(python::interpreter()).args([&script, &model.0, &data.0]).output()?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    let difference: f64 = String::from_utf8(output.stdout)?.trim().parse().context("the script prints a number")?;
    // So that NaN fails too.
    ensure!(difference <= TOLERANCE, "PyTorch's outputs differ by {difference:e}, more than {TOLERANCE:e}");
    Ok(difference)
}

struct Trained(Run);

impl Compare for Trained {
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        compare(b, &self.0).map(|difference| format!("{difference:.1e}"))
    }
}

fn main() {
    // PyTorch has no other cells.
    let runs = training::runs().into_iter().filter(Run::is_pytorchs);
    let cases = runs.map(|run| (run.name, Trained(run))).collect();
    python_peer::main("pytorch", "trained weights", "torch, safetensors.torch", cases);
}
