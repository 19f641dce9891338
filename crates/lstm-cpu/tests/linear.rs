//! Tests of the fully connected layer: bit-exact against its definition, and gradients against finite differences.

use lstm_cpu::{
    Backend, Cpu, Error, Init, Linear, LinearGradients, LstmConfig, Param, Reference, StateDict, StateDictWriter,
    Weights,
    arithmetic::{FLUSH_THRESHOLD_BITS, GradientScale, dot, snap},
    ndarray::{Array, Array1, Array2, Array3, Dimension, arr0, array, s},
};

/// Pseudo-random numbers of both signs and several magnitudes. Some snap to zero.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / 8_388_608.0 - 1.0;
        unit * [1.0, 3.0, 1e-3, 1e-13][(state >> 33) as usize % 4]
    }
}

/// An array of pseudo-random numbers.
fn fill<D: Dimension>(dim: impl lstm_cpu::ndarray::ShapeBuilder<Dim = D>, seed: u64) -> Array<f32, D> {
    Array::from_shape_simple_fn(dim, numbers(seed))
}

/// The bits of values.
fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

/// The output and gradients for rows of inputs, as `docs/specification.md` defines them.
fn definition(
    weight: &Array2<f32>,
    bias: Option<&Array1<f32>>,
    x: &Array2<f32>,
    dy: &Array2<f32>,
) -> (Array2<f32>, Expected) {
    let (rows, (outputs, inputs)) = (x.nrows(), weight.dim());
    let scale = GradientScale::of(dy);
    let (w, x, dy) = (weight.mapv(snap), x.mapv(snap), dy.mapv(|v| snap(scale.scale_value(v))));
    let y = Array2::from_shape_fn((rows, outputs), |(n, o)| {
        let product = dot(inputs, |i| x[[n, i]], |i| w[[o, i]]);
        bias.map_or(product, |bias| snap(bias[o]) + product)
    });
    let dx = |(n, i)| scale.unscale_value(dot(outputs, |o| dy[[n, o]], |o| w[[o, i]]));
    let dw = |(o, i)| scale.unscale_value(dot(rows, |n| dy[[n, o]], |n| x[[n, i]]));
    let db = |o| scale.unscale_value(dot(rows, |_| 1.0, |n| dy[[n, o]]));
    let gradients = Expected {
        x: Array2::from_shape_fn((rows, inputs), dx),
        weight: Array2::from_shape_fn((outputs, inputs), dw),
        bias: bias.map(|_| Array1::from_shape_fn(outputs, db)),
    };
    (y, gradients)
}

/// Expected gradients.
struct Expected {
    x: Array2<f32>,
    weight: Array2<f32>,
    bias: Option<Array1<f32>>,
}

fn assert_bit_identical<D: Dimension>(got: &LinearGradients<D>, want: &Expected) {
    assert_eq!(bits(&got.x), bits(&want.x));
    assert_eq!(bits(&got.weight), bits(&want.weight));
    assert_eq!(got.bias.as_ref().map(bits), want.bias.as_ref().map(bits));
}

/// Compares outputs and gradients with [`definition`] for several sizes and magnitudes.
fn check_definition<B: Backend>(b: &B) {
    for (rows, inputs, outputs) in [(1, 1, 1), (2, 31, 3), (33, 32, 5), (70, 33, 34), (65, 2, 65)] {
        for has_bias in [true, false] {
            let weight = fill((outputs, inputs), 1);
            let bias = has_bias.then(|| fill(outputs, 2));
            let (x, dy) = (fill((rows, inputs), 3), fill((rows, outputs), 4));
            for size in [1.0, 1e-20, 1e25] {
                let dy = &dy * size;
                let linear = Linear::new(b, weight.clone(), bias.clone()).unwrap();
                let (y, gradients) = definition(&weight, bias.as_ref(), &x, &dy);
                assert_eq!(bits(&linear.forward(x.view()).unwrap()), bits(&y));
                assert_bit_identical(&linear.backward(x.view(), dy.view()).unwrap(), &gradients);
            }
        }
    }
}

#[test]
fn outputs_and_gradients_are_bit_exact() {
    check_definition(&Cpu::new());
    check_definition(&Reference(Cpu::new()));
}

#[test]
fn accepts_any_number_of_axes_and_any_strides() {
    let cpu = Cpu::new();
    let linear = Linear::random(&cpu, 6, 4, 9).unwrap();
    let (x, dy) = (fill((35, 6), 3), fill((35, 4), 4));
    let (y, gradients) = definition(linear.weight(), linear.bias(), &x, &dy);

    let (x3, dy3) = (x.to_shape((5, 7, 6)).unwrap(), dy.to_shape((5, 7, 4)).unwrap());
    let y3 = linear.forward(x3.view()).unwrap();
    assert_eq!((y3.dim(), bits(&y3)), ((5, 7, 4), bits(&y)));
    let got = linear.backward(x3.view(), dy3.view()).unwrap();
    assert_eq!(got.x.dim(), (5, 7, 6));
    assert_bit_identical(&got, &gradients);
    // The same arrays with other strides.
    let (mut fx, mut fdy) = (Array3::zeros((6, 7, 5)).reversed_axes(), Array3::zeros((4, 7, 5)).reversed_axes());
    fx.assign(&x3);
    fdy.assign(&dy3);
    assert_bit_identical(&linear.backward(fx.view(), fdy.view()).unwrap(), &gradients);
    assert_eq!(bits(&linear.forward(fx.view()).unwrap()), bits(&y));
    // A single row without other axes, and a dynamic number of axes.
    let one = linear.forward(x.row(3)).unwrap();
    assert_eq!(bits(&one), bits(y.row(3)));
    assert_eq!(linear.forward(x3.view().into_dyn()).unwrap().shape(), [5, 7, 4]);
}

