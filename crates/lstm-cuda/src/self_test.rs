//! Tests of a device's arithmetic, which run each time a device is opened: whether results are bit-identical to the
//! specification, or in TF32 mode whether they are as accurate as TF32.

use std::sync::Arc;

use lstm_core::{
    Arithmetic, Backend, CellKind, Checkpointing, Error, Init, LayerOutputGradients, LayerSpec, Lstm, LstmConfig,
    MatrixRef, MatrixShape, Ops, OutputGradients, QuantizedMatrix, Reference, Result, Sequence, State, Weights,
    arithmetic as spec,
    ndarray::Array3,
    quantized::{INT8, INT12, OperandRange},
};

use crate::{
    backend::CudaBackend,
    driver::Driver,
    layer::{DeviceWeights, Layer},
    tensor::Tensor,
};

/// The number of inputs for which activations are tested, spread over all bit patterns.
const ACTIVATION_SAMPLES: u32 = 1 << 14;

/// Describes the first value that is not bit-identical to the expected one; `None` if there is none. All NaNs count as
/// equal.
fn first_difference<'a>(
    name: &str,
    got: impl IntoIterator<Item = &'a f32>,
    want: impl IntoIterator<Item = &'a f32>,
) -> Option<String> {
    let pairs = got.into_iter().zip(want).enumerate();
    let mut differences = pairs.filter(|(_, (a, b))| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
    let (index, (a, b)) = differences.next()?;
    Some(format!("{name}, element {index}: got {a:e}, expected {b:e}, and {} more", differences.count()))
}

/// Returns pseudorandom values in [-1, 1), which vary in all bits and are snapped (no magnitude is below 2^-40 except
/// zero).
fn test_values(len: usize) -> Vec<f32> {
    let pseudorandom_bits = |k: usize| (k as u32).wrapping_mul(0x9e37_79b9).rotate_left(7);
    (0..len).map(|k| pseudorandom_bits(k) as i32 as f32 * 2f32.powi(-31)).map(spec::snap).collect()
}

fn download<D: Driver>(b: &CudaBackend<D>, x: &Tensor<D>) -> Result<Vec<f32>> {
    let mut out = vec![0.0; x.shape.len()];
    b.driver.download("check", &x.data, 0, &mut out).map(|()| out)
}

/// Compares snap, sigmoid and tanh with the specification; returns the first difference.
fn test_activations<D: Driver>(b: &CudaBackend<D>) -> Result<Option<String>> {
    let x: Vec<f32> = (0..ACTIVATION_SAMPLES).map(|k| f32::from_bits(k.wrapping_mul(0x0004_0003))).collect();
    let tensor = || b.upload(MatrixShape::new(1, x.len()), &x);
    for (name, got, want) in [
        ("snap", b.snap(tensor()?)?, spec::snap as fn(f32) -> f32),
        ("sigmoid", b.sigmoid(tensor()?)?, spec::sigmoid),
        ("tanh", b.tanh(tensor()?)?, spec::tanh),
    ] {
        let difference = first_difference(name, &download(b, &got)?, &x.iter().map(|&v| want(v)).collect::<Vec<_>>());
        if difference.is_some() {
            return Ok(difference);
        }
    }
    Ok(None)
}

/// Compares products with quantized matrices with the specification; returns the first difference.
fn test_quantized<D: Driver>(b: &CudaBackend<D>) -> Result<Option<String>> {
    let (rows, cols) = (3, 5);
    for (format, inner) in [(INT8, 7), (INT8, INT8.block + 9), (INT12, 2 * INT12.block + 2)] {
        let (mut a, w) = (test_values(rows * inner), test_values(cols * inner));
        a[inner..2 * inner].iter_mut().for_each(|v| *v *= 300.0);
        a[3 * inner - 1] = f32::INFINITY;
        let mut q = vec![0; cols * inner];
        let rows_of_w = w.chunks_exact(inner).zip(q.chunks_exact_mut(inner));
        let scale: Vec<f32> = rows_of_w.map(|(w, q)| format.quantize_weights(w, q)).collect();
        let bias = test_values(cols);
        let mut want = bias.repeat(rows);
        for (z, a) in want.chunks_exact_mut(cols).zip(a.chunks_exact(inner)) {
            format.multiply_row(a, OperandRange::Unit, &q, &scale, z);
        }
        let row = MatrixShape::new(1, cols);
        let q: Vec<f32> = q.into_iter().map(f32::from).collect();
        let weights =
            QuantizedMatrix { q: b.upload(MatrixShape::new(cols, inner), &q)?, scale: b.upload(row, &scale)?, format };
        let a = b.upload(MatrixShape::new(rows, inner), &a)?;
        let got = b.gemm_quantized(&a, &weights, OperandRange::Unit, Some(&b.upload(row, &bias)?))?;
        let name = format!("{} product of {inner} inputs", format.precision);
        if let Some(difference) = first_difference(&name, &download(b, &got)?, &want) {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

/// Tests whether activations, products and both passes of layers are bit-identical to the specification.
///
/// # Errors
/// Errors of the device.
pub(crate) fn test_exact<D: Driver>(b: &CudaBackend<D>) -> Result<Arithmetic> {
    let inexact = |what: String| Ok(Arithmetic::Inexact(format!("results differ from the specification: {what}")));
    if let Some(difference) = test_activations(b)?.map_or_else(|| test_quantized(b), |d| Ok(Some(d)))? {
        return inexact(difference);
    }

    // Products with small tiles, and with large tiles and operands that allow float4 loads.
    for (m, n, k) in [(5, 9, 2 * spec::DOT_BLOCK + 7), (72, 128 * b.driver.multiprocessors(), 2 * spec::DOT_BLOCK + 8)]
    {
        let (left, right) = (test_values(m * k), test_values(k * n));
        let (a, c) = (b.upload(MatrixShape::new(m, k), &left)?, b.upload(MatrixShape::new(k, n), &right)?);
        let product = download(b, &b.gemm(MatrixRef::from(&a), MatrixRef::from(&c), None)?)?;
        // A sample of the elements, if there are many, in all rows and different columns.
        let sampled_indices = || (0..m * n).step_by((m * n / (1 << 13)) | 1);
        let want = sampled_indices().map(|i| spec::dot(k, |p| left[i / n * k + p], |p| right[p * n + i % n]));
        let product_name = format!("product [{m}, {k}] x [{k}, {n}], sampled");
        if let Some(difference) =
            first_difference(&product_name, sampled_indices().map(|i| &product[i]), &want.collect::<Vec<_>>())
        {
            return inexact(difference);
        }
    }

    // Layers, compared with the reference on the same device, whose operations were tested above. They differ in what
    // blocks exchange: h, the cell state, or a projection's operand in addition. The first layer has enough units for a
    // cluster of several blocks.
    let config = LstmConfig::new(5, 64);
    let x = Array3::from_shape_fn((3, 4, 5), |(a, t, i)| (a as f32 - 1.0) * 0.5 + t as f32 * 0.25 - i as f32 * 0.125);
    let configs = [
        LstmConfig::new(5, 100).cell(CellKind::PeepholeDiagonal),
        config.clone().cell(CellKind::PeepholeDense),
        config.proj_size(35),
    ];
    for config in configs {
        let lstm = Lstm::random(b, config.clone(), 1)?;
        let (device_output, (y, state)) = (lstm.forward_train(&x, Checkpointing::SaveEverything)?, lstm.forward(&x)?);
        let reference_output =
            Lstm::random(&Reference(b.clone()), config.clone(), 1)?.forward_train(&x, Checkpointing::SaveEverything)?;
        let mut difference = first_difference("y in training", &device_output.y, &reference_output.y)
            .or_else(|| first_difference("c in training", &device_output.state.c, &reference_output.state.c))
            .or_else(|| first_difference("y", &y, &reference_output.y))
            .or_else(|| first_difference("h", &state.h, &reference_output.state.h))
            .or_else(|| first_difference("c", &state.c, &reference_output.state.c));
        let device_gradients =
            device_output.tape.backward(OutputGradients::from(&device_output.y).with_input_gradient())?;
        let reference_gradients =
            reference_output.tape.backward(OutputGradients::from(&reference_output.y).with_input_gradient())?;
        let weights = device_gradients.weights.layers().iter().zip(reference_gradients.weights.layers());
        for ((param, got), (_, want)) in weights.flat_map(|(a, b)| a.iter().zip(b.iter())) {
            difference = difference.or_else(|| first_difference(&format!("gradient of {param:?}"), got, want));
        }
        difference = difference.or_else(|| {
            first_difference(
                "gradient of x",
                device_gradients.x.iter().flatten(),
                reference_gradients.x.iter().flatten(),
            )
        });
        if let Some(difference) = difference {
            return inexact(format!("{config:?}, {}: {difference}", lstm.paths()[0]));
        }
    }

    // The `persistent` kernels, if the layers above used clusters.
    let weights = Weights::init(LstmConfig::new(9, 64), &Init::default(), 1)?;
    let weights = &weights.layers()[0];
    let mut device_weights = DeviceWeights::new(&b.driver, weights)?;
    if device_weights.persistent.iter().any(Option::is_some) && device_weights.clusters.iter().any(Option::is_some) {
        device_weights.clusters = [None; 2];
        let reference = Reference(b.clone());
        let want = run_both_passes(b, &reference, &reference.load(weights)?, weights.spec())?;
        let got = run_both_passes(b, b, &Layer(Arc::new(device_weights)), weights.spec())?;
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            if let Some(difference) = first_difference(&format!("result {k}"), got, want) {
                return inexact(format!("{:?}, persistent: {difference}", weights.spec()));
            }
        }
    }
    Ok(Arithmetic::Exact)
}

/// The reason that [`Arithmetic::Inexact`] gives in TF32 mode.
const TF32_REASON: &str = "products run on tensor cores, which round their operands to TF32 (10 bits of mantissa) and sum in an \
                    unspecified order; activations and cells are exact";

/// Tests activations, products and both passes of layers in TF32 mode.
///
/// # Errors
/// Errors of the device; [`Error::Device`] also if results differ by more than rounding to TF32 explains.
pub(crate) fn test_tf32<D: Driver>(b: &CudaBackend<D>) -> Result<Arithmetic> {
    let check_error = |what: String| Error::Device { backend: b.driver.name().to_owned(), op: "check", reason: what };
    if let Some(difference) = test_activations(b)?.map_or_else(|| test_quantized(b), |d| Ok(Some(d)))? {
        return Err(check_error(format!("results differ from the specification: {difference}")));
    }
    // Products of small integers, which are exact in TF32 and whose sums are exact in f32 in any order. For both kinds
    // of tiles, with partial tiles at the edges, and with operands as they are and transposed.
    for (m, n, k, transposed) in [(37, 21, 71, true), (125, 128 * b.driver.multiprocessors(), 41, false)] {
        let small_integers = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i + seed) * 7919 % 1021 % 33) as f32 - 16.0).collect()
        };
        let (left, right) = (small_integers(m * k, 1), small_integers(k * n, 2));
        let (left_strides, right_strides) = if transposed { ([1, m], [1, k]) } else { ([k, 1], [n, 1]) };
        let shape = |rows, cols| if transposed { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
        let (a, c) = (b.upload(shape(m, k), &left)?, b.upload(shape(k, n), &right)?);
        let product = b.gemm(MatrixRef { tensor: &a, transposed }, MatrixRef { tensor: &c, transposed }, None)?;
        let want = |i: usize, j: usize| -> f32 {
            (0..k)
                .map(|p| {
                    left[i * left_strides[0] + p * left_strides[1]] * right[p * right_strides[0] + j * right_strides[1]]
                })
                .sum()
        };
        // A sample of the elements, if there are many, in all rows and different columns.
        for (index, got) in download(b, &product)?.into_iter().enumerate().step_by((m * n / (1 << 15)) | 1) {
            let want = want(index / n, index % n);
            if got != want {
                return Err(check_error(format!(
                    "element {index} of a product [{m}, {k}] x [{k}, {n}]: got {got}, expected {want}"
                )));
            }
        }
    }
    // Layers with one kernel per step, then as they run by default.
    let base_config = LstmConfig::new(9, 40);
    for config in [base_config.clone().cell(CellKind::PeepholeDense), base_config.proj_size(24)] {
        let weights = Weights::init(config.clone(), &Init::default(), 1)?;
        let weights = &weights.layers()[0];
        let reference = Reference(b.clone());
        let want = run_both_passes(b, &reference, &reference.load(weights)?, weights.spec())?;
        for kernel_per_step in [true, false] {
            let mut device_weights = DeviceWeights::new(&b.driver, weights)?;
            if kernel_per_step {
                device_weights.tensor_core_min_multiplications = Some(0);
            }
            let got = run_both_passes(b, b, &Layer(Arc::new(device_weights)), weights.spec())?;
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let max_magnitude = want.iter().fold(0.0f32, |max_magnitude, v| max_magnitude.max(v.abs()));
                // Both sides round their operands, though not always the same ones. A difference from the order of
                // summation can also change a rounding to TF32, by 2^-10.
                let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= max_magnitude * 2f32.powi(-8);
                if !got.iter().zip(want).all(is_near) {
                    let result_name = format!("result {k} of {config:?}, one kernel per step: {kernel_per_step}");
                    return Err(check_error(format!(
                        "results of a layer differ from the reference by more than TF32 explains: {result_name}"
                    )));
                }
            }
        }
    }
    Ok(Arithmetic::Inexact(TF32_REASON.to_owned()))
}

