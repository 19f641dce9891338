//! Training of a model step by step.

mod checkpoint;
mod config;
mod model;
mod parameters;
mod run;
mod shards;

use std::{borrow::Cow, fmt::Display, ops::Range};

use ndarray::{Array1, Array2, Array3, Axis, s};

pub use checkpoint::CheckpointExtras;
pub use config::{StepReport, TrainerConfig};
pub use model::{ModelStepReport, ModelTrainer};

use super::{
    loss_input::{LossGradient, LossInput, ModelOutputs, Shard},
    optimizer::Optimizer,
};
use crate::{
    backend::Backend,
    config::LstmConfig,
    error::{Error, Result},
    memory,
    model::{Dropout, HostState, Input, Linear, Lstm, OutputGradients, Tape, block_on},
    train::{
        collective::{Collective, SingleRank, call_setting, own_shards, succeed_together},
        tree::part,
    },
    weights::Weights,
};
use parameters::{HeadSpec, ModelArrays, parameter_shapes};
use run::{AccumulatedSums, Run, nothing_accumulated};
use shards::{
    GradientArrays, ShardSums, StepError, batch_setting, check_shards, digest_indices, dropout_seed, no_shard,
    parameters_setting, run_settings, select_state,
};

/// Trains an [`Lstm`] with an optional [`Linear`] head on its outputs. The run can be [saved](Self::save) after any
/// step and [resumed](Self::resume); the results of the later steps are then bit-identical.
///
/// The caller provides the loss: a function from the outputs to the loss and its gradient, such as
/// [`mean_squared_error`](crate::train::mean_squared_error).
///
/// ```no_run
/// use lstm_core::{Backend, Linear, Lstm, LstmConfig, Result, ndarray::Array3};
/// use lstm_core::train::{Clip, OptimizerConfig, LossInput, Schedule, TrainerConfig, Trainer, mean_squared_error};
///
/// fn train<B: Backend>(backend: &B, x: &Array3<f32>, target: &Array3<f32>) -> Result<()> {
///     let lstm = Lstm::random(backend, LstmConfig::new(3, 64).layers(2).dropout(0.1), 1)?;
///     let head = Linear::random(backend, 64, 1, 2)?;
///     let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-3));
///     let config = config.clip(Clip::Norm(1.0)).seed(3);
///     let mut trainer = Trainer::new(lstm, Some(head), config)?;
///     for _ in 0..1000 {
///         let report = trainer.step(x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))?;
///         println!("{}: {}", report.step, report.loss);
///     }
///     trainer.save("run.safetensors")
/// }
/// ```
#[derive(Clone)]
pub struct Trainer<B: Backend> {
    lstm: Lstm<B>,
    head: Option<Linear<B>>,
    run: Run<ModelArrays>,
}

impl<B: Backend> std::fmt::Debug for Trainer<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trainer { lstm, head, run } = self;
        write!(f, "Trainer({lstm:?}, {head:?}, {:?}, {} steps done)", run.config, run.steps())
    }
}

impl<B: Backend> Trainer<B> {
    /// Starts a run with the given model. The head may be on another device than the LSTM.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate) or the weights are quantized; [`Error::Shape`] if the input
    /// size of the head is not the output size of the LSTM.
    pub fn new(lstm: Lstm<B>, head: Option<Linear<B>>, config: TrainerConfig) -> Result<Self> {
        lstm.weights().check_trainable()?;
        let size = lstm.config().output_size();
        if let Some(head) = head.as_ref().filter(|head| head.input_size() != size) {
            let expected = format!("{size}, the output size of the LSTM");
            return Err(Error::shape("Trainer::new: input size of the head", expected, head.input_size()));
        }
        let names = parameter_names(&lstm, head.as_ref());
        Ok(Trainer { run: Run::new(config, &names)?, lstm, head })
    }

    /// The LSTM with its current weights.
    pub fn lstm(&self) -> &Lstm<B> {
        &self.lstm
    }

