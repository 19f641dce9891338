//! A layer's weights packed into panels, and the scratch memory of a run.
//!
//! A panel holds, for as many units as a vector has lanes, the four gates side by side: one pass over it gives all that
//! those units' cell needs. Panels of the last units are padded with zeros. The dense peephole's candidate does not see the
//! state: its recurrent panels have three vectors for those units, and the first of the next beside them.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use lstm_core::{CellKind, Error, LayerSpec, LayerWeights, Param, Result, State, arithmetic::snap};

use crate::{
    backward::Scratch,
    buffer::{Buffer, Spares},
    kernels::{Kernels, LINE, PANEL_VECTORS},
    pool::Pool,
    reversed::{self, Reversed},
};

/// One layer-direction's weights, snapped and packed. Cloning shares them.
#[derive(Clone)]
pub struct Layer(pub(crate) Arc<Packed>);

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({:?})", self.0.spec)
    }
}

pub(crate) struct Packed {
    pub(crate) spec: LayerSpec,
    pub(crate) kernels: &'static Kernels,
    /// Panels of the gates.
    pub(crate) panels: usize,
    /// `[panels][input][panel]`
    pub(crate) w: Buffer,
    /// `[recurrent panels][state][panel]`
    pub(crate) u: Buffer,
    /// `[panels][panel]`, zero without a bias: the sum it is added to is never -0.
    pub(crate) bias: Buffer,
    /// `[panels][3][lanes]`, or empty.
    pub(crate) peephole: Buffer,
    /// `[projection panels][hidden][panel]`, or empty.
    pub(crate) projection: Buffer,
    /// For the backward pass, once there was one.
    reversed: OnceLock<Reversed>,
    /// For the input's gradient, once it was asked for.
    reversed_input: OnceLock<Buffer>,
    /// Where the memory goes to: after a training step, other weights of the same sizes come.
    pub(crate) pool: Arc<Pool>,
}

impl Drop for Packed {
    fn drop(&mut self) {
        let reversed = self.reversed.take().map(|reversed| reversed.u);
        let more = reversed.into_iter().chain(self.reversed_input.take());
        for buffer in [std::mem::take(&mut self.w), std::mem::take(&mut self.u)].into_iter().chain(more) {
            self.pool.spares.give(buffer);
        }
    }
}

/// All gates, in the order of the weights: i, f, g, o.
pub(crate) const GATES: [usize; PANEL_VECTORS] = [0, 1, 2, 3];

/// The gates that see the state through the recurrent weights.
pub(crate) fn seeing(cell: CellKind) -> &'static [usize] {
    if cell == CellKind::PeepholeDense { &[0, 1, 3] } else { &GATES }
}

impl Packed {
    pub(crate) fn new(kernels: &'static Kernels, pool: &Arc<Pool>, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let (hidden, lanes) = (spec.hidden_size, kernels.lanes);
        let panels = hidden.div_ceil(lanes);
        let get = |param| weights.get(param).and_then(|v| v.as_slice());
        let gates = |matrix: Option<&[f32]>, cols: usize, seen: &[usize]| {
            let (matrix, panels) = (matrix.unwrap_or_default(), (panels * seen.len()).div_ceil(PANEL_VECTORS));
            pack(kernels, &pool.spares, panels, cols, |p, j| {
                let vector = p * PANEL_VECTORS + j / lanes;
                let (gate, unit) = (seen[vector % seen.len()], vector / seen.len() * lanes + j % lanes);
                (unit < hidden).then(|| &matrix[(gate * hidden + unit) * cols..][..cols])
            })
        };
        let bias = weights.bias();
        let peepholes = [Param::PeepholeI, Param::PeepholeF, Param::PeepholeO].map(get);
        let mut peephole = Buffer::zeros("load", &[0])?;
        if let [Some(i), Some(f), Some(o)] = peepholes {
            peephole = Buffer::zeros("load", &[panels, 3, lanes])?;
            for (k, v) in peephole.as_mut_slice().iter_mut().enumerate() {
                let unit = k / (3 * lanes) * lanes + k % lanes;
                *v = snap(*[i, f, o][k / lanes % 3].get(unit).unwrap_or(&0.0));
            }
        }
        let projection = match (get(Param::WeightHr), spec.proj_size) {
            (Some(matrix), Some(size)) => {
                let width = kernels.panel();
                pack(kernels, &pool.spares, size.div_ceil(width), hidden, |p, j| {
                    matrix.chunks_exact(hidden).nth(p * width + j)
                })?
            }
            _ => Buffer::zeros("load", &[0])?,
        };
        Ok(Packed {
            spec,
            kernels,
            panels,
            w: gates(get(Param::WeightIh), spec.input_size, &GATES)?,
            u: gates(get(Param::WeightHh), spec.state_size(), seeing(spec.cell))?,
            bias: gates(Some(bias.as_deref().unwrap_or(&vec![0.0; 4 * hidden])), 1, &GATES)?,
            peephole,
            projection,
            reversed: OnceLock::new(),
            reversed_input: OnceLock::new(),
            pool: pool.clone(),
        })
    }

