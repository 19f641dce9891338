//! The other end of the conductor: a process that prepares cases and times turns of them, as lines on its standard input
//! ask it to. `peers.py` speaks the same lines.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{case::Case, job::Run};

/// What a line asks for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Prepares a case, runs it once, and writes [`Run::output`] to a file as little-endian f32.
    Prepare {
        /// The case.
        case: Case,
        /// Where its `weights.safetensors` (PyTorch's names, and the input `x`) and `model.onnx` are, if it has them.
        dir: PathBuf,
        /// Where the output goes.
        output: PathBuf,
    },
    /// Times runs of the prepared case for about so many seconds.
    Run {
        /// At least one run is made.
        seconds: f64,
    },
}

/// The line that answers it. Before any request a worker says that it is ready, or that it cannot run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What it is: a library and its version, a device.
    Ready(String),
    /// The case is prepared and the output written.
    Prepared,
    /// Why that can't be done.
    Cannot(String),
    /// How long runs took.
    Timed(Turn),
}

/// The runs of one turn.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Turn {
    /// The median of one run's seconds.
    pub median_s: f64,
    /// The fastest.
    pub min_s: f64,
    /// How many were timed.
    pub runs: usize,
}

/// Answers requests until standard input ends. `prepare` brings a case to what is timed.
///
/// # Errors
/// A line that is no request, or a pipe that broke; what can't be run is an answer, not an error.
pub fn serve(ready: Result<String>, mut prepare: impl FnMut(&Case, &Path) -> Result<Box<dyn Run>>) -> Result<()> {
    let cannot =
        |error: anyhow::Error| Reply::Cannot(format!("{error:#}").lines().next().unwrap_or_default().to_owned());
    let failed = ready.is_err();
    answer(&ready.map_or_else(cannot, Reply::Ready))?;
    if failed {
        return Ok(());
    }
    let mut job: Option<Box<dyn Run>> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let request = serde_json::from_str(&line).with_context(|| format!("not a request: {line}"))?;
        let reply = match request {
            Request::Prepare { case, dir, output } => {
                job = None;
                let prepared = prepare(&case, &dir).and_then(|mut run| {
                    let values = run.output()?;
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    std::fs::write(&output, bytes).with_context(|| output.display().to_string())?;
                    Ok(run)
                });
                prepared.map(|run| job = Some(run)).map_or_else(cannot, |()| Reply::Prepared)
            }
            Request::Run { seconds } => match &mut job {
                Some(run) => time(run.as_mut(), seconds).map_or_else(cannot, Reply::Timed),
                None => Reply::Cannot("no case is prepared".to_owned()),
            },
        };
        answer(&reply)?;
    }
    Ok(())
}

fn answer(reply: &Reply) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(reply)?)?;
    Ok(out.flush()?)
}

/// What is shorter is timed several runs at once, since reading a clock takes 20 to 50 ns.
const SAMPLE: f64 = 1e-4;

/// Times runs for about `seconds`, after a tenth of that to warm up.
///
/// # Errors
/// A time that is none, or what the run refuses.
pub fn time(run: &mut dyn Run, seconds: f64) -> Result<Turn> {
    ensure!((0.0..3600.0).contains(&seconds), "seconds: expected 0 to 3600, got {seconds}");
    let (start, mut calls) = (Instant::now(), 0u32);
    while calls == 0 || start.elapsed().as_secs_f64() < seconds / 10.0 {
        run.run()?;
        calls += 1;
    }
    let each = start.elapsed().as_secs_f64() / f64::from(calls);
    let together = (SAMPLE / each).ceil().clamp(1.0, 1e6) as u32;
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.is_empty() || start.elapsed() < Duration::from_secs_f64(seconds) {
        let one = Instant::now();
        for _ in 0..together {
            run.run()?;
        }
        times.push(one.elapsed().as_secs_f64() / f64::from(together));
    }
    times.sort_by(f64::total_cmp);
    Ok(Turn { median_s: times[times.len() / 2], min_s: times[0], runs: times.len() * together as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that takes a known time.
    struct Sleep(Duration);

    impl Run for Sleep {
        fn run(&mut self) -> Result<()> {
            std::thread::sleep(self.0);
            Ok(())
        }

        fn output(&mut self) -> Result<Vec<f32>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_turn_times_one_run_however_many_are_timed_together() {
        for (sleep, seconds) in [(Duration::from_millis(3), 0.0), (Duration::from_micros(20), 0.02)] {
            let turn = time(&mut Sleep(sleep), seconds).unwrap();
            assert!(turn.min_s >= sleep.as_secs_f64() && turn.min_s <= turn.median_s, "{turn:?}");
            assert!(turn.median_s < 0.1, "{turn:?}");
        }
        assert!(time(&mut Sleep(Duration::ZERO), f64::NAN).is_err());
    }
}
