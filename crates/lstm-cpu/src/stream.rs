//! A stack of layers, one step at a time, without allocation.

use std::ptr::{null, null_mut};

use lstm_core::{
    CellKind, MatrixShape, Result, State,
    arithmetic::snap,
    reference::{check_stack, check_state, check_step},
    shape::zeros,
};

use crate::{
    kernels::PANEL_VECTORS,
    layer::{Layer, Packed, Plan},
    pool::Pool,
    sequence::{self, Walk},
    step::{Apart, CellArgs, SoloArgs},
    tensor::Tensor,
};

/// Layers, their running state and the values between them.
#[derive(Debug)]
pub struct CpuStream {
    layers: Vec<Layer>,
    plans: Vec<Plan>,
    /// The snapped input, then the output of each layer but the last.
    values: Vec<Vec<f32>>,
    batch: usize,
}

impl CpuStream {
    pub(crate) fn new(layers: &[Layer], batch: usize, threads: usize) -> Result<Self> {
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        let sizes = layers.iter().map(|layer| layer.0.spec.state_size());
        let sizes = std::iter::once(layers[0].0.spec.input_size).chain(sizes).take(layers.len());
        Ok(CpuStream {
            plans: layers.iter().map(|layer| Plan::new(&layer.0, batch, 1, threads)).collect::<Result<_>>()?,
            values: sizes.map(|size| zeros("stream", &[batch, size])).collect::<Result<_>>()?,
            layers: layers.to_vec(),
            batch,
        })
    }

    pub(crate) fn step(&mut self, pool: &Pool, x: &[f32], y: &mut [f32]) -> Result<()> {
        // `check_stack` saw to it that there is a layer.
        let (first, last) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step(self.batch, first, last, x, y)?;
        self.values[0].iter_mut().zip(x).for_each(|(to, v)| *to = snap(*v));
        for (k, (layer, plan)) in self.layers.iter().zip(&mut self.plans).enumerate() {
            let (before, after) = self.values.split_at_mut(k + 1);
            let y = after.first_mut().map_or(&mut *y, Vec::as_mut_slice);
            // SAFETY: `y` is a slice that nobody else has; the plan was made for the layer, and the values have its sizes.
            unsafe {
                if !small_step(&layer.0, plan, &before[k], y) {
                    sequence::run(pool, &layer.0, plan, Walk { steps: 1, lengths: None, x: &before[k] }, y, None);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn state(&self) -> Vec<State<Tensor>> {
        let tensor = |cols: usize, row: &dyn Fn(usize) -> Vec<f32>| {
            Tensor::new(MatrixShape::new(self.batch, cols), (0..self.batch).flat_map(row).collect())
        };
        let state = self.layers.iter().zip(&self.plans).map(|(Layer(layer), plan)| {
            let c_index = Plan::c_index(layer.spec.cell, plan.current);
            State {
                h: tensor(layer.spec.state_size(), &|b| plan.h_row(layer, plan.current, b).to_vec()),
                c: tensor(layer.spec.hidden_size, &|b| plan.c_row(layer, c_index, b).to_vec()),
            }
        });
        state.collect()
    }

    pub(crate) fn set_state(&mut self, state: &[State<Tensor>]) -> Result<()> {
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.0.spec).collect();
        check_state(&specs, self.batch, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        for ((layer, plan), state) in self.layers.iter().zip(&mut self.plans).zip(state) {
            plan.set_state(&layer.0, state.h.as_slice(), state.c.as_slice());
        }
        Ok(())
    }
}

/// One step of one sequence of a small layer in one go, as [`sequence::run`] would make it, but without all that a run
/// prepares, which takes a third as long. Returns false, having done nothing, if the layer or the plan is none for that.
///
/// # Safety
/// The plan was made for this layer; `x` and `y` have the sizes of its input and output.
unsafe fn small_step(layer: &Packed, plan: &mut Plan, x: &[f32], y: &mut [f32]) -> bool {
    let Packed { spec, kernels, .. } = layer;
    let solo = match (plan.batch, plan.threads, spec.proj_size) {
        (1, 1, None) => kernels.solo.get(layer.panels - 1),
        _ => None,
    };
    let Some(solo) = solo else { return false };
    debug_assert!(plan.fits(layer) && (x.len(), y.len()) == (spec.input_size, spec.hidden_size));
    let (old, padded) = (plan.current, layer.padded());
    let [c_old, c_new] = [old, 1 - old].map(|h| Plan::c_index(spec.cell, h) * padded);
    let (h, c) = (plan.h.as_mut_ptr(), plan.c.as_mut_ptr());
    // SAFETY: the caller's promise; offsets follow the layouts in `Packed` and `Plan`.
    unsafe {
        let (h_old, c_old, c_new) = (h.add(old * padded), c.add(c_old), c.add(c_new));
        solo(&SoloArgs {
            k: spec.hidden_size,
            operand: if spec.cell == CellKind::PeepholeDense { c_old } else { h_old },
            u: layer.u.as_ptr(),
            cell: CellArgs {
                count: layer.panels,
                apart: Apart::panels(kernels, 0, 0, 0),
                x: null(),
                z: [null(); PANEL_VECTORS],
                bias: layer.bias.as_ptr(),
                peephole: layer.peephole.as_ptr(),
                c_old,
                c_new,
                h: h.add((1 - old) * padded),
                y: y.as_mut_ptr(),
                units: spec.hidden_size,
                gates: null_mut(),
                cell: spec.cell,
                coupled: spec.coupled,
                clip: spec.clip,
            },
            n: spec.input_size,
            input: x.as_ptr(),
            w: layer.w.as_ptr(),
        });
    }
    plan.current = 1 - old;
    true
}
