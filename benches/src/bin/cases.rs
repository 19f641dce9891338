//! Times the cases on the CPU and prints one JSON line each, in the format of `peers.py`, so that the two can be joined:
//! `cargo run --release -p lstm-benches -- --threads 1`.

use std::time::{Duration, Instant};

use clap::Parser;
use lstm_benches::{Kind, cases};
use lstm_cpu::Cpu;

/// Times the cases on the CPU.
#[derive(Parser)]
struct Args {
    /// Threads at most.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Seconds to spend on each case.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Steps of a stream that are timed together, since a clock read takes as long as some of them.
const STEPS: u32 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let cpu = Cpu::builder().threads(args.threads).build()?;
    for case in cases().into_iter().filter(|case| case.name.contains(&args.only)) {
        let mut job = case.prepare(&cpu)?;
        let repeat = if case.kind == Kind::Step { STEPS } else { 1 };
        let (mut times, start) = (Vec::new(), Instant::now());
        for _ in 0..3 {
            job.run()?;
        }
        while start.elapsed() < Duration::try_from_secs_f64(args.seconds)? || times.len() < 5 {
            let one = Instant::now();
            for _ in 0..repeat {
                std::hint::black_box(job.run()?);
            }
            times.push(one.elapsed().as_secs_f64() / f64::from(repeat));
        }
        times.sort_by(f64::total_cmp);
        let line = serde_json::json!({
            "case": case.name, "peer": "lstm-cpu", "threads": args.threads,
            "median_s": times[times.len() / 2], "runs": times.len(),
        });
        println!("{line}");
    }
    Ok(())
}
