//! The input and the output of a model.

#[cfg(feature = "train")]
use std::ops::Range;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};
#[cfg(feature = "train")]
use ndarray::{Axis, Slice};

use crate::{
    error::{Error, Result},
    model::{Dropout, HostState, check_lengths, check_repeated},
    network::weights::{ModelLayer, ModelWeights},
};

/// The input of [`Model::forward`](crate::Model::forward): a batch of sequences of features or of tokens, with its
/// options. An array can be converted into an input without options.
///
/// ```
/// use lstm_core::{ModelInput, ndarray::{Array2, Array3}};
/// let x = Array3::<f32>::zeros((2, 7, 3)); // batch, steps, features
/// let input = ModelInput::from(&x).lengths(&[7, 4]);
/// let tokens = Array2::<i64>::zeros((2, 7)); // batch, steps
/// let input_of_tokens = ModelInput::from(&tokens);
/// # let _ = (input, input_of_tokens);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ModelInput<'a> {
    pub(super) values: Values<'a>,
    pub(super) lengths: Option<&'a [usize]>,
    pub(super) states: Option<&'a [HostState]>,
    pub(super) dropout: Option<Dropout>,
}

/// The values of the time steps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values<'a> {
    /// `(batch, steps, input_size)`.
    Features(ArrayView3<'a, f32>),
    /// `(batch, steps)`.
    Tokens(ArrayView2<'a, i64>),
}

impl<'a> From<ArrayView3<'a, f32>> for ModelInput<'a> {
    fn from(x: ArrayView3<'a, f32>) -> Self {
        ModelInput::new(Values::Features(x))
    }
}

impl<'a> From<&'a Array3<f32>> for ModelInput<'a> {
    fn from(x: &'a Array3<f32>) -> Self {
        x.view().into()
    }
}

impl<'a> From<ArrayView2<'a, i64>> for ModelInput<'a> {
    fn from(tokens: ArrayView2<'a, i64>) -> Self {
        ModelInput::new(Values::Tokens(tokens))
    }
}

impl<'a> From<&'a Array2<i64>> for ModelInput<'a> {
    fn from(tokens: &'a Array2<i64>) -> Self {
        tokens.view().into()
    }
}

impl<'a> ModelInput<'a> {
    fn new(values: Values<'a>) -> Self {
        ModelInput { values, lengths: None, states: None, dropout: None }
    }

    /// Sets the number of time steps of each sequence, in any order, like PyTorch's packed sequences. By default all
    /// sequences have the full length. Outputs beyond a sequence's length are 0, and inputs there have no effect,
    /// whatever they are.
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        ModelInput { lengths: Some(lengths), ..self }
    }

    /// Sets the initial states: one for each [`ModelLayer::Lstm`], in order, for the whole batch. The default is each
    /// layer's own initial state, or zero.
    pub fn states(self, states: &'a [HostState]) -> Self {
        ModelInput { states: Some(states), ..self }
    }

    /// Sets whether dropout is applied: by the layers [`ModelLayer::Dropout`] and within the LSTMs that have it.
    /// [`Model::forward`](crate::Model::forward) applies none by default.
    pub fn dropout(self, dropout: Dropout) -> Self {
        ModelInput { dropout: Some(dropout), ..self }
    }

    /// Batch size and number of time steps, as `(batch, steps)`.
    pub(crate) fn batch_and_steps(&self) -> (usize, usize) {
        match self.values {
            Values::Features(x) => (x.dim().0, x.dim().1),
            Values::Tokens(tokens) => tokens.dim(),
        }
    }

    /// The number of time steps of all sequences together, within their lengths; `None` if it is too large.
    #[cfg(feature = "train")]
    pub(crate) fn time_steps(&self) -> Option<usize> {
        let (batch, steps) = self.batch_and_steps();
        match self.lengths {
            Some(lengths) => lengths.iter().try_fold(0usize, |sum, &len| sum.checked_add(len)),
            None => batch.checked_mul(steps),
        }
    }

    /// The initial states that the caller gave.
    #[cfg(feature = "train")]
    pub(crate) fn given_states(&self) -> Option<&'a [HostState]> {
        self.states
    }

    /// The lengths that the caller gave.
    #[cfg(feature = "train")]
    pub(crate) fn given_lengths(&self) -> Option<&'a [usize]> {
        self.lengths
    }

    /// The number of features, or of tokens, of all time steps.
    #[cfg(feature = "train")]
    pub(crate) fn num_values(&self) -> usize {
        match self.values {
            Values::Features(ref x) => x.len(),
            Values::Tokens(ref tokens) => tokens.len(),
        }
    }

    /// Value number `k`, counted in row-major order: a feature and 0, or the halves of a token as the bits of floats.
    #[cfg(feature = "train")]
    pub(crate) fn value_bits(&self, k: usize) -> [f32; 2] {
        match self.values {
            Values::Features(ref x) => {
                let (_, b, c) = x.dim();
                [x[[k / (b * c), k / c % b, k % c]], 0.0]
            }
            Values::Tokens(ref tokens) => {
                let token = tokens[[k / tokens.ncols(), k % tokens.ncols()]];
                [token as u32, (token >> 32) as u32].map(f32::from_bits)
            }
        }
    }

    /// The sequences `rows` of the input. `states` are their initial states, if they are not those of the input. The
    /// caller has checked the input.
    #[cfg(feature = "train")]
    pub(crate) fn rows<'b>(&'b self, rows: &Range<usize>, states: Option<&'b [HostState]>) -> ModelInput<'b> {
        let slice = Slice::from(rows.start..rows.end);
        let values = match self.values {
            Values::Features(ref x) => Values::Features(x.slice_axis(Axis(0), slice)),
            Values::Tokens(ref tokens) => Values::Tokens(tokens.slice_axis(Axis(0), slice)),
        };
        let lengths = self.lengths.map(|lengths| &lengths[rows.clone()]);
        ModelInput { values, lengths, states: states.or(self.states), dropout: self.dropout }
    }

    /// The features of the input; `None` for tokens.
    pub(super) fn features(&self) -> Option<ArrayView3<'a, f32>> {
        match self.values {
            Values::Features(x) => Some(x),
            Values::Tokens(_) => None,
        }
    }

    /// Checks the kind of the input, the shapes of the arrays, the lengths and the tokens within them. `op` is the
    /// operation in error messages.
    pub(crate) fn check(&self, op: &str, weights: &ModelWeights) -> Result<()> {
        let (batch, steps) = self.batch_and_steps();
        if let Some(lengths) = self.lengths {
            check_lengths(op, lengths, [batch, steps])?;
        }
        match self.values {
            Values::Features(x) => check_repeated(format_args!("{op}: x"), &x)?,
            Values::Tokens(tokens) => check_repeated(format_args!("{op}: tokens"), &tokens)?,
        }
        match (self.values, weights.reads_tokens()) {
            (Values::Features(x), false) => {
                let expected = [batch, steps, weights.input_size()];
                if x.shape() != expected {
                    return Err(Error::shape(format!("{op}: x"), format!("{expected:?}"), format!("{:?}", x.shape())));
                }
            }
            (Values::Tokens(tokens), true) => {
                for ((b, t), &token) in tokens.indexed_iter() {
                    if self.lengths.is_none_or(|lengths| t < lengths[b]) {
                        check_token(weights, token, || format!("{op}: tokens[{b}, {t}]"))?;
                    }
                }
            }
            (Values::Features(_), true) => return Err(wrong_kind(op, true)),
            (Values::Tokens(_), false) => return Err(wrong_kind(op, false)),
        }
        if let Some(states) = self.states {
            check_states(op, weights, states, batch)?;
        }
        Ok(())
    }
}