/// Runs the forward and backward pass of a layer over a batch of 17 sequences, one more than the rows of a tensor core
/// instruction. Returns the outputs and gradients.
fn run_both_passes<D: Driver, B: Backend<Tensor = Tensor<D>>>(
    b: &CudaBackend<D>,
    backend: &B,
    layer: &B::Layer,
    spec: &LayerSpec,
) -> Result<Vec<Vec<f32>>> {
    let (steps, batch) = (3, 17);
    let upload = |rows: usize, cols: usize| backend.upload(MatrixShape::new(rows, cols), &test_values(rows * cols));
    let x = upload(steps * batch, spec.input_size)?;
    let mut plan = backend.plan(layer, batch, steps)?;
    let state = State { h: upload(batch, spec.state_size())?, c: upload(batch, spec.hidden_size)? };
    let sequence = Sequence { x: &x, state: &state, steps, batch, lengths: None };
    let (output, trace) = backend.forward_train(layer, &mut plan, sequence)?;
    let output_gradients =
        LayerOutputGradients { y: &output.y, state: &state, accumulate: None, needs_input_gradient: true };
    let gradients = backend.backward(layer, &mut plan, &trace, output_gradients)?;
    let weights = gradients.weights;
    let tensors = [output.y, output.state.c, weights.input, weights.recurrent, gradients.state.c];
    tensors.iter().chain(&gradients.x).chain(&weights.projection).map(|tensor| download(b, tensor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_the_first_difference() {
        let nan = f32::from_bits(0x7fc0_0001);
        assert_eq!(first_difference("y", &[1.0, f32::NAN, 2.0], &[1.0, nan, 2.0]), None);
        let difference = first_difference("y", &[1.0, 0.0, 2.0, f32::NAN], &[1.0, -0.0, 2.0, 3.0]);
        assert_eq!(difference.as_deref(), Some("y, element 1: got 0e0, expected -0e0, and 1 more"));
    }
}
