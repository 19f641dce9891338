//! The results of a run, as stored in `results.json`, and the statistics that reports show.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    case::Case,
    machine::Machine,
    roofline::{
        MachineLimits,
        phases::{LimitingResource, Roofline},
    },
};

/// The name of the precision of 32-bit floats.
pub const F32: &str = "f32";

fn f32_name() -> String {
    F32.to_owned()
}

fn is_f32(precision: &str) -> bool {
    precision == F32
}

/// Version of the file format.
pub const FORMAT_VERSION: u32 = 1;

/// Results of a run. Some JSON keys differ from the field names, so that results of older versions can be read.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Version of the file format, [`FORMAT_VERSION`].
    pub version: u32,
    /// Machine, compiler and commit.
    pub machine: Machine,
    /// Number of rounds.
    pub rounds: usize,
    /// Seconds for which each subject runs a case in one round.
    pub seconds: f64,
    /// Limits of the machine, for each number of threads.
    #[serde(rename = "floors")]
    pub limits: Vec<MachineLimits>,
    /// The table of cases.
    pub cases: Vec<Case>,
    /// Backends of this repository, then other libraries.
    pub subjects: Vec<Subject>,
    /// Times of each subject in each case.
    pub times: Vec<Times>,
    /// Roofline (least possible time) of each case, for each number of threads.
    pub rooflines: Vec<CaseRoofline>,
    /// Requested subjects and cases that were not timed.
    pub not_run: Vec<NotRun>,
}

/// A subject of the benchmark: a backend of this repository or another library.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Subject {
    /// Name, such as `lstm-cpu` or `torch`.
    pub name: String,
    /// Version of the library, or device of the backend.
    #[serde(rename = "about")]
    pub description: String,
    /// Whether the subject is a backend of this repository.
    pub ours: bool,
    /// Whether the subject runs on the CPU, to which the rooflines apply.
    #[serde(rename = "cores")]
    pub on_cpu: bool,
    /// Precision of the weights: `f32`, `int8`, `int12` or `bf16`.
    #[serde(default = "f32_name", skip_serializing_if = "is_f32")]
    pub precision: String,
}

/// Times of one case, run by one subject with one number of threads.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Times {
    /// Name of the case.
    pub case: String,
    /// Name of the subject.
    pub subject: String,
    /// Number of threads.
    pub threads: usize,
    /// Median time of a run in each round, in seconds. Element `k` is round `k`, in which all subjects were timed one
    /// after another.
    #[serde(rename = "turns_s")]
    pub round_medians_s: Vec<f64>,
    /// Time of the fastest run in seconds.
    pub min_s: f64,
    /// Total number of timed runs.
    pub runs: usize,
    /// Largest difference between the outputs of this subject and the outputs of the first subject.
    pub difference: f64,
    /// Root mean square of these differences; for training, gradients are included.
    #[serde(default)]
    pub rms_difference: f64,
}

/// A subject that was not timed in one case or in all cases.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct NotRun {
    /// Name of the subject.
    pub subject: String,
    /// Name of the case; `None` for all cases.
    pub case: Option<String>,
    /// Number of threads.
    pub threads: usize,
    /// Why the subject was not timed.
    pub why: String,
}

/// Roofline (least possible time) of a case with a number of threads.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct CaseRoofline {
    /// Name of the case.
    pub case: String,
    /// Number of threads.
    pub threads: usize,
    /// Precision of the weights.
    #[serde(default = "f32_name", skip_serializing_if = "is_f32")]
    pub precision: String,
    /// The roofline.
    pub roofline: Roofline,
}

/// Median, smallest and largest value of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Median, smallest and largest of some values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut ascending: Vec<f64> = values.into_iter().collect();
        ascending.sort_by(f64::total_cmp);
        Some(Spread { median: quantile(&ascending, 0.5)?, min: *ascending.first()?, max: *ascending.last()? })
    }
}

/// Quantile `fraction` of ascending values, interpolated linearly; `None` if there are no values.
pub fn quantile(ascending: &[f64], fraction: f64) -> Option<f64> {
    let position = fraction * ascending.len().checked_sub(1)? as f64;
    let (value_below, value_above) = (ascending[position.floor() as usize], ascending[position.ceil() as usize]);
    Some(value_below + (value_above - value_below) * position.fract())
}

impl Results {
    /// Keeps only the results with the given numbers of threads.
    ///
    /// # Errors
    /// If there are no results with one of these numbers of threads.
    pub fn with_threads(mut self, threads: &[usize]) -> Result<Self> {
        let available_counts: Vec<usize> = self.limits.iter().map(|limits| limits.threads).collect();
        ensure!(
            threads.iter().all(|n| available_counts.contains(n)),
            "expected numbers of threads among {available_counts:?}, got {threads:?}"
        );
        self.limits.retain(|limits| threads.contains(&limits.threads));
        self.times.retain(|times| threads.contains(&times.threads));
        self.rooflines.retain(|case| threads.contains(&case.threads));
        self.not_run.retain(|not_run| threads.contains(&not_run.threads));
        Ok(self)
    }
}

impl Times {
    /// Median time over the rounds, in seconds.
    pub fn median_s(&self) -> f64 {
        Spread::of(self.round_medians_s.iter().copied()).map_or(f64::NAN, |spread| spread.median)
    }

