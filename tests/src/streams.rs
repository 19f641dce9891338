//! Checks of streams in which not every sequence runs in every step, of moving the state of one sequence, and of the
//! fully connected layer that often follows a stream.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, GateActivation, GateActivations, HostState, Input, Linear, Lstm, Reference, State, Stream,
    ndarray::{Array1, Array2, Array3, ArrayView1, Axis, s},
    train::shuffled_indices,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    cases::{Case, random_value},
    compare::{check_same, check_same_slices},
    invalid_input::expect_error,
    primitives::{NamedCheck, write_guarded},
};

/// All checks of streams.
pub fn checks<B: Backend>() -> Vec<NamedCheck<B>> {
    vec![
        ("some-fused", |b| check_step_some(b, &stacked_case(CellKind::Fused))),
        ("some-unfused", |b| check_step_some(b, &stacked_case(CellKind::Unfused))),
        ("some-dense", |b| check_step_some(b, &stacked_case(CellKind::PeepholeDense))),
        ("some-diagonal", |b| check_step_some(b, &stacked_case(CellKind::PeepholeDiagonal))),
        ("some-projection", |b| check_step_some(b, &stacked_case(CellKind::Fused).map_config(|c| c.proj_size(4)))),
        ("some-large", |b| check_step_some(b, &stacked_case(CellKind::Fused).sizes(33, 70, 9, 4))),
        ("some-large-projection", |b| {
            check_step_some(b, &stacked_case(CellKind::Fused).sizes(5, 70, 9, 4).map_config(|c| c.proj_size(33)))
        }),
        ("some-reference", |b| check_step_some(&Reference(b.clone()), &stacked_case(CellKind::PeepholeDiagonal))),
        ("some-activations", |b| {
            let relu = GateActivations { candidate: GateActivation::Relu, ..GateActivations::default() };
            check_step_some(b, &stacked_case(CellKind::Fused).map_config(|c| c.activations(relu)))
        }),
        ("some-invalid", |b| check_step_some_errors(b).and_then(|()| check_step_some_errors(&Reference(b.clone())))),
        ("move-state", |b| check_move_state(b).and_then(|()| check_move_state(&Reference(b.clone())))),
        ("linear-step", |b| check_linear_step(b).and_then(|()| check_linear_step(&Reference(b.clone())))),
    ]
}

/// A case whose model has two layers.
fn stacked_case(cell: CellKind) -> Case {
    Case::new("", "", cell).map_config(|c| c.layers(2))
}

/// The state of one sequence.
fn sequence_state(state: &HostState, sequence: usize) -> HostState {
    let rows = |array: &Array3<f32>| array.slice(s![.., sequence..sequence + 1, ..]).to_owned();
    State { h: rows(&state.h), c: rows(&state.c) }
}

/// Replaces the state of one sequence.
fn set_sequence_state(state: &mut HostState, sequence: usize, new: &HostState) {
    for (array, new) in [(&mut state.h, &new.h), (&mut state.c, &new.c)] {
        array.slice_mut(s![.., sequence..sequence + 1, ..]).assign(new);
    }
}

fn check_same_states(what: &str, want: &HostState, got: &HostState) -> Result<()> {
    check_same(&format!("{what}: h"), want.h.view(), got.h.view())?;
    check_same(&format!("{what}: c"), want.c.view(), got.c.view())
}

/// Checks `step_some`, which runs one time step of only some sequences: with random choices of sequences, for several
/// batch sizes, each sequence has the same outputs and the same final state as if it ran alone.
fn check_step_some<B: Backend>(b: &B, case: &Case) -> Result<()> {
    let model = Lstm::new(b, case.weights()?)?;
    for batch in [1, 3, 9] {
        let case = Case { batch, ..case.clone() };
        check_schedule(&model, &case).with_context(|| format!("batch {batch}"))?;
    }
    Ok(())
}

