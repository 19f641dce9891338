//! Forward pass of a layer. It first computes one matrix product for the inputs of all time steps, and then runs the
//! time steps, of which a dispatch runs one or many.

use std::sync::Arc;

use lstm_core::{LayerOutput, MatrixShape, Result, Sequence, shape::checked_len};

use super::{
    layer::{Layer, PackedWeights, workgroup_count},
    state::{StateSlot, allocate_states, read_state},
    trace::Trace,
};
use crate::{
    device::Gpu,
    memory::{DeviceMemory, Tensor},
    shader::{BoundKernel, ForwardParameters, GemmParameters, Kernel, ProjectParameters, Unary},
};

/// Largest size in bytes of the buffer for `bias + W_ih x` in inference. Longer sequences are processed in chunks of
/// steps.
const MAX_GATES_BYTES: u64 = 64 << 20;

/// Largest number of iterations in a dispatch. A dispatch that runs too long makes the driver's watchdog reset the
/// device.
pub(super) const MAX_ITERATIONS_PER_DISPATCH: u32 = 1024;

/// Buffers that the steps of a layer read and write.
pub(super) struct StepBuffers<'a> {
    /// `bias + W_ih x` of all steps. Training overwrites it with the gate activations.
    pub(super) gates: &'a Arc<DeviceMemory>,
    /// Ring buffer of hidden and cell states.
    pub(super) states: &'a Arc<DeviceMemory>,
    pub(super) y: &'a Arc<DeviceMemory>,
    /// Input of the projection, `o * tanh(c)`. `None` without a projection.
    pub(super) projection_input: Option<&'a Arc<DeviceMemory>>,
    pub(super) lengths: Option<&'a Arc<DeviceMemory>>,
}

/// Kernels of a layer's steps, bound to their buffers.
pub(super) struct StepKernels {
    step_kernel: BoundKernel,
    workgroups: usize,
    /// Kernel of the projection, if there is one.
    projection_kernel: Option<BoundKernel>,
    train: bool,
    iterations_per_dispatch: u32,
}

impl StepKernels {
    pub(super) fn new(
        gpu: &Gpu,
        layer: &PackedWeights,
        batch: usize,
        train: bool,
        buffers: &StepBuffers<'_>,
    ) -> Result<Self> {
        let op = "forward";
        let spec = &layer.spec;
        let tiling = layer.step_tiling(gpu, batch, spec.hidden_size, spec.state_size());
        let kernel = Kernel::Forward { options: layer.options, train, tiling };
        // Every binding needs a buffer. Bindings of absent operands are not read.
        let placeholder_buffer = &layer.weight_hh_by_unit;
        let lengths = buffers.lengths.unwrap_or(placeholder_buffer);
        let peephole = layer.peephole.as_ref().unwrap_or(placeholder_buffer);
        let y = buffers.projection_input.unwrap_or(buffers.y);
        let step_buffers = [buffers.gates, &layer.weight_hh_by_unit, buffers.states, y, lengths, peephole];
        let step_kernel = gpu.bind(op, kernel, &step_buffers)?;
        let projection_kernel = match (&layer.projection, buffers.projection_input) {
            (Some(projection), Some(m)) => {
                let buffers = [m, &projection.weight_hr_transposed, buffers.states, buffers.y, lengths];
                Some(gpu.bind(op, Kernel::Project, &buffers)?)
            }
            _ => None,
        };
        let iterations_per_dispatch = if layer.is_multi_step(gpu) { MAX_ITERATIONS_PER_DISPATCH } else { 1 };
        let workgroups = workgroup_count(tiling, batch, spec.hidden_size);
        Ok(StepKernels { step_kernel, workgroups, projection_kernel, train, iterations_per_dispatch })
    }

    /// Runs the iterations from `parameters.first_iteration` up to, but not including, `parameters.end_iteration`.
    pub(super) fn run(&self, gpu: &Gpu, parameters: ForwardParameters) -> Result<()> {
        let op = "forward";
        let mut first_iteration = parameters.first_iteration;
        while first_iteration < parameters.end_iteration {
            let end_iteration =
                parameters.end_iteration.min(first_iteration.saturating_add(self.iterations_per_dispatch));
            let step_parameters = ForwardParameters { first_iteration, end_iteration, ..parameters };
            gpu.dispatch(op, &self.step_kernel, &step_parameters, self.workgroups)?;
            if let Some(projection_kernel) = &self.projection_kernel {
                self.dispatch_projection(gpu, op, projection_kernel, &parameters, first_iteration)?;
            }
            first_iteration = end_iteration;
        }
        Ok(())
    }

    fn dispatch_projection(
        &self,
        gpu: &Gpu,
        op: &'static str,
        projection_kernel: &BoundKernel,
        parameters: &ForwardParameters,
        iteration: u32,
    ) -> Result<()> {
        let ForwardParameters { batch, steps, hidden_size, state_size, reverse, has_lengths, .. } = *parameters;
        let step = if reverse == 1 { steps - 1 - iteration } else { iteration };
        let slot_offset = |t: u32| t % parameters.state_slots * batch * state_size;
        let parameters = ProjectParameters {
            batch,
            hidden_size,
            state_size,
            y_first_row: step * batch,
            input_first_row: if self.train { step * batch } else { 0 },
            step,
            h_old_offset: slot_offset(step + reverse),
            h_new_offset: slot_offset(step + 1 - reverse),
            has_lengths,
        };
        let len = (batch * state_size) as usize;
        gpu.dispatch(op, projection_kernel, &parameters, len.div_ceil(Kernel::Project.workgroup_size() as usize))
    }
}

