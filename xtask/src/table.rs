//! The table at the end of `test-all`: groups of cases by backends.

use std::fmt;

use serde::Deserialize;

/// A line of the results file: how one trial ended.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) backend: String,
    /// Empty where it is about the whole backend.
    pub(crate) group: String,
    pub(crate) case: String,
    pub(crate) outcome: Outcome,
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum Outcome {
    #[serde(rename = "identical")]
    Identical,
    #[serde(rename = "failed")]
    Failed,
    #[serde(rename = "not run")]
    NotRun,
}

/// A backend, and why no trial of it can have been started, if so.
#[derive(Clone, Debug)]
pub(crate) struct NotRun {
    pub(crate) name: String,
    pub(crate) why: Option<String>,
}

/// All that is known at the end.
pub(crate) struct Table {
    lines: Vec<Line>,
    backends: Vec<NotRun>,
}

impl Table {
    /// `backends` are its columns; any other that reported follows.
    pub(crate) fn new(lines: Vec<Line>, mut backends: Vec<NotRun>) -> Self {
        for line in &lines {
            if backends.iter().all(|b| b.name != line.backend) {
                backends.push(NotRun { name: line.backend.clone(), why: None });
            }
        }
        Table { lines, backends }
    }

    /// Trials that failed.
    pub(crate) fn failures(&self) -> usize {
        self.lines.iter().filter(|line| line.outcome == Outcome::Failed).count()
    }

    /// Whether trials of the backend were run, and no group of it was left out.
    pub(crate) fn ran_all(&self, backend: &str) -> bool {
        let left_out = self.lines.iter().any(|line| line.backend == backend && line.outcome == Outcome::NotRun);
        self.ran(backend) && !left_out
    }

    /// Whether any trial of the backend was run.
    fn ran(&self, backend: &str) -> bool {
        self.lines.iter().any(|line| line.backend == backend && line.outcome != Outcome::NotRun)
    }

    /// Why a backend did not run, or a group of it.
    fn why_not(&self, backend: &NotRun, group: &str) -> Option<String> {
        let told =
            self.lines.iter().find(|l| l.backend == backend.name && l.outcome == Outcome::NotRun && l.group == group);
        match told {
            Some(line) => Some(line.detail.clone()),
            None if group.is_empty() && !self.ran(&backend.name) => {
                Some(backend.why.clone().unwrap_or_else(|| "no result came: its tests did not get that far".to_owned()))
            }
            None => None,
        }
    }

    fn cell(&self, backend: &NotRun, group: &str) -> String {
        let of = |outcome| {
            let here = |l: &&Line| l.backend == backend.name && l.group == group && l.outcome == outcome;
            self.lines.iter().filter(here).count()
        };
        match (of(Outcome::Identical), of(Outcome::Failed)) {
            (0, 0) if self.why_not(backend, group).or(self.why_not(backend, "")).is_some() => "not run".to_owned(),
            (0, 0) => "-".to_owned(),
            (identical, 0) => format!("identical {identical}"),
            (identical, failed) => format!("identical {identical}, FAILED {failed}"),
        }
    }

    /// Groups that anything was reported of, by name.
    fn groups(&self) -> Vec<&str> {
        let mut groups = Vec::new();
        for line in self.lines.iter().filter(|line| !line.group.is_empty()) {
            if !groups.contains(&line.group.as_str()) {
                groups.push(&line.group);
            }
        }
        groups.sort_unstable();
        groups
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.groups();
        let mut rows = vec![vec!["group".to_owned()]];
        rows[0].extend(self.backends.iter().map(|b| b.name.clone()));
        // Where nothing was reported, one row still says which backends did not run.
        for group in if groups.is_empty() { vec!["all"] } else { groups.clone() } {
            let cells = self.backends.iter().map(|b| self.cell(b, group));
            rows.push(std::iter::once(group.to_owned()).chain(cells).collect());
        }
        let width = |column: usize| rows.iter().map(|row: &Vec<String>| row[column].len()).max().unwrap_or(0);
        for row in &rows {
            let padded = row.iter().enumerate().map(|(k, cell)| format!("{cell:<width$}", width = width(k)));
            let line: Vec<String> = padded.collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        for backend in &self.backends {
            for group in std::iter::once("").chain(groups.iter().copied()) {
                if let Some(why) = self.why_not(backend, group) {
                    let what = format!("{} {group}", backend.name);
                    writeln!(f, "not run: {}: {why}", what.trim_end())?;
                }
            }
        }
        // What the trials over all inputs found.
        for line in self.lines.iter().filter(|l| l.group == "exhaustive" && l.outcome == Outcome::Identical) {
            writeln!(f, "{} {}: {}", line.backend, line.case, line.detail)?;
        }
        for line in self.lines.iter().filter(|l| l.outcome == Outcome::Failed) {
            writeln!(f, "FAILED: {}::{}::{}: {}", line.backend, line.group, line.case, line.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(backend: &str, group: &str, case: &str, outcome: Outcome, detail: &str) -> Line {
        let [backend, group, case, detail] = [backend, group, case, detail].map(str::to_owned);
        Line { backend, group, case, outcome, detail }
    }

    fn backend(name: &str, why: Option<&str>) -> NotRun {
        NotRun { name: name.to_owned(), why: why.map(str::to_owned) }
    }

    #[test]
    fn the_table_tells_what_ran_what_failed_and_what_did_not_run() {
        let lines = vec![
            line("cpu", "options", "a", Outcome::Identical, ""),
            line("cpu", "options", "b", Outcome::Failed, "1 of 2 elements differ"),
            line("cpu", "cells", "c", Outcome::Identical, ""),
            line("wgpu", "", "", Outcome::NotRun, "no adapter"),
            line("odd", "cells", "", Outcome::NotRun, "not exact"),
            line("odd", "options", "a", Outcome::Identical, ""),
        ];
        let backends = [backend("cpu", None), backend("wgpu", None), backend("cuda", Some("not built"))];
        let table = Table::new(lines, backends.to_vec());
        let want = "\
group    cpu                    wgpu     cuda     odd
cells    identical 1            not run  not run  not run
options  identical 1, FAILED 1  not run  not run  identical 1
not run: wgpu: no adapter
not run: cuda: not built
not run: odd cells: not exact
FAILED: cpu::options::b: 1 of 2 elements differ
";
        assert_eq!(table.to_string(), want);
        assert_eq!(table.failures(), 1);
        assert!(table.ran_all("cpu") && !table.ran_all("wgpu") && !table.ran_all("cuda"));
        // Part of it is not all of it.
        assert!(table.ran("odd") && !table.ran_all("odd"));
    }

    #[test]
    fn without_results_the_table_says_so() {
        let table = Table::new(Vec::new(), vec![backend("cpu", None)]);
        assert_eq!(
            table.to_string(),
            "group  cpu\nall    not run\nnot run: cpu: no result came: its tests did not get that far\n"
        );
    }
}
