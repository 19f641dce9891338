//! Compares two runs on the same machine and finds regressions that are larger than the noise.

use anyhow::{Result, ensure};

use crate::{
    report::{format_time, table::Table},
    results::{Results, Times},
};

/// Smallest relative slowdown that counts. Smaller ones may come from the placement of code and data in memory.
const TOLERANCE: f64 = 0.05;

/// Change of the time of a case between two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// New time divided by old time.
    pub ratio: f64,
    /// Relative change that noise explains: twice the sum of both runs' [`Times::noise`], at least 5 %.
    pub noise: f64,
}

impl Change {
    fn between(old: &Times, new: &Times) -> Self {
        let noise = 2.0 * (old.noise() + new.noise());
        Change { ratio: new.median_s() / old.median_s(), noise: noise.max(TOLERANCE) }
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
    let machine = |r: &Results| format!("{}, {} cores, {}", r.machine.cpu, r.machine.cores, r.machine.system);
    ensure!(
        machine(old) == machine(new),
        "expected results of this machine ({}), got those of {}",
        machine(new),
        machine(old)
    );
    let mut table = Table::new(["case", "threads", "backend", "before", "now", "now / before", "noise", "verdict"]);
    let (mut regressions, mut common) = (0, 0);
    let ours = |r: &Results, name: &str| r.subjects.iter().any(|s| s.ours && s.name == name);
    for before in old.times.iter().filter(|t| ours(old, &t.subject)) {
        let key = [before.case.clone(), before.threads.to_string(), before.subject.clone()];
        let find_case = |r: &Results| r.cases.iter().find(|case| case.name == before.case).cloned();
        let now = new.times(&before.case, &before.subject, before.threads).filter(|_| find_case(old) == find_case(new));
        let rest = match now {
            Some(now) => {
                let change = Change::between(before, now);
                common += 1;
                regressions += usize::from(change.verdict() == "SLOWER");
                let noise = format!("{:.0} %", change.noise * 100.0);
                [format_time(now.median_s()), format!("{:.2}", change.ratio), noise, change.verdict().to_owned()]
            }
            None => ["-", "-", "-", "not timed now"].map(str::to_owned),
        };
        table.row(key.into_iter().chain([format_time(before.median_s())]).chain(rest));
    }
    ensure!(common > 0, "the two runs have no case, backend and number of threads in common");
    Ok((table, regressions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regressions_must_exceed_the_noise() {
        let times = |rounds: &[f64]| Times {
            case: String::new(),
            subject: String::new(),
            threads: 1,
            round_medians_s: rounds.to_vec(),
            min_s: 0.0,
            runs: 1,
            difference: 0.0,
        };
        let verdict = |old: &[f64], new: &[f64]| Change::between(&times(old), &times(new)).verdict();
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
