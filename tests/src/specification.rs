//! Checks the test vectors in `docs/specification.md`. They are read from the document itself, so that the document and
//! the code always agree.

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Activation, Backend, Bias, CellKind, GateActivation, GateActivations, HostState, Input, LayerWeights, Lstm,
    LstmConfig, Model, ModelLayer, ModelWeights, Param, Precision, State, Weights,
    ndarray::{Array1, Array2, Array3, ArrayD, Axis},
    quantized::{INT8, INT12, OperandRange},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::cases::HARD_SIGMOID;

/// Text of the document with the specification.
const SPECIFICATION: &str = include_str!("../../docs/specification.md");

/// The rows of the table whose header row starts with `heading`, split into columns.
fn table_rows(heading: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = SPECIFICATION.lines().map(str::trim).skip_while(move |line| !line.starts_with(heading));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// The weights of the model that the table of cells in the specification calls `name`.
fn model(name: &str) -> Result<Weights> {
    for precision in [Precision::Int8, Precision::Int12] {
        if let Some(name) = name.strip_suffix(&format!(", {precision}")) {
            return Ok(model(name)?.quantize(precision)?);
        }
    }
    let config = LstmConfig::new(1, 1).bias(Bias::One);
    let (hard_sigmoid, relu) = (HARD_SIGMOID, GateActivation::Relu);
    let activations = |gate, candidate, output| GateActivations { gate, candidate, output };
    let config = match name {
        "standard" => config,
        "standard, hard sigmoid, relu, relu" => config.activations(activations(hard_sigmoid, relu, relu)),
        "standard, tanh, hard sigmoid, sigmoid" => {
            config.activations(activations(GateActivation::Tanh, hard_sigmoid, GateActivation::Sigmoid))
        }
        "dense peephole, hard sigmoid" => {
            let activations = GateActivations { gate: hard_sigmoid, ..GateActivations::default() };
            config.cell(CellKind::PeepholeDense).activations(activations)
        }
        "dense peephole" => config.cell(CellKind::PeepholeDense),
        "diagonal peephole" => config.cell(CellKind::PeepholeDiagonal),
        "standard, coupled" => config.coupled(),
        "standard, clip 0.25" => config.clip(0.25),
        _ => bail!("the specification has an unknown cell: {name}"),
    };
    let spec = config.layer_specs()[0];
    let values = spec.params().into_iter().map(|(param, shape)| {
        let values = match param {
            Param::WeightIh => vec![0.5, -0.25, 1.0, 0.75],
            Param::WeightHh => vec![0.25, 0.5, -0.5, 1.0],
            Param::Bias => vec![0.125, 0.5, -0.25, 0.0],
            Param::PeepholeI => vec![0.5],
            Param::PeepholeF => vec![-0.5],
            Param::PeepholeO => vec![0.25],
            _ => bail!("{param:?} is not a parameter of the cells in the specification"),
        };
        Ok(ArrayD::from_shape_vec(shape, values)?)
    });
    let layer = LayerWeights::new(spec, values.collect::<Result<_>>()?)?;
    Ok(Weights::new(config, vec![layer])?)
}

/// Checks the states of each cell over three steps.
///
/// # Errors
/// A state differs from the specification, or a row is missing.
pub fn check_cells<B: Backend>(b: &B) -> Result<()> {
    let mut rows = 0;
    for row in table_rows("| cell |") {
        rows += 1;
        let (name, want) = row.split_first().context("an empty row")?;
        let model = Lstm::new(b, model(name)?)?;
        let array_of_one = |v| Array3::from_elem((1, 1, 1), v);
        let mut state: HostState = State { h: array_of_one(0.25), c: array_of_one(-0.5) };
        for (x, want) in [1.0, -0.5, 2.0].into_iter().zip(want) {
            state = model.forward(Input::from(&array_of_one(x)).state(&state))?.1;
            let got = format!("{:08x} {:08x}", state.h[[0, 0, 0]].to_bits(), state.c[[0, 0, 0]].to_bits());
            ensure!(got == *want, "{name}: the specification says {want}, got {got}");
        }
    }
    ensure!(rows == 14, "expected 14 cells in the specification, got {rows}");
    Ok(())
}

/// Checks the scales of rows of inputs, and a quantized linear layer of several blocks.
///
/// # Errors
/// A value differs from the specification, or a row is missing.
pub fn check_quantized<B: Backend>(b: &B) -> Result<()> {
    let mut rows = 0;
    for row in table_rows("| magnitude u |") {
        rows += 1;
        let [magnitude, range, want @ ..] = &row[..] else { bail!("expected four columns, got {row:?}") };
        let magnitude = u32::from_str_radix(magnitude, 16)?;
        let range = match *range {
            "unit" => OperandRange::Unit,
            "any" => OperandRange::Any,
            other => bail!("expected unit or any, got {other}"),
        };
        for (format, want) in [INT8, INT12].into_iter().zip(want) {
            let scale = format.row_scale(magnitude, range);
            let from_integer = if scale.from_integer.is_nan() {
                "NaN".into()
            } else {
                format!("{:08x}", scale.from_integer.to_bits())
            };
            let got = format!("{:08x} {from_integer}", scale.to_integer.to_bits());
            ensure!(got == *want, "{magnitude:08x}: the specification says {want}, got {got}");
        }
    }
    ensure!(rows == 8, "expected 8 magnitudes in the specification, got {rows}");
    let mut rows = 0;
    for row in table_rows("| precision | y |") {
        rows += 1;
        let [name, want] = row[..] else { bail!("expected two columns, got {row:?}") };
        let values = |factor: usize, modulus: usize, offset: f32| {
            move |k: usize| ((factor * k % modulus) as f32 - offset) / 64.0
        };
        let weight = Array2::from_shape_fn((1, 1500), |(_, k)| values(53, 97, 48.0)(k));
        let linear = ModelLayer::Linear { name: "out".into(), weight, bias: Some(Array1::from(vec![0.5])) };
        let weights = ModelWeights::new(vec![linear])?.quantize(name.parse()?)?;
        let x = Array3::from_shape_fn((1, 1, 1500), |(_, _, k)| values(37, 101, 50.0)(k));
        let model = Model::new(b, weights)?;
        let got = format!("{:08x}", model.forward(&x)?.y[[0, 0, 0]].to_bits());
        ensure!(got == want, "{name}: the specification says {want}, got {got}");
        let mut y = [0.0];
        model.stream(1)?.step(x.as_slice().context("a new array is contiguous")?, &mut y)?;
        ensure!(format!("{:08x}", y[0].to_bits()) == want, "{name}: a stream gives {:08x}", y[0].to_bits());
    }
    ensure!(rows == 2, "expected 2 precisions in the specification, got {rows}");
    Ok(())
}

/// Checks the activations of models, as scalar functions and on the device, and softmax.
///
/// # Errors
/// A value differs from the specification, or a row is missing.
pub fn check_activations<B: Backend>(b: &B) -> Result<()> {
    let functions = [
        Activation::Relu,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::HardSigmoid { alpha: -0.75, beta: 0.25 },
    ];
    let mut rows = 0;
    for row in table_rows("| x, bits of x |") {
        rows += 1;
        let (x, want) = row.split_first().context("an empty row")?;
        let bits = x.rsplit(' ').next().context("the bits of x")?;
        let x = f32::from_bits(u32::from_str_radix(bits, 16)?);
        for (function, want) in functions.into_iter().zip(want) {
            // The identity before it makes the model know its size.
            let layers = vec![ModelLayer::Activation(function), identity(1)];
            let got = apply(b, layers, &[x])?;
            ensure!(got == *want, "{function} of {x}: the specification says {want}, got {got}");
        }
    }
    ensure!(rows == 9, "expected 9 arguments in the specification, got {rows}");
    let mut rows = 0;
    for row in table_rows("| function | results |") {
        rows += 1;
        let [name, want] = row[..] else { bail!("expected two columns, got {row:?}") };
        let function = if name == "softmax" { Activation::Softmax } else { Activation::LogSoftmax };
        let got = apply(b, vec![identity(3), ModelLayer::Activation(function)], &[1.0, -0.5, 2.0])?;
        ensure!(got == want, "{name}: the specification says {want}, got {got}");
    }
    ensure!(rows == 2, "expected 2 functions in the specification, got {rows}");
    Ok(())
}

/// Checks the models whose outputs the specification lists.
///
/// # Errors
/// An output differs from the specification, or a row is missing.
pub fn check_models<B: Backend>(b: &B) -> Result<()> {
    let mut rows = 0;
    for row in table_rows("| chain after the linear layer |") {
        rows += 1;
        let (name, want) = row.split_first().context("an empty row")?;
        let state = |v| Array3::from_elem((1, 1, 1), v);
        let initial_state = Some(State { h: state(0.25), c: state(-0.5) });
        let lstm = ModelLayer::Lstm { name: "lstm".into(), weights: model("standard")?.into(), initial_state };
        let linear = match *name {
            "softmax" => (Array2::from_shape_vec((2, 1), vec![1.5, -2.0])?, vec![-0.125, 0.25]),
            _ => (Array2::from_elem((1, 1), 1.5), vec![-0.125]),
        };
        let linear = ModelLayer::Linear { name: "out".into(), weight: linear.0, bias: Some(linear.1.into()) };
        let end = match *name {
            "nothing" | "skip, gains 1.25 and 0.3" => None,
            "relu" => Some(Activation::Relu),
            "hard_sigmoid(0.2, 0.5)" => Some(Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }),
            "softmax" => Some(Activation::Softmax),
            _ => bail!("the specification has an unknown model: {name}"),
        };
        let layers = [lstm, linear].into_iter().chain(end.map(ModelLayer::Activation)).collect();
        let mut weights = ModelWeights::new(layers)?;
        if name.starts_with("skip") {
            weights = weights.with_skip()?.with_gains(1.25, 0.3)?;
        }
        let x = Array3::from_shape_vec((1, 3, 1), vec![1.0, -0.5, 2.0])?;
        let y = Model::new(b, weights)?.forward(&x)?.y;
        for (t, (want, y)) in want.iter().zip(y.index_axis(Axis(0), 0).rows()).enumerate() {
            let got = hex(y.iter());
            ensure!(got == *want, "{name}, step {}: the specification says {want}, got {got}", t + 1);
        }
    }
    ensure!(rows == 5, "expected 5 models in the specification, got {rows}");
    Ok(())
}

