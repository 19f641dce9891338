//! Shared by the training tests: a small task, models for it, and temporary directories.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use lstm_cpu::{
    Backend, CellKind, Checkpointing, Cpu, HostState, Input, Linear, Lstm, LstmConfig, Reference, Result,
    ndarray::{Array3, s},
    train::{
        Clip, LossInput, OptimizerConfig, Schedule, StepReport, Trainer, TrainerConfig, mean_squared_error,
        shuffled_indices,
    },
};

/// A second backend, which trains on the reference path.
pub(crate) type Device = Reference<Cpu>;

/// A backend that uses the reference path.
pub(crate) fn device() -> Device {
    Reference(Cpu::new())
}

/// A prediction task: eight sine waves of 40 time steps with two features, and the next value of the first feature.
pub(crate) fn task() -> (Array3<f32>, Array3<f32>) {
    let wave = |b: usize, t: usize| ((b * 7 % 8) as f32 + t as f32 * 0.3).sin();
    let x = Array3::from_shape_fn((8, 40, 2), |(b, t, k)| wave(b, t + 5 * k) * 0.75);
    let target = Array3::from_shape_fn((8, 40, 1), |(b, t, _)| wave(b, t + 1) * 0.75);
    (x, target)
}

/// Configurations that together cover dropout, both directions, all cells, models with and without a head, clipping,
/// checkpointing, and every optimizer and schedule. Each is a model, whether it has a head, and the trainer's
/// configuration.
pub(crate) fn cases() -> Vec<(LstmConfig, bool, TrainerConfig)> {
    let deep = LstmConfig::new(2, 6).layers(2);
    vec![
        (
            deep.clone().dropout(0.25),
            true,
            TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01).warmup(4))
                .clip(Clip::Norm(0.5))
                .seed(11),
        ),
        (
            deep.bidirectional().proj_size(3).dropout(0.5).clip(2.0),
            true,
            TrainerConfig::new(OptimizerConfig::adamw(), Schedule::cosine(0.02, 9, 0.001))
                .checkpointing(Checkpointing::Segments(32))
                .seed(12),
        ),
        (
            LstmConfig::new(2, 1).cell(CellKind::PeepholeDiagonal).coupled(),
            false,
            TrainerConfig::new(OptimizerConfig::momentum(0.9), Schedule::step(0.3, 20, 0.5)).clip(Clip::Value(0.05)),
        ),
        (
            LstmConfig::new(2, 5).cell(CellKind::PeepholeDense),
            true,
            TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(0.1))
                .checkpointing(Checkpointing::SquareRootSegments),
        ),
    ]
}

/// A trainer for one of the [`cases`].
pub(crate) fn trainer<B: Backend>(b: &B, (config, head, settings): &(LstmConfig, bool, TrainerConfig)) -> Trainer<B> {
    let lstm = Lstm::random(b, config.clone(), 1).unwrap();
    let head = head.then(|| Linear::random(b, config.output_size(), 1, 2).unwrap());
    Trainer::new(lstm, head, settings.clone()).unwrap()
}

/// One training step on two sequences, one of them shorter. [`shuffled_indices`] chooses them by the number of the
/// step.
pub(crate) fn step<B: Backend>(trainer: &mut Trainer<B>) -> Result<StepReport> {
    let (x, target) = task();
    let (epoch, batch) = (trainer.steps() / 4, trainer.steps() as usize % 4);
    let chosen = &shuffled_indices(5, epoch, 8)?[2 * batch..2 * batch + 2];
    let pick = |all: &Array3<f32>| all.select(lstm_cpu::ndarray::Axis(0), chosen);
    let (x, mut target) = (pick(&x), pick(&target));
    target.slice_mut(s![1, 33.., ..]).fill(0.0);
    let input = Input::from(&x).lengths(&[40, 33]);
    trainer.step(input, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))
}

/// The checkpoint of a trainer, as bits: everything on which later steps depend.
pub(crate) fn bits<B: Backend>(trainer: &Trainer<B>) -> Vec<u32> {
    let dir = TempDir::new();
    trainer.save(dir.file("bits")).unwrap();
    fs::read(dir.file("bits")).unwrap().chunks(4).map(|b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b))).collect()
}

/// The report of a training step, as bits.
pub(crate) fn step_bits(step: &StepReport) -> (u64, u64, u64, u32, Vec<u32>) {
    let HostState { h, c } = &step.state;
    let state = h.iter().chain(c).map(|v| v.to_bits()).collect();
    (step.step, step.loss.to_bits(), step.gradient_norm.to_bits(), step.learning_rate.to_bits(), state)
}

/// A temporary directory that is deleted when this value is dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// Creates an empty directory.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lstm-training-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    /// The path of a file in the directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
