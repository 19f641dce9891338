//! Compares the example `vad` with Silero VAD's ONNX model under ONNX Runtime, on speech that espeak-ng synthesizes.
//!
//! Needs the network for the published weights, espeak-ng, and Python with numpy and onnxruntime: `python3`, or the
//! interpreter in the environment variable `LSTM_PYTHON`. If anything is missing, the test reports that it did not run,
//! also in the table of `cargo xtask test-all`.

#[path = "../../examples/vad/model.rs"]
mod model;
mod python_peer;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lstm_core::Backend;
use lstm_tests::python;
use python_peer::Compare;

use model::{CHUNK, SAMPLE_RATE, SileroVad};

/// The largest difference of a probability.
const TOLERANCE: f32 = 1e-5;

/// The speech, and the probabilities of ONNX Runtime.
struct Speech {
    samples: Vec<f32>,
    probabilities: Vec<f32>,
}

/// Fetches the weights, synthesizes speech and computes the expected probabilities.
fn prepare() -> Result<Speech> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples/vad");
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    };
    run(&mut Command::new(examples.join("fetch.sh")))?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("silero-vad");
    fs::create_dir_all(&out)?;
    let script = [&examples.join("expected.py"), &weights().with_file_name("silero_vad.onnx"), &out];
    run(Command::new(python::interpreter()).args(script))?;
    let wav = fs::read(out.join("speech.wav"))?;
    // The script writes a header of 44 bytes and 16-bit samples.
    let samples = wav[44..].chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0).collect();
    let probabilities = serde_json::from_slice(&fs::read(out.join("probabilities.json"))?)?;
    Ok(Speech { samples, probabilities })
}

impl Compare for Speech {
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        let mut vad = SileroVad::open(b, &weights())?;
        let seconds = self.samples.len() as f32 / SAMPLE_RATE as f32;
        let mut largest = 0.0f32;
        ensure!(self.probabilities.iter().any(|&p| p > 0.9) && self.probabilities.iter().any(|&p| p < 0.1));
        ensure!(self.probabilities.len() == self.samples.len().div_ceil(CHUNK));
        for (samples, expected) in self.samples.chunks(CHUNK).zip(&self.probabilities) {
            let mut chunk = [0.0; CHUNK];
            chunk[..samples.len()].copy_from_slice(samples);
            let got = vad.step(&chunk)?;
            ensure!((got - expected).abs() <= TOLERANCE, "expected the probability {expected}, got {got}");
            largest = largest.max((got - expected).abs());
        }
        Ok(format!("{seconds:.1} s of speech, largest difference {largest:.1e}"))
    }
}

/// Path of the published weights, where the example's script puts them.
fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/silero-vad/silero_vad_16k_op15.onnx")
}

fn main() {
    python_peer::main("silero-vad", "example vad", "numpy, onnxruntime", || Ok(vec![("speech", prepare()?)]));
}
