//! A layer's weights, packed into panels.
//!
//! A panel of gate weights holds the four gates of `lanes` units side by side, one vector per gate. One product with
//! the panel therefore yields everything that the cell of these units needs. The panels of the last units are padded
//! with zeros.
//!
//! The candidate of the dense peephole cell has no recurrent weights. In that cell, the recurrent vectors of three
//! gates are packed without gaps: a *group* of four panels shares three recurrent panels. A quantized layer has gaps
//! instead.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use lstm_core::{CellKind, LayerSpec, LayerWeights, Param, Precision, Result, arithmetic::snap, shape::zeros};

use crate::{
    Isa,
    kernel::{
        cell::CellArgs,
        quantized::{QuantizedKernels, QuantizedSingleRowArgs},
        single_row::SingleRowArgs,
        table::{Kernels, PANEL_VECTORS},
    },
    layer::{
        backward_weights::{self, BackwardWeights},
        quantized::{QuantizedLayer, QuantizedPanels},
    },
    memory::{
        buffer::{Buffer, CACHE_LINE_FLOATS},
        free_list::FreeList,
    },
    pool::ThreadPool,
};

/// The weights of one layer in one direction, snapped and packed into panels.
pub(crate) struct PackedLayer {
    /// Sizes and options of the layer.
    pub(crate) spec: LayerSpec,
    /// The kernels for which the weights are packed.
    pub(crate) kernels: &'static Kernels,
    /// Number of panels that the hidden units fill.
    pub(crate) panels: usize,
    /// Input weights, `[panels][input_size][panel]`. This and the other matrices are empty in a quantized layer.
    pub(crate) w: Buffer,
    /// Recurrent weights, `[recurrent panels][state_size][panel]`.
    pub(crate) u: Buffer,
    /// Bias, `[panels][panel]`. Zero if the layer has none: adding zero changes no sum, because no sum is -0.
    pub(crate) bias: Buffer,
    /// Diagonal peephole weights of the gates i, f and o, `[panels][3][lanes]`. Empty if the layer has none.
    pub(crate) peephole: Buffer,
    /// Projection weights, `[projection panels][hidden_size][panel]`. Empty if the layer has none.
    pub(crate) projection: Buffer,
    /// The matrices of a quantized layer.
    pub(crate) quantized: Option<QuantizedLayer>,
    /// Weights packed for the backward pass. Empty until the first backward pass.
    backward_weights: OnceLock<BackwardWeights>,
    /// Input weights packed for the gradient of the input. Empty until that gradient is first computed.
    backward_input_weights: OnceLock<Buffer>,
    /// The pool that receives the memory of the weights when this layer is dropped. The next training step reuses it,
    /// because it packs new weights of the same sizes.
    pub(crate) pool: Arc<ThreadPool>,
}

impl Drop for PackedLayer {
    fn drop(&mut self) {
        let backward_recurrent_weights = self.backward_weights.take().map(|weights| weights.u);
        let backward_buffers = backward_recurrent_weights.into_iter().chain(self.backward_input_weights.take());
        for buffer in [std::mem::take(&mut self.w), std::mem::take(&mut self.u)].into_iter().chain(backward_buffers) {
            self.pool.free_buffers.put(buffer);
        }
    }
}

/// Indices of all gates. The weights hold the gates in the order i, f, g, o.
pub(crate) const ALL_GATES: [usize; PANEL_VECTORS] = [0, 1, 2, 3];

/// Indices of the gates that have recurrent weights: all, except the candidate of the dense peephole cell.
pub(crate) fn recurrent_gates(cell: CellKind) -> &'static [usize] {
    if cell == CellKind::PeepholeDense { &[0, 1, 3] } else { &ALL_GATES }
}

