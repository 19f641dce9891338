//! A layer's weights, packed for the backward pass: transposed, because the matrix products of the backward pass sum
//! over the units of each gate. The weights are packed when a layer first runs backward.

use lstm_core::Result;

use crate::{
    kernel::table::PANEL_VECTORS,
    layer::{PackedLayer, recurrent_gates},
    memory::buffer::Buffer,
};

/// The transposed recurrent and projection weights of a layer, packed into panels.
pub(crate) struct BackwardWeights {
    /// Recurrent weights, `[state panels][4 gates][hidden_size][panel]`.
    pub(crate) u: Buffer,
    /// Projection weights, `[hidden panels][proj_size][panel]`. Empty if the layer has none.
    pub(crate) projection: Buffer,
}

impl BackwardWeights {
    /// Transposes and packs the weights of `layer`.
    pub(crate) fn new(layer: &PackedLayer) -> Result<Self> {
        let (spec, width) = (layer.spec, layer.kernels.panel_width());
        let projection = match spec.proj_size {
            Some(size) => {
                let mut out = Buffer::zeros("backward", &[spec.hidden_size.div_ceil(width), size, width])?;
                // From [proj panels][hidden_size][panel] to [hidden panels][proj_size][panel].
                let from = layer.projection.as_slice();
                let to = out.as_mut_slice();
                for unit in 0..spec.hidden_size {
                    for p in 0..size {
                        to[(unit / width * size + p) * width + unit % width] =
                            from[(p / width * spec.hidden_size + unit) * width + p % width];
                    }
                }
                out
            }
            None => Buffer::zeros("backward", &[0])?,
        };
        let u = transpose_panels(layer, &layer.u, spec.state_size(), recurrent_gates(spec.cell))?;
        Ok(BackwardWeights { u, projection })
    }
}

/// Transposes packed gate weights from `[panels][cols][panel]` to `[column panels][4 gates][hidden_size][panel]`.
/// `gates` are the gates that `packed_weights` holds. The result is zero for other gates.
pub(crate) fn transpose_panels(
    layer: &PackedLayer,
    packed_weights: &Buffer,
    cols: usize,
    gates: &[usize],
) -> Result<Buffer> {
    let (hidden, lanes, width) = (layer.spec.hidden_size, layer.kernels.lanes, layer.kernels.panel_width());
    let mut out = layer.pool.free_buffers.zeros("backward", &[cols.div_ceil(width), PANEL_VECTORS, hidden, width])?;
    let to = out.as_mut_slice();
    for (p, panel) in packed_weights.as_slice().chunks_exact(cols * width).enumerate() {
        // One block of columns at a time, so that it stays in the first-level cache.
        for (block, block_rows) in panel.chunks(width * width).enumerate() {
            for j in 0..PANEL_VECTORS {
                let vector_index = p * PANEL_VECTORS + j;
                let (gate, unit) = (gates[vector_index % gates.len()], vector_index / gates.len() * lanes);
                if unit >= hidden {
                    continue;
                }
                let units = lanes.min(hidden - unit);
                let first_row = (block * PANEL_VECTORS + gate) * hidden + unit;
                let rows = &mut to[first_row * width..][..units * width];
                for (col, row_values) in block_rows.chunks_exact(width).enumerate() {
                    let gate_values = &row_values[j * lanes..][..units];
                    rows.chunks_exact_mut(width).zip(gate_values).for_each(|(row, v)| row[col] = *v);
                }
            }
        }
    }
    Ok(out)
}
