//! Streaming: a stack of layers that runs one time step per call, without allocation.

use std::{
    ops::Range,
    ptr::{null, null_mut},
};

use lstm_core::{
    CellKind, Error, MatrixShape, Result, State,
    arithmetic::snap,
    reference::{check_sequences, check_stack, check_state, check_step, check_step_some},
    shape::{memory, zeros},
};

use crate::{
    kernel::{
        cell::{CellArgs, CellStrides},
        table::PANEL_VECTORS,
    },
    layer::{Layer, PackedLayer, Plan},
    memory::{buffer::Buffer, tensor::Tensor},
    pass::forward::{self, SequenceInput},
    pool::ThreadPool,
};

/// A stack of layers with its running state, which runs one time step per call.
#[derive(Debug)]
pub struct CpuStream {
    layers: Vec<Layer>,
    plans: Vec<Plan>,
    /// The input of each layer: the snapped input of the stack, then the outputs of all layers except the last.
    layer_inputs: Vec<Vec<f32>>,
    batch: usize,
    /// Memory for the steps that only some sequences of the batch run. `None` for a batch of one.
    compact: Option<CompactRows>,
}

/// Memory for a step that only some sequences of the batch run. Their states are copied to the first rows of this
/// memory.
#[derive(Debug)]
struct CompactRows {
    /// For each layer, buffers for `h` and `c` in the layout of [`Plan::h`] and [`Plan::c`]. During the step, they
    /// replace the buffers of the plan.
    states: Vec<[Buffer; 2]>,
    /// Number of time steps of each row: 1 for the first rows, which hold the sequences that run, 0 for the other rows.
    lengths: Vec<usize>,
    /// Output of the last layer for the whole batch.
    y: Vec<f32>,
}

impl CpuStream {
    /// A stream with zero state, on at most `threads` threads.
    pub(crate) fn new(layers: &[Layer], batch: usize, threads: usize) -> Result<Self> {
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        let sizes = layers.iter().map(|layer| layer.0.spec.state_size());
        let sizes = std::iter::once(layers[0].0.spec.input_size).chain(sizes).take(layers.len());
        let plans = layers.iter().map(|layer| Plan::new(&layer.0, batch, 1, threads));
        let plans = memory::try_collect("stream", layers.len(), plans)?;
        let compact = match batch {
            1 => None,
            _ => {
                let zeros_like = |buffer: &Buffer| Buffer::zeros("stream", &[buffer.as_slice().len()]);
                let states = plans.iter().map(|plan| Ok([zeros_like(&plan.h)?, zeros_like(&plan.c)?]));
                let output_size = layers[layers.len() - 1].0.spec.state_size();
                Some(CompactRows {
                    states: states.collect::<Result<_>>()?,
                    lengths: memory::filled("stream", &[batch], 0)?,
                    y: zeros("stream", &[batch, output_size])?,
                })
            }
        };
        Ok(CpuStream {
            plans,
            compact,
            layer_inputs: sizes.map(|size| zeros("stream", &[batch, size])).collect::<Result<_>>()?,
            layers: layers.to_vec(),
            batch,
        })
    }

    /// Runs one time step; see `Backend::step`.
    pub(crate) fn step(&mut self, pool: &ThreadPool, x: &[f32], y: &mut [f32]) -> Result<()> {
        // There is at least one layer: `check_stack` rejects an empty stack.
        let (first_spec, last_spec) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step(self.batch, first_spec, last_spec, x, y)?;
        self.layer_inputs[0].iter_mut().zip(x).for_each(|(to, v)| *to = snap(*v));
        for (k, (layer, plan)) in self.layers.iter().zip(&mut self.plans).enumerate() {
            let (layer_inputs, outputs) = self.layer_inputs.split_at_mut(k + 1);
            let x = &layer_inputs[k];
            let y = outputs.first_mut().map_or(&mut *y, Vec::as_mut_slice);
            // SAFETY: `y` is borrowed mutably. The plan was made for the layer, and `x` and `y` have the layer's sizes.
            unsafe {
                if !try_small_step(&layer.0, plan, x, y) {
                    forward::run(pool, &layer.0, plan, SequenceInput { steps: 1, lengths: None, x }, y, None);
                }
            }
        }
        Ok(())
    }

