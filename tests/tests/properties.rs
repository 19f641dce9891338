//! Property tests: random models and inputs on every backend.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, Bias, CellKind, Direction, GateActivation, GateActivations, HostState, Lstm, LstmConfig, State,
    ndarray::Axis,
};
use lstm_tests::{
    backends::{self, BackendVisitor},
    cases::{CELLS, Case, CaseData, HARD_SIGMOID},
    check::{check_case, run_forward},
    compare::{Outputs, check_same_outputs},
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{TestCaseError, TestRunner},
};

/// Random configurations of every cell with every option. Some of them are invalid.
fn configs() -> impl Strategy<Value = LstmConfig> {
    let sizes = (1..40usize, 1..40usize, 1..4usize, option::weighted(0.3, 1..20usize));
    let kinds = (
        prop::sample::select(CELLS.map(|(_, cell)| cell).to_vec()),
        prop::sample::select(vec![Direction::Forward, Direction::Reverse, Direction::Bidirectional]),
        prop::sample::select(vec![Bias::None, Bias::One, Bias::Two]),
    );
    let functions = prop::sample::select(vec![GateActivation::Relu, GateActivation::Tanh, HARD_SIGMOID]);
    let activations = option::weighted(0.3, [functions.clone(), functions.clone(), functions]);
    let options = (any::<bool>(), option::of(0.1..2.0f32), option::weighted(0.3, 0.1..0.9f32), activations);
    (sizes, kinds, options).prop_map(
        |((input, hidden, layers, proj), (cell, direction, bias), (coupled, clip, dropout, activations))| {
            let mut config = LstmConfig::new(input, hidden).layers(layers).cell(cell).direction(direction).bias(bias);
            config.proj_size = proj;
            config.coupled = coupled;
            config.clip = clip;
            config.dropout = dropout.unwrap_or(0.0);
            if let Some([gate, candidate, output]) = activations {
                config.activations = GateActivations { gate, candidate, output };
            }
            config
        },
    )
}

/// Random cases.
fn cases() -> impl Strategy<Value = Case> {
    let extent = (1..9usize, 1..12usize);
    let case = (configs(), extent, any::<u64>(), any::<bool>(), option::weighted(0.3, any::<u64>()));
    case.prop_flat_map(|(config, (batch, steps), seed, initial_state, dropout_seed)| {
        option::of(vec(0..=steps, batch)).prop_map(move |lengths| Case {
            config: config.clone(),
            batch,
            steps,
            lengths,
            initial_state,
            dropout_seed,
            seed,
            ..Case::new("random", "random", CellKind::Fused)
        })
    })
}

/// Whether the configuration is invalid. `LstmConfig::validate` and `Weights::init` must agree.
fn is_invalid(case: &Case) -> Result<bool> {
    let invalid = case.config.validate().is_err();
    ensure!(invalid == case.weights().is_err(), "validate and Weights::init disagree");
    Ok(invalid)
}

/// Outputs in the padding must be +0.
fn padding_is_zero(case: &Case, got: &Outputs) -> Result<()> {
    for (b, len) in case.lengths.iter().flatten().enumerate() {
        let padding = got.y.index_axis(Axis(0), b);
        ensure!(
            padding.outer_iter().skip(*len).flatten().all(|v| v.to_bits() == 0),
            "sequence {b}: the padding after {len} steps is not zero"
        );
    }
    Ok(())
}

/// If the sequences of the batch are permuted, the outputs must be permuted in the same way.
fn permutation_is_equivariant<B: Backend>(b: &B, case: &Case, want: &Outputs) -> Result<()> {
    if case.dropout_seed.is_some() {
        // Dropout masks depend on the index in the batch.
        return Ok(());
    }
    let order: Vec<usize> = (0..case.batch).map(|k| (k * 5 + 2) % case.batch).collect();
    let order =
        if order.iter().collect::<BTreeSet<_>>().len() == case.batch { order } else { (0..case.batch).rev().collect() };
    let data = case.data();
    let state = |s: &HostState| State { h: s.h.select(Axis(1), &order), c: s.c.select(Axis(1), &order) };
    let permuted = CaseData {
        x: data.x.select(Axis(0), &order),
        state: data.state.as_ref().map(state),
        lengths: data.lengths.as_ref().map(|lengths| order.iter().map(|&k| lengths[k]).collect()),
        dropout_seed: None,
        ..data.clone()
    };
    let want = Outputs { y: want.y.select(Axis(0), &order), state: state(&want.state) };
    check_same_outputs("permuted batch", &want, &run_forward(&Lstm::new(b, case.weights()?)?, &permuted)?)
}

/// Checks one random case.
fn check<B: Backend>(b: &B, case: &Case) -> Result<()> {
    if is_invalid(case)? {
        return Ok(());
    }
    let got = check_case(b, case)?.outputs;
    padding_is_zero(case, &got).context("padding")?;
    permutation_is_equivariant(b, case, &got)
}

/// Checks random cases on each backend that it visits.
struct Properties;

impl BackendVisitor for Properties {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        // Simulated GPUs are tens of times slower.
        let count = if name == "cpu" { 256 } else { 64 };
        let config = ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
        let result = TestRunner::new(config)
            .run(&cases(), |case| check(&b, &case).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn random_models_are_bit_identical_on_every_path() {
    let wanted = backends::wanted_backends();
    let not_run = backends::for_each_backend(wanted.as_deref(), &mut Properties);
    not_run.iter().for_each(|backend| eprintln!("{backend}"));
    // The conformance tests report backends that can't run, but at least one must run.
    let all = wanted.map_or(backends::compiled_backends().len(), |names| names.len());
    assert!(all > not_run.len(), "no backend ran");
}
