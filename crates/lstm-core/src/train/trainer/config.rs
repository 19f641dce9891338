//! How a run trains, and what one step of it reports.

use crate::{
    error::Result,
    model::{Checkpointing, HostState},
    train::{Clip, OptimizerConfig, Schedule},
};

/// How a [`Trainer`](super::Trainer) trains; `new` gives the defaults, the methods change one each.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainerConfig {
    /// The optimizer.
    pub method: OptimizerConfig,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// How the gradients of all parameters together are made smaller; not at all by default.
    pub clip: Option<Clip>,
    /// What a forward pass keeps for the way back: memory against time, the same bits; everything by default.
    pub keep: Checkpointing,
    /// What dropout follows from, together with the step; 0 by default.
    pub seed: u64,
}

impl TrainerConfig {
    /// No clipping, everything kept, seed 0.
    pub fn new(method: OptimizerConfig, schedule: Schedule) -> Self {
        TrainerConfig { method, schedule, clip: None, keep: Checkpointing::Everything, seed: 0 }
    }

    /// Clips gradients.
    pub fn clip(self, clip: Clip) -> Self {
        TrainerConfig { clip: Some(clip), ..self }
    }

    /// Sets what a forward pass keeps.
    pub fn keep(self, keep: Checkpointing) -> Self {
        TrainerConfig { keep, ..self }
    }

    /// Sets the seed of dropout.
    pub fn seed(self, seed: u64) -> Self {
        TrainerConfig { seed, ..self }
    }

    /// Checks all of them.
    ///
    /// # Errors
    /// As for [`OptimizerConfig::validate`], [`Schedule::validate`] and [`Clip::validate`];
    /// [`Error::Config`](crate::Error::Config) for segments that are not a positive multiple of 32.
    pub fn validate(&self) -> Result<()> {
        self.method.validate()?;
        self.schedule.validate()?;
        self.keep.segment(1)?;
        self.clip.map_or(Ok(()), |clip| clip.validate())
    }
}

/// What a step of training did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Its number, counted from 1.
    pub step: u64,
    /// The loss before it.
    pub loss: f64,
    /// The [`norm`](crate::train::norm) of all gradients together, before clipping.
    pub norm: f64,
    /// The learning rate it took.
    pub rate: f32,
    /// The LSTM's final states. Given as the next input's state they make truncated backpropagation through time:
    /// values go on, gradients end.
    pub state: HostState,
}
