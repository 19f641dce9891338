//! A guitar amp: runs a model of an amp over a recording as an audio plug-in does, in blocks of 64 samples without
//! allocation, and prints how much faster than real time that is.
//!
//! ```text
//! cargo run --release --example amp -- [MODEL [WAV [OUT]]]
//! ```
//!
//! MODEL is a file of NAM, AIDA-X, GuitarML or any other supported format with one input and one output. Without
//! arguments, a small model from `tests/data/models` plays a synthesized string.

use std::{env, error::Error, path::Path, time::Instant};

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use lstm::{Cpu, Model, formats};

const BLOCK: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut args = env::args_os().skip(1);
    let model_path = args.next().map_or(root.join("tests/data/models/nam.nam"), Into::into);
    let (rate, mut samples) = match args.next() {
        Some(path) => read_wav(Path::new(&path))?,
        None => (48_000, pluck(110.0, 48_000, 4 * 48_000)),
    };
    let out = args.next().map_or(root.join("target/amp.wav"), Into::into);

    let weights = formats::open(&model_path, &formats::OpenOptions::default())?.weights;
    if (weights.input_size(), weights.output_size()) != (1, 1) || weights.reads_tokens() {
        return Err(format!("{}: expected a model with one input and one output", model_path.display()).into());
    }
    if weights.metadata().get("sample_rate").is_some_and(|text| text.parse() != Ok(f64::from(rate))) {
        return Err(format!("the model and the recording, at {rate} Hz, have different sample rates").into());
    }
    // One thread: a model of this size is a few microseconds of work, less than waking another thread.
    let mut stream = Model::new(&Cpu::builder().threads(1).build()?, weights)?.stream(1)?;

    let mut output = [0.0f32; BLOCK];
    let (mut total, mut worst) = (0.0f64, 0.0f64);
    for block in samples.chunks_mut(BLOCK) {
        let start = Instant::now();
        for (x, y) in block.iter().zip(&mut output) {
            stream.step(&[*x], std::slice::from_mut(y))?;
        }
        let seconds = start.elapsed().as_secs_f64();
        (total, worst) = (total + seconds, worst.max(seconds));
        block.copy_from_slice(&output[..block.len()]);
    }

    let spec = WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 32, sample_format: SampleFormat::Float };
    let mut wav = WavWriter::create(&out, spec)?;
    samples.iter().try_for_each(|&y| wav.write_sample(y))?;
    wav.finalize()?;
    let (audio, block) = (samples.len() as f64 / f64::from(rate), BLOCK as f64 / f64::from(rate));
    println!("{}: {audio:.2} s of audio in {total:.3} s, {:.1} x real time", model_path.display(), audio / total);
    println!("worst block of {BLOCK}: {:.1} us of the {:.1} us that it lasts", worst * 1e6, block * 1e6);
    println!("output: {}", out.display());
    Ok(())
}

/// The sample rate and the first channel of a recording, where 1.0 is full scale.
fn read_wav(path: &Path) -> Result<(u32, Vec<f32>), hound::Error> {
    let mut wav = WavReader::open(path)?;
    let WavSpec { channels, sample_rate, bits_per_sample, sample_format } = wav.spec();
    let full_scale = f32::from(bits_per_sample - 1).exp2();
    let samples: Result<Vec<f32>, _> = match sample_format {
        SampleFormat::Float => wav.samples().step_by(channels.into()).collect(),
        SampleFormat::Int => {
            wav.samples::<i32>().step_by(channels.into()).map(|v| Ok(v? as f32 / full_scale)).collect()
        }
    };
    Ok((sample_rate, samples?))
}

/// A plucked string of `hertz`, by the algorithm of Karplus and Strong: noise in a delay line with a low-pass filter.
fn pluck(hertz: f32, rate: u32, len: usize) -> Vec<f32> {
    let period = (rate as f32 / hertz) as usize;
    let mut samples: Vec<f32> =
        (0..len).map(|k| if k < period { (k * k % 101) as f32 / 101.0 - 0.5 } else { 0.0 }).collect();
    for k in period + 1..len {
        samples[k] = 0.498 * (samples[k - period] + samples[k - period - 1]);
    }
    samples
}
