//! Whether a device gives the bits of the arithmetic, or in the fast mode what TF32 gives: looked at each time one is opened,
//! never assumed.

use std::sync::Arc;

use lstm_core::{
    Arithmetic, Backend, CellKind, Checkpointing, Error, Init, LayerOutputGradients, LayerSpec, Lstm, LstmConfig,
    MatrixRef, MatrixShape, Ops, OutputGradients, Reference, Result, Sequence, State, Weights, arithmetic as exact,
    ndarray::Array3,
};

use crate::{
    backend::CudaBackend,
    driver::Driver,
    layer::{Layer, Loaded},
    tensor::Tensor,
};

/// How many inputs of the activations are looked at, spread over all bit patterns.
const SAMPLES: u32 = 1 << 14;

/// The first number that has other bits than it should, unless both are NaN.
fn difference<'a>(
    what: &str,
    got: impl IntoIterator<Item = &'a f32>,
    want: impl IntoIterator<Item = &'a f32>,
) -> Option<String> {
    let pairs = got.into_iter().zip(want).enumerate();
    let mut others = pairs.filter(|(_, (a, b))| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
    let (at, (a, b)) = others.next()?;
    Some(format!("{what}, element {at}: {a:e}, not {b:e}, and {} more", others.count()))
}

/// Snapped numbers that differ in all of their bits.
fn numbers(len: usize) -> Vec<f32> {
    let at = |k: usize| (k as u32).wrapping_mul(0x9e37_79b9).rotate_left(7);
    (0..len).map(|k| at(k) as i32 as f32 * 2f32.powi(-31)).map(exact::snap).collect()
}

fn get<D: Driver>(b: &CudaBackend<D>, x: &Tensor<D>) -> Result<Vec<f32>> {
    let mut out = vec![0.0; x.shape.len()];
    b.driver.download("check", &x.data, 0, &mut out).map(|()| out)
}

/// The first activation that gives other bits than the specification, and where.
fn activations<D: Driver>(b: &CudaBackend<D>) -> Result<Option<String>> {
    let x: Vec<f32> = (0..SAMPLES).map(|k| f32::from_bits(k.wrapping_mul(0x0004_0003))).collect();
    let tensor = || b.upload(MatrixShape::new(1, x.len()), &x);
    for (name, got, want) in [
        ("snap", b.snap(tensor()?)?, exact::snap as fn(f32) -> f32),
        ("sigmoid", b.sigmoid(tensor()?)?, exact::sigmoid),
        ("tanh", b.tanh(tensor()?)?, exact::tanh),
    ] {
        let found = difference(name, &get(b, &got)?, &x.iter().map(|&v| want(v)).collect::<Vec<_>>());
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What can be promised after activations, a product and a layer's both passes.
///
/// # Errors
/// What the device refuses.
pub(crate) fn arithmetic<D: Driver>(b: &CudaBackend<D>) -> Result<Arithmetic> {
    let differs = |what: String| Ok(Arithmetic::Inexact(format!("other bits than the specification's: {what}")));
    if let Some(found) = activations(b)? {
        return differs(found);
    }

    // By small tiles, and by large ones, whose operands can be read by fours.
    for (m, n, k) in [(5, 9, 2 * exact::BLOCK + 7), (72, 128 * b.driver.multiprocessors(), 2 * exact::BLOCK + 8)] {
        let (left, right) = (numbers(m * k), numbers(k * n));
        let (a, c) = (b.upload(MatrixShape::new(m, k), &left)?, b.upload(MatrixShape::new(k, n), &right)?);
        let product = get(b, &b.gemm(MatrixRef::from(&a), MatrixRef::from(&c), None)?)?;
        // Of many elements some, of all rows and all kinds of columns.
        let some = || (0..m * n).step_by((m * n / (1 << 13)) | 1);
        let want = some().map(|at| exact::dot(k, |p| left[at / n * k + p], |p| right[p * n + at % n]));
        let what = format!("a product [{m}, {k}] . [{k}, {n}], of some elements");
        if let Some(found) = difference(&what, some().map(|at| &product[at]), &want.collect::<Vec<_>>()) {
            return differs(found);
        }
    }

    // The layer's own kernels against the reference on the same device, whose operations were looked at above.
    // What steps pass on differs among them: h, the cell state, a projection's operand as well. The first one has enough
    // units for a cluster of several blocks.
    let config = LstmConfig::new(5, 64);
    let x = Array3::from_shape_fn((3, 4, 5), |(a, t, i)| (a as f32 - 1.0) * 0.5 + t as f32 * 0.25 - i as f32 * 0.125);
    let kinds = [
        LstmConfig::new(5, 100).cell(CellKind::PeepholeDiagonal),
        config.clone().cell(CellKind::PeepholeDense),
        config.proj_size(35),
    ];
    for config in kinds {
        let lstm = Lstm::random(b, config.clone(), 1)?;
        let (own, (y, state)) = (lstm.forward_train(&x, Checkpointing::Everything)?, lstm.forward(&x)?);
        let reference =
            Lstm::random(&Reference(b.clone()), config.clone(), 1)?.forward_train(&x, Checkpointing::Everything)?;
        let mut found = difference("y in training", &own.y, &reference.y)
            .or_else(|| difference("c in training", &own.state.c, &reference.state.c))
            .or_else(|| difference("y", &y, &reference.y))
            .or_else(|| difference("h", &state.h, &reference.state.h))
            .or_else(|| difference("c", &state.c, &reference.state.c));
        let own = own.tape.backward(OutputGradients::from(&own.y).with_input())?;
        let reference = reference.tape.backward(OutputGradients::from(&reference.y).with_input())?;
        let weights = own.weights.layers().iter().zip(reference.weights.layers());
        for ((param, own), (_, reference)) in weights.flat_map(|(a, b)| a.iter().zip(b.iter())) {
            found = found.or_else(|| difference(&format!("gradient of {param:?}"), own, reference));
        }
        found = found.or_else(|| difference("gradient of x", own.x.iter().flatten(), reference.x.iter().flatten()));
        if let Some(found) = found {
            return differs(format!("{config:?}, {}: {found}", lstm.paths()[0]));
        }
    }

    // And what layers too large for clusters take.
    let weights = Weights::init(LstmConfig::new(9, 64), &Init::default(), 1)?;
    let weights = &weights.layers()[0];
    let mut loaded = Loaded::new(&b.driver, weights)?;
    if loaded.persistent.iter().any(Option::is_some) && loaded.clusters.iter().any(Option::is_some) {
        loaded.clusters = [None; 2];
        let reference = Reference(b.clone());
        let want = passes(b, &reference, &reference.load(weights)?, weights.spec())?;
        let got = passes(b, b, &Layer(Arc::new(loaded)), weights.spec())?;
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            if let Some(found) = difference(&format!("result {k}"), got, want) {
                return differs(format!("{:?}, persistent: {found}", weights.spec()));
            }
        }
    }
    Ok(Arithmetic::Exact)
}

/// What the fast mode promises.
const TF32: &str = "products on tensor cores, whose operands are rounded to TF32 (10 bits of mantissa) and whose sums have \
                    an order that the device chooses; activations and cells are exact";

/// The fast mode's promise, after activations, products and the kernels of a step both ways.
///
/// # Errors
/// What the device refuses, or what it gives that rounding to TF32 does not explain.
pub(crate) fn fast<D: Driver>(b: &CudaBackend<D>) -> Result<Arithmetic> {
    let wrong = |what: String| Error::Device { backend: b.driver.name().to_owned(), op: "check", reason: what };
    if let Some(found) = activations(b)? {
        return Err(wrong(format!("other bits than the specification's: {found}")));
    }
    // Whole numbers that TF32 has, and whose sums f32 has in any order: nothing is rounded. For both kinds of tiles, with
    // edges; each operand lies both ways.
    for (m, n, k, turned) in [(37, 21, 71, true), (125, 128 * b.driver.multiprocessors(), 41, false)] {
        let whole = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|at| ((at + seed) * 7919 % 1021 % 33) as f32 - 16.0).collect()
        };
        let (left, right) = (whole(m * k, 1), whole(k * n, 2));
        let (at_left, at_right) = if turned { ([1, m], [1, k]) } else { ([k, 1], [n, 1]) };
        let shape = |rows, cols| if turned { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
        let (a, c) = (b.upload(shape(m, k), &left)?, b.upload(shape(k, n), &right)?);
        let product =
            b.gemm(MatrixRef { tensor: &a, transposed: turned }, MatrixRef { tensor: &c, transposed: turned }, None)?;
        let want = |i: usize, j: usize| -> f32 {
            (0..k).map(|p| left[i * at_left[0] + p * at_left[1]] * right[p * at_right[0] + j * at_right[1]]).sum()
        };
        // Of many elements some, of all rows and all kinds of columns.
        for (at, got) in get(b, &product)?.into_iter().enumerate().step_by((m * n / (1 << 15)) | 1) {
            let want = want(at / n, at % n);
            if got != want {
                return Err(wrong(format!("element {at} of a product [{m}, {k}] . [{k}, {n}] is {got}, not {want}")));
            }
        }
    }
    // A step's kernels, also where other kernels would do all steps at once, and those.
    let plain = LstmConfig::new(9, 40);
    for config in [plain.clone().cell(CellKind::PeepholeDense), plain.proj_size(24)] {
        let weights = Weights::init(config.clone(), &Init::default(), 1)?;
        let weights = &weights.layers()[0];
        let reference = Reference(b.clone());
        let want = passes(b, &reference, &reference.load(weights)?, weights.spec())?;
        for kernel_a_step in [true, false] {
            let mut loaded = Loaded::new(&b.driver, weights)?;
            if kernel_a_step {
                loaded.large_step = Some(0);
            }
            let got = passes(b, b, &Layer(Arc::new(loaded)), weights.spec())?;
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let largest = want.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                // Operands are rounded alike on both sides, or some only on one. What the sums' order moves can be rounded to
                // a neighbour, 2^-10 away.
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= largest * 2f32.powi(-8);
                if !got.iter().zip(want).all(near) {
                    let what = format!("result {k} of {config:?}, a kernel a step: {kernel_a_step}");
                    return Err(wrong(format!("a layer's steps are far from the reference: {what}")));
                }
            }
        }
    }
    Ok(Arithmetic::Inexact(TF32.to_owned()))
}

