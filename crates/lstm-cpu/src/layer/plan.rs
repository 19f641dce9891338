//! The workspace of a pass over one layer.

use lstm_core::{CellKind, Error, LayerSpec, Result, State, arithmetic::snap, shape::memory};

use crate::{
    kernel::table::PANEL_VECTORS,
    layer::{PackedLayer, quantized::QuantizedBuffer},
    memory::buffer::Buffer,
    pass::backward::Scratch,
};

/// The workspace of one layer for one batch size: scratch memory and the running state.
pub struct Plan {
    /// The spec of the layer for which this workspace was allocated. The unsafe code of a pass relies on its sizes.
    spec: LayerSpec,
    lanes: usize,
    /// Number of sequences.
    pub(crate) batch: usize,
    /// Number of threads of a pass.
    pub(crate) threads: usize,
    /// Number of threads of a pass while the other direction runs at the same time, or 0 if it is faster to run the
    /// directions one after the other.
    pub(crate) threads_per_direction: usize,
    /// Number of time steps whose input products are computed at once.
    pub(crate) block_steps: usize,
    /// Index of the half of `h` that holds the current state: 0 or 1.
    pub(crate) current_state_index: usize,
    /// Hidden state, double-buffered: `[2][batch][padded_state]`.
    pub(crate) h: Buffer,
    /// Cell state, `[2][batch][padded_hidden]`. Only the dense peephole cell uses the second half, because its products
    /// read the whole old state.
    pub(crate) c: Buffer,
    /// `h` before the projection, `[batch][padded_hidden]`. Empty without a projection.
    pub(crate) h_unprojected: Buffer,
    /// Input products `W x`, `[panels][block_steps * batch][panel]`.
    pub(crate) wx: Buffer,
    /// Recurrent products `U h`. `[recurrent panels + threads][panel]` for a single sequence, otherwise
    /// `[threads][recurrent panels per group][batch][panel]`.
    pub(crate) uh: Buffer,
    /// Quantized inputs of a block of time steps. Empty in an f32 layer, as is the next.
    pub(crate) quantized_input: QuantizedBuffer,
    /// Quantized operands of the recurrent product and of the projection, `[threads][batch]` rows: each thread quantizes
    /// what it multiplies.
    pub(crate) quantized_state: QuantizedBuffer,
    /// Scratch memory of the backward pass, allocated by the first backward pass.
    pub(crate) backward_scratch: Option<Scratch>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan(batch {}, {} threads)", self.batch, self.threads)
    }
}

/// Minimum number of rows of an input product, so that each panel is reused often enough.
const MIN_INPUT_PRODUCT_ROWS: usize = 64;
/// Maximum number of rows of an input product.
const MAX_INPUT_PRODUCT_ROWS: usize = 192;
/// Target size of the results of an input product, in floats, so that they stay in the cache.
const INPUT_PRODUCT_FLOATS: usize = 1 << 18;

impl Plan {
    /// Allocates a workspace for at most `steps` time steps. Chooses a number of threads, at most `threads`: small
    /// layers are faster with fewer.
    pub(crate) fn new(layer: &PackedLayer, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        // A barrier costs some tenths of a microsecond, and waking the threads more. Small layers are faster on one
        // thread, the more so if the weights stay in the first-level cache.
        let flops = layer.step_flops().saturating_mul(batch) / layer.quantized.as_ref().map_or(1, |_| 2);
        let in_first_level_cache = layer.recurrent_bytes() <= 48 << 10;
        let flops_per_thread = if in_first_level_cache { 300_000 } else { 60_000 };
        let useful_threads = if flops.saturating_mul(steps) < 2_000_000 { 1 } else { 1 + flops / flops_per_thread };
        // In the dense peephole cell, a thread with one panel would often compute two recurrent panels.
        let max_threads = if layer.shares_recurrent_panels() { layer.panels.div_ceil(2) } else { layer.panels };
        let mut plan = Plan::with_threads(layer, batch, steps, threads.min(useful_threads).min(max_threads))?;
        // With both directions at the same time there are half as many barriers, but each thread needs twice the
        // weights in its cache.
        let weights_per_thread = layer.recurrent_bytes() / (threads / 2).max(1);
        let weights_in_cache = weights_per_thread <= 1 << 20 || batch >= 8;
        if threads.is_multiple_of(2) && weights_in_cache && flops.saturating_mul(2 * steps) >= 2_000_000 {
            plan.threads_per_direction = plan.threads.min(threads / 2);
        }
        Ok(plan)
    }

