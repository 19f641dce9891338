//! The weights of a quantized layer, packed into panels of integers.

use lstm_core::{Result, quantized::ScaleTable, weights::QuantizedRows};

use crate::{
    kernel::quantized::{BLOCK_WORDS, IntegerRows, QuantizedKernels, QuantizedPanel},
    layer::PackedLayer,
    memory::buffer::Buffer,
};

/// The quantized weights of a layer.
#[derive(Debug)]
pub(crate) struct QuantizedLayer {
    pub(crate) kernels: &'static QuantizedKernels,
    /// The constants of the layer's format.
    pub(crate) table: ScaleTable,
    /// Input weights, in panels as those of `PackedLayer::w`.
    pub(crate) w: QuantizedPanels,
    /// Recurrent weights. In the dense peephole cell, the candidate's are zero.
    pub(crate) u: QuantizedPanels,
    /// Projection weights, if the layer has a projection.
    pub(crate) projection: Option<QuantizedPanels>,
}

/// Memory for quantized rows.
#[derive(Debug, Default)]
pub(crate) struct QuantizedBuffer {
    /// Number of words between rows.
    stride: usize,
    q: Buffer,
    factors: Buffer,
}

impl QuantizedBuffer {
    /// Memory for `rows` rows of `k` values of a quantized layer; none for an f32 layer.
    pub(super) fn new(layer: &PackedLayer, rows: usize, k: usize) -> Result<Self> {
        let Some(quantized) = &layer.quantized else { return Ok(QuantizedBuffer::default()) };
        let stride = quantized.kernels.row_stride(k);
        let zeros = |sizes: &[usize]| Buffer::zeros("plan", sizes);
        Ok(QuantizedBuffer { stride, q: zeros(&[rows, stride])?, factors: zeros(&[rows])? })
    }

    /// All rows.
    pub(crate) fn rows(&mut self) -> IntegerRows {
        IntegerRows { q: self.q.as_mut_ptr().cast(), stride: self.stride, factors: self.factors.as_mut_ptr() }
    }
}

/// A matrix of integers and its scales, packed into panels.
#[derive(Debug)]
pub(crate) struct QuantizedPanels {
    /// Number of words of a row of activations.
    words: usize,
    /// Number of words of a panel row.
    width: usize,
    /// The integers, `[panels][words][panel]`. Padding is zero.
    weights: Buffer,
    /// The integers at which the sums of each block start, `[panels][blocks][panel]`.
    starts: Buffer,
    /// The scale of each row of the matrix, `[panels][panel]`.
    scales: Buffer,
}

impl QuantizedPanels {
    /// Packs a matrix into `panels` panels. `row_of(panel, index)` returns the row in a column of a panel, or `None` for padding.
    pub(crate) fn new(
        kernels: &QuantizedKernels,
        matrix: &QuantizedRows<'_>,
        panels: usize,
        row_of: impl Fn(usize, usize) -> Option<usize>,
    ) -> Result<Self> {
        let QuantizedRows { q, scale, .. } = matrix;
        let cols = q.len() / scale.len();
        let (words, width, bytes) = (kernels.words(cols), kernels.kernels.panel_width(), kernels.bytes);
        let (blocks, per_word) = (words.div_ceil(BLOCK_WORDS), 4 / bytes);
        let mut weights = Buffer::zeros("load", &[panels, words, width])?;
        let mut starts = Buffer::zeros("load", &[panels, blocks, width])?;
        let mut scales = Buffer::zeros("load", &[panels, width])?;
        let weight_bytes: &mut [u8] = bytemuck::cast_slice_mut(weights.as_mut_slice());
        let start_integers: &mut [i32] = bytemuck::cast_slice_mut(starts.as_mut_slice());
        for (panel, index) in (0..panels).flat_map(|panel| (0..width).map(move |index| (panel, index))) {
            let Some(row) = row_of(panel, index) else { continue };
            scales.as_mut_slice()[panel * width + index] = scale[row];
            for (k, &v) in q[row * cols..][..cols].iter().enumerate() {
                let word = k / per_word;
                let to = &mut weight_bytes[((panel * words + word) * width + index) * 4 + k % per_word * bytes..];
                match bytes {
                    1 => to[0] = v as u8,
                    _ => to[..2].copy_from_slice(&v.to_ne_bytes()),
                }
                let start = &mut start_integers[(panel * blocks + word / BLOCK_WORDS) * width + index];
                *start -= kernels.activation_offset * i32::from(v);
            }
        }
        Ok(QuantizedPanels { words, width, weights, starts, scales })
    }

    /// Panel `p`.
    #[inline(always)]
    pub(crate) fn panel(&self, p: usize) -> QuantizedPanel {
        let QuantizedPanels { words, width, .. } = *self;
        let blocks = words.div_ceil(BLOCK_WORDS);
        debug_assert!((p + 1) * width <= self.scales.as_slice().len());
        QuantizedPanel {
            words,
            weights: self.weights.as_ptr().wrapping_add(p * words * width).cast(),
            starts: self.starts.as_ptr().wrapping_add(p * blocks * width).cast(),
            scales: self.scales.as_ptr().wrapping_add(p * width),
        }
    }

    /// Number of bytes of the integers.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.weights.as_slice())
    }
}
