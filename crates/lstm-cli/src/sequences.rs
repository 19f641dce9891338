//! Reads sequences and runs them through models: in chunks of steps if the model allows it, otherwise whole.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use hound::WavSpec;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lstm::{
    HostState, ModelInput, ModelLayer, ModelWeights,
    ndarray::{Array2, Array3, Axis, concatenate},
};

use crate::{
    backends::RunnableModel,
    error::{Error, Result},
    input::{Format, Layout, Reader, SequenceShape, open_file},
    model::{LoadedModel, PortKind, quoted_list},
    report::OutputSettings,
    state,
};

/// Command-line options for the input sequences.
#[derive(Debug, clap::Args)]
pub(crate) struct SequenceArgs {
    /// Input sequences, an .npy, .csv or .wav file, or a pipe with the content of one. The content tells the format
    /// where the name has no extension, as for /dev/stdin
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: PathBuf,

    #[command(flatten)]
    pub(crate) layout: Layout,

    /// Number of steps of each sequence, such as 7,4; whole sequences are then held in memory
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    lengths: Option<Vec<usize>>,

    /// Initial states, a .safetensors file as written by --state-out: tensors `h` and `c`, or `NAME.h` and `NAME.c` for
    /// each of several LSTMs [default: the initial states in the model's file, or zeros]
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,

    /// Steps per chunk; results of exact backends do not depend on it [default: as many as take about 4 MiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,

    /// Memory limit in MiB for whole sequences, which a model with a reverse direction, or --lengths, needs in memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_memory: u64,

    /// Values of the inputs after the audio sample, for a .wav file and a model with knobs, such as 0.5,0.7
    #[arg(long, value_name = "V,V,...", value_delimiter = ',', allow_hyphen_values = true, value_parser = parse_knob)]
    knobs: Vec<f32>,

    /// Resample a .wav file to the rate that the model was made for, or to this rate; resampling is not part of what is
    /// bit-identical on every machine
    #[arg(long, value_name = "HZ", num_args = 0..=1, require_equals = true, value_parser = clap::value_parser!(u32).range(1..))]
    resample: Option<Option<u32>>,

    /// Run the model on this many seconds of silence before a .wav file, and discard the outputs
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = parse_seconds)]
    prewarm: f64,
}

/// Parses the value of a knob.
fn parse_knob(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|v: &f32| v.is_finite()).ok_or_else(|| "expected finite numbers, such as 0.5,0.7".into())
}

/// Parses a duration.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|v: &f64| (0.0..=3600.0).contains(v));
    seconds.ok_or_else(|| "expected a number of seconds from 0 to 3600".into())
}

/// The default limit on the number of f32 values of a chunk, where inputs, outputs and gates count.
const DEFAULT_CHUNK_VALUES: usize = 1 << 20;

/// The input sequences in an opened file, with their initial state and lengths.
pub(crate) struct Sequences {
    reader: Reader<std::fs::File>,
    path: PathBuf,
    states: Option<Vec<HostState>>,
    lengths: Option<Vec<usize>>,
    reads_tokens: bool,
    /// Whether the model has one output for each sequence, rather than one for each step.
    returns_last_step: bool,
    /// Features of each step after those in the file.
    knobs: Vec<f32>,
    /// The rate to which the audio is resampled.
    resampled_to: Option<u32>,
    /// Number of steps of silence before the first one.
    prewarm_steps: usize,
    /// Whether sequences can't be run in chunks, because the model has a reverse direction or lengths are given.
    needs_whole_sequences: bool,
    /// Steps per chunk, if the model does not need whole sequences.
    chunk_steps: usize,
    quiet: bool,
}

