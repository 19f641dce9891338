//! Types of the backward pass on the host: the choice of what the forward pass saves, the gradients of the loss with
//! respect to a model's outputs, and the resulting gradients.

use ndarray::{Array3, ArrayView3};

use crate::{
    arithmetic::CHUNK_STEPS,
    config::LstmConfig,
    error::{Error, Result},
    model::{input::HostState, layout::BatchLayout},
    weights::Weights,
};

/// What a forward pass saves for the backward pass: a trade of memory for time. The gradients are bit-identical in all
/// cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checkpointing {
    /// Saves the states and gates of all time steps, about `6 * hidden_size` numbers per time step, sequence and layer.
    #[default]
    SaveEverything,
    /// Divides the sequence into segments of this many time steps, a multiple of 32. The forward pass saves each
    /// layer's input, and the state once per segment. The backward pass computes each segment's forward pass again:
    /// this costs one more forward pass, and needs the memory for the states and gates of one segment only (Chen et al.
    /// 2016, "Training Deep Nets with Sublinear Memory Cost").
    Segments(usize),
    /// Like [`Segments`](Self::Segments), with a segment length of the square root of the number of time steps, rounded
    /// up to a multiple of 32.
    SquareRootSegments,
}

impl Checkpointing {
    /// The number of time steps per segment of a pass over `steps` time steps; `None` for
    /// [`SaveEverything`](Self::SaveEverything).
    pub(crate) fn segment_len(self, steps: usize) -> Result<Option<usize>> {
        match self {
            Checkpointing::SaveEverything => Ok(None),
            Checkpointing::Segments(n) if n > 0 && n.is_multiple_of(CHUNK_STEPS) => Ok(Some(n)),
            Checkpointing::Segments(n) => {
                let reason = format!("expected segments of a positive multiple of {CHUNK_STEPS} steps, got {n}");
                Err(Error::config("checkpointing", reason))
            }
            Checkpointing::SquareRootSegments => Ok(Some(steps.isqrt().max(1).next_multiple_of(CHUNK_STEPS))),
        }
    }
}

/// The input of [`Tape::backward`](crate::Tape::backward): gradients of the loss with respect to a model's outputs, its
/// final states, or both. An array of the outputs' shape can be converted into this type.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct OutputGradients<'a> {
    pub(crate) y: Option<ArrayView3<'a, f32>>,
    pub(crate) state: Option<&'a HostState>,
    pub(crate) needs_input_gradient: bool,
}

impl<'a> From<ArrayView3<'a, f32>> for OutputGradients<'a> {
    fn from(y: ArrayView3<'a, f32>) -> Self {
        OutputGradients { y: Some(y), state: None, needs_input_gradient: false }
    }
}

impl<'a> From<&'a Array3<f32>> for OutputGradients<'a> {
    fn from(y: &'a Array3<f32>) -> Self {
        y.view().into()
    }
}

impl<'a> From<&'a HostState> for OutputGradients<'a> {
    fn from(state: &'a HostState) -> Self {
        OutputGradients { y: None, state: Some(state), needs_input_gradient: false }
    }
}

impl<'a> OutputGradients<'a> {
    /// Sets the gradients with respect to the final states. The default is zero, as for truncated backpropagation
    /// through time.
    pub fn state(self, state: &'a HostState) -> Self {
        OutputGradients { state: Some(state), ..self }
    }

    /// Requests the gradient with respect to the model's input.
    pub fn with_input_gradient(self) -> Self {
        OutputGradients { needs_input_gradient: true, ..self }
    }

    /// Checks the shapes of the gradients against the configuration and the batch.
    pub(crate) fn check(&self, config: &LstmConfig, layout: &BatchLayout) -> Result<()> {
        let expected = layout.host_shape(config.output_size());
        if let Some(y) = self.y.filter(|y| y.dim() != expected) {
            let expected = format!("{:?}", [expected.0, expected.1, expected.2]);
            return Err(Error::shape("backward: y", expected, format!("{:?}", y.shape())));
        }
        self.state.map_or(Ok(()), |state| state.check("backward", config, layout.batch))
    }
}

/// The result of [`Tape::backward`](crate::Tape::backward): gradients of the loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Gradient with respect to the input, in the input's layout. It is +0 beyond the end of a sequence. `None` unless
    /// [requested](OutputGradients::with_input_gradient).
    pub x: Option<Array3<f32>>,
    /// Gradients with respect to the initial states.
    pub state: HostState,
    /// Gradients with respect to the weights. If a layer has two biases, both have the same gradient.
    pub weights: Weights,
}