fn check_schedule<B: Backend>(model: &Lstm<B>, case: &Case) -> Result<()> {
    let (batch, data) = (case.batch, case.data());
    let initial_state = data.state.as_ref().context("the case has no initial state")?;
    let run_alone = |sequence: usize| {
        let state = sequence_state(initial_state, sequence);
        model.forward(Input::from(data.x.slice(s![sequence..sequence + 1, .., ..])).state(&state))
    };
    let want = (0..batch).map(run_alone).collect::<Result<Vec<_>, _>>()?;

    let mut stream = model.stream(batch)?;
    stream.set_state(initial_state)?;
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed);
    let mut positions = vec![0; batch];
    for round in 0.. {
        let unfinished: Vec<_> = (0..batch).filter(|&k| positions[k] < case.steps).collect();
        if unfinished.is_empty() {
            break;
        }
        // In every fourth round, all sequences that are left run; in the others, about half of them or none.
        let is_chosen = |_: &&usize| round % 4 == 3 || rng.next_u32().is_multiple_of(2);
        let chosen: Vec<_> = unfinished.iter().filter(is_chosen).copied().collect();
        let order = shuffled_indices(case.seed, round, chosen.len())?;
        let sequences: Vec<_> = order.into_iter().map(|k| chosen[k]).collect();
        run_one_step(&mut stream, &sequences, &data.x, &positions, &want)?;
        sequences.iter().for_each(|&k| positions[k] += 1);
    }
    let got = stream.state()?;
    for (k, (_, want)) in want.iter().enumerate() {
        check_same_states(&format!("final state of sequence {k}"), want, &sequence_state(&got, k))?;
    }
    Ok(())
}

/// Runs one time step of the given sequences and compares their outputs with `want`, those of the sequences alone.
/// `positions` contains the index of the next time step of each sequence. Calls `step` instead of `step_some` if
/// `sequences` are all sequences in ascending order.
fn run_one_step<B: Backend>(
    stream: &mut Stream<B>,
    sequences: &[usize],
    x: &Array3<f32>,
    positions: &[usize],
    want: &[(Array3<f32>, HostState)],
) -> Result<()> {
    let rows = sequences.iter().flat_map(|&k| x.slice(s![k, positions[k], ..]).to_vec());
    let (x, size): (Vec<f32>, _) = (rows.collect(), stream.lstm().config().output_size());
    let is_whole_batch = sequences.iter().copied().eq(0..stream.batch());
    let y = write_guarded(sequences.len() * size, |y| {
        Ok(if is_whole_batch { stream.step(&x, y) } else { stream.step_some(sequences, &x, y) }?)
    })?;
    for (&k, y) in sequences.iter().zip(y.chunks_exact(size)) {
        let what = format!("time step {} of sequence {k} among {sequences:?}", positions[k]);
        check_same(&what, want[k].0.slice(s![0, positions[k], ..]), ArrayView1::from(y))?;
    }
    Ok(())
}

/// A stream that has run some steps, so that its states are results of steps.
fn running_stream<B: Backend>(model: &Lstm<B>, case: &Case) -> Result<Stream<B>> {
    let (mut stream, data) = (model.stream(case.batch)?, case.data());
    stream.set_state(data.state.as_ref().context("the case has no initial state")?)?;
    stream.chunk(data.x.slice(s![.., ..3, ..]))?;
    Ok(stream)
}