impl SequenceArgs {
    /// Opens the input and checks that it matches the model.
    pub(crate) fn open(&self, model: &LoadedModel, output: OutputSettings) -> Result<Sequences> {
        state::check_path(self.state_in.as_deref())?;
        let weights = &model.weights;
        let (file, format) = open_file(&self.input)?;
        let is_wav = format == Format::Wav;
        let is_prewarmed = self.prewarm > 0.0;
        for (option, is_given) in
            [("knobs", !self.knobs.is_empty()), ("resample", self.resample.is_some()), ("prewarm", is_prewarmed)]
        {
            if is_given && !is_wav {
                return Err(Error::option(option, format!("expected a .wav file, got {}", self.input.display())));
            }
        }
        let mut layout = self.layout;
        if layout.tokens && !weights.reads_tokens() {
            return Err(Error::option("tokens", "the model reads features: its first layer is not an embedding"));
        }
        layout.tokens = weights.reads_tokens();
        layout.sample_rate = self.resampling_rate(model)?;
        let reader = Reader::new(&self.input, file, format, layout)?;
        let sequence_shape = reader.sequence_shape();
        let resampled_to = layout.sample_rate;
        if let (Some(spec), None) = (reader.wav_spec(), resampled_to) {
            check_sample_rate(&self.input, spec, model)?;
        }
        let features = sequence_shape.features + self.knobs.len();
        if !weights.reads_tokens() && features != weights.input_size() {
            let expected = weights.input_size();
            let why = match is_wav {
                true => format!(
                    "the model reads {expected} values at each step, of which a .wav file has the first; expected {} \
                     values of --knobs, got {}",
                    expected - 1,
                    self.knobs.len()
                ),
                false => format!(
                    "expected {expected} features, got {features} (shape {:?})",
                    sequence_shape.array_shape(features)
                ),
            };
            return Err(Error::file(&self.input, why));
        }
        let lengths = self.lengths.clone().or(model.lengths.clone());
        if let Some(lengths) = &lengths
            && (lengths.len() != sequence_shape.batch || lengths.iter().any(|&n| n > sequence_shape.steps))
        {
            let lengths_source = if self.lengths.is_some() { "--lengths" } else { "the model's file" };
            let why = format!(
                "expected {} lengths of at most {}, got {lengths:?} from {lengths_source}",
                sequence_shape.batch, sequence_shape.steps
            );
            return Err(Error::file(&self.input, why));
        }
        let needs_whole_sequences = !model.streams() || lengths.is_some();
        let needed_mib = needed_memory_bytes(weights, sequence_shape).div_ceil(1 << 20);
        if needs_whole_sequences && needed_mib > u128::from(self.max_memory) {
            let why = format!(
                "a model with a reverse direction, or with lengths, needs whole sequences in memory: about {needed_mib} MiB, \
                 but --max-memory is {}",
                self.max_memory
            );
            return Err(Error::file(&self.input, why));
        }
        if needs_whole_sequences && is_prewarmed {
            return Err(Error::option(
                "prewarm",
                "a model with a reverse direction, or with lengths, can't be prewarmed",
            ));
        }
        let read_states = |path: &PathBuf| state::read_states(path, weights, sequence_shape.batch);
        let states = match (&self.state_in, &model.states) {
            (Some(path), _) => Some(read_states(path)?),
            (None, Some(states)) => {
                let checked = state::check_states(states, weights, sequence_shape.batch);
                checked.map_err(|e| e.with_path(&model.path))?;
                Some(states.clone())
            }
            (None, None) => None,
        };
        let gates = weights.lstms().map(|lstm| 4 * lstm.config().hidden_size).max().unwrap_or(0);
        let values_per_step = sequence_shape.batch.saturating_mul(weights.input_size() + max_width(weights) + gates);
        let chunk_steps = self.chunk.map_or((DEFAULT_CHUNK_VALUES / values_per_step).max(1), |n| n as usize);
        let rate = resampled_to.or(reader.wav_spec().map(|spec| spec.sample_rate)).unwrap_or(0);
        let state_inputs = model.input_names(PortKind::State);
        if !state_inputs.is_empty() && self.state_in.is_none() {
            let inputs = quoted_list(&state_inputs);
            output.note(format!("the graph's state inputs {inputs} are set to zero; use --state-in to set them"));
        }
        let lengths_inputs = model.input_names(PortKind::Lengths);
        if !lengths_inputs.is_empty() && self.lengths.is_none() {
            let inputs = quoted_list(&lengths_inputs);
            output.note(format!("the graph's input {inputs} is set to the full length; use --lengths to set it"));
        }
        if let Some(unused_text) = model.describe_unused() {
            output.note(unused_text);
        }
        if let Some(steps) = model.required_steps.filter(|&steps| steps != sequence_shape.steps) {
            let got = sequence_shape.steps;
            let why = format!(
                "the model is for sequences of {steps} time step, got {got}; expected (batch, {steps}, features)"
            );
            return Err(Error::file(&self.input, why));
        }
        if let Some(steps) = model.fixed_steps.filter(|&steps| steps != sequence_shape.steps) {
            output.note(format!("the file is for {steps} time steps; this runs {}", sequence_shape.steps));
        }
        Ok(Sequences {
            reader,
            path: self.input.clone(),
            states,
            lengths,
            reads_tokens: weights.reads_tokens(),
            returns_last_step: weights.returns_last_step(),
            knobs: self.knobs.clone(),
            resampled_to,
            prewarm_steps: (self.prewarm * f64::from(rate)).round() as usize,
            needs_whole_sequences,
            chunk_steps,
            quiet: output.quiet,
        })
    }