#[test]
fn empty_input_gives_empty_output_and_zero_gradients() {
    let linear = Linear::random(&Cpu::new(), 6, 4, 9).unwrap();
    let (x, dy) = (Array3::<f32>::zeros((0, 7, 6)), Array3::<f32>::zeros((0, 7, 4)));
    assert_eq!(linear.forward(x.view()).unwrap(), dy);
    let gradients = linear.backward(x.view(), dy.view()).unwrap();
    assert_eq!((gradients.x, gradients.weight), (x, Array2::zeros((4, 6))));
    assert_eq!(gradients.bias, Some(Array1::zeros(4)));
}

#[test]
fn gradients_match_finite_differences() {
    let cpu = Cpu::new();
    let (weight, bias) = (fill((3, 5), 1), fill(3, 2));
    let (x, target) = (fill((4, 5), 3), fill((4, 3), 4));
    // Half the sum of squares: its derivative with respect to y is y - target. It is quadratic, so central differences
    // are exact up to rounding.
    let loss = |weight: &Array2<f32>, bias: &Array1<f32>, x: &Array2<f32>| {
        let linear = Linear::new(&cpu, weight.clone(), Some(bias.clone())).unwrap();
        let difference = linear.forward(x.view()).unwrap() - &target;
        difference.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>() / 2.0
    };
    let linear = Linear::new(&cpu, weight.clone(), Some(bias.clone())).unwrap();
    let dy = linear.forward(x.view()).unwrap() - &target;
    let gradients = linear.backward(x.view(), dy.view()).unwrap();
    let slope = |change: &dyn Fn(f32) -> f64| (change(0.125) - change(-0.125)) / 0.25;
    let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-4, "{got} {want}");
    fn shifted<D: Dimension>(array: &Array<f32, D>, k: usize, by: f32) -> Array<f32, D> {
        let mut array = array.clone();
        *array.iter_mut().nth(k).unwrap() += by;
        array
    }
    for (k, &got) in gradients.weight.iter().enumerate() {
        close(got, slope(&|by| loss(&shifted(&weight, k, by), &bias, &x)));
    }
    for (k, &got) in gradients.bias.as_ref().unwrap().iter().enumerate() {
        close(got, slope(&|by| loss(&weight, &shifted(&bias, k, by), &x)));
    }
    for (k, &got) in gradients.x.iter().enumerate() {
        close(got, slope(&|by| loss(&weight, &bias, &shifted(&x, k, by))));
    }
}

#[test]
fn random_initialization_is_stable() {
    // The same random numbers as in `Weights::init`, whose stability has its own test, with the same bound.
    let lstm = Weights::init(LstmConfig::new(3, 3), &Init::default(), 42).unwrap();
    let draws = lstm.layers()[0].get(Param::WeightIh).unwrap();
    let linear = Linear::random(&Cpu::new(), 3, 2, 42).unwrap();
    let values = linear.weight().iter().chain(linear.bias().unwrap());
    assert_eq!(bits(values), bits(draws.iter().take(8)));
    assert_eq!(linear.weight().dim(), (2, 3));
}

