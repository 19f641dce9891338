//! A layer's weights packed for the backward pass: products over the units of each gate instead of products that give
//! them. Made when a layer first runs backward.

use lstm_core::Result;

use crate::{
    buffer::Buffer,
    kernels::PANEL_VECTORS,
    layer::{Packed, seeing},
};

/// Panels whose columns are what the forward products run over.
pub(crate) struct Reversed {
    /// `[state panels][4 gates][hidden][panel]`
    pub(crate) u: Buffer,
    /// `[hidden panels][proj][panel]`, or empty.
    pub(crate) projection: Buffer,
}

impl Reversed {
    pub(crate) fn new(layer: &Packed) -> Result<Self> {
        let (spec, width) = (layer.spec, layer.kernels.panel());
        let projection = match spec.proj_size {
            Some(size) => {
                let mut out = Buffer::zeros("backward", &[spec.hidden_size.div_ceil(width), size, width])?;
                // [proj panels][hidden][panel] to [hidden panels][proj][panel].
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
        Ok(Reversed { u: turned(layer, &layer.u, spec.state_size(), seeing(spec.cell))?, projection })
    }
}

/// `[panels][cols][panel]` of units by `gates` to `[column panels][4 gates][hidden][panel]`.
pub(crate) fn turned(layer: &Packed, from: &Buffer, cols: usize, gates: &[usize]) -> Result<Buffer> {
    let (hidden, lanes, width) = (layer.spec.hidden_size, layer.kernels.lanes, layer.kernels.panel());
    let mut out = layer.pool.spares.zeros("backward", &[cols.div_ceil(width), PANEL_VECTORS, hidden, width])?;
    let to = out.as_mut_slice();
    for (p, panel) in from.as_slice().chunks_exact(cols * width).enumerate() {
        // A block of columns at a time stays in the first-level cache.
        for (block, from) in panel.chunks(width * width).enumerate() {
            for j in 0..PANEL_VECTORS {
                let vector = p * PANEL_VECTORS + j;
                let (gate, unit) = (gates[vector % gates.len()], vector / gates.len() * lanes);
                if unit >= hidden {
                    continue;
                }
                let units = lanes.min(hidden - unit);
                let first = (block * PANEL_VECTORS + gate) * hidden + unit;
                let rows = &mut to[first * width..][..units * width];
                for (col, from) in from.chunks_exact(width).enumerate() {
                    let from = &from[j * lanes..][..units];
                    rows.chunks_exact_mut(width).zip(from).for_each(|(row, v)| row[col] = *v);
                }
            }
        }
    }
    Ok(out)
}
