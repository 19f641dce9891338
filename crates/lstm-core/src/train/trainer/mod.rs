//! Training of a model step by step.

mod checkpoint;
mod config;
mod parameters;

use ndarray::{Array3, ArrayView3, Axis, s};

pub use checkpoint::CheckpointExtras;
pub use config::{StepReport, TrainerConfig};

use super::{
    clip::gradient_norm,
    linear::Linear,
    optimizer::{Optimizer, Parameter},
    random::dropout_seed,
};
use crate::{
    backend::Backend,
    error::{Error, Result},
    model::{HostState, Input},
    model::{Lstm, block_on},
};
use parameters::{HeadSpec, ModelArrays, parameter_shapes};

/// Trains an [`Lstm`] with an optional [`Linear`] head on its outputs. The run can be [saved](Self::save) after any
/// step and [resumed](Self::resume); the results of the later steps are then bit-identical.
///
/// The caller provides the loss: a function from the outputs to the loss and its gradient, such as
/// [`mean_squared_error`](crate::train::mean_squared_error).
///
/// ```no_run
/// use lstm_core::{Backend, Lstm, LstmConfig, Result, ndarray::Array3};
/// use lstm_core::train::{Clip, Linear, OptimizerConfig, Schedule, TrainerConfig, Trainer, mean_squared_error};
///
/// fn train<B: Backend>(backend: &B, x: &Array3<f32>, target: &Array3<f32>) -> Result<()> {
///     let lstm = Lstm::random(backend, LstmConfig::new(3, 64).layers(2).dropout(0.1), 1)?;
///     let head = Linear::random(backend, 64, 1, 2)?;
///     let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-3));
///     let config = config.clip(Clip::Norm(1.0)).seed(3);
///     let mut trainer = Trainer::new(lstm, Some(head), config)?;
///     for _ in 0..1000 {
///         let report = trainer.step(x, |y| mean_squared_error(y, target.view()))?;
///         println!("{}: {}", report.step, report.loss);
///     }
///     trainer.save("run.safetensors")
/// }
/// ```
#[derive(Clone)]
pub struct Trainer<B: Backend> {
    lstm: Lstm<B>,
    head: Option<Linear<B>>,
    optimizer: Optimizer,
    config: TrainerConfig,
}

impl<B: Backend> std::fmt::Debug for Trainer<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trainer { lstm, head, config, .. } = self;
        write!(f, "Trainer({lstm:?}, {head:?}, {config:?}, {} steps done)", self.steps())
    }
}

impl<B: Backend> Trainer<B> {
    /// Starts a run with the given model. The head may be on another device than the LSTM.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate); [`Error::Shape`] if the input
    /// size of the head is not the output size of the LSTM.
    pub fn new(lstm: Lstm<B>, head: Option<Linear<B>>, config: TrainerConfig) -> Result<Self> {
        config.validate()?;
        let size = lstm.config().output_size();
        if let Some(head) = head.as_ref().filter(|head| head.input_size() != size) {
            let expected = format!("{size}, the output size of the LSTM");
            return Err(Error::shape("Trainer::new: input size of the head", expected, head.input_size()));
        }
        Ok(Trainer { lstm, head, optimizer: Optimizer::new(config.optimizer.clone())?, config })
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
    /// state stays, so the new optimizer must have the same state arrays.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](TrainerConfig::validate) or its optimizer has other state
    /// arrays. The trainer is unchanged after an error.
    pub fn set_config(&mut self, config: TrainerConfig) -> Result<()> {
        config.validate()?;
        let (old_names, new_names) = (self.config.optimizer.state_names(), config.optimizer.state_names());
        if old_names != new_names {
            let reason = format!(
                "expected an optimizer with the state arrays {old_names:?}, got {new_names:?}: {}",
                config.optimizer
            );
            return Err(Error::config("optimizer", reason));
        }
        let state = self.optimizer.state().map(|(name, values)| (name, values.to_vec()));
        self.optimizer = Optimizer::restore(config.optimizer.clone(), self.steps(), state)?;
        self.config = config;
        Ok(())
    }

    /// The configuration of the trainer.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Number of training steps so far, including those before the run was resumed.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Learning rate of the next step.
    pub fn learning_rate(&self) -> f32 {
        self.config.schedule.rate_at(self.steps())
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
        let input = Input { dropout_seed: None, ..input.into() };
        let (y, state) = self.lstm.forward_async(input).await?;
        let y = match &self.head {
            Some(head) => head_outputs(head, &y, &input).await?,
            None => y,
        };
        Ok((y, state))
    }

    /// Runs one training step: forward pass with dropout, loss, backward pass, gradient clipping, optimizer step.
    /// `loss` maps the outputs, which have the shape that [`predict`](Self::predict) returns, to the loss and its
    /// gradient with respect to the outputs.
    ///
    /// Outputs beyond a sequence's length are +0, and their gradients are ignored. A loss that is a mean should exclude
    /// them; see [`masked_mean_squared_error`](crate::train::masked_mean_squared_error) and
    /// [`IGNORE_INDEX`](crate::train::IGNORE_INDEX).
    ///
    /// The dropout seed is derived from the [seed of the configuration](TrainerConfig::seed) and the number of the
    /// step, as `docs/specification.md` defines under "Training steps". It replaces the dropout seed of the input.
    ///
    /// # Errors
    /// The weights, the optimizer and the number of steps are unchanged after an error.
    /// - [`Error::NotFinite`], which gives the step and the first of these that is infinite or NaN: the loss, the
    ///   gradient of a parameter, its new value, its optimizer state.
    /// - [`Error::Shape`] if the input is empty, or the gradient does not have the shape of the outputs.
    /// - The errors of [`Lstm::forward`] and of `loss`.
    pub fn step<'a>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<StepReport> {
        block_on(self.step_async(input, loss))
    }