    /// The head with its current weights; `None` for a model without a head.
    pub fn head(&self) -> Option<&Linear<B>> {
        self.head.as_ref()
    }

    /// Consumes the trainer and returns the LSTM and the head.
    pub fn into_parts(self) -> (Lstm<B>, Option<Linear<B>>) {
        (self.lstm, self.head)
    }

    /// Changes the configuration during a run, for example the learning rate schedule after a resume. The optimizer
    /// state is kept, so after the first step the new optimizer must use the same state arrays. Adam and AdamW use the
    /// same arrays; so do all variants of SGD with momentum, and all variants without momentum. For any other
    /// optimizer, start a new run with the model: pass its [parts](Self::into_parts) to [`Trainer::new`].
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate) or its optimizer has another state.
    /// The trainer is unchanged after an error.
    pub fn set_config(&mut self, config: TrainerConfig) -> Result<()> {
        let names = parameter_names(&self.lstm, self.head.as_ref());
        self.run.set_config(config, &names, "pass the results of Trainer::into_parts to Trainer::new")
    }

    /// The configuration of the trainer.
    pub fn config(&self) -> &TrainerConfig {
        &self.run.config
    }

    /// Number of training steps so far, including those before the run was resumed.
    pub fn steps(&self) -> u64 {
        self.run.steps()
    }

    /// Learning rate of the next step.
    pub fn learning_rate(&self) -> f32 {
        self.run.learning_rate()
    }

    /// Computes the model's outputs without dropout, in the layout of the input, and the final states of the LSTM. The
    /// outputs are those of the head, or of the LSTM in a model without a head. Outputs beyond a sequence's length are
    /// +0.
    ///
    /// # Errors
    /// The errors of [`Lstm::forward`].
    pub fn predict<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        block_on(self.predict_async(input))
    }

    /// Asynchronous [`predict`](Self::predict), which does not block the thread.
    ///
    /// # Errors
    /// As for [`predict`](Self::predict).
    pub async fn predict_async<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        let input = input.into().dropout(Dropout::Off);
        let (y, state) = self.lstm.forward_async(input).await?;
        let y = match &self.head {
            Some(head) => head_outputs(head, &y, &input).await?,
            None => y,
        };
        Ok((y, state))
    }

    /// Runs one training step: forward pass with dropout, loss, backward pass, gradient clipping, optimizer step.
    ///
    /// `loss` is called once for each [shard](TrainerConfig::shards()) of the batch, in order. It gets the
    /// [results](ModelOutputs) that `loss_input` selects, for the sequences of the [`Shard`], which is the whole batch by
    /// default. It returns the loss and the gradient of the loss with respect to these results. The loss of the batch is
    /// the sum over the shards, so a mean is [weighted](crate::train::part_of_mean). The error type of `loss` may be the
    /// caller's own.
    ///
    /// ```
    /// # use lstm_core::{Backend, Error, ndarray::Array3, train::{LossInput, StepReport, Trainer, cross_entropy, part_of_mean}};
    /// // A classifier: one class for each sequence.
    /// # fn example<B: Backend>(trainer: &mut Trainer<B>, x: &Array3<f32>, classes: &[usize]) -> Result<StepReport, Error> {
    /// trainer.step(x, LossInput::LastState, |out, shard| {
    ///     let mean = cross_entropy(out.last()?, &classes[shard.rows.clone()])?;
    ///     Ok(part_of_mean(mean, shard.own_count, shard.count))
    /// })
    /// # }
    /// ```
    ///
    /// Outputs beyond a sequence's length are +0, and their gradients are ignored. A loss that is a mean should exclude
    /// them; see [`masked_mean_squared_error`](crate::train::masked_mean_squared_error) and
    /// [`IGNORE_INDEX`](crate::train::IGNORE_INDEX).
    ///
    /// The dropout seed of a shard is derived from the [seed of the configuration](TrainerConfig::seed), the number of
    /// the step and that of the shard, as `docs/specification.md` defines under "Training steps". It replaces the dropout
    /// seed of the input.
    ///
    /// # Errors
    /// The weights, the optimizer and the number of steps are unchanged after an error.
    /// - [`Error::NotFinite`], which gives the step and the first of these that is infinite or NaN: the loss, of a shard
    ///   if there are several, the gradient of a parameter, its new value, its optimizer state.
    /// - [`Error::Shape`] if the input is empty, or the gradient does not have the shape of the outputs.
    /// - [`Error::Config`] if there are more shards than sequences.
    /// - The errors of [`Lstm::forward`] and of `loss`. With several shards, those of the library are an
    ///   [`Error::Shard`], which names the shard.
    pub fn step<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<StepReport, E> {
        block_on(self.step_async(input, loss_input, loss))
    }

    /// Asynchronous [`step`](Self::step), which does not block the thread. The trainer is unchanged if the future is
    /// dropped before it completes.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<StepReport, E> {
        let rate = self.learning_rate();
        self.step_on_ranks(&SingleRank, |_| String::new(), rate, input.into(), loss_input, loss).await
    }

    /// Runs one training step with the learning rate `rate` in place of that of the
    /// [schedule](TrainerConfig::schedule), for example one that a closure computes from the last validation loss.
    ///
    /// # Errors
    /// As for [`step`](Self::step); [`Error::Config`] if the rate is negative or not finite.
    pub fn step_at<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        rate: f32,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<StepReport, E> {
        block_on(self.step_on_ranks(&SingleRank, |_| String::new(), rate, input.into(), loss_input, loss))
    }

    /// Runs the forward and backward passes of a part of a batch, and adds its gradients to those of earlier calls.
    /// [`apply`](Self::apply) then updates the parameters. Returns the loss of the part and the final states of the LSTM.
    ///
    /// This is gradient accumulation for parts that do not fit into one input, such as sequences of very different
    /// lengths. For one input, [shards](TrainerConfig::shards()) are simpler. The gradients are summed, so the loss of a
    /// mean over the batch is [weighted](crate::train::part_of_mean) by the share of the part. With one shard per call,
    /// the results are bit-identical to those of a [`step`](Self::step) whose shards are these parts.
    ///
    /// ```
    /// # use lstm_core::{Backend, Error, ndarray::Array3, train::{LossInput, StepReport, Trainer, mean_squared_error, part_of_mean}};
    /// # fn example<B: Backend>(trainer: &mut Trainer<B>, parts: &[(Array3<f32>, Array3<f32>)]) -> Result<StepReport, Error> {
    /// let steps = |x: &Array3<f32>| x.dim().0 * x.dim().1;
    /// let all_steps = parts.iter().map(|(x, _)| steps(x)).sum();
    /// for (x, target) in parts {
    ///     trainer.accumulate(x, LossInput::Outputs, |out, _| {
    ///         let mean = mean_squared_error(out.y()?, target.view())?;
    ///         Ok::<_, Error>(part_of_mean(mean, steps(x), all_steps))
    ///     })?;
    /// }
    /// trainer.apply()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`step`](Self::step). The accumulated gradients are unchanged after an error.
    pub fn accumulate<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<(f64, HostState), E> {
        block_on(self.accumulate_async(input, loss_input, loss))
    }

    /// Asynchronous [`accumulate`](Self::accumulate), which does not block the thread.
    ///
    /// # Errors
    /// As for [`accumulate`](Self::accumulate).
    pub async fn accumulate_async<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<(f64, HostState), E> {
        let (input, step) = (input.into(), self.run.next_step());
        let sums =
            self.run_shards(&SingleRank, step, self.run.num_accumulated_passes(), &input, loss_input, loss).await;
        let (loss, gradients, states) = ShardSums::of_one_rank(step, input.batch_and_steps().0, sums)?;
        let state = states.first().ok_or_else(no_shard)?.try_clone()?;
        self.run.accumulate(loss, gradients, states)?;
        Ok((loss, state))
    }

    /// Clips the sum of the [accumulated](Self::accumulate) gradients and runs the optimizer. The report has the sum of
    /// the losses, and the final states of the last part.
    ///
    /// # Errors
    /// [`Error::Config`] without accumulated gradients; [`Error::NotFinite`] as for [`step`](Self::step). The parameters
    /// and the optimizer are unchanged after an error, and the accumulated gradients are discarded.
    pub fn apply(&mut self) -> Result<StepReport> {
        self.apply_at(self.learning_rate())
    }

    /// [`apply`](Self::apply) with the learning rate `rate` in place of that of the schedule.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply); [`Error::Config`] if the rate is negative or not finite.
    pub fn apply_at(&mut self, rate: f32) -> Result<StepReport> {
        let AccumulatedSums { loss, gradients, states } =
            self.run.take_accumulated()?.ok_or_else(nothing_accumulated)?;
        let state = states.into_iter().next().ok_or_else(no_shard)?;
        let (step, updated) = (self.run.next_step(), self.update(rate, gradients)?);
        let gradient_norm = self.commit(updated, false);
        Ok(StepReport { step, loss, gradient_norm, learning_rate: rate, state })
    }

    /// Discards the [accumulated](Self::accumulate) gradients.
    pub fn discard_accumulated(&mut self) {
        self.run.discard_accumulated();
    }

    /// Runs one training step together with other ranks. Each rank calls this method with the same trainer and the same
    /// batch. The result is bit-identical for any number of ranks, and to that of [`step`](Self::step); it depends on
    /// the number of [shards](TrainerConfig::shards()) alone.
    ///
    /// Rank `r` of `R` has the shards from `floor(r * shards / R)` up to, but not including, `floor((r + 1) * shards /
    /// R)`. It runs the passes of these, and calls `loss` for them only. Then all ranks sum their gradients, and each
    /// updates its own parameters in the same way. Clipping and the optimizer need no other communication.
    ///
    /// The report is the same on all ranks, except for [`StepReport::state`]: it is NaN for the sequences of other
    /// ranks. [`gather_state`](crate::train::gather_state) completes it, for example for a checkpoint. Only one rank
    /// should save the run.
    ///
    /// # Errors
    /// As for [`step`](Self::step). On several ranks, an error of one is returned by all: as [`Error::Rank`], which names
    /// the rank, and the shard if its passes failed. Only an error of `loss` itself comes back unchanged on its own rank.
    /// No trainer is then changed.
    /// - [`Error::Rank`] if there are fewer shards than ranks, or if the version of the library, the model, the
    ///   configuration or the number of steps differ from those of rank 0. It names the first rank that differs. In the
    ///   first step, the parameters and the whole batch are compared too; later, some elements of the batch.
    /// - The errors of the collective. The ranks can then not continue together, so the caller should end the process.
    pub fn step_on<'a, G: Into<LossGradient>, E: From<Error> + Display>(
        &mut self,
        collective: &impl Collective,
        input: impl Into<Input<'a>>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<StepReport, E> {
        let rate = self.learning_rate();
        block_on(self.step_on_ranks(collective, E::to_string, rate, input.into(), loss_input, loss))
    }

    /// A training step on several ranks. `describe_error` returns the text of an error of the caller.
    async fn step_on_ranks<G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        collective: &impl Collective,
        describe_error: fn(&E) -> String,
        learning_rate: f32,
        input: Input<'_>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<StepReport, E> {
        let (step, batch) = (self.run.next_step(), input.batch_and_steps().0);
        let sums = match self.run.check_step(learning_rate) {
            Ok(()) => self.run_shards(collective, step, 0, &input, loss_input, loss).await,
            Err(error) => Err(error.into()),
        };
        let settings = || self.settings(&input, loss_input);
        let combined =
            ShardSums::combine(collective, step, self.run.config.shards, batch, settings, describe_error, sums);
        let (loss, gradients, states) = combined.map_err(StepError::into_caller_error)?;
        let state = states.into_iter().next().ok_or_else(no_shard);
        let result = state.and_then(|state| Ok((state, self.update(learning_rate, gradients)?)));
        let (state, updated) = succeed_together(collective, &[call_setting("update of the parameters")], result)?;
        let gradient_norm = self.commit(updated, collective.size() > 1);
        Ok(StepReport { step, loss, gradient_norm, learning_rate, state })
    }

    /// Puts the updated model and optimizer in place, and returns the norm of the gradients. Without the other ranks, the
    /// step may make the parameters differ from theirs.
    fn commit(&mut self, updated: Updated<B>, on_ranks: bool) -> f64 {
        let gradient_norm;
        (self.lstm, self.head, self.run.optimizer, gradient_norm) = updated;
        self.run.is_compared = on_ranks;
        gradient_norm
    }

    /// Everything on which a step depends, as pairs of name and value.
    fn settings(&self, input: &Input<'_>, loss_input: LossInput) -> Vec<(&'static str, String)> {
        let head = self.head.as_ref().map_or("none".into(), |head| HeadSpec::of(head).to_string());
        let mut settings = run_settings(self.lstm.backend(), &self.run.config, &self.run.optimizer);
        settings.extend([
            ("model", self.lstm.config().to_string()),
            ("head", head),
            ("loss input", format!("{loss_input:?}")),
        ]);
        if !self.run.is_compared {
            let head = self.head.iter().flat_map(|head| head.weight().iter().chain(head.bias().into_iter().flatten()));
            let lstm = self.lstm.weights().layers().iter().flat_map(|layer| layer.iter().flat_map(|(_, array)| array));
            settings.push(parameters_setting(lstm.chain(head), &self.run.optimizer));
        }
        let layout = if input.time_major { "time-major " } else { "" };
        let (_, b, c) = input.x.dim();
        let element = |k: usize| input.x[[k / (b * c), k / c % b, k % c]];
        let values = digest_indices(input.x.len(), self.steps(), self.run.is_compared).map(element);
        let (name, text) = batch_setting(input.x.dim(), input.lengths, input.state.is_some(), values);
        settings.push((name, format!("{layout}{text}")));
        settings
    }

    /// Runs the forward and backward passes of the shards of this rank, after `earlier_inputs` inputs of the same step.
    async fn run_shards<G: Into<LossGradient>, E>(
        &self,
        collective: &impl Collective,
        step: u64,
        earlier_inputs: usize,
        input: &Input<'_>,
        loss_input: LossInput,
        mut loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ShardSums<ModelArrays>, StepError<E>> {
        if input.x.is_empty() || input.lengths.is_some_and(|lengths| lengths.iter().all(|&len| len == 0)) {
            let mut got = format!("{:?}", input.x.shape());
            if let Some(lengths) = input.lengths {
                got += &format!(", lengths {lengths:?}");
            }
            return Err(Error::shape("Trainer::step: x", "at least one time step of one sequence", got).into());
        }
        let (shards, batch) = (self.run.config.shards, input.batch_and_steps().0);
        check_shards(shards, batch)?;
        let own_shards = own_shards(collective, shards)?;
        // Shards are taken out of arrays of the right shapes.
        input.check(self.lstm.config())?;
        let mut sums = ShardSums::new(shards);
        for index in own_shards {
            let shard = shard_of(input, loss_input, shards, index);
            let state = input.state.map(|state| match shards {
                1 => Ok(Cow::Borrowed(state)),
                _ => select_state(state, &shard.rows).map(Cow::Owned),
            });
            let state = state.transpose()?;
            let seed = dropout_seed(self.run.config.seed, step, earlier_inputs * shards + index);
            let shard_input = rows_of(input, &shard.rows, state.as_deref()).dropout(Dropout::Seed(seed));
            let pass = self.gradients(step, &shard_input, loss_input, &mut loss, &shard).await;
            let (loss, state, gradients) = pass.map_err(|error| error.with_shard(&shard))?;
            sums.push(&shard, loss, gradients, vec![state])?;
        }
        Ok(sums)
    }

    /// Clips the gradients and runs the optimizer. Returns the new model and optimizer, and the norm of the gradients.
    fn update(&self, learning_rate: f32, mut gradients: ModelArrays) -> Result<Updated<B>> {
        let names = parameter_names(&self.lstm, self.head.as_ref());
        let head_values = match &self.head {
            Some(head) => {
                let bias = head.bias().map(|bias| memory::copy_array("Trainer::step", bias.view())).transpose()?;
                Some((memory::copy_array("Trainer::step", head.weight().view())?, bias))
            }
            None => None,
        };
        let mut values = ModelArrays { lstm: self.lstm.weights().try_clone()?, head: head_values };
        let (optimizer, gradient_norm) = self.run.optimizer.clipped_step(
            self.run.config.clip,
            learning_rate,
            &names,
            values.slices()?,
            gradients.slices()?,
        )?;
        let mut lstm = self.lstm.clone();
        lstm.set_weights(values.lstm)?;
        let head = match (&self.head, values.head) {
            (Some(head), Some((weight, bias))) => Some(Linear::new(head.backend(), weight, bias)?),
            _ => None,
        };
        Ok((lstm, head, optimizer, gradient_norm))
    }

    /// Runs the forward pass, the loss and the backward pass of one shard. Returns the loss, the final states and the
    /// gradients.
    async fn gradients<G: Into<LossGradient>, E>(
        &self,
        step: u64,
        input: &Input<'_>,
        loss_input: LossInput,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
        shard: &Shard,
    ) -> Result<(f64, HostState, ModelArrays), StepError<E>> {
        let config = self.lstm.config();
        let output = self.lstm.forward_train_async(*input, self.run.config.checkpointing).await?;
        let last_hidden = if loss_input.reads_last_state() { Some(output.state.last(config)?) } else { None };
        let Some(head) = &self.head else {
            let outputs = ModelOutputs {
                y: loss_input.reads_outputs().then(|| output.y.view()),
                last: last_hidden.as_ref().map(|last| last.view()),
            };
            let (loss, gradient) = checked_loss(step, loss, outputs, shard)?;
            let lstm = backward(&output.tape, config, gradient).await?;
            return Ok((loss, output.state, ModelArrays { lstm, head: None }));
        };
        let y = if loss_input.reads_outputs() { Some(head_outputs(head, &output.y, input).await?) } else { None };
        let last = match &last_hidden {
            Some(last) => Some(head.forward_async(last).await?),
            None => None,
        };
        let outputs = ModelOutputs { y: y.as_ref().map(|y| y.view()), last: last.as_ref().map(|last| last.view()) };
        let (loss, mut gradient) = checked_loss(step, loss, outputs, shard)?;
        let mut head_gradients: Option<HeadArrays> = None;
        let mut hidden_gradient = LossGradient { y: None, last: None };
        if let Some(dy) = &mut gradient.y {
            clear_beyond_lengths(dy, input);
            let gradients_from_outputs = head.backward_async(&output.y, &*dy).await?;
            hidden_gradient.y = Some(gradients_from_outputs.x);
            head_gradients = Some((gradients_from_outputs.weight, gradients_from_outputs.bias));
        }
        if let (Some(last_hidden), Some(last_gradient)) = (&last_hidden, &gradient.last) {
            let gradients_from_last = head.backward_async(last_hidden, last_gradient).await?;
            hidden_gradient.last = Some(gradients_from_last.x);
            head_gradients = Some(match head_gradients {
                Some((weight, bias)) => {
                    (weight + gradients_from_last.weight, bias.zip(gradients_from_last.bias).map(|(a, b)| a + b))
                }
                None => (gradients_from_last.weight, gradients_from_last.bias),
            });
        }
        let lstm = backward(&output.tape, config, hidden_gradient).await?;
        Ok((loss, output.state, ModelArrays { lstm, head: head_gradients }))
    }
}

