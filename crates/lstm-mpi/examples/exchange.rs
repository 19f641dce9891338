//! Measures what the exchange between ranks costs: time, bytes and calls for each training step, for two shapes of the
//! benchmarks.
//!
//! `mpirun -n 2 exchange [STEPS]`. Each rank trains on its own part of a batch with one thread.

use std::{cell::Cell, process::ExitCode, time::Instant};

use lstm_cpu::{
    Cpu, Error, Lstm, LstmConfig,
    ndarray::Array3,
    train::{Collective, LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};
use lstm_mpi::Mpi;

fn main() -> ExitCode {
    lstm_mpi::run(measure)
}

/// Benchmark case, sequences of each rank, time steps, features, units.
const SHAPES: [(&str, usize, usize, usize, usize); 2] =
    [("train-h256", 32, 50, 128, 256), ("train-h512", 32, 50, 256, 512)];

/// Counts what goes through a collective.
struct Counted<'a> {
    mpi: &'a Mpi,
    seconds: Cell<f64>,
    calls: Cell<usize>,
    /// Sent to other ranks by this rank.
    bytes: Cell<usize>,
}

impl Counted<'_> {
    fn count(&self, bytes: usize, call: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        // A barrier, so that the time of waiting for a slower rank does not count.
        self.mpi.all_gather(&[0], &mut vec![0; self.size()], &vec![1; self.size()])?;
        let start = Instant::now();
        let result = call();
        self.seconds.set(self.seconds.get() + start.elapsed().as_secs_f64());
        self.calls.set(self.calls.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        result
    }
}

impl Collective for Counted<'_> {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn size(&self) -> usize {
        self.mpi.size()
    }

    fn all_to_all(
        &self,
        sent: &[u8],
        sent_counts: &[usize],
        received: &mut [u8],
        counts: &[usize],
    ) -> Result<(), Error> {
        let bytes = sent.len() - sent_counts[self.rank()];
        self.count(bytes, || self.mpi.all_to_all(sent, sent_counts, received, counts))
    }

    fn all_gather(&self, sent: &[u8], received: &mut [u8], counts: &[usize]) -> Result<(), Error> {
        self.count(sent.len() * (self.size() - 1), || self.mpi.all_gather(sent, received, counts))
    }
}

fn measure(mpi: &Mpi) -> Result<(), Error> {
    let steps = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10usize);
    for (name, batch, time_steps, features, hidden) in SHAPES {
        let ranks = mpi.size();
        let cpu = Cpu::builder().threads(1).build()?;
        let lstm = Lstm::random(&cpu, LstmConfig::new(features, hidden), 1)?;
        let config = TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(0.01)).shards(ranks);
        let mut trainer = Trainer::new(lstm, None, config)?;
        let x = Array3::from_shape_fn((batch * ranks, time_steps, features), |(b, t, f)| {
            ((b + t * 3 + f) % 17) as f32 / 17.0 - 0.5
        });
        let counted = Counted { mpi, seconds: Cell::new(0.0), calls: Cell::new(0), bytes: Cell::new(0) };
        let mut step = || {
            counted.seconds.set(0.0);
            counted.calls.set(0);
            counted.bytes.set(0);
            let start = Instant::now();
            let scale = 1.0 / (batch * ranks * time_steps * hidden) as f32;
            trainer.step_on(&counted, &x, LossInput::Outputs, |out, _| {
                Ok::<_, Error>((0.0, out.y()?.mapv(|y| y * scale)))
            })?;
            Ok::<_, Error>((start.elapsed().as_secs_f64() * 1e3, counted.seconds.get() * 1e3))
        };
        step()?;
        let mut times = (0..steps).map(|_| step()).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (whole, _) = times[steps / 2];
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (_, exchange) = times[steps / 2];
        if mpi.is_first() {
            println!(
                "{name}, {ranks} ranks: step {whole:.2} ms, of which exchange {exchange:.2} ms; {} calls, {} bytes to others",
                counted.calls.get(),
                counted.bytes.get()
            );
        }
    }
    Ok(())
}
