//! Streams: a stack of layers that runs one step at a time, with memory and bind groups that are created once.

use std::{ops::Range, sync::Arc};

use lstm_core::{
    LayerSpec, MatrixShape, Result, State,
    reference::{check_sequences, check_stack, check_state, check_step, check_step_some},
    shape::{checked_len, zeros},
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
    /// Lengths of the sequences, `[batch]`, as `u32`. Used only in steps that some sequences do not run: the length of
    /// those is 0.
    lengths: Arc<DeviceMemory>,
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
    /// The layer's output h, `[2, batch, state]`. A step that reads state slot k writes entry k.
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
        let allocate_slots = |cols: usize| gpu.allocate(op, checked_len(op, &[STATE_SLOTS, batch, cols])?);
        let x = allocate_slots(layers[0].0.spec.input_size)?;
        let lengths = gpu.allocate(op, batch)?;
        let mut stream_layers: Vec<StreamLayer> = Vec::new();
        for layer in layers {
            let weights = &layer.0;
            let (hidden, state) = (weights.spec.hidden_size, weights.spec.state_size());
            let (gates, y, states) =
                (allocate_slots(4 * hidden)?, allocate_slots(state)?, allocate_slots(state + hidden)?);
            let projection_input = weights.projection.as_ref().map(|_| allocate_slots(hidden)).transpose()?;
            let upload_zeros = |cols: usize| {
                let zeros = zeros(op, &[batch, cols])?;
                let shape = MatrixShape::new(batch, cols);
                Ok(Tensor { shape, memory: gpu.upload(op, bytemuck::cast_slice(&zeros))? })
            };
            let zero_state = State { h: upload_zeros(state)?, c: upload_zeros(hidden)? };
            let first_slot = StateSlot { slot_count: STATE_SLOTS, batch, index: 0 };
            write_state(gpu, op, &weights.spec, &states, first_slot, 0, &zero_state)?;
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
                lengths: Some(&lengths),
            };
            let step_kernels = StepKernels::new(gpu, weights, batch, false, &buffers)?;
            stream_layers.push(StreamLayer { layer: layer.clone(), input_product, step_kernels, states, y });
        }
        Ok(WgpuStream { layers: stream_layers, x, lengths, batch, current_slot: 0 })
    }

    pub(crate) async fn step(&mut self, gpu: &Gpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (first_spec, last_spec) = self.first_and_last_spec();
        check_step(self.batch, first_spec, last_spec, x, y)?;
        self.run_step(gpu, "step", x, None, y).await
    }

    pub(crate) async fn step_some(&mut self, gpu: &Gpu, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        let (first_spec, last_spec) = self.first_and_last_spec();
        check_step_some(self.batch, sequences, first_spec, last_spec, x, y)?;
        if sequences.is_empty() {
            return Ok(());
        }
        let (input_size, state_size) = (first_spec.input_size, last_spec.state_size());
        // The whole batch runs. Absent sequences get zeros as input, and count as sequences that have already ended, so
        // that the kernels keep their state.
        let mut batch_x = zeros("step_some", &[self.batch, input_size])?;
        let mut lengths = vec![0; self.batch];
        for (&sequence, row) in sequences.iter().zip(x.chunks_exact(input_size)) {
            batch_x[sequence * input_size..][..input_size].copy_from_slice(row);
            lengths[sequence] = STATE_SLOTS as u32;
        }
        let mut batch_y = zeros("step_some", &[self.batch, state_size])?;
        self.run_step(gpu, "step_some", &batch_x, Some(&lengths), &mut batch_y).await?;
        for (&sequence, row) in sequences.iter().zip(y.chunks_exact_mut(state_size)) {
            row.copy_from_slice(&batch_y[sequence * state_size..][..state_size]);
        }
        Ok(())
    }

    fn first_and_last_spec(&self) -> (&LayerSpec, &LayerSpec) {
        // `check_stack` ensured that there is at least one layer.
        (&self.layers[0].layer.0.spec, &self.layers[self.layers.len() - 1].layer.0.spec)
    }

    /// Runs a step of the whole batch. The arguments have been checked. If `lengths` is given, the sequences of length
    /// 0 keep their state, and the sequences of length [`STATE_SLOTS`] run: for the kernels, the index of the state
    /// slot is the number of the step, so it must be less than the length.
    async fn run_step(
        &mut self,
        gpu: &Gpu,
        op: &'static str,
        x: &[f32],
        lengths: Option<&[u32]>,
        y: &mut [f32],
    ) -> Result<()> {
        gpu.submit(op)?;
        gpu.write(op, &self.x, bytemuck::cast_slice(x))?;
        if let Some(lengths) = lengths {
            gpu.write(op, &self.lengths, bytemuck::cast_slice(lengths))?;
        }
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
                has_lengths: u32::from(lengths.is_some()),
                state_slots: STATE_SLOTS as u32,
                clip: spec.clip.unwrap_or_default(),
                ..ForwardParameters::default()
            };
            step_kernels.run(gpu, parameters)?;
            x_offset = slot * batch * spec.state_size() as u32;
        }
        let last_layer = &self.layers[self.layers.len() - 1];
        gpu.download(op, &last_layer.y, x_offset as usize, bytemuck::cast_slice_mut(y)).await?;
        self.current_slot = 1 - self.current_slot;
        Ok(())
    }

    fn state_slot(&self, index: usize) -> StateSlot {
        StateSlot { slot_count: STATE_SLOTS, batch: self.batch, index }
    }

    pub(crate) fn state(&self, gpu: &Gpu, sequences: Range<usize>) -> Result<Vec<State<Tensor>>> {
        check_sequences(self.batch, &sequences)?;
        let slot = self.state_slot(self.current_slot);
        let state = |StreamLayer { layer, states, .. }: &StreamLayer| {
            read_state(gpu, "stream_state", &layer.0.spec, states, slot, sequences.clone())
        };
        self.layers.iter().map(state).collect()
    }

    pub(crate) fn set_state(&mut self, gpu: &Gpu, first_sequence: usize, state: &[State<Tensor>]) -> Result<()> {
        let op = "set_stream_state";
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.layer.0.spec).collect();
        let shapes = state.iter().map(|s| State { h: s.h.shape, c: s.c.shape });
        let sequences = check_state(&specs, self.batch, first_sequence, shapes)?;
        // Write to the other slot: if it fails for one layer, all layers keep their state.
        let other_slot = 1 - self.current_slot;
        for (StreamLayer { layer, states, .. }, state) in self.layers.iter().zip(state) {
            let (spec, slot) = (&layer.0.spec, self.state_slot(other_slot));
            if sequences.len() < self.batch {
                // A kernel cannot read and write the same buffer through two bindings, so the other sequences' state
                // is copied through tensors.
                let old_state = read_state(gpu, op, spec, states, self.state_slot(self.current_slot), 0..self.batch)?;
                write_state(gpu, op, spec, states, slot, 0, &old_state)?;
            }
            write_state(gpu, op, spec, states, slot, sequences.start, state)?;
        }
        self.current_slot = other_slot;
        Ok(())
    }
}
