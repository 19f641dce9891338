//! A layer's forward pass: one product for the inputs of all steps, then a dispatch a step, or one for all of them.

use std::sync::Arc;

use lstm_core::{LayerOutput, LayerSpec, MatrixShape, Result, Sequence, State, shape::checked_len};

use crate::{
    gpu::Gpu,
    layer::{Layer, Packed, workgroups},
    parameters::{Copy, Gemm, Project, SNAP_A, Steps},
    pipeline::Bound,
    shader::{Kernel, Unary},
    tensor::{Memory, Tensor},
    trace::Trace,
};

/// Bytes of `bias + W x` that inference holds at a time; longer sequences are cut in time.
const AHEAD: u64 = 64 << 20;

/// Visits of one dispatch at most, lest it takes so long that a watchdog resets the device.
pub(crate) const AT_ONCE: u32 = 1024;

/// Where a layer's steps read and write.
pub(crate) struct Buffers<'a> {
    pub(crate) gates: &'a Arc<Memory>,
    pub(crate) states: &'a Arc<Memory>,
    pub(crate) y: &'a Arc<Memory>,
    /// With a projection, what it projects.
    pub(crate) projected: Option<&'a Arc<Memory>>,
    pub(crate) lengths: Option<&'a Arc<Memory>>,
}

/// The kernels of a layer's steps with what they work on.
pub(crate) struct Walk {
    step: Bound,
    groups: usize,
    /// With a projection.
    project: Option<Bound>,
    train: bool,
    /// Visits that one dispatch makes.
    at_once: u32,
}

impl Walk {
    pub(crate) fn new(gpu: &Gpu, layer: &Packed, batch: usize, train: bool, buffers: &Buffers<'_>) -> Result<Self> {
        let op = "forward";
        let spec = &layer.spec;
        let spread = layer.spread(gpu, batch, spec.hidden_size, spec.state_size());
        let kernel = Kernel::Forward { options: layer.options, train, spread };
        // What is not there is not read; something must be bound.
        let nothing = &layer.u_by_unit;
        let lengths = buffers.lengths.unwrap_or(nothing);
        let peephole = layer.peephole.as_ref().unwrap_or(nothing);
        let y = buffers.projected.unwrap_or(buffers.y);
        let step = gpu.bind(op, kernel, &[buffers.gates, &layer.u_by_unit, buffers.states, y, lengths, peephole])?;
        let project = match (&layer.projection, buffers.projected) {
            (Some(projection), Some(m)) => {
                let buffers = [m, &projection.transposed, buffers.states, buffers.y, lengths];
                Some(gpu.bind(op, Kernel::Project, &buffers)?)
            }
            _ => None,
        };
        let at_once = if layer.walks_whole(gpu) { AT_ONCE } else { 1 };
        let groups = workgroups(spread, batch, spec.hidden_size);
        Ok(Walk { step, groups, project, train, at_once })
    }

    /// Makes the visits `steps.first .. steps.last`.
    pub(crate) fn run(&self, gpu: &Gpu, steps: Steps) -> Result<()> {
        let op = "forward";
        let mut first = steps.first;
        while first < steps.last {
            let last = steps.last.min(first.saturating_add(self.at_once));
            gpu.dispatch(op, &self.step, &Steps { first, last, ..steps }, self.groups)?;
            if let Some(project) = &self.project {
                let t = if steps.reverse == 1 { steps.steps - 1 - first } else { first };
                let place = |t: u32| t % steps.ring * steps.batch * steps.state;
                let parameters = Project {
                    batch: steps.batch,
                    hidden: steps.hidden,
                    state: steps.state,
                    row: t * steps.batch,
                    m_row: if self.train { t * steps.batch } else { 0 },
                    step: t,
                    h_before: place(t + steps.reverse),
                    h_after: place(t + 1 - steps.reverse),
                    has_lengths: steps.has_lengths,
                };
                let len = (steps.batch * steps.state) as usize;
                gpu.dispatch(op, project, &parameters, len.div_ceil(Kernel::Project.workgroup() as usize))?;
            }
            first = last;
        }
        Ok(())
    }
}

/// The product `bias + W x` of some rows of `x`, snapped as it is read.
pub(crate) fn input_product(layer: &Packed, rows: usize, first_row: usize) -> (MatrixShape, Gemm) {
    let input = layer.spec.input_size as u32;
    let parameters = Gemm {
        k: input,
        segment: input,
        segments: 1,
        snap: SNAP_A,
        a_row: input,
        a_k: 1,
        a_start: first_row as u32 * input,
        b_k: 1,
        b_col: input,
        ..Gemm::default()
    };
    (MatrixShape::new(rows, 4 * layer.spec.hidden_size), parameters)
}

/// Memory for states in a ring of `ring` places, the given one at place `at`, snapped.
pub(crate) fn states(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    (ring, batch, at): (usize, usize, usize),
    state: &State<Tensor>,
) -> Result<Arc<Memory>> {
    let rows = checked_len(op, &[ring, batch])?;
    let memory = gpu.allocate(op, checked_len(op, &[rows, spec.state_size() + spec.hidden_size])?)?;
    set_state(gpu, op, spec, &memory, (ring, batch, at), state)?;
    Ok(memory)
}

