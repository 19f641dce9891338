//! The backward pass of a layer over a batch of sequences, computed by the primitive operations of [`Ops`].
//!
//! Time steps run in the order opposite to the forward pass. After each chunk of time steps, one product per weight matrix
//! adds the chunk's part to the weight gradients.

use std::ops::Range;

use super::{Layer, Trace, snap_state};
use crate::{
    arithmetic::CHUNK_STEPS,
    backend::{LayerGradients, LayerOutputGradients, Ops, State, WeightGradients},
    cell::{BackwardCell, Gates, SavedStep, StepGradients, split_gates, sum_of_products},
    config::{Bias, CellKind},
    error::{Error, Result},
    memory,
    shape::{ConcatAxis, MatrixRef, MatrixShape, zeros},
};

/// Implements [`Backend::backward`](crate::Backend::backward) with the primitive operations of [`Ops`].
pub fn backward<B: Ops>(
    b: &B,
    layer: &Layer<B::Tensor>,
    trace: &Trace<B::Tensor>,
    upstream: LayerOutputGradients<'_, B::Tensor>,
) -> Result<LayerGradients<B::Tensor>> {
    let spec = layer.spec();
    let (steps, batch) = (trace.gates.len(), trace.batch);
    if trace.spec != *spec {
        return Err(Error::shape(
            "backward: trace",
            format!("a trace of {spec:?}"),
            format!("a trace of {:?}", trace.spec),
        ));
    }
    upstream.check(spec, steps, batch, |t| b.shape(t))?;
    let pass = BackwardPass { b, layer, trace, cell: BackwardCell::new(b, layer)?, batch };
    let w = if upstream.needs_input_gradient { Some(layer.input_weights(b)?) } else { None };

    let mut d = snap_state(b, upstream.state)?;
    let mut weights = upstream.accumulate;
    let num_chunks = steps.div_ceil(CHUNK_STEPS);
    let mut x = memory::with_capacity("backward", &[num_chunks])?;
    for k in 0..num_chunks {
        let start = CHUNK_STEPS * if spec.reverse { k } else { num_chunks - 1 - k };
        let chunk = start..steps.min(start + CHUNK_STEPS);
        let mut step_gradients: Vec<StepGradients<B::Tensor>> = memory::with_capacity("backward", &[chunk.len()])?;
        for k in 0..chunk.len() {
            let t = if spec.reverse { chunk.start + k } else { chunk.end - 1 - k };
            let step = pass.step(t, upstream.y, d)?;
            d = step.state.clone();
            step_gradients.push(step);
        }
        if !spec.reverse {
            step_gradients.reverse();
        }
        let z = pass.concat_rows(step_gradients.iter().map(|step| b.concat(ConcatAxis::Cols, &step.z)))?;
        weights = Some(pass.weight_gradients(chunk, &z, &step_gradients, weights)?);
        if let Some([w_i, w_f, w_g, w_o]) = &w {
            let [z_i, z_f, z_g, z_o] = split_gates(b, ConcatAxis::Cols, &z, spec.hidden_size)?;
            x.push(sum_of_products(b, &[(&z_i, w_i), (&z_f, w_f), (&z_g, w_g), (&z_o, w_o)])?);
        }
    }
    if !spec.reverse {
        x.reverse();
    }
    let x = if upstream.needs_input_gradient { Some(b.concat(ConcatAxis::Rows, &x)?) } else { None };
    let weights = weights.ok_or_else(|| Error::shape("backward: steps", "at least 1", 0))?;
    Ok(LayerGradients { x, state: d, weights })
}

/// The data that all time steps of a backward pass use.
struct BackwardPass<'a, B: Ops> {
    b: &'a B,
    layer: &'a Layer<B::Tensor>,
    trace: &'a Trace<B::Tensor>,
    cell: BackwardCell<'a, B::Tensor>,
    batch: usize,
}

