//! The roofline model: measures the limits of the machine in the same run as the cases, and computes from them the
//! least possible time of each case.

mod loops;
pub mod phases;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Throughput and latency of the machine with a number of threads. Some JSON keys differ from the field names, so that
/// results of older versions can be read.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct MachineLimits {
    /// Number of threads that ran the loops at the same time.
    pub threads: usize,
    /// Instruction set of the loops that measured the limits.
    pub isa: String,
    /// Floating-point operations per second of all threads together, measured with fused multiply-adds on registers,
    /// which count as two each.
    #[serde(rename = "flops")]
    pub flops_per_s: f64,
    /// The same for multiply-adds of integers of magnitude up to 127, measured with the instruction that adds dot products
    /// of 8-bit integers; `None` if the loops have no such instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8_ops_per_s: Option<f64>,
    /// The same for dot products of 16-bit integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int16_ops_per_s: Option<f64>,
    /// Latency of a fused multiply-add in seconds.
    pub latency_s: f64,
    /// Read bandwidth of all threads together, for working sets of growing size.
    #[serde(rename = "ladder")]
    pub bandwidths: Vec<Bandwidth>,
}

/// Read bandwidth for one size of the working set.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Bandwidth {
    /// Size of the working set of all threads together, in bytes.
    pub bytes: f64,
    /// Bytes per second of all threads together.
    #[serde(rename = "rate")]
    pub bytes_per_s: f64,
}

/// Smallest working set of a thread in bytes, half of a small L1 cache.
const MIN_WORKING_SET: usize = 1 << 14;

/// Largest working set of a thread in bytes, more than most L3 caches.
pub const MAX_WORKING_SET: usize = 1 << 29;

/// Measures the limits with a number of threads. Working sets double in size up to `max_working_set` bytes per thread. Each
/// value is the best of some samples of 5 ms, because other load on the machine only makes samples slower.
///
/// # Errors
/// If a loop on registers can't be created.
pub fn measure_limits(threads: usize, samples: usize, max_working_set: usize) -> Result<MachineLimits> {
    let loops = loops::select_loops();
    let register_rate = |run: fn() -> f64| {
        let rate = total_rate(threads, samples, || Some(Box::new(run)))?;
        rate.context("loops on registers need no memory")
    };
    let (flops_per_s, dependent_ops_per_s) =
        (register_rate(loops.run_throughput_loop)?, register_rate(loops.run_latency_loop)?);
    let mut bandwidths = Vec::new();
    for size in std::iter::successors(Some(MIN_WORKING_SET), |size| size.checked_mul(2))
        .take_while(|&size| size <= max_working_set)
    {
        // Stop at the first size for which memory can't be allocated.
        let Some(bytes_per_s) = total_rate(threads, samples, || (loops.make_reader)(size))? else { break };
        bandwidths.push(Bandwidth { bytes: (size * threads) as f64, bytes_per_s });
    }
    Ok(MachineLimits {
        threads,
        isa: loops.name.to_owned(),
        flops_per_s,
        int8_ops_per_s: loops::select_int8_loop().map(register_rate).transpose()?,
        int16_ops_per_s: loops::select_int16_loop().map(register_rate).transpose()?,
        latency_s: threads as f64 / dependent_ops_per_s,
        bandwidths,
    })
}

/// Runs a loop on each thread and returns the work per second of all threads together, in the unit that the loops
/// return: the largest value of several samples. Each thread calls `make_loop` to create its loop. Returns `None` if
/// `make_loop` returns `None` in any thread.
fn total_rate(
    threads: usize,
    samples: usize,
    make_loop: impl Fn() -> Option<loops::ReadLoop> + Sync,
) -> Result<Option<f64>> {
    const SAMPLE_DURATION: Duration = Duration::from_millis(5);
    let (barrier, any_failed) = (Barrier::new(threads), AtomicBool::new(false));
    let run_thread = || {
        // Created by the thread that uses it, so that its memory is local to the thread's NUMA node.
        let new_loop = make_loop();
        any_failed.fetch_or(new_loop.is_none(), Ordering::Relaxed);
        barrier.wait();
        let mut run_loop = new_loop.filter(|_| !any_failed.load(Ordering::Relaxed))?;
        run_loop();
        let run_sample = |_| {
            barrier.wait();
            let (start, mut work_done) = (Instant::now(), 0.0);
            while start.elapsed() < SAMPLE_DURATION {
                work_done += run_loop();
            }
            (work_done, start, Instant::now())
        };
        Some((0..samples).map(run_sample).collect::<Vec<_>>())
    };
    let samples_per_thread: Option<Vec<Vec<_>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run_thread)).collect();
        handles.into_iter().map(|handle| handle.join().expect("loops do not panic")).collect()
    });
    let Some(samples_per_thread) = samples_per_thread else { return Ok(None) };
    // From the first start to the last end, so that threads that share a core do not count as two cores.
    let rates = (0..samples).filter_map(|k| {
        let thread_samples = samples_per_thread.iter().map(|samples: &Vec<(f64, Instant, Instant)>| samples[k]);
        let total_work: f64 = thread_samples.clone().map(|(work_done, ..)| work_done).sum();
        let (start, end) = (thread_samples.clone().map(|t| t.1).min()?, thread_samples.map(|t| t.2).max()?);
        Some(total_work / (end - start).as_secs_f64())
    });
    Ok(Some(rates.fold(0.0, f64::max)))
}

