//! Training a model step by step.

mod checkpoint;
mod config;
mod parameters;

use ndarray::{Array3, ArrayView3, Axis, s};

pub use checkpoint::Extras;
pub use config::{Step, TrainerConfig};

use super::{
    clip::norm,
    linear::Linear,
    optimizer::{Optimizer, Parameter},
    random::dropout_seed,
};
use crate::{
    backend::Backend,
    error::{Error, Result},
    model::{HostState, Input},
    model::{Lstm, wait},
};
use parameters::{HeadKind, Values, layout};

/// An LSTM, maybe a [`Linear`] head on its outputs, and all that training them needs. It can be
/// [saved](Self::save) after any step and [resumed](Self::resume), and then goes on with the same bits.
///
/// The loss is the caller's: a function from the outputs to a number and its gradient, such as
/// [`mean_squared`](crate::train::mean_squared).
///
/// ```no_run
/// use lstm_core::{Backend, Lstm, LstmConfig, Result, ndarray::Array3};
/// use lstm_core::train::{Clip, Linear, OptimizerConfig, Schedule, TrainerConfig, Trainer, mean_squared};
///
/// fn train<B: Backend>(backend: &B, x: &Array3<f32>, target: &Array3<f32>) -> Result<()> {
///     let lstm = Lstm::random(backend, LstmConfig::new(3, 64).layers(2).dropout(0.1), 1)?;
///     let head = Linear::random(backend, 64, 1, 2)?;
///     let settings = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-3)).clip(Clip::Norm(1.0)).seed(3);
///     let mut trainer = Trainer::new(lstm, Some(head), settings)?;
///     for _ in 0..1000 {
///         let step = trainer.step(x, |y| mean_squared(y, target.view()))?;
///         println!("{}: {}", step.step, step.loss);
///     }
///     trainer.save("run.safetensors")
/// }
/// ```
#[derive(Clone)]
pub struct Trainer<B: Backend> {
    lstm: Lstm<B>,
    head: Option<Linear<B>>,
    optimizer: Optimizer,
    settings: TrainerConfig,
}

impl<B: Backend> std::fmt::Debug for Trainer<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trainer { lstm, head, settings, .. } = self;
        write!(f, "Trainer({lstm:?}, {head:?}, {settings:?}, {} steps done)", self.steps())
    }
}

impl<B: Backend> Trainer<B> {
    /// Starts a run. The head may be on another device than the LSTM.
    ///
    /// # Errors
    /// Settings that are not [valid](TrainerConfig::validate); [`Error::Shape`] if the head does not take as many features as
    /// the LSTM gives.
    pub fn new(lstm: Lstm<B>, head: Option<Linear<B>>, settings: TrainerConfig) -> Result<Self> {
        settings.validate()?;
        let size = lstm.config().output_size();
        if let Some(head) = head.as_ref().filter(|head| head.input_size() != size) {
            let want = format!("{size}, as the LSTM gives");
            return Err(Error::shape("Trainer::new: features that the head takes", want, head.input_size()));
        }
        Ok(Trainer { lstm, head, optimizer: Optimizer::new(settings.method.clone())?, settings })
    }

    /// The LSTM as it is now.
    pub fn lstm(&self) -> &Lstm<B> {
        &self.lstm
    }

    /// The head as it is now.
    pub fn head(&self) -> Option<&Linear<B>> {
        self.head.as_ref()
    }

    /// The LSTM and the head, for use without a trainer.
    pub fn into_parts(self) -> (Lstm<B>, Option<Linear<B>>) {
        (self.lstm, self.head)
    }

