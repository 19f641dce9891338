//! Compares the results of an adapter's kernels with the specification.

use lstm_core::{
    Backend, CellKind, Checkpointing, Direction, LayerWeights, Lstm, LstmConfig, MatrixShape, Ops, OutputGradients,
    QuantizedMatrix, Reference, Result, Sequence, State, Weights,
    arithmetic::{dot, sigmoid, snap, tanh},
    ndarray::Array3,
    quantized::{INT8, INT12, OperandRange},
};

use super::{
    run_kernel,
    samples::{Random, activation_inputs, fma_operands},
};
use crate::{
    backend::Wgpu,
    memory::Tensor,
    shader::{Kernel, Unary},
};

/// Describes the first difference between the results of the kernels and the specification. `None` if there is none.
pub(super) async fn first_difference(wgpu: &Wgpu) -> Result<Option<String>> {
    let gpu = wgpu.gpu();
    let x = fma_operands();
    let expected: Vec<f32> = x.chunks_exact(3).map(|t| t[0].mul_add(t[1], t[2])).collect();
    let actual = run_kernel(gpu, Kernel::FmaSamples, &x, expected.len(), expected.len().div_ceil(64)).await?;
    if let Some(difference) = describe_difference("fma", &expected, &actual) {
        return Ok(Some(difference));
    }
    let x = activation_inputs();
    let shape = MatrixShape::new(1, x.len());
    let tensor = wgpu.upload(shape, &x)?;
    for (name, operation, function) in [
        ("sigmoid", Unary::Sigmoid, sigmoid as fn(f32) -> f32),
        ("tanh", Unary::Tanh, tanh),
        ("snap", Unary::Snap, snap),
    ] {
        let expected: Vec<f32> = x.iter().map(|&x| function(x)).collect();
        let actual = download(wgpu, &gpu.apply_unary("probe", operation, &tensor, 0.0)?).await?;
        if let Some(difference) = describe_difference(name, &expected, &actual) {
            return Ok(Some(difference));
        }
    }
    // Two sizes, for the direct kernel and for the blocked or tiled one.
    let mut random = Random(5);
    for (m, k, n) in [(5, 67, 9), (65, 97, 66)] {
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..m * k).map(|_| random.next_float()).collect(), (0..k * n).map(|_| random.next_float()).collect());
        let expected: Vec<f32> = (0..m * n).map(|i| dot(k, |j| a[i / n * k + j], |j| b[j * n + i % n])).collect();
        let (a, b) = (wgpu.upload(MatrixShape::new(m, k), &a)?, wgpu.upload(MatrixShape::new(k, n), &b)?);
        let actual = download(wgpu, &gpu.gemm((&a).into(), (&b).into(), None)?).await?;
        if let Some(difference) = describe_difference("gemm", &expected, &actual) {
            return Ok(Some(difference));
        }
    }
    let x: Vec<f32> = (0..300).map(|_| random.next_float()).collect();
    let (matrix, row) = (wgpu.upload(MatrixShape::new(20, 15), &x)?, wgpu.upload(MatrixShape::new(1, 15), &x[..15])?);
    let expected: Vec<f32> = (0..300).map(|k| (0.5 * x[k]).mul_add(x[k % 15], x[k])).collect();
    let actual = download(wgpu, &gpu.mul_add(0.5, &matrix, Some(&row), Some(&matrix))?).await?;
    if let Some(difference) = describe_difference("mul_add", &expected, &actual) {
        return Ok(Some(difference));
    }
    if let Some(difference) = compare_quantized(wgpu).await? {
        return Ok(Some(difference));
    }
    if let Some(difference) = compare_forward(wgpu).await? {
        return Ok(Some(difference));
    }
    // The checks above cover all that the reference path consists of. Now compare the fused passes with that path.
    let large_config = LstmConfig::new(6, 150);
    let config_with_all_options = LstmConfig::new(6, 20)
        .cell(CellKind::PeepholeDiagonal)
        .coupled()
        .clip(2.0)
        .proj_size(7)
        .direction(Direction::Reverse);
    for (name, config) in
        [("passes with one dispatch per step", large_config), ("passes with all options", config_with_all_options)]
    {
        let weights = Weights::init(config, &Default::default(), 3)?;
        let expected = training_results(&Lstm::new(&Reference(wgpu.clone()), weights.clone())?).await?;
        let actual = training_results(&Lstm::new(wgpu, weights)?).await?;
        if let Some(difference) = describe_difference(name, &expected, &actual) {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

/// Compares products with quantized matrices with plain Rust. One row has large values, and one is not finite.
async fn compare_quantized(wgpu: &Wgpu) -> Result<Option<String>> {
    let (rows, cols) = (4, 5);
    let mut random = Random(17);
    for (format, inputs) in [(INT8, 7), (INT8, INT8.block + 33), (INT12, 6), (INT12, 2 * INT12.block + 1)] {
        let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| snap(random.next_float())).collect() };
        let (mut a, w, bias) = (values(rows * inputs), values(cols * inputs), values(cols));
        a[inputs..2 * inputs].iter_mut().for_each(|v| *v *= 300.0);
        a[2 * inputs + 1] = f32::INFINITY;
        let mut q = vec![0; w.len()];
        let rows_of_w = w.chunks_exact(inputs).zip(q.chunks_exact_mut(inputs));
        let scale: Vec<f32> = rows_of_w.map(|(w, q)| format.quantize_weights(w, q)).collect();
        let row = MatrixShape::new(1, cols);
        let q_floats: Vec<f32> = q.iter().map(|&q| f32::from(q)).collect();
        let weights = QuantizedMatrix {
            q: wgpu.upload(MatrixShape::new(cols, inputs), &q_floats)?,
            scale: wgpu.upload(row, &scale)?,
            format,
        };
        let (tensor_a, acc) = (wgpu.upload(MatrixShape::new(rows, inputs), &a)?, wgpu.upload(row, &bias)?);
        for range in [OperandRange::Any, OperandRange::Unit] {
            let mut expected = bias.repeat(rows);
            for (z, a) in expected.chunks_exact_mut(cols).zip(a.chunks_exact(inputs)) {
                format.multiply_row(a, range, &q, &scale, z);
            }
            let actual = download(wgpu, &wgpu.gemm_quantized(&tensor_a, &weights, range, Some(&acc))?).await?;
            let name = format!("{} product of {inputs} inputs", format.precision);
            if let Some(difference) = describe_difference(&name, &expected, &actual) {
                return Ok(Some(difference));
            }
        }
    }
    Ok(None)
}

