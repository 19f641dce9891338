//! Training of a whole model step by step.

use std::{collections::BTreeMap, fmt, path::Path};

use ndarray::{Array3, Axis};

use super::{
    CheckpointExtras, TrainerConfig, checked_loss,
    checkpoint::{
        EXTRA_PREFIX, OPTIMIZER_PREFIX, TRAINER_PREFIX, UnreadMetadata, take_extra_tensors, take_optimizer, write_run,
    },
    run::{AccumulatedSums, Run, nothing_accumulated},
    shards::{
        GradientArrays, ShardSums, StepError, batch_setting, check_shards, digest_indices, dropout_seed,
        parameters_setting, run_settings, select_state,
    },
};
use crate::{
    backend::Backend,
    error::{Error, Result},
    model::{Dropout, HostState, block_on},
    network::{Model, ModelInput, ModelOutput, ModelWeights},
    train::{
        LossGradient, ModelOutputs, Optimizer, Shard,
        collective::{Collective, SingleRank, call_setting, own_shards, succeed_together},
        tree::part,
    },
    weights::state_dict::StateDict,
};

/// Trains a whole [`Model`], as [`Trainer`](super::Trainer) trains an LSTM: all its parameters, the LSTMs' own initial
/// states included. The run can be [saved](Self::save) after any step and [resumed](Self::resume); the results of the
/// later steps are then bit-identical.
///
/// ```no_run
/// use lstm_core::{Backend, Model, ModelWeights, Result, ndarray::Array2};
/// use lstm_core::train::{ModelTrainer, OptimizerConfig, Schedule, TrainerConfig, cross_entropy};
///
/// fn train<B: Backend>(backend: &B, model: ModelWeights, tokens: &Array2<i64>, classes: &[usize]) -> Result<()> {
///     let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-3));
///     let mut trainer = ModelTrainer::new(Model::new(backend, model)?, config)?;
///     for _ in 0..1000 {
///         let report = trainer.step(tokens, |out, _| cross_entropy(out.last()?, classes))?;
///         println!("step {}: loss {}", report.step, report.loss);
///     }
///     trainer.model().weights().save("model.safetensors")
/// }
/// ```
#[derive(Clone)]
pub struct ModelTrainer<B: Backend> {
    model: Model<B>,
    run: Run<ModelWeights>,
}

impl<B: Backend> fmt::Debug for ModelTrainer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelTrainer({:?}, {:?}, {} steps done)", self.model, self.run.config, self.steps())
    }
}

impl GradientArrays for ModelWeights {
    fn slices(&mut self) -> Result<Vec<&mut [f32]>> {
        self.parameters_mut()
    }
}

/// Report of one training step of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelStepReport {
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Loss before the update of the parameters.
    pub loss: f64,
    /// [`gradient_norm`](crate::train::gradient_norm) of all gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Final states of each LSTM. For truncated backpropagation through time, pass them as the states of the next step.
    pub states: Vec<HostState>,
}

impl<B: Backend> ModelTrainer<B> {
    /// Starts a run with the given model.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate), if the weights are quantized, or if the name of a layer starts
    /// with `optimizer.` or `extra.`, which a checkpoint needs.
    pub fn new(model: Model<B>, config: TrainerConfig) -> Result<Self> {
        model.weights().check_trainable()?;
        for name in model.weights().layers().iter().filter_map(|layer| layer.name()) {
            let tensor = format!("{name}.");
            if tensor.starts_with(OPTIMIZER_PREFIX) || tensor.starts_with(EXTRA_PREFIX) {
                let reason = format!("the name of the layer `{name}` is reserved in checkpoints; rename the layer");
                return Err(Error::config("layers", reason));
            }
        }
        let names = parameter_names(model.weights());
        Ok(ModelTrainer { run: Run::new(config, &names)?, model })
    }

    /// The model with its current parameters.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// Consumes the trainer and returns the model.
    pub fn into_model(self) -> Model<B> {
        self.model
    }

