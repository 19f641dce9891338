//! The memory of a backward pass, and how things lie in it.

use lstm_core::{
    CellKind, Result,
    arithmetic::{BLOCK, CHUNK},
};

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
    /// `[4 gates][blocks][chunk * batch][BLOCK]`: the gates' gradients. So both those who take the units as terms of a sum
    /// and those who take the rows as terms walk through memory in order.
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
    /// Floats between blocks of units, and between gates, of `dz`.
    pub(super) block: usize,
    pub(super) gate: usize,
    /// Floats in a row of `unprojected`.
    pub(super) hidden_panels: usize,
    /// Floats of each thread's part of `product`.
    pub(super) product: usize,
}

impl Sizes {
    pub(super) fn new(layer: &Packed, chunk: usize, batch: usize) -> Self {
        let (kernels, hidden) = (layer.kernels, layer.spec.hidden_size);
        let width = kernels.panel();
        let block = chunk * batch * BLOCK;
        Sizes {
            width,
            padded: layer.padded(),
            padded_state: layer.spec.state_size().next_multiple_of(width),
            block,
            gate: layer.padded().div_ceil(BLOCK) * block,
            hidden_panels: hidden.next_multiple_of(width),
            product: product::scratch(kernels, chunk * batch).max(2 * ROWS.max(batch) * width),
        }
    }
}

impl Sizes {
    /// Where a unit lies in a row and gate of `dz`.
    pub(super) fn unit(&self, unit: usize) -> usize {
        unit / BLOCK * self.block + unit % BLOCK
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
            dz: zeros(&[PANEL_VECTORS, layer.padded().div_ceil(BLOCK), chunk, batch, BLOCK])?,
            product: zeros(&[threads, sizes.product])?,
        })
    }
}
