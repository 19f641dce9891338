//! Whole runs of training: the same losses, weights and optimizer state on every backend, to the bit.

use std::{
    fmt::Write,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, Checkpointing, HostState, Input, Lstm, LstmConfig, StateDict,
    arithmetic::Digest,
    ndarray::{Array3, ArrayView1, ArrayView3, s},
    train::{
        Clip, IGNORE_INDEX, Linear, OptimizerConfig, Schedule, Trainer, TrainerConfig, cross_entropy,
        mean_squared_error,
    },
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::cases::number;

/// Steps of each run.
pub const STEPS: u64 = 200;

/// A run: a model, how it is trained, and on what.
pub struct Run {
    /// Names the snapshot.
    pub name: &'static str,
    config: LstmConfig,
    outputs: usize,
    settings: TrainerConfig,
    batch: usize,
    steps: usize,
    lengths: Option<&'static [usize]>,
    /// Whether outputs are classes instead of numbers.
    classes: bool,
    /// Whether each step goes on from the state of the one before.
    truncated: bool,
}

/// All runs; between them all optimizers, both losses and both ways of clipping.
pub fn runs() -> Vec<Run> {
    let cosine = Schedule::cosine(0.02, 150, 1e-4).warmup(10);
    vec![
        Run {
            name: "adamw-dropout-lengths",
            config: LstmConfig::new(3, 11).layers(2).dropout(0.25),
            outputs: 2,
            settings: TrainerConfig::new(OptimizerConfig::adamw(), cosine).clip(Clip::Norm(0.5)).seed(7),
            batch: 4,
            steps: 37,
            lengths: Some(&[37, 5, 0, 33]),
            classes: false,
            truncated: false,
        },
        Run {
            name: "adam-bidirectional-projection",
            config: LstmConfig::new(2, 9).layers(2).bidirectional().proj_size(4),
            outputs: 1,
            settings: TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.02))
                .checkpointing(Checkpointing::SquareRoot),
            batch: 3,
            steps: 35,
            lengths: None,
            classes: false,
            truncated: false,
        },
        Run {
            name: "sgd-diagonal-bidirectional-projection",
            config: LstmConfig::new(2, 9).cell(CellKind::PeepholeDiagonal).bidirectional().proj_size(4).clip(3.0),
            outputs: 3,
            settings: TrainerConfig::new(
                OptimizerConfig::nesterov(0.9).weight_decay(1e-4),
                Schedule::step(0.1, 60, 0.5),
            )
            .clip(Clip::Value(0.25))
            .checkpointing(Checkpointing::Segments(32)),
            batch: 3,
            steps: 40,
            lengths: None,
            classes: false,
            truncated: false,
        },
        Run {
            name: "adam-dense-classes-truncated",
            config: LstmConfig::new(5, 8).cell(CellKind::PeepholeDense).layers(2),
            outputs: 5,
            settings: TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)),
            batch: 2,
            steps: 9,
            lengths: None,
            classes: true,
            truncated: true,
        },
    ]
}

