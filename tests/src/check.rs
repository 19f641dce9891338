//! What every case is checked for on every backend: all ways to compute it give the same bits.

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

/// Runs `case` in every way there is and fails where two differ; returns what it gives.
///
/// # Errors
/// Which two ways differ, and where; or what the backend refuses.
pub fn check_case<B: Backend>(b: &B, case: &Case) -> Result<Passes> {
    let (weights, data) = (case.weights()?, case.data());
    let reference = Lstm::new(&Reference(b.clone()), weights.clone())?;
    let passes = passes(&reference, &data, Checkpointing::Everything)?;
    let want = &passes.outputs;
    same_outputs("inference against training, on the reference path", want, &outputs(&reference, &data)?)?;

    let model = Lstm::new(b, weights.clone())?;
    let paths = model.paths().iter().map(|path| path.to_string()).collect::<Vec<_>>().join(", ");
    same_outputs(&format!("{paths} against reference"), want, &outputs(&model, &data)?)?;
    check_gradients(&model, case, &passes).with_context(|| format!("{paths} against reference"))?;

    other_cell(b, weights, &data, &passes)?;
    reused_plan(&model, case, &passes)?;
    layouts(&model, &data, want)?;
    if case.config.direction == Direction::Forward && case.lengths.is_none() && case.training.is_none() {
        streams(&model, &data, want)?;
        streams(&reference, &data, want).context("on the reference path")?;
    }
    Ok(passes)
}

/// The backward pass of the backend's own path, whole and in segments, batch-first and time-major, again on one tape, and
/// without the input's gradient.
fn check_gradients<B: Backend>(model: &Lstm<B>, case: &Case, want: &Passes) -> Result<()> {
    let data = case.data();
    same_passes("training", want, &passes(model, &data, Checkpointing::Everything)?)?;
    same_passes("in segments", want, &passes(model, &data, Checkpointing::Segments(CHUNK))?)?;

    if let Some(lengths) = &data.lengths {
        // Nothing beyond a sequence's length has any influence.
        let mut data = data.clone();
        for (b, &len) in lengths.iter().enumerate() {
            data.x.slice_mut(s![b, len.., ..]).fill(f32::NAN);
            data.dy.slice_mut(s![b, len.., ..]).fill(f32::NAN);
        }
        same_passes("NaN beyond the lengths", want, &passes(model, &data, Checkpointing::Everything)?)?;
    }

    let turned = |a: &Array3<f32>| a.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (x, dy) = (turned(&data.x), turned(&data.dy));
    let pass = model.forward_train(data.options(Input::from(&x)).time_major(), Checkpointing::Everything)?;
    let upstream = OutputGradients::from(&dy).state(&data.dstate);
    let mut gradients = pass.tape.backward(upstream.with_input())?;
    gradients.x = gradients.x.as_ref().map(turned);
    let outputs = Outputs { y: turned(&pass.y), state: pass.state };
    same_passes("time-major", want, &Passes { outputs: outputs.clone(), gradients })?;

    let mut gradients = pass.tape.backward(upstream)?;
    ensure!(gradients.x.is_none(), "a gradient of the input that nobody asked for");
    gradients.x = want.gradients.x.clone();
    same_passes("the same tape again, without the input's gradient", want, &Passes { outputs, gradients })
}

/// Both passes of a model over the data.
///
/// # Errors
/// What the backend refuses.
pub fn passes<B: Backend>(model: &Lstm<B>, data: &Data, keep: Checkpointing) -> Result<Passes> {
    let pass = model.forward_train(data.input(), keep)?;
    let gradients = pass.tape.backward(data.upstream())?;
    Ok(Passes { outputs: Outputs { y: pass.y, state: pass.state }, gradients })
}

/// The model over the data.
///
/// # Errors
/// What the backend refuses.
pub fn outputs<B: Backend>(model: &Lstm<B>, data: &Data) -> Result<Outputs> {
    Ok(model.forward(data.input())?.into())
}

/// One product for four gates, or four products: the bits are the same.
fn other_cell<B: Backend>(b: &B, weights: Weights, data: &Data, want: &Passes) -> Result<()> {
    let other = match weights.config().cell {
        CellKind::Fused => weights.unpack()?,
        CellKind::Unfused => weights.pack()?,
        CellKind::PeepholeDense | CellKind::PeepholeDiagonal => return Ok(()),
    };
    let what = format!("{:?} cell", other.config().cell);
    same_passes(&what, want, &passes(&Lstm::new(b, other)?, data, Checkpointing::Everything)?)
}