impl PackedLayer {
    /// Snaps and packs `weights` for the kernels of `isa`, which the processor supports.
    pub(crate) fn new(isa: Isa, pool: &Arc<ThreadPool>, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let quantized_kernels = isa.quantized_kernels(spec.precision);
        let kernels = match quantized_kernels {
            Some(quantized_kernels) => quantized_kernels.kernels,
            None => isa.kernels().expect("the processor supports the instruction set"),
        };
        let (hidden, lanes) = (spec.hidden_size, kernels.lanes);
        let panels = hidden.div_ceil(lanes);
        let weight_slice = |param| weights.get(param).and_then(|v| v.as_slice());
        let quantized =
            quantized_kernels.map(|kernels| pack_quantized(kernels, panels, weights)).transpose()?.flatten();
        // The float matrices, unless the layer is quantized.
        let matrix_slice = |param| weight_slice(param).filter(|_| quantized.is_none());
        let matrix_panels = if quantized.is_none() { panels } else { 0 };
        let pack_gates = |panels: usize, matrix: Option<&[f32]>, cols: usize, gates: &[usize]| {
            let (matrix, panels) = (matrix.unwrap_or_default(), (panels * gates.len()).div_ceil(PANEL_VECTORS));
            pack_columns(kernels, &pool.free_buffers, panels, cols, |p, j| {
                let vector_index = p * PANEL_VECTORS + j / lanes;
                let (gate, unit) = (gates[vector_index % gates.len()], vector_index / gates.len() * lanes + j % lanes);
                (unit < hidden).then(|| &matrix[(gate * hidden + unit) * cols..][..cols])
            })
        };
        let bias = match weights.bias()? {
            Some(bias) => bias,
            None => zeros("load", &[4, hidden])?,
        };
        let peepholes = [Param::PeepholeI, Param::PeepholeF, Param::PeepholeO].map(weight_slice);
        let mut peephole = Buffer::zeros("load", &[0])?;
        if let [Some(i), Some(f), Some(o)] = peepholes {
            peephole = Buffer::zeros("load", &[panels, 3, lanes])?;
            for (k, v) in peephole.as_mut_slice().iter_mut().enumerate() {
                let unit = k / (3 * lanes) * lanes + k % lanes;
                *v = snap(*[i, f, o][k / lanes % 3].get(unit).unwrap_or(&0.0));
            }
        }
        let projection = match (matrix_slice(Param::WeightHr), spec.proj_size) {
            (Some(matrix), Some(size)) => {
                let width = kernels.panel_width();
                pack_columns(kernels, &pool.free_buffers, size.div_ceil(width), hidden, |p, j| {
                    matrix.chunks_exact(hidden).nth(p * width + j)
                })?
            }
            _ => Buffer::zeros("load", &[0])?,
        };
        Ok(PackedLayer {
            spec,
            kernels,
            panels,
            w: pack_gates(matrix_panels, matrix_slice(Param::WeightIh), spec.input_size, &ALL_GATES)?,
            u: pack_gates(matrix_panels, matrix_slice(Param::WeightHh), spec.state_size(), recurrent_gates(spec.cell))?,
            bias: pack_gates(panels, Some(&bias), 1, &ALL_GATES)?,
            peephole,
            projection,
            quantized,
            backward_weights: OnceLock::new(),
            backward_input_weights: OnceLock::new(),
            pool: pool.clone(),
        })
    }

    /// The weights packed for the backward pass.
    pub(crate) fn backward_weights(&self) -> Result<&BackwardWeights> {
        get_or_try_init(&self.backward_weights, || BackwardWeights::new(self))
    }

    /// The input weights packed for the gradient of the input, `[input panels][4 gates][hidden_size][panel]`.
    pub(crate) fn backward_input_weights(&self) -> Result<&Buffer> {
        get_or_try_init(&self.backward_input_weights, || {
            backward_weights::transpose_panels(self, &self.w, self.spec.input_size, &ALL_GATES)
        })
    }

    // The methods below run in every time step, so they use constants rather than the length of `recurrent_gates`.

    /// Whether panels share recurrent panels: in the dense peephole cell with f32 weights. Only three of its gates have
    /// recurrent weights, so the gates of four panels fill three recurrent panels.
    pub(super) fn shares_recurrent_panels(&self) -> bool {
        self.spec.cell == CellKind::PeepholeDense && self.spec.precision == Precision::F32
    }

