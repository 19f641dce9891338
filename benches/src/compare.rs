//! Compares two runs on the same machine and finds regressions that are larger than the noise.

use anyhow::{Result, ensure};

use crate::{
    report::{format_time, table::Table},
    results::{Results, Times},
};

/// Smallest relative slowdown that counts as a regression. Smaller slowdowns may come from the placement of code and data in
/// memory.
const MIN_SLOWDOWN: f64 = 0.05;

/// Change of the time of a case between an old and a new run of the benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeChange {
    /// New time divided by old time.
    pub ratio: f64,
    /// Largest relative change that noise can explain: twice the sum of both runs' [`Times::noise`], at least 5 %.
    pub noise: f64,
}

impl TimeChange {
    fn between_runs(old: &Times, new: &Times) -> Self {
        let noise = 2.0 * (old.noise() + new.noise());
        TimeChange { ratio: new.median_s() / old.median_s(), noise: noise.max(MIN_SLOWDOWN) }
    }

    /// Verdict for the table: `SLOWER`, `faster` or `same`.
    pub fn verdict(&self) -> &'static str {
        match self.ratio {
            r if r > 1.0 + self.noise => "SLOWER",
            r if r < 1.0 / (1.0 + self.noise) => "faster",
            _ => "same",
        }
    }
}

/// Compares the backends of this repository in two runs. Returns a table of changes and the number of regressions.
///
/// # Errors
/// If the runs are from different machines or have no case, backend and number of threads in common.
pub fn compare(old: &Results, new: &Results) -> Result<(Table, usize)> {
    let describe_machine = |r: &Results| format!("{}, {} cores, {}", r.machine.cpu, r.machine.cores, r.machine.system);
    ensure!(
        describe_machine(old) == describe_machine(new),
        "expected results of this machine ({}), got those of {}",
        describe_machine(new),
        describe_machine(old)
    );
    let mut table = Table::new(["case", "threads", "backend", "before", "now", "now / before", "noise", "verdict"]);
    let (mut regressions, mut common_count) = (0, 0);
    let is_own_backend = |r: &Results, name: &str| r.subjects.iter().any(|s| s.ours && s.name == name);
    for old_times in old.times.iter().filter(|t| is_own_backend(old, &t.subject)) {
        let first_cells = [old_times.case.clone(), old_times.threads.to_string(), old_times.subject.clone()];
        let find_case = |r: &Results| r.cases.iter().find(|case| case.name == old_times.case).cloned();
        let new_times = new
            .times(&old_times.case, &old_times.subject, old_times.threads)
            .filter(|_| find_case(old) == find_case(new));
        let last_cells = match new_times {
            Some(new_times) => {
                let change = TimeChange::between_runs(old_times, new_times);
                common_count += 1;
                regressions += usize::from(change.verdict() == "SLOWER");
                let noise = format!("{:.0} %", change.noise * 100.0);
                [format_time(new_times.median_s()), format!("{:.2}", change.ratio), noise, change.verdict().to_owned()]
            }
            None => ["-", "-", "-", "not timed now"].map(str::to_owned),
        };
        table.add_row(first_cells.into_iter().chain([format_time(old_times.median_s())]).chain(last_cells));
    }
    ensure!(common_count > 0, "the two runs have no case, backend and number of threads in common");
    Ok((table, regressions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regressions_must_exceed_the_noise() {
        let times_of = |rounds: &[f64]| Times {
            case: String::new(),
            subject: String::new(),
            threads: 1,
            round_medians_s: rounds.to_vec(),
            min_s: 0.0,
            runs: 1,
            difference: 0.0,
            rms_difference: 0.0,
        };
        let verdict = |old: &[f64], new: &[f64]| TimeChange::between_runs(&times_of(old), &times_of(new)).verdict();
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[1.04, 1.04, 1.04]), "same");
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[1.06, 1.06, 1.06]), "SLOWER");
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[0.9, 0.9, 0.9]), "faster");
        // One disturbed round changes neither the noise nor the median.
        assert_eq!(verdict(&[1.0, 1.0, 1.0, 1.0, 9.0], &[1.06; 5]), "SLOWER");
        assert_eq!(verdict(&[1.0; 5], &[1.0, 1.0, 1.0, 1.0, 9.0]), "same");
        // Noisy rounds need a larger slowdown.
        assert_eq!(verdict(&[0.9, 1.0, 1.1], &[1.1, 1.2, 1.3]), "same");
    }
}
