//! Backward pass of a layer. It first runs the time steps, of which a dispatch runs one or many, and then computes one
//! matrix product for each weight.

use std::sync::Arc;

use lstm_core::{
    Bias, CellKind, ConcatAxis, Error, LayerGradients, LayerOutputGradients, MatrixShape, Result, WeightGradients,
    arithmetic::{CHUNK_STEPS, sigmoid, tanh},
    shape::checked_len,
};

use super::{
    forward::MAX_ITERATIONS_PER_DISPATCH,
    layer::{Layer, PackedWeights, workgroup_count},
    state::{StateSlot, allocate_states, read_state},
    trace::Trace,
};
use crate::{
    device::Gpu,
    memory::{DeviceMemory, Tensor},
    shader::{BackwardParameters, CopyParameters, GemmParameters, Kernel},
};

const OP: &str = "backward";

/// Computes the gradients of a layer from the gradients of its outputs.
pub(crate) fn backward(
    gpu: &Gpu,
    Layer(layer): &Layer,
    trace: &Trace,
    output_gradients: LayerOutputGradients<'_, Tensor>,
) -> Result<LayerGradients<Tensor>> {
    let (spec, steps, batch) = (&layer.spec, trace.steps, trace.batch);
    if trace.spec != *spec {
        let (expected, actual) = (format!("a trace of {spec:?}"), format!("a trace of {:?}", trace.spec));
        return Err(Error::shape("backward: trace", expected, actual));
    }
    output_gradients.check(spec, steps, batch, |x| x.shape)?;
    let (hidden, state, rows) = (spec.hidden_size, spec.state_size(), steps * batch);

    let slot = StateSlot { slot_count: 1, batch, index: 0 };
    let state_gradients = allocate_states(gpu, OP, spec, slot, output_gradients.state)?;
    let dz = gpu.allocate_tensor(OP, MatrixShape::new(rows, 4 * hidden))?;
    let dh = match spec.proj_size {
        Some(_) => Some(gpu.allocate_tensor(OP, MatrixShape::new(rows, state))?),
        None => None,
    };
    let buffers = StepBuffers {
        dy: &output_gradients.y.memory,
        dz: &dz.memory,
        dh: dh.as_ref().map(|dh| &dh.memory),
        state_gradients: &state_gradients,
    };
    run_steps(gpu, layer, trace, &buffers)?;

    let x = if output_gradients.needs_input_gradient {
        let input = spec.input_size;
        // The sum over the four gates of dz times the gate's input weights.
        let parameters = GemmParameters {
            k: 4 * hidden as u32,
            segment_length: hidden as u32,
            segment_count: 4,
            a_row_stride: 4 * hidden as u32,
            a_k_stride: 1,
            a_segment_stride: hidden as u32,
            b_k_stride: input as u32,
            b_col_stride: 1,
            b_segment_stride: (hidden * input) as u32,
            ..GemmParameters::default()
        };
        Some(gpu.matrix_product(OP, &dz.memory, &layer.weight_ih, None, MatrixShape::new(rows, input), parameters)?)
    } else {
        None
    };
    Ok(LayerGradients {
        x,
        state: read_state(gpu, OP, spec, &state_gradients, slot, 0..batch)?,
        weights: weight_gradients(gpu, layer, trace, &dz, dh.as_ref(), output_gradients.accumulate.as_ref())?,
    })
}

/// Buffers that the steps of the backward pass read and write.
struct StepBuffers<'a> {
    /// Gradient of y, `[steps * batch, state]`.
    dy: &'a Arc<DeviceMemory>,
    /// Result: gradient of the gates' pre-activations, `[steps * batch, 4 * hidden]`.
    dz: &'a Arc<DeviceMemory>,
    /// Result: gradient of the output h, `[steps * batch, state]`. Includes the part that comes from the following
    /// step. `None` without a projection.
    dh: Option<&'a Arc<DeviceMemory>>,
    /// Gradient of the final state. The steps overwrite it with the gradient of the initial state.
    state_gradients: &'a Arc<DeviceMemory>,
}

