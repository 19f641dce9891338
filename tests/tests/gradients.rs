//! Compares the backward pass with finite differences of the forward pass in f64, and tests that the comparison detects
//! injected faults.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Bias, CellKind, Checkpointing, Direction, GateActivation, GateActivations, HostState, LstmConfig, ndarray::s,
};
use lstm_tests::{
    cases::{CELLS, Case, HARD_SIGMOID},
    f64_backend::{F64Backend, OpFault},
    finite_differences::{Gradients, Problem, Report, round_to_grid},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Number of random models for each cell. Every sixth has a long sequence.
const MODELS: u64 = 48;

/// Largest number of elements of an array for which a finite difference is computed.
const SAMPLE: usize = 12;

/// A small random model with a random choice of all options. It runs over few steps, or if `long` over 33 to 70 steps,
/// which is more than one chunk of 32.
fn random_case(seed: u64, cell: CellKind, long: bool) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: usize| rng.next_u32() as usize % n;
    let limit = if long { 2 } else { 4 };
    let (hidden, batch) = (2 + below(limit), 1 + below(limit));
    let steps = if long { [33, 64, 65, 70][below(4)] } else { 1 + below(7) };
    let mut config = LstmConfig::new(1 + below(3), hidden).cell(cell).layers(1 + below(if long { 2 } else { 3 }));
    config.direction = [Direction::Forward, Direction::Reverse, Direction::Bidirectional][below(3)];
    config.bias = [Bias::None, Bias::One, Bias::Two][below(3)];
    config.coupled = below(3) == 0;
    config.clip = [None, None, Some(0.5), Some(1.0)][below(4)];
    config.proj_size = (cell != CellKind::PeepholeDense && below(3) == 0).then(|| 1 + below(hidden - 1));
    config.dropout = if config.num_layers > 1 && below(2) == 0 { 0.25 } else { 0.0 };
    let mut case = Case {
        config,
        batch,
        steps,
        lengths: (below(2) == 0).then(|| (0..batch).map(|_| below(steps + 1)).collect()),
        initial_state: below(4) != 0,
        dropout_seed: (below(4) != 0).then_some(seed),
        seed,
        ..Case::new("random", format!("{cell:?} {seed}"), cell)
    };
    if below(2) == 0 {
        case.config.activations = random_activations(cell, &mut below);
    }
    case
}

/// Random activation functions. Slopes may be negative.
fn random_activations(cell: CellKind, below: &mut impl FnMut(usize) -> usize) -> GateActivations {
    let mut function = || match below(4) {
        0 => GateActivation::Sigmoid,
        1 => GateActivation::Tanh,
        2 => GateActivation::Relu,
        _ => GateActivation::HardSigmoid { alpha: [0.2, 1.0, -0.5][below(3)], beta: [0.5, 0.25][below(2)] },
    };
    let activations = GateActivations { gate: function(), candidate: function(), output: function() };
    match cell {
        CellKind::PeepholeDense => GateActivations { candidate: GateActivation::Tanh, ..activations },
        _ => activations,
    }
}

/// Whether a gate or output of the case is not a smooth function of its pre-activation.
fn has_kinks(case: &Case) -> bool {
    let GateActivations { gate, candidate, output } = case.config.activations;
    let is_smooth = |function| matches!(function, GateActivation::Sigmoid | GateActivation::Tanh);
    case.config.clip.is_some() || ![gate, candidate, output].into_iter().all(is_smooth)
}

/// Names of the options that a case uses.
fn options(case: &Case) -> Vec<String> {
    let c = &case.config;
    let flags = [
        ("stacked", c.num_layers > 1),
        ("coupled", c.coupled),
        ("clip", c.clip.is_some()),
        ("relu", [c.activations.gate, c.activations.candidate, c.activations.output].contains(&GateActivation::Relu)),
        ("hard sigmoid", matches!(c.activations.gate, GateActivation::HardSigmoid { .. })),
        ("falling hard sigmoid, clipped", {
            let is_falling = |f| matches!(f, GateActivation::HardSigmoid { alpha, .. } if alpha < 0.0);
            c.clip.is_some() && (is_falling(c.activations.gate) || is_falling(c.activations.candidate))
        }),
        ("projection", c.proj_size.is_some()),
        ("dropout", c.dropout > 0.0 && case.dropout_seed.is_some()),
        ("lengths", case.lengths.is_some()),
        ("empty sequence", case.lengths.as_ref().is_some_and(|lengths| lengths.contains(&0))),
        ("zero state", !case.initial_state),
        ("more than 64 steps", case.steps > 64),
    ];
    let flags = flags.into_iter().filter(|(_, is_used)| *is_used).map(|(name, _)| name.to_owned());
    flags.chain([format!("{:?}", c.direction), format!("Bias::{:?}", c.bias)]).collect()
}

