//! Trains the model from nothing: each month's growth from those before it.

use std::{fmt, path::Path};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lstm_core::{
    Backend, Lstm, LstmConfig,
    ndarray::s,
    train::{Linear, OptimizerConfig, Schedule, StepReport, Trainer, TrainerConfig, mean_squared_error},
};

use crate::{
    error::{Error, Result, make_folder},
    model::{Growth, Model},
};

/// L2 penalty's factor.
const WEIGHT_DECAY: f32 = 0.015;

/// The largest last loss that passes. Always telling the mean has a loss of 1.
pub(crate) const MAX_LOSS: f64 = 0.5;

/// How a model is trained.
///
/// The recipe is that of `tests/data/passengers/train.py`, but with a rate that falls to nothing and more weight decay.
/// Over the seeds 0 to 99, the error was 4.0 to 19.5 % (median 5.3) with its constant rate and its decay of 0.001, and
/// is 3.5 to 8.4 % (median 3.9) as it is here.
#[derive(Args)]
#[group(conflicts_with = "weights")]
pub(crate) struct Recipe {
    /// Steps of training, each over all known months
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(crate) steps: u64,

    /// Seed of the initial weights: the same seed gives the same bits
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Size of the LSTM's state
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) hidden: usize,

    /// Learning rate of the first step, from where it falls to 0 along half a cosine
    #[arg(long, value_name = "RATE", default_value_t = 0.003)]
    pub(crate) rate: f32,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recipe { steps, seed, hidden, rate } = self;
        write!(f, "{hidden} hidden units, {steps} steps of Adam from rate {rate:?}, seed {seed}")
    }
}

/// A finished training.
pub(crate) struct Trained<B: Backend> {
    trainer: Trainer<B>,
    growth: Growth,
    /// The loss before each step.
    pub(crate) losses: Vec<f64>,
}

/// Trains on a series of more than a year, on the scale of `growth`, and shows how it goes.
pub(crate) fn train<B: Backend>(backend: &B, known: &[f64], growth: Growth, recipe: &Recipe) -> Result<Trained<B>> {
    let logs: Vec<f64> = known.iter().map(|v| v.ln()).collect();
    // Every month but the last is an input; its target is the growth that the next month's input has.
    let all = growth.inputs(&logs);
    let (x, target) = (all.slice(s![.., ..-1, ..]), all.slice(s![.., 1.., ..1]));

    let Recipe { steps, seed, hidden, rate } = *recipe;
    let lstm = Lstm::random(backend, LstmConfig::new(Growth::FEATURES, hidden), seed)?;
    // With the LSTM's seed, the head would get the LSTM's first draws.
    let head = Linear::random(backend, hidden, 1, seed.wrapping_add(1))?;
    let settings =
        TrainerConfig::new(OptimizerConfig::adam().weight_decay(WEIGHT_DECAY), Schedule::cosine(rate, steps, 0.0));
    let mut trainer = Trainer::new(lstm, Some(head), settings)?;

    let style = ProgressStyle::with_template("{bar:40} step {pos} of {len}, loss {msg}, {eta} left");
    let bar = ProgressBar::new(steps).with_style(style.expect("a template"));
    let mut losses = Vec::new();
    for _ in 0..steps {
        let StepReport { step, loss, .. } = trainer.step(x, |y| mean_squared_error(y, target))?;
        losses.push(loss);
        bar.set_message(format!("{loss:.4}"));
        bar.inc(1);
        if bar.is_hidden() && (step == 1 || step.is_multiple_of(steps.div_ceil(10))) {
            eprintln!("step {step} of {steps}: loss {loss:.4}");
        }
    }
    bar.finish_and_clear();
    Ok(Trained { trainer, growth, losses })
}

impl<B: Backend> Trained<B> {
    pub(crate) fn model(&self) -> Model<B> {
        let head = self.trainer.head().expect("a head since the training began");
        Model { lstm: self.trainer.lstm().clone(), head: head.clone(), growth: self.growth }
    }

    /// Fails unless the model has learnt more than the mean. Its forecast does not tell: in 1959 and 1960 the growth was
    /// about the mean.
    pub(crate) fn check_loss(&self) -> Result<()> {
        match self.losses.last() {
            Some(&loss) if loss > MAX_LOSS => Err(Error::Untrained { loss }),
            _ => Ok(()),
        }
    }

    /// Writes a file that [`Model::open`] reads, and PyTorch too.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        make_folder(path)?;
        Ok(self.trainer.save_model(path, &self.growth.metadata())?)
    }
}
