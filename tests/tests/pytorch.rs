//! Loads trained models into PyTorch with `load_state_dict` and compares the outputs.
//!
//! Needs Python with torch and safetensors: `python3`, or the interpreter in the environment variable `LSTM_PYTHON`. If it
//! is missing, the test reports that it did not run, also in the table of `cargo xtask test-all`.

mod python_peer;

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, StateDictWriter};
use lstm_tests::{
    python,
    training::{self, Run, TemporaryFile},
};
use python_peer::Compare;

/// The largest relative difference that passes: a few rounding errors of f32.
const TOLERANCE: f64 = 2e-6;

/// Trains a model and compares its outputs with PyTorch. Returns the largest relative difference.
fn compare<B: Backend>(b: &B, run: &Run) -> Result<f64> {
    let mut trainer = run.start(b)?;
    run.train(&mut trainer, 50)?;
    let (model, data) = (TemporaryFile::new(), TemporaryFile::new());
    trainer.save_model(&model.0, &BTreeMap::new())?;
    let x = run.inputs(0);
    let (y, _) = trainer.predict(&x)?;
    StateDictWriter::new().tensor("x", &x)?.tensor("y", &y)?.save(&data.0)?;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/train/load.py");
    let output = Command::new(python::interpreter()).args([&script, &model.0, &data.0]).output()?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    let difference: f64 =
        String::from_utf8(output.stdout)?.trim().parse().context("the script did not print a number")?;
    // With `difference > TOLERANCE` instead, NaN would pass.
    ensure!(difference <= TOLERANCE, "PyTorch's outputs differ by {difference:e}, more than {TOLERANCE:e}");
    Ok(difference)
}

/// Comparison of the trained model of a run.
struct TrainedModel(Run);

impl Compare for TrainedModel {
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        compare(b, &self.0).map(|difference| format!("{difference:.1e}"))
    }
}

fn main() {
    // PyTorch supports the fused cell only.
    let runs = training::runs().into_iter().filter(Run::is_supported_by_pytorch);
    let cases = runs.map(|run| (run.name, TrainedModel(run))).collect();
    python_peer::main("pytorch", "trained weights", "torch, safetensors.torch", || Ok(cases));
}
