//! The conformance check of a case: all execution paths and input layouts of a backend are bit-identical.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, Checkpointing, Direction, Error, HostState, Input, Lstm, LstmConfig, OutputGradients, Precision,
    Reference, State, Weights,
    arithmetic::CHUNK_STEPS,
    ndarray::{Array3, ArrayView3, Axis, ShapeBuilder, concatenate, s},
};

use crate::{
    cases::{Case, CaseData},
    compare::{Outputs, PassResults, check_same_outputs, check_same_passes},
};

/// Runs a case on every execution path, with every input layout and as a stream, and checks that the results are
/// bit-identical. Returns the results.
///
/// # Errors
/// Two results differ, or the backend returns an error.
pub fn check_case<B: Backend>(b: &B, case: &Case) -> Result<PassResults> {
    let (weights, data) = (case.weights()?, case.data());
    let reference_model = Lstm::new(&Reference(b.clone()), weights.clone())?;
    let passes = run_passes(&reference_model, &data, Checkpointing::SaveEverything)?;
    let want = &passes.outputs;
    check_same_outputs(
        "inference compared with training, on the reference path",
        want,
        &run_forward(&reference_model, &data)?,
    )?;

    let model = Lstm::new(b, weights.clone())?;
    let paths = model.paths().iter().map(|path| path.to_string()).collect::<Vec<_>>().join(", ");
    check_same_outputs(&format!("{paths} compared with the reference path"), want, &run_forward(&model, &data)?)?;
    check_gradients(&model, case, &passes).with_context(|| format!("{paths} compared with the reference path"))?;

    check_fused_and_unfused_cell(b, weights, &data, &passes)?;
    check_reused_plan(&model, case, &passes)?;
    check_layouts(&model, &data, want)?;
    if case.config.direction == Direction::Forward && case.lengths.is_none() && case.dropout_seed.is_none() {
        check_streams(&model, &data, want)?;
        check_streams(&reference_model, &data, want).context("on the reference path")?;
    }
    Ok(passes)
}

/// Checks that the backward pass of the backend's default path always gives the same gradients: with and without
/// checkpointing, batch-first and time-major, twice on one tape, and without the gradient of the input.
fn check_gradients<B: Backend>(model: &Lstm<B>, case: &Case, want: &PassResults) -> Result<()> {
    let data = case.data();
    if case.config.precision != Precision::F32 {
        let refused = model.forward_train(data.input(), Checkpointing::SaveEverything);
        let is_expected = matches!(refused, Err(Error::Config { option: "precision", .. }));
        ensure!(is_expected, "training of quantized weights must be an error that names the precision");
        return Ok(());
    }
    check_same_passes("training", want, &run_passes(model, &data, Checkpointing::SaveEverything)?)?;
    check_same_passes(
        "checkpointing in segments",
        want,
        &run_passes(model, &data, Checkpointing::Segments(CHUNK_STEPS))?,
    )?;

    if let Some(lengths) = &data.lengths {
        // Padding must not influence the results.
        let mut data = data.clone();
        for (b, &len) in lengths.iter().enumerate() {
            data.x.slice_mut(s![b, len.., ..]).fill(f32::NAN);
            data.dy.slice_mut(s![b, len.., ..]).fill(f32::NAN);
        }
        check_same_passes("NaN in the padding", want, &run_passes(model, &data, Checkpointing::SaveEverything)?)?;
    }

    let swap_batch_and_time = |a: &Array3<f32>| a.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (x, dy) = (swap_batch_and_time(&data.x), swap_batch_and_time(&data.dy));
    let pass = model.forward_train(data.with_options(Input::from(&x)).time_major(), Checkpointing::SaveEverything)?;
    let output_gradients = OutputGradients::from(&dy).state(&data.dstate);
    let mut gradients = pass.tape.backward(output_gradients.with_input_gradient())?;
    gradients.x = gradients.x.as_ref().map(swap_batch_and_time);
    let outputs = Outputs { y: swap_batch_and_time(&pass.y), state: pass.state };
    check_same_passes("time-major", want, &PassResults { outputs: outputs.clone(), gradients: Some(gradients) })?;

    let mut gradients = pass.tape.backward(output_gradients)?;
    ensure!(gradients.x.is_none(), "the gradient of the input was not requested");
    gradients.x = want.gradients.as_ref().and_then(|gradients| gradients.x.clone());
    check_same_passes(
        "second backward pass on one tape, without the gradient of the input",
        want,
        &PassResults { outputs, gradients: Some(gradients) },
    )
}

/// Runs the forward pass of a model, and the backward pass unless its weights are quantized.
///
/// # Errors
/// The backend returns an error.
pub fn run_passes<B: Backend>(model: &Lstm<B>, data: &CaseData, checkpointing: Checkpointing) -> Result<PassResults> {
    if model.config().precision != Precision::F32 {
        return Ok(PassResults { outputs: run_forward(model, data)?, gradients: None });
    }
    let pass = model.forward_train(data.input(), checkpointing)?;
    let gradients = Some(pass.tape.backward(data.output_gradients())?);
    Ok(PassResults { outputs: Outputs { y: pass.y, state: pass.state }, gradients })
}