    /// Asynchronous [`step`](Self::step), which does not block the thread. The trainer is unchanged if the future is
    /// dropped before it completes.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async<'a>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<StepReport> {
        let (step, learning_rate) = (self.steps().saturating_add(1), self.learning_rate());
        let input = input.into().with_dropout(dropout_seed(self.config.seed, step));
        if input.x.is_empty() || input.lengths.is_some_and(|lengths| lengths.iter().all(|&len| len == 0)) {
            let got = format!("{:?}, lengths {:?}", input.x.shape(), input.lengths);
            return Err(Error::shape("Trainer::step: x", "at least one time step of one sequence", got));
        }
        let (loss, state, mut gradients) = self.gradients(step, &input, loss).await?;

        let head_spec = self.head.as_ref().map(HeadSpec::of);
        let shapes = parameter_shapes(self.lstm.config(), head_spec);
        let names: Vec<_> = shapes.into_iter().map(|(name, _)| name).collect();
        let mut gradients = gradients.slices();
        for (name, gradient) in names.iter().zip(&gradients) {
            check_finite(step, || format!("the gradient of `{name}`"), gradient)?;
        }
        let gradient_norm = match self.config.clip {
            Some(clip) => clip.apply(&mut gradients)?,
            None => gradient_norm(gradients.iter().map(|gradient| &**gradient)),
        };

        let head_values = self.head.as_ref().map(|head| (head.weight().clone(), head.bias().cloned()));
        let mut values = ModelArrays { lstm: self.lstm.weights().clone(), head: head_values };
        let mut optimizer = self.optimizer.clone();
        let mut parameters: Vec<_> = names
            .iter()
            .zip(values.slices())
            .zip(&gradients)
            .map(|((name, value), gradient)| Parameter { name, value, gradient })
            .collect();
        optimizer.step(learning_rate, &mut parameters)?;
        for Parameter { name, value, .. } in &parameters {
            check_finite(step, || format!("the new value of `{name}`"), value)?;
        }
        for (name, array) in optimizer.state() {
            check_finite(step, || format!("the optimizer's `{name}`"), array)?;
        }

        let mut lstm = self.lstm.clone();
        lstm.set_weights(values.lstm)?;
        let head = match (&self.head, values.head) {
            (Some(head), Some((weight, bias))) => Some(Linear::new(head.backend(), weight, bias)?),
            _ => None,
        };
        (self.lstm, self.head, self.optimizer) = (lstm, head, optimizer);
        Ok(StepReport { step, loss, gradient_norm, learning_rate, state })
    }

    /// Runs the forward pass, the loss and the backward pass. Returns the loss, the final states and the gradients.
    async fn gradients(
        &self,
        step: u64,
        input: &Input<'_>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<(f64, HostState, ModelArrays)> {
        let output = self.lstm.forward_train_async(*input, self.config.checkpointing).await?;
        let Some(head) = &self.head else {
            let (loss, dy) = checked_loss(step, loss, &output.y)?;
            let lstm = output.tape.backward_async(&dy).await?.weights;
            return Ok((loss, output.state, ModelArrays { lstm, head: None }));
        };
        let y = head_outputs(head, &output.y, input).await?;
        let (loss, mut dy) = checked_loss(step, loss, &y)?;
        clear_beyond_lengths(&mut dy, input);
        let head_gradients = head.backward_async(output.y.view(), dy.view()).await?;
        let lstm = output.tape.backward_async(&head_gradients.x).await?.weights;
        Ok((loss, output.state, ModelArrays { lstm, head: Some((head_gradients.weight, head_gradients.bias)) }))
    }
}

/// Outputs of the head for the outputs `x` of the LSTM, +0 beyond each sequence's length.
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

/// Computes the loss and its gradient. Fails if the loss is not finite or the gradient does not have the shape of `y`.
fn checked_loss(
    step: u64,
    loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    y: &Array3<f32>,
) -> Result<(f64, Array3<f32>)> {
    let (loss, dy) = loss(y.view())?;
    if dy.dim() != y.dim() {
        let (expected, got) = (format!("{:?}, the shape of the outputs", y.shape()), format!("{:?}", dy.shape()));
        return Err(Error::shape("Trainer::step: gradient of the loss", expected, got));
    }
    if !loss.is_finite() {
        return Err(Error::NotFinite { step, quantity: "the loss".into(), value: loss });
    }
    Ok((loss, dy))
}

/// Fails with [`Error::NotFinite`] if an element is infinite or NaN. `describe_values` returns the description of the
/// values in the error message.
fn check_finite(step: u64, describe_values: impl Fn() -> String, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(Error::NotFinite { step, quantity: describe_values(), value: value.into() }),
        None => Ok(()),
    }
}