impl<B: Ops> BackwardPass<'_, B> {
    /// Computes the gradients of time step `t`. `y` is the gradient of the loss with respect to the layer's outputs,
    /// and `d` with respect to the state after the time step. In the rows of sequences without this time step, the
    /// gradient of the state stays `d`, and the other gradients are zero.
    fn step(&self, t: usize, y: &B::Tensor, d: State<B::Tensor>) -> Result<StepGradients<B::Tensor>> {
        let (b, spec) = (self.b, self.layer.spec());
        let Some(gates) = &self.trace.gates[t] else {
            return Ok(StepGradients { state: d, ..self.zero_step()? });
        };
        let n = b.shape(&gates[0]).rows;
        let active_rows = |x: &B::Tensor| self.rows(x, 0..n);
        let (index_before, index_after) = if spec.reverse { (t + 1, t) } else { (t, t + 1) };
        let (state_before, state_after) = (&self.trace.states[index_before], &self.trace.states[index_after]);
        let dy = self.rows(y, t * self.batch..t * self.batch + n)?;
        let dh = b.snap(b.mul_add(1.0, &dy, None, Some(&active_rows(&d.h)?))?)?;
        let mut step = self.cell.step(
            b,
            SavedStep {
                gates: gates.clone(),
                c_old: active_rows(&state_before.c)?,
                c: active_rows(&state_after.c)?,
                h: active_rows(&state_after.h)?,
                d: State { h: dh, c: active_rows(&d.c)? },
            },
        )?;
        if n == self.batch {
            return Ok(step);
        }
        let zero_gradients = self.zero_step()?;
        let ended_rows = |x: &B::Tensor| self.rows(x, n..self.batch);
        let stack_rows =
            |top: &B::Tensor, bottom: &B::Tensor| b.concat(ConcatAxis::Rows, &[top.clone(), bottom.clone()]);
        let append_zero_rows = |top: &mut B::Tensor, zero_rows: &B::Tensor| {
            *top = stack_rows(top, &ended_rows(zero_rows)?)?;
            Ok(())
        };
        step.state = State {
            h: stack_rows(&step.state.h, &ended_rows(&d.h)?)?,
            c: stack_rows(&step.state.c, &ended_rows(&d.c)?)?,
        };
        step.z.iter_mut().zip(&zero_gradients.z).try_for_each(|(z, zeros)| append_zero_rows(z, zeros))?;
        if let (Some((dh, h)), Some((zero_dh, zero_h))) = (&mut step.projection, &zero_gradients.projection) {
            append_zero_rows(dh, zero_dh)?;
            append_zero_rows(h, zero_h)?;
        }
        if let (Some(rows), Some(zeros)) = (&mut step.peephole, &zero_gradients.peephole) {
            rows.iter_mut().zip(zeros).try_for_each(|(row, zeros)| append_zero_rows(row, zeros))?;
        }
        Ok(step)
    }

    /// Zero gradients for all rows, for a time step after the end of every sequence.
    fn zero_step(&self) -> Result<StepGradients<B::Tensor>> {
        let spec = self.layer.spec();
        let zeros = |cols| self.b.upload(MatrixShape::new(self.batch, cols), &zeros("backward", &[self.batch, cols])?);
        let (h, c) = (zeros(spec.state_size())?, zeros(spec.hidden_size)?);
        let four_zeros = || -> Gates<B::Tensor> { [c.clone(), c.clone(), c.clone(), c.clone()] };
        Ok(StepGradients {
            z: four_zeros(),
            projection: spec.proj_size.map(|_| (h.clone(), c.clone())),
            peephole: (spec.cell == CellKind::PeepholeDiagonal).then(|| [c.clone(), c.clone(), c.clone()]),
            state: State { h, c: c.clone() },
        })
    }

    /// Computes the weight gradients of a chunk of time steps and adds them to `accumulate`, the sum over the chunks
    /// before. Each gradient is one matrix product over all rows of the chunk.
    fn weight_gradients(
        &self,
        chunk: Range<usize>,
        z: &B::Tensor,
        steps: &[StepGradients<B::Tensor>],
        accumulate: Option<WeightGradients<B::Tensor>>,
    ) -> Result<WeightGradients<B::Tensor>> {
        let (b, spec, trace) = (self.b, self.layer.spec(), self.trace);
        let acc = accumulate.as_ref();
        let rows = b.shape(z).rows;
        let ones = b.upload_vec(MatrixShape::new(rows, 1), memory::filled("backward", &[rows], 1.0)?)?;
        let outer_product =
            |d: &B::Tensor, x: &B::Tensor, acc: Option<&B::Tensor>| b.gemm(MatrixRef::from(d).t(), x.into(), acc);
        let column_sums = |d: &B::Tensor, acc: Option<&B::Tensor>| b.gemm(MatrixRef::from(&ones).t(), d.into(), acc);

        let x = self.rows(&trace.x, chunk.start * self.batch..chunk.end * self.batch)?;
        let state_range = if spec.reverse { chunk.start + 1..chunk.end + 1 } else { chunk };
        let states = trace.states[state_range].iter();
        // The candidate of the dense peephole cell has no recurrent term: its gradient is zero here.
        let (recurrent_input, dz_recurrent) = match spec.cell {
            CellKind::PeepholeDense => {
                let mut parts = split_gates(b, ConcatAxis::Cols, z, spec.hidden_size)?;
                let shape = b.shape(&parts[2]);
                parts[2] = b.upload(shape, &zeros("backward", &[shape.rows, shape.cols])?)?;
                (self.concat_rows(states.map(|s| Ok(s.c.clone())))?, b.concat(ConcatAxis::Cols, &parts)?)
            }
            _ => (self.concat_rows(states.map(|s| Ok(s.h.clone())))?, z.clone()),
        };
        let projection = match spec.proj_size {
            Some(_) => {
                let parts = || steps.iter().filter_map(|step| step.projection.as_ref());
                let (d, h) = (
                    self.concat_rows(parts().map(|p| Ok(p.0.clone())))?,
                    self.concat_rows(parts().map(|p| Ok(p.1.clone())))?,
                );
                Some(outer_product(&d, &h, acc.and_then(|a| a.projection.as_ref()))?)
            }
            None => None,
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => {
                let peephole_gradient = |k: usize| {
                    let rows = steps.iter().filter_map(|s| s.peephole.as_ref()).map(|rows| Ok(rows[k].clone()));
                    column_sums(&self.concat_rows(rows)?, acc.and_then(|a| a.peephole.as_ref()).map(|p| &p[k]))
                };
                Some([peephole_gradient(0)?, peephole_gradient(1)?, peephole_gradient(2)?])
            }
            _ => None,
        };
        Ok(WeightGradients {
            input: outer_product(z, &x, acc.map(|a| &a.input))?,
            recurrent: outer_product(&dz_recurrent, &recurrent_input, acc.map(|a| &a.recurrent))?,
            bias: match spec.bias {
                Bias::None => None,
                _ => Some(column_sums(z, acc.and_then(|a| a.bias.as_ref()))?),
            },
            projection,
            peephole,
        })
    }

    fn concat_rows(&self, parts: impl Iterator<Item = Result<B::Tensor>>) -> Result<B::Tensor> {
        // At most one part for each time step of a chunk.
        self.b.concat(ConcatAxis::Rows, &memory::try_collect("backward", CHUNK_STEPS, parts)?)
    }

    fn rows(&self, x: &B::Tensor, rows: Range<usize>) -> Result<B::Tensor> {
        self.b.slice(x, rows, 0..self.b.shape(x).cols)
    }
}
