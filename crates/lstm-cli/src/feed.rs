//! Reads sequences and runs them through models: in chunks of steps if the model allows it, otherwise whole.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lstm_core::{
    Direction, HostState, Input, LstmConfig,
    ndarray::{Array3, ArrayView3},
};

use crate::{
    backends::Model,
    error::{Error, Result},
    input::{Extent, Layout, Reader},
    model::LoadedModel,
    report::Output,
    state,
};

/// Command-line options for the input sequences.
#[derive(Debug, clap::Args)]
pub(crate) struct FeedArgs {
    /// Input sequences, an .npy or .csv file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: PathBuf,

    #[command(flatten)]
    pub(crate) layout: Layout,

    /// Number of steps of each sequence, such as 7,4; whole sequences are then held in memory
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    lengths: Option<Vec<usize>>,

    /// Initial state, a .safetensors file with tensors `h` and `c` as written by --state-out [default: the initial state in
    /// the model's file, or zeros]
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,

    /// Steps per chunk; results of exact backends do not depend on it [default: as many as take about 4 MiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,

    /// Memory limit in MiB for whole sequences, which a model with a reverse direction, or --lengths, needs in memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_memory: u64,
}

/// Default number of f32 values of a chunk, inputs, outputs and gates together.
const CHUNK_VALUES: usize = 1 << 20;

/// Opened input sequences, with their initial state and lengths.
pub(crate) struct Feed {
    reader: Reader<std::fs::File>,
    path: PathBuf,
    state: Option<HostState>,
    lengths: Option<Vec<usize>>,
    /// Whether the model needs whole sequences.
    whole: bool,
    /// Steps per chunk, if the sequences are not run whole.
    chunk: usize,
    quiet: bool,
}

impl FeedArgs {
    /// Opens the input and checks that it matches the model.
    pub(crate) fn open(&self, model: &LoadedModel, output: Output) -> Result<Feed> {
        state::check_path(self.state_in.as_deref())?;
        let config = model.weights.config();
        let reader = Reader::open(&self.input, self.layout)?;
        let extent = reader.extent();
        if extent.features != config.input_size {
            let why = format!(
                "expected {} features, got {} (shape {:?})",
                config.input_size,
                extent.features,
                extent.shape(extent.features)
            );
            return Err(Error::file(&self.input, why));
        }
        let lengths = self.lengths.clone().or(model.lengths.clone());
        if let Some(lengths) = &lengths
            && (lengths.len() != extent.batch || lengths.iter().any(|&n| n > extent.steps))
        {
            let source = if self.lengths.is_some() { "--lengths" } else { "the model's file" };
            let why =
                format!("expected {} lengths of at most {}, got {lengths:?} from {source}", extent.batch, extent.steps);
            return Err(Error::file(&self.input, why));
        }
        let whole = config.direction != Direction::Forward || lengths.is_some();
        let needed = memory_needed(config, extent).div_ceil(1 << 20);
        if whole && needed > u128::from(self.max_memory) {
            let why = format!(
                "a model with a reverse direction, or with lengths, needs whole sequences in memory: about {needed} MiB, but \
                 --max-memory is {}",
                self.max_memory
            );
            return Err(Error::file(&self.input, why));
        }
        let state = self.state_in.as_deref().map(state::read).transpose()?.or(model.state.clone());
        if let Some(state) = &state {
            let source = self.state_in.as_ref().unwrap_or(&model.path);
            state::check(state, config, extent.batch).map_err(|e| e.with_path(source))?;
        }
        let values_per_step =
            extent.batch.saturating_mul(config.input_size + config.output_size() + 4 * config.hidden_size);
        let chunk = self.chunk.map_or((CHUNK_VALUES / values_per_step).max(1), |n| n as usize);
        if !model.state_inputs.is_empty() && self.state_in.is_none() {
            let inputs = model.state_inputs.join(", ");
            output.note(format!("the graph's state inputs {inputs} are set to zero; use --state-in to set them"));
        }
        if let (Some(input), None) = (&model.lengths_input, &self.lengths) {
            output.note(format!("the graph's input {input} is set to the full length; use --lengths to set it"));
        }
        if let Some(unused) = model.describe_unused() {
            output.note(unused);
        }
        Ok(Feed { reader, path: self.input.clone(), state, lengths, whole, chunk, quiet: output.quiet })
    }
}

/// Approximate number of bytes that whole sequences take on the host: inputs and outputs, and copies of both in the layer's
/// time-major order.
fn memory_needed(config: &LstmConfig, extent: Extent) -> u128 {
    let floats = 2 * config.input_size + 3 * config.output_size();
    [extent.batch, extent.steps, floats, size_of::<f32>()].iter().map(|&n| n as u128).product()
}

impl Feed {
    /// Batch size, steps and features of the input.
    pub(crate) fn extent(&self) -> Extent {
        self.reader.extent()
    }

    /// Steps per chunk: all steps if the model needs whole sequences.
    pub(crate) fn chunk(&self) -> usize {
        if self.whole { self.extent().steps } else { self.chunk }
    }

    /// Runs all models over the same sequences and returns their final states. For every chunk, calls `on_outputs` with one
    /// array of outputs per model, shape `(batch, steps, features)`.
    pub(crate) fn run(
        mut self,
        models: &mut [Box<dyn Model>],
        mut on_outputs: impl FnMut(&[Array3<f32>]) -> Result<()>,
    ) -> Result<Vec<HostState>> {
        let extent = self.extent();
        let bar = progress_bar(extent.steps, self.quiet);
        if !self.whole {
            models.iter_mut().try_for_each(|model| model.start_streams(extent.batch, self.state.as_ref()))?;
        }
        let mut states = Vec::new();
        while let Some(x) = self.reader.next_steps(self.chunk())? {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let mut outputs = Vec::new();
            for model in models.iter_mut() {
                outputs.push(match self.whole {
                    false => model.run_chunk(x.view())?,
                    true => {
                        let (y, state) = model.run_whole(self.input(x.view()))?;
                        states.push(state);
                        y
                    }
                });
            }
            on_outputs(&outputs)?;
            bar.inc(x.dim().1 as u64);
        }
        bar.finish_and_clear();
        if self.whole { Ok(states) } else { models.iter().map(|model| model.state()).collect() }
    }

    /// Adds the initial state and lengths to whole sequences `x`.
    fn input<'a>(&'a self, x: ArrayView3<'a, f32>) -> Input<'a> {
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
            std::process::exit(Error::Interrupted.code().into());
        }
    });
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