/// The LSTM, the head and the optimizer after a step, and the norm of the gradients.
type Updated<B> = (Lstm<B>, Option<Linear<B>>, Optimizer, f64);

/// The names of all parameters.
fn parameter_names<B: Backend>(lstm: &Lstm<B>, head: Option<&Linear<B>>) -> Vec<String> {
    parameter_shapes(lstm.config(), head.map(HeadSpec::of)).into_iter().map(|(name, _)| name).collect()
}

/// Weight and bias of a head.
type HeadArrays = (Array2<f32>, Option<Array1<f32>>);

/// Shard number `index` of a batch with `shards` shards.
fn shard_of(input: &Input<'_>, loss_input: LossInput, shards: usize, index: usize) -> Shard {
    let (batch, steps) = input.batch_and_steps();
    let rows = part(batch, shards, index);
    let count = |rows: Range<usize>| match (loss_input.reads_outputs(), input.lengths) {
        (false, _) => rows.len(),
        (true, None) => rows.len() * steps,
        (true, Some(lengths)) => lengths[rows].iter().sum(),
    };
    Shard { index, shards, count: count(0..batch), own_count: count(rows.clone()), rows }
}

/// The sequences `rows` of an input, with their initial states.
fn rows_of<'a>(input: &'a Input<'_>, rows: &Range<usize>, state: Option<&'a HostState>) -> Input<'a> {
    let x = input.x.slice_axis(Axis(usize::from(input.time_major)), (rows.start..rows.end).into());
    let lengths = input.lengths.map(|lengths| &lengths[rows.clone()]);
    Input { x, state, lengths, time_major: input.time_major, dropout: input.dropout }
}

