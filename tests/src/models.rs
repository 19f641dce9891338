//! Checks of whole models: each kind of layer, the forward pass, streams and gradients.

use std::{fmt::Write, ops::Range};

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Activation, Backend, CellKind, Checkpointing, Dropout, HostState, Init, Input, Linear, Lstm, LstmConfig, Model,
    ModelGradients, ModelInput, ModelLayer, ModelOutput, ModelWeights, OutputGradients, Reference, Weights, arithmetic,
    arithmetic::Digest,
    ndarray::{Array1, Array2, Array3, ArrayD, Axis, concatenate, s},
    train::{
        CheckpointExtras, Clip, ModelOutputs, ModelTrainer, OptimizerConfig, Schedule, Shard, Trainer, TrainerConfig,
        cross_entropy, mean_squared_error,
    },
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    cases::random_value,
    compare::{check_same, check_same_slices, write_array},
    invalid_input::expect_error,
    model_f64::{self, Problem},
    primitives::{NamedCheck, write_guarded},
    training::TemporaryFile,
};

/// A model and its input.
#[derive(Clone, Debug)]
pub struct ModelCase {
    /// Unique name, which is also the name of the snapshot, after `model-`.
    pub name: &'static str,
    /// The model.
    pub weights: ModelWeights,
    /// Number of sequences.
    pub batch: usize,
    /// Number of time steps of the input, padding included.
    pub steps: usize,
    /// Length of each sequence in steps. `None`: every sequence has `steps` steps.
    pub lengths: Option<Vec<usize>>,
    /// Seed of the dropout masks. `None`: inference mode.
    pub dropout_seed: Option<u64>,
}

/// The values of a case's input.
enum Values {
    Features(Array3<f32>),
    Tokens(Array2<i64>),
}

impl ModelCase {
    fn new(name: &'static str, layers: Vec<ModelLayer>) -> Result<Self> {
        let weights = ModelWeights::new(layers)?;
        Ok(ModelCase { name, weights, batch: 3, steps: 6, lengths: None, dropout_seed: None })
    }

    /// Sets a batch of 6 sequences with unsorted lengths: one empty, one of a single step, two of full length.
    fn mixed_lengths(self) -> Self {
        let steps = self.steps;
        ModelCase { batch: 6, lengths: Some(vec![3, 0, steps, 1, steps, steps - 1]), ..self }
    }

    fn values(&self) -> Values {
        let mut rng = ChaCha8Rng::seed_from_u64(0x7e57);
        match self.weights.layers().first() {
            Some(ModelLayer::Embedding { weight, .. }) => {
                let rows = weight.nrows() as u32;
                Values::Tokens(Array2::from_shape_fn((self.batch, self.steps), |_| i64::from(rng.next_u32() % rows)))
            }
            _ => {
                let shape = (self.batch, self.steps, self.weights.input_size());
                Values::Features(Array3::from_shape_fn(shape, |_| random_value(&mut rng)))
            }
        }
    }

    /// The input of the model: the values, the lengths and the dropout seed.
    fn input<'a>(&'a self, values: &'a Values) -> ModelInput<'a> {
        let input = match values {
            Values::Features(x) => ModelInput::from(x),
            Values::Tokens(tokens) => tokens.into(),
        };
        let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
        self.dropout_seed.map_or(input, |seed| input.dropout(Dropout::Seed(seed)))
    }

    /// The gradient of the loss with respect to the outputs: each has a magnitude of 1 to 2.
    fn loss_weights(&self) -> Array3<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(0x1055);
        let steps = if self.weights.returns_last_step() { 1 } else { self.steps };
        Array3::from_shape_fn((self.batch, steps, self.weights.output_size()), |_| {
            let bits = rng.next_u32();
            (1.0 + (bits >> 9) as f32 * 2f32.powi(-23)) * if bits & 1 == 0 { 1.0 } else { -1.0 }
        })
    }

    fn length(&self, sequence: usize) -> usize {
        self.lengths.as_ref().map_or(self.steps, |lengths| lengths[sequence])
    }
}

/// Draws an array of values in [-0.5, 0.5).
fn random_matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, cols), |_| (rng.next_u32() >> 8) as f32 * 2f32.powi(-24) - 0.5)
}

fn embedding(rows: usize, cols: usize) -> ModelLayer {
    ModelLayer::Embedding { name: "emb".into(), weight: random_matrix(rows, cols, 11) }
}

fn lstm(name: &str, config: LstmConfig) -> Result<ModelLayer> {
    let weights = Weights::init(config, &Init::default(), 12 + name.len() as u64)?.into();
    Ok(ModelLayer::Lstm { name: name.into(), weights, initial_state: None })
}

/// An LSTM with an initial state of its own.
fn lstm_with_state(name: &str, config: LstmConfig) -> Result<ModelLayer> {
    let mut state = HostState::zeros(&config, 1)?;
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    state.h.iter_mut().chain(&mut state.c).for_each(|v| *v = random_value(&mut rng) * 0.25);
    Ok(match lstm(name, config)? {
        ModelLayer::Lstm { name, weights, .. } => ModelLayer::Lstm { name, weights, initial_state: Some(state) },
        layer => layer,
    })
}

fn linear(name: &str, input: usize, output: usize) -> ModelLayer {
    let bias = random_matrix(1, output, 14).remove_axis(Axis(0));
    ModelLayer::Linear { name: name.into(), weight: random_matrix(output, input, 15), bias: Some(bias) }
}

fn linear_without_bias(name: &str, input: usize, output: usize) -> ModelLayer {
    ModelLayer::Linear { name: name.into(), weight: random_matrix(output, input, 16), bias: None }
}

