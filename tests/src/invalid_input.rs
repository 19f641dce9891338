//! Checks of invalid arguments: every call returns an error that names the operation and the argument, does not panic, and
//! changes nothing.

#![cfg_attr(not(target_pointer_width = "64"), allow(unused_imports, reason = "one check needs 64 bits"))]

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Backend, CellKind, Checkpointing, ConcatAxis, Direction, Error, ExecutionPath, GateActivation, GateActivations,
    HostState, Init, Input, LayerOutputGradients, LayerWeights, Linear, Lstm, LstmConfig, MatrixShape, Reference,
    Sequence, State, WeightGradients, Weights,
    cell::{Cell, PeepholeDiagonal},
    ndarray::{Array3, ArrayD, s},
};

use crate::{
    cases::Case,
    compare::check_same_slices,
    primitives::{NamedCheck, download},
};

/// All checks that invalid arguments are rejected.
pub fn checks<B: Backend>() -> Vec<NamedCheck<B>> {
    vec![
        ("primitives", check_primitives),
        ("layer", check_layer),
        ("activations", check_activations),
        ("forward", check_forward),
        ("layer-backward", |b| check_layer_backward(b).and_then(|()| check_layer_backward(&Reference(b.clone())))),
        ("backward", check_backward),
        ("stream", check_stream),
        ("step", check_step),
        #[cfg(target_pointer_width = "64")]
        ("huge", check_huge_sizes),
        ("cell", check_cell),
    ]
}

/// Checks that `result` is an error whose message contains all of `expected_words`. `what` describes the invalid argument.
pub(crate) fn expect_error<T>(what: &str, expected_words: &[&str], result: Result<T, Error>) -> Result<()> {
    let Err(error) = result else { bail!("{what} was accepted") };
    let text = error.to_string();
    match expected_words.iter().find(|word| !text.contains(**word)) {
        Some(word) => bail!("{what}: the error does not contain `{word}`: {text}"),
        None => Ok(()),
    }
}

/// Checks shapes and bounds that primitives must reject.
fn check_primitives<B: Backend>(b: &B) -> Result<()> {
    let upload_ones = |rows, cols| b.upload(MatrixShape::new(rows, cols), &vec![1.0; rows * cols]);
    let (x, y) = (upload_ones(2, 3)?, upload_ones(4, 5)?);
    expect_error("too few elements", &["upload", "[2, 3]", "5"], b.upload(MatrixShape::new(2, 3), &[0.0; 5]))?;
    expect_error("an empty upload", &["upload"], b.upload(MatrixShape::new(0, 3), &[]))?;
    expect_error("an impossible shape", &["upload"], b.upload(MatrixShape::new(usize::MAX, 2), &[]))?;
    let mut out = [7.0; 5];
    expect_error("a short download", &["download", "[2, 3]", "5"], pollster::block_on(b.download(&x, &mut out)))?;
    ensure!(out == [7.0; 5], "a rejected download changed the output");

    expect_error("gemm", &["gemm", "[2, 3]", "[4, 5]"], b.gemm((&x).into(), (&y).into(), None))?;
    for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        expect_error("an invalid bound", &["clip", "positive"], b.clip(x.clone(), bound))?;
    }
    let row = upload_ones(1, 3)?;
    expect_error("within by y", &["select_between", "[2, 3]", "[4, 5]"], b.select_between(x.clone(), &y, &row, &row))?;
    expect_error("within x", &["select_between", "[1, 3]", "[2, 3]"], b.select_between(x.clone(), &x, &row, &x))?;
    let square_matrix = upload_ones(3, 3)?;
    expect_error(
        "gemm with accumulator y",
        &["gemm acc", "[4, 5]"],
        b.gemm((&x).into(), (&square_matrix).into(), Some(&y)),
    )?;
    expect_error("mul_add with factor y", &["mul_add", "[2, 3]", "[4, 5]"], b.mul_add(1.0, &x, Some(&y), None))?;
    expect_error("mul_add with addend y", &["mul_add", "[2, 3]", "[4, 5]"], b.mul_add(1.0, &x, None, Some(&y)))?;
    expect_error("an empty range", &["slice", "[2, 3]"], b.slice(&x, 1..1, 0..3))?;
    #[expect(clippy::reversed_empty_ranges, reason = "the reversed range must be rejected")]
    expect_error("a reversed range", &["slice", "[2, 3]"], b.slice(&x, 0..2, 2..1))?;
    expect_error("a range outside of the tensor", &["slice", "[2, 3]"], b.slice(&x, 0..3, 0..3))?;
    expect_error("a range outside of the tensor", &["slice", "[2, 3]"], b.slice(&x, 0..2, 0..usize::MAX))?;
    expect_error("no parts", &["concat"], b.concat(ConcatAxis::Rows, &[]))?;
    expect_error(
        "different numbers of columns",
        &["concat", "[4, 5]"],
        b.concat(ConcatAxis::Rows, &[x.clone(), y.clone()]),
    )?;
    expect_error("different numbers of rows", &["concat", "[4, 5]"], b.concat(ConcatAxis::Cols, &[x, y]))
}