/// Runs the backward time steps, and one more iteration for the gradients of the initial state.
fn run_steps(gpu: &Gpu, layer: &PackedWeights, trace: &Trace, buffers: &StepBuffers<'_>) -> Result<()> {
    let StepBuffers { dy, dz, dh, state_gradients } = *buffers;
    let (spec, batch) = (&layer.spec, trace.batch);
    let (hidden, state) = (spec.hidden_size, spec.state_size());
    let bound = spec.clip.unwrap_or_default();
    let parameters = |first_iteration: u32, end_iteration: u32| BackwardParameters {
        batch: batch as u32,
        steps: trace.steps as u32,
        hidden_size: hidden as u32,
        state_size: state as u32,
        first_iteration,
        end_iteration,
        reverse: u32::from(spec.reverse),
        has_lengths: u32::from(trace.lengths.is_some()),
        sigmoid_low: sigmoid(-bound),
        sigmoid_high: sigmoid(bound),
        tanh_low: tanh(-bound),
        tanh_high: tanh(bound),
    };
    // Every binding needs a buffer. Bindings of absent operands are not read.
    let placeholder_buffer = &layer.weight_ih;
    let lengths = trace.lengths.as_ref().unwrap_or(placeholder_buffer);
    let peephole = layer.peephole.as_ref().unwrap_or(placeholder_buffer);
    let steps = trace.steps as u32;

    let inner_size = spec.proj_size.unwrap_or(hidden);
    let tiling = layer.step_tiling(gpu, batch, hidden, inner_size);
    let kernel = Kernel::Backward { options: layer.options, tiling };
    let workgroups = workgroup_count(tiling, batch, hidden);
    let (weights, output_gradients) = match (&layer.projection, dh) {
        (Some(projection), Some(dh)) => (&projection.weight_hr, dh),
        _ => (&layer.weight_hh, dy),
    };
    let bindings = [&trace.gates, &trace.states, weights, output_gradients, dz, state_gradients, lengths, peephole];
    let step_kernel = gpu.bind(OP, kernel, &bindings)?;
    let Some(dh) = dh else {
        let iterations_per_dispatch = if layer.is_multi_step(gpu) { MAX_ITERATIONS_PER_DISPATCH } else { 1 };
        return (0..=steps).step_by(iterations_per_dispatch as usize).try_for_each(|first| {
            gpu.dispatch(
                OP,
                &step_kernel,
                &parameters(first, (steps + 1).min(first + iterations_per_dispatch)),
                workgroups,
            )
        });
    };
    let tiling = layer.step_tiling(gpu, batch, state, hidden);
    let state_gradient_bindings = [dz, &layer.weight_hh, dy, dh, state_gradients, lengths];
    let state_gradient_kernel = gpu.bind(OP, Kernel::StateGradient(tiling), &state_gradient_bindings)?;
    let state_gradient_workgroups = workgroup_count(tiling, batch, state);
    for iteration in 0..=steps {
        let parameters = parameters(iteration, iteration + 1);
        gpu.dispatch(OP, &state_gradient_kernel, &parameters, state_gradient_workgroups)?;
        if iteration < steps {
            gpu.dispatch(OP, &step_kernel, &parameters, workgroups)?;
        }
    }
    Ok(())
}

