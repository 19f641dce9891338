//! What a forward pass in training keeps for the backward pass.

use std::sync::Arc;

use lstm_core::LayerSpec;

use crate::memory::{DeviceMemory, Tensor};

/// Input, states and gates of all steps of one layer over one batch of sequences.
#[derive(Debug)]
pub struct Trace {
    pub(super) spec: LayerSpec,
    pub(super) steps: usize,
    pub(super) batch: usize,
    /// Length of each sequence, `[batch]`, as `u32`. `None` if all have `steps` steps.
    pub(super) lengths: Option<Arc<DeviceMemory>>,
    /// Snapped input, `[steps * batch, input]`.
    pub(super) x: Tensor,
    /// `h: [steps + 1, batch, state]`, then `c: [steps + 1, batch, hidden]`. Ordered by time, also in a reverse layer.
    pub(super) states: Arc<DeviceMemory>,
    /// Gate activations i, f, g, o, `[steps * batch, 4 * hidden]`.
    pub(super) gates: Arc<DeviceMemory>,
    /// Input of the projection, `o * tanh(c)`, `[steps * batch, hidden]`. `None` without a projection.
    pub(super) projection_input: Option<Arc<DeviceMemory>>,
}