    /// Changes the configuration during a run, as [`Trainer::set_config`](super::Trainer::set_config) does.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate) or its optimizer has another
    /// state. The trainer is unchanged after an error.
    pub fn set_config(&mut self, config: TrainerConfig) -> Result<()> {
        let names = parameter_names(self.model.weights());
        self.run.set_config(config, &names, "pass the result of ModelTrainer::into_model to ModelTrainer::new")
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

    /// Computes the model's outputs without dropout.
    ///
    /// # Errors
    /// The errors of [`Model::forward`].
    pub fn predict<'a>(&self, input: impl Into<ModelInput<'a>>) -> Result<ModelOutput> {
        self.model.forward(input.into().dropout(Dropout::Off))
    }

    /// Runs one training step: forward pass with dropout, loss, backward pass, gradient clipping, optimizer step.
    ///
    /// `loss` is called once for each [shard](TrainerConfig::shards()) of the batch, in order; by default, for the whole
    /// batch. It gets the model's outputs without a softmax at the end: [`ModelOutputs::y`], or [`ModelOutputs::last`] if
    /// the model [returns the last step](ModelWeights::returns_last_step). It returns the loss and its gradient with
    /// respect to these outputs. The loss of the batch is the sum over the shards, so a mean is
    /// [weighed](crate::train::part_of_mean). The error type of `loss` may be the caller's own. Outputs beyond a
    /// sequence's length are +0, and their gradients are ignored.
    ///
    /// The dropout seed of a shard is derived from the [seed of the configuration](TrainerConfig::seed), the number of
    /// the step and that of the shard, as `docs/specification.md` defines under "Training steps". It replaces the dropout
    /// seed of the input.
    ///
    /// # Errors
    /// The parameters, the optimizer and the number of steps are unchanged after an error.
    /// - [`Error::NotFinite`], which gives the step and the first of these that is infinite or NaN: the loss, of a shard
    ///   if there are several, the gradient of a parameter, its new value, its optimizer state.
    /// - [`Error::Shape`] if the input is empty, or the gradient does not have the shape of the outputs.
    /// - [`Error::Config`] if there are more shards than sequences.
    /// - The errors of [`Model::forward`] and of `loss`. With several shards, those of the library are an
    ///   [`Error::Shard`], which names the shard.
    pub fn step<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ModelStepReport, E> {
        block_on(self.step_async(input, loss))
    }

