//! `lstm run`: runs a model over a file of sequences.

use std::{fmt, path::PathBuf, process::ExitCode, time::Instant};

use lstm::{
    Ops,
    arithmetic::Digest,
    ndarray::{Array3, Axis},
};
use serde::Serialize;

use crate::{
    backends::{self, BackendChoice, describe_paths},
    error::{Error, Result},
    model::{self, quoted_list},
    output::{PendingFile, SequenceWriter, check_distinct_paths, check_extension, commit_files},
    report::{OutputSettings, path_text},
    sequences, state,
};

/// Run a model over sequences
///
/// A forward model reads, runs and writes a chunk of steps at a time, so memory use does not depend on the length of
/// the file. A model with a reverse direction needs whole sequences in memory, up to --max-memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    #[command(flatten)]
    sequences: sequences::SequenceArgs,

    /// Write the outputs to this .npy or .csv file; the file appears only if the whole run succeeds
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write the final state to this .safetensors file, to continue with --state-in; may be the same file as --state-in
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
    batch: usize,
    steps: usize,
    output_size: usize,
    chunk: usize,
    seconds: f64,
    digest: Option<String>,
    unused: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { batch, steps, output_size, backend, path, seconds, arithmetic, .. } = self;
        writeln!(f, "{batch} x {steps} steps of {output_size} outputs on {backend} ({path}) in {seconds:.3} s")?;
        if !self.exact {
            writeln!(f, "arithmetic {arithmetic}")?;
        }
        if let Some(digest) = &self.digest {
            writeln!(f, "digest {digest}")?;
        }
        Ok(())
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
    check_extension("output", args.output.as_deref(), &["npy", "csv"])?;
    check_extension("state-out", args.state_out.as_deref(), &["safetensors"])?;
    let (model, input, y) = (&*args.model.path, &*args.sequences.input, args.output.as_deref());
    let other_files = [("MODEL", Some(model)), ("--input", Some(input)), ("--output", y)];
    check_distinct_paths("output", y, &other_files[..2])?;
    check_distinct_paths("state-out", args.state_out.as_deref(), &other_files)?;
    let backend = args.backend.or(backends::default_backends().next().map(BackendChoice::Named));
    let backend = backend.ok_or_else(|| Error::option("backend", "this build has no backend"))?;
    let device = backend.open(args.options, output)?;
    let loaded_model = args.model.load()?;
    let config = loaded_model.weights.config().clone();
    let sequences = args.sequences.open(&loaded_model, output)?;
    let (sequence_shape, chunk) = (sequences.sequence_shape(), sequences.chunk_steps());
    if !loaded_model.partial_outputs.is_empty() {
        let outputs = quoted_list(&loaded_model.partial_outputs);
        output.note(format!("the graph's outputs are {outputs}; this command outputs the last layer's whole sequence"));
    }
    let mut models = [backends::load_model(&device, &loaded_model.weights, false)?];
    let path = describe_paths(&models[0].paths());

    sequences::catch_interrupts();
    let create_writer = |path| SequenceWriter::create(path, sequence_shape, config.output_size());
    let mut writer = args.output.as_deref().map(create_writer).transpose()?;
    let mut state_file = args.state_out.as_deref().map(PendingFile::create).transpose()?;
    let start = Instant::now();
    let mut digest = Digest::default();
    let input = path_text(sequences.path());
    let states = sequences.run_models(&mut models, |outputs| {
        for y in outputs {
            add_to_digest(&mut digest, y);
            writer.iter_mut().try_for_each(|writer| writer.write(y.view()))?;
        }
        Ok(())
    })?;
    if let (Some(file), Some(state)) = (&mut state_file, states.first()) {
        file.write(&state::to_bytes(state)?)?;
    }
    commit_files(writer.map(SequenceWriter::into_file).into_iter().chain(state_file))?;
    output.report(&Report {
        model: path_text(&args.model.path),
        input,
        output: args.output.as_deref().map(path_text),
        state_out: args.state_out.as_deref().map(path_text),
        backend: device.name().to_owned(),
        device: format!("{device:?}"),
        arithmetic: device.arithmetic().to_string(),
        exact: device.arithmetic().is_exact(),
        path,
        batch: sequence_shape.batch,
        steps: sequence_shape.steps,
        output_size: config.output_size(),
        chunk,
        seconds: start.elapsed().as_secs_f64(),
        digest: args.digest.then(|| digest.to_string()),
        unused: loaded_model.unused_names,
    })?;
    Ok(ExitCode::SUCCESS)
}
