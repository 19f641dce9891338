//! A layer's backward pass: a dispatch a step, or one for all of them, then one product over all chunks for each weight.

use std::sync::Arc;

use lstm_core::{
    Bias, CellKind, ConcatAxis, Error, LayerGradients, LayerOutputGradients, MatrixShape, Result, WeightGradients,
    arithmetic::{CHUNK, sigmoid, tanh},
    shape::checked_len,
};

use crate::{
    forward::{AT_ONCE, get_state},
    gpu::Gpu,
    layer::{Layer, Packed, workgroups},
    parameters::{BackwardSteps, Copy, Gemm},
    shader::Kernel,
    tensor::{Memory, Tensor},
    trace::Trace,
};

const OP: &str = "backward";

pub(crate) fn backward(
    gpu: &Gpu,
    Layer(layer): &Layer,
    trace: &Trace,
    upstream: LayerOutputGradients<'_, Tensor>,
) -> Result<LayerGradients<Tensor>> {
    let (spec, steps, batch) = (&layer.spec, trace.steps, trace.batch);
    if trace.spec != *spec {
        return Err(Error::shape("backward: trace", format!("one of {spec:?}"), format!("one of {:?}", trace.spec)));
    }
    upstream.check(spec, steps, batch, |x| x.shape)?;
    let (hidden, state, rows) = (spec.hidden_size, spec.state_size(), steps * batch);

    let d = crate::forward::states(gpu, OP, spec, (1, batch, 0), upstream.state)?;
    let dz = gpu.tensor(OP, MatrixShape::new(rows, 4 * hidden))?;
    let dh = match spec.proj_size {
        Some(_) => Some(gpu.tensor(OP, MatrixShape::new(rows, state))?),
        None => None,
    };
    walk(gpu, layer, trace, &upstream.y.memory, &dz.memory, dh.as_ref().map(|dh| &dh.memory), &d)?;

    let x = if upstream.need_x {
        let input = spec.input_size;
        let gates = Gemm {
            k: 4 * hidden as u32,
            segment: hidden as u32,
            segments: 4,
            a_row: 4 * hidden as u32,
            a_k: 1,
            a_segment: hidden as u32,
            b_k: input as u32,
            b_col: 1,
            b_segment: (hidden * input) as u32,
            ..Gemm::default()
        };
        Some(gpu.product(OP, &dz.memory, &layer.w, None, MatrixShape::new(rows, input), gates)?)
    } else {
        None
    };
    Ok(LayerGradients {
        x,
        state: get_state(gpu, OP, spec, &d, (1, batch, 0))?,
        weights: weights(gpu, layer, trace, &dz, dh.as_ref(), upstream.accumulate.as_ref())?,
    })
}

/// All steps, then the gradient of the initial state.
fn walk(
    gpu: &Gpu,
    layer: &Packed,
    trace: &Trace,
    dy: &Arc<Memory>,
    dz: &Arc<Memory>,
    dh: Option<&Arc<Memory>>,
    d: &Arc<Memory>,
) -> Result<()> {
    let (spec, batch) = (&layer.spec, trace.batch);
    let (hidden, state) = (spec.hidden_size, spec.state_size());
    let bound = spec.clip.unwrap_or_default();
    let parameters = |first: u32, last: u32| BackwardSteps {
        batch: batch as u32,
        steps: trace.steps as u32,
        hidden: hidden as u32,
        state: state as u32,
        first,
        last,
        reverse: u32::from(spec.reverse),
        has_lengths: u32::from(trace.lengths.is_some()),
        sigmoid_low: sigmoid(-bound),
        sigmoid_high: sigmoid(bound),
        tanh_low: tanh(-bound),
        tanh_high: tanh(bound),
    };
    let lengths = trace.lengths.as_ref().unwrap_or(&layer.w);
    let peephole = layer.peephole.as_ref().unwrap_or(&layer.w);
    let steps = trace.steps as u32;

    let length = spec.proj_size.unwrap_or(hidden);
    let spread = layer.spread(gpu, batch, hidden, length);
    let kernel = Kernel::Backward { options: layer.options, spread };
    let groups = workgroups(spread, batch, hidden);
    let (product, upstream) = match (&layer.projection, dh) {
        (Some(projection), Some(dh)) => (&projection.w, dh),
        _ => (&layer.u, dy),
    };
    let buffers = [&trace.gates, &trace.states, product, upstream, dz, d, lengths, peephole];
    let step = gpu.bind(OP, kernel, &buffers)?;
    let Some(dh) = dh else {
        if layer.walks_whole(gpu) {
            return (0..=steps)
                .step_by(AT_ONCE as usize)
                .try_for_each(|v| gpu.dispatch(OP, &step, &parameters(v, (steps + 1).min(v + AT_ONCE)), groups));
        }
        return (0..=steps).try_for_each(|v| gpu.dispatch(OP, &step, &parameters(v, v + 1), groups));
    };
    let spread = layer.spread(gpu, batch, state, hidden);
    let of_state = gpu.bind(OP, Kernel::StateGradient(spread), &[dz, &layer.u, dy, dh, d, lengths])?;
    let of_state_groups = workgroups(spread, batch, state);
    for v in 0..=steps {
        gpu.dispatch(OP, &of_state, &parameters(v, v + 1), of_state_groups)?;
        if v < steps {
            gpu.dispatch(OP, &step, &parameters(v, v + 1), groups)?;
        }
    }
    Ok(())
}