    /// The rate that `--resample` asks for: the given one, or the model's.
    fn resampling_rate(&self, model: &LoadedModel) -> Result<Option<u32>> {
        match self.resample {
            None => Ok(None),
            Some(Some(rate)) => Ok(Some(rate)),
            Some(None) => model.sample_rate()?.map(Some).ok_or_else(|| {
                Error::option("resample", "the model's file has no sample rate; expected one, such as --resample=44100")
            }),
        }
    }
}

/// Fails if the model was made for another sample rate than that of the file.
fn check_sample_rate(path: &Path, spec: WavSpec, model: &LoadedModel) -> Result<()> {
    match model.sample_rate()? {
        Some(rate) if rate != spec.sample_rate => {
            let why = format!(
                "the sample rate is {} Hz, but the model was made for {rate} Hz; --resample converts the audio",
                spec.sample_rate
            );
            Err(Error::file(path, why))
        }
        _ => Ok(()),
    }
}

/// The largest number of values of one step between two layers.
fn max_width(weights: &ModelWeights) -> usize {
    let width = |layer: &ModelLayer| match layer {
        ModelLayer::Embedding { weight, .. } => weight.ncols(),
        ModelLayer::Lstm { weights, .. } => weights.config().output_size(),
        ModelLayer::Linear { weight, .. } => weight.nrows(),
        _ => 0,
    };
    weights.layers().iter().map(width).max().unwrap_or(0)
}

/// Approximate number of bytes of host memory that whole sequences take: inputs and outputs of the widest layer, and
/// copies of both in the time-major order that layers use.
fn needed_memory_bytes(weights: &ModelWeights, sequence_shape: SequenceShape) -> u128 {
    let floats_per_step = 2 * weights.input_size() + 3 * max_width(weights);
    [sequence_shape.batch, sequence_shape.steps, floats_per_step, size_of::<f32>()].iter().map(|&n| n as u128).product()
}

/// The next steps of the input.
enum Chunk {
    Features(Array3<f32>),
    Tokens(Array2<i64>),
}

impl Chunk {
    fn input(&self) -> ModelInput<'_> {
        match self {
            Chunk::Features(x) => x.into(),
            Chunk::Tokens(tokens) => tokens.into(),
        }
    }

    fn steps(&self) -> usize {
        match self {
            Chunk::Features(x) => x.dim().1,
            Chunk::Tokens(tokens) => tokens.dim().1,
        }
    }
}

impl Sequences {
    /// Shape of the input sequences.
    pub(crate) fn sequence_shape(&self) -> SequenceShape {
        self.reader.sequence_shape()
    }

    /// Format of the input.
    pub(crate) fn format(&self) -> Format {
        self.reader.format()
    }

    /// The sample format of .wav input, and the rate at which the model runs.
    pub(crate) fn wav_spec(&self) -> Option<WavSpec> {
        let spec = self.reader.wav_spec()?;
        Some(WavSpec { sample_rate: self.resampled_to.unwrap_or(spec.sample_rate), ..spec })
    }

    /// Number of steps per chunk: all steps if sequences can't be run in chunks.
    pub(crate) fn chunk_steps(&self) -> usize {
        if self.needs_whole_sequences { self.sequence_shape().steps } else { self.chunk_steps }
    }