/// Checks inputs, states and lengths that the forward pass of a layer must reject.
fn check_layer<B: Backend>(b: &B) -> Result<()> {
    let case = Case::new("", "", CellKind::Fused);
    let weights = case.weights()?;
    let layer = b.load(&weights.layers()[0])?;
    let upload_ones = |rows, cols| b.upload(MatrixShape::new(rows, cols), &vec![1.0; rows * cols]);
    let (x, state) = (upload_ones(6, 5)?, State { h: upload_ones(2, 7)?, c: upload_ones(2, 7)? });
    let run = |x: &B::Tensor, state: &State<B::Tensor>, lengths: Option<&[usize]>| {
        let mut plan = b.plan(&layer, 2, 3)?;
        b.forward(&layer, &mut plan, Sequence { x, state, steps: 3, batch: 2, lengths })
    };
    run(&x, &state, Some(&[3, 0])).context("valid lengths")?;
    expect_error("x", &["forward: x", "[6, 5]", "[6, 4]"], run(&upload_ones(6, 4)?, &state, None))?;
    expect_error("rows of x", &["forward: x", "[6, 5]", "[5, 5]"], run(&upload_ones(5, 5)?, &state, None))?;
    let wrong_state = State { h: upload_ones(2, 6)?, ..state.clone() };
    expect_error("h", &["forward: state.h", "[2, 7]", "[2, 6]"], run(&x, &wrong_state, None))?;
    let wrong_state = State { c: upload_ones(1, 7)?, ..state.clone() };
    expect_error("c", &["forward: state.c", "[2, 7]", "[1, 7]"], run(&x, &wrong_state, None))?;
    for lengths in [&[1, 3][..], &[4, 1], &[3], &[3, 2, 1]] {
        expect_error("lengths", &["forward: lengths", "2 descending"], run(&x, &state, Some(lengths)))?;
    }
    Ok(())
}

/// Checks that a backend whose kernels support only the default activation functions never runs a layer with other
/// functions on these kernels.
fn check_activations<B: Backend>(b: &B) -> Result<()> {
    let activations = GateActivations { gate: GateActivation::Relu, ..GateActivations::default() };
    let weights = Weights::init(LstmConfig::new(5, 7).activations(activations), &Init::default(), 1)?;
    let layer = &weights.layers()[0];
    match b.load(layer) {
        Ok(loaded) => ensure!(b.path(&loaded) == ExecutionPath::Reference, "a kernel runs {activations}"),
        result => expect_error("relu", &["activations", "sigmoid/tanh/tanh", "relu/tanh/tanh", "`Lstm`"], result)?,
    }
    let mut default_layer = b.load(&Weights::init(LstmConfig::new(5, 7), &Init::default(), 1)?.layers()[0])?;
    let result = b.reload(&mut default_layer, layer);
    ensure!(result.is_err() || b.path(&default_layer) == ExecutionPath::Reference, "a kernel reloads {activations}");
    ensure!(Lstm::new(b, weights.clone())?.paths() == [ExecutionPath::Reference], "a model runs by another path");
    Ok(())
}

