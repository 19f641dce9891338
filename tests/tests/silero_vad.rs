//! Compares the example `vad` with Silero VAD's ONNX model, in float64 and under ONNX Runtime, on speech that espeak-ng
//! synthesizes.
//!
//! Needs the network for the published weights, espeak-ng, and Python with numpy, onnx and onnxruntime: `python3`, or the
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
use lstm_core::{Backend, Precision};
use lstm_tests::python;
use python_peer::Compare;

use model::{CHUNK, SAMPLE_RATE, SileroVad};

/// The largest difference of a probability from the one in float64. ONNX Runtime's differ by up to 2e-5.
const TOLERANCE: f64 = 1e-5;

/// The largest root mean square error of the probabilities with int12 and int8 weights.
const MAX_INT12_ERROR: f64 = 1e-3;
const MAX_INT8_ERROR: f64 = 2e-2;

/// The speech, and the expected probabilities.
struct Speech {
    samples: Vec<f32>,
    expected: Expected,
}

/// The probabilities of the ONNX model, one per chunk.
#[derive(serde::Deserialize)]
struct Expected {
    onnxruntime: Vec<f64>,
    float64: Vec<f64>,
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The folder of the example.
fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples/vad")
}

/// Fetches the weights, and checks that espeak-ng exists.
fn fetch() -> Result<()> {
    run(&mut Command::new(example().join("fetch.sh")))?;
    run(Command::new("espeak-ng").arg("--version"))
}

/// Synthesizes speech and computes the expected probabilities.
fn synthesize() -> Result<Speech> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("silero-vad");
    fs::create_dir_all(&out)?;
    run(Command::new(python::interpreter()).args([&example().join("expected.py"), &weights(), &out]))?;
    let wav = fs::read(out.join("speech.wav"))?;
    // The script writes a header of 44 bytes and 16-bit samples.
    let samples = wav[44..].chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0).collect();
    let expected = serde_json::from_slice(&fs::read(out.join("probabilities.json"))?)?;
    Ok(Speech { samples, expected })
}

/// The comparison on synthesized speech.
struct OnSpeech(Result<Speech>);

impl Compare for OnSpeech {
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        self.0.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?.compare(b)
    }
}

impl Speech {
    /// Compares the probabilities of a backend. Returns a summary.
    fn compare<B: Backend>(&self, b: &B) -> Result<String> {
        let mut vad = SileroVad::open(b, &weights(), Precision::F32)?;
        let seconds = self.samples.len() as f32 / SAMPLE_RATE as f32;
        let Expected { onnxruntime, float64 } = &self.expected;
        ensure!(float64.iter().any(|&p| p > 0.9) && float64.iter().any(|&p| p < 0.1));
        ensure!([float64.len(), onnxruntime.len()] == [self.samples.len().div_ceil(CHUNK); 2]);
        let (mut largest, mut of_runtime) = (0.0f64, 0.0f64);
        for ((samples, exact), runtime) in self.samples.chunks(CHUNK).zip(float64).zip(onnxruntime) {
            let mut chunk = [0.0; CHUNK];
            chunk[..samples.len()].copy_from_slice(samples);
            let got = f64::from(vad.step(&chunk)?);
            ensure!((got - exact).abs() <= TOLERANCE, "expected the probability {exact}, got {got}");
            ensure!(
                (got - runtime).abs() <= TOLERANCE + (exact - runtime).abs(),
                "ONNX Runtime has {runtime}, got {got}"
            );
            largest = largest.max((got - exact).abs());
            of_runtime = of_runtime.max((runtime - exact).abs());
        }
        let (int12, int8) = (self.quantized_error(b, Precision::Int12)?, self.quantized_error(b, Precision::Int8)?);
        ensure!(int12 <= MAX_INT12_ERROR && int8 <= MAX_INT8_ERROR, "rms errors: int12 {int12:.1e}, int8 {int8:.1e}");
        Ok(format!(
            "{seconds:.1} s of speech, largest error {largest:.1e}, that of ONNX Runtime {of_runtime:.1e}; rms error of int12 \
             {int12:.1e}, of int8 {int8:.1e}"
        ))
    }

    /// The root mean square of the differences between the probabilities in a precision and those in float64.
    fn quantized_error<B: Backend>(&self, b: &B, precision: Precision) -> Result<f64> {
        let mut vad = SileroVad::open(b, &weights(), precision)?;
        let mut squares = 0.0;
        for (samples, exact) in self.samples.chunks(CHUNK).zip(&self.expected.float64) {
            let mut chunk = [0.0; CHUNK];
            chunk[..samples.len()].copy_from_slice(samples);
            squares += (f64::from(vad.step(&chunk)?) - exact).powi(2);
        }
        Ok((squares / self.expected.float64.len() as f64).sqrt())
    }
}

/// Path of the published weights, where the example's script puts them.
fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/silero-vad/silero_vad_16k_op15.onnx")
}

fn main() {
    python_peer::main("silero-vad", "example vad", "numpy, onnx, onnxruntime", || {
        fetch()?;
        Ok(vec![("speech", OnSpeech(synthesize()))])
    });
}