/// Writes a state to its place, snapped.
pub(crate) fn set_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<Memory>,
    (ring, batch, at): (usize, usize, usize),
    state: &State<Tensor>,
) -> Result<()> {
    let put = |from: &Tensor, start: usize| {
        let (rows, cols) = (from.shape.rows as u32, from.shape.cols as u32);
        let parameters = Copy { rows, cols, x_start: 0, x_cols: cols, y_start: start as u32, y_cols: cols, snap: 1 };
        gpu.copy(op, &from.memory, memory, &parameters)
    };
    put(&state.h, at * batch * spec.state_size())?;
    put(&state.c, ring * batch * spec.state_size() + at * batch * spec.hidden_size)
}

/// A copy of the state at a place.
pub(crate) fn get_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<Memory>,
    (ring, batch, at): (usize, usize, usize),
) -> Result<State<Tensor>> {
    let (state, hidden) = (MatrixShape::new(batch, spec.state_size()), MatrixShape::new(batch, spec.hidden_size));
    Ok(State {
        h: gpu.rows(op, memory, at * state.len(), state)?,
        c: gpu.rows(op, memory, ring * state.len() + at * hidden.len(), hidden)?,
    })
}

pub(crate) fn forward(gpu: &Gpu, layer: &Layer, sequence: Sequence<'_, Tensor>) -> Result<LayerOutput<Tensor>> {
    run(gpu, &layer.0, sequence, false).map(|(output, _)| output)
}

pub(crate) fn forward_train(
    gpu: &Gpu,
    layer: &Layer,
    sequence: Sequence<'_, Tensor>,
) -> Result<(LayerOutput<Tensor>, Trace)> {
    run(gpu, &layer.0, sequence, true)
}

fn run(gpu: &Gpu, layer: &Packed, sequence: Sequence<'_, Tensor>, train: bool) -> Result<(LayerOutput<Tensor>, Trace)> {
    let op = if train { "forward_train" } else { "forward" };
    let spec = &layer.spec;
    sequence.check(spec, |x| x.shape)?;
    let Sequence { steps, batch, lengths, .. } = sequence;
    let rows = steps * batch;

    let lengths = match lengths {
        Some(lengths) => {
            let words: Vec<u32> = lengths.iter().map(|&len| len as u32).collect();
            Some(gpu.upload(op, bytemuck::cast_slice(&words))?)
        }
        None => None,
    };
    let ring = if train { steps + 1 } else { 2 };
    let (start, end) = if spec.reverse { (steps % ring, 0) } else { (0, steps % ring) };
    let states = states(gpu, op, spec, (ring, batch, start), sequence.state)?;
    let y = gpu.tensor(op, MatrixShape::new(rows, spec.state_size()))?;
    let projected = match spec.proj_size {
        Some(_) => {
            let rows = if train { rows } else { batch };
            Some(gpu.allocate(op, checked_len(op, &[rows, spec.hidden_size])?)?)
        }
        None => None,
    };
    let x = if train { gpu.unary(op, Unary::Snap, sequence.x, 0.0)? } else { sequence.x.clone() };

    let parameters = Steps {
        batch: batch as u32,
        steps: steps as u32,
        hidden: spec.hidden_size as u32,
        state: spec.state_size() as u32,
        reverse: u32::from(spec.reverse),
        has_lengths: u32::from(lengths.is_some()),
        ring: ring as u32,
        clip: spec.clip.unwrap_or_default(),
        ..Steps::default()
    };
    let step_bytes = 16 * batch as u64 * spec.hidden_size as u64;
    let ahead = if train { steps } else { steps.min((AHEAD.min(gpu.max_bytes() / 2) / step_bytes).max(1) as usize) };
    let mut gates = None;
    for first in (0..steps).step_by(ahead) {
        let last = steps.min(first + ahead);
        let from = if spec.reverse { steps - last } else { first };
        let (shape, product) = input_product(layer, (last - first) * batch, from * batch);
        let z = gpu.product(op, &x.memory, &layer.w, layer.bias.as_ref(), shape, product)?.memory;
        let buffers = Buffers {
            gates: &z,
            states: &states,
            y: &y.memory,
            projected: projected.as_ref(),
            lengths: lengths.as_ref(),
        };
        let (first, last, gates_row) = (first as u32, last as u32, (from * batch) as u32);
        Walk::new(gpu, layer, batch, train, &buffers)?.run(gpu, Steps { first, last, gates_row, ..parameters })?;
        gates = Some(z);
    }
    let state = get_state(gpu, op, spec, &states, (ring, batch, end))?;
    let gates = match gates {
        Some(gates) => gates,
        None => gpu.allocate(op, 1)?,
    };
    Ok((LayerOutput::new(y, state), Trace { spec: *spec, steps, batch, lengths, x, states, gates, projected }))
}
