//! The one table of the README, made from the latest of `reports/`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{describe, digits, main_cases, percent, plural, table::Table, time};
use crate::results::Results;

const BEGIN: &str = "<!-- made by `cargo xtask bench --readme` from reports/; do not edit -->\n";
const END: &str = "<!-- end -->\n";

/// The results in the folders of `reports`, latest first, with the folders' names.
///
/// # Errors
/// A folder that can't be read, or results that can't.
pub fn reports(dir: &Path) -> Result<Vec<(String, Results)>> {
    let name = || dir.display().to_string();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(name)? {
        let path = entry.with_context(name)?.path();
        if path.is_dir() {
            let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push((folder, Results::read(&path.join("results.json"))?));
        }
    }
    // Dates are written so that they sort.
    all.sort_by(|(_, a), (_, b)| b.machine.date.cmp(&a.machine.date));
    Ok(all)
}

/// The README with the table of the latest report between its markers.
///
/// # Errors
/// That there are no reports, or that the markers are not there, once each.
pub fn readme(text: &str, reports: &[(String, Results)]) -> Result<String> {
    let (folder, results) = reports.first().context("expected a report in reports/, got none")?;
    ensure!(text.matches(BEGIN).count() == 1, "expected one line `{}` in the README", BEGIN.trim());
    let (before, rest) = text.split_once(BEGIN).context("the marker")?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("expected `{}` below the other marker", END.trim()))?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", section(folder, results)))
}

fn section(folder: &str, results: &Results) -> String {
    let Some(base) = results.base() else { return String::new() };
    let peers: Vec<_> = results.subjects.iter().filter(|s| !s.ours && s.cores).collect();
    let threads = results.threads();
    let mut heads =
        vec!["case".to_owned(), "what".to_owned(), "threads".to_owned(), base.name.clone(), "of the floor".to_owned()];
    heads.extend(peers.iter().map(|peer| peer.name.clone()));
    let mut table = Table::new(heads);
    for case in main_cases(results) {
        for &threads in &threads {
            let Some(ours) = results.times(&case.name, &base.name, threads) else { continue };
            let floor = results.roofline(&case.name, threads).zip(results.fraction(ours));
            let floor = floor.map(|(r, part)| format!("{}, {}", percent(part), results.bound(r, threads)));
            let mut row = vec![case.name.clone(), describe(case), threads.to_string(), time(ours.median_s())];
            row.push(floor.unwrap_or("-".to_owned()));
            row.extend(peers.iter().map(|peer| {
                let over = results.times(&case.name, &peer.name, threads).and_then(|theirs| theirs.over(ours));
                over.map_or("-".to_owned(), |spread| digits(spread.mid))
            }));
            table.row(row);
        }
    }
    let abouts: Vec<&str> = peers.iter().map(|peer| peer.about.as_str()).collect();
    let counts: Vec<String> = threads.iter().map(|&n| plural(n)).collect();
    let beside = if abouts.is_empty() {
        String::new()
    } else {
        format!(" Columns of others: their time over ours ({}); above 1, we are faster.", abouts.join(", "))
    };
    // A busy machine's figures are worth less.
    let load = results.machine.load.map_or(String::new(), |load| format!(" (load before: {load:.1})"));
    format!(
        "{}, {}, {}{load}. \"Of the floor\": which part of the time the machine needs at least for the case's flops and bytes, and \
         what bounds it.{beside} Spreads, charts and other cases: [reports/{folder}](reports/{folder}/report.md).\n\n{}",
        results.machine.cpu,
        counts.join(" and "),
        results.machine.date.split('T').next().unwrap_or_default(),
        table.markdown()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_needed() {
        let error = |text: &str, reports: &[(String, Results)]| readme(text, reports).unwrap_err().to_string();
        assert!(error("", &[]).contains("expected a report"));
    }

    /// What stands in the README is what the latest report says.
    #[test]
    fn the_readme_is_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = std::fs::read_to_string(root.join("README.md")).unwrap();
        let made = readme(&text, &reports(&root.join("reports")).unwrap()).unwrap();
        assert!(made == text, "README.md is not what `cargo xtask bench --readme` makes of reports/: run it");
    }
}