/// Checks output gradients, accumulators and traces that the backward pass of a layer must reject.
fn check_layer_backward<B: Backend>(b: &B) -> Result<()> {
    let load_layer = |config| b.load(&Weights::init(config, &Init::default(), 1)?.layers()[0]);
    let config = LstmConfig::new(5, 7);
    let layer = load_layer(config.clone())?;
    let upload_ones = |rows, cols| b.upload(MatrixShape::new(rows, cols), &vec![1.0; rows * cols]);
    let (x, state) = (upload_ones(6, 5)?, State { h: upload_ones(2, 7)?, c: upload_ones(2, 7)? });
    let mut plan = b.plan(&layer, 2, 3)?;
    let sequence = Sequence { x: &x, state: &state, steps: 3, batch: 2, lengths: None };
    let (_, trace) = b.forward_train(&layer, &mut plan, sequence)?;
    let valid_y = upload_ones(6, 7)?;
    let mut run = |layer: &B::Layer, y: &B::Tensor, state: &State<B::Tensor>, accumulate| {
        b.backward(layer, &mut plan, &trace, LayerOutputGradients { y, state, accumulate, needs_input_gradient: true })
    };
    let first_gradients = run(&layer, &valid_y, &state, None).context("valid shapes")?;
    expect_error("columns of y", &["backward: y", "[6, 7]", "[6, 8]"], run(&layer, &upload_ones(6, 8)?, &state, None))?;
    expect_error("rows of y", &["backward: y", "[6, 7]", "[4, 7]"], run(&layer, &upload_ones(4, 7)?, &state, None))?;
    let invalid_state = State { h: upload_ones(3, 7)?, ..state.clone() };
    expect_error("h", &["backward: state.h", "[2, 7]", "[3, 7]"], run(&layer, &valid_y, &invalid_state, None))?;
    let invalid_state = State { c: upload_ones(2, 6)?, ..state.clone() };
    expect_error("c", &["backward: state.c", "[2, 7]", "[2, 6]"], run(&layer, &valid_y, &invalid_state, None))?;
    let other_weights = WeightGradients { input: upload_ones(28, 4)?, ..first_gradients.weights.clone() };
    expect_error(
        "an accumulator of other weights",
        &["accumulate", "[28, 5]", "[28, 4]"],
        run(&layer, &valid_y, &state, Some(other_weights)),
    )?;
    let without_bias = WeightGradients { bias: None, ..first_gradients.weights.clone() };
    expect_error(
        "an accumulator without bias",
        &["accumulate", "bias"],
        run(&layer, &valid_y, &state, Some(without_bias)),
    )?;
    for other in [
        LstmConfig::new(5, 8),
        config.clone().cell(CellKind::PeepholeDiagonal),
        config.clone().cell(CellKind::PeepholeDense),
        config.clone().direction(Direction::Reverse),
        config.clone().proj_size(3),
        config.clone().clip(1.0),
        config.coupled(),
    ] {
        let layer = load_layer(other)?;
        expect_error("another layer's trace", &["backward"], run(&layer, &valid_y, &state, None))?;
    }
    Ok(())
}

/// Checks segment lengths of checkpointing, and output gradients, that the training passes of a model must reject.
fn check_backward<B: Backend>(b: &B) -> Result<()> {
    let case = Case::new("", "", CellKind::Fused).map_config(|c| c.proj_size(4).layers(2));
    let (model, data) = (Lstm::new(b, case.weights()?)?, case.data());
    for segment in [0, 1, 31, 33] {
        let checkpointing = Checkpointing::Segments(segment);
        expect_error(
            "an invalid segment length",
            &["checkpointing", "multiple of 32"],
            model.forward_train(&data.x, checkpointing),
        )?;
    }
    let other = Array3::<f32>::zeros((3, 6, 4));
    let other = model.forward_train(&other, Checkpointing::SaveEverything);
    expect_error("features", &["forward: x", "[3, 6, 5]", "[3, 6, 4]"], other)?;
    let tape = model.forward_train(&data.x, Checkpointing::SaveEverything)?.tape;
    for shape in [(3, 6, 5), (3, 5, 4), (2, 6, 4), (6, 3, 4), (0, 0, 0)] {
        expect_error("y", &["backward: y", "[3, 6, 4]"], tape.backward(&Array3::zeros(shape)))?;
    }
    let state = HostState::zeros(&case.config, 2)?;
    expect_error("states", &["backward: state.h", "[2, 3, 4]", "[2, 2, 4]"], tape.backward(&state))
}

