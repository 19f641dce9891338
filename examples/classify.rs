//! Classifies sequences of different lengths by their last hidden state: which of three periods does a wave have?
//!
//! `cargo run --release --example classify`

use std::f32::consts::TAU;

use lstm::{
    Cpu, Error, Input, Linear, Lstm, LstmConfig,
    ndarray::{Array3, ArrayView1},
    train::{Clip, LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, cross_entropy},
};

/// Waves with phases that differ, 12 to 24 time steps long, and the number of each wave's period.
fn waves(count: usize, seed: usize) -> (Array3<f32>, Vec<usize>, Vec<usize>) {
    let random = |k: usize| ((k + seed) as f64 * 0.618_033_988_7).fract() as f32;
    let classes: Vec<usize> = (0..count).map(|b| b % 3).collect();
    let lengths: Vec<usize> = (0..count).map(|b| 12 + (13.0 * random(b)) as usize).collect();
    let x = Array3::from_shape_fn((count, 24, 1), |(b, t, _)| {
        let wave = (TAU * (t as f32 / [4.0, 6.0, 9.0][classes[b]] + random(7 * b + 3))).sin();
        // What is beyond the length is never read.
        if t < lengths[b] { wave } else { f32::NAN }
    });
    (x, lengths, classes)
}

fn main() -> Result<(), Error> {
    let cpu = Cpu::new();
    let lstm = Lstm::random(&cpu, LstmConfig::new(1, 16).bidirectional(), 1)?;
    let head = Linear::random(&cpu, 2 * 16, 3, 2)?;
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)).clip(Clip::Norm(1.0));
    let mut trainer = Trainer::new(lstm, Some(head), config)?;

    let (x, lengths, classes) = waves(96, 0);
    for _ in 0..100 {
        let input = Input::from(&x).lengths(&lengths);
        let report = trainer.step(input, LossInput::LastState, |out, _| cross_entropy(out.last()?, &classes))?;
        if report.step % 25 == 0 {
            println!("step {}: loss {:.4}", report.step, report.loss);
        }
    }

    // Other waves than those of the training.
    let (x, lengths, classes) = waves(300, 10_000);
    let (lstm, head) = trainer.into_parts();
    let (_, state) = lstm.forward(Input::from(&x).lengths(&lengths))?;
    let scores = head.expect("the trainer was given a head").forward(&state.last(lstm.config())?)?;
    let best = |row: ArrayView1<'_, f32>| (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let right = scores.outer_iter().zip(&classes).filter(|(row, class)| best(*row) == Some(**class)).count();
    println!("{right} of {} waves are classified correctly", classes.len());
    assert!(right >= 285, "expected 95 %");
    Ok(())
}