/// A call of `step_some` that must be rejected: a description, the sequences, the lengths of x and y, and words of the error.
type RejectedCall<'a> = (&'a str, &'a [usize], usize, usize, &'a [&'a str]);

/// Checks the arguments that `step_some` rejects, without changing the output or the state, and that a step of no sequence
/// does nothing.
fn check_step_some_errors<B: Backend>(b: &B) -> Result<()> {
    let case = stacked_case(CellKind::Fused);
    let mut stream = running_stream(&Lstm::new(b, case.weights()?)?, &case)?;
    let state_before = stream.state()?;
    let (x, mut y) = (vec![0.5; 4 * 5], vec![7.0; 4 * 7]);
    let rejected_calls: [RejectedCall<'_>; 10] = [
        ("a number too large", &[0, 3], 10, 14, &["step_some: sequences", "below the batch size 3", "got 3"]),
        ("a huge number", &[usize::MAX], 5, 7, &["step_some: sequences", "below the batch size 3"]),
        ("a repeated number", &[1, 2, 1], 15, 21, &["step_some: sequences", "distinct", "1 twice"]),
        ("more numbers than sequences", &[0, 1, 2, 0], 20, 28, &["step_some: sequences", "distinct", "0 twice"]),
        ("a short x", &[2, 0], 9, 14, &["step_some: x", "10 values (2 x 5)", "9 values"]),
        ("a long x", &[2], 10, 7, &["step_some: x", "5 values (1 x 5)", "10 values"]),
        ("an x of the whole batch", &[0, 1], 15, 14, &["step_some: x", "10 values (2 x 5)", "15 values"]),
        ("a short y", &[2, 0], 10, 13, &["step_some: y", "14 values (2 x 7)", "13 values"]),
        ("a long y", &[2], 5, 14, &["step_some: y", "7 values (1 x 7)", "14 values"]),
        ("an x for no sequence", &[], 5, 0, &["step_some: x", "0 values", "5 values"]),
    ];
    for (what, sequences, x_len, y_len, words) in rejected_calls {
        expect_error(what, words, stream.step_some(sequences, &x[..x_len], &mut y[..y_len]))?;
        ensure!(y.iter().all(|v| *v == 7.0), "{what}: the output changed");
        check_same_states(what, &state_before, &stream.state()?)?;
    }
    stream.step_some(&[], &[], &mut []).context("no sequence")?;
    check_same_states("a step of no sequence", &state_before, &stream.state()?)
}

/// Checks that the state of a sequence can be moved within a stream and to another stream without a changed bit, that
/// taking it leaves zeros, and that invalid arguments change nothing.
fn check_move_state<B: Backend>(b: &B) -> Result<()> {
    let case = stacked_case(CellKind::Fused).map_config(|c| c.proj_size(4));
    let other_case = Case { batch: 2, seed: 2, ..case.clone() };
    let model = Lstm::new(b, case.weights()?)?;
    let (mut stream, mut other_stream) = (running_stream(&model, &case)?, running_stream(&model, &other_case)?);
    let (mut want, mut other_want) = (stream.state()?, other_stream.state()?);
    let zeros = HostState::zeros(model.config(), 1)?;

    // From sequence 0 to sequence 2 of the same stream.
    let moved_state = stream.take_state(0)?;
    check_same_states("the state that was taken", &sequence_state(&want, 0), &moved_state)?;
    set_sequence_state(&mut want, 0, &zeros);
    check_same_states("the stream without it", &want, &stream.state()?)?;
    stream.put_state(2, &moved_state)?;
    set_sequence_state(&mut want, 2, &moved_state);
    check_same_states("the stream with it at number 2", &want, &stream.state()?)?;

    // To another stream, whose sequence takes its place.
    let replaced_state = other_stream.take_state(1)?;
    check_same_states("the other stream's state", &sequence_state(&other_want, 1), &replaced_state)?;
    other_stream.put_state(1, &stream.take_state(2)?)?;
    stream.put_state(2, &replaced_state)?;
    set_sequence_state(&mut other_want, 1, &moved_state);
    set_sequence_state(&mut want, 2, &replaced_state);
    check_same_states("the other stream", &other_want, &other_stream.state()?)?;
    check_same_states("the stream after the exchange", &want, &stream.state()?)?;

    // The sequence continues in the other stream as it would have in its own.
    let data = case.data();
    let state = data.state.as_ref().map(|state| sequence_state(state, 0)).context("the case has no initial state")?;
    let (y, _) = model.forward(Input::from(data.x.slice(s![0..1, .., ..])).state(&state))?;
    let mut got = vec![0.0; y.dim().2];
    for t in 3..case.steps {
        other_stream.step_some(&[1], &data.x.slice(s![0, t, ..]).to_vec(), &mut got)?;
        check_same(&format!("time step {t} after the move"), y.slice(s![0, t, ..]), ArrayView1::from(&got))?;
    }

    expect_error("a sequence too large", &["take_state", "below 3", "got 3"], stream.take_state(3))?;
    expect_error("a sequence too large", &["put_state", "below 3", "got 3"], stream.put_state(3, &moved_state))?;
    let two_sequence_state = HostState::zeros(model.config(), 2)?;
    expect_error(
        "a state for two sequences",
        &["put_state", "[2, 1, 4]", "[2, 2, 4]"],
        stream.put_state(0, &two_sequence_state),
    )?;
    check_same_states("the stream after rejected calls", &want, &stream.state()?)
}

/// Checks that a step of a fully connected layer is bit-identical to its forward pass, for several numbers of rows, and that
/// slices of the wrong length are rejected.
fn check_linear_step<B: Backend>(b: &B) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random_array = |rows, cols| Array2::from_shape_fn((rows, cols), |_| random_value(&mut rng));
    // Few and many outputs, with sums of one block, of several blocks and of more than a kernel computes at once.
    for (input, output) in [(1, 1), (24, 1), (70, 1), (33, 2), (130, 2), (300, 5), (70, 130)] {
        let weight = random_array(output, input);
        let bias: Array1<f32> = random_array(1, output).index_axis_move(Axis(0), 0);
        for bias in [Some(bias), None] {
            let linear = Linear::new(b, weight.clone(), bias)?;
            for rows in [0, 1, 3, 17] {
                let what = format!("{input} to {output}, {rows} rows");
                let mut x = random_array(rows, input);
                // Values that snap to zero. The weights are far from zero, so that the products would show.
                let tiny_values = [-1e-40, 2f32.powi(-41), -0.99 * 2f32.powi(-40)];
                x.iter_mut().step_by(5).zip(tiny_values).for_each(|(x, tiny_value)| *x = tiny_value);
                let want = linear.forward(&x)?;
                let x = x.into_iter().collect::<Vec<_>>();
                let y = write_guarded(rows * output, |y| Ok(linear.step(&x, y)?))?;
                check_same_slices(&what, want.as_slice().context("a new array is contiguous")?, &y)?;
            }
            check_linear_lengths(&linear)?;
        }
    }
    // Only a value that snaps to zero: its products are zero, although the product without snap is not.
    let linear = Linear::new(b, Array2::from_elem((1, 1), 2f32.powi(20)), None)?;
    let mut y = [7.0];
    linear.step(&[2f32.powi(-41)], &mut y)?;
    ensure!(y[0].to_bits() == 0, "an input below 2^-40 gave {}, expected 0", y[0]);
    Ok(())
}

