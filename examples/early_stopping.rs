//! Forecasts with a loss of its own, the bound that 9 of 10 values stay below, and stops when new data gain nothing more.
//!
//! `cargo run --release --example early_stopping`

use lstm::{
    Cpu, Error, Linear, Lstm, LstmConfig,
    ndarray::{Array3, ArrayView3, Zip, s},
    train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

/// The pinball loss, which is least at the 90 % quantile, and its gradient.
fn pinball(y: ArrayView3<'_, f32>, target: ArrayView3<'_, f32>) -> (f64, Array3<f32>) {
    let count = y.len() as f32;
    let errors = y.iter().zip(target).map(|(y, target)| f64::from(target - y));
    let loss = errors.map(|error| if error > 0.0 { 0.9 * error } else { -0.1 * error }).sum::<f64>();
    let gradient = |&y: &f32, &target: &f32| if target > y { -0.9 / count } else { 0.1 / count };
    (loss / f64::from(count), Zip::from(y).and(target).map_collect(gradient))
}

/// Noisy waves: the inputs, and the value after each of them.
fn waves(count: usize, seed: usize) -> (Array3<f32>, Array3<f32>) {
    let noise = |k: usize| (k as f64 * 0.618_033_988_7).fract() as f32;
    let wave = Array3::from_shape_fn((count, 41, 1), |(b, t, _)| {
        (0.4 * t as f32 + 6.3 * noise(b + seed)).sin() + noise((b + seed) * 97 + t * t * 13)
    });
    (wave.slice(s![.., ..-1, ..]).to_owned(), wave.slice(s![.., 1.., ..]).to_owned())
}

fn main() -> Result<(), Error> {
    let cpu = Cpu::new();
    let lstm = Lstm::random(&cpu, LstmConfig::new(1, 32), 1)?;
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01));
    let mut trainer = Trainer::new(lstm, Some(Linear::random(&cpu, 32, 1, 2)?), config)?;
    let ((x, target), (validation_x, validation_target)) = (waves(8, 0), waves(32, 1000));

    // The trainer with the lowest loss on the validation data, and that loss.
    let mut best = (trainer.clone(), f64::INFINITY);
    while trainer.steps() < best.0.steps() + 50 {
        trainer.step(&x, LossInput::Outputs, |out, _| Ok::<_, Error>(pinball(out.y()?, target.view())))?;
        if trainer.steps() % 5 == 0 {
            let loss = pinball(trainer.predict(&validation_x)?.0.view(), validation_target.view()).0;
            if loss < best.1 {
                best = (trainer.clone(), loss);
            }
        }
    }
    let last = pinball(trainer.predict(&validation_x)?.0.view(), validation_target.view()).0;
    println!("step {}: loss {:.4}, the best", best.0.steps(), best.1);
    println!("step {}: loss {last:.4}, stopped", trainer.steps());

    let (x, target) = waves(100, 5000);
    let forecast = best.0.predict(&x)?.0;
    let below = forecast.iter().zip(&target).filter(|(bound, value)| value <= bound).count();
    println!("{:.1} % of the values of new waves are below the forecast", 100.0 * below as f64 / target.len() as f64);
    assert!(best.1 < last && (3400..=3800).contains(&below), "expected about 90 % of 4000, got {below}");
    Ok(())
}
