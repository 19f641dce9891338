//! `lstm run`: runs a model over a file of sequences.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use hound::{SampleFormat, WavSpec};
use lstm::{
    Ops,
    arithmetic::Digest,
    ndarray::{Array3, Axis},
};
use serde::Serialize;

use crate::{
    backends::{self, BackendChoice, describe_paths},
    error::{Error, Result},
    input::{Format, SequenceShape},
    model::{self, quoted_list},
    output::{PendingFile, STDOUT, SequenceWriter, check_distinct_paths, check_extension, commit_files},
    report::{OutputSettings, path_text},
    sequences, state,
};

/// Run a model over sequences
///
/// A forward model reads, runs and writes a chunk of steps at a time, so memory use does not depend on the length of
/// the file. A model with a reverse direction needs whole sequences in memory, up to --max-memory.
///
/// A model that returns the last step writes one row per sequence. A model that begins with an embedding reads tokens:
/// integers, from an .npy file of shape (steps) or (batch, steps), or a .csv file with one token per row.
///
/// In a .wav file, each channel is a sequence of its own. The output has the sample format of the input and the rate at
/// which the model runs; samples beyond full scale are clipped and counted, unless --float writes floats.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    #[command(flatten)]
    sequences: sequences::SequenceArgs,

    /// Write the outputs to this .npy, .csv or .wav file; the file appears only if the whole run succeeds. `-` writes to
    /// stdout as the run proceeds, in the format of the input (.npy or .csv), and the report to stderr
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write 32-bit floats to a .wav output, which do not clip
    #[arg(long)]
    float: bool,

    /// Write the final states to this .safetensors file, to continue with --state-in; may be the same file as --state-in
    #[arg(long, value_name = "FILE")]
    state_out: Option<PathBuf>,

    /// Print a digest of the outputs: FNV-1a over the f32 values as 32-bit words, in the order (steps, batch, features)
    #[arg(long)]
    digest: bool,

    /// Backend, one of those that `lstm devices` lists, or auto: a GPU if there is one, else the cpu [default: the
    /// first one in this build, never the inexact cuda-tf32]
    #[arg(long, short, value_name = "NAME", value_parser = backends::parse_backend_choice)]
    backend: Option<BackendChoice>,

    #[command(flatten)]
    options: backends::BackendOptions,
}

#[derive(Serialize)]
struct Report {
    model: String,
    input: String,
    output: Option<String>,
    state_out: Option<String>,
    backend: String,
    device: String,
    arithmetic: String,
    /// Whether the backend is exact: its outputs are then bit-identical to those of other exact backends.
    exact: bool,
    path: String,
    /// The precision of the weights.
    precision: String,
    batch: usize,
    steps: usize,
    output_size: usize,
    chunk: usize,
    /// The rate of audio at which the model ran.
    sample_rate: Option<u32>,
    /// Number of samples that the integers of a .wav output could not hold.
    clipped: Option<u64>,
    seconds: f64,
    digest: Option<String>,
    unused: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { batch, steps, output_size, backend, path, precision, seconds, arithmetic, .. } = self;
        let precision = if precision == "f32" { String::new() } else { format!(", {precision}") };
        writeln!(
            f,
            "{batch} x {steps} steps of {output_size} outputs on {backend} ({path}{precision}) in {seconds:.3} s"
        )?;
        if let Some(rate) = self.sample_rate {
            let audio_seconds = *steps as f64 / f64::from(rate);
            writeln!(f, "{audio_seconds:.3} s of audio at {rate} Hz, {:.1} x real time", audio_seconds / seconds)?;
        }
        if let Some(clipped) = self.clipped.filter(|&clipped| clipped > 0) {
            writeln!(f, "{clipped} samples were beyond full scale and CLIPPED; --float writes all values")?;
        }
        if !self.exact {
            writeln!(f, "arithmetic {arithmetic}")?;
        }
        if let Some(digest) = &self.digest {
            writeln!(f, "digest {digest}")?;
        }
        model::write_unused(f, &self.unused)
    }
}

