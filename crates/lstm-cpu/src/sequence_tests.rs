//! Threads: work too small to be shared of itself is shared here, in every cell, projected and with lengths, and gives
//! the same bits.

use lstm_core::{CellKind, Init, LstmConfig, Weights};

use crate::{
    Isa,
    layer::{Packed, Plan},
    pool::Pool,
    sequence::run,
};

/// A deterministic value in [-1, 1).
fn value(k: usize) -> f32 {
    ((k as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / 8_388_608.0 - 1.0
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let pools: Vec<_> = (1..=5).map(|threads| Pool::new(threads).unwrap()).collect();
    let (batch, steps, input, hidden) = (7, 5, 9, 70);
    for isa in Isa::available() {
        for (cell, proj) in [
            (CellKind::Fused, None),
            (CellKind::Fused, Some(33)),
            (CellKind::PeepholeDense, None),
            (CellKind::PeepholeDiagonal, None),
            (CellKind::PeepholeDiagonal, Some(65)),
        ] {
            let config = LstmConfig::new(input, hidden).cell(cell);
            let config = LstmConfig::bidirectional(proj.into_iter().fold(config, LstmConfig::proj_size));
            let weights = Weights::init(config, &Init::default(), 3).unwrap();
            for weights in weights.layers() {
                let layer = Packed::new(isa.kernels().unwrap(), weights).unwrap();
                let state = weights.spec().state_size();
                let x: Vec<f32> = (0..steps * batch * input).map(value).collect();
                let [h, c] = [state, hidden].map(|n| (0..batch * n).map(|k| value(k + 1)).collect::<Vec<_>>());
                for lengths in [None, Some(&[5, 5, 4, 2, 2, 1, 0][..])] {
                    let outputs = pools.iter().map(|pool| {
                        let mut plan = Plan::on_threads(&layer, batch, steps, pool.threads()).unwrap();
                        plan.set_state(&layer, &h, &c);
                        let mut y = vec![0.0; steps * batch * state];
                        run(pool, &layer, &mut plan, steps, lengths, &x, &mut y, None);
                        let state = [plan.h.as_slice(), plan.c.as_slice()].concat();
                        y.iter().chain(&state).map(|v| v.to_bits()).collect::<Vec<_>>()
                    });
                    let outputs: Vec<_> = outputs.collect();
                    for (k, other) in outputs.iter().enumerate() {
                        assert!(*other == outputs[0], "{isa}, {:?}, {lengths:?}: {} threads", weights.spec(), k + 1);
                    }
                }
            }
        }
    }
}