/// Compares the gradients with finite differences. Checkpointing, and whether the gradient of the input is computed, must
/// not change any gradient.
fn check(case: &Case) -> Result<Report> {
    let (mut problem, b) = (Problem::new(case)?, F64Backend::default());
    match case.seed % 4 {
        0 => problem.output_loss_weights = None,
        1 => problem.state_loss_weights = None,
        _ => {}
    }
    let tape = problem.forward(&b, Checkpointing::SaveEverything)?;
    let gradients = problem.backward(&b, &tape, true)?;
    let report = problem.compare(&gradients, &problem.differences(SAMPLE)?)?;
    for keep in [Checkpointing::Segments(32), Checkpointing::Segments(64), Checkpointing::SquareRootSegments] {
        let again = problem.backward(&b, &problem.forward(&b, keep)?, true)?;
        ensure!(again == gradients, "{keep:?} changes the gradients");
    }
    let without = problem.backward(&b, &tape, false)?;
    ensure!(
        without[0].is_empty() && without[1..] == gradients[1..],
        "gradients change if the gradient of the input is not computed"
    );
    Ok(report)
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    let (mut all, mut kinked, mut coverage) = (Report::default(), Report::default(), BTreeMap::new());
    for (k, (name, cell)) in CELLS.into_iter().enumerate() {
        for n in 0..MODELS {
            let case = random_case(k as u64 * MODELS + n, cell, n % 6 == 5);
            let report = check(&case).with_context(|| format!("{case:?}"))?;
            all += report;
            if has_kinks(&case) {
                kinked += report;
            }
            for option in options(&case) {
                coverage.entry(option).or_insert_with(BTreeMap::new).entry(name).and_modify(|n| *n += 1).or_insert(1);
            }
        }
    }
    println!("{all:?}\nwith kinks: {kinked:?}");
    coverage.iter().for_each(|(option, cells)| println!("{option}: {cells:?}"));
    ensure!(all.skipped_count == kinked.skipped_count, "elements were skipped without a kink");
    ensure!(
        kinked.skipped_count * 20 < kinked.compared_count,
        "more than a twentieth of the elements was skipped: {kinked:?}"
    );
    ensure!(coverage.len() == 18, "no model has one of the options");
    for (option, cells) in coverage {
        // The dense peephole cell has no projection.
        let want = if option == "projection" { 3 } else { 4 };
        ensure!(cells.len() == want, "{option}: tested with {cells:?} only");
    }
    Ok(())
}

/// Truncated backpropagation: each chunk starts from the final state of the previous chunk, which is treated as a constant.
#[test]
fn truncated_backpropagation_treats_carried_state_as_constant() -> Result<()> {
    for (name, cell) in CELLS {
        let case = Case::new("truncated", name, cell).sizes(2, 3, 2, 9).map_config(|c| c.layers(2));
        let (whole, b) = (Problem::new(&case)?, F64Backend::default());
        let chunk = |steps: std::ops::Range<usize>, state: Option<HostState>| {
            let mut chunk = whole.clone();
            chunk.data.x = chunk.data.x.slice(s![.., steps.clone(), ..]).to_owned();
            chunk.data.state = state.or(chunk.data.state);
            chunk.output_loss_weights = chunk.output_loss_weights.map(|y| y.slice(s![.., steps, ..]).to_owned());
            chunk
        };
        let gradients =
            |problem: &Problem| problem.backward(&b, &problem.forward(&b, Checkpointing::SaveEverything)?, true);
        let mut first = chunk(0..5, None);
        let mut carried = first.final_state(&b)?;
        for array in [&mut carried.h, &mut carried.c] {
            array.mapv_inplace(round_to_grid);
        }
        // Only the last chunk has the final state.
        first.state_loss_weights = None;
        let last = chunk(5..9, Some(carried.clone()));
        for problem in [&first, &last] {
            problem.compare(&gradients(problem)?, &problem.differences(SAMPLE)?).context(name)?;
        }

        // If the first chunk gets the last chunk's gradient of the carried state, the weight gradients of both chunks add up
        // to those of the whole sequence.
        let (whole, truncated, last) = (gradients(&whole)?, gradients(&first)?, gradients(&last)?);
        let mut passed_on = carried;
        passed_on
            .h
            .iter_mut()
            .zip(&last[1])
            .chain(passed_on.c.iter_mut().zip(&last[2]))
            .for_each(|(to, &v)| *to = v as f32);
        first.state_loss_weights = Some(passed_on);
        let deviation = |first: &Gradients| {
            let sums = first.iter().zip(&last).skip(3).flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| a + b);
            sums.zip(whole.iter().skip(3).flatten()).fold(0.0, |worst: f64, (sum, want)| worst.max((sum - want).abs()))
        };
        let (chained, truncated) = (deviation(&gradients(&first)?), deviation(&truncated));
        println!("{name}: deviation from the whole sequence {chained:.1e} chained, {truncated:.1e} truncated");
        // The carried state was rounded to f32 on the host.
        ensure!(chained < 1e-5 && truncated > 0.1, "{name}: chained {chained}, truncated {truncated}");
    }
    Ok(())
}

/// A case for fault injection: the model, its checkpointing, and the number of faults that change a result of a primitive
/// but no gradient.
struct FaultCase(Case, Checkpointing, usize);