    /// The weights as the backward pass wants them.
    pub(crate) fn reversed(&self) -> Result<&Reversed> {
        once(&self.reversed, || Reversed::new(self))
    }

    /// `[input panels][4 gates][hidden][panel]`: the input weights as the input's gradient wants them.
    pub(crate) fn reversed_input(&self) -> Result<&Buffer> {
        once(&self.reversed_input, || reversed::turned(self, &self.w, self.spec.input_size, &GATES))
    }

    /// Whether recurrent panels have three gates, [`seeing`]: those of four panels' units are then three. Plain numbers below, as
    /// these are asked at every step.
    fn dense(&self) -> bool {
        self.spec.cell == CellKind::PeepholeDense
    }

    /// The recurrent panels that have gates of these panels' units: the first and last may have others' as well.
    pub(crate) fn recurrent(&self, panels: Range<usize>) -> Range<usize> {
        if self.dense() && !panels.is_empty() { panels.start * 3 / 4..(panels.end * 3).div_ceil(4) } else { panels }
    }

    /// The recurrent panel, and the vector of it, that a gate of a panel's units has; of the candidate that has none, some.
    pub(crate) fn recurrent_gate(&self, panel: usize, gate: usize) -> (usize, usize) {
        let vector = 3 * panel + [0, 1, 0, 2][gate];
        if self.dense() { (vector / 4, vector % 4) } else { (panel, gate) }
    }

    /// How many recurrent panels a group of panels has.
    pub(crate) fn recurrent_each(&self) -> usize {
        if self.dense() { 3 } else { 1 }
    }

    /// Which of its group's a recurrent panel is.
    pub(crate) fn recurrent_place(&self, r: usize) -> usize {
        if self.dense() { r % 3 } else { 0 }
    }

    /// Groups of panels that share recurrent panels with no other: those that have some of `panels`.
    pub(crate) fn groups(&self, panels: Range<usize>) -> Range<usize> {
        if self.dense() && !panels.is_empty() { panels.start / 4..panels.end.div_ceil(4) } else { panels }
    }

    /// The panels of a group; the last group may have fewer.
    pub(crate) fn group(&self, n: usize) -> Range<usize> {
        if self.dense() { 4 * n..4 * n + 4 } else { n..n + 1 }
    }

    /// Floats in a row of `c`, and of `h` before a projection.
    pub(crate) fn padded(&self) -> usize {
        self.panels * self.kernels.lanes
    }

    /// Floats in a row of `h` after a projection, if there is one.
    pub(crate) fn padded_state(&self) -> usize {
        match self.spec.proj_size {
            Some(size) => size.next_multiple_of(self.kernels.panel()),
            None => self.padded(),
        }
    }

    /// Multiplications and additions of a step of one sequence in the time loop.
    pub(crate) fn step_flops(&self) -> usize {
        let projection = self.spec.proj_size.unwrap_or(0) * 2;
        self.spec.hidden_size * (2 * seeing(self.spec.cell).len() * self.spec.state_size() + projection)
    }
}

