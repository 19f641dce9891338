//! `results.json`: all that a run measured, and the statistics that every report takes from it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    case::Case,
    floor::{
        Floor,
        work::{self, Roofline},
    },
    machine::Machine,
};

/// The format's version.
pub const VERSION: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`VERSION`]
    pub version: u32,
    /// Where.
    pub machine: Machine,
    /// Turns that each had.
    pub rounds: usize,
    /// Seconds of a turn.
    pub seconds: f64,
    /// The machine's limits, one for each number of threads.
    pub floors: Vec<Floor>,
    /// The table.
    pub cases: Vec<Case>,
    /// Those that were timed, ours first.
    pub subjects: Vec<Subject>,
    /// The times.
    pub times: Vec<Times>,
    /// The floor of each case under each number of threads.
    pub rooflines: Vec<CaseRoofline>,
    /// What was asked for and not timed.
    pub not_run: Vec<NotRun>,
}

/// One that is timed.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Subject {
    /// Such as `lstm-cpu` or `torch`.
    pub name: String,
    /// What it says it is: a version, a device.
    pub about: String,
    /// Whether it is a backend of this repository.
    pub ours: bool,
    /// Whether it runs on the CPU's cores, to which the floors apply.
    pub cores: bool,
}

/// The times of one case.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Times {
    /// The case's name.
    pub case: String,
    /// The subject's.
    pub subject: String,
    /// Threads.
    pub threads: usize,
    /// The median of each turn, in seconds of one run; turns of the same number were beside each other.
    pub turns_s: Vec<f64>,
    /// The fastest run.
    pub min_s: f64,
    /// Runs in all.
    pub runs: usize,
    /// The largest difference of its outputs from those of the first subject.
    pub difference: f64,
}

/// What was not timed, and why.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct NotRun {
    /// The subject.
    pub subject: String,
    /// The case, or `None` where it is all of them.
    pub case: Option<String>,
    /// Threads.
    pub threads: usize,
    /// In words.
    pub why: String,
}

/// A case's floor.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct CaseRoofline {
    /// The case's name.
    pub case: String,
    /// Threads.
    pub threads: usize,
    /// The floor.
    pub roofline: Roofline,
}

/// A middle with the smallest and largest around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub mid: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Of some values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut all: Vec<f64> = values.into_iter().collect();
        all.sort_by(f64::total_cmp);
        Some(Spread { mid: quantile(&all, 0.5)?, low: *all.first()?, high: *all.last()? })
    }
}

/// A quantile of ascending values, between two of them in proportion; `None` of none.
pub fn quantile(ascending: &[f64], part: f64) -> Option<f64> {
    let at = part * ascending.len().checked_sub(1)? as f64;
    let (low, high) = (ascending[at.floor() as usize], ascending[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

impl Results {
    /// Those with some numbers of threads alone.
    ///
    /// # Errors
    /// A number that is not among them.
    pub fn with_threads(mut self, threads: &[usize]) -> Result<Self> {
        let there: Vec<usize> = self.floors.iter().map(|floor| floor.threads).collect();
        ensure!(threads.iter().all(|n| there.contains(n)), "expected threads among {there:?}, got {threads:?}");
        self.floors.retain(|floor| threads.contains(&floor.threads));
        self.times.retain(|times| threads.contains(&times.threads));
        self.rooflines.retain(|case| threads.contains(&case.threads));
        self.not_run.retain(|missed| threads.contains(&missed.threads));
        Ok(self)
    }
}

impl Times {
    /// The median of the turns' medians, in seconds.
    pub fn median_s(&self) -> f64 {
        Spread::of(self.turns_s.iter().copied()).map_or(f64::NAN, |spread| spread.mid)
    }

    /// How far apart the turns are: the distance between their quartiles, as a part of the median.
    pub fn noise(&self) -> f64 {
        let mut turns = self.turns_s.clone();
        turns.sort_by(f64::total_cmp);
        let at = |part| quantile(&turns, part).unwrap_or(f64::NAN);
        (at(0.75) - at(0.25)) / at(0.5)
    }

    /// Its time over that of `ours`, turn by turn.
    pub fn over(&self, ours: &Times) -> Option<Spread> {
        Spread::of(self.turns_s.iter().zip(&ours.turns_s).map(|(theirs, ours)| theirs / ours))
    }
}

impl Results {
    /// Reads a file of this version.
    ///
    /// # Errors
    /// What is wrong with it, and that it is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).with_context(name)?).with_context(name)?;
        ensure!(
            value["version"] == VERSION,
            "{}: expected results of version {VERSION}, got {}",
            name(),
            value["version"]
        );
        serde_json::from_value(value).with_context(name)
    }

    /// The file's text.
    ///
    /// # Errors
    /// Numbers that JSON does not have.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The numbers of threads, ascending.
    pub fn threads(&self) -> Vec<usize> {
        self.floors.iter().map(|floor| floor.threads).collect()
    }

    /// The times of a subject in a case.
    pub fn times(&self, case: &str, subject: &str, threads: usize) -> Option<&Times> {
        self.times.iter().find(|t| t.case == case && t.subject == subject && t.threads == threads)
    }

    /// The first of ours that runs on the CPU's cores, or the first of ours: what others are compared with.
    pub fn base(&self) -> Option<&Subject> {
        let mut ours = self.subjects.iter().filter(|subject| subject.ours);
        ours.clone().find(|subject| subject.cores).or_else(|| ours.next())
    }

    /// A case's floor.
    pub fn roofline(&self, case: &str, threads: usize) -> Option<&Roofline> {
        self.rooflines.iter().find(|r| r.case == case && r.threads == threads).map(|r| &r.roofline)
    }

    /// What part of the time of a subject the floor is; only on the CPU's cores.
    pub fn fraction(&self, times: &Times) -> Option<f64> {
        let on_cores = self.subjects.iter().any(|subject| subject.name == times.subject && subject.cores);
        let roofline = self.roofline(&times.case, times.threads).filter(|_| on_cores)?;
        Some(roofline.seconds / times.median_s())
    }

    /// What holds a case back, in words.
    pub fn bound(&self, roofline: &Roofline, threads: usize) -> String {
        match roofline.bound {
            work::Bound::Compute => "compute".to_owned(),
            work::Bound::Latency => "latency".to_owned(),
            work::Bound::Bandwidth => format!("{} bandwidth", self.machine.level(roofline.working_set, threads)),
        }
    }

    /// One JSON line for each time, as `peers.py` of the first measurements wrote them.
    pub fn lines(&self) -> Vec<String> {
        let about = |name: &str| self.subjects.iter().find(|s| s.name == name && !s.ours).map(|s| s.about.clone());
        let line = |t: &Times| {
            serde_json::json!({
                "case": t.case, "peer": about(&t.subject).unwrap_or_else(|| t.subject.clone()), "threads": t.threads,
                "median_s": t.median_s(), "runs": t.runs,
            })
            .to_string()
        };
        self.times.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let times = |turns: &[f64]| Times {
            case: String::new(),
            subject: String::new(),
            threads: 1,
            turns_s: turns.to_vec(),
            min_s: 1.0,
            runs: 1,
            difference: 0.0,
        };
        let (ours, theirs) = (times(&[1.0, 4.0, 2.0]), times(&[2.0, 4.0, 6.0]));
        assert_eq!(ours.median_s(), 2.0);
        assert_eq!(ours.noise(), 0.75);
        // Turn by turn, not the best of one with the worst of the other.
        assert_eq!(theirs.over(&ours), Some(Spread { mid: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(times(&[]).over(&ours), None);
    }
}
