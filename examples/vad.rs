//! Detects speech in a WAV file with Silero VAD, streaming, and draws the speech probability.
//!
//! `cargo run --release --example vad -- speech.wav`, with 16 kHz. The published weights are in the Python wheel
//! `silero-vad`; `examples/vad/fetch.sh` puts them where this program looks for them.

mod backend;
#[path = "vad/chart.rs"]
mod chart;
#[path = "vad/model.rs"]
mod model;
#[path = "vad/segments.rs"]
mod segments;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use hound::{SampleFormat, WavReader};
use lstm::{Backend, Device, Precision};

use crate::{
    model::{CHUNK, SAMPLE_RATE, SileroVad},
    segments::find_segments,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Detect speech in a WAV file with Silero VAD, and draw the speech probability
#[derive(Parser)]
struct Options {
    /// WAV file with a sample rate of 16 kHz; the mean of its channels is used
    #[arg(value_name = "FILE")]
    input: PathBuf,

    /// Silero VAD's weights, silero_vad_16k_op15.onnx [default: target/silero-vad in the workspace]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,

    /// File for the picture, SVG [default: target/vad.svg in the workspace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Backend to run on; auto takes a GPU if there is one
    #[arg(long, value_name = "NAME", value_parser = backend::name_parser(), default_value = "cpu")]
    backend: String,

    /// Precision of the LSTM: f32, int12 or int8
    #[arg(long, default_value_t)]
    precision: Precision,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program.
fn run(options: &Options) -> Result<()> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    let weights = options.weights.clone().unwrap_or_else(|| target.join("silero-vad/silero_vad_16k_op15.onnx"));
    if options.weights.is_none() && !weights.exists() {
        return Err(format!("{} does not exist; examples/vad/fetch.sh fetches it", weights.display()).into());
    }
    let samples = read_samples(&options.input)?;
    let mut vad = SileroVad::open(&Device::open(&options.backend)?, &weights, options.precision)?;
    let (probabilities, times) = detect(&mut vad, &samples)?;

    let segments = find_segments(&probabilities, samples.len());
    println!("{} segments of speech:", segments.len());
    segments
        .iter()
        .for_each(|segment| println!("  {:7.2} s to {:7.2} s", seconds(segment.start), seconds(segment.end)));
    let (total, worst) = (times.iter().sum::<Duration>(), times.iter().max().copied().unwrap_or_default());
    println!(
        "{:.2} s of audio in {:.1} ms: {:.0} times as fast as real time; the slowest of {} chunks took {:.0} us of its {} ms",
        seconds(samples.len()),
        total.as_secs_f64() * 1e3,
        seconds(samples.len()) / total.as_secs_f64(),
        times.len(),
        worst.as_secs_f64() * 1e6,
        1000 * CHUNK / SAMPLE_RATE as usize,
    );
    let out = options.out.clone().unwrap_or_else(|| target.join("vad.svg"));
    std::fs::write(&out, chart::draw(&samples, &probabilities, &segments)?)?;
    println!("Picture: {}", out.display());
    Ok(())
}

/// Returns the speech probability of each chunk of samples, and the time that each chunk took. The last chunk is filled
/// up with zeros.
fn detect<B: Backend>(vad: &mut SileroVad<B>, samples: &[f32]) -> Result<(Vec<f32>, Vec<Duration>)> {
    let mut results = Vec::new();
    for samples in samples.chunks(CHUNK) {
        let mut chunk = [0.0; CHUNK];
        chunk[..samples.len()].copy_from_slice(samples);
        let start = Instant::now();
        results.push((vad.step(&chunk)?, start.elapsed()));
    }
    Ok(results.into_iter().unzip())
}

/// Reads a WAV file, and returns the mean of its channels.
fn read_samples(path: &Path) -> Result<Vec<f32>> {
    let wav = WavReader::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let spec = wav.spec();
    if spec.sample_rate != SAMPLE_RATE {
        let command = format!("ffmpeg -i IN.wav -ar {SAMPLE_RATE} OUT.wav");
        let expected = format!("expected a sample rate of {SAMPLE_RATE} Hz, got {}", spec.sample_rate);
        return Err(format!("{}: {expected}; `{command}` converts it", path.display()).into());
    }
    let scale = 0.5f32.powi(i32::from(spec.bits_per_sample) - 1);
    let samples: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => wav.into_samples().collect::<Result<_, _>>()?,
        SampleFormat::Int => {
            let samples = wav.into_samples::<i32>().map(|v| Ok(v? as f32 * scale));
            samples.collect::<Result<_, hound::Error>>()?
        }
    };
    let channels = usize::from(spec.channels);
    Ok(samples.chunks(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32).collect())
}

/// Converts a number of samples to seconds.
fn seconds(samples: usize) -> f64 {
    samples as f64 / f64::from(SAMPLE_RATE)
}

#[cfg(test)]
#[path = "vad/tests.rs"]
mod tests;
