//! What a forward pass of training keeps.

use std::sync::Arc;

use lstm_core::{LayerSpec, Result, State, arithmetic::snap};

use crate::{buffer::Buffer, kernels::PANEL_VECTORS, layer::Packed, pool::Pool, tensor::Tensor};

/// The input, the state around each step and the gates of each, of one layer over one batch of sequences.
pub struct Trace {
    spec: LayerSpec,
    lanes: usize,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) lengths: Option<Vec<usize>>,
    /// Snapped, `[steps * batch, input]`.
    pub(crate) x: Tensor,
    /// `[steps + 1][batch][padded state]`, in the sequence's order; see [`Trace::places`].
    pub(crate) h: Buffer,
    /// `[steps + 1][batch][padded]`
    pub(crate) c: Buffer,
    /// `[panels][steps * batch][panel]`
    pub(crate) gates: Buffer,
    /// Where the memory comes from and goes to.
    pool: Arc<Pool>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        for buffer in [&mut self.h, &mut self.c, &mut self.gates] {
            self.pool.spares.give(std::mem::take(buffer));
        }
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({} steps, batch {})", self.steps, self.batch)
    }
}

impl Trace {
    /// For a checked sequence that starts from rows of `h` and `c`.
    pub(crate) fn new(
        pool: &Arc<Pool>,
        layer: &Packed,
        x: Tensor,
        (steps, batch): (usize, usize),
        lengths: Option<&[usize]>,
        (h, c): (&[f32], &[f32]),
    ) -> Result<Self> {
        let width = PANEL_VECTORS * layer.kernels.lanes;
        // The pass writes all of it that a result depends on.
        let buffer = |sizes: &[usize]| pool.spares.take("forward_train", sizes);
        let mut trace = Trace {
            spec: layer.spec,
            lanes: layer.kernels.lanes,
            steps,
            batch,
            lengths: lengths.map(<[_]>::to_vec),
            x,
            h: buffer(&[steps + 1, batch, layer.padded_state()])?,
            c: buffer(&[steps + 1, batch, layer.padded()])?,
            gates: buffer(&[layer.panels, steps, batch, width])?,
            pool: pool.clone(),
        };
        let first = if layer.spec.reverse { steps } else { 0 };
        let fill = |to: &mut Buffer, padded: usize, from: &[f32]| {
            let to = to.as_mut_slice()[first * batch * padded..].chunks_exact_mut(padded);
            for (to, from) in to.zip(from.chunks_exact(from.len() / batch)) {
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = snap(v));
            }
        };
        fill(&mut trace.h, layer.padded_state(), h);
        fill(&mut trace.c, layer.padded(), c);
        Ok(trace)
    }

    /// The places of the state before and after step `t`.
    pub(crate) fn places(reverse: bool, t: usize) -> (usize, usize) {
        if reverse { (t + 1, t) } else { (t, t + 1) }
    }

    /// Rows of `h` and `c` after the last step of the walk.
    pub(crate) fn last_state(&self, layer: &Packed) -> State<Vec<f32>> {
        let last = if self.spec.reverse { 0 } else { self.steps };
        let rows = |from: &Buffer, padded: usize, cols: usize| {
            let from = from.as_slice()[last * self.batch * padded..].chunks_exact(padded).take(self.batch);
            from.flat_map(|row| row[..cols].iter().copied()).collect()
        };
        State {
            h: rows(&self.h, layer.padded_state(), self.spec.state_size()),
            c: rows(&self.c, layer.padded(), self.spec.hidden_size),
        }
    }

    /// Whether it was made by a layer like this one.
    pub(crate) fn fits(&self, layer: &Packed) -> bool {
        self.spec == layer.spec && self.lanes == layer.kernels.lanes
    }

    /// How many sequences have a step `t`; they are the first rows.
    pub(crate) fn active(&self, t: usize) -> usize {
        self.lengths.as_ref().map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }
}