/// Adds outputs, shape `(batch, steps, features)`, to a digest in time-major order, so that the digest of a sequence
/// does not depend on how its steps are divided into chunks.
pub(crate) fn add_to_digest(digest: &mut Digest, y: &Array3<f32>) {
    y.axis_iter(Axis(1)).for_each(|step| step.iter().for_each(|&v| digest.add(v)));
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    if args.output.is_none() && args.state_out.is_none() && !args.digest {
        return Err(Error::option("output", "nothing to do: expected --output, --state-out or --digest"));
    }
    let output_file = args.output.as_deref().filter(|path| path.as_os_str() != STDOUT);
    check_extension("output", output_file, &["npy", "csv", "wav"])?;
    check_extension("state-out", args.state_out.as_deref(), &["safetensors"])?;
    let (model, input, y) = (&*args.model.path, &*args.sequences.input, output_file);
    let other_files = [("MODEL", Some(model)), ("--input", Some(input)), ("--output", y)];
    check_distinct_paths("output", y, &other_files[..2])?;
    check_distinct_paths("state-out", args.state_out.as_deref(), &other_files)?;
    let backend = args.backend.or(backends::default_backends().next().map(BackendChoice::Named));
    let backend = backend.ok_or_else(|| Error::option("backend", "this build has no backend"))?;
    let device = backend.open(args.options, output)?;
    let loaded_model = args.model.load()?;
    loaded_model.check_arrangement()?;
    let output_size = loaded_model.weights.output_size();
    let sequences = args.sequences.open(&loaded_model, output)?;
    let (sequence_shape, chunk) = (sequences.sequence_shape(), sequences.chunk_steps());
    let graph_outputs = loaded_model.outputs_without_sequence();
    if !graph_outputs.is_empty() {
        let outputs = quoted_list(&graph_outputs);
        output.note(format!("the graph's outputs are {outputs}; this command outputs the last layer's whole sequence"));
    }
    let returns_last_step = loaded_model.weights.returns_last_step();
    let wav_spec = output_wav_spec(args, sequences.wav_spec(), returns_last_step)?;
    // One row per sequence is written as if the sequences were the steps of one.
    let output_shape = match returns_last_step {
        false => sequence_shape,
        true => SequenceShape { batch: 1, steps: sequence_shape.batch, is_single_sequence: true, ..sequence_shape },
    };
    let mut models = [backends::load_model(&device, &loaded_model.weights, false)?];
    let path = describe_paths(&models[0].paths());

    sequences::catch_interrupts();
    let format = output_file.map_or(Ok(sequences.format()), Format::of)?;
    let create_writer =
        |path| SequenceWriter::create(path, format, output_shape, output_size, wav_spec, sequences.chunk_steps());
    let mut writer = args.output.as_deref().map(create_writer).transpose()?;
    let mut state_file = args.state_out.as_deref().map(PendingFile::create).transpose()?;
    let start = Instant::now();
    let mut digest = Digest::default();
    let (input, sample_rate) = (path_text(sequences.path()), sequences.wav_spec().map(|spec| spec.sample_rate));
    let states = sequences.run_models(&mut models, |outputs| {
        for y in outputs {
            add_to_digest(&mut digest, y);
            let mut y = y.view();
            if returns_last_step {
                y.swap_axes(0, 1);
            }
            writer.iter_mut().try_for_each(|writer| writer.write(y))?;
        }
        Ok(())
    })?;
    if let (Some(file), Some(states)) = (&mut state_file, states.first()) {
        file.write(&state::to_bytes(&loaded_model.weights, states)?)?;
    }
    let (pending_output, clipped) = writer.map(SequenceWriter::finish).transpose()?.unzip();
    commit_files(pending_output.flatten().into_iter().chain(state_file))?;
    let files: Vec<PathBuf> = output_file.into_iter().chain(args.state_out.as_deref()).map(Path::to_owned).collect();
    let report = Report {
        model: path_text(&args.model.path),
        input,
        output: args.output.as_deref().map(path_text),
        state_out: args.state_out.as_deref().map(path_text),
        backend: device.name().to_owned(),
        device: format!("{device:?}"),
        arithmetic: device.arithmetic().to_string(),
        exact: device.arithmetic().is_exact(),
        path,
        precision: loaded_model.precisions(),
        batch: sequence_shape.batch,
        steps: sequence_shape.steps,
        output_size,
        chunk,
        sample_rate,
        clipped: clipped.filter(|_| wav_spec.is_some()),
        seconds: start.elapsed().as_secs_f64(),
        digest: args.digest.then(|| digest.to_string()),
        unused: loaded_model.unused_names,
    };
    match args.output.is_some() && output_file.is_none() {
        true => output.report_to_stderr(&report),
        false => output.report_with_files(&report, &files)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The sample format and rate of the .wav output; `None` if the output is no .wav file.
fn output_wav_spec(args: &Args, input: Option<WavSpec>, returns_last_step: bool) -> Result<Option<WavSpec>> {
    let Some(path) = args.output.as_deref().filter(|path| matches!(Format::of(path), Ok(Format::Wav))) else {
        return match args.float {
            true => Err(Error::option("float", "expected a .wav output")),
            false => Ok(None),
        };
    };
    if returns_last_step {
        return Err(Error::file(path, "the model has one output per sequence, which is no audio; write an .npy file"));
    }
    let spec = input.ok_or_else(|| Error::file(path, "a .wav output needs a .wav input; write an .npy file"))?;
    Ok(Some(match args.float {
        true => WavSpec { bits_per_sample: 32, sample_format: SampleFormat::Float, ..spec },
        false => spec,
    }))
}
