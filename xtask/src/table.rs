//! The table that `test-all` prints: one row for each group of cases, one column for each backend.

use std::fmt;

use serde::Deserialize;

/// A line of the results file: the result of one trial (a test of a backend).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ResultLine {
    /// Name of the backend.
    pub(crate) backend: String,
    /// Group of the case. Empty if the line is about the whole backend.
    pub(crate) group: String,
    /// Name of the case.
    pub(crate) case: String,
    /// Outcome of the trial.
    pub(crate) outcome: Outcome,
    /// Details of the result, the error message, or the reason why the trial did not run.
    pub(crate) detail: String,
}

/// Outcome of a trial.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The results are bit-identical to the expected results, or within their limits.
    #[serde(rename = "identical")]
    Identical,
    /// The trial failed.
    #[serde(rename = "failed")]
    Failed,
    /// The trial was not run.
    #[serde(rename = "not run")]
    NotRun,
}

/// A column of the table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Name of the backend.
    pub(crate) backend: String,
    /// The reason why no trial of the backend was started. `None` if trials were started.
    pub(crate) reason_not_run: Option<String>,
}

/// The results of all trials.
pub(crate) struct Table {
    lines: Vec<ResultLine>,
    columns: Vec<Column>,
}

impl Table {
    /// Creates a table with the given columns, followed by a column for each backend that is only in `lines`.
    pub(crate) fn new(lines: Vec<ResultLine>, mut columns: Vec<Column>) -> Self {
        for line in &lines {
            if columns.iter().all(|column| column.backend != line.backend) {
                columns.push(Column { backend: line.backend.clone(), reason_not_run: None });
            }
        }
        Table { lines, columns }
    }

    /// Number of trials that failed.
    pub(crate) fn failure_count(&self) -> usize {
        self.lines.iter().filter(|line| line.outcome == Outcome::Failed).count()
    }

    /// Whether trials of the backend were run and none of its groups was skipped.
    pub(crate) fn ran_all(&self, backend: &str) -> bool {
        let any_skipped = self.lines.iter().any(|line| line.backend == backend && line.outcome == Outcome::NotRun);
        self.has_run(backend) && !any_skipped
    }

    /// Whether any trial of the backend was run.
    fn has_run(&self, backend: &str) -> bool {
        self.lines.iter().any(|line| line.backend == backend && line.outcome != Outcome::NotRun)
    }

    /// The reason why a group of cases did not run on the backend of a column, or `None` if it ran. If `group` is
    /// empty, the reason why nothing ran on this backend.
    fn reason_not_run(&self, column: &Column, group: &str) -> Option<String> {
        let is_reported =
            |l: &&ResultLine| l.backend == column.backend && l.outcome == Outcome::NotRun && l.group == group;
        match self.lines.iter().find(is_reported) {
            Some(line) => Some(line.detail.clone()),
            None if group.is_empty() && !self.has_run(&column.backend) => {
                let reason = column.reason_not_run.clone();
                Some(reason.unwrap_or_else(|| "no results: the tests ended before the first trial".to_owned()))
            }
            None => None,
        }
    }

    /// The text of the table cell for a backend and a group.
    fn cell_text(&self, column: &Column, group: &str) -> String {
        let count_trials = |outcome| {
            let is_counted = |l: &&ResultLine| l.backend == column.backend && l.group == group && l.outcome == outcome;
            self.lines.iter().filter(is_counted).count()
        };
        match (count_trials(Outcome::Identical), count_trials(Outcome::Failed)) {
            (0, 0) if self.reason_not_run(column, group).or(self.reason_not_run(column, "")).is_some() => {
                "not run".to_owned()
            }
            (0, 0) => "-".to_owned(),
            (identical, 0) => format!("identical {identical}"),
            (identical, failed) => format!("identical {identical}, FAILED {failed}"),
        }
    }

    /// Names of all groups with results, sorted.
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
        rows[0].extend(self.columns.iter().map(|column| column.backend.clone()));
        // Without results, one row shows which backends did not run.
        for group in if groups.is_empty() { vec!["all"] } else { groups.clone() } {
            let cells = self.columns.iter().map(|column| self.cell_text(column, group));
            rows.push(std::iter::once(group.to_owned()).chain(cells).collect());
        }
        let width = |column: usize| rows.iter().map(|row: &Vec<String>| row[column].len()).max().unwrap_or(0);
        for row in &rows {
            let padded_cells = row.iter().enumerate().map(|(k, cell)| format!("{cell:<width$}", width = width(k)));
            let line: Vec<String> = padded_cells.collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        for column in &self.columns {
            for group in std::iter::once("").chain(groups.iter().copied()) {
                if let Some(reason) = self.reason_not_run(column, group) {
                    let name = format!("{} {group}", column.backend);
                    writeln!(f, "not run: {}: {reason}", name.trim_end())?;
                }
            }
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

    fn line(backend: &str, group: &str, case: &str, outcome: Outcome, detail: &str) -> ResultLine {
        let [backend, group, case, detail] = [backend, group, case, detail].map(str::to_owned);
        ResultLine { backend, group, case, outcome, detail }
    }

    fn column(backend: &str, reason_not_run: Option<&str>) -> Column {
        Column { backend: backend.to_owned(), reason_not_run: reason_not_run.map(str::to_owned) }
    }

    #[test]
    fn table_shows_passed_failed_and_skipped_trials() {
        let lines = vec![
            line("cpu", "options", "a", Outcome::Identical, ""),
            line("cpu", "options", "b", Outcome::Failed, "1 of 2 elements differ"),
            line("cpu", "cells", "c", Outcome::Identical, ""),
            line("wgpu", "", "", Outcome::NotRun, "no adapter"),
            line("odd", "cells", "", Outcome::NotRun, "not exact"),
            line("odd", "options", "a", Outcome::Identical, ""),
        ];
        let columns = [column("cpu", None), column("wgpu", None), column("cuda", Some("not built"))];
        let table = Table::new(lines, columns.to_vec());
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
        assert_eq!(table.failure_count(), 1);
        assert!(table.ran_all("cpu") && !table.ran_all("wgpu") && !table.ran_all("cuda"));
        // Only a part of this backend ran.
        assert!(table.has_run("odd") && !table.ran_all("odd"));
    }

    #[test]
    fn table_without_results_shows_the_reason() {
        let table = Table::new(Vec::new(), vec![column("cpu", None)]);
        assert_eq!(
            table.to_string(),
            "group  cpu\nall    not run\nnot run: cpu: no results: the tests ended before the first trial\n"
        );
    }
}