/// What is in the cell, made now if need be.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

/// `[panels][k][panel]`, snapped; `None` from `source(panel, column)`, which has k elements, is padding.
fn pack<'a>(
    kernels: &Kernels,
    spares: &Spares<Buffer>,
    panels: usize,
    k: usize,
    source: impl Fn(usize, usize) -> Option<&'a [f32]>,
) -> Result<Buffer> {
    let width = kernels.panel();
    let mut out = spares.zeros("load", &[panels, k, width])?;
    for (p, panel) in out.as_mut_slice().chunks_exact_mut(k * width).enumerate() {
        // A cache line of each column at a time: what is written stays in the first-level cache meanwhile.
        for (line, rows) in panel.chunks_mut(LINE * width).enumerate() {
            for j in 0..width {
                let Some(column) = source(p, j) else { continue };
                let column = &column[line * LINE..];
                rows[j..].iter_mut().step_by(width).zip(column).for_each(|(to, v)| *to = snap(*v));
            }
        }
    }
    Ok(out)
}

/// Scratch memory of one layer at one batch size; holds the running state.
pub struct Plan {
    /// The layer it was made for: a run trusts the sizes that follow from these.
    spec: LayerSpec,
    lanes: usize,
    pub(crate) batch: usize,
    /// Threads of a run.
    pub(crate) threads: usize,
    /// Threads of a run beside that of the other direction, or 0 where the two had better follow each other.
    pub(crate) threads_apart: usize,
    /// Steps whose input products are made at once.
    pub(crate) block: usize,
    /// Which of the two `h` is the current one.
    pub(crate) current: usize,
    /// `[2][batch][padded state]`
    pub(crate) h: Buffer,
    /// `[2][batch][padded]`; the second half is used by the dense peephole, whose products read all of the old `c`.
    pub(crate) c: Buffer,
    /// `[batch][padded]`, `h` before the projection, or empty.
    pub(crate) unprojected: Buffer,
    /// `[panels][block * batch][panel]`: input products.
    pub(crate) x: Buffer,
    /// Recurrent products: `[threads][recurrent panels of a group][batch][panel]`, of a single sequence
    /// `[recurrent panels and threads][panel]`.
    pub(crate) z: Buffer,
    /// For the backward pass, once there was one.
    pub(crate) backward: Option<Scratch>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan(batch {}, {} threads)", self.batch, self.threads)
    }
}

/// Rows of an input product that are made at once: enough to use a panel well, and as many as leave so many floats of results
/// in cache.
const LEAST_BLOCK_ROWS: usize = 64;
const MOST_BLOCK_ROWS: usize = 192;
const BLOCK_FLOATS: usize = 1 << 18;

impl Plan {
    /// For at most `steps` steps, on at most `threads` threads.
    pub(crate) fn new(layer: &Packed, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        // A barrier costs some tenths of a microsecond, waking the threads some more: small work is faster alone, and more so where
        // the weights stay in the first-level cache.
        let flops = layer.step_flops().saturating_mul(batch);
        let near = size_of_val(layer.u.as_slice()) <= 48 << 10;
        let share = if near { 300_000 } else { 60_000 };
        let enough = if flops.saturating_mul(steps) < 2_000_000 { 1 } else { 1 + flops / share };
        // Of the dense peephole's, a thread with one panel would often make two recurrent ones.
        let most = if layer.dense() { layer.panels.div_ceil(2) } else { layer.panels };
        let mut plan = Plan::on_threads(layer, batch, steps, threads.min(enough).min(most))?;
        // Apart, threads meet half as often, but each needs twice the weights in its cache.
        let each = size_of_val(layer.u.as_slice()) / (threads / 2).max(1);
        let cached = each <= 1 << 20 || batch >= 8;
        if threads.is_multiple_of(2) && cached && flops.saturating_mul(2 * steps) >= 2_000_000 {
            plan.threads_apart = plan.threads.min(threads / 2);
        }
        Ok(plan)
    }