/// The model of a guitar amplifier, with a skip connection, gains and an initial state.
fn amplifier() -> Result<ModelCase> {
    let case =
        ModelCase::new("amplifier", vec![lstm_with_state("rec", LstmConfig::new(3, 16))?, linear("lin", 16, 1)])?;
    let weights = case.weights.clone().with_skip()?.with_gains(1.25, 0.3)?;
    Ok(ModelCase { weights, steps: 40, ..case })
}

/// The table: the cases of all kinds of layers.
///
/// # Errors
/// A model of the table is invalid.
pub fn all_cases() -> Result<Vec<ModelCase>> {
    use ModelLayer::{Activation as Act, Dropout as Drop, FinalState, LastStep};
    let hard_sigmoid = Activation::HardSigmoid { alpha: 0.2, beta: 0.5 };
    let shifted_hard_sigmoid = Activation::HardSigmoid { alpha: -0.75, beta: 0.25 };
    Ok(vec![
        ModelCase::new("lstm", vec![lstm("rec", LstmConfig::new(5, 7))?])?,
        ModelCase::new("linear", vec![lstm("rec", LstmConfig::new(5, 7))?, linear("out", 7, 4)])?,
        ModelCase::new("feed-forward", vec![linear("a", 5, 9), Act(Activation::Relu), linear_without_bias("b", 9, 3)])?,
        ModelCase::new(
            "activations",
            vec![
                Act(Activation::Tanh),
                linear("a", 5, 9),
                Act(Activation::Relu),
                linear("b", 9, 9),
                Act(hard_sigmoid),
                lstm("rec", LstmConfig::new(9, 7))?,
                linear("c", 7, 8),
                Act(Activation::Sigmoid),
                linear("d", 8, 3),
                Act(shifted_hard_sigmoid),
            ],
        )?,
        ModelCase {
            steps: 9,
            ..ModelCase::new(
                "tagger",
                vec![
                    embedding(11, 5),
                    lstm("rec", LstmConfig::new(5, 7).bidirectional())?,
                    linear("out", 14, 4),
                    Act(Activation::LogSoftmax),
                ],
            )?
            .mixed_lengths()
        },
        ModelCase::new(
            "classifier",
            vec![
                embedding(11, 5),
                lstm("rec", LstmConfig::new(5, 7))?,
                LastStep,
                linear("hidden", 7, 6),
                Act(Activation::Relu),
                linear("out", 6, 4),
                Act(Activation::Softmax),
            ],
        )?
        .mixed_lengths(),
        ModelCase::new(
            "final-state",
            vec![
                lstm_with_state("rec", LstmConfig::new(5, 7).layers(2).bidirectional())?,
                FinalState,
                linear("out", 14, 4),
            ],
        )?
        .mixed_lengths(),
        ModelCase::new(
            "sizes",
            vec![
                lstm_with_state("a", LstmConfig::new(5, 9).proj_size(4))?,
                lstm("bb", LstmConfig::new(4, 17).bidirectional())?,
                linear("between", 34, 6),
                lstm_with_state("ccc", LstmConfig::new(6, 3).cell(CellKind::PeepholeDiagonal).clip(0.5))?,
                linear("out", 3, 2),
            ],
        )?
        .mixed_lengths(),
        amplifier()?,
        ModelCase {
            dropout_seed: Some(5),
            ..ModelCase::new(
                "dropout",
                vec![
                    embedding(11, 5),
                    Drop(0.25),
                    lstm("rec", LstmConfig::new(5, 7).layers(2).dropout(0.5))?,
                    Drop(0.5),
                    LastStep,
                    Drop(0.125),
                    linear("out", 7, 4),
                ],
            )?
            .mixed_lengths()
        },
        // Weight gradients of an LSTM are summed in chunks of 32 steps; those of a linear layer are not.
        ModelCase {
            steps: 70,
            ..ModelCase::new("long", vec![lstm("rec", LstmConfig::new(5, 7))?, linear("out", 7, 2)])?
        }
        .mixed_lengths(),
    ])
}

/// Checks a case on the reference path and on the backend's own: the forward pass against the layers one by one, and
/// streams against the forward pass. Then checks the gradients. Returns the outputs and the gradients.
///
/// # Errors
/// Two results differ, or the backend returns an error.
pub fn check_case<B: Backend>(b: &B, case: &ModelCase) -> Result<(ModelOutput, ModelGradients)> {
    let reference = Model::new(&Reference(b.clone()), case.weights.clone())?;
    let values = case.values();
    let want = reference.forward(case.input(&values))?;
    if case.dropout_seed.is_none() {
        check_same_output("the reference path compared with single layers", &layer_by_layer(b, case, &values)?, &want)?;
    }
    let model = Model::new(b, case.weights.clone())?;
    check_same_output("compared with the reference path", &want, &model.forward(case.input(&values))?)?;
    if case.dropout_seed.is_none() && !has_reverse(&case.weights) {
        check_streams(&model, case, &values, &want)?;
        check_streams(&reference, case, &values, &want).context("on the reference path")?;
    }
    let (pass, gradients) = train(&reference, case, &values, Checkpointing::SaveEverything)?;
    check_padding(&model, case, &want, &gradients)?;
    if !has_softmax(&case.weights) {
        check_same_output("training compared with inference", &want, &pass)?;
    }
    if has_standard_cells(&case.weights) {
        let (x, tokens) = match &values {
            Values::Features(x) => (Some(x), None),
            Values::Tokens(tokens) => (None, Some(tokens)),
        };
        let loss_weights = case.loss_weights();
        let lengths = case.lengths.as_deref();
        Problem::new(&case.weights, x, tokens, lengths, case.dropout_seed, &loss_weights)?
            .check(&pass.y, &gradients)
            .context("compared with f64")?;
    }
    for keep in [Checkpointing::SaveEverything, Checkpointing::Segments(32)] {
        let (again, other) = train(&model, case, &values, keep)?;
        check_same_output("training compared with the reference path", &pass, &again)?;
        check_same_gradients(&format!("{keep:?} compared with the reference path"), &gradients, &other)?;
    }
    Ok((want, gradients))
}

