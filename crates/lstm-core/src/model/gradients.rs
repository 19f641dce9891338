//! What goes into a model's backward pass and comes out of it, on the host.

use ndarray::{Array3, ArrayView3};

use crate::{
    arithmetic::CHUNK,
    config::LstmConfig,
    error::{Error, Result},
    model::input::{HostState, Layout},
    weights::Weights,
};

/// How much a forward pass keeps for the backward pass. The bits of the gradients do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Everything: states and gates of all steps, about `6 * hidden` numbers for each step of a sequence and layer.
    #[default]
    Everything,
    /// Each layer's input and the state every so many steps, a multiple of 32. The backward pass computes one segment of
    /// a layer again before it walks it: a forward pass more, for the states and gates of a segment instead of all steps
    /// (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
    Segments(usize),
    /// Segments about as long as their number: the square root of the steps, rounded up to a multiple of 32.
    SquareRoot,
}

impl Checkpointing {
    /// The length of a segment; `None` for everything.
    pub(crate) fn segment(self, steps: usize) -> Result<Option<usize>> {
        match self {
            Checkpointing::Everything => Ok(None),
            Checkpointing::Segments(n) if n > 0 && n.is_multiple_of(CHUNK) => Ok(Some(n)),
            Checkpointing::Segments(n) => {
                let why = format!("expected segments of a positive multiple of {CHUNK} steps, got {n}");
                Err(Error::config("keep", why))
            }
            Checkpointing::SquareRoot => Ok(Some(steps.isqrt().max(1).next_multiple_of(CHUNK))),
        }
    }
}

/// The loss's gradient with respect to a model's outputs, final states, or both: where a backward pass starts. An array
/// alone, of the output's shape, is enough.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a> {
    pub(crate) y: Option<ArrayView3<'a, f32>>,
    pub(crate) state: Option<&'a HostState>,
    pub(crate) input: bool,
}

impl<'a> From<ArrayView3<'a, f32>> for OutputGradients<'a> {
    fn from(y: ArrayView3<'a, f32>) -> Self {
        OutputGradients { y: Some(y), state: None, input: false }
    }
}

impl<'a> From<&'a Array3<f32>> for OutputGradients<'a> {
    fn from(y: &'a Array3<f32>) -> Self {
        y.view().into()
    }
}

impl<'a> From<&'a HostState> for OutputGradients<'a> {
    fn from(state: &'a HostState) -> Self {
        OutputGradients { y: None, state: Some(state), input: false }
    }
}

impl<'a> OutputGradients<'a> {
    /// Adds the gradient of the final states; without it, and so for truncated backpropagation through time, it is zero.
    pub fn state(self, state: &'a HostState) -> Self {
        OutputGradients { state: Some(state), ..self }
    }

    /// Asks for the gradient of the model's input too.
    pub fn with_input(self) -> Self {
        OutputGradients { input: true, ..self }
    }

    pub(crate) fn check(&self, config: &LstmConfig, layout: &Layout) -> Result<()> {
        let want = layout.shape(config.output_size());
        if let Some(y) = self.y.filter(|y| y.dim() != want) {
            let want = format!("{:?}", [want.0, want.1, want.2]);
            return Err(Error::shape("backward: y", want, format!("{:?}", y.shape())));
        }
        self.state.map_or(Ok(()), |state| state.check("backward", config, layout.batch))
    }
}

/// The gradients of a loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Of the input, in its layout, +0 beyond a sequence's length; if [asked for](OutputGradients::with_input).
    pub x: Option<Array3<f32>>,
    /// Of the initial states, whether they were given or zero.
    pub state: HostState,
    /// Of every weight; of two biases each has the gradient of their sum.
    pub weights: Weights,
}
