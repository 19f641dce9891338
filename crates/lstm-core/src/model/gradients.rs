//! Host types of the backward pass: what the forward pass saves, the gradients of the loss with respect to a model's
//! outputs, and the resulting gradients.

use ndarray::{Array3, ArrayView3};

use crate::{
    arithmetic::CHUNK,
    config::LstmConfig,
    error::{Error, Result},
    model::{input::HostState, layout::Layout},
    weights::Weights,
};

/// What a forward pass saves for the backward pass: a trade of memory for time. The gradients are bit-identical in all
/// cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Saves the states and gates of all time steps, about `6 * hidden_size` numbers per time step, sequence and layer.
    #[default]
    Everything,
    /// Saves each layer's input, and the state once per segment of this many time steps, a multiple of 32. The backward
    /// pass computes each segment again: this costs one more forward pass, and needs the memory for the states and gates
    /// of one segment only (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
    Segments(usize),
    /// Like [`Segments`](Self::Segments), with a segment length of the square root of the number of time steps, rounded
    /// up to a multiple of 32.
    SquareRoot,
}

impl Checkpointing {
    /// The number of time steps per segment; `None` for [`Everything`](Self::Everything).
    pub(crate) fn segment(self, steps: usize) -> Result<Option<usize>> {
        match self {
            Checkpointing::Everything => Ok(None),
            Checkpointing::Segments(n) if n > 0 && n.is_multiple_of(CHUNK) => Ok(Some(n)),
            Checkpointing::Segments(n) => {
                let why = format!("expected segments of a positive multiple of {CHUNK} steps, got {n}");
                Err(Error::config("checkpointing", why))
            }
            Checkpointing::SquareRoot => Ok(Some(steps.isqrt().max(1).next_multiple_of(CHUNK))),
        }
    }
}

/// The input of [`Tape::backward`](crate::Tape::backward): gradients of the loss with respect to a model's outputs, its
/// final states, or both. An array of the outputs' shape converts into it.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a> {
    pub(crate) y: Option<ArrayView3<'a, f32>>,
    pub(crate) state: Option<&'a HostState>,
    pub(crate) need_x: bool,
}

impl<'a> From<ArrayView3<'a, f32>> for OutputGradients<'a> {
    fn from(y: ArrayView3<'a, f32>) -> Self {
        OutputGradients { y: Some(y), state: None, need_x: false }
    }
}

impl<'a> From<&'a Array3<f32>> for OutputGradients<'a> {
    fn from(y: &'a Array3<f32>) -> Self {
        y.view().into()
    }
}

impl<'a> From<&'a HostState> for OutputGradients<'a> {
    fn from(state: &'a HostState) -> Self {
        OutputGradients { y: None, state: Some(state), need_x: false }
    }
}

impl<'a> OutputGradients<'a> {
    /// Sets the gradients with respect to the final states. The default is zero, as for truncated backpropagation through
    /// time.
    pub fn state(self, state: &'a HostState) -> Self {
        OutputGradients { state: Some(state), ..self }
    }

    /// Requests the gradient with respect to the model's input.
    pub fn with_input(self) -> Self {
        OutputGradients { need_x: true, ..self }
    }

    /// Checks the shapes.
    pub(crate) fn check(&self, config: &LstmConfig, layout: &Layout) -> Result<()> {
        let want = layout.host_shape(config.output_size());
        if let Some(y) = self.y.filter(|y| y.dim() != want) {
            let want = format!("{:?}", [want.0, want.1, want.2]);
            return Err(Error::shape("backward: y", want, format!("{:?}", y.shape())));
        }
        self.state.map_or(Ok(()), |state| state.check("backward", config, layout.batch))
    }
}

/// The result of [`Tape::backward`](crate::Tape::backward): gradients of the loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Gradient with respect to the input, in the input's layout, +0 beyond a sequence's length. `None` unless
    /// [requested](OutputGradients::with_input).
    pub x: Option<Array3<f32>>,
    /// Gradients with respect to the initial states.
    pub state: HostState,
    /// Gradients with respect to the weights. If a layer has two biases, both have the same gradient.
    pub weights: Weights,
}
