//! Runs exported ONNX models in ONNX Runtime and compares the outputs. `onnx.checker` checks the models, too.
//!
//! Needs Python with onnx, onnxruntime and safetensors: `python3`, or the interpreter in the environment variable
//! `LSTM_PYTHON`. If it is missing, the test reports that it did not run, also in the table of `cargo xtask test-all`.

mod python_peer;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, Bias, CellKind, Direction, Init, LstmConfig, Model, StateDictWriter, Weights,
    ndarray::{ArrayD, IxDyn},
};
use lstm_formats::{OnnxArray, OnnxModel, OnnxWriter, OpenOptions, onnx::OnnxInputKind};
use lstm_tests::{onnx::TOLERANCE, python};
use python_peer::Compare;

/// Configurations with every option that ONNX can represent, with one and three layers.
fn configs() -> Vec<LstmConfig> {
    let mut configs = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
        for layers in [1, 3] {
            let plain = LstmConfig::new(3, 5).layers(layers).direction(direction);
            let dropout = if layers > 1 { 0.5 } else { 0.0 };
            configs.extend([
                plain.clone(),
                plain.clone().bias(Bias::None).cell(CellKind::PeepholeDiagonal),
                plain.clone().bias(Bias::One).cell(CellKind::Unfused).clip(0.5),
                plain.clone().cell(CellKind::PeepholeDiagonal).clip(0.3).coupled(),
                plain.coupled().dropout(dropout),
            ]);
        }
    }
    configs
}

/// An array of distinct values that are not zero.
fn sine_values(shape: &[usize]) -> ArrayD<f32> {
    let mut k = 0.0f32;
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        k += 1.0;
        (k * 1.7).sin()
    })
}

/// Writes a model, its inputs, and the outputs that a backend computes.
fn write<B: Backend>(b: &B, path: &Path, config: LstmConfig, state: bool, lengths: bool) -> Result<()> {
    let weights = Weights::init(config, &Init::default(), 3)?;
    let mut writer = OnnxWriter::new(&weights);
    writer = if state { writer.initial_state() } else { writer };
    writer = if lengths { writer.lengths() } else { writer };
    writer.save(path)?;

    let onnx = OnnxModel::open(path)?.graph(&OpenOptions::default())?;
    let mut inputs: BTreeMap<String, OnnxArray> = BTreeMap::new();
    let mut file = StateDictWriter::new();
    for input in onnx.inputs() {
        let array = match &input.kind {
            OnnxInputKind::Lengths => ArrayD::from_shape_vec(IxDyn(&[4]), vec![3.0, 7.0, 1.0, 5.0])?,
            OnnxInputKind::State(rows) => sine_values(&[rows.iter().map(|rows| rows.rows.len()).sum(), 4, 5]),
            _ => sine_values(&[7, 4, 3]),
        };
        file = file.tensor(&input.name, &array)?;
        inputs.insert(input.name.clone(), array.into());
    }
    for (name, value) in onnx.run(&Model::new(b, onnx.weights().clone())?, inputs)? {
        file = file.tensor(name, &value)?;
    }
    Ok(file.save(path.with_extension("safetensors"))?)
}

/// Writes all models, runs them in ONNX Runtime, and checks the errors.
fn round_trip<B: Backend>(b: &B) -> Result<String> {
    let dir: PathBuf = std::env::temp_dir().join(format!("lstm-onnxruntime-{}-{}", b.name(), std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut written = 0;
    for (k, config) in configs().into_iter().enumerate() {
        for (state, lengths) in [(false, false), (true, true)] {
            write(b, &dir.join(format!("model-{k}-{state}.onnx")), config.clone(), state, lengths)?;
            written += 1;
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx/run.py");
    let output = Command::new(python::interpreter()).args([&script, &dir]).output()?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&dir)?;
    let mut worst: f64 = 0.0;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().count() == written, "wrote {written} models, but ONNX Runtime ran {}", text.lines().count());
    for line in text.lines() {
        let error: f64 = line.split_whitespace().last().context("the script printed no number")?.parse()?;
        // With `error > TOLERANCE` instead, NaN would pass.
        ensure!(error <= TOLERANCE, "{line}: more than {TOLERANCE:e}");
        worst = worst.max(error);
    }
    Ok(format!("{written} models, largest error {worst:.1e}"))
}

/// Comparison of exported models.
struct RoundTrip;

impl Compare for RoundTrip {
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        round_trip(b)
    }
}

fn main() {
    python_peer::main("onnxruntime", "onnx", "onnx, onnxruntime, safetensors.numpy", || {
        Ok(vec![("round trip", RoundTrip)])
    });
}
