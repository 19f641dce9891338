//! The conformance check of a case: all execution paths and input layouts of a backend are bit-identical.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, Checkpointing, Direction, HostState, Input, Lstm, LstmConfig, OutputGradients, Reference, State,
    Weights,
    arithmetic::CHUNK,
    ndarray::{Array3, ArrayView3, Axis, ShapeBuilder, concatenate, s},
};

use crate::{
    cases::{Case, Data},
    compare::{Outputs, Passes, same_outputs, same_passes},
};

/// Runs a case on every execution path, with every input layout and as a stream, and checks that the results are
/// bit-identical. Returns the results.
///
/// # Errors
/// Two results differ, or the backend returns an error.
pub fn check_case<B: Backend>(b: &B, case: &Case) -> Result<Passes> {
    let (weights, data) = (case.weights()?, case.data());
    let reference = Lstm::new(&Reference(b.clone()), weights.clone())?;
    let passes = passes(&reference, &data, Checkpointing::Everything)?;
    let want = &passes.outputs;
    same_outputs("inference compared with training, on the reference path", want, &outputs(&reference, &data)?)?;

    let model = Lstm::new(b, weights.clone())?;
    let paths = model.paths().iter().map(|path| path.to_string()).collect::<Vec<_>>().join(", ");
    same_outputs(&format!("{paths} compared with the reference path"), want, &outputs(&model, &data)?)?;
    check_gradients(&model, case, &passes).with_context(|| format!("{paths} compared with the reference path"))?;

    fused_and_unfused_cell(b, weights, &data, &passes)?;
    reused_plan(&model, case, &passes)?;
    layouts(&model, &data, want)?;
    if case.config.direction == Direction::Forward && case.lengths.is_none() && case.training.is_none() {
        streams(&model, &data, want)?;
        streams(&reference, &data, want).context("on the reference path")?;
    }
    Ok(passes)
}

/// Checks the backward pass of the backend's default path: with and without checkpointing, batch-first and time-major, twice on
/// one tape, and without the gradient of the input.
fn check_gradients<B: Backend>(model: &Lstm<B>, case: &Case, want: &Passes) -> Result<()> {
    let data = case.data();
    same_passes("training", want, &passes(model, &data, Checkpointing::Everything)?)?;
    same_passes("checkpointing in segments", want, &passes(model, &data, Checkpointing::Segments(CHUNK))?)?;

    if let Some(lengths) = &data.lengths {
        // Padding must not influence the results.
        let mut data = data.clone();
        for (b, &len) in lengths.iter().enumerate() {
            data.x.slice_mut(s![b, len.., ..]).fill(f32::NAN);
            data.dy.slice_mut(s![b, len.., ..]).fill(f32::NAN);
        }
        same_passes("NaN in the padding", want, &passes(model, &data, Checkpointing::Everything)?)?;
    }

    let transposed = |a: &Array3<f32>| a.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (x, dy) = (transposed(&data.x), transposed(&data.dy));
    let pass = model.forward_train(data.with_options(Input::from(&x)).time_major(), Checkpointing::Everything)?;
    let output_gradients = OutputGradients::from(&dy).state(&data.dstate);
    let mut gradients = pass.tape.backward(output_gradients.with_input())?;
    gradients.x = gradients.x.as_ref().map(transposed);
    let outputs = Outputs { y: transposed(&pass.y), state: pass.state };
    same_passes("time-major", want, &Passes { outputs: outputs.clone(), gradients })?;

    let mut gradients = pass.tape.backward(output_gradients)?;
    ensure!(gradients.x.is_none(), "the gradient of the input was not requested");
    gradients.x = want.gradients.x.clone();
    same_passes(
        "second backward pass on one tape, without the gradient of the input",
        want,
        &Passes { outputs, gradients },
    )
}

/// Runs the forward and the backward pass of a model.
///
/// # Errors
/// The backend returns an error.
pub fn passes<B: Backend>(model: &Lstm<B>, data: &Data, checkpointing: Checkpointing) -> Result<Passes> {
    let pass = model.forward_train(data.input(), checkpointing)?;
    let gradients = pass.tape.backward(data.output_gradients())?;
    Ok(Passes { outputs: Outputs { y: pass.y, state: pass.state }, gradients })
}

/// Runs the forward pass of a model without recording a tape.
///
/// # Errors
/// The backend returns an error.
pub fn outputs<B: Backend>(model: &Lstm<B>, data: &Data) -> Result<Outputs> {
    Ok(model.forward(data.input())?.into())
}

/// The fused cell (one product for four gates) and the unfused cell (four products) must be bit-identical.
fn fused_and_unfused_cell<B: Backend>(b: &B, weights: Weights, data: &Data, want: &Passes) -> Result<()> {
    let other = match weights.config().cell {
        CellKind::Fused => weights.unpack()?,
        CellKind::Unfused => weights.pack()?,
        CellKind::PeepholeDense | CellKind::PeepholeDiagonal => return Ok(()),
    };
    let what = format!("{:?} cell", other.config().cell);
    same_passes(&what, want, &passes(&Lstm::new(b, other)?, data, Checkpointing::Everything)?)
}