    /// Asynchronous [`step`](Self::step), which does not block the thread. The trainer is unchanged if the future is
    /// dropped before it completes.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ModelStepReport, E> {
        let rate = self.learning_rate();
        self.step_on_ranks(&SingleRank, |_| String::new(), rate, input.into(), loss).await
    }

    /// Runs one training step with the learning rate `rate` in place of that of the schedule, as
    /// [`Trainer::step_at`](super::Trainer::step_at) does.
    ///
    /// # Errors
    /// As for [`step`](Self::step); [`Error::Config`] if the rate is negative or not finite.
    pub fn step_at<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        rate: f32,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ModelStepReport, E> {
        block_on(self.step_on_ranks(&SingleRank, |_| String::new(), rate, input.into(), loss))
    }

    /// Runs the forward and backward passes of a part of a batch, and adds its gradients to those of earlier calls, as
    /// [`Trainer::accumulate`](super::Trainer::accumulate) does. Returns the loss of the part and the final states of
    /// each LSTM.
    ///
    /// # Errors
    /// As for [`step`](Self::step). The accumulated gradients are unchanged after an error.
    pub fn accumulate<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<(f64, Vec<HostState>), E> {
        block_on(self.accumulate_async(input, loss))
    }

    /// Asynchronous [`accumulate`](Self::accumulate), which does not block the thread.
    ///
    /// # Errors
    /// As for [`accumulate`](Self::accumulate).
    pub async fn accumulate_async<'a, G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<(f64, Vec<HostState>), E> {
        let (input, step) = (input.into(), self.run.next_step());
        let sums = self.run_shards(&SingleRank, step, self.run.num_accumulated_passes(), &input, loss).await;
        let (loss, gradients, states) = ShardSums::of_one_rank(step, input.batch_and_steps().0, sums)?;
        let copy = states.iter().map(HostState::try_clone).collect::<Result<_>>()?;
        self.run.accumulate(loss, gradients, copy)?;
        Ok((loss, states))
    }

    /// Clips the sum of the [accumulated](Self::accumulate) gradients and runs the optimizer. The report has the sum of
    /// the losses, and the final states of the last part.
    ///
    /// # Errors
    /// [`Error::Config`] without accumulated gradients; [`Error::NotFinite`] as for [`step`](Self::step). The parameters
    /// and the optimizer are unchanged after an error, and the accumulated gradients are discarded.
    pub fn apply(&mut self) -> Result<ModelStepReport> {
        self.apply_at(self.learning_rate())
    }

    /// [`apply`](Self::apply) with the learning rate `rate` in place of that of the schedule.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply); [`Error::Config`] if the rate is negative or not finite.
    pub fn apply_at(&mut self, rate: f32) -> Result<ModelStepReport> {
        let AccumulatedSums { loss, gradients, states } =
            self.run.take_accumulated()?.ok_or_else(nothing_accumulated)?;
        let (step, updated) = (self.run.next_step(), self.update(rate, gradients)?);
        let gradient_norm = self.commit(updated, false);
        Ok(ModelStepReport { step, loss, gradient_norm, learning_rate: rate, states })
    }

    /// Discards the [accumulated](Self::accumulate) gradients.
    pub fn discard_accumulated(&mut self) {
        self.run.discard_accumulated();
    }

    /// Runs one training step together with other ranks, as [`Trainer::step_on`](super::Trainer::step_on) does.
    ///
    /// # Errors
    /// As for [`step`](Self::step) and [`Trainer::step_on`](super::Trainer::step_on).
    pub fn step_on<'a, G: Into<LossGradient>, E: From<Error> + fmt::Display>(
        &mut self,
        collective: &impl Collective,
        input: impl Into<ModelInput<'a>>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ModelStepReport, E> {
        let rate = self.learning_rate();
        block_on(self.step_on_ranks(collective, E::to_string, rate, input.into(), loss))
    }

    /// A training step on several ranks. `describe_error` returns the text of an error of the caller.
    async fn step_on_ranks<G: Into<LossGradient>, E: From<Error>>(
        &mut self,
        collective: &impl Collective,
        describe_error: fn(&E) -> String,
        learning_rate: f32,
        input: ModelInput<'_>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ModelStepReport, E> {
        let (step, batch) = (self.run.next_step(), input.batch_and_steps().0);
        let sums = match self.run.check_step(learning_rate) {
            Ok(()) => self.run_shards(collective, step, 0, &input, loss).await,
            Err(error) => Err(error.into()),
        };
        let settings = || self.settings(&input);
        let combined =
            ShardSums::combine(collective, step, self.run.config.shards, batch, settings, describe_error, sums);
        let (loss, gradients, states) = combined.map_err(StepError::into_caller_error)?;
        let updated = self.update(learning_rate, gradients);
        let updated = succeed_together(collective, &[call_setting("update of the parameters")], updated)?;
        let gradient_norm = self.commit(updated, collective.size() > 1);
        Ok(ModelStepReport { step, loss, gradient_norm, learning_rate, states })
    }

    /// Puts the updated model and optimizer in place, and returns the norm of the gradients. Without the other ranks, the
    /// step may make the parameters differ from theirs.
    fn commit(&mut self, updated: (Model<B>, Optimizer, f64), on_ranks: bool) -> f64 {
        let gradient_norm;
        (self.model, self.run.optimizer, gradient_norm) = updated;
        self.run.is_compared = on_ranks;
        gradient_norm
    }

    /// Everything on which a step depends, as pairs of name and value.
    fn settings(&self, input: &ModelInput<'_>) -> Vec<(&'static str, String)> {
        let weights = self.model.weights();
        let mut settings = run_settings(self.model.backend(), &self.run.config, &self.run.optimizer);
        let layers: Vec<_> = weights.layers().iter().map(ToString::to_string).collect();
        settings.push(("model", layers.join(", ")));
        if !self.run.is_compared {
            settings.push(parameters_setting(weights.parameter_values(), &self.run.optimizer));
        }
        let (lengths, has_states) = (input.given_lengths(), input.given_states().is_some());
        let values =
            digest_indices(input.num_values(), self.steps(), self.run.is_compared).flat_map(|k| input.value_bits(k));
        settings.push(batch_setting(input.batch_and_steps(), lengths, has_states, values));
        settings
    }

    /// Clips the gradients and runs the optimizer. Returns the new model and optimizer, and the norm of the gradients.
    fn update(&self, learning_rate: f32, mut gradients: ModelWeights) -> Result<(Model<B>, Optimizer, f64)> {
        let mut weights = self.model.weights().try_clone()?;
        let names = parameter_names(&weights);
        let (values, gradients) = (weights.parameters_mut()?, gradients.parameters_mut()?);
        let (optimizer, gradient_norm) =
            self.run.optimizer.clipped_step(self.run.config.clip, learning_rate, &names, values, gradients)?;
        let mut model = self.model.clone();
        model.set_weights(weights)?;
        Ok((model, optimizer, gradient_norm))
    }

    /// Runs the forward and backward passes of the shards of this rank, after `earlier_inputs` inputs of the same step.
    async fn run_shards<G: Into<LossGradient>, E>(
        &self,
        collective: &impl Collective,
        step: u64,
        earlier_inputs: usize,
        input: &ModelInput<'_>,
        mut loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
    ) -> Result<ShardSums<ModelWeights>, StepError<E>> {
        let (batch, _) = input.batch_and_steps();
        let returns_last_step = self.model.weights().returns_last_step();
        let count = |input: &ModelInput<'_>| {
            let (batch, time_steps) = (input.batch_and_steps().0, input.time_steps().unwrap_or_default());
            if returns_last_step { batch } else { time_steps }
        };
        if input.time_steps() == Some(0) {
            return Err(Error::shape("ModelTrainer::step: input", "at least one time step of one sequence", 0).into());
        }
        let shards = self.run.config.shards;
        check_shards(shards, batch)?;
        let own_shards = own_shards(collective, shards)?;
        // Shards are taken out of arrays of the right shapes.
        input.check("forward_train", self.model.weights())?;
        let mut sums = ShardSums::new(shards);
        for index in own_shards {
            let rows = part(batch, shards, index);
            let select = |states: &[HostState]| states.iter().map(|state| select_state(state, &rows)).collect();
            let states: Option<Vec<_>> = match shards {
                1 => None,
                _ => input.given_states().map(select).transpose()?,
            };
            let shard_input = input.rows(&rows, states.as_deref());
            let shard = Shard { index, shards, count: count(input), own_count: count(&shard_input), rows };
            let shard_input = shard_input.dropout(Dropout::Seed(dropout_seed(
                self.run.config.seed,
                step,
                earlier_inputs * shards + index,
            )));
            let pass = self.gradients(step, shard_input, &mut loss, &shard).await;
            let (loss, states, gradients) = pass.map_err(|error| error.with_shard(&shard))?;
            sums.push(&shard, loss, gradients, states)?;
        }
        Ok(sums)
    }

    /// Runs the forward pass, the loss and the backward pass of one shard. Returns the loss, the final states and the
    /// gradients.
    async fn gradients<G: Into<LossGradient>, E>(
        &self,
        step: u64,
        input: ModelInput<'_>,
        loss: impl FnMut(ModelOutputs<'_>, &Shard) -> Result<(f64, G), E>,
        shard: &Shard,
    ) -> Result<(f64, Vec<HostState>, ModelWeights), StepError<E>> {
        let pass = self.model.forward_train_async(input, self.run.config.checkpointing).await?;
        let outputs = match self.model.weights().returns_last_step() {
            true => ModelOutputs { y: None, last: Some(pass.y.index_axis(Axis(1), 0)) },
            false => ModelOutputs { y: Some(pass.y.view()), last: None },
        };
        let (loss, gradient) = checked_loss(step, loss, outputs, shard)?;
        let last = gradient.last.map(|last| last.insert_axis(Axis(1)));
        let missing = || Error::shape("ModelTrainer::step: gradient of the loss", "an array", "none");
        let dy: Array3<f32> = gradient.y.or(last).ok_or_else(missing)?;
        Ok((loss, pass.states, pass.tape.backward_async(&dy).await?.weights))
    }

    /// Saves the run to a checkpoint file without additional data. See [`save_with`](Self::save_with).
    ///
    /// # Errors
    /// As for [`save_with`](Self::save_with).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &CheckpointExtras::default())
    }

    /// Saves the run and additional data of the caller to a checkpoint: one safetensors file, which is replaced
    /// atomically. It has the tensors and metadata of [`ModelWeights::save`], and those of
    /// [`Trainer::save_with`](super::Trainer::save_with) that do not describe the model. The keys of the text of
    /// `extras` have the prefix `extra.`, like its tensors.
    ///
    /// # Errors
    /// [`Error::Config`] if a key of the model's metadata starts with `trainer.` or `extra.`, or gradients are
    /// [accumulated](Self::accumulate), which a checkpoint does not hold; [`Error::Io`] if the file
    /// cannot be written. An existing file is unchanged after an error.
    pub fn save_with(&self, path: impl AsRef<Path>, extras: &CheckpointExtras) -> Result<()> {
        self.run.check_nothing_accumulated("save")?;
        let is_reserved = |key: &&String| key.starts_with(TRAINER_PREFIX) || key.starts_with(EXTRA_PREFIX);
        if let Some(key) = self.model.weights().metadata().keys().find(is_reserved) {
            let reason =
                format!("expected keys that do not start with `{TRAINER_PREFIX}` or `{EXTRA_PREFIX}`, got `{key}`");
            return Err(Error::config("metadata", reason));
        }
        let mut writer = self.model.weights().writer()?;
        for (key, text) in &extras.text {
            writer = writer.metadata(format!("{EXTRA_PREFIX}{key}"), text);
        }
        for (name, tensor) in &extras.tensors {
            writer = writer.tensor(format!("{EXTRA_PREFIX}{name}"), tensor)?;
        }
        let shapes = self.model.weights().parameter_shapes().into_iter().collect();
        write_run(writer, &self.run.config, &self.run.optimizer, &shapes)?.save(path)
    }

    /// Resumes a [saved](Self::save) run on `backend`. Returns the trainer and the additional data of the caller. The
    /// parameters, the optimizer state and the losses of later steps are bit-identical to those of an uninterrupted
    /// run.
    ///
    /// # Errors
    /// - [`Error::Io`] if the file cannot be read.
    /// - [`Error::Format`], which names the file, if it is not a safetensors file, not a checkpoint, or a checkpoint of
    ///   another version or of [`Trainer`](super::Trainer). It also names the metadata key if a key is missing, unknown
    ///   or has invalid text.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::UnusedTensors`] or [`Error::TensorType`] if the
    ///   tensors do not match the metadata.
    /// - Errors of the device.
    pub fn resume(backend: &B, path: impl AsRef<Path>) -> Result<(Self, CheckpointExtras)> {
        let path = path.as_ref();
        let (file_name, mut dict) = (path.display().to_string(), StateDict::open(path)?);
        let (trainer_metadata, _): (BTreeMap<_, _>, BTreeMap<_, _>) =
            dict.metadata().clone().into_iter().partition(|(key, _)| key.starts_with(TRAINER_PREFIX));
        let mut metadata = UnreadMetadata { file_name: &file_name, entries: trainer_metadata };
        metadata.check_version()?;
        if !dict.metadata().contains_key(ModelWeights::METADATA_KEY) {
            let reason = "the checkpoint of an LSTM with a head; continue the run with Trainer::resume";
            return Err(Error::format(file_name, reason));
        }
        let (config, steps) = metadata.finish()?;
        let mut weights = ModelWeights::take(&mut dict)?;
        let (mut text, mut model_metadata) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in weights.metadata() {
            if let Some(key) = key.strip_prefix(EXTRA_PREFIX) {
                text.insert(key.to_owned(), value.clone());
            } else if !key.starts_with(TRAINER_PREFIX) {
                model_metadata.insert(key.clone(), value.clone());
            }
        }
        weights = weights.with_metadata(model_metadata);
        let mut extras = CheckpointExtras::default().with_text(text);
        extras.tensors = take_extra_tensors(&mut dict)?;
        let shapes = weights.parameter_shapes();
        let optimizer = take_optimizer(dict, &file_name, &config.optimizer, steps, &shapes)?;
        let mut trainer = ModelTrainer::new(Model::new(backend, weights)?, config)?;
        trainer.run.optimizer = optimizer.with_groups(trainer.run.config.groups.clone())?;
        Ok((trainer, extras))
    }
}

/// The names of all parameters.
fn parameter_names(weights: &ModelWeights) -> Vec<String> {
    weights.parameter_shapes().into_iter().map(|(name, _)| name).collect()
}
