//! Training runs whose losses, weights and optimizer states must be bit-identical on every backend.

use std::{
    fmt::Write,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, Checkpointing, HostState, Input, Linear, Lstm, LstmConfig, StateDict,
    arithmetic::Digest,
    ndarray::{Array3, ArrayView1, ArrayView3, s},
    train::{
        Clip, IGNORE_INDEX, LossInput, OptimizerConfig, Schedule, Shard, Trainer, TrainerConfig, cross_entropy,
        mean_squared_error, part_of_mean,
    },
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::cases::random_value;

/// Number of training steps of each run.
pub const TRAINING_STEPS: u64 = 200;

/// A training run: a model, the settings of the trainer, and random data.
pub struct Run {
    /// Name of the run and its snapshot.
    pub name: &'static str,
    config: LstmConfig,
    /// Number of outputs of the linear head.
    outputs: usize,
    settings: TrainerConfig,
    batch: usize,
    steps: usize,
    lengths: Option<&'static [usize]>,
    /// Whether the targets are classes (cross entropy) instead of numbers (mean squared error).
    has_class_targets: bool,
    /// Whether each training step starts from the final LSTM state of the previous step (truncated backpropagation).
    carries_state: bool,
}

/// All training runs. Together they cover all optimizers, two losses, and both kinds of gradient clipping.
pub fn runs() -> Vec<Run> {
    let cosine_schedule = Schedule::cosine(0.02, 150, 1e-4).warmup(10);
    vec![
        Run {
            name: "adamw-dropout-lengths",
            config: LstmConfig::new(3, 11).layers(2).dropout(0.25),
            outputs: 2,
            settings: TrainerConfig::new(OptimizerConfig::adamw(), cosine_schedule).clip(Clip::Norm(0.5)).seed(7),
            batch: 4,
            steps: 37,
            lengths: Some(&[37, 5, 0, 33]),
            has_class_targets: false,
            carries_state: false,
        },
        // Shards of 1, 1 and 2 sequences, each with its own dropout.
        Run {
            name: "adamw-dropout-lengths-shards",
            config: LstmConfig::new(3, 11).layers(2).dropout(0.25),
            outputs: 2,
            settings: TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(0.01))
                .clip(Clip::Norm(0.5))
                .seed(7)
                .shards(3),
            batch: 4,
            steps: 37,
            lengths: Some(&[37, 5, 0, 33]),
            has_class_targets: false,
            carries_state: true,
        },
        Run {
            name: "adam-bidirectional-projection",
            config: LstmConfig::new(2, 9).layers(2).bidirectional().proj_size(4),
            outputs: 1,
            settings: TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.02))
                .checkpointing(Checkpointing::SquareRootSegments),
            batch: 3,
            steps: 35,
            lengths: None,
            has_class_targets: false,
            carries_state: false,
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
            has_class_targets: false,
            carries_state: false,
        },
        Run {
            name: "adam-dense-classes-truncated",
            config: LstmConfig::new(5, 8).cell(CellKind::PeepholeDense).layers(2),
            outputs: 5,
            settings: TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)),
            batch: 2,
            steps: 9,
            lengths: None,
            has_class_targets: true,
            carries_state: true,
        },
    ]
}