    /// The recurrent panels that hold the recurrent weights of `panels`. The first and the last may also hold weights
    /// of other panels.
    pub(crate) fn recurrent_panels(&self, panels: Range<usize>) -> Range<usize> {
        if self.shares_recurrent_panels() && !panels.is_empty() {
            panels.start * 3 / 4..(panels.end * 3).div_ceil(4)
        } else {
            panels
        }
    }

    /// Returns where the recurrent weights of `gate` of `panel` are: the index of a recurrent panel, and the index of a
    /// vector in it. The result is arbitrary for a candidate without recurrent weights.
    pub(crate) fn recurrent_vector_position(&self, panel: usize, gate: usize) -> (usize, usize) {
        let vector_index = 3 * panel + [0, 1, 0, 2][gate];
        if self.shares_recurrent_panels() { (vector_index / 4, vector_index % 4) } else { (panel, gate) }
    }

    /// Number of recurrent panels in a group; see [`groups_of_panels`](Self::groups_of_panels).
    pub(crate) fn recurrent_panels_per_group(&self) -> usize {
        if self.shares_recurrent_panels() { 3 } else { 1 }
    }

    /// Index of recurrent panel `r` within its group; see [`groups_of_panels`](Self::groups_of_panels).
    pub(crate) fn index_in_group(&self, r: usize) -> usize {
        if self.shares_recurrent_panels() { r % 3 } else { 0 }
    }

    /// The groups that contain any of `panels`. A group is the smallest set of panels that shares no recurrent panel
    /// with other panels: four panels in the dense peephole cell, one panel in other cells.
    pub(crate) fn groups_of_panels(&self, panels: Range<usize>) -> Range<usize> {
        if self.shares_recurrent_panels() && !panels.is_empty() {
            panels.start / 4..panels.end.div_ceil(4)
        } else {
            panels
        }
    }

    /// The panels of group `n`. The range may extend beyond the last panel.
    pub(crate) fn panels_of_group(&self, n: usize) -> Range<usize> {
        if self.shares_recurrent_panels() { 4 * n..4 * n + 4 } else { n..n + 1 }
    }

    /// Whether there is a kernel that computes a whole time step of one row of this layer.
    pub(crate) fn has_single_row_kernel(&self) -> bool {
        self.panels
            <= match &self.quantized {
                Some(quantized) => quantized.kernels.single_row_kernels.len(),
                None => self.kernels.single_row_kernels.len(),
            }
    }

    /// Computes a whole time step of one row, for which there must be a kernel. If `input` is null, `cell_args.wx`
    /// holds the input products already. `scratch` is a row of
    /// [`Plan::quantized_input`](super::Plan::quantized_input) and one of `quantized_state`.
    ///
    /// # Safety
    /// The pointers are valid for what [`SingleRowArgs`] and [`QuantizedSingleRowArgs`] describe.
    // Inlined: a call would copy the arguments, which takes a few percent of a small step.
    #[inline(always)]
    pub(crate) unsafe fn single_row_step(
        &self,
        input: *const f32,
        recurrent_operand: *const f32,
        cell_args: CellArgs,
        scratch: [*mut i32; 2],
    ) {
        let (input_len, recurrent_operand_len) = (self.spec.input_size, self.spec.state_size());
        // SAFETY: guaranteed by the caller.
        unsafe {
            match &self.quantized {
                Some(quantized) => {
                    quantized.kernels.single_row_kernels[self.panels - 1](&QuantizedSingleRowArgs {
                        table: &quantized.table,
                        recurrent_operand,
                        recurrent_operand_len,
                        range: self.spec.recurrent_range(),
                        u: quantized.u.panel(0),
                        cell_args,
                        input,
                        input_len,
                        w: quantized.w.panel(0),
                        scratch,
                    });
                }
                None => self.kernels.single_row_kernels[self.panels - 1](&SingleRowArgs {
                    recurrent_operand,
                    recurrent_operand_len,
                    u: self.u.as_ptr(),
                    cell_args,
                    input,
                    input_len,
                    w: self.w.as_ptr(),
                }),
            }
        }
    }

