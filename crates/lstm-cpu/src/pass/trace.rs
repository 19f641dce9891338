//! What a forward pass saves for the backward pass.

use std::sync::Arc;

use lstm_core::{LayerSpec, Result, State, arithmetic::snap, shape::memory};

use crate::{
    kernel::table::PANEL_VECTORS,
    layer::PackedLayer,
    memory::{buffer::Buffer, tensor::Tensor},
    pool::ThreadPool,
};

/// What a forward pass of one layer saves for the backward pass: the input, the states before and after every time
/// step, and the gates of every time step.
pub struct Trace {
    spec: LayerSpec,
    lanes: usize,
    /// Number of time steps.
    pub(crate) steps: usize,
    /// Number of sequences.
    pub(crate) batch: usize,
    /// Length of each sequence, in descending order. `None` if all have `steps` time steps.
    pub(crate) lengths: Option<Vec<usize>>,
    /// [Snapped](snap) input, in which magnitudes below 2^-40 are +0, `[steps * batch, input_size]`.
    pub(crate) x: Tensor,
    /// Hidden states, `[steps + 1][batch][padded_state]`; see [`Trace::state_indices`].
    pub(crate) h: Buffer,
    /// Cell states, `[steps + 1][batch][padded_hidden]`; see [`Trace::state_indices`].
    pub(crate) c: Buffer,
    /// Values of the gates, `[panels][steps * batch][panel]`.
    pub(crate) gates: Buffer,
    /// The memory pool that owns the buffer. The buffer goes back to it when the trace is dropped.
    pool: Arc<ThreadPool>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        for buffer in [&mut self.h, &mut self.c, &mut self.gates] {
            self.pool.free_buffers.put(std::mem::take(buffer));
        }
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({} steps, batch {})", self.steps, self.batch)
    }
}

impl Trace {
    /// Allocates a trace for a sequence that starts from `h: [batch, state_size]` and `c: [batch, hidden_size]`, which
    /// are snapped.
    pub(crate) fn new(
        pool: &Arc<ThreadPool>,
        layer: &PackedLayer,
        x: Tensor,
        (steps, batch): (usize, usize),
        lengths: Option<&[usize]>,
        (h, c): (&[f32], &[f32]),
    ) -> Result<Self> {
        let width = PANEL_VECTORS * layer.kernels.lanes;
        // Unspecified contents are safe: the pass writes everything on which a result depends.
        let unspecified_buffer = |sizes: &[usize]| pool.free_buffers.unspecified_buffer("forward_train", sizes);
        let mut trace = Trace {
            spec: layer.spec,
            lanes: layer.kernels.lanes,
            steps,
            batch,
            lengths: lengths.map(|lengths| memory::copy("forward_train", lengths)).transpose()?,
            x,
            h: unspecified_buffer(&[steps + 1, batch, layer.padded_state()])?,
            c: unspecified_buffer(&[steps + 1, batch, layer.padded_hidden()])?,
            gates: unspecified_buffer(&[layer.panels, steps, batch, width])?,
            pool: pool.clone(),
        };
        let first_index = if layer.spec.reverse { steps } else { 0 };
        let fill_snapped = |to: &mut Buffer, padded_len: usize, from: &[f32]| {
            let to = to.as_mut_slice()[first_index * batch * padded_len..].chunks_exact_mut(padded_len);
            for (to, from) in to.zip(from.chunks_exact(from.len() / batch)) {
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = snap(v));
            }
        };
        fill_snapped(&mut trace.h, layer.padded_state(), h);
        fill_snapped(&mut trace.c, layer.padded_hidden(), c);
        Ok(trace)
    }

    /// Indices in `h` and `c` of the states before and after time step `t`. States are stored in time order, also those
    /// of a reverse layer.
    pub(crate) fn state_indices(reverse: bool, t: usize) -> (usize, usize) {
        if reverse { (t + 1, t) } else { (t, t + 1) }
    }

    /// The final state: `h: [batch, state_size]` and `c: [batch, hidden_size]`.
    pub(crate) fn last_state(&self, layer: &PackedLayer) -> Result<State<Vec<f32>>> {
        let last_index = if self.spec.reverse { 0 } else { self.steps };
        let unpadded_rows = |from: &Buffer, padded_len: usize, cols: usize| {
            let from =
                from.as_slice()[last_index * self.batch * padded_len..].chunks_exact(padded_len).take(self.batch);
            memory::collect("forward_train", self.batch * cols, from.flat_map(|row| row[..cols].iter().copied()))
        };
        Ok(State {
            h: unpadded_rows(&self.h, layer.padded_state(), self.spec.state_size())?,
            c: unpadded_rows(&self.c, layer.padded_hidden(), self.spec.hidden_size)?,
        })
    }

    /// Whether this trace was made by a layer with the same spec and kernels as `layer`.
    pub(crate) fn matches(&self, layer: &PackedLayer) -> bool {
        self.spec == layer.spec && self.lanes == layer.kernels.lanes
    }

    /// Number of sequences that have a time step `t`. They are the first rows of the batch.
    pub(crate) fn active_sequences(&self, t: usize) -> usize {
        self.lengths.as_ref().map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }
}