/// The weights' gradients: products over the rows of each chunk of steps, added in the order of the walk.
fn weights(
    gpu: &Gpu,
    layer: &Packed,
    trace: &Trace,
    dz: &Tensor,
    dh: Option<&Tensor>,
    onto: Option<&WeightGradients<Tensor>>,
) -> Result<WeightGradients<Tensor>> {
    let (spec, batch) = (&layer.spec, trace.batch);
    let (hidden, state, rows) = (spec.hidden_size, spec.state_size(), dz.shape.rows);
    // A single chunk is as long as there are rows.
    let chunk = (CHUNK * batch).min(rows);
    // The sum over rows of d^T x, where x starts at an element of its memory; without x, of d.
    let sum = |d: &Tensor, x: Option<(&Arc<Memory>, usize, usize)>, onto: Option<&Tensor>| {
        let cols = d.shape.cols;
        let walk = Gemm {
            k: rows as u32,
            segment: chunk as u32,
            segments: rows.div_ceil(chunk) as u32,
            descending: u32::from(!spec.reverse),
            ..Gemm::default()
        };
        match x {
            Some((x, start, width)) => {
                let parameters = Gemm {
                    a_row: 1,
                    a_k: cols as u32,
                    a_segment: (chunk * cols) as u32,
                    b_k: width as u32,
                    b_col: 1,
                    b_segment: (chunk * width) as u32,
                    b_start: start as u32,
                    ..walk
                };
                gpu.product(OP, &d.memory, x, onto, MatrixShape::new(cols, width), parameters)
            }
            None => {
                let one = gpu.upload(OP, bytemuck::bytes_of(&1f32))?;
                let parameters = Gemm { b_k: cols as u32, b_col: 1, b_segment: (chunk * cols) as u32, ..walk };
                gpu.product(OP, &one, &d.memory, onto, MatrixShape::new(1, cols), parameters)
            }
        }
    };
    // The states before and after each step, as rows: see `Trace`.
    let (before, after) = if spec.reverse { (batch, 0) } else { (0, batch) };
    let cells = (trace.steps + 1) * batch * state;
    let column = |gate: usize| gpu.slice(dz, 0..rows, gate * hidden..(gate + 1) * hidden);

    let recurrent = onto.map(|o| &o.recurrent);
    let recurrent = match spec.cell {
        // Its candidate does not see the state.
        CellKind::PeepholeDense => {
            let zeros = Tensor { shape: MatrixShape::new(rows, hidden), memory: zeros(gpu, rows * hidden)? };
            let seen = gpu.concat(ConcatAxis::Cols, &[column(0)?, column(1)?, zeros, column(3)?])?;
            sum(&seen, Some((&trace.states, cells + before * hidden, hidden)), recurrent)?
        }
        _ => sum(dz, Some((&trace.states, before * state, state)), recurrent)?,
    };
    let projection = match (dh, &trace.projected) {
        (Some(dh), Some(m)) => Some(sum(dh, Some((m, 0, hidden)), onto.and_then(|o| o.projection.as_ref()))?),
        _ => None,
    };
    let peephole = match spec.cell {
        CellKind::PeepholeDiagonal => {
            let shape = MatrixShape::new(rows, hidden);
            let cells_at = |row: usize| gpu.rows(OP, &trace.states, cells + row * hidden, shape);
            let (old, new) = (cells_at(before)?, cells_at(after)?);
            let vector = |k: usize, gate: usize, c: &Tensor| {
                let products = gpu.mul_add(1.0, &column(gate)?, Some(c), None)?;
                sum(&products, None, onto.and_then(|o| o.peephole.as_ref()).map(|p| &p[k]))
            };
            Some([vector(0, 0, &old)?, vector(1, 1, &old)?, vector(2, 3, &new)?])
        }
        _ => None,
    };
    Ok(WeightGradients {
        input: sum(dz, Some((&trace.x.memory, 0, spec.input_size)), onto.map(|o| &o.input))?,
        recurrent,
        bias: match spec.bias {
            Bias::None => None,
            _ => Some(sum(dz, None, onto.and_then(|o| o.bias.as_ref()))?),
        },
        projection,
        peephole,
    })
}

fn zeros(gpu: &Gpu, len: usize) -> Result<Arc<Memory>> {
    // One zero, spread over all rows.
    let zero = gpu.upload(OP, bytemuck::bytes_of(&0f32))?;
    let zeros = gpu.allocate(OP, checked_len(OP, &[len])?)?;
    let parameters = Copy { rows: len as u32, cols: 1, x_start: 0, x_cols: 0, y_start: 0, y_cols: 1, snap: 0 };
    gpu.copy(OP, &zero, &zeros, &parameters)?;
    Ok(zeros)
}