/// Both passes of a layer over a batch that fills tensor cores, and one row more.
fn passes<D: Driver, B: Backend<Tensor = Tensor<D>>>(
    b: &CudaBackend<D>,
    on: &B,
    layer: &B::Layer,
    spec: &LayerSpec,
) -> Result<Vec<Vec<f32>>> {
    let (steps, batch) = (3, 17);
    let upload = |rows: usize, cols: usize| on.upload(MatrixShape::new(rows, cols), &numbers(rows * cols));
    let x = upload(steps * batch, spec.input_size)?;
    let mut plan = on.plan(layer, batch, steps)?;
    let state = State { h: upload(batch, spec.state_size())?, c: upload(batch, spec.hidden_size)? };
    let sequence = Sequence { x: &x, state: &state, steps, batch, lengths: None };
    let (output, trace) = on.forward_train(layer, &mut plan, sequence)?;
    let upstream = LayerOutputGradients { y: &output.y, state: &state, accumulate: None, need_x: true };
    let gradients = on.backward(layer, &mut plan, &trace, upstream)?;
    let weights = gradients.weights;
    let tensors = [output.y, output.state.c, weights.input, weights.recurrent, gradients.state.c];
    tensors.iter().chain(&gradients.x).chain(&weights.projection).map(|tensor| get(b, tensor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        let nan = f32::from_bits(0x7fc0_0001);
        assert_eq!(difference("y", &[1.0, f32::NAN, 2.0], &[1.0, nan, 2.0]), None);
        let found = difference("y", &[1.0, 0.0, 2.0, f32::NAN], &[1.0, -0.0, 2.0, 3.0]);
        assert_eq!(found.as_deref(), Some("y, element 1: 0e0, not -0e0, and 1 more"));
    }
}
