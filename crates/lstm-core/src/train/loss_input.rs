//! What a loss function receives and returns: [`ModelOutputs`], [`Shard`] and [`LossGradient`].

use std::{hint::black_box, ops::Range};

use ndarray::{Array, Array2, Array3, ArrayView2, ArrayView3, Dimension};

use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
};

/// Which of a model's results the loss of [`Trainer::step`](crate::train::Trainer::step) reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossInput {
    /// The outputs of all time steps.
    #[default]
    Outputs,
    /// The last hidden state of each sequence, for example to classify it.
    LastState,
    /// The outputs of all time steps, and the last hidden state of each sequence.
    Both,
}

impl LossInput {
    /// Whether the loss reads the outputs of all time steps.
    pub(super) fn reads_outputs(self) -> bool {
        self != LossInput::LastState
    }

    /// Whether the loss reads the last hidden states.
    pub(super) fn reads_last_state(self) -> bool {
        self != LossInput::Outputs
    }
}

/// The part of a batch for which the loss function is called once: the whole batch, unless
/// [`TrainerConfig::shards`](crate::train::TrainerConfig::shards) says otherwise. The loss of the batch is the sum of the
/// losses of its shards, so the mean over a shard must be weighted by [`part_of_mean`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shard {
    /// Number of this shard in the batch, counted from 0.
    pub index: usize,
    /// Number of shards of the batch.
    pub shards: usize,
    /// The sequences of the batch that are in this shard.
    pub rows: Range<usize>,
    /// The divisor of a mean over the whole batch: the number of time steps within the lengths of all sequences, or the
    /// number of sequences for [`LossInput::LastState`].
    pub count: usize,
    /// The share of this shard in [`count`](Self::count): the number of its own time steps, or of its own sequences.
    pub own_count: usize,
}

/// The part of a mean over a whole batch that one shard contributes, from the mean over the shard: the loss and each
/// element of its gradient, multiplied by `own_count / count`. The factor is computed in f64, and the products with the
/// gradient are rounded to f32 once. For a batch of one shard nothing changes.
///
/// `own_count` and `count` are [those of the shard](Shard), or any other numbers of which the loss is the mean, such as
/// the numbers of targets that are not ignored.
///
/// A shard may have nothing to count: all its sequences have length 0, or all its targets are ignored. There is then no
/// mean; return a loss of 0 and a gradient of zeros.
///
/// ```
/// # use lstm_core::{Backend, Error, ndarray::{Array3, s}, train::{LossInput, StepReport, Trainer, mean_squared_error, part_of_mean}};
/// # fn example<B: Backend>(trainer: &mut Trainer<B>, x: &Array3<f32>, target: &Array3<f32>) -> Result<StepReport, Error> {
/// trainer.step(x, LossInput::Outputs, |out, shard| {
///     let mean = mean_squared_error(out.y()?, target.slice(s![shard.rows.clone(), .., ..]))?;
///     Ok(part_of_mean(mean, shard.own_count, shard.count))
/// })
/// # }
/// ```
pub fn part_of_mean<D: Dimension>(
    (loss, gradient): (f64, Array<f32, D>),
    own_count: usize,
    count: usize,
) -> (f64, Array<f32, D>) {
    part_of_weighted_mean((loss, gradient), own_count as f64, count as f64)
}

/// [`part_of_mean`] for a weighted mean, such as that of [`weighted_cross_entropy`](crate::train::weighted_cross_entropy)
/// or [`weighted_pointwise_loss`](crate::train::weighted_pointwise_loss). `own_weight` is the sum of the weights in the
/// shard, and `weight` that in the whole batch.
pub fn part_of_weighted_mean<D: Dimension>(
    (loss, mut gradient): (f64, Array<f32, D>),
    own_weight: f64,
    weight: f64,
) -> (f64, Array<f32, D>) {
    if own_weight == weight {
        return (loss, gradient);
    }
    let _environment = FloatEnvironment::set_default();
    let factor = own_weight / weight;
    gradient.mapv_inplace(|v| (f64::from(v) * factor) as f32);
    (black_box(black_box(loss) * factor), gradient)
}