/// A plan that a longer sequence has filled gives the same bits as a new one.
fn reused_plan<B: Backend>(model: &Lstm<B>, case: &Case, want: &Passes) -> Result<()> {
    // Not the model that already holds plans for these very sizes.
    let model = Lstm::new(model.backend(), model.weights().clone())?;
    let longer = Case { steps: case.steps + 3, lengths: None, seed: case.seed + 1, ..case.clone() };
    passes(&model, &longer.data(), Checkpointing::Everything)?;
    for _ in 0..2 {
        same_outputs("plan used before", &want.outputs, &outputs(&model, &case.data())?)?;
        same_passes("plan used before", want, &passes(&model, &case.data(), Checkpointing::Everything)?)?;
    }
    Ok(())
}

/// Arrays whose elements lie otherwise in memory, and time-major ones.
fn layouts<B: Backend>(model: &Lstm<B>, data: &Data, want: &Outputs) -> Result<()> {
    let run = |what, x: ArrayView3<'_, f32>, state: &Option<HostState>| {
        let plain = Data { state: state.clone(), ..data.clone() };
        let got = model.forward(plain.options(Input::from(x)))?.into();
        same_outputs(what, want, &got)
    };
    let turned = data.x.view().reversed_axes().as_standard_layout().into_owned();
    let column_major = |a: &Array3<f32>| Array3::from_shape_fn(a.dim().f(), |at| a[at]);
    let state = data.state.as_ref().map(|s| State { h: column_major(&s.h), c: column_major(&s.c) });
    run("transposed view, column-major state", turned.view().reversed_axes(), &state)?;

    let backwards = data.x.slice(s![.., ..;-1, ..;-1]).as_standard_layout().into_owned();
    run("reversed view", backwards.slice(s![.., ..;-1, ..;-1]), &data.state)?;

    let time_major = data.x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (y, state) = model.forward(data.options(Input::from(&time_major)).time_major())?;
    let y = y.permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    same_outputs("time-major", want, &Outputs { y, state })
}

/// Step by step, and in chunks of uneven sizes between single steps.
fn streams<B: Backend>(model: &Lstm<B>, data: &Data, want: &Outputs) -> Result<()> {
    same_outputs("stream, step by step", want, &stream(model, data, &[1])?)?;
    // The first is larger than most cases are long: then it is the whole sequence.
    same_outputs("stream, uneven chunks", want, &stream(model, data, &[3, 1, 1, 7, 2])?)
}

/// Feeds a stream with pieces of the given sizes in turn; pieces of one step go through `step`.
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
            stream.step(&x, y.as_slice_mut().context("made contiguous")?)?;
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

/// A batch of 0 or no steps gives empty outputs and the state as it was.
///
/// # Errors
/// What differs.
pub fn empty<B: Backend>(b: &B, cell: CellKind) -> Result<()> {
    let config = LstmConfig::new(3, 5).cell(cell).layers(2).bidirectional();
    for (batch, steps) in [(0, 4), (2, 0), (0, 0)] {
        let case = Case { config: config.clone(), batch, steps, ..Case::new("", "", cell) };
        let (model, mut data) = (Lstm::new(b, case.weights()?)?, case.data());
        let y = Array3::zeros((batch, steps, config.output_size()));
        let given = data.state.clone().context("cases start from a state")?;
        same_outputs("given state", &Outputs { y: y.clone(), state: given }, &outputs(&model, &data)?)?;
        let gradients = passes(&model, &data, Checkpointing::Everything)?.gradients;
        ensure!(gradients.state == data.dstate, "the final state is the initial one");
        ensure!(gradients.x.is_some_and(|x| x.dim() == data.x.dim()), "the input's gradient has another shape");
        let weights = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
        ensure!(weights.flat_map(|(_, v)| v).all(|v| v.to_bits() == 0), "nothing depends on the weights");
        data.state = None;
        let state = HostState::zeros(&config, batch)?;
        same_outputs("no state", &Outputs { y, state }, &outputs(&model, &data)?)?;
    }
    Ok(())
}