/// Result shape and parameters of the matrix product `bias + W_ih x` for `rows` rows of `x`, starting at `first_row`.
/// The kernel snaps `x` when it reads it.
pub(super) fn input_product(layer: &PackedWeights, rows: usize, first_row: usize) -> (MatrixShape, GemmParameters) {
    let input = layer.spec.input_size as u32;
    let parameters = GemmParameters {
        k: input,
        segment_length: input,
        segment_count: 1,
        snap_a: 1,
        a_row_stride: input,
        a_k_stride: 1,
        a_offset: first_row as u32 * input,
        b_k_stride: 1,
        b_col_stride: input,
        ..GemmParameters::default()
    };
    (MatrixShape::new(rows, 4 * layer.spec.hidden_size), parameters)
}

/// Runs the forward pass of a layer in inference.
pub(crate) fn forward(gpu: &Gpu, layer: &Layer, sequence: Sequence<'_, Tensor>) -> Result<LayerOutput<Tensor>> {
    run(gpu, &layer.0, sequence, false).map(|(output, _)| output)
}

/// Runs the forward pass of a layer in training. Also returns the trace that the backward pass needs.
pub(crate) fn forward_train(
    gpu: &Gpu,
    layer: &Layer,
    sequence: Sequence<'_, Tensor>,
) -> Result<(LayerOutput<Tensor>, Trace)> {
    run(gpu, &layer.0, sequence, true)
}

fn run(
    gpu: &Gpu,
    layer: &PackedWeights,
    sequence: Sequence<'_, Tensor>,
    train: bool,
) -> Result<(LayerOutput<Tensor>, Trace)> {
    let op = if train { "forward_train" } else { "forward" };
    let spec = &layer.spec;
    sequence.check(spec, |x| x.shape)?;
    let Sequence { steps, batch, lengths, .. } = sequence;
    let rows = steps * batch;

    let lengths = match lengths {
        Some(lengths) => {
            let lengths_u32: Vec<u32> = lengths.iter().map(|&len| len as u32).collect();
            Some(gpu.upload(op, bytemuck::cast_slice(&lengths_u32))?)
        }
        None => None,
    };
    let slot_count = if train { steps + 1 } else { 2 };
    let (initial_slot, last_slot) = if spec.reverse { (steps % slot_count, 0) } else { (0, steps % slot_count) };
    let states = allocate_states(gpu, op, spec, StateSlot { slot_count, batch, index: initial_slot }, sequence.state)?;
    let y = gpu.allocate_tensor(op, MatrixShape::new(rows, spec.state_size()))?;
    let projection_input = match spec.proj_size {
        Some(_) => {
            let rows = if train { rows } else { batch };
            Some(gpu.allocate(op, checked_len(op, &[rows, spec.hidden_size])?)?)
        }
        None => None,
    };
    let x = if train { gpu.apply_unary(op, Unary::Snap, sequence.x, 0.0)? } else { sequence.x.clone() };

    let parameters = ForwardParameters {
        batch: batch as u32,
        steps: steps as u32,
        hidden_size: spec.hidden_size as u32,
        state_size: spec.state_size() as u32,
        reverse: u32::from(spec.reverse),
        has_lengths: u32::from(lengths.is_some()),
        state_slots: slot_count as u32,
        clip: spec.clip.unwrap_or_default(),
        ..ForwardParameters::default()
    };
    let bytes_per_step = 16 * batch as u64 * spec.hidden_size as u64;
    let max_chunk_steps = (MAX_GATES_BYTES.min(gpu.max_buffer_bytes() / 2) / bytes_per_step).max(1) as usize;
    let chunk_steps = if train { steps } else { steps.min(max_chunk_steps) };
    let mut gates = None;
    for first_iteration in (0..steps).step_by(chunk_steps) {
        let end_iteration = steps.min(first_iteration + chunk_steps);
        let first_step = if spec.reverse { steps - end_iteration } else { first_iteration };
        let (shape, product_parameters) =
            input_product(layer, (end_iteration - first_iteration) * batch, first_step * batch);
        let z =
            gpu.matrix_product(op, &x.memory, &layer.weight_ih, layer.bias.as_ref(), shape, product_parameters)?.memory;
        let buffers = StepBuffers {
            gates: &z,
            states: &states,
            y: &y.memory,
            projection_input: projection_input.as_ref(),
            lengths: lengths.as_ref(),
        };
        let kernels = StepKernels::new(gpu, layer, batch, train, &buffers)?;
        let chunk_parameters = ForwardParameters {
            first_iteration: first_iteration as u32,
            end_iteration: end_iteration as u32,
            gates_first_row: (first_step * batch) as u32,
            ..parameters
        };
        kernels.run(gpu, chunk_parameters)?;
        gates = Some(z);
    }
    let state = read_state(gpu, op, spec, &states, StateSlot { slot_count, batch, index: last_slot }, 0..batch)?;
    let gates = match gates {
        Some(gates) => gates,
        None => gpu.allocate(op, 1)?,
    };
    Ok((LayerOutput::new(y, state), Trace { spec: *spec, steps, batch, lengths, x, states, gates, projection_input }))
}