/// The results of a model that a loss function reads, for the sequences of one [`Shard`]. They are the outputs of the
/// head, or of the LSTM if the model has no head.
#[derive(Clone, Copy, Debug)]
pub struct ModelOutputs<'a> {
    pub(super) y: Option<ArrayView3<'a, f32>>,
    pub(super) last: Option<ArrayView2<'a, f32>>,
}

impl<'a> ModelOutputs<'a> {
    /// The outputs of all time steps, in the layout of the input: `(batch, steps, output_size)`. They are +0 beyond a
    /// sequence's length.
    ///
    /// # Errors
    /// [`Error::Config`] if the training step was called with [`LossInput::LastState`], or the [`Model`](crate::Model)
    /// returns only the last step.
    pub fn y(&self) -> Result<ArrayView3<'a, f32>> {
        let reason = "the loss reads outputs of all time steps; call Trainer::step with LossInput::Outputs or \
                      LossInput::Both; of a Model that returns the last step, read ModelOutputs::last";
        self.y.ok_or_else(|| Error::config("loss_input", reason))
    }

    /// The model's result for the last hidden state of each sequence, `(batch, output_size)`; see
    /// [`HostState::last`](crate::HostState::last). In a [`Model`](crate::Model) that returns the last step, its outputs.
    ///
    /// # Errors
    /// [`Error::Config`] if the training step was called with [`LossInput::Outputs`], or the [`Model`](crate::Model)
    /// returns all time steps.
    pub fn last(&self) -> Result<ArrayView2<'a, f32>> {
        let reason = "the loss reads last states; call Trainer::step with LossInput::LastState or LossInput::Both; of a \
                      Model that returns all time steps, read ModelOutputs::y";
        self.last.ok_or_else(|| Error::config("loss_input", reason))
    }
}

/// The gradient of a loss with respect to the [`ModelOutputs`] that it reads. An array of the shape of
/// [`y`](ModelOutputs::y) or [`last`](ModelOutputs::last) converts into it; for [`LossInput::Both`], a pair of these
/// two arrays does.
#[derive(Clone, Debug, PartialEq)]
pub struct LossGradient {
    pub(super) y: Option<Array3<f32>>,
    pub(super) last: Option<Array2<f32>>,
}

impl From<Array3<f32>> for LossGradient {
    fn from(y: Array3<f32>) -> Self {
        LossGradient { y: Some(y), last: None }
    }
}

impl From<Array2<f32>> for LossGradient {
    fn from(last: Array2<f32>) -> Self {
        LossGradient { y: None, last: Some(last) }
    }
}

impl From<(Array3<f32>, Array2<f32>)> for LossGradient {
    fn from((y, last): (Array3<f32>, Array2<f32>)) -> Self {
        LossGradient { y: Some(y), last: Some(last) }
    }
}

impl LossGradient {
    /// Checks that the gradient has the same arrays and shapes as `outputs`, which the loss read.
    pub(super) fn check(&self, outputs: &ModelOutputs<'_>) -> Result<()> {
        let check_shape = |what: &str, expected: Option<&[usize]>, got: Option<&[usize]>| {
            if expected == got {
                return Ok(());
            }
            let text = |shape: Option<&[usize]>| shape.map_or("none".into(), |shape| format!("{shape:?}"));
            let expected = format!("{}, the shape of the {what}", text(expected));
            Err(Error::shape("Trainer::step: gradient of the loss", expected, text(got)))
        };
        let y = (outputs.y.as_ref().map(|y| y.shape()), self.y.as_ref().map(|y| y.shape()));
        let last = (outputs.last.as_ref().map(|last| last.shape()), self.last.as_ref().map(|last| last.shape()));
        check_shape("outputs", y.0, y.1)?;
        check_shape("last states", last.0, last.1)
    }
}