    /// Reads the next time steps and appends the values of the control knobs to the features of each step. Returns `None` at
    /// the end.
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let steps = self.chunk_steps();
        if self.reads_tokens {
            return Ok(self.reader.next_tokens(steps)?.map(Chunk::Tokens));
        }
        let Some(x) = self.reader.next_steps(steps)? else { return Ok(None) };
        Ok(Some(Chunk::Features(self.with_knobs(x))))
    }

    fn with_knobs(&self, x: Array3<f32>) -> Array3<f32> {
        if self.knobs.is_empty() {
            return x;
        }
        let (batch, steps, _) = x.dim();
        let knobs = Array3::from_shape_fn((batch, steps, self.knobs.len()), |(_, _, k)| self.knobs[k]);
        concatenate(Axis(2), &[x.view(), knobs.view()]).expect("both arrays have the same batch and steps")
    }

    /// Runs all models over the same sequences and returns their final states, one for each LSTM. For every chunk, calls
    /// `on_outputs` with one array of outputs per model, shape `(batch, steps, features)`; for a model that returns the
    /// last step only once, with one step.
    pub(crate) fn run_models(
        mut self,
        models: &mut [Box<dyn RunnableModel>],
        mut on_outputs: impl FnMut(&[Array3<f32>]) -> Result<()>,
    ) -> Result<Vec<Vec<HostState>>> {
        let sequence_shape = self.sequence_shape();
        let bar = progress_bar(sequence_shape.steps, self.quiet);
        if !self.needs_whole_sequences {
            models
                .iter_mut()
                .try_for_each(|model| model.start_streams(sequence_shape.batch, self.states.as_deref()))?;
            self.prewarm(models)?;
        }
        let mut states = Vec::new();
        let mut outputs = Vec::new();
        while let Some(chunk) = self.next_chunk()? {
            check_interrupt()?;
            outputs.clear();
            for model in models.iter_mut() {
                outputs.push(match self.needs_whole_sequences {
                    false => model.run_chunk(chunk.input())?,
                    true => {
                        let (y, model_states) = model.run_whole_sequences(self.with_options(chunk.input()))?;
                        states.push(model_states);
                        y
                    }
                });
            }
            if !self.returns_last_step {
                on_outputs(&outputs)?;
            }
            bar.inc(chunk.steps() as u64);
        }
        if self.returns_last_step {
            on_outputs(&outputs)?;
        }
        bar.finish_and_clear();
        if self.needs_whole_sequences { Ok(states) } else { models.iter().map(|model| model.states()).collect() }
    }

    /// Runs the streams of the models on silence.
    fn prewarm(&self, models: &mut [Box<dyn RunnableModel>]) -> Result<()> {
        let mut steps = self.prewarm_steps;
        while steps > 0 {
            check_interrupt()?;
            let n = steps.min(self.chunk_steps);
            let silence = self.with_knobs(Array3::zeros((self.sequence_shape().batch, n, 1)));
            models.iter_mut().try_for_each(|model| model.run_chunk((&silence).into()).map(drop))?;
            steps -= n;
        }
        Ok(())
    }

    /// Adds the initial states and the lengths to the input of whole sequences.
    fn with_options<'a>(&'a self, input: ModelInput<'a>) -> ModelInput<'a> {
        let input = self.states.iter().fold(input, |input, states| input.states(states));
        self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths))
    }

    /// Path of the input file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A progress bar that counts steps, shown only on a terminal.
fn progress_bar(steps: usize, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {per_sec}, {eta} left");
    bar.with_style(style.expect("the template is valid"))
}

/// Whether an interrupt signal was received.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C, SIGTERM and SIGHUP end a command between two chunks, so that no unfinished file is left behind.
pub(crate) fn catch_interrupts() {
    // If the handler can't be installed, signals end the process as usual. If one of the signals is ignored, as under
    // `nohup`, no handler is installed: that signal stays ignored, and the others end the process as usual.
    let _ = ctrlc::try_set_handler(|| {
        // A second interrupt does not wait for the end of a long chunk, even if a temporary file stays behind.
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(Error::Interrupted.exit_code().into());
        }
    });
}

/// Fails if an interrupt signal was received.
fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