    /// Number of floats in a padded row of `c`, and of `h` before a projection.
    pub(crate) fn padded_hidden(&self) -> usize {
        self.panels * self.kernels.lanes
    }

    /// Number of floats in a padded row of `h`, after the projection if there is one.
    pub(crate) fn padded_state(&self) -> usize {
        match self.spec.proj_size {
            Some(size) => size.next_multiple_of(self.kernels.panel_width()),
            None => self.padded_hidden(),
        }
    }

    /// Number of floating-point operations per time step and sequence, without the input products.
    pub(crate) fn step_flops(&self) -> usize {
        let projection_flops = self.spec.proj_size.unwrap_or(0) * 2;
        self.spec.hidden_size * (2 * recurrent_gates(self.spec.cell).len() * self.spec.state_size() + projection_flops)
    }

    /// Number of bytes of the recurrent weights.
    pub(super) fn recurrent_bytes(&self) -> usize {
        self.quantized.as_ref().map_or(size_of_val(self.u.as_slice()), |quantized| quantized.u.bytes())
    }
}

/// Packs the matrices of a quantized layer whose hidden units fill `panels` panels. Returns `None` for f32 weights.
fn pack_quantized(
    kernels: &'static QuantizedKernels,
    panels: usize,
    weights: &LayerWeights,
) -> Result<Option<QuantizedLayer>> {
    let (spec, lanes, width) = (weights.spec(), kernels.kernels.lanes, kernels.kernels.panel_width());
    let (Some(w), Some(u), Some(format)) =
        (weights.quantized(Param::WeightIh)?, weights.quantized(Param::WeightHh)?, spec.precision.format())
    else {
        return Ok(None);
    };
    let gate_row = |panel: usize, index: usize| {
        let (gate, unit) = (index / lanes, panel * lanes + index % lanes);
        (unit < spec.hidden_size).then_some((gate, gate * spec.hidden_size + unit))
    };
    let has_recurrent_weights = |gate: usize| recurrent_gates(spec.cell).contains(&gate);
    let projection = match (weights.quantized(Param::WeightHr)?, spec.proj_size) {
        (Some(matrix), Some(size)) => Some(QuantizedPanels::new(kernels, &matrix, size.div_ceil(width), |p, j| {
            Some(p * width + j).filter(|row| *row < size)
        })?),
        _ => None,
    };
    Ok(Some(QuantizedLayer {
        kernels,
        table: format.scale_table(),
        w: QuantizedPanels::new(kernels, &w, panels, |p, j| gate_row(p, j).map(|(_, row)| row))?,
        u: QuantizedPanels::new(kernels, &u, panels, |p, j| {
            gate_row(p, j).filter(|(gate, _)| has_recurrent_weights(*gate)).map(|(_, row)| row)
        })?,
        projection,
    }))
}

/// Returns the value of `cell`. If the cell is empty, `init` computes the value first.
fn get_or_try_init<T>(cell: &OnceLock<T>, init: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = init()?;
    Ok(cell.get_or_init(|| value))
}

/// Snaps and packs columns of `k` elements into `[panels][k][panel]`. `get_column(panel, index)` returns a column of a
/// panel, or `None` for padding.
fn pack_columns<'a>(
    kernels: &Kernels,
    free_buffers: &FreeList<Buffer>,
    panels: usize,
    k: usize,
    get_column: impl Fn(usize, usize) -> Option<&'a [f32]>,
) -> Result<Buffer> {
    let width = kernels.panel_width();
    let mut out = free_buffers.zeros("load", &[panels, k, width])?;
    for (p, panel) in out.as_mut_slice().chunks_exact_mut(k * width).enumerate() {
        // One cache line of each column at a time, so that the rows written stay in the first-level cache.
        for (line, rows) in panel.chunks_mut(CACHE_LINE_FLOATS * width).enumerate() {
            for j in 0..width {
                let Some(column) = get_column(p, j) else { continue };
                let column = &column[line * CACHE_LINE_FLOATS..];
                rows[j..].iter_mut().step_by(width).zip(column).for_each(|(to, v)| *to = snap(*v));
            }
        }
    }
    Ok(out)
}