impl MachineLimits {
    /// Combines two measurements of the same machine. Each limit of the result is the better of the two.
    pub fn merge_best(mut self, other: &MachineLimits) -> MachineLimits {
        self.flops_per_s = self.flops_per_s.max(other.flops_per_s);
        self.int8_ops_per_s = max_option(self.int8_ops_per_s, other.int8_ops_per_s);
        self.int16_ops_per_s = max_option(self.int16_ops_per_s, other.int16_ops_per_s);
        self.latency_s = self.latency_s.min(other.latency_s);
        for (mine, theirs) in self.bandwidths.iter_mut().zip(&other.bandwidths) {
            mine.bytes_per_s = mine.bytes_per_s.max(theirs.bytes_per_s);
        }
        self
    }

    /// Read bandwidth in bytes per second for a working set of `bytes`, interpolated between measured sizes on
    /// logarithmic scales. If a larger working set was measured with a higher bandwidth, that bandwidth is used for the
    /// smaller size too.
    pub fn bandwidth(&self, bytes: f64) -> f64 {
        let max_bandwidth_from =
            |k: usize| self.bandwidths[k..].iter().map(|point| point.bytes_per_s).fold(0.0, f64::max);
        let Some(last_index) = self.bandwidths.len().checked_sub(1) else { return f64::INFINITY };
        let upper_index = self.bandwidths.partition_point(|point| point.bytes <= bytes);
        if upper_index == 0 || upper_index > last_index {
            return max_bandwidth_from(upper_index.min(last_index));
        }
        let (log_lower_bytes, log_upper_bytes) =
            (self.bandwidths[upper_index - 1].bytes.ln(), self.bandwidths[upper_index].bytes.ln());
        let fraction = (bytes.ln() - log_lower_bytes) / (log_upper_bytes - log_lower_bytes);
        max_bandwidth_from(upper_index - 1).powf(1.0 - fraction) * max_bandwidth_from(upper_index).powf(fraction)
    }
}

/// The larger of two values that may be missing.
fn max_option(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_interpolated_between_sizes() {
        let bandwidths =
            [(1e3, 90.0), (1e4, 100.0), (1e6, 1.0)].map(|(bytes, bytes_per_s)| Bandwidth { bytes, bytes_per_s });
        let limits = MachineLimits {
            threads: 1,
            isa: String::new(),
            flops_per_s: 1.0,
            int8_ops_per_s: None,
            int16_ops_per_s: None,
            latency_s: 1.0,
            bandwidths: bandwidths.to_vec(),
        };
        for (bytes, want) in [(1.0, 100.0), (1e3, 100.0), (1e4, 100.0), (1e5, 10.0), (1e6, 1.0), (1e9, 1.0)] {
            assert!((limits.bandwidth(bytes) - want).abs() < 1e-9, "{bytes}: {}", limits.bandwidth(bytes));
        }
        assert_eq!(MachineLimits { bandwidths: Vec::new(), ..limits }.bandwidth(5.0), f64::INFINITY);
    }

    #[test]
    fn rate_is_none_if_a_loop_is_missing() {
        assert_eq!(total_rate(2, 1, || None).unwrap(), None);
        // The other thread must not wait at the barrier forever.
        let is_first = AtomicBool::new(true);
        let make_loop_once = || is_first.swap(false, Ordering::Relaxed).then(|| Box::new(|| 1.0) as loops::ReadLoop);
        assert_eq!(total_rate(2, 1, make_loop_once).unwrap(), None);
    }

    #[test]
    fn measured_limits_are_plausible() {
        let limits = measure_limits(2, 1, 1 << 20).unwrap();
        assert!(limits.flops_per_s > 1e6 && limits.flops_per_s < 1e15, "{limits:?}");
        assert!(limits.latency_s > 1e-11 && limits.latency_s < 1e-5, "{limits:?}");
        assert_eq!(limits.bandwidths.len(), 7);
        assert!(limits.bandwidths.iter().all(|point| (1e6..1e14).contains(&point.bytes_per_s)), "{limits:?}");
    }
}