/// Cases that together cover every term of the backward pass. With their seeds, every clip bound has gates on both sides.
fn fault_cases() -> Vec<FaultCase> {
    let small = |name: &str, cell, change: fn(LstmConfig) -> LstmConfig| {
        let case = Case::new("faults", name, cell).sizes(2, 4, 4, 4).map_config(change);
        Case { lengths: Some(vec![3, 4, 0, 4]), dropout_seed: Some(3), seed: 1, ..case }
    };
    let long = |name: &str, cell| {
        let case = Case::new("faults", name, cell).sizes(1, 2, 2, 34);
        Case { lengths: Some(vec![34, 33]), ..case }
    };
    let whole = |case| FaultCase(case, Checkpointing::SaveEverything, 0);
    vec![
        whole(small("fused, projected, clipped", CellKind::Fused, |c| c.proj_size(2).clip(0.5))),
        whole(small("fused, coupled, clipped, reverse", CellKind::Fused, |c| {
            c.coupled().clip(0.5).direction(Direction::Reverse)
        })),
        whole(small("fused, stacked, bidirectional, dropout", CellKind::Fused, |c| {
            c.layers(2).bidirectional().dropout(0.25)
        })),
        whole(small("unfused", CellKind::Unfused, |c| c)),
        whole(small("unfused, projected, coupled", CellKind::Unfused, |c| c.proj_size(2).coupled())),
        whole(small("dense, clipped", CellKind::PeepholeDense, |c| c.clip(0.5))),
        whole(small("dense, coupled", CellKind::PeepholeDense, |c| c.coupled())),
        whole(small("diagonal, projected, clipped", CellKind::PeepholeDiagonal, |c| c.proj_size(2).clip(0.5))),
        whole(small("diagonal, coupled", CellKind::PeepholeDiagonal, |c| c.coupled())),
        // Eight faults without effect, two for each of the four steps: relu clips its selectors, whose signs alone matter.
        FaultCase(
            small("fused, relu output", CellKind::Fused, |c| {
                let output = GateActivation::Relu;
                c.activations(GateActivations { gate: HARD_SIGMOID, output, ..GateActivations::default() })
            }),
            Checkpointing::SaveEverything,
            8,
        ),
        // Four faults without effect, one for each step.
        FaultCase(
            small("fused, relu candidate", CellKind::Fused, |c| {
                c.activations(GateActivations { candidate: GateActivation::Relu, ..GateActivations::default() })
            }),
            Checkpointing::SaveEverything,
            4,
        ),
        whole(small("dense, hard sigmoid", CellKind::PeepholeDense, |c| {
            c.activations(GateActivations { gate: HARD_SIGMOID, output: HARD_SIGMOID, ..GateActivations::default() })
        })),
        whole(long("diagonal, two chunks", CellKind::PeepholeDiagonal)),
        // Six faults without effect: the last output of each of the two segments is computed again but not used, which is
        // one fault in its tanh and two in its product. The gradient of the dense peephole cell uses that output.
        FaultCase(long("diagonal, two segments", CellKind::PeepholeDiagonal), Checkpointing::Segments(32), 6),
        FaultCase(long("dense, two segments", CellKind::PeepholeDense), Checkpointing::Segments(32), 0),
    ]
}

/// Injects every fault into every call of the backward pass, one at a time. The finite differences must detect each fault
/// that changes a gradient.
#[test]
fn finite_differences_detect_every_injected_fault() -> Result<()> {
    for FaultCase(case, keep, expected) in fault_cases() {
        let (problem, b) = (Problem::new(&case)?, F64Backend::default());
        let differences = problem.differences(usize::MAX)?;
        let tape = problem.forward(&b, keep)?;
        b.inject_fault(None);
        let correct = problem.backward(&b, &tape, true)?;
        problem.compare(&correct, &differences).with_context(|| case.name.clone())?;
        let calls = b.call_count();
        let (mut detected, mut without_effect) = (BTreeMap::new(), Vec::new());
        for (fault, call) in OpFault::ALL.into_iter().flat_map(|fault| (0..calls).map(move |call| (fault, call))) {
            b.inject_fault(Some((call, fault)));
            let faulty = problem.backward(&b, &tape, true)?;
            let Some(primitive) = b.changed_primitive() else { continue };
            if faulty == correct {
                without_effect.push(format!("{fault:?} in call {call}, {primitive}"));
            } else {
                let is_detected = problem.compare(&faulty, &differences).is_err();
                ensure!(is_detected, "{}: {fault:?} in call {call}, {primitive}, is not detected", case.name);
                *detected.entry((primitive, fault)).or_insert(0) += 1;
            }
        }
        let (name, sum) = (&case.name, detected.values().sum::<usize>());
        println!(
            "{name}: detected {sum} faults in {calls} calls: {detected:?}; {} without effect",
            without_effect.len()
        );
        ensure!(
            without_effect.len() == expected,
            "{name}: expected {expected} faults without effect, got {without_effect:#?}"
        );
    }
    Ok(())
}
