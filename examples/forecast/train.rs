//! Trains the model to predict the growth of each month from earlier months.

use std::{fmt, path::Path};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lstm::{
    Backend, Linear, Lstm, LstmConfig,
    ndarray::s,
    train::{LossInput, OptimizerConfig, Schedule, StepReport, Trainer, TrainerConfig, mean_squared_error},
};

use crate::{
    error::{Error, Result, create_parent_dir},
    model::{GrowthNormalization, Model},
};

/// Weight decay: the strength of an L2 penalty on the weights.
const WEIGHT_DECAY: f32 = 0.015;

/// Largest accepted final loss. A model that always predicts the mean has a loss of 1.
pub(crate) const MAX_LOSS: f64 = 0.5;

/// Training options.
///
/// Training is as in `tests/data/passengers/train.py`, but with a learning rate that decays to 0 and with more weight decay.
/// For seeds 0 to 99, the error of the forecast is 3.5 to 8.4 % (median 3.9 %). With the script's constant learning rate and
/// weight decay of 0.001, it was 4.0 to 19.5 % (median 5.3 %).
#[derive(Args)]
#[group(conflicts_with = "weights")]
pub(crate) struct TrainingOptions {
    /// Number of training steps, each over all known months
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(crate) steps: u64,

    /// Random seed of the initial weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Hidden size of the LSTM
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) hidden: usize,

    /// Initial learning rate; it decays to 0 along a cosine
    #[arg(long, value_name = "RATE", default_value_t = 0.003)]
    pub(crate) rate: f32,
}

impl fmt::Display for TrainingOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrainingOptions { steps, seed, hidden, rate } = self;
        write!(f, "hidden size {hidden}, {steps} steps of Adam with initial learning rate {rate:?}, seed {seed}")
    }
}

/// A trained model.
pub(crate) struct TrainedModel<B: Backend> {
    trainer: Trainer<B>,
    growth: GrowthNormalization,
    /// Loss of each training step, computed before the step changes the weights.
    pub(crate) losses: Vec<f64>,
}

/// Trains a model on a series of more than a year with the normalization `growth`, and shows progress.
pub(crate) fn train<B: Backend>(
    backend: &B,
    known_values: &[f64],
    growth: GrowthNormalization,
    training: &TrainingOptions,
) -> Result<TrainedModel<B>> {
    let log_values: Vec<f64> = known_values.iter().map(|v| v.ln()).collect();
    // Every month except the last is an input. Its target is the growth of the next month.
    let all_inputs = growth.inputs(&log_values);
    let (x, target) = (all_inputs.slice(s![.., ..-1, ..]), all_inputs.slice(s![.., 1.., ..1]));

    let TrainingOptions { steps, seed, hidden, rate } = *training;
    let lstm = Lstm::random(backend, LstmConfig::new(GrowthNormalization::FEATURE_COUNT, hidden), seed)?;
    // Another seed than for the LSTM: the same seed would give the same random numbers.
    let head = Linear::random(backend, hidden, 1, seed.wrapping_add(1))?;
    let config =
        TrainerConfig::new(OptimizerConfig::adam().weight_decay(WEIGHT_DECAY), Schedule::cosine(rate, steps, 0.0));
    let mut trainer = Trainer::new(lstm, Some(head), config)?;

    let style = ProgressStyle::with_template("{bar:40} step {pos} of {len}, loss {msg}, {eta} left");
    let bar = ProgressBar::new(steps).with_style(style.expect("the template is valid"));
    let mut losses = Vec::new();
    for _ in 0..steps {
        let StepReport { step, loss, .. } =
            trainer.step(x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target))?;
        losses.push(loss);
        bar.set_message(format!("{loss:.4}"));
        bar.inc(1);
        if bar.is_hidden() && (step == 1 || step.is_multiple_of(steps.div_ceil(10))) {
            eprintln!("step {step} of {steps}: loss {loss:.4}");
        }
    }
    bar.finish_and_clear();
    Ok(TrainedModel { trainer, growth, losses })
}

impl<B: Backend> TrainedModel<B> {
    /// The trained model.
    pub(crate) fn model(&self) -> Model<B> {
        let head = self.trainer.head().expect("the trainer has a head");
        Model { lstm: self.trainer.lstm().clone(), head: head.clone(), growth: self.growth }
    }

    /// Fails if the final loss is more than [`MAX_LOSS`]: the model has then learned little more than the mean. A check
    /// of the forecast would not find this, because the growth in 1959 and 1960 was close to the mean.
    pub(crate) fn check_loss(&self) -> Result<()> {
        match self.losses.last() {
            Some(&loss) if loss > MAX_LOSS => Err(Error::HighLoss { loss }),
            _ => Ok(()),
        }
    }

    /// Saves the model to a file that [`Model::open`] reads, with the tensor names of PyTorch.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        create_parent_dir(path)?;
        Ok(self.trainer.save_model(path, &self.growth.metadata())?)
    }
}
