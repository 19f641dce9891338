//! What emulating `fma` costs on the adapter at hand: the same passes with its own `fma`, exact or not, and with both
//! emulations, turn by turn; medians, and how often the first's.
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
        Some(rounds) => rounds.parse::<usize>().ok().filter(|&n| n > 0).ok_or("ROUNDS: a number above 0")?,
        None => 9,
    };
    let default = Wgpu::builder().allow_inexact(true).blocking()?;
    println!("{default:?}");
    // All in the form of shaders that is taken here anyway.
    let no_contraction = default.probe().tried.last().is_some_and(|(mode, _)| mode.no_contraction);
    let mut opened = Vec::new();
    for fma in [Fma::Native, Fma::F64, Fma::Integer] {
        let mode = Mode { fma, no_contraction };
        match Wgpu::builder().mode(mode).allow_inexact(true).blocking() {
            // Its name tells the mode that it got.
            Ok(wgpu) if format!("{wgpu:?}").ends_with(&format!("{mode})")) => opened.push((mode, wgpu)),
            Ok(wgpu) => println!("{mode}: not run: {}", wgpu.probe()),
            Err(error) => println!("{mode}: not run: {error}"),
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
        // The first round compiles kernels.
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
            let (least, most) = (times[0], times[times.len() - 1]);
            let exact = if wgpu.arithmetic().is_exact() { "exact" } else { "not exact" };
            println!("{name}, {mode}, {exact}: {median:.1?} ({least:.1?} to {most:.1?}), {ratio:.2} times the first's");
        }
    }
    Ok(())
}
