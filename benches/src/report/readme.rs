//! The table of times in README.md, generated from the latest report in `reports/`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{describe_case, format_number, format_percent, format_thread_count, format_time, main_cases, table::Table};
use crate::results::{F32, Results};

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

/// Generates the part of README.md between the markers.
fn format_section(report_name: &str, results: &Results) -> String {
    let Some(base) = results.base_subject() else { return String::new() };
    let peers: Vec<_> = results.subjects.iter().filter(|s| !s.ours && s.on_cpu && s.precision == F32).collect();
    let threads = results.threads();
    let mut columns =
        ["case", "description", "threads", &base.name, "% of roofline, bound by"].map(str::to_owned).to_vec();
    columns.extend(peers.iter().map(|peer| peer.name.clone()));
    let mut table = Table::new(columns);
    for case in main_cases(results) {
        for &threads in &threads {
            let Some(base_times) = results.times(&case.name, &base.name, threads) else { continue };
            let roofline = results.f32_roofline(&case.name, threads).zip(results.roofline_fraction(base_times));
            let roofline = roofline
                .map(|(r, fraction)| format!("{}, {}", format_percent(fraction), results.describe_bound(r, threads)));
            let mut row =
                vec![case.name.clone(), describe_case(case), threads.to_string(), format_time(base_times.median_s())];
            row.push(roofline.unwrap_or("-".to_owned()));
            row.extend(peers.iter().map(|peer| {
                let ratio = results.times(&case.name, &peer.name, threads).and_then(|times| times.ratio_to(base_times));
                ratio.map_or("-".to_owned(), |spread| format_number(spread.median))
            }));
            table.add_row(row);
        }
    }
    let versions: Vec<&str> = peers.iter().map(|peer| peer.description.as_str()).collect();
    let thread_counts: Vec<String> = threads.iter().map(|&n| format_thread_count(n)).collect();
    let peers_note = if versions.is_empty() {
        String::new()
    } else {
        format!(
            " Columns of other libraries ({}): their time divided by the time of {}; above 1, this library is faster.",
            versions.join(", "),
            base.name
        )
    };
    // The load average shows whether other programs may have disturbed the times.
    let load_average =
        results.machine.load.map_or(String::new(), |load_average| format!(" (load average before: {load_average:.1})"));
    format!(
        "{}, {}, {}{load_average}. Percent of roofline: the least time that this machine needs for the case's flops and bytes, divided by \
         the measured time.{peers_note} Ranges, charts and other cases: [reports/{report_name}](reports/{report_name}/report.md).\n\n{}",
        results.machine.cpu,
        thread_counts.join(" and "),
        results.machine.date.split('T').next().unwrap_or_default(),
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
