//! Threads: work too small to be shared of itself is shared here, in every cell, projected and with lengths, forward and
//! backward, and gives the same bits.

use std::sync::Arc;

use lstm_core::{CellKind, Init, LstmConfig, MatrixShape, Weights};

use crate::{
    Isa,
    backward::{self, Outputs},
    layer::{Packed, Plan},
    pool::Pool,
    sequence::{Walk, run, run_both},
    tensor::Tensor,
    trace::Trace,
};

/// A deterministic value in [-1, 1).
fn value(k: usize) -> f32 {
    ((k as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / 8_388_608.0 - 1.0
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    same_bits(70, &[33, 32, 4, 2, 2, 1, 0]);
}

/// One thread makes such steps in one go, several panel by panel.
#[test]
fn small_steps_give_the_same_bits() {
    same_bits(20, &[4]);
}

/// A single sequence has its panels' gates together; of the dense peephole's recurrent panels several threads make some.
#[test]
fn a_single_sequence_gives_the_same_bits() {
    same_bits(150, &[3]);
}

/// With and without these lengths.
fn same_bits(hidden: usize, lengths: &[usize]) {
    let pools: Vec<_> = [1, 2, 3, 5].into_iter().map(|threads| Arc::new(Pool::new(threads).unwrap())).collect();
    // More than one chunk of steps.
    let (batch, steps, input) = (lengths.len(), 33, 9);
    for isa in Isa::available() {
        for (cell, proj) in [
            (CellKind::Fused, None),
            (CellKind::Fused, Some(hidden / 2 - 2)),
            (CellKind::PeepholeDense, None),
            (CellKind::PeepholeDiagonal, None),
            (CellKind::PeepholeDiagonal, Some(hidden - 5)),
        ] {
            let config = LstmConfig::new(input, hidden).cell(cell);
            let config = LstmConfig::bidirectional(proj.into_iter().fold(config, LstmConfig::proj_size));
            let weights = Weights::init(config, &Init::default(), 3).unwrap();
            for weights in weights.layers() {
                let layer = Packed::new(isa.kernels().unwrap(), &pools[0], weights).unwrap();
                let state = weights.spec().state_size();
                let x: Vec<f32> = (0..steps * batch * input).map(value).collect();
                let [h, c] = [state, hidden].map(|n| (0..batch * n).map(|k| value(k + 1)).collect::<Vec<_>>());
                let dy: Vec<f32> = (0..steps * batch * state).map(|k| value(k + 2)).collect();
                let spec = weights.spec();
                for lengths in [None, Some(lengths)] {
                    let outputs = pools.iter().map(|pool| {
                        let mut plan = Plan::on_threads(&layer, batch, steps, pool.threads()).unwrap();
                        plan.set_state(&layer, &h, &c);
                        let mut y = vec![0.0; steps * batch * state];
                        let walk = Walk { steps, lengths, x: &x };
                        // SAFETY: `y` is a slice that nobody else has; so below.
                        unsafe { run(pool, &layer, &mut plan, walk, &mut y[..], None) };
                        let mut all = [&y, plan.h.as_slice(), plan.c.as_slice()].concat();

                        let tensor = Tensor::new(MatrixShape::new(steps * batch, input), x.clone());
                        let mut trace = Trace::new(pool, &layer, tensor, (steps, batch), lengths, (&h, &c)).unwrap();
                        let mut same_y = vec![0.0; y.len()];
                        // SAFETY: as above.
                        unsafe { run(pool, &layer, &mut plan, walk, &mut same_y[..], Some(&mut trace)) };
                        assert!(y == same_y);
                        let zeros = |rows: usize, cols: usize| vec![0.0; rows * cols];
                        let (mut dx, mut dw, mut du) =
                            (zeros(steps * batch, input), zeros(4 * hidden, input), zeros(4 * hidden, state));
                        let (mut bias, mut projection, mut dh, mut dc) =
                            (zeros(4, hidden), zeros(state, hidden), zeros(batch, state), zeros(batch, hidden));
                        let [mut p_i, mut p_f, mut p_o] = [zeros(1, hidden), zeros(1, hidden), zeros(1, hidden)];
                        let out = Outputs {
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
                            onto: false,
                            h: &mut dh,
                            c: &mut dc,
                        };
                        backward::run(pool, &layer, &mut plan, &trace, &dy, (&h, &c), out).unwrap();
                        for part in [dx, dw, du, bias, projection, dh, dc, p_i, p_f, p_o] {
                            all.extend(part);
                        }
                        all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                    });
                    let outputs: Vec<_> = outputs.collect();
                    for (k, other) in outputs.iter().enumerate() {
                        assert!(*other == outputs[0], "{isa}, {spec:?}, {lengths:?}: {} threads", pools[k].threads());
                    }
                }
            }
        }
    }
}

#[test]
fn both_directions_apart_or_in_turn_give_the_same_bits() {
    both_directions(&[7, 4, 0]);
    both_directions(&[4]);
}

/// With and without these lengths.
fn both_directions(lengths: &[usize]) {
    let (batch, steps, input, hidden) = (lengths.len(), 7, 5, 70);
    for (cell, proj) in
        [(CellKind::Fused, None), (CellKind::PeepholeDense, None), (CellKind::PeepholeDiagonal, Some(33))]
    {
        let config = LstmConfig::new(input, hidden).cell(cell);
        let config = proj.into_iter().fold(config, LstmConfig::proj_size);
        let weights = Weights::init(LstmConfig::bidirectional(config), &Init::default(), 3).unwrap();
        let x: Vec<f32> = (0..steps * batch * input).map(value).collect();
        for threads in [1, 2, 3, 4] {
            let pool = Arc::new(Pool::new(threads).unwrap());
            let kernels = Isa::available()[0].kernels().unwrap();
            let layers: [_; 2] = std::array::from_fn(|k| Packed::new(kernels, &pool, &weights.layers()[k]).unwrap());
            let cols = weights.layers()[0].spec().state_size();
            for lengths in [None, Some(lengths)] {
                let walk = Walk { steps, lengths, x: &x };
                let mut plans = [(); 2].map(|()| Plan::on_threads(&layers[0], batch, steps, 1).unwrap());
                for (plan, layer) in plans.iter_mut().zip(&layers) {
                    *plan = Plan::on_threads(layer, batch, steps, threads).unwrap();
                }
                let turns = plans.iter_mut().zip(&layers).map(|(plan, layer)| {
                    let mut y = vec![0.0; steps * batch * cols];
                    // SAFETY: as above.
                    unsafe { run(&pool, layer, plan, walk, &mut y[..], None) };
                    (y, plan.last_state(layer, steps, lengths))
                });
                let turns: Vec<_> = turns.collect();
                for apart in 0..=threads / 2 {
                    for plan in &mut plans {
                        plan.set_state(&layers[0], &vec![0.0; batch * cols], &vec![0.0; batch * hidden]);
                        plan.threads_apart = apart;
                    }
                    let mut y = vec![0.0; steps * batch * 2 * cols];
                    let [plan, other] = &mut plans;
                    // SAFETY: as above.
                    unsafe { run_both(&pool, [&layers[0], &layers[1]], [plan, other], walk, &mut y[..]) };
                    for (k, row) in y.chunks_exact(cols).enumerate() {
                        assert!(
                            *row == turns[k % 2].0[k / 2 * cols..][..cols],
                            "{threads} threads, {apart} apart, {k}"
                        );
                    }
                    for ((plan, layer), (_, want)) in plans.iter().zip(&layers).zip(&turns) {
                        let got = plan.last_state(layer, steps, lengths);
                        assert!(got.h == want.h && got.c == want.c, "{threads} threads, {apart} apart");
                        assert_eq!(plan.current, steps % 2);
                    }
                }
            }
        }
    }
}