/// A linear layer that returns its input.
fn identity(size: usize) -> ModelLayer {
    ModelLayer::Linear { name: "identity".into(), weight: Array2::eye(size), bias: None }
}

/// The output of a model for one time step, in hexadecimal.
fn apply<B: Backend>(b: &B, layers: Vec<ModelLayer>, x: &[f32]) -> Result<String> {
    let x = Array3::from_shape_vec((1, 1, x.len()), x.to_vec())?;
    Ok(hex(Model::new(b, ModelWeights::new(layers)?)?.forward(&x)?.y.iter()))
}

fn hex<'a>(values: impl Iterator<Item = &'a f32>) -> String {
    values.map(|v| format!("{:08x}", v.to_bits())).collect::<Vec<_>>().join(" ")
}

/// Checks the random number generator of dropout masks.
///
/// # Errors
/// A random number differs from the specification, or a row is missing.
pub fn check_generator<B: Backend>(_: &B) -> Result<()> {
    let mut rows = 0;
    for row in table_rows("| seed |") {
        rows += 1;
        let [seed, _, random_numbers] = row[..] else { bail!("expected three columns, got {row:?}") };
        let mut rng = ChaCha8Rng::seed_from_u64(seed.parse()?);
        for want in random_numbers.split(' ') {
            let got = format!("{:08x}", rng.next_u32());
            ensure!(got == want, "seed {seed}: the specification says {want}, got {got}");
        }
    }
    ensure!(rows == 2, "expected 2 seeds in the specification, got {rows}");
    Ok(())
}
