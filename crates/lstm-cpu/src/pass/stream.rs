//! Streaming: a stack of layers that runs one time step per call, without allocation.

use std::ptr::{null, null_mut};

use lstm_core::{
    CellKind, MatrixShape, Result, State,
    arithmetic::snap,
    reference::{check_stack, check_state, check_step},
    shape::zeros,
};

use crate::{
    kernel::{
        cell::{CellArgs, CellStrides},
        single_row::SingleRowArgs,
        table::PANEL_VECTORS,
    },
    layer::{Layer, PackedLayer, Plan},
    memory::tensor::Tensor,
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
}

impl CpuStream {
    /// A stream with zero state, on at most `threads` threads.
    pub(crate) fn new(layers: &[Layer], batch: usize, threads: usize) -> Result<Self> {
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        let sizes = layers.iter().map(|layer| layer.0.spec.state_size());
        let sizes = std::iter::once(layers[0].0.spec.input_size).chain(sizes).take(layers.len());
        Ok(CpuStream {
            plans: layers.iter().map(|layer| Plan::new(&layer.0, batch, 1, threads)).collect::<Result<_>>()?,
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

    /// A copy of the state of each layer.
    pub(crate) fn state(&self) -> Vec<State<Tensor>> {
        let state_tensor = |cols: usize, row: &dyn Fn(usize) -> Vec<f32>| {
            Tensor::new(MatrixShape::new(self.batch, cols), (0..self.batch).flat_map(row).collect())
        };
        let state = self.layers.iter().zip(&self.plans).map(|(Layer(layer), plan)| {
            let c_state_index = Plan::c_state_index(layer.spec.cell, plan.current_state_index);
            State {
                h: state_tensor(layer.spec.state_size(), &|b| plan.h_row(layer, plan.current_state_index, b).to_vec()),
                c: state_tensor(layer.spec.hidden_size, &|b| plan.c_row(layer, c_state_index, b).to_vec()),
            }
        });
        state.collect()
    }

    /// Replaces the state of each layer.
    pub(crate) fn set_state(&mut self, state: &[State<Tensor>]) -> Result<()> {
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.0.spec).collect();
        check_state(&specs, self.batch, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        for ((layer, plan), state) in self.layers.iter().zip(&mut self.plans).zip(state) {
            plan.set_state(&layer.0, state.h.as_slice(), state.c.as_slice());
        }
        Ok(())
    }
}

/// Runs one time step of a small layer and a single sequence with one kernel call. The result is the same as with
/// [`forward::run`], but the setup of `forward::run` would add about a third to the time. Returns false, without having
/// done anything, if the layer is too large or has a projection, or if the plan has several sequences or threads.
///
/// # Safety
/// The plan was made for this layer; `x` and `y` have the sizes of its input and output.
unsafe fn try_small_step(layer: &PackedLayer, plan: &mut Plan, x: &[f32], y: &mut [f32]) -> bool {
    let PackedLayer { spec, kernels, .. } = layer;
    let single_row_kernel = match (plan.batch, plan.threads, spec.proj_size) {
        (1, 1, None) => kernels.single_row_kernels.get(layer.panels - 1),
        _ => None,
    };
    let Some(single_row_kernel) = single_row_kernel else { return false };
    debug_assert!(plan.matches(layer) && (x.len(), y.len()) == (spec.input_size, spec.hidden_size));
    let (old_state_index, padded_hidden) = (plan.current_state_index, layer.padded_hidden());
    let [c_old, c_new] =
        [old_state_index, 1 - old_state_index].map(|h| Plan::c_state_index(spec.cell, h) * padded_hidden);
    let (h, c) = (plan.h.as_mut_ptr(), plan.c.as_mut_ptr());
    // SAFETY: guaranteed by the caller; offsets follow the layouts in `PackedLayer` and `Plan`.
    unsafe {
        let (h_old, c_old, c_new) = (h.add(old_state_index * padded_hidden), c.add(c_old), c.add(c_new));
        single_row_kernel(&SingleRowArgs {
            recurrent_operand_len: spec.hidden_size,
            recurrent_operand: if spec.cell == CellKind::PeepholeDense { c_old } else { h_old },
            u: layer.u.as_ptr(),
            cell_args: CellArgs {
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
            },
            input_len: spec.input_size,
            input: x.as_ptr(),
            w: layer.w.as_ptr(),
        });
    }
    plan.current_state_index = 1 - old_state_index;
    true
}
