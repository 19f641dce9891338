//! Whether a device gives the bits of the arithmetic: looked at each time one is opened, never assumed.

use lstm_core::{
    Arithmetic, Backend, CellKind, Keep, Lstm, LstmConfig, Mat, Reference, Result, Shape, Upstream,
    arithmetic as exact, ndarray::Array3,
};

use crate::{backend::CudaOn, driver::Driver};

/// How many inputs of the activations are looked at, spread over all bit patterns.
const SAMPLES: u32 = 1 << 14;

/// Equal bits, or both NaN.
fn same<'a>(got: impl IntoIterator<Item = &'a f32>, want: impl IntoIterator<Item = &'a f32>) -> bool {
    got.into_iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// Snapped numbers that differ in all of their bits.
fn numbers(len: usize) -> Vec<f32> {
    let at = |k: usize| (k as u32).wrapping_mul(0x9e37_79b9).rotate_left(7);
    (0..len).map(|k| at(k) as i32 as f32 * 2f32.powi(-31)).map(exact::snap).collect()
}

/// What can be promised after activations, a product and a layer's both passes.
///
/// # Errors
/// What the device refuses.
pub(crate) fn arithmetic<D: Driver>(b: &CudaOn<D>) -> Result<Arithmetic> {
    let differs = |what: &str| Ok(Arithmetic::Inexact(format!("{what} gives other bits than the specification")));
    let get = |x: &crate::Tensor<D>| {
        let mut out = vec![0.0; x.shape.len()];
        b.driver.download("check", &x.data, 0, &mut out).map(|()| out)
    };

    let x: Vec<f32> = (0..SAMPLES).map(|k| f32::from_bits(k.wrapping_mul(0x0004_0003))).collect();
    let tensor = || b.upload(Shape::new(1, x.len()), &x);
    for (name, got, want) in [
        ("snap", b.snap(tensor()?)?, exact::snap as fn(f32) -> f32),
        ("sigmoid", b.sigmoid(tensor()?)?, exact::sigmoid),
        ("tanh", b.tanh(tensor()?)?, exact::tanh),
    ] {
        if !same(&get(&got)?, &x.iter().map(|&v| want(v)).collect::<Vec<_>>()) {
            return differs(name);
        }
    }

    let (m, n, k) = (5, 9, 2 * exact::BLOCK + 7);
    let (left, right) = (numbers(m * k), numbers(k * n));
    let product =
        b.gemm(Mat::from(&b.upload(Shape::new(m, k), &left)?), Mat::from(&b.upload(Shape::new(k, n), &right)?), None)?;
    let want = (0..m * n).map(|at| exact::dot(k, |p| left[at / n * k + p], |p| right[p * n + at % n]));
    if !same(&get(&product)?, &want.collect::<Vec<_>>()) {
        return differs("a product");
    }

    // The layer's own kernels against the reference on the same device, whose operations were looked at above.
    // What steps pass on differs among them: h, the cell state, a projection's operand as well.
    let config = LstmConfig::new(5, 40);
    let x = Array3::from_shape_fn((3, 4, 5), |(a, t, i)| (a as f32 - 1.0) * 0.5 + t as f32 * 0.25 - i as f32 * 0.125);
    let kinds = [
        config.clone().cell(CellKind::PeepholeDiagonal),
        config.clone().cell(CellKind::PeepholeDense),
        config.proj_size(35),
    ];
    for config in kinds {
        let own = Lstm::random(b, config.clone(), 1)?.forward_train(&x, Keep::Everything)?;
        let reference = Lstm::random(&Reference(b.clone()), config, 1)?.forward_train(&x, Keep::Everything)?;
        if !same(&own.y, &reference.y) || !same(&own.state.c, &reference.state.c) {
            return differs("a layer");
        }
        let own = own.tape.backward(Upstream::from(&own.y).with_input())?;
        let reference = reference.tape.backward(Upstream::from(&reference.y).with_input())?;
        let weights = own.weights.layers().iter().zip(reference.weights.layers());
        let same_weights = weights.flat_map(|(a, b)| a.iter().zip(b.iter())).all(|((_, a), (_, b))| same(a, b));
        if !same_weights || !same(own.x.iter().flatten(), reference.x.iter().flatten()) {
            return differs("a layer's backward pass");
        }
    }

    // Inference may have kernels of its own: enough units for a cluster of several blocks.
    let config = LstmConfig::new(5, 100);
    let (y, state) = Lstm::random(b, config.clone(), 1)?.forward(&x)?;
    let (want, want_state) = Lstm::random(&Reference(b.clone()), config, 1)?.forward(&x)?;
    if !same(&y, &want) || !same(&state.h, &want_state.h) || !same(&state.c, &want_state.c) {
        return differs("a layer in inference");
    }
    Ok(Arithmetic::Exact)
}