    /// Noise of the rounds: their interquartile range divided by their median.
    pub fn noise(&self) -> f64 {
        let mut rounds = self.round_medians_s.clone();
        rounds.sort_by(f64::total_cmp);
        let quantile_at = |fraction| quantile(&rounds, fraction).unwrap_or(f64::NAN);
        (quantile_at(0.75) - quantile_at(0.25)) / quantile_at(0.5)
    }

    /// Time of each round divided by the time of `base` in the same round: median, smallest and largest ratio.
    pub fn ratio_to(&self, base: &Times) -> Option<Spread> {
        Spread::of(self.round_medians_s.iter().zip(&base.round_medians_s).map(|(time, base)| time / base))
    }
}

impl Results {
    /// Reads results from a file.
    ///
    /// # Errors
    /// If the file can't be read, is invalid, or has another version.
    pub fn read(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).with_context(name)?).with_context(name)?;
        ensure!(
            value["version"] == FORMAT_VERSION,
            "{}: expected results of version {FORMAT_VERSION}, got {}",
            name(),
            value["version"]
        );
        serde_json::from_value(value).with_context(name)
    }

    /// Serializes the results as JSON.
    ///
    /// # Errors
    /// If serialization fails.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Numbers of threads in these results, ascending.
    pub fn threads(&self) -> Vec<usize> {
        self.limits.iter().map(|limits| limits.threads).collect()
    }

    /// Times of a subject (a backend or library) in a case; `None` if it was not timed.
    pub fn times(&self, case: &str, subject: &str, threads: usize) -> Option<&Times> {
        self.times.iter().find(|t| t.case == case && t.subject == subject && t.threads == threads)
    }

    /// The backend that all other backends and libraries are compared with: the first of this repository that runs on
    /// the CPU, or if there is none, the first on any device. `None` if no backend was timed.
    pub fn base_subject(&self) -> Option<&Subject> {
        let mut own_subjects = self.subjects.iter().filter(|subject| subject.ours);
        own_subjects.clone().find(|subject| subject.on_cpu).or_else(|| own_subjects.next())
    }

    /// Roofline (least possible time) of a case with f32 weights and a number of threads; `None` if it is not in the
    /// results.
    pub fn f32_roofline(&self, case: &str, threads: usize) -> Option<&Roofline> {
        let is_of_case = |r: &&CaseRoofline| r.case == case && r.threads == threads && r.precision == F32;
        self.rooflines.iter().find(is_of_case).map(|r| &r.roofline)
    }

    /// Roofline (least possible time) of the case of `times` with its number of threads and precision; `None` if it is not
    /// in the results.
    pub fn roofline(&self, times: &Times) -> Option<&Roofline> {
        let precision = &self.subjects.iter().find(|subject| subject.name == times.subject)?.precision;
        let is_of_times =
            |r: &&CaseRoofline| r.case == times.case && r.threads == times.threads && r.precision == *precision;
        self.rooflines.iter().find(is_of_times).map(|r| &r.roofline)
    }

    /// The least possible time of a case (its roofline) divided by the measured time; `None` for subjects that do not
    /// run on the CPU.
    pub fn roofline_fraction(&self, times: &Times) -> Option<f64> {
        let on_cpu = self.subjects.iter().any(|subject| subject.name == times.subject && subject.on_cpu);
        let roofline = self.roofline(times).filter(|_| on_cpu)?;
        Some(roofline.seconds / times.median_s())
    }

    /// Describes the resource that bounds a case, such as `L2 bandwidth`.
    pub fn describe_bound(&self, roofline: &Roofline, threads: usize) -> String {
        match roofline.bound {
            LimitingResource::Compute => "compute".to_owned(),
            LimitingResource::Latency => "latency".to_owned(),
            LimitingResource::Bandwidth => {
                format!("{} bandwidth", self.machine.memory_level(roofline.working_set, threads))
            }
        }
    }

    /// Times as JSON lines, one for each case, subject and number of threads.
    pub fn json_lines(&self) -> Vec<String> {
        let peer_version =
            |name: &str| self.subjects.iter().find(|s| s.name == name && !s.ours).map(|s| s.description.clone());
        let json_line = |t: &Times| {
            serde_json::json!({
                "case": t.case, "peer": peer_version(&t.subject).unwrap_or_else(|| t.subject.clone()),
                "threads": t.threads, "median_s": t.median_s(), "runs": t.runs,
            })
            .to_string()
        };
        self.times.iter().map(json_line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_noise_and_ratios() {
        let times_of = |rounds: &[f64]| Times {
            case: String::new(),
            subject: String::new(),
            threads: 1,
            round_medians_s: rounds.to_vec(),
            min_s: 1.0,
            runs: 1,
            difference: 0.0,
            rms_difference: 0.0,
        };
        let (base_times, other_times) = (times_of(&[1.0, 4.0, 2.0]), times_of(&[2.0, 4.0, 6.0]));
        assert_eq!(base_times.median_s(), 2.0);
        assert_eq!(base_times.noise(), 0.75);
        // Ratios are taken within a round.
        assert_eq!(other_times.ratio_to(&base_times), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(times_of(&[]).ratio_to(&base_times), None);
    }
}
