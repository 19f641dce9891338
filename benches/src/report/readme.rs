//! The table of times in README.md, generated from the latest report in `reports/`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{describe_case, format_number, format_thread_count, format_time, main_cases, table::Table};
use crate::results::Results;

/// Marker line before the generated part of README.md.
const BEGIN_MARKER: &str = "<!-- made by `cargo xtask bench --readme` from reports/; do not edit -->\n";
/// Marker line after the generated part of README.md.
const END_MARKER: &str = "<!-- end -->\n";

/// Reads the results of all reports in a directory. Returns the name of each report's directory and its results, latest
/// first.
///
/// # Errors
/// If a directory or its `results.json` can't be read.
pub fn read_reports(dir: &Path) -> Result<Vec<(String, Results)>> {
    let name = || dir.display().to_string();
    let mut named_results = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(name)? {
        let path = entry.with_context(name)?.path();
        if path.is_dir() {
            let report_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            named_results.push((report_name, Results::read(&path.join("results.json"))?));
        }
    }
    // RFC 3339 dates sort as text.
    named_results.sort_by(|(_, a), (_, b)| b.machine.date.cmp(&a.machine.date));
    Ok(named_results)
}

/// Returns the text of README.md with the part between the markers generated from the latest report.
///
/// # Errors
/// If there are no reports, or if the text does not have both markers.
pub fn update_table(text: &str, reports: &[(String, Results)]) -> Result<String> {
    let (report_name, results) = reports.first().context("expected a report in reports/, got none")?;
    ensure!(
        text.matches(BEGIN_MARKER).count() == 1,
        "expected exactly one line `{}` in README.md",
        BEGIN_MARKER.trim()
    );
    let (text_before, text_after_begin) = text.split_once(BEGIN_MARKER).context("missing marker")?;
    let (_, text_after) = text_after_begin
        .split_once(END_MARKER)
        .with_context(|| format!("expected a line `{}` after the first marker", END_MARKER.trim()))?;
    Ok(format!("{text_before}{BEGIN_MARKER}\n{}\n{END_MARKER}{text_after}", format_section(report_name, results)))
}

/// Names of the subjects that have a column beside ours, and how their makers write them. Users would pick one of these.
const PEERS: [(&str, &str); 3] = [("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")];

/// Generates the part of README.md between the markers: times with the smallest number of threads.
fn format_section(report_name: &str, results: &Results) -> String {
    let (Some(base), Some(&threads)) = (results.base_subject(), results.threads().first()) else {
        return String::new();
    };
    let mut columns = ["case", "this library"].map(str::to_owned).to_vec();
    columns.extend(PEERS.map(|(_, name)| name.to_owned()));
    let mut table = Table::new(columns);
    for case in main_cases(results) {
        let Some(base_times) = results.times(&case.name, &base.name, threads) else { continue };
        let mut row = vec![describe_case(case), format_time(base_times.median_s())];
        row.extend(PEERS.map(|(peer, _)| {
            let ratio = results.times(&case.name, peer, threads).and_then(|times| times.ratio_to(base_times));
            ratio.map_or("-".to_owned(), |spread| format!("{} ×", format_number(spread.median)))
        }));
        table.add_row(row);
    }
    let descriptions = PEERS.map(|(peer, _)| {
        let subject = results.subjects.iter().find(|subject| subject.name == peer);
        subject.map_or(peer, |subject| subject.description.as_str())
    });
    format!(
        "f32 on {} of {}, {}. Other libraries ({}): their time as a multiple of ours. [reports/{report_name}](reports/{report_name}/report.md) \
         has ranges, charts, more threads, cases and libraries.\n\n{}",
        format_thread_count(threads),
        results.machine.cpu,
        results.machine.date.split('T').next().unwrap_or_default(),
        descriptions.join(", "),
        table.to_markdown()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_missing_reports_and_markers() {
        let error = |text: &str, reports: &[(String, Results)]| update_table(text, reports).unwrap_err().to_string();
        assert!(error("", &[]).contains("expected a report"));
    }

    #[test]
    fn readme_is_up_to_date() {
        let repository_root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = std::fs::read_to_string(repository_root.join("README.md")).unwrap();
        let updated = update_table(&text, &read_reports(&repository_root.join("reports")).unwrap()).unwrap();
        assert!(updated == text, "the table in README.md is out of date: run `cargo xtask bench --readme`");
    }
}