/// The gradients of the LSTM's weights, from the gradient of the loss with respect to its outputs and last hidden states.
async fn backward<B: Backend>(tape: &Tape<B>, config: &LstmConfig, gradient: LossGradient) -> Result<Weights> {
    let state = gradient.last.map(|last| HostState::from_last(config, &last)).transpose()?;
    let gradients = match (&gradient.y, &state) {
        (Some(y), Some(state)) => OutputGradients::from(y).state(state),
        (Some(y), None) => y.into(),
        (None, Some(state)) => state.into(),
        (None, None) => return Err(Error::shape("Trainer::step: gradient of the loss", "an array", "none")),
    };
    Ok(tape.backward_async(gradients).await?.weights)
}

/// Applies the head to the outputs `x` of the LSTM. The result is +0 beyond each sequence's length.
async fn head_outputs<B: Backend>(head: &Linear<B>, x: &Array3<f32>, input: &Input<'_>) -> Result<Array3<f32>> {
    let mut y = head.forward_async(x.view()).await?;
    clear_beyond_lengths(&mut y, input);
    Ok(y)
}

/// Sets the elements beyond each sequence's length to +0.
fn clear_beyond_lengths(values: &mut Array3<f32>, input: &Input<'_>) {
    for (b, &len) in input.lengths.into_iter().flatten().enumerate() {
        values.index_axis_mut(Axis(usize::from(input.time_major)), b).slice_mut(s![len.., ..]).fill(0.0);
    }
}

/// Computes the loss and its gradient. Fails if the loss is not finite or the gradient does not have the shapes of the
/// outputs.
fn checked_loss<G: Into<LossGradient>, E>(
    step: u64,
    mut loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    outputs: ModelOutputs<'_>,
    shard: &Shard,
) -> Result<(f64, LossGradient), StepError<E>> {
    let (loss, gradient) =
        loss(outputs, shard).map_err(|error| StepError::Loss { error, shard: shard.index, shards: shard.shards })?;
    let gradient = gradient.into();
    gradient.check(&outputs)?;
    if !loss.is_finite() {
        return Err(Error::NotFinite { step, quantity: "the loss".into(), value: loss }.into());
    }
    Ok((loss, gradient))
}