/// Checks that sizes are rejected if their product overflows or the arrays do not fit in memory. These sizes need 64 bits.
#[cfg(target_pointer_width = "64")]
fn check_huge_sizes<B: Backend>(b: &B) -> Result<()> {
    let model = Lstm::random(b, LstmConfig::new(4, 4), 1)?;
    for batch in [1 << 50, 1 << 60, 1 << 62, usize::MAX] {
        expect_error("a huge stream", &["do not fit in memory"], model.stream(batch))?;
    }
    let layer = b.load(&model.weights().layers()[0])?;
    let upload_ones = |rows, cols| b.upload(MatrixShape::new(rows, cols), &vec![1.0; rows * cols]);
    let (x, state) = (upload_ones(2, 4)?, State { h: upload_ones(2, 4)?, c: upload_ones(2, 4)? });
    let mut plan = b.plan(&layer, 2, 1)?;
    let sequence = Sequence { x: &x, state: &state, steps: (1 << 63) + 1, batch: 2, lengths: None };
    expect_error("steps whose product overflows", &["forward", "do not fit"], b.forward(&layer, &mut plan, sequence))?;
    for empty in [Array3::zeros((1 << 60, 0, 4)), Array3::zeros((1 << 44, 0, 4))] {
        expect_error("many empty sequences", &["do not fit"], model.forward(&empty))?;
        expect_error(
            "many empty sequences",
            &["do not fit"],
            model.forward_train(&empty, Checkpointing::SaveEverything),
        )?;
    }
    let row = Array3::<f32>::zeros((1, 1, 4));
    let huge_view = row.broadcast((1, 1 << 56, 4)).context("broadcast of one row")?;
    expect_error("a broadcast view", &["broadcast view of at most"], model.forward(huge_view))?;
    expect_error(
        "a broadcast view",
        &["broadcast view of at most"],
        model.forward_train(huge_view, Checkpointing::SaveEverything),
    )?;
    let head = Linear::random(b, 4, 1, 1)?;
    expect_error("a broadcast view", &["broadcast view of at most"], head.forward(huge_view))?;
    let tape = model.forward_train(&row, Checkpointing::SaveEverything)?.tape;
    expect_error("a wide gradient", &["backward: y"], tape.backward(huge_view))?;
    let (column, row) = (upload_ones(1 << 24, 1)?, upload_ones(1, 1 << 24)?);
    expect_error("a huge product", &["gemm", "do not fit"], b.gemm((&column).into(), (&row).into(), None))?;
    let config = LstmConfig::new(1 << 24, 1 << 24);
    expect_error("a huge model", &["hidden_size"], Weights::init(config, &Init::default(), 1))?;
    // A single layer with options that no model configuration allows.
    let spec = LstmConfig::new(1, 5).cell(CellKind::PeepholeDense).proj_size(70).layer_specs()[0];
    let values = spec.params().into_iter().map(|(_, shape)| ArrayD::zeros(shape)).collect();
    expect_error("a projected dense peephole", &["proj_size"], LayerWeights::new(spec, values))
}

