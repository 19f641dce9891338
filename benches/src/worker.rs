//! A worker process: prepares and times cases. It reads one JSON [`Request`] per line from standard input and writes one
//! JSON [`Reply`] per line to standard output. `peers.py` implements the same protocol.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{case::Case, job::PreparedCase};

/// A request to a worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Prepare a case, run it once, and write [`PreparedCase::output`] to a file as little-endian f32.
    Prepare {
        /// The case to prepare.
        case: Case,
        /// Directory with the case's `weights.safetensors` (PyTorch's tensor names, and the input `x`) and `model.onnx`.
        /// The weights or the ONNX model are missing if PyTorch or ONNX does not support the cell.
        dir: PathBuf,
        /// File to write the output to.
        output: PathBuf,
    },
    /// Time runs of the prepared case.
    Run {
        /// Approximate duration in seconds. At least one run is timed.
        seconds: f64,
    },
}

/// A reply of a worker. Before the first request, a worker sends `Ready` or `Failed`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The worker is ready. The text names the library and its version, or describes the device.
    Ready(String),
    /// The case is prepared, and its output is written.
    Prepared,
    /// The request failed, or the worker can't run at all. The text is the reason.
    #[serde(rename = "cannot")]
    Failed(String),
    /// Times of the prepared case.
    Timed(RunTimes),
}

/// Times of the runs in one round.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct RunTimes {
    /// Median time of a run in seconds.
    pub median_s: f64,
    /// Time of the fastest run in seconds.
    pub min_s: f64,
    /// Number of timed runs.
    pub runs: usize,
}

/// Serves requests until the end of standard input. `description` is the text for [`Reply::Ready`], or an error for
/// [`Reply::Failed`]. `prepare` prepares a case, given the directory with its files.
///
/// # Errors
/// If a line is not a valid request or a pipe is closed. A case that can't be run is a reply, not an error.
pub fn serve(
    description: Result<String>,
    mut prepare: impl FnMut(&Case, &Path) -> Result<Box<dyn PreparedCase>>,
) -> Result<()> {
    let failed_reply =
        |error: anyhow::Error| Reply::Failed(format!("{error:#}").lines().next().unwrap_or_default().to_owned());
    let is_failed = description.is_err();
    send(&description.map_or_else(failed_reply, Reply::Ready))?;
    if is_failed {
        return Ok(());
    }
    let mut prepared_case: Option<Box<dyn PreparedCase>> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let request = serde_json::from_str(&line).with_context(|| format!("expected a request, got: {line}"))?;
        let reply = match request {
            Request::Prepare { case, dir, output } => {
                prepared_case = None;
                let prepared_run = prepare(&case, &dir).and_then(|mut run| {
                    let values = run.output()?;
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    std::fs::write(&output, bytes).with_context(|| output.display().to_string())?;
                    Ok(run)
                });
                prepared_run.map(|run| prepared_case = Some(run)).map_or_else(failed_reply, |()| Reply::Prepared)
            }
            Request::Run { seconds } => match &mut prepared_case {
                Some(run) => time_runs(run.as_mut(), seconds).map_or_else(failed_reply, Reply::Timed),
                None => Reply::Failed("no case is prepared".to_owned()),
            },
        };
        send(&reply)?;
    }
    Ok(())
}

/// Writes a reply to standard output.
fn send(reply: &Reply) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(reply)?)?;
    Ok(stdout.flush()?)
}

/// Least duration of a sample in seconds. Several short runs are timed as one sample, because reading the clock takes 20 to
/// 50 ns.
const MIN_SAMPLE_SECONDS: f64 = 1e-4;

/// Runs a case repeatedly for about `seconds` and returns the times, after a warm-up of a tenth of that duration.
///
/// # Errors
/// If `seconds` is not from 0 to 3600, or if a run fails.
pub fn time_runs(run: &mut dyn PreparedCase, seconds: f64) -> Result<RunTimes> {
    ensure!((0.0..3600.0).contains(&seconds), "seconds: expected 0 to 3600, got {seconds}");
    let (start, mut warm_up_runs) = (Instant::now(), 0u32);
    while warm_up_runs == 0 || start.elapsed().as_secs_f64() < seconds / 10.0 {
        run.run()?;
        warm_up_runs += 1;
    }
    let seconds_per_run = start.elapsed().as_secs_f64() / f64::from(warm_up_runs);
    let runs_per_sample = (MIN_SAMPLE_SECONDS / seconds_per_run).ceil().clamp(1.0, 1e6) as u32;
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.is_empty() || start.elapsed() < Duration::from_secs_f64(seconds) {
        let sample_start = Instant::now();
        for _ in 0..runs_per_sample {
            run.run()?;
        }
        times.push(sample_start.elapsed().as_secs_f64() / f64::from(runs_per_sample));
    }
    times.sort_by(f64::total_cmp);
    Ok(RunTimes { median_s: times[times.len() / 2], min_s: times[0], runs: times.len() * runs_per_sample as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case for tests whose runs only sleep for the given time.
    struct SleepingCase(Duration);

    impl PreparedCase for SleepingCase {
        fn run(&mut self) -> Result<()> {
            std::thread::sleep(self.0);
            Ok(())
        }

        fn output(&mut self) -> Result<Vec<f32>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn times_are_per_run_for_any_sample_size() {
        for (sleep, seconds) in [(Duration::from_millis(3), 0.0), (Duration::from_micros(20), 0.02)] {
            let times = time_runs(&mut SleepingCase(sleep), seconds).unwrap();
            assert!(times.min_s >= sleep.as_secs_f64() && times.min_s <= times.median_s, "{times:?}");
            assert!(times.median_s < 0.1, "{times:?}");
        }
        assert!(time_runs(&mut SleepingCase(Duration::ZERO), f64::NAN).is_err());
    }
}