    /// Runs one time step of some sequences of the batch; see `Backend::step_some`. The states of these sequences are
    /// copied to the first rows of [`CompactRows::states`], and copied back after the step. The remaining rows have
    /// length 0, so the step does not compute them.
    pub(crate) fn step_some(&mut self, pool: &ThreadPool, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        let (first_spec, last_spec) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step_some(self.batch, sequences, first_spec, last_spec, x, y)?;
        let all_in_order = sequences.len() == self.batch && sequences.is_sorted();
        let CpuStream { layers, plans, layer_inputs, compact, batch } = self;
        let compact = match compact {
            _ if sequences.is_empty() => return Ok(()),
            Some(compact) if !all_in_order => compact,
            _ => return self.step(pool, x, y),
        };
        let CompactRows { states, lengths, y: batch_y } = compact;
        lengths.iter_mut().enumerate().for_each(|(row, length)| *length = usize::from(row < sequences.len()));
        layer_inputs[0].iter_mut().zip(x).for_each(|(to, v)| *to = snap(*v));
        for (k, ((Layer(layer), plan), [h, c])) in layers.iter().zip(plans).zip(states).enumerate() {
            let (h_index, threads) = (plan.current_state_index, plan.threads);
            let c_index = Plan::c_state_index(layer.spec.cell, h_index);
            let (h_len, c_len) = (layer.padded_state(), layer.padded_hidden());
            for (row, &sequence) in sequences.iter().enumerate() {
                h.copy_row(row, &plan.h, h_index * *batch + sequence, h_len);
                c.copy_row(row, &plan.c, c_index * *batch + sequence, c_len);
            }
            std::mem::swap(&mut plan.h, h);
            std::mem::swap(&mut plan.c, c);
            plan.current_state_index = 0;
            plan.threads = (threads * sequences.len()).div_ceil(*batch);
            let (layer_inputs, outputs) = layer_inputs.split_at_mut(k + 1);
            let y = outputs.first_mut().map_or(&mut batch_y[..], Vec::as_mut_slice);
            let input = SequenceInput { steps: 1, lengths: Some(lengths), x: &layer_inputs[k] };
            // SAFETY: `y` is borrowed mutably and has a row for each sequence of the batch.
            unsafe { forward::run(pool, layer, plan, input, y, None) };
            std::mem::swap(&mut plan.h, h);
            std::mem::swap(&mut plan.c, c);
            (plan.current_state_index, plan.threads) = (h_index, threads);
            // The step has written the half with index 1.
            let new_c_index = Plan::c_state_index(layer.spec.cell, 1);
            for (row, &sequence) in sequences.iter().enumerate() {
                plan.h.copy_row(h_index * *batch + sequence, h, *batch + row, h_len);
                plan.c.copy_row(c_index * *batch + sequence, c, new_c_index * *batch + row, c_len);
            }
        }
        y.copy_from_slice(&batch_y[..y.len()]);
        Ok(())
    }

    /// A copy of the state of each layer, for a range of sequences.
    pub(crate) fn state<'a>(&'a self, sequences: Range<usize>) -> Result<Vec<State<Tensor>>> {
        check_sequences(self.batch, &sequences)?;
        let state_tensor = |cols: usize, row: &dyn Fn(usize) -> &'a [f32]| {
            let shape = MatrixShape::new(sequences.len(), cols);
            let mut values = memory::with_capacity("stream state", &[shape.rows, shape.cols])?;
            sequences.clone().for_each(|sequence| values.extend_from_slice(row(sequence)));
            Ok::<_, Error>(Tensor::new(shape, values))
        };
        let state = self.layers.iter().zip(&self.plans).map(|(Layer(layer), plan)| {
            let c_state_index = Plan::c_state_index(layer.spec.cell, plan.current_state_index);
            Ok(State {
                h: state_tensor(layer.spec.state_size(), &|b| plan.h_row(layer, plan.current_state_index, b))?,
                c: state_tensor(layer.spec.hidden_size, &|b| plan.c_row(layer, c_state_index, b))?,
            })
        });
        state.collect()
    }

    /// Replaces the state of each layer, for the sequences from number `first_sequence` on.
    pub(crate) fn set_state(&mut self, first_sequence: usize, state: &[State<Tensor>]) -> Result<()> {
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.0.spec).collect();
        check_state(&specs, self.batch, first_sequence, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        for ((layer, plan), state) in self.layers.iter().zip(&mut self.plans).zip(state) {
            plan.set_state_rows(&layer.0, first_sequence, state.h.as_slice(), state.c.as_slice());
        }
        Ok(())
    }
}

/// Runs one time step of a small layer for a single sequence with one kernel call. The result is the same as that of
/// [`forward::run`], whose setup would make the step about a third slower. Returns false, without having done anything,
/// if the layer is too large or has a projection, or if the plan has several sequences or threads.
///
/// # Safety
/// The plan was made for this layer; `x` and `y` have the sizes of its input and output.
unsafe fn try_small_step(layer: &PackedLayer, plan: &mut Plan, x: &[f32], y: &mut [f32]) -> bool {
    let PackedLayer { spec, kernels, .. } = layer;
    if (plan.batch, plan.threads, spec.proj_size) != (1, 1, None) || !layer.has_single_row_kernel() {
        return false;
    }
    debug_assert!(plan.matches(layer) && (x.len(), y.len()) == (spec.input_size, spec.hidden_size));
    let (old_state_index, padded_hidden) = (plan.current_state_index, layer.padded_hidden());
    let [c_old, c_new] =
        [old_state_index, 1 - old_state_index].map(|h| Plan::c_state_index(spec.cell, h) * padded_hidden);
    let (h, c) = (plan.h.as_mut_ptr(), plan.c.as_mut_ptr());
    // SAFETY: guaranteed by the caller; offsets follow the layouts in `PackedLayer` and `Plan`.
    unsafe {
        let (h_old, c_old, c_new) = (h.add(old_state_index * padded_hidden), c.add(c_old), c.add(c_new));
        let cell_args = CellArgs {
            item_count: layer.panels,
            strides: CellStrides::for_panels(kernels, 0, 0, 0),
            wx: null(),
            uh: [null(); PANEL_VECTORS],
            bias: layer.bias.as_ptr(),
            peephole: layer.peephole.as_ptr(),
            c_old,
            c_new,
            h: h.add((1 - old_state_index) * padded_hidden),
            y: y.as_mut_ptr(),
            units: spec.hidden_size,
            gates: null_mut(),
            kind: spec.cell,
            coupled: spec.coupled,
            clip: spec.clip,
        };
        let recurrent_operand = if spec.cell == CellKind::PeepholeDense { c_old } else { h_old };
        let scratch = [plan.quantized_input.rows().q, plan.quantized_state.rows().q];
        layer.single_row_step(x.as_ptr(), recurrent_operand, cell_args, scratch);
    }
    plan.current_state_index = 1 - old_state_index;
    true
}