/// Checks that a cell rejects weights and inputs of another kind of cell, and a state of another size.
fn check_cell<B: Backend>(b: &B) -> Result<()> {
    let init_weights = |cell| Weights::init(LstmConfig::new(3, 5).cell(cell), &Init::default(), 1);
    let (fused, unfused) = (init_weights(CellKind::Fused)?, init_weights(CellKind::Unfused)?);
    let [fused, unfused] = [&fused.layers()[0], &unfused.layers()[0]];
    expect_error("the fused cell's weights", &["cell", "PeepholeDiagonal"], PeepholeDiagonal::load(b, fused))?;
    let upload_ones = |rows, cols| b.upload(MatrixShape::new(rows, cols), &vec![1.0; rows * cols]);
    let (x, state) = (upload_ones(2, 3)?, State { h: upload_ones(2, 5)?, c: upload_ones(2, 5)? });
    let input = Cell::load(b, unfused)?.input_term(b, &x)?;
    let fused = Cell::load(b, fused)?;
    expect_error("the unfused cell's input", &["step: input"], fused.step(b, input, &state))?;
    let state_with_narrow_h = State { h: upload_ones(2, 4)?, ..state };
    expect_error("a narrow h", &["gemm", "[2, 4]"], fused.step(b, fused.input_term(b, &x)?, &state_with_narrow_h))
}

/// Checks inputs, states, lengths and weights that the forward pass of a model must reject.
fn check_forward<B: Backend>(b: &B) -> Result<()> {
    let case = Case::new("", "", CellKind::Fused).map_config(|c| c.proj_size(4).layers(2));
    let (model, data) = (Lstm::new(b, case.weights()?)?, case.data());
    let zeros = |a, b, c| Array3::<f32>::zeros((a, b, c));
    let x = &data.x;
    expect_error("features", &["forward: x", "[3, 6, 5]", "[3, 6, 4]"], model.forward(&zeros(3, 6, 4)))?;
    expect_error("empty features", &["forward: x", "[0, 6, 5]"], model.forward(&zeros(0, 6, 4)))?;
    let valid_state = HostState::zeros(&case.config, 3)?;
    for h in [zeros(1, 3, 4), zeros(2, 2, 4), zeros(2, 3, 7)] {
        let invalid_state = State { h, ..valid_state.clone() };
        expect_error("h", &["forward: state.h", "[2, 3, 4]"], model.forward(Input::from(x).state(&invalid_state)))?;
    }
    for c in [zeros(3, 3, 7), zeros(2, 6, 7), zeros(2, 3, 4)] {
        let invalid_state = State { c, ..valid_state.clone() };
        expect_error("c", &["forward: state.c", "[2, 3, 7]"], model.forward(Input::from(x).state(&invalid_state)))?;
    }
    for lengths in [&[1, 2][..], &[1, 2, 3, 4], &[]] {
        expect_error("lengths", &["forward: lengths", "3, one for"], model.forward(Input::from(x).lengths(lengths)))?;
    }
    for lengths in [[1, 7, 1], [1, usize::MAX, 8]] {
        expect_error(
            "lengths",
            &["forward: lengths[1]", "at most 6"],
            model.forward(Input::from(x).lengths(&lengths)),
        )?;
    }
    let time_major = Input::from(x).time_major().lengths(&[1, 2, 3]);
    expect_error("lengths of a time-major input", &["forward: lengths", "6"], model.forward(time_major))?;
    let mut model = model;
    let other = Lstm::random(b, LstmConfig::new(5, 8), 1)?.weights().clone();
    expect_error("other weights", &["weights"], model.set_weights(other))
}

/// Checks models, batch sizes, states and chunks that streams must reject.
fn check_stream<B: Backend>(b: &B) -> Result<()> {
    for direction in [Direction::Reverse, Direction::Bidirectional] {
        let model = Lstm::random(b, LstmConfig::new(3, 5).direction(direction), 1)?;
        expect_error("a reverse stream", &["direction"], model.stream(1))?;
    }
    expect_error("no layers", &["layer"], b.stream(&[], 1))?;
    let model = Lstm::random(b, LstmConfig::new(3, 5).layers(2), 1)?;
    expect_error("no sequences", &["stream", "batch"], model.stream(0))?;
    let mut stream = model.stream(2)?;
    let invalid_state = HostState::zeros(model.config(), 3)?;
    expect_error("a state of another batch", &["set_state", "[2, 2, 5]"], stream.set_state(&invalid_state))?;
    expect_error("another batch", &["chunk: x", "[2, 4, 3]"], stream.chunk(Array3::zeros((3, 4, 3)).view()))?;
    expect_error("other features", &["x", "[2, 4, 3]"], stream.chunk(Array3::zeros((2, 4, 5)).view()))
}