    /// On as many threads as is said, even if some have nothing to do.
    pub(crate) fn on_threads(layer: &Packed, batch: usize, steps: usize, threads: usize) -> Result<Self> {
        let width = PANEL_VECTORS * layer.kernels.lanes;
        if batch == 0 {
            return Err(Error::shape("plan: batch", "at least 1", 0));
        }
        let rows = (BLOCK_FLOATS / (layer.panels * width)).clamp(LEAST_BLOCK_ROWS, MOST_BLOCK_ROWS);
        let block = (rows / batch).clamp(1, steps.max(1));
        let zeros = |sizes: &[usize]| Buffer::zeros("plan", sizes);
        let projected = usize::from(layer.spec.proj_size.is_some());
        Ok(Plan {
            spec: layer.spec,
            lanes: layer.kernels.lanes,
            batch,
            threads,
            threads_apart: 0,
            block,
            current: 0,
            h: zeros(&[2, batch, layer.padded_state()])?,
            c: zeros(&[2, batch, layer.padded()])?,
            unprojected: zeros(&[projected, batch, layer.padded()])?,
            x: zeros(&[layer.panels, block, batch, width])?,
            z: match batch {
                1 => zeros(&[layer.recurrent(0..layer.panels).len() + threads, width])?,
                _ => zeros(&[threads, layer.recurrent_each(), batch, width])?,
            },
            backward: None,
        })
    }

    /// Whether it was made for a layer like this one.
    pub(crate) fn fits(&self, layer: &Packed) -> bool {
        self.spec == layer.spec && self.lanes == layer.kernels.lanes
    }

    /// The current row of `h`, and of `c`, of sequence `b`, in memory index `h` and `c` (0 or 1).
    pub(crate) fn h_row(&self, layer: &Packed, index: usize, b: usize) -> &[f32] {
        let cols = layer.padded_state();
        &self.h.as_slice()[(index * self.batch + b) * cols..][..layer.spec.state_size()]
    }

    pub(crate) fn c_row(&self, layer: &Packed, index: usize, b: usize) -> &[f32] {
        let cols = layer.padded();
        &self.c.as_slice()[(index * self.batch + b) * cols..][..layer.spec.hidden_size]
    }

    /// Sets the state, snapped, from rows of `h` and `c`. Both memories get it: a sequence that starts later (in reverse,
    /// the shorter ones) finds it in whichever is current then.
    pub(crate) fn set_state(&mut self, layer: &Packed, h: &[f32], c: &[f32]) {
        let batch = self.batch;
        self.current = 0;
        let fill = |to: &mut Buffer, padded: usize, from: &[f32], cols: usize| {
            for (row, to) in to.as_mut_slice().chunks_exact_mut(padded).enumerate() {
                let from = &from[row % batch * cols..][..cols];
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = snap(v));
            }
        };
        fill(&mut self.h, layer.padded_state(), h, layer.spec.state_size());
        fill(&mut self.c, layer.padded(), c, layer.spec.hidden_size);
    }

    /// The state after a whole sequence, rows of `h` and of `c`. A forward sequence stopped after its own length, a reverse
    /// one with the others; see [`set_state`](Self::set_state).
    pub(crate) fn last_state(&self, layer: &Packed, steps: usize, lengths: Option<&[usize]>) -> State<Vec<f32>> {
        let mut state = State { h: Vec::new(), c: Vec::new() };
        for b in 0..self.batch {
            let walked = match lengths {
                Some(lengths) if !layer.spec.reverse => lengths[b],
                _ => steps,
            };
            state.h.extend_from_slice(self.h_row(layer, walked % 2, b));
            state.c.extend_from_slice(self.c_row(layer, Plan::c_index(layer.spec.cell, walked % 2), b));
        }
        state
    }

    /// Which memory holds `c` when `current` is the one that holds `h`.
    pub(crate) fn c_index(cell: CellKind, current: usize) -> usize {
        if cell == CellKind::PeepholeDense { current } else { 0 }
    }
}
