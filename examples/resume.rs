//! Trains, saves on Ctrl-C, and goes on where it stopped when it is started again, with the bits of a run without a stop.
//!
//! `cargo run --release --example resume`

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use lstm::{
    Cpu, Error, Linear, Lstm, LstmConfig,
    ndarray::{Array3, s},
    train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

static STOP: AtomicBool = AtomicBool::new(false);

fn new_run() -> Result<Trainer<Cpu>, Error> {
    let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(1, 32).layers(2).dropout(0.1), 1)?;
    let config = TrainerConfig::new(OptimizerConfig::adamw(), Schedule::cosine(0.01, 400, 0.0)).seed(3);
    Trainer::new(lstm, Some(Linear::random(&Cpu::new(), 32, 1, 2)?), config)
}

/// Trains up to the given number of steps, or until somebody presses Ctrl-C.
fn train(trainer: &mut Trainer<Cpu>, steps: u64) -> Result<(), Error> {
    let wave = Array3::from_shape_fn((8, 41, 1), |(b, t, _)| ((b + t) as f32 * 0.4).sin());
    let (x, next) = (wave.slice(s![.., ..-1, ..]), wave.slice(s![.., 1.., ..]));
    while trainer.steps() < steps && !STOP.load(Relaxed) {
        trainer.step(x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, next))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ctrlc::set_handler(|| STOP.store(true, Relaxed))?;
    let path = std::env::temp_dir().join("lstm-resume.safetensors");
    // Without Ctrl-C, the run is stopped after step 250, and then resumed from its file.
    for steps in [250, 400] {
        let mut trainer = if path.exists() { Trainer::resume(&Cpu::new(), &path)?.0 } else { new_run()? };
        println!("starts after step {}", trainer.steps());
        train(&mut trainer, steps)?;
        trainer.save(&path)?; // replaces the file at once, so a crash here leaves the old one
        println!("saved after step {}", trainer.steps());
        if STOP.load(Relaxed) {
            println!("stopped; the same command goes on");
            return Ok(());
        }
    }
    let (resumed, mut whole) = (Trainer::resume(&Cpu::new(), &path)?.0, new_run()?);
    std::fs::remove_file(&path)?;
    train(&mut whole, 400)?;
    if !STOP.load(Relaxed) {
        assert_eq!(whole.lstm().weights(), resumed.lstm().weights());
        println!("the weights are those of a run that was not stopped, to the bit");
    }
    Ok(())
}
