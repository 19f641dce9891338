//! Feeding sequences to models: some steps at a time where the model allows it, else whole.

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
    model::Loaded,
    report::Output,
    state,
};

/// What sequences, and in which parts.
#[derive(Debug, clap::Args)]
pub(crate) struct FeedArgs {
    /// The sequences, an .npy or .csv file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: PathBuf,

    #[command(flatten)]
    pub(crate) layout: Layout,

    /// Each sequence's own number of steps, as in 7,4; needs all of them in memory
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    lengths: Option<Vec<usize>>,

    /// Start from this state, a .safetensors file with `h` and `c` as --state-out writes it [default: zeros, or what the
    /// model's file says]
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,

    /// Steps that are read and run at once; the bits, where they are exact, do not depend on it [default: about 4 MiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,

    /// MiB that whole sequences may take, where the model walks backwards or --lengths are given
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_memory: u64,
}

/// Floats of a chunk, by default.
const CHUNK: usize = 1 << 20;

/// What is fed.
pub(crate) struct Feed {
    reader: Reader<std::fs::File>,
    path: PathBuf,
    state: Option<HostState>,
    lengths: Option<Vec<usize>>,
    whole: bool,
    chunk: usize,
    quiet: bool,
}

impl FeedArgs {
    /// Opens the input for a model.
    pub(crate) fn open(&self, model: &Loaded, output: Output) -> Result<Feed> {
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
            let whose = if self.lengths.is_some() { "--lengths" } else { "the model's file" };
            let why =
                format!("expected {} lengths of at most {}, got {lengths:?} from {whose}", extent.batch, extent.steps);
            return Err(Error::file(&self.input, why));
        }
        let whole = config.direction != Direction::Forward || lengths.is_some();
        let needed = memory(config, extent).div_ceil(1 << 20);
        if whole && needed > u128::from(self.max_memory) {
            let why = format!(
                "a model that walks backwards, or lengths, need the whole sequences in memory: about {needed} MiB, more than \
                 the {} of --max-memory",
                self.max_memory
            );
            return Err(Error::file(&self.input, why));
        }
        let state = self.state_in.as_deref().map(state::read).transpose()?.or(model.state.clone());
        if let Some(state) = &state {
            let from = self.state_in.as_ref().unwrap_or(&model.path);
            state::check(state, config, extent.batch).map_err(|e| e.of(from))?;
        }
        let step = extent.batch.saturating_mul(config.input_size + config.output_size() + 4 * config.hidden_size);
        let chunk = self.chunk.map_or((CHUNK / step).max(1), |n| n as usize);
        if !model.state_inputs.is_empty() && self.state_in.is_none() {
            let inputs = model.state_inputs.join(", ");
            output.remark(format!("the graph's inputs {inputs} are zeros; --state-in gives others"));
        }
        if let (Some(input), None) = (&model.lengths_input, &self.lengths) {
            output.remark(format!("the graph's input {input} is the sequences' whole length; --lengths gives others"));
        }
        if let Some(left_out) = model.left_out() {
            output.remark(left_out);
        }
        Ok(Feed { reader, path: self.input.clone(), state, lengths, whole, chunk, quiet: output.quiet })
    }
}

/// Bytes that whole sequences take on the host, about: inputs and outputs, and these once more in the order in which a
/// layer has them.
fn memory(config: &LstmConfig, extent: Extent) -> u128 {
    let floats = 2 * config.input_size + 3 * config.output_size();
    [extent.batch, extent.steps, floats, size_of::<f32>()].iter().map(|&n| n as u128).product()
}

impl Feed {
    /// What is fed.
    pub(crate) fn extent(&self) -> Extent {
        self.reader.extent()
    }

    /// Steps at once.
    pub(crate) fn chunk(&self) -> usize {
        if self.whole { self.extent().steps } else { self.chunk }
    }

    /// Runs all models over the same sequences, and shows `each` their outputs, (batch, steps, features), part after
    /// part. Returns their final states.
    pub(crate) fn run(
        mut self,
        models: &mut [Box<dyn Model>],
        mut each: impl FnMut(&[Array3<f32>]) -> Result<()>,
    ) -> Result<Vec<HostState>> {
        let extent = self.extent();
        let bar = bar(extent.steps, self.quiet);
        if !self.whole {
            models.iter_mut().try_for_each(|model| model.start(extent.batch, self.state.as_ref()))?;
        }
        let mut states = Vec::new();
        while let Some(x) = self.reader.next_steps(self.chunk())? {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let mut outputs = Vec::new();
            for model in models.iter_mut() {
                outputs.push(match self.whole {
                    false => model.chunk(x.view())?,
                    true => {
                        let (y, state) = model.whole(self.input(x.view()))?;
                        states.push(state);
                        y
                    }
                });
            }
            each(&outputs)?;
            bar.inc(x.dim().1 as u64);
        }
        bar.finish_and_clear();
        if self.whole { Ok(states) } else { models.iter().map(|model| model.state()).collect() }
    }

    fn input<'a>(&'a self, x: ArrayView3<'a, f32>) -> Input<'a> {
        let input = self.state.iter().fold(Input::from(x), |input, state| input.state(state));
        self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths))
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Progress over steps, on a terminal only.
fn bar(steps: usize, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {per_sec}, {eta} left");
    bar.with_style(style.expect("a template that is always the same"))
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C, SIGTERM and SIGHUP end a command between two chunks, so that no unfinished file is left behind.
pub(crate) fn catch_interrupts() {
    // Where they can't be caught, they end the process. Where one of them is ignored, as under `nohup`, it stays so, and
    // the others end the process too.
    let _ = ctrlc::try_set_handler(|| {
        // Whoever asks twice does not want to wait for the end of a long chunk, and may find its temporary file.
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(Error::Interrupted.code().into());
        }
    });
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
