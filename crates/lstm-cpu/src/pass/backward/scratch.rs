//! The scratch memory of a backward pass and its layout.

use lstm_core::{
    CellKind, Result,
    arithmetic::{CHUNK_STEPS, DOT_BLOCK},
};

use crate::{
    kernel::{
        matmul::{MAX_ROWS_PER_PRODUCT, scratch_len},
        table::PANEL_VECTORS,
    },
    layer::PackedLayer,
    memory::buffer::Buffer,
};

/// The scratch memory of a backward pass. It also holds the running gradient of the state.
pub(crate) struct Scratch {
    /// Maximum number of time steps in a chunk.
    pub(super) chunk_steps: usize,
    /// Number of threads.
    pub(super) threads: usize,
    /// The part of the gradient of `h` that comes from the following time step, `[batch][padded_state]`.
    pub(super) dh_carry: Buffer,
    /// Gradient of `h`: `dh_carry` plus the gradient of the output, `[batch][padded_state]`.
    pub(super) dh: Buffer,
    /// Gradient of the cell state, `[batch][ld_hidden]`.
    pub(super) dc: Buffer,
    /// Values of the forget gate, `[batch][ld_hidden]`. Used only by the dense peephole cell, else empty.
    pub(super) f: Buffer,
    /// Gradient of `h` before the projection, `[batch][ld_hidden]`. Empty without a projection.
    pub(super) dh_unprojected: Buffer,
    /// Gradient of the projection's result, `[chunk_steps * batch][padded_state]`. Empty without a projection.
    pub(super) dh_projected: Buffer,
    /// The projection's operand `h`, `[chunk_steps * batch][padded_hidden]`. Empty without a projection.
    pub(super) h_unprojected: Buffer,
    /// Gradients of the pre-activations of the gates, `[4 gates][blocks][chunk_steps * batch][DOT_BLOCK]`. Blocks of
    /// units let both kinds of products read memory sequentially: those that sum over units and those that sum over
    /// rows.
    pub(super) dz: Buffer,
    /// Scratch memory of the products, `[threads][product_scratch_len]`.
    pub(super) product_scratch: Buffer,
}

/// Sizes and strides of [`Scratch`], in floats.
#[derive(Clone, Copy)]
pub(super) struct ScratchLayout {
    /// Length of a panel row.
    pub(super) panel_width: usize,
    /// Length of a row of hidden units, padded to whole vectors.
    pub(super) padded_hidden: usize,
    /// Length of a row of the state, padded to whole panel rows.
    pub(super) padded_state: usize,
    /// Stride between blocks of units in `dz`.
    pub(super) block_stride: usize,
    /// Stride between gates in `dz`.
    pub(super) gate_stride: usize,
    /// Length of a row of hidden units, padded to whole panel rows.
    pub(super) ld_hidden: usize,
    /// Length of each thread's part of `product_scratch`.
    pub(super) product_scratch_len: usize,
}

impl ScratchLayout {
    /// The layout for chunks of at most `chunk_steps` time steps of `batch` sequences.
    pub(super) fn new(layer: &PackedLayer, chunk_steps: usize, batch: usize) -> Self {
        let (kernels, hidden) = (layer.kernels, layer.spec.hidden_size);
        let panel_width = kernels.panel_width();
        let block_stride = chunk_steps * batch * DOT_BLOCK;
        ScratchLayout {
            panel_width,
            padded_hidden: layer.padded_hidden(),
            padded_state: layer.spec.state_size().next_multiple_of(panel_width),
            block_stride,
            gate_stride: layer.padded_hidden().div_ceil(DOT_BLOCK) * block_stride,
            ld_hidden: hidden.next_multiple_of(panel_width),
            product_scratch_len: scratch_len(kernels, chunk_steps * batch)
                .max(2 * MAX_ROWS_PER_PRODUCT.max(batch) * panel_width),
        }
    }

    /// Offset of a unit from the first unit of the same row and gate in `dz`.
    pub(super) fn unit_offset(&self, unit: usize) -> usize {
        unit / DOT_BLOCK * self.block_stride + unit % DOT_BLOCK
    }
}

impl Scratch {
    /// Allocates the scratch memory for `batch` sequences of `steps` time steps.
    pub(super) fn new(layer: &PackedLayer, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        let chunk_steps = CHUNK_STEPS.min(steps);
        let layout = ScratchLayout::new(layer, chunk_steps, batch);
        let zeros = |sizes: &[usize]| Buffer::zeros("backward", sizes);
        let f_buffer_count = usize::from(layer.spec.cell == CellKind::PeepholeDense);
        let projection_count = usize::from(layer.spec.proj_size.is_some());
        Ok(Scratch {
            chunk_steps,
            threads,
            dh_carry: zeros(&[batch, layout.padded_state])?,
            dh: zeros(&[batch, layout.padded_state])?,
            dc: zeros(&[batch, layout.ld_hidden])?,
            f: zeros(&[f_buffer_count, batch, layout.ld_hidden])?,
            dh_unprojected: zeros(&[projection_count, batch, layout.ld_hidden])?,
            dh_projected: zeros(&[projection_count, chunk_steps, batch, layout.padded_state])?,
            h_unprojected: zeros(&[projection_count, chunk_steps, batch, layout.padded_hidden])?,
            dz: zeros(&[PANEL_VECTORS, layer.padded_hidden().div_ceil(DOT_BLOCK), chunk_steps, batch, DOT_BLOCK])?,
            product_scratch: zeros(&[threads, layout.product_scratch_len])?,
        })
    }
}