/// The error for features where the model reads tokens, or the other way round.
pub(super) fn wrong_kind(op: &str, reads_tokens: bool) -> Error {
    let (tokens, features) =
        ("tokens, because the first layer is an embedding", "features, because the model has no embedding");
    let (expected, got) = if reads_tokens { (tokens, "features") } else { (features, "tokens") };
    Error::shape(op, expected, got)
}

/// Checks that there is one state for each LSTM, and the shapes.
pub(super) fn check_states(op: &str, weights: &ModelWeights, states: &[HostState], batch: usize) -> Result<()> {
    let expected = weights.lstms().count();
    if states.len() != expected {
        return Err(Error::shape(format!("{op}: states"), format!("{expected}, one for each LSTM"), states.len()));
    }
    let layers = weights.layers().iter().filter_map(|layer| match layer {
        ModelLayer::Lstm { name, weights, .. } => Some((name, weights)),
        _ => None,
    });
    layers
        .zip(states)
        .try_for_each(|((name, lstm), state)| state.check(&format!("{op}: `{name}`"), lstm.config(), batch))
}

/// Checks that the embedding has a row for the token, and returns the row's index. `place` describes where the token
/// is.
pub(super) fn check_token(weights: &ModelWeights, token: i64, place: impl Fn() -> String) -> Result<usize> {
    let (name, size) = match weights.layers().first() {
        Some(ModelLayer::Embedding { name, weight }) => (name, weight.nrows()),
        _ => return Err(wrong_kind(&place(), false)),
    };
    match usize::try_from(token) {
        Ok(index) if index < size => Ok(index),
        _ => {
            let expected = format!("a token from 0 to {}, because `{name}` has {size} rows", size - 1);
            Err(Error::shape(place(), expected, token))
        }
    }
}

/// The result of [`Model::forward`](crate::Model::forward).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelOutput {
    /// The outputs, `(batch, steps, output_size)`, or `(batch, 1, output_size)` if the model
    /// [returns the last step](ModelWeights::returns_last_step). Outputs beyond a sequence's length are +0.
    pub y: Array3<f32>,
    /// The final states of each LSTM, in order.
    pub states: Vec<HostState>,
}

impl ModelOutput {
    /// Creates an output from its parts.
    pub fn new(y: Array3<f32>, states: Vec<HostState>) -> Self {
        ModelOutput { y, states }
    }
}
