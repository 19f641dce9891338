//! A layer's weights packed for the backward pass: products over the units of each gate instead of products that give
//! them. Made when a layer first runs backward.

use lstm_core::Result;

use crate::{buffer::Buffer, kernels::PANEL_VECTORS, layer::Packed};

/// Panels whose columns are what the forward products run over.
pub(crate) struct Reversed {
    /// `[state panels][4 gates][hidden][panel]`
    pub(crate) u: Buffer,
    /// `[input panels][4 gates][hidden][panel]`
    pub(crate) w: Buffer,
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
        Ok(Reversed {
            u: turned(layer, &layer.u, spec.state_size())?,
            w: turned(layer, &layer.w, spec.input_size)?,
            projection,
        })
    }
}

/// `[panels][cols][panel]` of units by gates to `[column panels][4 gates][hidden][panel]`.
fn turned(layer: &Packed, from: &Buffer, cols: usize) -> Result<Buffer> {
    let (hidden, lanes, width) = (layer.spec.hidden_size, layer.kernels.lanes, layer.kernels.panel());
    let mut out = Buffer::zeros("backward", &[cols.div_ceil(width), PANEL_VECTORS, hidden, width])?;
    let (from, to) = (from.as_slice(), out.as_mut_slice());
    for unit in 0..hidden {
        // A vector of columns at a time: what is written is read from as many rows.
        for first in (0..cols).step_by(width) {
            let len = width.min(cols - first);
            for gate in 0..PANEL_VECTORS {
                let at = (unit / lanes * cols + first) * width + gate * lanes + unit % lanes;
                let to = &mut to[((first / width * PANEL_VECTORS + gate) * hidden + unit) * width..][..len];
                to.iter_mut().zip(from[at..].iter().step_by(width)).for_each(|(to, v)| *to = *v);
            }
        }
    }
    Ok(out)
}
