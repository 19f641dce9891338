//! Streams: a stack of layers that runs one step at a time, with memory and bind groups that are created once.

use std::sync::Arc;

use lstm_core::{
    MatrixShape, Result, State,
    reference::{check_stack, check_state, check_step},
    shape::checked_len,
};

use super::{
    forward::{StepBuffers, StepKernels, input_product},
    layer::Layer,
    state::{StateSlot, read_state, write_state},
};
use crate::{
    device::Gpu,
    memory::{DeviceMemory, Tensor},
    shader::{BoundKernel, ForwardParameters, GemmParameters, OPERAND_ABSENT, OPERAND_ROW},
};

/// Number of state slots. A step reads one slot and writes the other, so a step that fails changes no state.
const STATE_SLOTS: usize = 2;

/// A stack of layers with its current state, which runs one step at a time.
pub struct WgpuStream {
    layers: Vec<StreamLayer>,
    /// Input of the first layer.
    x: Arc<DeviceMemory>,
    batch: usize,
    /// Slot of the current state.
    current_slot: usize,
}

/// A layer with its memory, and its kernels bound to that memory.
struct StreamLayer {
    layer: Layer,
    input_product: InputProduct,
    step_kernels: StepKernels,
    states: Arc<DeviceMemory>,
    /// Output h, `[2, batch, state]`, one for each state slot.
    y: Arc<DeviceMemory>,
}

/// The kernel that computes `bias + W_ih x` of one step.
struct InputProduct {
    kernel: BoundKernel,
    parameters: GemmParameters,
    workgroups: usize,
}

impl std::fmt::Debug for WgpuStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WgpuStream({} layers, batch {})", self.layers.len(), self.batch)
    }
}

impl WgpuStream {
    pub(crate) fn new(gpu: &Gpu, layers: &[Layer], batch: usize) -> Result<Self> {
        let op = "stream";
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        let allocate = |cols: usize| gpu.allocate(op, checked_len(op, &[STATE_SLOTS, batch, cols])?);
        let x = allocate(layers[0].0.spec.input_size)?;
        let mut stream_layers: Vec<StreamLayer> = Vec::new();
        for layer in layers {
            let weights = &layer.0;
            let (hidden, state) = (weights.spec.hidden_size, weights.spec.state_size());
            let (gates, y, states) = (allocate(4 * hidden)?, allocate(state)?, allocate(state + hidden)?);
            let projection_input = weights.projection.as_ref().map(|_| allocate(hidden)).transpose()?;
            let zeros = |cols: usize| {
                let zeros = lstm_core::shape::zeros(op, &[batch, cols])?;
                let shape = MatrixShape::new(batch, cols);
                Ok(Tensor { shape, memory: gpu.upload(op, bytemuck::cast_slice(&zeros))? })
            };
            let zero_state = State { h: zeros(state)?, c: zeros(hidden)? };
            let first_slot = StateSlot { slot_count: STATE_SLOTS, batch, index: 0 };
            write_state(gpu, op, &weights.spec, &states, first_slot, &zero_state)?;
            let x = stream_layers.last().map_or(&x, |previous| &previous.y);
            let input_product = {
                let (shape, parameters) = input_product(weights, batch, 0);
                let (kernel, workgroups) = gpu.gemm_kernel(shape);
                let acc = weights.bias.as_ref().map_or(&weights.weight_ih, |bias| &bias.memory);
                let kernel = gpu.bind(op, kernel, &[x, &weights.weight_ih, acc, &gates])?;
                // The bias is a single row.
                let acc_layout = if weights.bias.is_some() { OPERAND_ROW } else { OPERAND_ABSENT };
                let parameters =
                    GemmParameters { m: shape.rows as u32, n: shape.cols as u32, acc_layout, ..parameters };
                InputProduct { kernel, parameters, workgroups }
            };
            let buffers = StepBuffers {
                gates: &gates,
                states: &states,
                y: &y,
                projection_input: projection_input.as_ref(),
                lengths: None,
            };
            let step_kernels = StepKernels::new(gpu, weights, batch, false, &buffers)?;
            stream_layers.push(StreamLayer { layer: layer.clone(), input_product, step_kernels, states, y });
        }
        Ok(WgpuStream { layers: stream_layers, x, batch, current_slot: 0 })
    }

    pub(crate) async fn step(&mut self, gpu: &Gpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        let op = "step";
        // `check_stack` ensured that there is at least one layer.
        let (first_layer, last_layer) = (&self.layers[0], &self.layers[self.layers.len() - 1]);
        check_step(self.batch, &first_layer.layer.0.spec, &last_layer.layer.0.spec, x, y)?;
        gpu.submit(op)?;
        gpu.write(op, &self.x, bytemuck::cast_slice(x))?;
        let slot = self.current_slot as u32;
        // Offset of the layer's input: 0 in `self.x`, then the slot in the output of the layer below.
        let mut x_offset = 0;
        for StreamLayer { layer, input_product, step_kernels, .. } in &self.layers {
            let spec = &layer.0.spec;
            let product_parameters = GemmParameters { a_offset: x_offset, ..input_product.parameters };
            gpu.dispatch(op, &input_product.kernel, &product_parameters, input_product.workgroups)?;
            let batch = self.batch as u32;
            // The slot serves as the step's number, so that the step reads this slot and writes the other one.
            let parameters = ForwardParameters {
                batch,
                steps: STATE_SLOTS as u32,
                hidden_size: spec.hidden_size as u32,
                state_size: spec.state_size() as u32,
                first_iteration: slot,
                end_iteration: slot + 1,
                gates_first_row: slot * batch,
                state_slots: STATE_SLOTS as u32,
                clip: spec.clip.unwrap_or_default(),
                ..ForwardParameters::default()
            };
            step_kernels.run(gpu, parameters)?;
            x_offset = slot * batch * spec.state_size() as u32;
        }
        gpu.download(op, &last_layer.y, x_offset as usize, bytemuck::cast_slice_mut(y)).await?;
        self.current_slot = 1 - self.current_slot;
        Ok(())
    }

    pub(crate) fn state(&self, gpu: &Gpu) -> Result<Vec<State<Tensor>>> {
        let slot = StateSlot { slot_count: STATE_SLOTS, batch: self.batch, index: self.current_slot };
        let state = |layer: &StreamLayer| read_state(gpu, "stream_state", &layer.layer.0.spec, &layer.states, slot);
        self.layers.iter().map(state).collect()
    }

    pub(crate) fn set_state(&mut self, gpu: &Gpu, state: &[State<Tensor>]) -> Result<()> {
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.layer.0.spec).collect();
        check_state(&specs, self.batch, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        // Write to the other slot: if it fails for one layer, all layers keep their state.
        let other_slot = 1 - self.current_slot;
        self.layers.iter().zip(state).try_for_each(|(layer, state)| {
            let slot = StateSlot { slot_count: STATE_SLOTS, batch: self.batch, index: other_slot };
            write_state(gpu, "set_stream_state", &layer.layer.0.spec, &layer.states, slot, state)
        })?;
        self.current_slot = other_slot;
        Ok(())
    }
}
