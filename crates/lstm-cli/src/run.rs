//! `lstm run`: a model over a file of sequences.

use std::{fmt, path::PathBuf, process::ExitCode, time::Instant};

use lstm_core::{
    arithmetic::Digest,
    ndarray::{Array3, Axis},
};
use serde::Serialize;

use crate::{
    backends::{self, Known, describe, describe_paths},
    error::{Error, Result},
    feed,
    model::{self, list},
    output::{Pending, Writer, check_apart, check_extension, keep},
    report::{Output, text},
    state,
};

/// Run a model over sequences
///
/// A forward model reads, runs and writes some steps at a time and takes little memory whatever the file's length. A model
/// that walks backwards needs the sequences' end before it can begin: it holds them whole, up to --max-memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    #[command(flatten)]
    feed: feed::FeedArgs,

    /// Write the outputs here, an .npy or .csv file; it takes this name only when all is done
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write the final state here, a .safetensors file, to go on from with --state-in, whose file it may replace
    #[arg(long, value_name = "FILE")]
    state_out: Option<PathBuf>,

    /// Tell a digest of the outputs' bits: FNV-1a over 32-bit words, step by step, sequence by sequence
    #[arg(long)]
    digest: bool,

    /// The backend, one of `lstm devices` [default: the first of this build, never cuda-tf32, which is not exact]
    #[arg(long, short, value_name = "NAME", value_parser = backends::named)]
    backend: Option<Known>,

    #[command(flatten)]
    options: backends::Options,
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
    /// Whether the outputs have the bits that all exact backends give.
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

/// Adds outputs to a digest in the order that does not depend on chunks: step by step, sequence by sequence.
pub(crate) fn add(digest: &mut Digest, y: &Array3<f32>) {
    y.axis_iter(Axis(1)).for_each(|step| step.iter().for_each(|&v| digest.add(v)));
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.output.is_none() && args.state_out.is_none() && !args.digest {
        return Err(Error::option("output", "nothing to do: expected --output, --state-out or --digest"));
    }
    check_extension("output", args.output.as_deref(), &["npy", "csv"])?;
    check_extension("state-out", args.state_out.as_deref(), &["safetensors"])?;
    let (model, input, y) = (&*args.model.path, &*args.feed.input, args.output.as_deref());
    let others = [("MODEL", Some(model)), ("--input", Some(input)), ("--output", y)];
    check_apart("output", y, &others[..2])?;
    check_apart("state-out", args.state_out.as_deref(), &others)?;
    let known = args.backend.or(backends::usual().next());
    let known = known.ok_or_else(|| Error::option("backend", "this build has no backend"))?;
    args.options.check(&[known])?;
    let device = backends::open(known, args.options)?;
    let loaded = args.model.load()?;
    let config = loaded.weights.config().clone();
    let feed = args.feed.open(&loaded, output)?;
    let (extent, chunk) = (feed.extent(), feed.chunk());
    if !loaded.partial.is_empty() {
        let outputs = list(&loaded.partial);
        output.remark(format!("the graph's outputs are {outputs}; here it is the whole sequence of the last layer"));
    }
    let mut models = [device.load(&loaded.weights, false)?];
    let path = describe_paths(&models[0].paths());

    feed::catch_interrupts();
    let create = |path| Writer::create(path, extent, config.output_size());
    let mut writer = args.output.as_deref().map(create).transpose()?;
    let mut last = args.state_out.as_deref().map(Pending::create).transpose()?;
    let begin = Instant::now();
    let mut digest = Digest::default();
    let input = text(feed.path());
    let states = feed.run(&mut models, |outputs| {
        for y in outputs {
            add(&mut digest, y);
            writer.iter_mut().try_for_each(|writer| writer.write(y.view()))?;
        }
        Ok(())
    })?;
    if let (Some(file), Some(state)) = (&mut last, states.first()) {
        file.write(&state::bytes(state)?)?;
    }
    keep(writer.map(Writer::into_file).into_iter().chain(last))?;
    output.report(&Report {
        model: text(&args.model.path),
        input,
        output: args.output.as_deref().map(text),
        state_out: args.state_out.as_deref().map(text),
        backend: known.name.to_owned(),
        device: device.about(),
        arithmetic: describe(&device.arithmetic()),
        exact: device.arithmetic().is_exact(),
        path,
        batch: extent.batch,
        steps: extent.steps,
        output_size: config.output_size(),
        chunk,
        seconds: begin.elapsed().as_secs_f64(),
        digest: args.digest.then(|| digest.to_string()),
        unused: loaded.unused,
    })?;
    Ok(ExitCode::SUCCESS)
}
