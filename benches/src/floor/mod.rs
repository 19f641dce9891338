//! What the machine can do, measured in the same run as the cases: multiply-adds, and loads from a ladder of sizes.

mod loops;
pub mod work;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What some threads together can do.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Floor {
    /// Threads that ran the loops at the same time.
    pub threads: usize,
    /// The instruction set of the loops.
    pub isa: String,
    /// Fused multiply-adds on registers, two flops each, a second.
    pub flops: f64,
    /// Seconds that one fused multiply-add waits for another.
    pub latency_s: f64,
    /// Bytes read a second, by the bytes that are walked again and again, all threads' together; ascending.
    pub ladder: Vec<Step>,
}

/// One size of the ladder.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Step {
    /// Bytes that are walked back and forth, by all threads together.
    pub bytes: f64,
    /// Bytes a second.
    pub rate: f64,
}

/// The smallest size for each thread: a third of the smallest L1.
const SMALLEST: usize = 1 << 14;

/// A largest size for each thread that is more than most L3.
pub const LARGEST: usize = 1 << 29;

/// Measures it with so many threads at the same time, from sizes that double up to `largest` bytes for each. Whatever else
/// runs on the machine makes it less, so the best of some samples of 5 ms counts.
///
/// # Errors
/// A thread that can't be started.
pub fn measure(threads: usize, samples: usize, largest: usize) -> Result<Floor> {
    let loops = loops::pick();
    let on_registers = |run: fn() -> f64| {
        let rate = rate(threads, samples, || Some(Box::new(run)))?;
        rate.context("loops on registers need no memory")
    };
    let (flops, links) = (on_registers(loops.peak)?, on_registers(loops.chain)?);
    let mut ladder = Vec::new();
    for size in std::iter::successors(Some(SMALLEST), |size| size.checked_mul(2)).take_while(|&size| size <= largest) {
        // Where there is not the memory, the ladder ends.
        let Some(rate) = rate(threads, samples, || (loops.reader)(size))? else { break };
        ladder.push(Step { bytes: (size * threads) as f64, rate });
    }
    Ok(Floor { threads, isa: loops.name.to_owned(), flops, latency_s: threads as f64 / links, ladder })
}

/// The best of some samples of what all threads together do in a second; `None` if a loop could not be made.
fn rate(threads: usize, samples: usize, make: impl Fn() -> Option<loops::Reader> + Sync) -> Result<Option<f64>> {
    const SAMPLE: Duration = Duration::from_millis(5);
    let (barrier, failed) = (Barrier::new(threads), AtomicBool::new(false));
    let one = || {
        // Made by the thread that uses it: its memory is near.
        let made = make();
        failed.fetch_or(made.is_none(), Ordering::Relaxed);
        barrier.wait();
        let mut work = made.filter(|_| !failed.load(Ordering::Relaxed))?;
        work();
        let sample = |_| {
            barrier.wait();
            let (start, mut done) = (Instant::now(), 0.0);
            while start.elapsed() < SAMPLE {
                done += work();
            }
            (done, start, Instant::now())
        };
        Some((0..samples).map(sample).collect::<Vec<_>>())
    };
    let turns: Option<Vec<Vec<_>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        handles.into_iter().map(|handle| handle.join().expect("loops do not panic")).collect()
    });
    let Some(turns) = turns else { return Ok(None) };
    // From the first start to the last end: cores that take turns are not two.
    let together = (0..samples).filter_map(|k| {
        let turns = turns.iter().map(|turns: &Vec<(f64, Instant, Instant)>| turns[k]);
        let done: f64 = turns.clone().map(|(done, ..)| done).sum();
        let (start, end) = (turns.clone().map(|t| t.1).min()?, turns.map(|t| t.2).max()?);
        Some(done / (end - start).as_secs_f64())
    });
    Ok(Some(together.fold(0.0, f64::max)))
}

impl Floor {
    /// The better of two measurements of the same thing.
    pub fn best(mut self, other: &Floor) -> Floor {
        self.flops = self.flops.max(other.flops);
        self.latency_s = self.latency_s.min(other.latency_s);
        for (mine, theirs) in self.ladder.iter_mut().zip(&other.ladder) {
            mine.rate = mine.rate.max(theirs.rate);
        }
        self
    }

    /// Bytes a second when so many are walked again and again: between two sizes of the ladder in proportion, on
    /// logarithmic scales. A larger size that was faster counts for the smaller ones too.
    pub fn bandwidth(&self, bytes: f64) -> f64 {
        let at_least = |k: usize| self.ladder[k..].iter().map(|step| step.rate).fold(0.0, f64::max);
        let Some(last) = self.ladder.len().checked_sub(1) else { return f64::INFINITY };
        let above = self.ladder.partition_point(|step| step.bytes <= bytes);
        if above == 0 || above > last {
            return at_least(above.min(last));
        }
        let (low, high) = (self.ladder[above - 1].bytes.ln(), self.ladder[above].bytes.ln());
        let part = (bytes.ln() - low) / (high - low);
        at_least(above - 1).powf(1.0 - part) * at_least(above).powf(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_lies_between_the_sizes_around() {
        let ladder = [(1e3, 90.0), (1e4, 100.0), (1e6, 1.0)].map(|(bytes, rate)| Step { bytes, rate });
        let floor = Floor { threads: 1, isa: String::new(), flops: 1.0, latency_s: 1.0, ladder: ladder.to_vec() };
        for (bytes, want) in [(1.0, 100.0), (1e3, 100.0), (1e4, 100.0), (1e5, 10.0), (1e6, 1.0), (1e9, 1.0)] {
            assert!((floor.bandwidth(bytes) - want).abs() < 1e-9, "{bytes}: {}", floor.bandwidth(bytes));
        }
        assert_eq!(Floor { ladder: Vec::new(), ..floor }.bandwidth(5.0), f64::INFINITY);
    }

    #[test]
    fn loops_that_can_t_be_made_are_no_rate() {
        assert_eq!(rate(2, 1, || None).unwrap(), None);
        // A thread that has its loop does not wait for one that has none.
        let first = AtomicBool::new(true);
        let once = || first.swap(false, Ordering::Relaxed).then(|| Box::new(|| 1.0) as loops::Reader);
        assert_eq!(rate(2, 1, once).unwrap(), None);
    }

    #[test]
    fn figures_are_of_a_possible_machine() {
        let floor = measure(2, 1, 1 << 20).unwrap();
        assert!(floor.flops > 1e6 && floor.flops < 1e15, "{floor:?}");
        assert!(floor.latency_s > 1e-11 && floor.latency_s < 1e-5, "{floor:?}");
        assert_eq!(floor.ladder.len(), 7);
        assert!(floor.ladder.iter().all(|step| step.rate > 1e6 && step.rate < 1e14), "{floor:?}");
    }
}
