//! The backward pass against finite differences of the forward pass, in f64; and that these find errors.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lstm_core::{Bias, CellKind, Checkpointing, Direction, HostState, LstmConfig, ndarray::s};
use lstm_tests::{
    cases::{CELLS, Case},
    differences::{Gradients, Problem, Report, round},
    double::{Double, Slip},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Random models of each cell; every sixth is a long one.
const MODELS: u64 = 48;

/// Elements of an array whose differences are taken.
const SAMPLE: usize = 12;

/// A small model over few steps, or one over more than two chunks of 32, with a random choice among all options.
fn draw(seed: u64, cell: CellKind, long: bool) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: usize| rng.next_u32() as usize % n;
    let most = if long { 2 } else { 4 };
    let (hidden, batch) = (2 + below(most), 1 + below(most));
    let steps = if long { [33, 64, 65, 70][below(4)] } else { 1 + below(7) };
    let mut config = LstmConfig::new(1 + below(3), hidden).cell(cell).layers(1 + below(if long { 2 } else { 3 }));
    config.direction = [Direction::Forward, Direction::Reverse, Direction::Bidirectional][below(3)];
    config.bias = [Bias::None, Bias::One, Bias::Two][below(3)];
    config.coupled = below(3) == 0;
    config.clip = [None, None, Some(0.5), Some(1.0)][below(4)];
    config.proj_size = (cell != CellKind::PeepholeDense && below(3) == 0).then(|| 1 + below(hidden - 1));
    config.dropout = if config.num_layers > 1 && below(2) == 0 { 0.25 } else { 0.0 };
    Case {
        config,
        batch,
        steps,
        lengths: (below(2) == 0).then(|| (0..batch).map(|_| below(steps + 1)).collect()),
        initial_state: below(4) != 0,
        training: (below(4) != 0).then_some(seed),
        seed,
        ..Case::new("random", format!("{cell:?} {seed}"), cell)
    }
}

/// What of its options a case has.
fn options(case: &Case) -> Vec<String> {
    let c = &case.config;
    let flags = [
        ("stacked", c.num_layers > 1),
        ("coupled", c.coupled),
        ("clip", c.clip.is_some()),
        ("projection", c.proj_size.is_some()),
        ("dropout", c.dropout > 0.0 && case.training.is_some()),
        ("lengths", case.lengths.is_some()),
        ("empty sequence", case.lengths.as_ref().is_some_and(|lengths| lengths.contains(&0))),
        ("zero state", !case.initial_state),
        ("more than 64 steps", case.steps > 64),
    ];
    let flags = flags.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned());
    flags.chain([format!("{:?}", c.direction), format!("Bias::{:?}", c.bias)]).collect()
}

/// The gradients are those of the loss; what is kept, and whether the input's is asked for, changes none of them.
fn check(case: &Case) -> Result<Report> {
    let (mut problem, b) = (Problem::new(case)?, Double::default());
    match case.seed % 4 {
        0 => problem.y = None,
        1 => problem.state = None,
        _ => {}
    }
    let tape = problem.record(&b, Checkpointing::Everything)?;
    let gradients = problem.walk_back(&b, &tape, true)?;
    let report = problem.compare(&gradients, &problem.differences(SAMPLE)?)?;
    for keep in [Checkpointing::Segments(32), Checkpointing::Segments(64), Checkpointing::SquareRoot] {
        let again = problem.walk_back(&b, &problem.record(&b, keep)?, true)?;
        ensure!(again == gradients, "{keep:?} gives other gradients");
    }
    let without = problem.walk_back(&b, &tape, false)?;
    ensure!(without[0].is_empty() && without[1..] == gradients[1..], "without the input's gradient others change");
    Ok(report)
}

#[test]
fn gradients_are_those_of_the_loss() -> Result<()> {
    let (mut all, mut clipped, mut met) = (Report::default(), Report::default(), BTreeMap::new());
    for (k, (name, cell)) in CELLS.into_iter().enumerate() {
        for n in 0..MODELS {
            let case = draw(k as u64 * MODELS + n, cell, n % 6 == 5);
            let report = check(&case).with_context(|| format!("{case:?}"))?;
            all += report;
            if case.config.clip.is_some() {
                clipped += report;
            }
            for option in options(&case) {
                met.entry(option).or_insert_with(BTreeMap::new).entry(name).and_modify(|n| *n += 1).or_insert(1);
            }
        }
    }
    println!("{all:?}\nwith clip: {clipped:?}");
    met.iter().for_each(|(option, cells)| println!("{option}: {cells:?}"));
    ensure!(all.skipped == clipped.skipped, "only clip has kinks");
    ensure!(clipped.skipped * 20 < clipped.compared, "more than a twentieth left out: {clipped:?}");
    ensure!(met.len() == 15, "an option is in no model");
    for (option, cells) in met {
        // The dense peephole has no projection.
        let want = if option == "projection" { 3 } else { 4 };
        ensure!(cells.len() == want, "{option}: only with {cells:?}");
    }
    Ok(())
}