/// Runs the forward and the backward pass. Dropout has the seed of the case, and is off if the case has none.
fn train<B: Backend>(
    model: &Model<B>,
    case: &ModelCase,
    values: &Values,
    checkpointing: Checkpointing,
) -> Result<(ModelOutput, ModelGradients)> {
    let input = case.input(values).dropout(case.dropout_seed.map_or(Dropout::Off, Dropout::Seed));
    let pass = model.forward_train(input, checkpointing)?;
    let loss_weights = case.loss_weights();
    let upstream = OutputGradients::from(&loss_weights);
    let reads_tokens = case.weights.reads_tokens();
    let gradients = pass.tape.backward(if reads_tokens { upstream } else { upstream.with_input_gradient() })?;
    let mut without_x = pass.tape.backward(upstream)?;
    ensure!(without_x.x.is_none(), "the gradient of the input was not requested");
    without_x.x.clone_from(&gradients.x);
    check_same_gradients("second backward pass, without the gradient of the input", &gradients, &without_x)?;
    Ok((ModelOutput::new(pass.y, pass.states), gradients))
}

fn has_softmax(weights: &ModelWeights) -> bool {
    let is_softmax =
        |layer: &ModelLayer| matches!(layer, ModelLayer::Activation(activation) if activation.is_softmax());
    weights.layers().last().is_some_and(is_softmax)
}

/// Whether every LSTM has the standard cell without options that [`Problem`] does not have.
fn has_standard_cells(weights: &ModelWeights) -> bool {
    weights.lstms().all(|lstm| {
        let config = lstm.config();
        config.cell == CellKind::Fused && config.proj_size.is_none() && config.clip.is_none() && !config.coupled
    })
}

/// The gradients with their names in snapshots.
fn gradient_arrays(gradients: &ModelGradients) -> Vec<(String, Vec<f32>)> {
    let x = gradients.x.iter().map(|x| ("x".to_owned(), x.iter().copied().collect()));
    let states = gradients.states.iter().enumerate().flat_map(|(k, state)| {
        [("h0", &state.h), ("c0", &state.c)]
            .map(|(name, array)| (format!("{name} of LSTM {k}"), array.iter().copied().collect()))
    });
    x.chain(states).chain(model_f64::arrays(&gradients.weights)).collect()
}

fn check_same_gradients(what: &str, want: &ModelGradients, got: &ModelGradients) -> Result<()> {
    let (want, got) = (gradient_arrays(want), gradient_arrays(got));
    ensure!(want.len() == got.len(), "{what}: expected {} gradients, got {}", want.len(), got.len());
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        check_same_slices(&format!("{what}: {name}"), want, got)?;
    }
    Ok(())
}

/// The text of a snapshot: for each array the shape, the digest, and the first values.
pub fn snapshot_text((output, gradients): &(ModelOutput, ModelGradients)) -> String {
    let mut text = String::new();
    write_array(&mut text, "y", output.y.view().into_dyn(), 32);
    for (k, state) in output.states.iter().enumerate() {
        write_array(&mut text, &format!("h_n of LSTM {k}"), state.h.view().into_dyn(), 8);
        write_array(&mut text, &format!("c_n of LSTM {k}"), state.c.view().into_dyn(), 8);
    }
    for (name, values) in gradient_arrays(gradients) {
        write_array(&mut text, &format!("gradient of {name}"), Array1::from(values).view().into_dyn(), 4);
    }
    text
}

fn has_reverse(weights: &ModelWeights) -> bool {
    weights.lstms().any(|lstm| lstm.config().layer_specs().iter().any(|spec| spec.reverse))
}

fn check_same_output(what: &str, want: &ModelOutput, got: &ModelOutput) -> Result<()> {
    check_same(&format!("{what}: y"), want.y.view(), got.y.view())?;
    ensure!(want.states.len() == got.states.len(), "{what}: expected {} states", want.states.len());
    for (k, (want, got)) in want.states.iter().zip(&got.states).enumerate() {
        check_same(&format!("{what}: h of LSTM {k}"), want.h.view(), got.h.view())?;
        check_same(&format!("{what}: c of LSTM {k}"), want.c.view(), got.c.view())?;
    }
    Ok(())
}

/// Values beyond a sequence's length must not influence the results.
fn check_padding<B: Backend>(
    model: &Model<B>,
    case: &ModelCase,
    want: &ModelOutput,
    gradients: &ModelGradients,
) -> Result<()> {
    if case.lengths.is_none() {
        return Ok(());
    }
    let mut values = case.values();
    for b in 0..case.batch {
        match &mut values {
            Values::Features(x) => x.slice_mut(s![b, case.length(b).., ..]).fill(f32::NAN),
            Values::Tokens(tokens) => tokens.slice_mut(s![b, case.length(b)..]).fill(-1),
        }
    }
    check_same_output("NaN and tokens of -1 in the padding", want, &model.forward(case.input(&values))?)?;
    let (_, other) = train(model, case, &values, Checkpointing::SaveEverything)?;
    check_same_gradients("NaN and tokens of -1 in the padding", gradients, &other)
}

