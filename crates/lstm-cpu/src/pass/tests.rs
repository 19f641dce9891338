//! Tests that results do not depend on the number of threads: for every cell, with and without projection and lengths,
//! forward and backward. The plans are made with `Plan::with_threads`, because `Plan::new` runs layers of these sizes
//! on one thread.

use std::sync::Arc;

use lstm_core::{CellKind, Init, LstmConfig, MatrixShape, Precision, Weights};

use crate::{
    Isa,
    layer::{PackedLayer, Plan},
    memory::tensor::Tensor,
    pass::{
        backward::{self, GradientBuffers},
        forward::{SequenceInput, run, run_bidirectional},
        trace::Trace,
    },
    pool::ThreadPool,
};

/// A pseudo-random value in [-1, 1) for each `k`.
fn pseudo_random(k: usize) -> f32 {
    ((k as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / 8_388_608.0 - 1.0
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    check_thread_counts(70, &[33, 32, 4, 2, 2, 1, 0]);
}

/// Compares the single-row kernel, which one thread uses, with the tile kernels, which several threads use.
#[test]
fn small_steps_are_bit_identical_for_any_number_of_threads() {
    check_thread_counts(20, &[4]);
}

/// Tests a single sequence, where the cell kernel runs over panels, and where two threads may compute the same
/// recurrent panel of the dense peephole cell.
#[test]
fn single_sequence_is_bit_identical_for_any_number_of_threads() {
    check_thread_counts(150, &[3]);
}

/// Compares all outputs and gradients on 1, 2, 3 and 5 threads, with and without `lengths`.
fn check_thread_counts(hidden: usize, lengths: &[usize]) {
    let pools: Vec<_> =
        [1, 2, 3, 5].into_iter().map(|threads| Arc::new(ThreadPool::new(threads, false).unwrap())).collect();
    // More time steps than one chunk of the backward pass.
    let (batch, steps, input_size) = (lengths.len(), 33, 9);
    for isa in Isa::available() {
        let cases = [
            (CellKind::Fused, None),
            (CellKind::Fused, Some(hidden / 2 - 2)),
            (CellKind::PeepholeDense, None),
            (CellKind::PeepholeDiagonal, None),
            (CellKind::PeepholeDiagonal, Some(hidden - 5)),
        ];
        for ((cell, proj), precision) in
            cases.into_iter().flat_map(|case| Precision::ALL.map(|precision| (case, precision)))
        {
            let config = LstmConfig::new(input_size, hidden).cell(cell);
            let config = LstmConfig::bidirectional(proj.into_iter().fold(config, LstmConfig::proj_size));
            let weights = Weights::init(config, &Init::default(), 3).unwrap().quantize(precision).unwrap();
            for weights in weights.layers() {
                let layer = PackedLayer::new(isa, &pools[0], weights).unwrap();
                let state = weights.spec().state_size();
                let x: Vec<f32> = (0..steps * batch * input_size).map(pseudo_random).collect();
                let [h, c] = [state, hidden].map(|n| (0..batch * n).map(|k| pseudo_random(k + 1)).collect::<Vec<_>>());
                let dy: Vec<f32> = (0..steps * batch * state).map(|k| pseudo_random(k + 2)).collect();
                let spec = weights.spec();
                for lengths in [None, Some(lengths)] {
                    let outputs = pools.iter().map(|pool| {
                        let mut plan = Plan::with_threads(&layer, batch, steps, pool.threads()).unwrap();
                        plan.set_state(&layer, &h, &c);
                        let mut y = vec![0.0; steps * batch * state];
                        let input = SequenceInput { steps, lengths, x: &x };
                        // SAFETY: `y` is a local variable.
                        unsafe { run(pool, &layer, &mut plan, input, &mut y[..], None) };
                        let mut results = [&y, plan.h.as_slice(), plan.c.as_slice()].concat();
                        if precision != Precision::F32 {
                            return results.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                        }

                        let tensor = Tensor::new(MatrixShape::new(steps * batch, input_size), x.clone());
                        let mut trace = Trace::new(pool, &layer, tensor, (steps, batch), lengths, (&h, &c)).unwrap();
                        let mut training_y = vec![0.0; y.len()];
                        // SAFETY: `training_y` is a local variable.
                        unsafe { run(pool, &layer, &mut plan, input, &mut training_y[..], Some(&mut trace)) };
                        assert!(y == training_y);
                        let zeros = |rows: usize, cols: usize| vec![0.0; rows * cols];
                        let (mut dx, mut dw, mut du) =
                            (zeros(steps * batch, input_size), zeros(4 * hidden, input_size), zeros(4 * hidden, state));
                        let (mut bias, mut projection, mut dh, mut dc) =
                            (zeros(4, hidden), zeros(state, hidden), zeros(batch, state), zeros(batch, hidden));
                        let [mut p_i, mut p_f, mut p_o] = [zeros(1, hidden), zeros(1, hidden), zeros(1, hidden)];
                        let out = GradientBuffers {
                            x: Some(&mut dx),
                            w: &mut dw,
                            u: &mut du,
                            bias: Some(&mut bias),
                            projection: spec.proj_size.map(|_| &mut projection[..]),
                            peephole: (spec.cell == CellKind::PeepholeDiagonal).then_some([
                                &mut p_i[..],
                                &mut p_f[..],
                                &mut p_o[..],
                            ]),
                            accumulate: false,
                            h: &mut dh,
                            c: &mut dc,
                        };
                        backward::run(pool, &layer, &mut plan, &trace, &dy, (&h, &c), out).unwrap();
                        for part in [dx, dw, du, bias, projection, dh, dc, p_i, p_f, p_o] {
                            results.extend(part);
                        }
                        results.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                    });
                    let outputs: Vec<_> = outputs.collect();
                    for (k, output) in outputs.iter().enumerate() {
                        assert!(*output == outputs[0], "{isa}, {spec:?}, {lengths:?}: {} threads", pools[k].threads());
                    }
                }
            }
        }
    }
}

#[test]
fn directions_are_bit_identical_run_together_or_in_turn() {
    check_directions(&[7, 4, 0]);
    check_directions(&[4]);
}

/// Compares bidirectional passes with one pass per direction, with and without `lengths`.
fn check_directions(lengths: &[usize]) {
    let (batch, steps, input_size, hidden) = (lengths.len(), 7, 5, 70);
    for (cell, proj, precision) in [
        (CellKind::Fused, None, Precision::F32),
        (CellKind::PeepholeDense, None, Precision::F32),
        (CellKind::PeepholeDiagonal, Some(33), Precision::F32),
        (CellKind::Fused, None, Precision::Int12),
        (CellKind::PeepholeDiagonal, Some(33), Precision::Int8),
    ] {
        let config = LstmConfig::new(input_size, hidden).cell(cell);
        let config = proj.into_iter().fold(config, LstmConfig::proj_size);
        let weights = Weights::init(LstmConfig::bidirectional(config), &Init::default(), 3).unwrap();
        let weights = weights.quantize(precision).unwrap();
        let x: Vec<f32> = (0..steps * batch * input_size).map(pseudo_random).collect();
        for threads in [1, 2, 3, 4] {
            let pool = Arc::new(ThreadPool::new(threads, false).unwrap());
            let isa = Isa::available()[0];
            let layers: [_; 2] = std::array::from_fn(|k| PackedLayer::new(isa, &pool, &weights.layers()[k]).unwrap());
            let cols = weights.layers()[0].spec().state_size();
            for lengths in [None, Some(lengths)] {
                let input = SequenceInput { steps, lengths, x: &x };
                let mut plans = [(); 2].map(|()| Plan::with_threads(&layers[0], batch, steps, 1).unwrap());
                for (plan, layer) in plans.iter_mut().zip(&layers) {
                    *plan = Plan::with_threads(layer, batch, steps, threads).unwrap();
                }
                let separate_results = plans.iter_mut().zip(&layers).map(|(plan, layer)| {
                    let mut y = vec![0.0; steps * batch * cols];
                    // SAFETY: `y` is a local variable.
                    unsafe { run(&pool, layer, plan, input, &mut y[..], None) };
                    (y, plan.last_state(layer, steps, lengths).unwrap())
                });
                let separate_results: Vec<_> = separate_results.collect();
                for threads_per_direction in 0..=threads / 2 {
                    for plan in &mut plans {
                        plan.set_state(&layers[0], &vec![0.0; batch * cols], &vec![0.0; batch * hidden]);
                        plan.threads_per_direction = threads_per_direction;
                    }
                    let mut y = vec![0.0; steps * batch * 2 * cols];
                    let [plan, reverse_plan] = &mut plans;
                    // SAFETY: `y` is a local variable.
                    unsafe {
                        run_bidirectional(&pool, [&layers[0], &layers[1]], [plan, reverse_plan], input, &mut y[..]);
                    }
                    for (k, row) in y.chunks_exact(cols).enumerate() {
                        assert!(
                            *row == separate_results[k % 2].0[k / 2 * cols..][..cols],
                            "{threads} threads, {threads_per_direction} per direction, row {k}"
                        );
                    }
                    for ((plan, layer), (_, expected)) in plans.iter().zip(&layers).zip(&separate_results) {
                        let actual = plan.last_state(layer, steps, lengths).unwrap();
                        assert!(
                            actual.h == expected.h && actual.c == expected.c,
                            "{threads} threads, {threads_per_direction} per direction"
                        );
                        assert_eq!(plan.current_state_index, steps % 2);
                    }
                }
            }
        }
    }
}