/// A plan that was used for a longer sequence must give the same results as a new one.
fn reused_plan<B: Backend>(model: &Lstm<B>, case: &Case, want: &Passes) -> Result<()> {
    // A new model, because the given one already has plans for these sizes.
    let model = Lstm::new(model.backend(), model.weights().clone())?;
    let longer = Case { steps: case.steps + 3, lengths: None, seed: case.seed + 1, ..case.clone() };
    passes(&model, &longer.data(), Checkpointing::Everything)?;
    for _ in 0..2 {
        same_outputs("reused plan", &want.outputs, &outputs(&model, &case.data())?)?;
        same_passes("reused plan", want, &passes(&model, &case.data(), Checkpointing::Everything)?)?;
    }
    Ok(())
}

/// Arrays with different strides, and time-major arrays, must give the same results.
fn layouts<B: Backend>(model: &Lstm<B>, data: &Data, want: &Outputs) -> Result<()> {
    let run = |what, x: ArrayView3<'_, f32>, state: &Option<HostState>| {
        let data = Data { state: state.clone(), ..data.clone() };
        let got = model.forward(data.with_options(Input::from(x)))?.into();
        same_outputs(what, want, &got)
    };
    let transposed = data.x.view().reversed_axes().as_standard_layout().into_owned();
    let column_major = |a: &Array3<f32>| Array3::from_shape_fn(a.dim().f(), |at| a[at]);
    let state = data.state.as_ref().map(|s| State { h: column_major(&s.h), c: column_major(&s.c) });
    run("transposed view, column-major state", transposed.view().reversed_axes(), &state)?;

    let reversed = data.x.slice(s![.., ..;-1, ..;-1]).as_standard_layout().into_owned();
    run("reversed view", reversed.slice(s![.., ..;-1, ..;-1]), &data.state)?;

    let time_major = data.x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (y, state) = model.forward(data.with_options(Input::from(&time_major)).time_major())?;
    let y = y.permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    same_outputs("time-major", want, &Outputs { y, state })
}

/// A stream must give the same results step by step and in chunks of different sizes.
fn streams<B: Backend>(model: &Lstm<B>, data: &Data, want: &Outputs) -> Result<()> {
    same_outputs("stream, step by step", want, &stream(model, data, &[1])?)?;
    same_outputs("stream, chunks of different sizes", want, &stream(model, data, &[3, 1, 1, 7, 2])?)
}

/// Feeds a stream with chunks of the given numbers of steps, repeated until the input ends. Chunks of one step use `step`.
fn stream<B: Backend>(model: &Lstm<B>, data: &Data, sizes: &[usize]) -> Result<Outputs> {
    let (batch, steps, _) = data.x.dim();
    let mut stream = model.stream(batch)?;
    if let Some(state) = &data.state {
        stream.set_state(state)?;
    }
    let (mut parts, mut t) = (Vec::new(), 0);
    for &size in sizes.iter().cycle() {
        let end = steps.min(t + size);
        let x = data.x.slice(s![.., t..end, ..]);
        parts.push(if end - t == 1 {
            let x: Vec<f32> = x.iter().copied().collect();
            let mut y = Array3::zeros((batch, 1, model.config().output_size()));
            stream.step(&x, y.as_slice_mut().context("a new array is contiguous")?)?;
            y
        } else {
            stream.chunk(x)?
        });
        t = end;
        if t == steps {
            break;
        }
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    Ok(Outputs { y: concatenate(Axis(1), &views)?, state: stream.state()? })
}

/// Checks inputs with a batch size of 0 or without steps: the output is empty and the state is unchanged.
///
/// # Errors
/// A result is wrong, or the backend returns an error.
pub fn empty<B: Backend>(b: &B, cell: CellKind) -> Result<()> {
    let config = LstmConfig::new(3, 5).cell(cell).layers(2).bidirectional();
    for (batch, steps) in [(0, 4), (2, 0), (0, 0)] {
        let case = Case { config: config.clone(), batch, steps, ..Case::new("", "", cell) };
        let (model, mut data) = (Lstm::new(b, case.weights()?)?, case.data());
        let y = Array3::zeros((batch, steps, config.output_size()));
        let given = data.state.clone().context("the case has no initial state")?;
        same_outputs("with an initial state", &Outputs { y: y.clone(), state: given }, &outputs(&model, &data)?)?;
        let gradients = passes(&model, &data, Checkpointing::Everything)?.gradients;
        ensure!(
            gradients.state == data.dstate,
            "the gradient of the initial state differs from that of the final state"
        );
        ensure!(gradients.x.is_some_and(|x| x.dim() == data.x.dim()), "the gradient of the input has the wrong shape");
        let weights = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
        ensure!(weights.flat_map(|(_, v)| v).all(|v| v.to_bits() == 0), "a weight gradient is not zero");
        data.state = None;
        let state = HostState::zeros(&config, batch)?;
        same_outputs("without an initial state", &Outputs { y, state }, &outputs(&model, &data)?)?;
    }
    Ok(())
}
