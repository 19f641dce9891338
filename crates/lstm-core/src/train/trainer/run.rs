//! What every trainer has: the optimizer, the configuration, and accumulated gradients.

use super::{
    TrainerConfig,
    shards::{GradientArrays, sum_losses},
};
use crate::{
    error::{Error, Result},
    memory,
    model::HostState,
    train::{Optimizer, check::check_not_negative, tree::TreeSum},
};

/// The state of a training run beside the model.
#[derive(Clone)]
pub(super) struct Run<T> {
    pub(super) optimizer: Optimizer,
    pub(super) config: TrainerConfig,
    /// Whether the parameters were compared with those of other ranks.
    pub(super) is_compared: bool,
    accumulated: Option<Accumulated<T>>,
}

/// The results of several forward and backward passes for one step of the optimizer.
#[derive(Clone)]
struct Accumulated<T> {
    losses: Vec<f64>,
    gradients: TreeSum<T>,
    /// The final states of each LSTM after the last pass.
    states: Vec<HostState>,
}

/// The sums of the losses and gradients of several passes, and the final states of each LSTM after the last one.
pub(super) struct AccumulatedSums<T> {
    pub(super) loss: f64,
    pub(super) gradients: T,
    pub(super) states: Vec<HostState>,
}

impl<T: GradientArrays> Run<T> {
    /// Starts a run that trains the parameters with the given names.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not valid.
    pub(super) fn new<'a>(config: TrainerConfig, parameters: impl IntoIterator<Item = &'a String>) -> Result<Self> {
        config.validate()?;
        let optimizer = Optimizer::new(config.optimizer.clone())?.with_groups(config.groups.clone())?;
        optimizer.check_groups(parameters)?;
        Ok(Run { optimizer, config, is_compared: false, accumulated: None })
    }

    /// Number of training steps so far.
    pub(super) fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Number of the next training step, counted from 1.
    pub(super) fn next_step(&self) -> u64 {
        self.steps().saturating_add(1)
    }

    /// Learning rate of the next step.
    pub(super) fn learning_rate(&self) -> f32 {
        self.config.schedule.rate_at(self.steps())
    }

    /// Changes the configuration. The optimizer keeps its state. `new_run` says in an error message how to start a new
    /// run.
    ///
    /// # Errors
    /// [`Error::Config`] if the new configuration is not valid, its optimizer has another state, or gradients are
    /// accumulated. The run is then unchanged.
    pub(super) fn set_config<'a>(
        &mut self,
        new_config: TrainerConfig,
        parameters: impl IntoIterator<Item = &'a String>,
        new_run: &str,
    ) -> Result<()> {
        self.check_nothing_accumulated("set_config")?;
        new_config.validate()?;
        let (old, new) = (&self.config.optimizer, &new_config.optimizer);
        if self.steps() > 0 && old.state_names() != new.state_names() {
            let ((old_state, accepted), (new_state, _)) = (old.describe_state(), new.describe_state());
            let reason = format!(
                "the run was trained with `{old}`, which has {old_state}, got `{new}`, which has {new_state}; set_config \
                 accepts only an optimizer with the same state: {accepted}; for another one start a new run with this \
                 model: {new_run}"
            );
            return Err(Error::config("optimizer", reason));
        }
        let state = self.optimizer.state().map(|(name, values)| Ok((name, memory::copy("set_config", values)?)));
        let state = state.collect::<Result<Vec<_>>>()?;
        let optimizer = Optimizer::restore(new.clone(), self.steps(), state)?.with_groups(new_config.groups.clone())?;
        optimizer.check_groups(parameters)?;
        (self.optimizer, self.config) = (optimizer, new_config);
        Ok(())
    }

    /// Number of passes whose gradients are accumulated.
    pub(super) fn num_accumulated_passes(&self) -> usize {
        self.accumulated.as_ref().map_or(0, |accumulated| accumulated.losses.len())
    }

    /// Checks that no gradients are accumulated, which `op` would lose or mix with others.
    pub(super) fn check_nothing_accumulated(&self, op: &str) -> Result<()> {
        match self.num_accumulated_passes() {
            0 => Ok(()),
            count => {
                let reason = format!(
                    "{op}: expected no accumulated gradients, got those of {count} passes; call apply first, or \
                     discard_accumulated to drop them"
                );
                Err(Error::config("accumulated", reason))
            }
        }
    }

    /// Checks that a step with this learning rate can be run.
    pub(super) fn check_step(&self, learning_rate: f32) -> Result<()> {
        check_not_negative("rate", learning_rate)?;
        self.check_nothing_accumulated("step")
    }

    /// Adds the results of a pass to those of earlier ones.
    pub(super) fn accumulate(&mut self, loss: f64, mut gradients: T, states: Vec<HostState>) -> Result<()> {
        // Makes the arrays this value's own, so that adding to them can't fail later.
        gradients.slices()?;
        let empty = || Accumulated { losses: Vec::new(), gradients: TreeSum::of_any_number(), states: Vec::new() };
        let accumulated = self.accumulated.get_or_insert_with(empty);
        let index = accumulated.losses.len();
        accumulated.gradients.push(index..index + 1, gradients, T::add)?;
        accumulated.losses.push(loss);
        accumulated.states = states;
        Ok(())
    }

    /// Removes the accumulated gradients and returns their sum; `None` without any.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the sum of the losses is not finite.
    pub(super) fn take_accumulated(&mut self) -> Result<Option<AccumulatedSums<T>>> {
        let Some(Accumulated { losses, gradients, states }) = self.accumulated.take() else { return Ok(None) };
        let loss = sum_losses(self.next_step(), losses)?;
        let Some(gradients) = gradients.into_sum(T::add)? else { return Ok(None) };
        Ok(Some(AccumulatedSums { loss, gradients, states }))
    }

    /// Removes the accumulated gradients.
    pub(super) fn discard_accumulated(&mut self) {
        self.accumulated = None;
    }
}

/// The error of `apply` without accumulated gradients.
pub(super) fn nothing_accumulated() -> Error {
    Error::config("accumulated", "expected at least one call of accumulate before apply, got none")
}