/// Computes the gradients of the weights. Each is the sum of one matrix product per chunk of time steps. The products
/// are added in the order in which the backward pass processes the chunks.
fn weight_gradients(
    gpu: &Gpu,
    layer: &PackedWeights,
    trace: &Trace,
    dz: &Tensor,
    dh: Option<&Tensor>,
    accumulate: Option<&WeightGradients<Tensor>>,
) -> Result<WeightGradients<Tensor>> {
    let (spec, batch) = (&layer.spec, trace.batch);
    let (hidden, state, rows) = (spec.hidden_size, spec.state_size(), dz.shape.rows);
    // A sequence shorter than a chunk is a single chunk.
    let chunk_rows = (CHUNK_STEPS * batch).min(rows);
    let chunk_parameters = GemmParameters {
        k: rows as u32,
        segment_length: chunk_rows as u32,
        segment_count: rows.div_ceil(chunk_rows) as u32,
        descending_segments: u32::from(!spec.reverse),
        ..GemmParameters::default()
    };
    // accumulate + d^T x, where x is given by its memory, its offset in elements and its number of columns.
    let transposed_product =
        |d: &Tensor, (x, offset, width): (&Arc<DeviceMemory>, usize, usize), accumulate: Option<&Tensor>| {
            let cols = d.shape.cols;
            let parameters = GemmParameters {
                a_row_stride: 1,
                a_k_stride: cols as u32,
                a_segment_stride: (chunk_rows * cols) as u32,
                b_k_stride: width as u32,
                b_col_stride: 1,
                b_segment_stride: (chunk_rows * width) as u32,
                b_offset: offset as u32,
                ..chunk_parameters
            };
            gpu.matrix_product(OP, &d.memory, x, accumulate, MatrixShape::new(cols, width), parameters)
        };
    // accumulate + the sum of the rows of d, as a product with a row of ones whose stride is 0.
    let sum_rows = |d: &Tensor, accumulate: Option<&Tensor>| {
        let cols = d.shape.cols;
        let one = gpu.upload(OP, bytemuck::bytes_of(&1f32))?;
        let parameters = GemmParameters {
            b_k_stride: cols as u32,
            b_col_stride: 1,
            b_segment_stride: (chunk_rows * cols) as u32,
            ..chunk_parameters
        };
        gpu.matrix_product(OP, &one, &d.memory, accumulate, MatrixShape::new(1, cols), parameters)
    };
    // First rows of the states before and after each step; see `Trace::states`.
    let (old_row, new_row) = if spec.reverse { (batch, 0) } else { (0, batch) };
    let c_offset = (trace.steps + 1) * batch * state;
    let gate_columns = |gate: usize| gpu.slice(dz, 0..rows, gate * hidden..(gate + 1) * hidden);

    let accumulate_recurrent = accumulate.map(|a| &a.recurrent);
    let recurrent = match spec.cell {
        // The gates i, f and o of this cell read c. The candidate g has no recurrent term.
        CellKind::PeepholeDense => {
            let zeros = Tensor { shape: MatrixShape::new(rows, hidden), memory: zeros(gpu, rows * hidden)? };
            let dz_columns = [gate_columns(0)?, gate_columns(1)?, zeros, gate_columns(3)?];
            let d = gpu.concat(ConcatAxis::Cols, &dz_columns)?;
            transposed_product(&d, (&trace.states, c_offset + old_row * hidden, hidden), accumulate_recurrent)?
        }
        _ => transposed_product(dz, (&trace.states, old_row * state, state), accumulate_recurrent)?,
    };
    let projection = match (dh, &trace.projection_input) {
        (Some(dh), Some(m)) => {
            let accumulate = accumulate.and_then(|a| a.projection.as_ref());
            Some(transposed_product(dh, (m, 0, hidden), accumulate)?)
        }
        _ => None,
    };
    let peephole = match spec.cell {
        CellKind::PeepholeDiagonal => {
            let shape = MatrixShape::new(rows, hidden);
            let cell_states = |row: usize| gpu.copy_rows(OP, &trace.states, c_offset + row * hidden, shape);
            let (c_old, c_new) = (cell_states(old_row)?, cell_states(new_row)?);
            let peephole_gradient = |index: usize, gate: usize, c: &Tensor| {
                let products = gpu.mul_add(1.0, &gate_columns(gate)?, Some(c), None)?;
                sum_rows(&products, accumulate.and_then(|a| a.peephole.as_ref()).map(|p| &p[index]))
            };
            Some([peephole_gradient(0, 0, &c_old)?, peephole_gradient(1, 1, &c_old)?, peephole_gradient(2, 3, &c_new)?])
        }
        _ => None,
    };
    Ok(WeightGradients {
        input: transposed_product(dz, (&trace.x.memory, 0, spec.input_size), accumulate.map(|a| &a.input))?,
        recurrent,
        bias: match spec.bias {
            Bias::None => None,
            _ => Some(sum_rows(dz, accumulate.and_then(|a| a.bias.as_ref()))?),
        },
        projection,
        peephole,
    })
}

/// Allocates memory for `len` zeros.
fn zeros(gpu: &Gpu, len: usize) -> Result<Arc<DeviceMemory>> {
    // Copies a single zero with a stride of 0.
    let zero = gpu.upload(OP, bytemuck::bytes_of(&0f32))?;
    let zeros = gpu.allocate(OP, checked_len(OP, &[len])?)?;
    let parameters = CopyParameters {
        rows: len as u32,
        cols: 1,
        x_offset: 0,
        x_stride: 0,
        y_offset: 0,
        y_stride: 1,
        snap_values: 0,
    };
    gpu.copy_rectangle(OP, &zero, &zeros, &parameters)?;
    Ok(zeros)
}