    /// Allocates a workspace for exactly `threads` threads, even if some have nothing to do.
    pub(crate) fn with_threads(layer: &PackedLayer, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        let width = PANEL_VECTORS * layer.kernels.lanes;
        if batch == 0 {
            return Err(Error::shape("plan: batch", "at least 1", 0));
        }
        let rows =
            (INPUT_PRODUCT_FLOATS / (layer.panels * width)).clamp(MIN_INPUT_PRODUCT_ROWS, MAX_INPUT_PRODUCT_ROWS);
        let block_steps = (rows / batch).clamp(1, steps.max(1));
        let zeros = |sizes: &[usize]| Buffer::zeros("plan", sizes);
        let projection_count = usize::from(layer.spec.proj_size.is_some());
        Ok(Plan {
            spec: layer.spec,
            lanes: layer.kernels.lanes,
            batch,
            threads,
            threads_per_direction: 0,
            block_steps,
            current_state_index: 0,
            h: zeros(&[2, batch, layer.padded_state()])?,
            c: zeros(&[2, batch, layer.padded_hidden()])?,
            h_unprojected: zeros(&[projection_count, batch, layer.padded_hidden()])?,
            wx: zeros(&[layer.panels, block_steps, batch, width])?,
            uh: match batch {
                1 => zeros(&[layer.recurrent_panels(0..layer.panels).len() + threads, width])?,
                _ => zeros(&[threads, layer.recurrent_panels_per_group(), batch, width])?,
            },
            quantized_input: QuantizedBuffer::new(layer, block_steps * batch, layer.spec.input_size)?,
            quantized_state: QuantizedBuffer::new(
                layer,
                threads * batch,
                layer.spec.state_size().max(layer.spec.hidden_size),
            )?,
            backward_scratch: None,
        })
    }

    /// Whether this workspace was allocated for a layer with the same spec and kernels as `layer`.
    pub(crate) fn matches(&self, layer: &PackedLayer) -> bool {
        self.spec == layer.spec && self.lanes == layer.kernels.lanes
    }

    /// The hidden state of sequence `b` in half `state_index` of `h`, without padding.
    pub(crate) fn h_row(&self, layer: &PackedLayer, state_index: usize, b: usize) -> &[f32] {
        let cols = layer.padded_state();
        &self.h.as_slice()[(state_index * self.batch + b) * cols..][..layer.spec.state_size()]
    }

    /// The cell state of sequence `b` in half `state_index` of `c`, without padding.
    pub(crate) fn c_row(&self, layer: &PackedLayer, state_index: usize, b: usize) -> &[f32] {
        let cols = layer.padded_hidden();
        &self.c.as_slice()[(state_index * self.batch + b) * cols..][..layer.spec.hidden_size]
    }

    /// Sets the state to `h: [batch, state_size]` and `c: [batch, hidden_size]`, snapped. Writes both halves of the
    /// double buffers: in a reverse layer, shorter sequences start later, when either half may be the current one.
    pub(crate) fn set_state(&mut self, layer: &PackedLayer, h: &[f32], c: &[f32]) {
        let batch = self.batch;
        self.current_state_index = 0;
        let fill_snapped = |to: &mut Buffer, padded_len: usize, from: &[f32], cols: usize| {
            for (row, to) in to.as_mut_slice().chunks_exact_mut(padded_len).enumerate() {
                let from = &from[row % batch * cols..][..cols];
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = snap(v));
            }
        };
        fill_snapped(&mut self.h, layer.padded_state(), h, layer.spec.state_size());
        fill_snapped(&mut self.c, layer.padded_hidden(), c, layer.spec.hidden_size);
    }

    /// Sets the current state of the sequences from number `first_sequence` on to the rows of `h` and `c`, snapped.
    pub(crate) fn set_state_rows(&mut self, layer: &PackedLayer, first_sequence: usize, h: &[f32], c: &[f32]) {
        let fill_snapped = |to: &mut Buffer, first_row: usize, padded: usize, from: &[f32], cols: usize| {
            let rows = to.as_mut_slice()[first_row * padded..].chunks_exact_mut(padded);
            for (to, from) in rows.zip(from.chunks_exact(cols)) {
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = snap(v));
            }
        };
        let (index, spec) = (self.current_state_index, &layer.spec);
        let h_row = index * self.batch + first_sequence;
        let c_row = Plan::c_state_index(spec.cell, index) * self.batch + first_sequence;
        fill_snapped(&mut self.h, h_row, layer.padded_state(), h, spec.state_size());
        fill_snapped(&mut self.c, c_row, layer.padded_hidden(), c, spec.hidden_size);
    }

    /// The state after a pass over `steps` time steps: `h: [batch, state_size]` and `c: [batch, hidden_size]`. In a
    /// forward layer, a sequence ends after its own length; in a reverse layer, all end after `steps`.
    pub(crate) fn last_state(
        &self,
        layer: &PackedLayer,
        steps: usize,
        lengths: Option<&[usize]>,
    ) -> Result<State<Vec<f32>>> {
        let mut state = State {
            h: memory::with_capacity("forward", &[self.batch, layer.spec.state_size()])?,
            c: memory::with_capacity("forward", &[self.batch, layer.spec.hidden_size])?,
        };
        for b in 0..self.batch {
            let executed_steps = match lengths {
                Some(lengths) if !layer.spec.reverse => lengths[b],
                _ => steps,
            };
            state.h.extend_from_slice(self.h_row(layer, executed_steps % 2, b));
            state.c.extend_from_slice(self.c_row(layer, Plan::c_state_index(layer.spec.cell, executed_steps % 2), b));
        }
        Ok(state)
    }

    /// Index of the half of `c` that holds the current cell state. `h_state_index` is the index of the half of `h` that
    /// holds the current hidden state.
    pub(crate) fn c_state_index(cell: CellKind, h_state_index: usize) -> usize {
        if cell == CellKind::PeepholeDense { h_state_index } else { 0 }
    }
}