#[test]
fn set_weights_keeps_exact_values_and_changes_nothing_on_error() {
    let cpu = Cpu::new();
    let (weight, bias) = (array![[1e-20f32, -0.0], [3.0, 4.0]], array![-0.0f32, 1.0]);
    let mut linear = Linear::new(&cpu, weight.clone(), Some(bias.clone())).unwrap();
    assert_eq!((bits(linear.weight()), bits(linear.bias().unwrap())), (bits(&weight), bits(&bias)));
    for (weight, bias, parts) in [
        (Array2::zeros((2, 3)), Some(Array1::zeros(2)), ["weight", "[2, 2]", "[2, 3]"]),
        (Array2::zeros((2, 2)), None, ["bias", "[2]", "none"]),
        (Array2::zeros((2, 2)), Some(Array1::zeros(3)), ["bias", "[2]", "[3]"]),
    ] {
        let error = linear.set_weights(weight, bias).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let x = array![1.0f32, 1.0];
    assert_eq!(linear.forward(x.view()).unwrap(), array![0.0, 8.0]);
    let before = linear.clone();
    linear.set_weights(Array2::ones((2, 2)), Some(Array1::zeros(2))).unwrap();
    assert_eq!(linear.forward(x.view()).unwrap(), array![2.0, 2.0]);
    assert_eq!(before.forward(x.view()).unwrap(), array![0.0, 8.0]);
}

#[test]
fn tiny_gradients_flush_to_zero_and_nan_propagates() {
    let linear = Linear::new(&Cpu::new(), array![[2.0f32]], Some(array![0.0])).unwrap();
    let tiny = f32::from_bits(FLUSH_THRESHOLD_BITS - 1);
    let gradients = linear.backward(array![[1.0f32]].view(), array![[tiny]].view()).unwrap();
    assert_eq!((gradients.x[[0, 0]], gradients.weight[[0, 0]]), (0.0, 0.0));
    let gradients = linear.backward(array![[1.0f32], [1.0]].view(), array![[1.0], [f32::NAN]].view()).unwrap();
    assert!(gradients.weight[[0, 0]].is_nan() && gradients.x[[1, 0]].is_nan() && gradients.x[[0, 0]] == 2.0);
}

#[test]
fn saves_and_loads_with_a_prefix() {
    let cpu = Cpu::new();
    let linear = Linear::random(&cpu, 3, 2, 1).unwrap();
    let plain = Linear::new(&cpu, linear.weight().clone(), None).unwrap();
    let mut writer = StateDictWriter::new().tensor("head.scale", &array![1.0f32]).unwrap();
    writer = plain.write_to(linear.write_to(writer, "head.").unwrap(), "").unwrap();
    let twice = linear.write_to(writer.clone(), "head.");
    assert!(matches!(twice, Err(Error::Format { .. })));
    let mut dict = StateDict::from_bytes(writer.to_bytes().unwrap()).unwrap();
    let read = Linear::take(&cpu, &mut dict, "head.").unwrap();
    assert_eq!((read.weight(), read.bias()), (linear.weight(), linear.bias()));
    assert_eq!(Linear::take(&cpu, &mut dict, "").unwrap().bias(), None);
    assert_eq!(dict.names().collect::<Vec<_>>(), ["head.scale"]);
}

#[test]
fn errors_name_mismatched_shapes_and_take_no_tensors() {
    let cpu = Cpu::new();
    let message = |error: Error| error.to_string();
    let linear = Linear::random(&cpu, 3, 2, 1).unwrap();
    let (x, dy) = (Array2::<f32>::zeros((4, 3)), Array2::<f32>::zeros((4, 2)));
    for (error, parts) in [
        (message(linear.forward(dy.view()).unwrap_err()), ["forward: x", "[.., 3]", "[4, 2]"]),
        (message(linear.forward(arr0(1.0f32).view()).unwrap_err()), ["forward: x", "[.., 3]", "[]"]),
        (message(linear.backward(dy.view(), dy.view()).unwrap_err()), ["backward: x", "[.., 3]", "[4, 2]"]),
        (message(linear.backward(arr0(1.0).view(), arr0(1.0).view()).unwrap_err()), ["backward: x", "[.., 3]", "[]"]),
        (message(linear.backward(x.view(), x.view()).unwrap_err()), ["backward: dy", "[4, 2]", "[4, 3]"]),
        (
            message(linear.backward(x.view(), dy.slice(s![..3, ..])).unwrap_err()),
            ["backward: dy", "expected [4, 2]", "got [3, 2]"],
        ),
        (message(Linear::new(&cpu, Array2::zeros((0, 3)), None).unwrap_err()), ["output_size", "1 to", "got 0"]),
        (message(Linear::random(&cpu, 0, 1, 1).unwrap_err()), ["input_size", "1 to", "got 0"]),
        (message(Linear::random(&cpu, 1, usize::MAX, 1).unwrap_err()), ["output_size", "1 to", "got"]),
        (message(Linear::random(&cpu, 1 << 24, 1 << 24, 1).unwrap_err()), ["Linear::random", "memory", "16777216"]),
        (
            message(Linear::new(&cpu, Array2::zeros((2, 3)), Some(Array1::zeros(3))).unwrap_err()),
            ["bias", "expected shape [2]", "found [3]"],
        ),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
    }

    let file = |tensors: &[(&str, &[usize])]| {
        let add = |writer: StateDictWriter, (name, shape): &(&str, &[usize])| {
            writer.tensor(*name, &Array::<f32, _>::zeros(*shape)).unwrap()
        };
        StateDict::from_bytes(tensors.iter().fold(StateDictWriter::new(), add).to_bytes().unwrap()).unwrap()
    };
    for (tensors, parts) in [
        (&[("head.bias", &[2][..])][..], ["missing", "head.weight"]),
        (&[("head.weight", &[2])], ["head.weight", "(out, in), got [2]"]),
        (&[("head.weight", &[2, 3]), ("head.bias", &[3])], ["head.bias", "expected shape [2], found [3]"]),
        (&[("head.weight", &[2, 0])], ["input_size", "got 0"]),
    ] {
        let mut dict = file(tensors);
        let error = message(Linear::take(&cpu, &mut dict, "head.").unwrap_err());
        assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
        assert_eq!(dict.names().count(), tensors.len());
    }
}