/// Computes the model's results for one sequence at a time with [`Lstm`], [`Linear`] and the scalar functions of
/// [`arithmetic`].
fn layer_by_layer<B: Backend>(b: &B, case: &ModelCase, values: &Values) -> Result<ModelOutput> {
    let (weights, mut y) = (&case.weights, Vec::new());
    let mut states: Vec<Vec<HostState>> = vec![Vec::new(); weights.lstms().count()];
    for sequence in 0..case.batch {
        let length = case.length(sequence);
        let input = match values {
            Values::Features(x) => x.slice(s![sequence..sequence + 1, ..length, ..]).to_owned(),
            Values::Tokens(_) => Array3::zeros((1, length, 1)),
        };
        let mut x = input.mapv(|v| weights.input_gain() * v);
        let mut lstms = 0;
        for layer in weights.layers() {
            x = match layer {
                ModelLayer::Embedding { weight, .. } => {
                    let Values::Tokens(tokens) = values else { anyhow::bail!("an embedding needs tokens") };
                    Array3::from_shape_fn((1, length, weight.ncols()), |(_, t, k)| {
                        weight[[tokens[[sequence, t]] as usize, k]]
                    })
                }
                ModelLayer::Lstm { weights, initial_state, .. } => {
                    let zeros = HostState::zeros(weights.config(), 1)?;
                    // Without steps the model snaps the initial state, because the batch has steps.
                    let snapped = |state: &HostState| HostState {
                        h: state.h.mapv(arithmetic::snap),
                        c: state.c.mapv(arithmetic::snap),
                    };
                    let initial = snapped(initial_state.as_ref().unwrap_or(&zeros));
                    let (y, state) = Lstm::new(b, weights.clone())?.forward(Input::from(&x).state(&initial))?;
                    states[lstms].push(state);
                    lstms += 1;
                    y
                }
                ModelLayer::Linear { weight, bias, .. } => {
                    Linear::new(b, weight.clone(), bias.clone())?.forward(x.view())?
                }
                ModelLayer::Activation(activation) => apply(*activation, x)?,
                ModelLayer::LastStep if length == 0 => Array3::zeros((1, 1, x.dim().2)),
                ModelLayer::LastStep => x.slice(s![.., length - 1.., ..]).to_owned(),
                ModelLayer::FinalState => {
                    let config = weights.lstms().nth(lstms - 1).context("an LSTM")?.config();
                    states[lstms - 1][sequence].last(config)?.insert_axis(Axis(1))
                }
                ModelLayer::Dropout(_) => x,
                other => anyhow::bail!("unknown layer {other:?}"),
            };
        }
        if weights.skip() {
            let skipped = input.slice(s![.., .., ..x.dim().2]);
            x.zip_mut_with(&skipped, |y, x| *y += weights.input_gain() * x);
        }
        x.mapv_inplace(|v| weights.output_gain() * v);
        let steps = if weights.returns_last_step() { 1 } else { case.steps };
        let mut padded = Array3::zeros((1, steps, x.dim().2));
        padded.slice_mut(s![.., ..x.dim().1, ..]).assign(&x);
        y.push(padded);
    }
    let join = |axis, parts: Vec<Array3<f32>>| {
        concatenate(Axis(axis), &parts.iter().map(|part| part.view()).collect::<Vec<_>>())
    };
    let states = states.into_iter().map(|sequences| {
        let (h, c) = sequences.into_iter().map(|state| (state.h, state.c)).unzip();
        Ok(HostState { h: join(1, h)?, c: join(1, c)? })
    });
    Ok(ModelOutput::new(join(0, y)?, states.collect::<Result<_>>()?))
}

/// Applies an activation to the last axis.
fn apply(activation: Activation, mut x: Array3<f32>) -> Result<Array3<f32>> {
    use arithmetic::{hard_sigmoid, relu, sigmoid, snap, tanh};
    match activation {
        Activation::Relu => x.mapv_inplace(relu),
        Activation::Sigmoid => x.mapv_inplace(|v| sigmoid(snap(v))),
        Activation::Tanh => x.mapv_inplace(|v| tanh(snap(v))),
        Activation::HardSigmoid { alpha, beta } => x.mapv_inplace(|v| hard_sigmoid(v, alpha, beta)),
        Activation::Softmax | Activation::LogSoftmax => {
            for mut row in x.rows_mut() {
                let max = f64::from(row.fold(f32::NEG_INFINITY, |max, v| max.max(*v)));
                let sum = row.iter().fold(0.0, |sum, v| sum + libm::exp(f64::from(*v) - max));
                row.mapv_inplace(|v| match (activation, f64::from(v) - max) {
                    (Activation::Softmax, v) => (libm::exp(v) / sum) as f32,
                    (_, v) => (v - libm::log(sum)) as f32,
                });
            }
        }
        other => anyhow::bail!("unknown activation {other}"),
    }
    Ok(x)
}

/// Checks that a stream gives the same results step by step, some sequences at a time and in chunks.
fn check_streams<B: Backend>(model: &Model<B>, case: &ModelCase, values: &Values, want: &ModelOutput) -> Result<()> {
    check_steps(model, case, values, want, true).context("stream, step by step")?;
    if matches!(values, Values::Features(_)) {
        check_steps(model, case, values, want, false).context("stream, some sequences at a time")?;
    }
    // A stream runs all sequences for the same number of steps.
    let full = ModelCase { lengths: None, ..case.clone() };
    let want = model.forward(full.input(values))?;
    let mut stream = model.stream(case.batch)?;
    let (mut start, mut parts) = (0, Vec::new());
    for size in [3, 1, 1, 7, 2].into_iter().cycle() {
        if start == case.steps {
            break;
        }
        let end = case.steps.min(start + size);
        parts.push(match values {
            Values::Features(x) => stream.chunk(x.slice(s![.., start..end, ..]))?,
            Values::Tokens(tokens) => stream.chunk(tokens.slice(s![.., start..end]))?,
        });
        start = end;
    }
    let y = match model.weights().returns_last_step() {
        true => parts.pop().context("at least one chunk")?,
        false => concatenate(Axis(1), &parts.iter().map(|part| part.view()).collect::<Vec<_>>())?,
    };
    check_same_output("stream, chunks", &want, &ModelOutput::new(y, stream.states()?))?;
    // The states can move to another stream.
    let mut other = model.stream(case.batch)?;
    other.set_states(&want.states)?;
    stream.reset()?;
    let initial = model.stream(case.batch)?.states()?;
    check_same_output("reset", &ModelOutput::new(want.y.clone(), initial), &ModelOutput::new(want.y, stream.states()?))
}

