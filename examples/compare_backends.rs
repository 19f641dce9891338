//! Runs and trains one model on every backend that works here, and compares the bits and the time.
//!
//! `cargo run --release --example compare_backends --features wgpu`

use std::time::Instant;

use lstm::{
    BACKENDS, Device, Error, Linear, Lstm, LstmConfig,
    arithmetic::Digest,
    ndarray::Array3,
    train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

/// Trains for ten steps on the device. Returns the digest of the trained model's outputs.
fn train(device: &Device) -> Result<Digest, Error> {
    let lstm = Lstm::random(device, LstmConfig::new(3, 32).layers(2).bidirectional(), 1)?;
    let head = Linear::random(device, 64, 2, 2)?;
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01));
    let mut trainer = Trainer::new(lstm, Some(head), config)?;
    let x = Array3::from_shape_fn((8, 30, 3), |(b, t, k)| (b as f32 + 0.1 * t as f32 + k as f32).sin());
    let target = Array3::from_shape_fn((8, 30, 2), |(b, t, k)| (b as f32 - 0.2 * t as f32 + k as f32).cos());
    for _ in 0..10 {
        trainer.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))?;
    }
    Ok(Digest::of(&trainer.predict(&x)?.0))
}

fn main() -> Result<(), Error> {
    let mut digests = Vec::new();
    for backend in BACKENDS.iter().filter(|backend| backend.is_default) {
        let device = match Device::open(backend.name) {
            Ok(device) => device,
            Err(error) => {
                println!("{:<5} does not run here: {error}", backend.name);
                continue;
            }
        };
        train(&device)?; // the first run compiles the kernels of a GPU
        let start = Instant::now();
        let digest = train(&device)?;
        println!("{:<5} {digest}  {:.3} s", backend.name, start.elapsed().as_secs_f64());
        digests.push(digest);
    }
    assert!(!digests.is_empty(), "no backend runs here");
    assert!(digests.iter().all(|digest| *digest == digests[0]), "the backends differ");
    match digests.len() {
        1 => println!("one backend ran: nothing to compare it with"),
        count => println!("{count} backends ran, with the same bits"),
    }
    Ok(())
}