/// Truncated backpropagation: a chunk starts from the state that the one before it left, as from a constant.
#[test]
fn chunks_take_the_carried_state_as_a_constant() -> Result<()> {
    for (name, cell) in CELLS {
        let case = Case::new("truncated", name, cell).sizes(2, 3, 2, 9).with(|c| c.layers(2));
        let (whole, b) = (Problem::new(&case)?, Double::default());
        let chunk = |steps: std::ops::Range<usize>, state: Option<HostState>| {
            let mut chunk = whole.clone();
            chunk.data.x = chunk.data.x.slice(s![.., steps.clone(), ..]).to_owned();
            chunk.data.state = state.or(chunk.data.state);
            chunk.y = chunk.y.map(|y| y.slice(s![.., steps, ..]).to_owned());
            chunk
        };
        let gradients =
            |problem: &Problem| problem.walk_back(&b, &problem.record(&b, Checkpointing::Everything)?, true);
        let mut first = chunk(0..5, None);
        let mut carried = first.final_state(&b)?;
        for array in [&mut carried.h, &mut carried.c] {
            array.mapv_inplace(round);
        }
        // The final state is the last chunk's.
        first.state = None;
        let last = chunk(5..9, Some(carried.clone()));
        for problem in [&first, &last] {
            problem.compare(&gradients(problem)?, &problem.differences(SAMPLE)?).context(name)?;
        }

        // Handed on, the last chunk's gradient of the carried state makes the weights' gradients add up to the whole's.
        let (whole, truncated, last) = (gradients(&whole)?, gradients(&first)?, gradients(&last)?);
        let mut handed = carried;
        handed.h.iter_mut().zip(&last[1]).chain(handed.c.iter_mut().zip(&last[2])).for_each(|(to, &v)| *to = v as f32);
        first.state = Some(handed);
        let off = |first: &Gradients| {
            let sums = first.iter().zip(&last).skip(3).flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| a + b);
            sums.zip(whole.iter().skip(3).flatten()).fold(0.0, |most: f64, (sum, want)| most.max((sum - want).abs()))
        };
        let (chained, truncated) = (off(&gradients(&first)?), off(&truncated));
        println!("{name}: chained {chained:.1e}, truncated {truncated:.1e} from the whole sequence's");
        // The carried state passed the host as f32.
        ensure!(chained < 1e-5 && truncated > 0.1, "{name}: chained {chained}, truncated {truncated}");
    }
    Ok(())
}

/// A model in which errors are planted, what is kept of it, and how many errors change a result but no gradient.
struct Planted(Case, Checkpointing, usize);

/// Together they reach every term of the backward pass; the seed is such that every bound has gates on both sides.
fn planted() -> Vec<Planted> {
    let small = |name: &str, cell, change: fn(LstmConfig) -> LstmConfig| {
        let case = Case::new("planted", name, cell).sizes(2, 4, 4, 4).with(change);
        Case { lengths: Some(vec![3, 4, 0, 4]), training: Some(3), seed: 1, ..case }
    };
    let long = |name: &str, cell| {
        let case = Case::new("planted", name, cell).sizes(1, 2, 2, 34);
        Case { lengths: Some(vec![34, 33]), ..case }
    };
    let whole = |case| Planted(case, Checkpointing::Everything, 0);
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
        // Both bounds of tanh: the dense peephole's candidate is a sigmoid.
        Planted(small("dense, clipped", CellKind::PeepholeDense, |c| c.clip(0.5)), Checkpointing::Everything, 2),
        whole(small("dense, coupled", CellKind::PeepholeDense, |c| c.coupled())),
        whole(small("diagonal, projected, clipped", CellKind::PeepholeDiagonal, |c| c.proj_size(2).clip(0.5))),
        whole(small("diagonal, coupled", CellKind::PeepholeDiagonal, |c| c.coupled())),
        whole(long("diagonal, two chunks", CellKind::PeepholeDiagonal)),
        // Each segment's last output is computed again but starts no further step: its tanh and its product, the latter
        // in two ways. The dense peephole's own gradient sees it.
        Planted(long("diagonal, two segments", CellKind::PeepholeDiagonal), Checkpointing::Segments(32), 6),
        Planted(long("dense, two segments", CellKind::PeepholeDense), Checkpointing::Segments(32), 0),
    ]
}

/// Each computing call of the backward pass goes wrong in each way, one at a time: the differences tell, unless all
/// gradients are still the same.
#[test]
fn every_planted_error_is_found() -> Result<()> {
    for Planted(case, keep, expected) in planted() {
        let (problem, b) = (Problem::new(&case)?, Double::default());
        let differences = problem.differences(usize::MAX)?;
        let tape = problem.record(&b, keep)?;
        b.plant(None);
        let right = problem.walk_back(&b, &tape, true)?;
        problem.compare(&right, &differences).with_context(|| case.name.clone())?;
        let calls = b.calls();
        let (mut found, mut idle) = (BTreeMap::new(), Vec::new());
        for (slip, call) in Slip::ALL.into_iter().flat_map(|slip| (0..calls).map(move |call| (slip, call))) {
            b.plant(Some((call, slip)));
            let wrong = problem.walk_back(&b, &tape, true)?;
            let Some(primitive) = b.slipped() else { continue };
            if wrong == right {
                idle.push(format!("{slip:?} in call {call}, {primitive}"));
            } else {
                let caught = problem.compare(&wrong, &differences).is_err();
                ensure!(caught, "{}: {slip:?} in call {call}, {primitive}, is not found", case.name);
                *found.entry((primitive, slip)).or_insert(0) += 1;
            }
        }
        let (name, sum) = (&case.name, found.values().sum::<usize>());
        println!("{name}: found {sum} errors in {calls} calls: {found:?}; {} without effect", idle.len());
        ensure!(idle.len() == expected, "{name}: expected {expected} errors without effect, got {idle:#?}");
    }
    Ok(())
}