/// Runs each sequence of a case for its length, with the whole batch in each step or with the sequences that have not
/// ended.
fn check_steps<B: Backend>(
    model: &Model<B>,
    case: &ModelCase,
    values: &Values,
    want: &ModelOutput,
    whole_batch: bool,
) -> Result<()> {
    let size = case.weights.output_size();
    let mut stream = model.stream(case.batch)?;
    for t in 0..case.steps {
        let sequences: Vec<usize> = (0..case.batch).rev().filter(|&b| whole_batch || t < case.length(b)).collect();
        let y = write_guarded(sequences.len() * size, |y| {
            match values {
                Values::Tokens(tokens) => stream.step_tokens(&tokens.column(t).to_vec(), y)?,
                Values::Features(x) if whole_batch => {
                    let x: Vec<f32> = x.slice(s![.., t, ..]).iter().copied().collect();
                    stream.step(&x, y)?;
                }
                Values::Features(x) => {
                    let x: Vec<f32> = sequences.iter().flat_map(|&b| x.slice(s![b, t, ..]).to_vec()).collect();
                    stream.step_some(&sequences, &x, y)?;
                }
            }
            Ok(())
        })?;
        for (k, y) in y.chunks_exact(size).enumerate() {
            let b = if whole_batch { k } else { sequences[k] };
            let is_last = t + 1 == case.length(b);
            let row = match case.weights.returns_last_step() {
                true if is_last => 0,
                false if t < case.length(b) => t,
                _ => continue,
            };
            check_same(
                &format!("y at step {t} of sequence {b}"),
                want.y.slice(s![b, row, ..]),
                Array1::from(y.to_vec()).view(),
            )?;
        }
    }
    if !whole_batch || case.lengths.is_none() {
        check_same_output("final states", want, &ModelOutput::new(want.y.clone(), stream.states()?))?;
    }
    Ok(())
}

/// All checks that do not depend on a case.
pub fn checks<B: Backend>() -> Vec<NamedCheck<B>> {
    vec![
        ("invalid", |b| check_errors(b).and_then(|()| check_errors(&Reference(b.clone())))),
        ("empty", |b| check_empty(b).and_then(|()| check_empty(&Reference(b.clone())))),
        ("training-invalid", check_training_errors),
        ("states", |b| check_states(b).and_then(|()| check_states(&Reference(b.clone())))),
    ]
}

fn tagger() -> Result<ModelWeights> {
    Ok(ModelWeights::new(vec![embedding(11, 5), lstm("rec", LstmConfig::new(5, 7))?, linear("out", 7, 4)])?)
}

