//! Two runs on one machine: what has become slower than noise explains.

use anyhow::{Result, ensure};

use crate::{
    report::{table::Table, time},
    results::{Results, Times},
};

/// What is less is put down to where code and data happen to lie.
const TOLERANCE: f64 = 0.05;

/// How a case of ours changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The new time over the old.
    pub ratio: f64,
    /// How much more than 1 noise explains: twice the distance of the turns' quartiles in both runs, and 5 % at least.
    pub noise: f64,
}

impl Change {
    fn of(old: &Times, new: &Times) -> Self {
        let noise = 2.0 * (old.noise() + new.noise());
        Change { ratio: new.median_s() / old.median_s(), noise: noise.max(TOLERANCE) }
    }

    /// In a word.
    pub fn verdict(&self) -> &'static str {
        match self.ratio {
            r if r > 1.0 + self.noise => "SLOWER",
            r if r < 1.0 / (1.0 + self.noise) => "faster",
            _ => "same",
        }
    }
}

/// The changes of all that both have, as a table, and how many are regressions.
///
/// # Errors
/// Runs on different machines, or with nothing in common.
pub fn compare(old: &Results, new: &Results) -> Result<(Table, usize)> {
    let of = |r: &Results| format!("{}, {} cores, {}", r.machine.cpu, r.machine.cores, r.machine.system);
    ensure!(of(old) == of(new), "expected results of this machine ({}), got those of {}", of(new), of(old));
    let mut table =
        Table::new(["case", "threads", "backend", "before", "now", "now over before", "noise explains", ""]);
    let (mut regressions, mut common) = (0, 0);
    let ours = |r: &Results, name: &str| r.subjects.iter().any(|s| s.ours && s.name == name);
    for was in old.times.iter().filter(|t| ours(old, &t.subject)) {
        let key = [was.case.clone(), was.threads.to_string(), was.subject.clone()];
        let same_case = |r: &Results| r.cases.iter().find(|case| case.name == was.case).cloned();
        let now = new.times(&was.case, &was.subject, was.threads).filter(|_| same_case(old) == same_case(new));
        let rest = match now {
            Some(now) => {
                let change = Change::of(was, now);
                common += 1;
                regressions += usize::from(change.verdict() == "SLOWER");
                let noise = format!("{:.0} %", change.noise * 100.0);
                [time(now.median_s()), format!("{:.2}", change.ratio), noise, change.verdict().to_owned()]
            }
            None => ["-", "-", "-", "not timed now"].map(str::to_owned),
        };
        table.row(key.into_iter().chain([time(was.median_s())]).chain(rest));
    }
    ensure!(common > 0, "the two runs have no case, backend and number of threads in common");
    Ok((table, regressions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_noise_does_not_explain_is_slower() {
        let times = |turns: &[f64]| Times {
            case: String::new(),
            subject: String::new(),
            threads: 1,
            turns_s: turns.to_vec(),
            min_s: 0.0,
            runs: 1,
            difference: 0.0,
        };
        let verdict = |old: &[f64], new: &[f64]| Change::of(&times(old), &times(new)).verdict();
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[1.04, 1.04, 1.04]), "same");
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[1.06, 1.06, 1.06]), "SLOWER");
        assert_eq!(verdict(&[1.0, 1.0, 1.0], &[0.9, 0.9, 0.9]), "faster");
        // One turn that was disturbed is neither noise nor a regression.
        assert_eq!(verdict(&[1.0, 1.0, 1.0, 1.0, 9.0], &[1.06; 5]), "SLOWER");
        assert_eq!(verdict(&[1.0; 5], &[1.0, 1.0, 1.0, 1.0, 9.0]), "same");
        // Where turns are far apart it takes more.
        assert_eq!(verdict(&[0.9, 1.0, 1.1], &[1.1, 1.2, 1.3]), "same");
    }
}
