//! The memory of a backward pass, and how things lie in it.

use lstm_core::{CellKind, Result, arithmetic::CHUNK};

use crate::{
    buffer::Buffer,
    kernels::PANEL_VECTORS,
    layer::Packed,
    product::{self, ROWS},
};

/// Scratch memory of a backward pass; holds the state's running gradient.
pub(crate) struct Scratch {
    /// Steps of a chunk at most.
    pub(super) chunk: usize,
    pub(super) threads: usize,
    /// `[batch][padded state]`: what the step after leaves, and with the output's gradient added.
    pub(super) carry: Buffer,
    pub(super) total: Buffer,
    /// `[batch][hidden panels]`
    pub(super) dc: Buffer,
    /// `[batch][hidden panels]`: the dense peephole's `f`.
    pub(super) f: Buffer,
    /// With a projection, `[batch][hidden panels]`: the gradient of `h` before it.
    pub(super) unprojected: Buffer,
    /// With a projection, `[chunk * batch][padded state]` and `[chunk * batch][padded]`: the gradient of its result and
    /// its operand.
    pub(super) projected: Buffer,
    pub(super) operand: Buffer,
    /// `[chunk * batch][row]`: the gates' gradients, gate by gate; see [`Sizes::row`].
    pub(super) dz: Buffer,
    /// `[threads]` of what a product needs.
    pub(super) product: Buffer,
}

/// Distances that follow from a layer.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) width: usize,
    pub(super) padded: usize,
    pub(super) padded_state: usize,
    /// Floats between rows of `dz`: a line more than the gates, so that rows fall into different sets of a cache.
    pub(super) row: usize,
    /// Floats in a row of `unprojected`.
    pub(super) hidden_panels: usize,
    /// Floats of each thread's part of `product`.
    pub(super) product: usize,
}

impl Sizes {
    pub(super) fn new(layer: &Packed, chunk: usize, batch: usize) -> Self {
        let (kernels, hidden) = (layer.kernels, layer.spec.hidden_size);
        let width = kernels.panel();
        Sizes {
            width,
            padded: layer.padded(),
            padded_state: layer.spec.state_size().next_multiple_of(width),
            row: PANEL_VECTORS * layer.padded() + 16,
            hidden_panels: hidden.next_multiple_of(width),
            product: product::scratch(kernels, chunk * batch).max(2 * ROWS.max(batch) * width),
        }
    }
}

impl Scratch {
    pub(super) fn new(layer: &Packed, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        let chunk = CHUNK.min(steps);
        let sizes = Sizes::new(layer, chunk, batch);
        let zeros = |sizes: &[usize]| Buffer::zeros("backward", sizes);
        let dense = usize::from(layer.spec.cell == CellKind::PeepholeDense);
        let projected = usize::from(layer.spec.proj_size.is_some());
        Ok(Scratch {
            chunk,
            threads,
            carry: zeros(&[batch, sizes.padded_state])?,
            total: zeros(&[batch, sizes.padded_state])?,
            dc: zeros(&[batch, sizes.hidden_panels])?,
            f: zeros(&[dense, batch, sizes.hidden_panels])?,
            unprojected: zeros(&[projected, batch, sizes.hidden_panels])?,
            projected: zeros(&[projected, chunk, batch, sizes.padded_state])?,
            operand: zeros(&[projected, chunk, batch, sizes.padded])?,
            dz: zeros(&[chunk, batch, sizes.row])?,
            product: zeros(&[threads, sizes.product])?,
        })
    }
}