    /// Goes on with other settings: another schedule after a resume, say. What the optimizer keeps stays, so the method
    /// must keep the same.
    ///
    /// # Errors
    /// Settings that are not [valid](TrainerConfig::validate); [`Error::Config`] for a method that keeps something else. The
    /// trainer is then unchanged.
    pub fn set_settings(&mut self, settings: TrainerConfig) -> Result<()> {
        settings.validate()?;
        let (old, new) = (self.settings.method.slots(), settings.method.slots());
        if old != new {
            let why = format!("expected a method that keeps {old:?}, got {} with {new:?}", settings.method);
            return Err(Error::config("method", why));
        }
        let state = self.optimizer.state().map(|(name, values)| (name, values.to_vec()));
        self.optimizer = Optimizer::restore(settings.method.clone(), self.steps(), state)?;
        self.settings = settings;
        Ok(())
    }

    /// How it trains.
    pub fn settings(&self) -> &TrainerConfig {
        &self.settings
    }

    /// Steps done, those before a save included.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The learning rate of the next step.
    pub fn rate(&self) -> f32 {
        self.settings.schedule.rate(self.steps())
    }

    /// What the model gives now, without dropout: the head's outputs (without a head, the LSTM's) in the input's layout,
    /// and the LSTM's final states. Beyond a sequence's length outputs are +0.
    ///
    /// # Errors
    /// As for [`Lstm::forward`].
    pub fn predict<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        wait(self.predict_async(input))
    }

    /// [`predict`](Self::predict) without blocking the thread.
    ///
    /// # Errors
    /// As for `predict`.
    pub async fn predict_async<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        let input = Input { dropout_seed: None, ..input.into() };
        let (y, state) = self.lstm.forward_async(input).await?;
        let y = match &self.head {
            Some(head) => head_outputs(head, &y, &input).await?,
            None => y,
        };
        Ok((y, state))
    }

    /// One step: forward with dropout, the loss, backward, clipping, the optimizer. `loss` sees the outputs as
    /// [`predict`](Self::predict) gives them, but with dropout, and returns the loss and its gradient by them.
    ///
    /// Beyond a sequence's length outputs are +0, and gradients are not looked at; a loss that is a mean should not count them
    /// either, see [`mean_squared_within`](crate::train::mean_squared_within) and [`IGNORE`](crate::train::IGNORE). The seed of dropout follows from the
    /// settings' and the step, and replaces one that the input has; `docs/arithmetic.md` gives it under Training steps.
    /// In the optimizer parameters are called as in a [saved](Self::save) file: `lstm.weight_ih_l0`, `head.bias`.
    ///
    /// # Errors
    /// Weights, optimizer and the number of steps are unchanged after any of these:
    /// - [`Error::NotFinite`] names the step and the first of these that is NaN or infinite: the loss, a parameter's
    ///   gradient, its new value, what the optimizer keeps of it.
    /// - [`Error::Shape`] if there is nothing to learn from, or the gradient does not have the outputs' shape; as for
    ///   [`Lstm::forward`].
    /// - What `loss` returns.
    pub fn step<'a>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<Step> {
        wait(self.step_async(input, loss))
    }

    /// [`step`](Self::step) without blocking the thread. A future that is dropped before its end changes nothing.
    ///
    /// # Errors
    /// As for `step`.
    pub async fn step_async<'a>(
        &mut self,
        input: impl Into<Input<'a>>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<Step> {
        let (step, rate) = (self.steps().saturating_add(1), self.rate());
        let input = input.into().training(dropout_seed(self.settings.seed, step));
        if input.x.is_empty() || input.lengths.is_some_and(|lengths| lengths.iter().all(|&len| len == 0)) {
            let got = format!("{:?}, lengths {:?}", input.x.shape(), input.lengths);
            return Err(Error::shape("Trainer::step: x", "at least one step of one sequence", got));
        }
        let (loss, state, mut gradients) = self.gradients(step, &input, loss).await?;

        let kind = self.head.as_ref().map(HeadKind::of);
        let names: Vec<_> = layout(self.lstm.config(), kind).into_iter().map(|(name, _)| name).collect();
        let mut gradients = gradients.slices();
        for (name, gradient) in names.iter().zip(&gradients) {
            check_finite(step, || format!("the gradient of `{name}`"), gradient)?;
        }
        let norm = match self.settings.clip {
            Some(clip) => clip.apply(&mut gradients)?,
            None => norm(gradients.iter().map(|gradient| &**gradient)),
        };

        let head = self.head.as_ref().map(|head| (head.weight().clone(), head.bias().cloned()));
        let mut values = Values { lstm: self.lstm.weights().clone(), head };
        let mut optimizer = self.optimizer.clone();
        let triples = names.iter().zip(values.slices()).zip(&gradients);
        let mut parameters: Vec<_> =
            triples.map(|((name, value), gradient)| Parameter { name, value, gradient }).collect();
        optimizer.step(rate, &mut parameters)?;
        for Parameter { name, value, .. } in &parameters {
            check_finite(step, || format!("the new value of `{name}`"), value)?;
        }
        for (name, kept) in optimizer.state() {
            check_finite(step, || format!("the optimizer's `{name}`"), kept)?;
        }

        let mut lstm = self.lstm.clone();
        lstm.set_weights(values.lstm)?;
        let head = match (&self.head, values.head) {
            (Some(head), Some((weight, bias))) => Some(Linear::new(head.backend(), weight, bias)?),
            _ => None,
        };
        (self.lstm, self.head, self.optimizer) = (lstm, head, optimizer);
        Ok(Step { step, loss, norm, rate, state })
    }

    /// Forward, loss and backward.
    async fn gradients(
        &self,
        step: u64,
        input: &Input<'_>,
        loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    ) -> Result<(f64, HostState, Values)> {
        let pass = self.lstm.forward_train_async(*input, self.settings.keep).await?;
        let Some(head) = &self.head else {
            let (loss, dy) = checked(step, loss, &pass.y)?;
            let lstm = pass.tape.backward_async(&dy).await?.weights;
            return Ok((loss, pass.state, Values { lstm, head: None }));
        };
        let y = head_outputs(head, &pass.y, input).await?;
        let (loss, mut dy) = checked(step, loss, &y)?;
        clear_beyond(&mut dy, input);
        let head = head.backward_async(pass.y.view(), dy.view()).await?;
        let lstm = pass.tape.backward_async(&head.x).await?.weights;
        Ok((loss, pass.state, Values { lstm, head: Some((head.weight, head.bias)) }))
    }
}

