//! Measures what emulating `fma` costs on an adapter: runs the same forward passes with the adapter's own `fma`, exact or
//! not, and with both emulations, in alternation. Prints median times and their ratios to the first mode.
//!
//! ```sh
//! cargo run --release -p lstm-wgpu --example modes -- [ROUNDS]
//! ```

use std::{
    error::Error,
    time::{Duration, Instant},
};

use lstm_wgpu::{Fma, Lstm, LstmConfig, Mode, Ops, Wgpu, ndarray::Array3};

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => {
            rounds.parse::<usize>().ok().filter(|&n| n > 0).ok_or("invalid ROUNDS: expected a positive integer")?
        }
        None => 9,
    };
    let default = Wgpu::builder().allow_inexact(true).build()?;
    println!("{default:?}");
    // All modes pass their shaders to the driver in the form that the default mode uses.
    let no_contraction = default.probe().attempts.last().is_some_and(|(mode, _)| mode.no_contraction);
    let mut opened = Vec::new();
    for fma in [Fma::Native, Fma::EmulatedInF64, Fma::EmulatedInIntegers] {
        let mode = Mode { fma, no_contraction };
        match Wgpu::builder().mode(mode).allow_inexact(true).build() {
            // The debug text ends with the mode in use. If the requested one does not compile, it is another one.
            Ok(wgpu) if format!("{wgpu:?}").ends_with(&format!("{mode})")) => opened.push((mode, wgpu)),
            Ok(wgpu) => println!("{mode}: skipped: {}", wgpu.probe()),
            Err(error) => println!("{mode}: skipped: {error}"),
        }
    }
    let cases =
        [("vad-h128", 1, 64, 128, 100), ("single-h512", 1, 256, 512, 100), ("batch-h512, 10 steps", 32, 256, 512, 10)];
    for (name, batch, input, hidden, steps) in cases {
        let value = |(b, t, k)| ((b * 5 + t * 7 + k * 3) % 17) as f32 / 8.0 - 1.0;
        let x = Array3::from_shape_fn((batch, steps, input), value);
        let models = opened
            .iter()
            .map(|(_, wgpu)| Lstm::random(wgpu, LstmConfig::new(input, hidden), 42))
            .collect::<Result<Vec<_>, _>>()?;
        let mut times = vec![Vec::new(); models.len()];
        // The first round is a warm-up that compiles the kernels.
        for round in 0..=rounds {
            for (model, times) in models.iter().zip(&mut times) {
                let start = Instant::now();
                model.forward(&x)?;
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
        let mut first: Option<Duration> = None;
        for ((mode, wgpu), times) in opened.iter().zip(&mut times) {
            times.sort();
            let median = times[times.len() / 2];
            let ratio = median.as_secs_f64() / first.get_or_insert(median).as_secs_f64();
            let (min, max) = (times[0], times[times.len() - 1]);
            let exact = if wgpu.arithmetic().is_exact() { "exact" } else { "not exact" };
            println!("{name}, {mode}, {exact}: median {median:.1?} ({min:.1?} to {max:.1?}), ratio {ratio:.2}");
        }
    }
    Ok(())
}