/// All outputs, states and gradients of a forward and a backward pass.
async fn training_results<B: Backend>(lstm: &Lstm<B>) -> Result<Vec<f32>> {
    let mut random = Random(13);
    let x = Array3::from_shape_simple_fn((3, 3, 6), || random.next_float());
    let pass = lstm.forward_train_async(&x, Checkpointing::SaveEverything).await?;
    let gradients = pass.tape.backward_async(OutputGradients::from(&pass.y).with_input_gradient()).await?;
    let mut results: Vec<f32> = pass.y.iter().chain(&pass.state.h).chain(&pass.state.c).copied().collect();
    results.extend(gradients.x.iter().flatten().chain(&gradients.state.h).chain(&gradients.state.c));
    for layer in gradients.weights.layers() {
        results.extend(layer.iter().flat_map(|(_, values)| values.iter().copied().collect::<Vec<f32>>()));
    }
    Ok(results)
}

/// Compares the forward pass of a small layer with plain Rust.
async fn compare_forward(wgpu: &Wgpu) -> Result<Option<String>> {
    let (input, hidden, batch, steps) = (5, 40, 3, 4);
    let mut random = Random(7);
    let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| random.next_float()).collect() };
    let weights = Weights::init(LstmConfig::new(input, hidden), &Default::default(), 3)?;
    let (x, h, c) = (values(steps * batch * input), values(batch * hidden), values(batch * hidden));
    let expected = forward_in_rust(&weights.layers()[0], &x, &h, &c, (steps, batch))?;

    let layer = wgpu.load(&weights.layers()[0])?;
    let upload = |rows, data: &[f32]| wgpu.upload(MatrixShape::new(rows, data.len() / rows), data);
    let state = State { h: upload(batch, &h)?, c: upload(batch, &c)? };
    let sequence = Sequence { x: &upload(steps * batch, &x)?, state: &state, steps, batch, lengths: None };
    let output = wgpu.forward(&layer, &mut wgpu.plan(&layer, batch, steps)?, sequence)?;
    let actual = download(wgpu, &output.y).await?;
    Ok(describe_difference("forward pass of a layer", &expected, &actual))
}

/// The forward pass of a layer without options, in plain Rust. Returns `y`.
fn forward_in_rust(
    weights: &LayerWeights,
    x: &[f32],
    h: &[f32],
    c: &[f32],
    (steps, batch): (usize, usize),
) -> Result<Vec<f32>> {
    use lstm_core::Param::{WeightHh, WeightIh};
    let (input, hidden) = (weights.spec().input_size, weights.spec().hidden_size);
    let snap_all = |v: &[f32]| v.iter().map(|&v| snap(v)).collect::<Vec<f32>>();
    let snapped_param = |param| snap_all(weights.get(param).and_then(|v| v.as_slice()).unwrap_or_default());
    let (w, u, bias) =
        (snapped_param(WeightIh), snapped_param(WeightHh), snap_all(&weights.bias()?.unwrap_or_default()));
    let (x, mut h, mut c, mut y) = (snap_all(x), snap_all(h), snap_all(c), Vec::new());
    for t in 0..steps {
        let h_old = h.clone();
        for (b, j) in (0..batch).flat_map(|b| (0..hidden).map(move |j| (b, j))) {
            let z = |gate: usize| {
                let row = gate * hidden + j;
                let wx = dot(input, |k| x[(t * batch + b) * input + k], |k| w[row * input + k]);
                (bias[row] + wx) + dot(hidden, |k| h_old[b * hidden + k], |k| u[row * hidden + k])
            };
            let (i, f, g, o) = (sigmoid(z(0)), sigmoid(z(1)), snap(tanh(z(2))), sigmoid(z(3)));
            let index = b * hidden + j;
            c[index] = snap(f.mul_add(c[index], i * g));
            h[index] = snap(o * tanh(c[index]));
        }
        y.extend_from_slice(&h);
    }
    Ok(y)
}

async fn download(wgpu: &Wgpu, x: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; x.shape.len()];
    wgpu.download(x, &mut out).await?;
    Ok(out)
}

/// Describes the first difference in bits between two results. All NaN count as equal.
fn describe_difference(name: &str, expected: &[f32], actual: &[f32]) -> Option<String> {
    let differs = |(e, a): &(&f32, &f32)| e.to_bits() != a.to_bits() && !(e.is_nan() && a.is_nan());
    let count = expected.iter().zip(actual).filter(differs).count();
    let (k, (e, a)) = expected.iter().zip(actual).enumerate().find(|(_, pair)| differs(pair))?;
    Some(format!(
        "{name}: {count} of {} values differ, first at index {k}: expected {:08x}, found {:08x}",
        expected.len(),
        e.to_bits(),
        a.to_bits()
    ))
}