async fn head_outputs<B: Backend>(head: &Linear<B>, x: &Array3<f32>, input: &Input<'_>) -> Result<Array3<f32>> {
    let mut y = head.forward_async(x.view()).await?;
    clear_beyond(&mut y, input);
    Ok(y)
}

/// +0 beyond each sequence's length, as the LSTM's own outputs are.
fn clear_beyond(values: &mut Array3<f32>, input: &Input<'_>) {
    for (b, &len) in input.lengths.into_iter().flatten().enumerate() {
        values.index_axis_mut(Axis(usize::from(input.time_major)), b).slice_mut(s![len.., ..]).fill(0.0);
    }
}

/// A finite loss and a gradient of the outputs' shape.
fn checked(
    step: u64,
    loss: impl FnOnce(ArrayView3<'_, f32>) -> Result<(f64, Array3<f32>)>,
    y: &Array3<f32>,
) -> Result<(f64, Array3<f32>)> {
    let (loss, dy) = loss(y.view())?;
    if dy.dim() != y.dim() {
        let (want, got) = (format!("{:?}, as the outputs", y.shape()), format!("{:?}", dy.shape()));
        return Err(Error::shape("Trainer::step: the loss's gradient", want, got));
    }
    if !loss.is_finite() {
        return Err(Error::NotFinite { step, what: "the loss".into(), value: loss });
    }
    Ok((loss, dy))
}

fn check_finite(step: u64, what: impl Fn() -> String, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(Error::NotFinite { step, what: what(), value: value.into() }),
        None => Ok(()),
    }
}
