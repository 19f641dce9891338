//! What a forward pass of training keeps.

use std::sync::Arc;

use lstm_core::LayerSpec;

use crate::tensor::{Memory, Tensor};

/// The input, the state around each step and the gates of each, of one layer over one batch of sequences.
#[derive(Debug)]
pub struct Trace {
    pub(crate) spec: LayerSpec,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    /// `[batch]` words.
    pub(crate) lengths: Option<Arc<Memory>>,
    /// Snapped, `[steps * batch, input]`.
    pub(crate) x: Tensor,
    /// `h: [steps + 1, batch, state]`, then `c: [steps + 1, batch, hidden]`, in the sequence's order whichever way it is
    /// walked.
    pub(crate) states: Arc<Memory>,
    /// i, f, g, o, `[steps * batch, 4 * hidden]`.
    pub(crate) gates: Arc<Memory>,
    /// With a projection `o tanh(c')`, `[steps * batch, hidden]`.
    pub(crate) projected: Option<Arc<Memory>>,
}
