//! The configuration of a trainer and the report of a training step.

use crate::{
    error::Result,
    model::{Checkpointing, HostState},
    train::{Clip, OptimizerConfig, ParameterGroup, Schedule, check::check_at_least_one},
};

/// Configuration of a [`Trainer`](super::Trainer). [`TrainerConfig::new`] sets the defaults; each builder method
/// changes one option.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct TrainerConfig {
    /// The optimizer and its options.
    pub optimizer: OptimizerConfig,
    /// Learning rate schedule.
    pub schedule: Schedule,
    /// Gradient clipping; none by default.
    pub clip: Option<Clip>,
    /// What the forward pass stores for the backward pass. It trades memory for time and does not change results;
    /// [`Checkpointing::SaveEverything`] by default.
    pub checkpointing: Checkpointing,
    /// Seed of dropout; 0 by default. Each training step derives its own seed from this seed.
    pub seed: u64,
    /// Number of shards of a batch; 1 by default. See [`shards`](Self::shards()).
    pub shards: usize,
    /// Options for some of the parameters; none by default. The names of the parameters are those of the tensors in a
    /// checkpoint, such as `lstm.weight_ih_l0` and `head.bias`.
    pub groups: Vec<ParameterGroup>,
}

impl TrainerConfig {
    /// A configuration without clipping, with [`Checkpointing::SaveEverything`], seed 0 and one shard.
    pub fn new(optimizer: OptimizerConfig, schedule: Schedule) -> Self {
        let checkpointing = Checkpointing::SaveEverything;
        TrainerConfig { optimizer, schedule, clip: None, checkpointing, seed: 0, shards: 1, groups: Vec::new() }
    }

    /// Sets gradient clipping.
    pub fn clip(self, clip: Clip) -> Self {
        TrainerConfig { clip: Some(clip), ..self }
    }

    /// Sets what the forward pass stores for the backward pass.
    pub fn checkpointing(self, checkpointing: Checkpointing) -> Self {
        TrainerConfig { checkpointing, ..self }
    }

    /// Sets the seed of dropout.
    pub fn seed(self, seed: u64) -> Self {
        TrainerConfig { seed, ..self }
    }

    /// Sets the number of shards, into which each batch is cut. Shard `k` of a batch of `B` sequences has those from
    /// `floor(k * B / shards)` up to, but not including, `floor((k + 1) * B / shards)`.
    ///
    /// The passes of a training step run shard by shard, so the activations of only one shard are in memory: this is
    /// also gradient accumulation. The loss is the sum of the losses of the shards, in f64 in their order; see
    /// [`part_of_mean`](crate::train::part_of_mean). The gradients are summed in f32 in the order of a binary tree, which
    /// `docs/specification.md` defines under "Training steps"; on one process, at most `floor(log2(shards)) + 1` sums
    /// are in memory. Clipping and the optimizer follow. Each shard has its own dropout masks.
    ///
    /// The number of shards changes results by rounding. It is saved in checkpoints.
    pub fn shards(self, shards: usize) -> Self {
        TrainerConfig { shards, ..self }
    }

    /// Adds a group of parameters with options of their own, for example to freeze them. The groups are saved in
    /// checkpoints.
    ///
    /// ```
    /// use lstm_core::train::{OptimizerConfig, ParameterGroup, Schedule, TrainerConfig};
    /// let config = TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(1e-3))
    ///     .group(ParameterGroup::new("*bias*").weight_decay(0.0))
    ///     .group(ParameterGroup::new("head.weight").rate_factor(10.0));
    /// ```
    pub fn group(mut self, group: ParameterGroup) -> Self {
        self.groups.push(group);
        self
    }

    /// Checks all options.
    ///
    /// # Errors
    /// The errors of [`OptimizerConfig::validate`], [`ParameterGroup::validate`], [`Schedule::validate`] and
    /// [`Clip::validate`];
    /// [`Error::Config`](crate::Error::Config) if the length of a [checkpointing segment](Checkpointing::Segments) is
    /// not a positive multiple of 32, or the number of shards is 0.
    pub fn validate(&self) -> Result<()> {
        check_at_least_one("shards", self.shards as u64)?;
        self.optimizer.validate()?;
        self.groups.iter().try_for_each(ParameterGroup::validate)?;
        self.schedule.validate()?;
        self.checkpointing.segment_len(1)?;
        self.clip.map_or(Ok(()), |clip| clip.validate())
    }
}

/// Report of one training step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Loss before the update of the parameters.
    pub loss: f64,
    /// [`gradient_norm`](crate::train::gradient_norm) of all gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Final states of the LSTM. For truncated backpropagation through time, pass them as the initial states of the
    /// next step.
    pub state: HostState,
}