/// Runs the forward pass of a model without recording a tape.
///
/// # Errors
/// The backend returns an error.
pub fn run_forward<B: Backend>(model: &Lstm<B>, data: &CaseData) -> Result<Outputs> {
    Ok(model.forward(data.input())?.into())
}

/// Checks that the fused cell (one product for four gates) and the unfused cell (four products) are bit-identical.
fn check_fused_and_unfused_cell<B: Backend>(
    b: &B,
    weights: Weights,
    data: &CaseData,
    want: &PassResults,
) -> Result<()> {
    let other_weights = match weights.config().cell {
        CellKind::Fused => weights.into_unfused()?,
        CellKind::Unfused => weights.into_fused()?,
        CellKind::PeepholeDense | CellKind::PeepholeDiagonal => return Ok(()),
    };
    let what = format!("{:?} cell", other_weights.config().cell);
    check_same_passes(&what, want, &run_passes(&Lstm::new(b, other_weights)?, data, Checkpointing::SaveEverything)?)
}

/// Checks that a plan (the reusable buffers of a layer) that was used for a longer sequence gives the same results as a
/// new plan.
fn check_reused_plan<B: Backend>(model: &Lstm<B>, case: &Case, want: &PassResults) -> Result<()> {
    // A new model, because the given one already has plans for these sizes.
    let model = Lstm::new(model.backend(), model.weights().clone())?;
    let longer_case = Case { steps: case.steps + 3, lengths: None, seed: case.seed + 1, ..case.clone() };
    run_passes(&model, &longer_case.data(), Checkpointing::SaveEverything)?;
    for _ in 0..2 {
        check_same_outputs("reused plan", &want.outputs, &run_forward(&model, &case.data())?)?;
        check_same_passes("reused plan", want, &run_passes(&model, &case.data(), Checkpointing::SaveEverything)?)?;
    }
    Ok(())
}

/// Checks that arrays with different strides, and time-major arrays, give the same results.
fn check_layouts<B: Backend>(model: &Lstm<B>, data: &CaseData, want: &Outputs) -> Result<()> {
    let run = |what, x: ArrayView3<'_, f32>, state: &Option<HostState>| {
        let data = CaseData { state: state.clone(), ..data.clone() };
        let got = model.forward(data.with_options(Input::from(x)))?.into();
        check_same_outputs(what, want, &got)
    };
    let transposed_x = data.x.view().reversed_axes().as_standard_layout().into_owned();
    let to_column_major = |a: &Array3<f32>| Array3::from_shape_fn(a.dim().f(), |at| a[at]);
    let state = data.state.as_ref().map(|s| State { h: to_column_major(&s.h), c: to_column_major(&s.c) });
    run("transposed view, column-major state", transposed_x.view().reversed_axes(), &state)?;

    let reversed_x = data.x.slice(s![.., ..;-1, ..;-1]).as_standard_layout().into_owned();
    run("reversed view", reversed_x.slice(s![.., ..;-1, ..;-1]), &data.state)?;

    let time_major_x = data.x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (y, state) = model.forward(data.with_options(Input::from(&time_major_x)).time_major())?;
    let y = y.permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    check_same_outputs("time-major", want, &Outputs { y, state })
}

/// Checks that a stream gives the same results step by step and in chunks of different sizes.
fn check_streams<B: Backend>(model: &Lstm<B>, data: &CaseData, want: &Outputs) -> Result<()> {
    check_same_outputs("stream, step by step", want, &run_stream(model, data, &[1])?)?;
    check_same_outputs("stream, chunks of different sizes", want, &run_stream(model, data, &[3, 1, 1, 7, 2])?)
}

/// Runs a stream on the input of a case, in chunks of the given numbers of steps, repeated until the input ends. Chunks
/// of one step use `step`.
fn run_stream<B: Backend>(model: &Lstm<B>, data: &CaseData, sizes: &[usize]) -> Result<Outputs> {
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
pub fn check_empty_inputs<B: Backend>(b: &B, cell: CellKind) -> Result<()> {
    let config = LstmConfig::new(3, 5).cell(cell).layers(2).bidirectional();
    for (batch, steps) in [(0, 4), (2, 0), (0, 0)] {
        let case = Case { config: config.clone(), batch, steps, ..Case::new("", "", cell) };
        let (model, mut data) = (Lstm::new(b, case.weights()?)?, case.data());
        let y = Array3::zeros((batch, steps, config.output_size()));
        let initial_state = data.state.clone().context("the case has no initial state")?;
        check_same_outputs(
            "with an initial state",
            &Outputs { y: y.clone(), state: initial_state },
            &run_forward(&model, &data)?,
        )?;
        let gradients = run_passes(&model, &data, Checkpointing::SaveEverything)?.gradients;
        let gradients = gradients.context("the model has f32 weights")?;
        ensure!(
            gradients.state == data.dstate,
            "the gradient of the initial state differs from that of the final state"
        );
        ensure!(gradients.x.is_some_and(|x| x.dim() == data.x.dim()), "the gradient of the input has the wrong shape");
        let weights = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
        ensure!(weights.flat_map(|(_, v)| v).all(|v| v.to_bits() == 0), "a weight gradient is not zero");
        data.state = None;
        let state = HostState::zeros(&config, batch)?;
        check_same_outputs("without an initial state", &Outputs { y, state }, &run_forward(&model, &data)?)?;
    }
    Ok(())
}