/// Checks that invalid inputs are rejected, and that the errors name what is wrong.
fn check_errors<B: Backend>(b: &B) -> Result<()> {
    let model = Model::new(b, tagger()?)?;
    let tokens = Array2::from_elem((2, 3), 10i64);
    for token in [11, -1, i64::MAX, i64::MIN] {
        let mut tokens = tokens.clone();
        tokens[[1, 2]] = token;
        let words = ["tokens[1, 2]", "0 to 10", "11 rows", &token.to_string()];
        expect_error("a token", &words, model.forward(&tokens))?;
        expect_error("a token", &words, model.forward_train(&tokens, Checkpointing::SaveEverything))?;
        let mut stream = model.stream(2)?;
        let words = ["tokens[1]", "0 to 10", "11 rows", &token.to_string()];
        let mut y = [7.0; 8];
        expect_error("a token", &words, stream.step_tokens(&[0, token], &mut y))?;
        ensure!(y == [7.0; 8], "a rejected step changed the output");
        ensure!(stream.states()? == model.stream(2)?.states()?, "a rejected step changed the states");
    }
    let x = Array3::zeros((2, 3, 5));
    expect_error("features", &["expected tokens", "got features"], model.forward(&x))?;
    expect_error(
        "lengths",
        &["lengths", "at most 3 steps", "4"],
        model.forward(ModelInput::from(&tokens).lengths(&[3, 4])),
    )?;
    expect_error("lengths", &["lengths", "2, one for each"], model.forward(ModelInput::from(&tokens).lengths(&[3])))?;
    let (good, bad) = (HostState::zeros(&LstmConfig::new(5, 7), 2)?, HostState::zeros(&LstmConfig::new(5, 7), 3)?);
    for (states, words) in [
        (vec![], ["states", "1, one for each LSTM", "0"]),
        (vec![good.clone(), good.clone()], ["states", "1, one for each LSTM", "2"]),
        (vec![bad.clone()], ["`rec`", "[1, 2, 7]", "[1, 3, 7]"]),
    ] {
        expect_error("states", &words, model.forward(ModelInput::from(&tokens).states(&states)))?;
        expect_error("states", &words, model.stream(2)?.set_states(&states))?;
    }

    let mut stream = model.stream(2)?;
    let mut y = vec![0.0; 8];
    expect_error("step", &["expected tokens", "got features"], stream.step(&[0.0; 10], &mut y))?;
    expect_error("step", &["step: y", "8 values"], stream.step_tokens(&[1, 2], &mut y[..7]))?;
    expect_error("step", &["step: tokens", "2 values"], stream.step_tokens(&[1], &mut y))?;
    expect_error("chunk", &["batch", "expected 2, got 3"], stream.chunk(&Array2::zeros((3, 2))))?;
    let zeros = Array2::zeros((2, 3));
    expect_error("chunk", &["lengths"], stream.chunk(ModelInput::from(&zeros).lengths(&[1, 2])))?;
    expect_error("stream", &["batch", "at least 1"], model.stream(0))?;

    let features =
        ModelWeights::new(vec![lstm("a", LstmConfig::new(5, 7))?, lstm("b", LstmConfig::new(7, 3).bidirectional())?])?;
    let model = Model::new(b, features)?;
    expect_error("stream", &["layer 1", "lstm `b`", "reverse"], model.stream(1))?;
    expect_error("tokens", &["expected features", "got tokens"], model.forward(&tokens))?;
    expect_error("features", &["[2, 3, 5]", "[2, 3, 4]"], model.forward(&Array3::zeros((2, 3, 4))))?;

    let last = vec![lstm("a", LstmConfig::new(5, 7))?, ModelLayer::Dropout(0.5), ModelLayer::LastStep];
    let model = Model::new(b, ModelWeights::new(last)?)?;
    let mut stream = model.stream(2)?;
    expect_error("step_some", &["below the batch size 2", "2"], stream.step_some(&[2], &[0.0; 5], &mut y[..7]))?;
    expect_error("step_some", &["1 twice"], stream.step_some(&[1, 1], &[0.0; 10], &mut [0.0; 14]))?;
    expect_error("step_some", &["x", "5 values"], stream.step_some(&[1], &[0.0; 4], &mut y[..7]))?;
    expect_error("tokens", &["expected features", "got tokens"], stream.step_tokens(&[0; 2], &mut [0.0; 14]))?;
    expect_error("chunk", &["steps", "at least 1"], stream.chunk(&Array3::zeros((2, 0, 5))))?;
    let keep = Checkpointing::SaveEverything;
    expect_error("dropout", &["ModelInput::dropout"], model.forward_train(&x, keep))?;
    let no_steps = Array3::zeros((2, 0, 5));
    let off = |x| ModelInput::from(x).dropout(Dropout::Off);
    expect_error("empty", &["0 time steps"], model.forward_train(off(&no_steps), keep))?;
    expect_error("segments", &["multiple of 32"], model.forward_train(off(&x), Checkpointing::Segments(3)))?;
    let tape = model.forward_train(off(&x), keep)?.tape;
    expect_error("dy", &["backward: y", "[2, 1, 7]", "[2, 3, 7]"], tape.backward(&Array3::zeros((2, 3, 7))))?;
    let states = HostState::zeros(&LstmConfig::new(5, 7), 2)?;
    expect_error("state", &["outputs only"], tape.backward(&states))?;
    Ok(())
}

/// Checks inputs without sequences, without time steps, and sequences of length 0.
fn check_empty<B: Backend>(b: &B) -> Result<()> {
    let own = lstm_with_state("rec", LstmConfig::new(5, 7).bidirectional())?;
    let initial = match &own {
        ModelLayer::Lstm { initial_state: Some(state), .. } => state.clone(),
        _ => anyhow::bail!("expected an initial state"),
    };
    let whole = Model::new(b, ModelWeights::new(vec![own.clone(), linear("out", 14, 2)])?)?;
    for shape in [(2, 0, 5), (0, 3, 5), (0, 0, 5)] {
        let output = whole.forward(&Array3::zeros(shape))?;
        ensure!(output.y.dim() == (shape.0, shape.1, 2), "expected an empty output, got {:?}", output.y.shape());
        ensure!(output.states[0].h.dim() == (2, shape.0, 7), "{:?}", output.states[0].h.shape());
        for b in 0..shape.0 {
            check_same("h", initial.h.slice(s![.., 0, ..]), output.states[0].h.slice(s![.., b, ..]))?;
            check_same("c", initial.c.slice(s![.., 0, ..]), output.states[0].c.slice(s![.., b, ..]))?;
        }
    }
    for (last, name) in [(ModelLayer::LastStep, "last step"), (ModelLayer::FinalState, "final state")] {
        let layers = vec![own.clone(), last, linear("out", 14, 2), ModelLayer::Activation(Activation::Tanh)];
        let model = Model::new(b, ModelWeights::new(layers)?)?;
        let without_steps = model.forward(&Array3::zeros((2, 0, 5)))?;
        ensure!(without_steps.y.dim() == (2, 1, 2), "{name}: {:?}", without_steps.y.shape());
        let x = Array3::zeros((2, 3, 5));
        let of_length_0 = model.forward(ModelInput::from(&x).lengths(&[0, 0]))?;
        check_same(name, without_steps.y.view(), of_length_0.y.view())?;
        ensure!(model.forward(&Array3::zeros((0, 3, 5)))?.y.dim() == (0, 1, 2), "{name}: a batch of 0");
        let all_empty = model.forward_train(ModelInput::from(&x).lengths(&[0, 0]), Checkpointing::SaveEverything)?;
        let dy = Array3::ones((2, 1, 2));
        let gradients = all_empty.tape.backward(OutputGradients::from(&dy).with_input_gradient())?;
        ensure!(gradients.x.is_some_and(|x| x.iter().all(|v| v.to_bits() == 0)), "{name}: gradient of the padding");
    }
    Ok(())
}