/// Checks that `Linear::step` rejects slices of wrong lengths and does not change the output.
fn check_linear_lengths<B: Backend>(linear: &Linear<B>) -> Result<()> {
    let (input, output) = (linear.input_size(), linear.output_size());
    let (x, mut y) = (vec![0.5; 2 * input + 1], vec![7.0; 2 * output + 1]);
    if input > 1 {
        let rows = format!("rows of {input} values");
        let got = format!("{} values", 2 * input + 1);
        expect_error("a long x", &["Linear::step: x", &rows, &got], linear.step(&x, &mut y[..2 * output]))?;
        expect_error("a short x", &["Linear::step: x", &rows], linear.step(&x[..input - 1], &mut y[..output]))?;
    }
    let values = format!("{} values (2 x {output})", 2 * output);
    for len in [0, 2 * output - 1, 2 * output + 1] {
        let got = format!("got {len} values");
        let result = linear.step(&x[..2 * input], &mut y[..len]);
        expect_error("a y of another length", &["Linear::step: y", &values, &got], result)?;
    }
    expect_error("a y for no row", &["Linear::step: y", "0 values"], linear.step(&[], &mut y[..1]))?;
    ensure!(y.iter().all(|v| *v == 7.0), "a rejected step changed the output");
    Ok(())
}
