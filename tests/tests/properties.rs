//! Random models over random inputs, on every backend.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, Bias, CellKind, Direction, HostState, Lstm, LstmConfig, State, ndarray::Axis};
use lstm_tests::{
    backends::{self, Visit},
    cases::{CELLS, Case, Data},
    check::{check_case, outputs},
    compare::{Outputs, same_outputs},
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{TestCaseError, TestRunner},
};

/// Models of every cell and option; whether they are valid is `validate`'s to say.
fn configs() -> impl Strategy<Value = LstmConfig> {
    let sizes = (1..40usize, 1..40usize, 1..4usize, option::weighted(0.3, 1..20usize));
    let kinds = (
        prop::sample::select(CELLS.map(|(_, cell)| cell).to_vec()),
        prop::sample::select(vec![Direction::Forward, Direction::Reverse, Direction::Bidirectional]),
        prop::sample::select(vec![Bias::None, Bias::One, Bias::Two]),
    );
    let options = (any::<bool>(), option::of(0.1..2.0f32), option::weighted(0.3, 0.1..0.9f32));
    (sizes, kinds, options).prop_map(
        |((input, hidden, layers, proj), (cell, direction, bias), (coupled, clip, dropout))| {
            let mut config = LstmConfig::new(input, hidden).layers(layers).cell(cell).direction(direction).bias(bias);
            config.proj_size = proj;
            config.coupled = coupled;
            config.clip = clip;
            config.dropout = dropout.unwrap_or(0.0);
            config
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    let extent = (1..9usize, 1..12usize);
    let case = (configs(), extent, any::<u64>(), any::<bool>(), option::weighted(0.3, any::<u64>()));
    case.prop_flat_map(|(config, (batch, steps), seed, initial_state, training)| {
        option::of(vec(0..=steps, batch)).prop_map(move |lengths| Case {
            config: config.clone(),
            batch,
            steps,
            lengths,
            initial_state,
            training,
            seed,
            ..Case::new("random", "random", CellKind::Fused)
        })
    })
}

/// An option that does not exist is refused by the configuration, and then also by the weights.
fn is_refused(case: &Case) -> Result<bool> {
    let refused = case.config.validate().is_err();
    ensure!(refused == case.weights().is_err(), "validate and Weights::init disagree");
    Ok(refused)
}

/// Outputs beyond a sequence's length are +0.
fn padding_is_zero(case: &Case, got: &Outputs) -> Result<()> {
    for (b, len) in case.lengths.iter().flatten().enumerate() {
        let padding = got.y.index_axis(Axis(0), b);
        ensure!(padding.outer_iter().skip(*len).flatten().all(|v| v.to_bits() == 0), "sequence {b} beyond {len}");
    }
    Ok(())
}

/// The sequences in another order: the outputs in that order.
fn permutes<B: Backend>(b: &B, case: &Case, want: &Outputs) -> Result<()> {
    if case.training.is_some() {
        // The dropout masks are drawn by place in the batch.
        return Ok(());
    }
    let order: Vec<usize> = (0..case.batch).map(|k| (k * 5 + 2) % case.batch).collect();
    let order =
        if order.iter().collect::<BTreeSet<_>>().len() == case.batch { order } else { (0..case.batch).rev().collect() };
    let data = case.data();
    let state = |s: &HostState| State { h: s.h.select(Axis(1), &order), c: s.c.select(Axis(1), &order) };
    let permuted = Data {
        x: data.x.select(Axis(0), &order),
        state: data.state.as_ref().map(state),
        lengths: data.lengths.as_ref().map(|lengths| order.iter().map(|&k| lengths[k]).collect()),
        training: None,
        ..data.clone()
    };
    let want = Outputs { y: want.y.select(Axis(0), &order), state: state(&want.state) };
    same_outputs("another order", &want, &outputs(&Lstm::new(b, case.weights()?)?, &permuted)?)
}

fn check<B: Backend>(b: &B, case: &Case) -> Result<()> {
    if is_refused(case)? {
        return Ok(());
    }
    // Fused, reference, streams, layouts: all the same bits.
    let got = check_case(b, case)?.outputs;
    padding_is_zero(case, &got).context("padding")?;
    permutes(b, case, &got)
}

/// Runs the property on each backend it visits.
struct Properties;

impl Visit for Properties {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        // Stand-ins for GPUs take tens of times as long.
        let tries = if name == "cpu" { 256 } else { 64 };
        let config = ProptestConfig { cases: tries, failure_persistence: None, ..ProptestConfig::default() };
        let result = TestRunner::new(config)
            .run(&cases(), |case| check(&b, &case).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn any_model_gives_the_same_bits_in_every_way() {
    let wanted = backends::wanted();
    let missed = backends::for_each(wanted.as_deref(), &mut Properties);
    missed.iter().for_each(|missed| eprintln!("{missed}"));
    // Backends that can't run are in the conformance suite's report; a run of none is no test.
    let all = wanted.map_or(backends::COMPILED.len(), |names| names.len());
    assert!(all > missed.len(), "no backend ran");
}