/// Checks the initial states: the caller's replace the model's own, which then have no gradient.
fn check_states<B: Backend>(b: &B) -> Result<()> {
    let config = LstmConfig::new(5, 7);
    let own = lstm_with_state("rec", config.clone())?;
    let without = lstm("rec", config.clone())?;
    let ModelLayer::Lstm { initial_state: Some(state), .. } = &own else { anyhow::bail!("expected a state") };
    let [own, without] = [own.clone(), without].map(|layer| ModelWeights::new(vec![layer, linear("out", 7, 2)]));
    let (own, without) = (Model::new(b, own?)?, Model::new(b, without?)?);
    let x = Array3::from_shape_fn((2, 3, 5), |(b, t, k)| (b + 2 * t + k) as f32 * 0.125 - 0.5);
    let repeat = |array: &Array3<f32>| concatenate(Axis(1), &[array.view(), array.view()]);
    let states = [HostState { h: repeat(&state.h)?, c: repeat(&state.c)? }];
    let zeros = [HostState::zeros(&config, 2)?];
    let given = without.forward(ModelInput::from(&x).states(&states))?;
    check_same_output("the same states, given", &own.forward(&x)?, &given)?;
    let none = without.forward(&x)?;
    check_same_output("zeros, given", &none, &own.forward(ModelInput::from(&x).states(&zeros))?)?;
    ensure!(given.y != none.y, "the initial state has no effect");
    let pass = own.forward_train(ModelInput::from(&x).states(&zeros), Checkpointing::SaveEverything)?;
    let gradients = pass.tape.backward(&Array3::ones((2, 3, 2)))?;
    let ModelLayer::Lstm { initial_state: Some(state), .. } = &gradients.weights.layers()[0] else {
        anyhow::bail!("expected the gradient of the initial state")
    };
    ensure!(state.h.iter().chain(&state.c).all(|v| *v == 0.0), "the own state was not used, but has a gradient");
    ensure!(gradients.states[0].h.iter().any(|v| *v != 0.0), "the given state has no gradient");
    Ok(())
}

/// A training run of a model.
struct Run {
    name: &'static str,
    weights: ModelWeights,
    config: TrainerConfig,
    /// Whether each step starts from the final states of the one before.
    carries_states: bool,
}

/// Number of training steps of each run.
const TRAINING_STEPS: usize = 60;

fn runs() -> Result<Vec<Run>> {
    let classifier = ModelWeights::new(vec![
        embedding(11, 5),
        ModelLayer::Dropout(0.125),
        lstm_with_state("rec", LstmConfig::new(5, 7).layers(2).dropout(0.25))?,
        ModelLayer::LastStep,
        linear("hidden", 7, 6),
        ModelLayer::Activation(Activation::Relu),
        linear("out", 6, 3),
        ModelLayer::Activation(Activation::Softmax),
    ])?;
    let amplifier = amplifier()?.weights.with_metadata([("author".to_owned(), "A".to_owned())].into());
    let classifier_config = TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(0.02));
    let amplifier_config = TrainerConfig::new(OptimizerConfig::nesterov(0.9), Schedule::cosine(0.1, 60, 0.0));
    Ok(vec![
        Run {
            name: "classifier",
            weights: classifier,
            config: classifier_config.clip(Clip::Norm(1.0)).seed(3),
            carries_states: false,
        },
        Run {
            name: "amplifier",
            weights: amplifier,
            config: amplifier_config.checkpointing(Checkpointing::Segments(32)),
            carries_states: true,
        },
    ])
}

impl Run {
    /// Runs training steps with the numbers `steps` and returns their losses. `states` are those before the first step,
    /// then those after the last.
    fn train<B: Backend>(
        &self,
        trainer: &mut ModelTrainer<B>,
        steps: Range<usize>,
        states: &mut Option<Vec<HostState>>,
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::new();
        for k in steps {
            // Three batches in turn, so that the loss decreases.
            let mut rng = ChaCha8Rng::seed_from_u64(k as u64 % 3);
            let report = if self.weights.reads_tokens() {
                let tokens = Array2::from_shape_simple_fn((4, 9), || i64::from(rng.next_u32() % 11));
                let lengths = [9, 2, 5, 9];
                let classes: Vec<_> = (0..4).map(|b| tokens[[b, lengths[b] - 1]] as usize % 3).collect();
                let input = ModelInput::from(&tokens).lengths(&lengths);
                trainer.step(input, |out, shard| cross_entropy(out.last()?, &classes[shard.rows.clone()]))?
            } else {
                let x = Array3::from_shape_simple_fn((2, 40, 3), || random_value(&mut rng) * 0.5);
                let target = x.slice(s![.., .., ..1]).mapv(|v| v * 0.25);
                let input = ModelInput::from(&x);
                let input = states.iter().fold(input, |input, states| input.states(states));
                trainer.step(input, |out, _| mean_squared_error(out.y()?, target.view()))?
            };
            ensure!(report.step == k as u64 + 1, "expected step {}, got {}", k + 1, report.step);
            losses.push(report.loss);
            *states = self.carries_states.then_some(report.states);
        }
        Ok(losses)
    }

    fn start<B: Backend>(&self, b: &B) -> Result<ModelTrainer<B>> {
        Ok(ModelTrainer::new(Model::new(b, self.weights.clone())?, self.config.clone())?)
    }
}

