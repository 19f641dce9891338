//! What a loss function receives and returns: [`ModelOutputs`], [`Shard`] and [`LossGradient`].

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use crate::error::{Error, Result};

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

/// The part of a batch for which the loss function is called once. At present it is always the whole batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shard {
    /// Number of this shard in the batch, counted from 0.
    pub index: usize,
    /// The sequences of the batch that are in this shard.
    pub rows: Range<usize>,
    /// The divisor of a mean over the whole batch: the number of time steps within the lengths of all sequences, or the
    /// number of sequences for [`LossInput::LastState`].
    pub count: usize,
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