impl Run {
    /// The model and how it is trained, before the first step.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn start<B: Backend>(&self, b: &B) -> Result<Trainer<B>> {
        let lstm = Lstm::random(b, self.config.clone(), 1)?;
        let head = Linear::random(b, self.config.output_size(), self.outputs, 2)?;
        Ok(Trainer::new(lstm, Some(head), self.settings.clone())?)
    }

    /// Whether PyTorch has such a model.
    pub fn is_pytorchs(&self) -> bool {
        let LstmConfig { cell, clip, coupled, .. } = self.config;
        cell == CellKind::Fused && clip.is_none() && !coupled
    }

    /// The inputs of step `k`, `(batch, steps, features)`.
    pub fn inputs(&self, k: u64) -> Array3<f32> {
        self.data(k).0
    }

    /// The inputs of step `k`, and those of one time step before: what the model is to tell.
    fn data(&self, k: u64) -> (Array3<f32>, Array3<f32>) {
        // A few batches in turn, so that there is something to learn.
        let mut rng = ChaCha8Rng::seed_from_u64(k % 5);
        let size = self.config.input_size;
        let all = Array3::from_shape_simple_fn((self.batch, self.steps + 1, size), || number(&mut rng) * 0.5);
        (all.slice(s![.., 1.., ..]).to_owned(), all.slice(s![.., ..-1, ..]).to_owned())
    }

    /// The loss and its gradient of outputs `y` by what came before.
    fn loss(&self, y: ArrayView3<'_, f32>, before: &Array3<f32>) -> lstm_core::Result<(f64, Array3<f32>)> {
        if self.classes {
            let largest = |row: ArrayView1<'_, f32>| {
                let largest = row.indexed_iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(k, _)| k);
                // Some don't count.
                if row[0] > 0.9 { IGNORE_INDEX } else { largest }
            };
            let targets: Vec<_> = before.rows().into_iter().map(largest).collect();
            return cross_entropy(y, &targets);
        }
        // Sums of features: within reach of a linear layer.
        let targets =
            Array3::from_shape_fn(y.dim(), |(b, t, o)| before[[b, t, o % before.dim().2]] + before[[b, t, 0]]);
        mean_squared_error(y, targets.view())
    }

    /// Runs `steps` steps; returns the losses.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn train<B: Backend>(&self, trainer: &mut Trainer<B>, steps: u64) -> Result<Vec<f64>> {
        let mut state: Option<HostState> = None;
        let mut losses = Vec::new();
        for k in 0..steps {
            let (x, before) = self.data(k);
            let input = state.iter().fold(Input::from(&x), |input, state| input.state(state));
            let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
            let step = trainer.step(input, |y| self.loss(y, &before))?;
            losses.push(step.loss);
            state = self.truncated.then_some(step.state);
        }
        Ok(losses)
    }

    /// The text of a snapshot: losses with their bits, a digest of all of them, and of every tensor of the saved run.
    ///
    /// # Errors
    /// What the backend refuses; a loss that did not go down.
    pub fn report<B: Backend>(&self, b: &B) -> Result<String> {
        let mut trainer = self.start(b)?;
        let losses = self.train(&mut trainer, STEPS)?;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..10]), mean(&losses[losses.len() - 10..]));
        ensure!(last < 0.9 * first, "the loss went from {first} to {last}");

        let mut text = String::new();
        // Writing to a string can't fail.
        for (k, loss) in losses.iter().enumerate().filter(|(k, _)| k % 20 == 0 || k + 1 == losses.len()) {
            let _ = writeln!(text, "step {:3} loss {:016x} {loss:e}", k + 1, loss.to_bits());
        }
        let words = losses.iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32].map(f32::from_bits));
        let _ = writeln!(text, "losses digest {}", Digest::of(&words.collect::<Vec<_>>()));
        let file = Temporary::new();
        trainer.save(&file.0)?;
        let mut saved = StateDict::open(&file.0)?;
        for name in saved.names().map(str::to_owned).collect::<Vec<_>>() {
            let value = saved.take_any(&name)?;
            let first = value.first().context("no tensor is empty")?;
            let _ =
                writeln!(text, "{name} {:?} digest {}, {:08x} ...", value.shape(), Digest::of(&value), first.to_bits());
        }
        Ok(text)
    }
}

/// A file that is gone afterwards.
pub struct Temporary(pub PathBuf);

impl Default for Temporary {
    fn default() -> Self {
        Temporary::new()
    }
}

impl Temporary {
    /// A path of its own.
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lstm-tests-{}-{}.safetensors", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Temporary(std::env::temp_dir().join(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A run on the backend's own path: its report. Its beginning must be that of the reference path.
///
/// # Errors
/// What differs, or what the backend refuses.
pub fn check<B: Backend>(b: &B, run: &Run) -> Result<String> {
    let beginning = 12;
    let want = run.train(&mut run.start(&lstm_core::Reference(b.clone()))?, beginning)?;
    let got = run.train(&mut run.start(b)?, beginning)?;
    let differs = want.iter().zip(&got).position(|(want, got)| want.to_bits() != got.to_bits());
    ensure!(differs.is_none(), "the loss of step {:?} differs from the reference: {want:?}, {got:?}", differs);
    run.report(b)
}