/// Checks that a rejected step of a stream changes neither the output nor the state, and that a successful step writes its
/// output and nothing else.
fn check_step<B: Backend>(b: &B) -> Result<()> {
    let case = Case::new("", "", CellKind::Fused).map_config(|c| c.layers(2));
    let (model, data) = (Lstm::new(b, case.weights()?)?, case.data());
    let mut stream = model.stream(case.batch)?;
    stream.set_state(data.state.as_ref().context("the case has no initial state")?)?;
    let state_before = stream.state()?;
    let x = vec![0.5; case.batch * 5];
    let mut y = vec![7.0; case.batch * 7];
    let (half_len, short_len) = (x.len() / 2, y.len() - 1);
    expect_error("a short x", &["step: x", "15", "7"], stream.step(&x[..half_len], &mut y))?;
    expect_error("an empty x", &["step: x"], stream.step(&[], &mut y))?;
    expect_error("a short y", &["step: y", "21", "20"], stream.step(&x, &mut y[..short_len]))?;
    ensure!(y.iter().all(|v| *v == 7.0), "a rejected step changed the output");
    ensure!(stream.state()? == state_before, "a rejected step changed the state");

    let y = crate::primitives::write_guarded(y.len(), |y| Ok(stream.step(&x, y)?))?;
    let last_layer_h: Vec<f32> = stream.state()?.h.iter().skip(case.batch * 7).copied().collect();
    check_same_slices("output of a step compared with the state of the last layer", &last_layer_h, &y)?;

    let mut want = stream.state()?;
    let reset_result = stream.reset_sequences(&[0, case.batch]);
    expect_error("an index out of range", &["reset_sequences", "below 3", "got 3"], reset_result)?;
    ensure!(stream.state()? == want, "a rejected reset changed the state");
    stream.reset_sequences(&[1])?;
    [&mut want.h, &mut want.c].into_iter().for_each(|array| array.slice_mut(s![.., 1, ..]).fill(0.0));
    ensure!(stream.state()? == want, "reset_sequences did not reset exactly one sequence");

    // The backend's own stream needs one state for each layer.
    let layers = model.weights().layers().iter().map(|w| b.load(w)).collect::<Result<Vec<_>, _>>()?;
    let mut backend_stream = b.stream(&layers, 2)?;
    let upload_ones = |cols| b.upload(MatrixShape::new(2, cols), &vec![1.0; 2 * cols]);
    let (valid_state, invalid_state) =
        (State { h: upload_ones(7)?, c: upload_ones(7)? }, State { h: upload_ones(7)?, c: upload_ones(6)? });
    expect_error(
        "one state for two layers",
        &["stream state", "2"],
        b.set_stream_state(&mut backend_stream, 0, std::slice::from_ref(&valid_state)),
    )?;
    expect_error(
        "a wide c",
        &["stream state", "[2, 6]"],
        b.set_stream_state(&mut backend_stream, 0, &[valid_state.clone(), invalid_state]),
    )?;
    for first in [1, 2, usize::MAX] {
        expect_error(
            "a state for sequences beyond the batch",
            &["stream state"],
            b.set_stream_state(&mut backend_stream, first, &[valid_state.clone(), valid_state.clone()]),
        )?;
    }
    #[expect(clippy::reversed_empty_ranges, reason = "the reversed range must be rejected")]
    for sequences in [0..3, 1..1, 2..1, 2..3, 0..usize::MAX] {
        let range = format!("{sequences:?}");
        expect_error("an invalid range", &["stream state", "2", &range], b.stream_state(&backend_stream, sequences))?;
    }
    b.set_stream_state(&mut backend_stream, 0, &[valid_state.clone(), valid_state])?;
    for state in b.stream_state(&backend_stream, 0..2)? {
        check_same_slices("state of a stream", &[1.0; 14], &download(b, &state.c)?)?;
    }
    Ok(())
}