impl Run {
    /// Creates the trainer of the run before its first step.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn start<B: Backend>(&self, b: &B) -> Result<Trainer<B>> {
        let lstm = Lstm::random(b, self.config.clone(), 1)?;
        let head = Linear::random(b, self.config.output_size(), self.outputs, 2)?;
        Ok(Trainer::new(lstm, Some(head), self.settings.clone())?)
    }

    /// Whether PyTorch supports the model.
    pub fn is_supported_by_pytorch(&self) -> bool {
        let LstmConfig { cell, clip, coupled, .. } = self.config;
        cell == CellKind::Fused && clip.is_none() && !coupled
    }

    /// The input of training step `k`, shape `(batch, steps, features)`.
    pub fn inputs(&self, k: u64) -> Array3<f32> {
        self.data(k).0
    }

    /// The input of training step `k`, and the same input delayed by one time step, from which the targets are computed.
    fn data(&self, k: u64) -> (Array3<f32>, Array3<f32>) {
        // Five batches in turn, so that the loss decreases.
        let mut rng = ChaCha8Rng::seed_from_u64(k % 5);
        let size = self.config.input_size;
        let all_steps =
            Array3::from_shape_simple_fn((self.batch, self.steps + 1, size), || random_value(&mut rng) * 0.5);
        (all_steps.slice(s![.., 1.., ..]).to_owned(), all_steps.slice(s![.., ..-1, ..]).to_owned())
    }

    /// The loss of the outputs `y` of a shard and its gradient. The targets depend on the delayed input.
    fn loss(
        &self,
        y: ArrayView3<'_, f32>,
        delayed_x: &Array3<f32>,
        shard: &Shard,
    ) -> lstm_core::Result<(f64, Array3<f32>)> {
        let delayed_x = delayed_x.slice(s![shard.rows.clone(), .., ..]);
        if self.has_class_targets {
            let target_class = |row: ArrayView1<'_, f32>| {
                let target_class = row.indexed_iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(k, _)| k);
                // The loss ignores some of the targets.
                if row[0] > 0.9 { IGNORE_INDEX } else { target_class }
            };
            let targets: Vec<_> = delayed_x.rows().into_iter().map(target_class).collect();
            return cross_entropy(y, &targets);
        }
        let targets = self.sums(delayed_x);
        Ok(part_of_mean(mean_squared_error(y, targets.view())?, shard.rows.len(), self.batch))
    }

    /// The targets of training step `k`, if they are numbers.
    pub fn targets(&self, k: u64) -> Array3<f32> {
        self.sums(self.data(k).1.view())
    }

    /// Sums of two features, which a linear layer can represent.
    fn sums(&self, delayed_x: ArrayView3<'_, f32>) -> Array3<f32> {
        let (batch, steps, features) = delayed_x.dim();
        Array3::from_shape_fn((batch, steps, self.outputs), |(b, t, o)| {
            delayed_x[[b, t, o % features]] + delayed_x[[b, t, 0]]
        })
    }

    /// Runs `steps` training steps and returns their losses.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn train<B: Backend>(&self, trainer: &mut Trainer<B>, steps: u64) -> Result<Vec<f64>> {
        let mut state: Option<HostState> = None;
        let mut losses = Vec::new();
        for k in 0..steps {
            let (x, delayed_x) = self.data(k);
            let input = state.iter().fold(Input::from(&x), |input, state| input.state(state));
            let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
            let step = trainer.step(input, LossInput::Outputs, |out, shard| self.loss(out.y()?, &delayed_x, shard))?;
            losses.push(step.loss);
            state = self.carries_state.then_some(step.state);
        }
        Ok(losses)
    }

    /// Runs the training and returns the text of its snapshot: some losses, a digest of all losses, and a digest of every
    /// tensor in the checkpoint.
    ///
    /// # Errors
    /// The backend returns an error, or the loss does not decrease.
    pub fn report<B: Backend>(&self, b: &B) -> Result<String> {
        let mut trainer = self.start(b)?;
        let losses = self.train(&mut trainer, TRAINING_STEPS)?;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first_mean_loss, last_mean_loss) = (mean(&losses[..10]), mean(&losses[losses.len() - 10..]));
        ensure!(
            last_mean_loss < 0.9 * first_mean_loss,
            "the loss did not decrease enough: from {first_mean_loss} to {last_mean_loss}"
        );

        let mut text = String::new();
        // Writing to a string can't fail.
        for (k, loss) in losses.iter().enumerate().filter(|(k, _)| k % 20 == 0 || k + 1 == losses.len()) {
            let _ = writeln!(text, "step {:3} loss {:016x} {loss:e}", k + 1, loss.to_bits());
        }
        let loss_bits =
            losses.iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32].map(f32::from_bits));
        let _ = writeln!(text, "losses digest {}", Digest::of(&loss_bits.collect::<Vec<_>>()));
        let file = TemporaryFile::new();
        trainer.save(&file.0)?;
        let mut checkpoint = StateDict::open(&file.0)?;
        for name in checkpoint.names().map(str::to_owned).collect::<Vec<_>>() {
            let value = checkpoint.take_any(&name)?;
            let first = value.first().context("a tensor of the checkpoint is empty")?;
            let _ =
                writeln!(text, "{name} {:?} digest {}, {:08x} ...", value.shape(), Digest::of(&value), first.to_bits());
        }
        Ok(text)
    }
}

/// Path of a temporary file, which is deleted on drop.
pub struct TemporaryFile(pub PathBuf);

impl Default for TemporaryFile {
    fn default() -> Self {
        TemporaryFile::new()
    }
}

impl TemporaryFile {
    /// Chooses a unique path in the temporary directory, without creating the file.
    pub fn new() -> Self {
        static FILE_COUNT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("lstm-tests-{}-{}.safetensors", std::process::id(), FILE_COUNT.fetch_add(1, Ordering::Relaxed));
        TemporaryFile(std::env::temp_dir().join(name))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Checks that the first losses of a run are bit-identical on the backend's default path and on the reference path, then runs
/// the training. Returns the text of the snapshot.
///
/// # Errors
/// The losses differ, or the backend returns an error.
pub fn check_run<B: Backend>(b: &B, run: &Run) -> Result<String> {
    let steps = 12;
    let want = run.train(&mut run.start(&lstm_core::Reference(b.clone()))?, steps)?;
    let got = run.train(&mut run.start(b)?, steps)?;
    let difference = want.iter().zip(&got).position(|(want, got)| want.to_bits() != got.to_bits());
    ensure!(difference.is_none(), "the loss of step {difference:?} differs: expected {want:?}, got {got:?}");
    run.report(b)
}