/// Trains models, checks that a resumed run and the reference path are bit-identical and that the loss decreases.
/// Returns the text of the snapshot: the losses, and the digest of each array of parameters.
///
/// # Errors
/// A loss or a parameter differs, or the backend returns an error.
pub fn check_training<B: Backend>(b: &B) -> Result<String> {
    let mut text = String::new();
    for run in runs()? {
        let (mut trainer, name) = (run.start(b)?, run.name);
        let losses = run.train(&mut trainer, 0..TRAINING_STEPS, &mut None)?;
        let (first, last): (f64, f64) = (losses[..6].iter().sum(), losses[losses.len() - 6..].iter().sum());
        ensure!(last < 0.9 * first, "{name}: the loss did not decrease enough: from {first} to {last}");
        let reference = run.train(&mut run.start(&Reference(b.clone()))?, 0..12, &mut None)?;
        ensure!(reference[..] == losses[..12], "{name}: the losses differ from those of the reference path");

        let half = TRAINING_STEPS / 2;
        let (mut interrupted_trainer, mut states) = (run.start(b)?, None);
        run.train(&mut interrupted_trainer, 0..half, &mut states)?;
        let file = TemporaryFile::new();
        let extras = CheckpointExtras::default().with_text([("position".to_owned(), "30".to_owned())].into());
        let extras = extras.with_tensor("data", ArrayD::ones(vec![2, 3]));
        interrupted_trainer.save_with(&file.0, &extras)?;
        let (mut resumed, got) = ModelTrainer::resume(b, &file.0)?;
        ensure!(got == extras, "{name}: expected {extras:?}, got {got:?}");
        ensure!(resumed.config() == trainer.config() && resumed.steps() == half as u64, "{name}: {resumed:?}");
        let again = run.train(&mut resumed, half..TRAINING_STEPS, &mut states)?;
        ensure!(again[..] == losses[half..], "{name}: the losses of the resumed run differ");
        ensure!(
            resumed.model().weights() == trainer.model().weights(),
            "{name}: the parameters of the resumed run differ"
        );
        expect_error("Trainer", &["ModelTrainer::resume"], Trainer::resume(b, &file.0))?;
        expect_error("a checkpoint", &["ModelTrainer::resume"], ModelWeights::open(&file.0).map(drop))?;

        // Writing to a string can't fail.
        let _ = writeln!(text, "{name}: loss {:016x} {last:e}", losses[losses.len() - 1].to_bits());
        let arrays = [("initial", &run.weights), ("trained", trainer.model().weights())];
        let [initial, trained] = arrays.map(|(_, weights)| model_f64::arrays(weights));
        for ((array, initial), (_, trained)) in initial.iter().zip(&trained) {
            let is_own_state = array.contains("initial_");
            let is_trained = !(is_own_state && run.carries_states);
            ensure!(!is_trained || initial != trained, "{name}: `{array}` was not trained");
            let _ = writeln!(text, "  {array} digest {}", Digest::of(trained));
        }
    }
    Ok(text)
}

/// Checks that invalid training runs and checkpoints are rejected, and that the trainer is unchanged.
fn check_training_errors<B: Backend>(b: &B) -> Result<()> {
    let run = runs()?.swap_remove(0);
    let mut trainer = run.start(b)?;
    let tokens = Array2::zeros((2, 3));
    let no_loss = |_: ModelOutputs<'_>, _: &Shard| Ok::<_, lstm_core::Error>((0.0, Array2::zeros((2, 4))));
    expect_error(
        "outputs",
        &["ModelOutputs::last"],
        trainer.step(&tokens, |out, _| out.y().map(|y| (0.0, y.to_owned()))),
    )?;
    expect_error("a gradient", &["gradient", "[2, 3]", "[2, 4]"], trainer.step(&tokens, no_loss))?;
    expect_error(
        "NaN",
        &["training step 1", "the loss"],
        trainer.step(&tokens, |out, _| Ok::<_, lstm_core::Error>((f64::NAN, out.last()?.to_owned()))),
    )?;
    let input = ModelInput::from(&tokens).lengths(&[0, 0]);
    expect_error("no steps", &["at least one time step"], trainer.step(input, no_loss))?;
    ensure!(trainer.steps() == 0 && *trainer.model().weights() == run.weights, "an error changed the trainer");

    let optimizer = ModelWeights::new(vec![linear("optimizer.a", 5, 2)])?;
    let result = ModelTrainer::new(Model::new(b, optimizer)?, run.config.clone());
    expect_error("a reserved name", &["optimizer.a", "reserved"], result)?;
    let metadata = [("trainer.seed".to_owned(), "1".to_owned())].into();
    let model = Model::new(b, run.weights.clone().with_metadata(metadata))?;
    let file = TemporaryFile::new();
    let result = ModelTrainer::new(model, run.config.clone())?.save(&file.0);
    expect_error("reserved metadata", &["trainer.seed"], result)?;

    Trainer::new(Lstm::random(b, LstmConfig::new(2, 3), 1)?, None, run.config.clone())?.save(&file.0)?;
    expect_error("another checkpoint", &["Trainer::resume"], ModelTrainer::resume(b, &file.0))?;
    run.weights.save(&file.0)?;
    expect_error("a model", &["not a checkpoint", "ModelWeights::open"], ModelTrainer::resume(b, &file.0))?;
    let (mut model, mut other) = (Model::new(b, run.weights.clone())?, run.weights.layers().to_vec());
    other[4] = linear("hidden", 7, 7);
    other[6] = linear("out", 7, 3);
    let words = ["layer 4", "linear `hidden`, 7 to 6", "linear `hidden`, 7 to 7"];
    expect_error("other weights", &words, model.set_weights(ModelWeights::new(other)?))?;
    expect_error("gains", &["output gain 1.0", "2.0"], model.set_weights(run.weights.clone().with_gains(1.0, 2.0)?))?;
    Ok(())
}
