//! Reads sequences and runs them through models: in chunks of steps if the model allows it, otherwise whole.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lstm::{
    Direction, HostState, Input, LstmConfig,
    ndarray::{Array3, ArrayView3},
};

use crate::{
    backends::Model,
    error::{Error, Result},
    input::{Layout, Reader, SequenceShape},
    model::LoadedModel,
    report::OutputSettings,
    state,
};

/// Command-line options for the input sequences.
#[derive(Debug, clap::Args)]
pub(crate) struct SequenceArgs {
    /// Input sequences, an .npy or .csv file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: PathBuf,

    #[command(flatten)]
    pub(crate) layout: Layout,

    /// Number of steps of each sequence, such as 7,4; whole sequences are then held in memory
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    lengths: Option<Vec<usize>>,

    /// Initial state, a .safetensors file with tensors `h` and `c` as written by --state-out [default: the initial
    /// state in the model's file, or zeros]
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,

    /// Steps per chunk; results of exact backends do not depend on it [default: as many as take about 4 MiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,

    /// Memory limit in MiB for whole sequences, which a model with a reverse direction, or --lengths, needs in memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_memory: u64,
}

/// The default limit on the number of f32 values of a chunk, where inputs, outputs and gates count.
const DEFAULT_CHUNK_VALUES: usize = 1 << 20;

/// The input sequences in an opened file, with their initial state and lengths.
pub(crate) struct Sequences {
    reader: Reader<std::fs::File>,
    path: PathBuf,
    state: Option<HostState>,
    lengths: Option<Vec<usize>>,
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
        let config = model.weights.config();
        let reader = Reader::open(&self.input, self.layout)?;
        let sequence_shape = reader.sequence_shape();
        if sequence_shape.features != config.input_size {
            let why = format!(
                "expected {} features, got {} (shape {:?})",
                config.input_size,
                sequence_shape.features,
                sequence_shape.array_shape(sequence_shape.features)
            );
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
        let needs_whole_sequences = config.direction != Direction::Forward || lengths.is_some();
        let needed_mib = needed_memory_bytes(config, sequence_shape).div_ceil(1 << 20);
        if needs_whole_sequences && needed_mib > u128::from(self.max_memory) {
            let why = format!(
                "a model with a reverse direction, or with lengths, needs whole sequences in memory: about {needed_mib} MiB, \
                 but --max-memory is {}",
                self.max_memory
            );
            return Err(Error::file(&self.input, why));
        }
        let state = self.state_in.as_deref().map(state::read_state).transpose()?.or(model.state.clone());
        if let Some(state) = &state {
            let state_path = self.state_in.as_ref().unwrap_or(&model.path);
            state::check_state_shape(state, config, sequence_shape.batch).map_err(|e| e.with_path(state_path))?;
        }
        let values_per_step =
            sequence_shape.batch.saturating_mul(config.input_size + config.output_size() + 4 * config.hidden_size);
        let chunk_steps = self.chunk.map_or((DEFAULT_CHUNK_VALUES / values_per_step).max(1), |n| n as usize);
        if !model.state_inputs.is_empty() && self.state_in.is_none() {
            let inputs = model.state_inputs.join(", ");
            output.note(format!("the graph's state inputs {inputs} are set to zero; use --state-in to set them"));
        }
        if let (Some(input), None) = (&model.lengths_input, &self.lengths) {
            output.note(format!("the graph's input {input} is set to the full length; use --lengths to set it"));
        }
        if let Some(unused_text) = model.describe_unused() {
            output.note(unused_text);
        }
        Ok(Sequences {
            reader,
            path: self.input.clone(),
            state,
            lengths,
            needs_whole_sequences,
            chunk_steps,
            quiet: output.quiet,
        })
    }
}

/// Approximate number of bytes of host memory that whole sequences take: inputs and outputs, and copies of both in the
/// time-major order that layers use.
fn needed_memory_bytes(config: &LstmConfig, sequence_shape: SequenceShape) -> u128 {
    let floats_per_step = 2 * config.input_size + 3 * config.output_size();
    [sequence_shape.batch, sequence_shape.steps, floats_per_step, size_of::<f32>()].iter().map(|&n| n as u128).product()
}

impl Sequences {
    /// Shape of the input sequences.
    pub(crate) fn sequence_shape(&self) -> SequenceShape {
        self.reader.sequence_shape()
    }

    /// Number of steps per chunk: all steps if sequences can't be run in chunks.
    pub(crate) fn chunk_steps(&self) -> usize {
        if self.needs_whole_sequences { self.sequence_shape().steps } else { self.chunk_steps }
    }

    /// Runs all models over the same sequences and returns their final states. For every chunk, calls `on_outputs` with
    /// one array of outputs per model, shape `(batch, steps, features)`.
    pub(crate) fn run_models(
        mut self,
        models: &mut [Box<dyn Model>],
        mut on_outputs: impl FnMut(&[Array3<f32>]) -> Result<()>,
    ) -> Result<Vec<HostState>> {
        let sequence_shape = self.sequence_shape();
        let bar = progress_bar(sequence_shape.steps, self.quiet);
        if !self.needs_whole_sequences {
            models.iter_mut().try_for_each(|model| model.start_streams(sequence_shape.batch, self.state.as_ref()))?;
        }
        let mut states = Vec::new();
        while let Some(x) = self.reader.next_steps(self.chunk_steps())? {
            if is_interrupted() {
                return Err(Error::Interrupted);
            }
            let mut outputs = Vec::new();
            for model in models.iter_mut() {
                outputs.push(match self.needs_whole_sequences {
                    false => model.run_chunk(x.view())?,
                    true => {
                        let (y, state) = model.run_whole_sequences(self.model_input(x.view()))?;
                        states.push(state);
                        y
                    }
                });
            }
            on_outputs(&outputs)?;
            bar.inc(x.dim().1 as u64);
        }
        bar.finish_and_clear();
        if self.needs_whole_sequences { Ok(states) } else { models.iter().map(|model| model.state()).collect() }
    }

    /// Builds the input of a model from whole sequences `x`, the initial state and the lengths.
    fn model_input<'a>(&'a self, x: ArrayView3<'a, f32>) -> Input<'a> {
        let input = self.state.iter().fold(Input::from(x), |input, state| input.state(state));
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

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
