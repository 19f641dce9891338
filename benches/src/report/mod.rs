//! Reports of results: tables in Markdown, and an HTML page with tables and charts.

pub mod charts;
mod draw;
pub mod html;
pub mod readme;
pub mod table;

use crate::{
    case::{Case, CaseKind},
    results::{F32, Results, Spread, Times},
};
use lstm_core::CellKind;
use table::Table;

/// Formats a time with a suitable unit.
pub fn format_time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", format_number(value))
}

/// Formats a number of threads, such as `2 threads`.
pub fn format_thread_count(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// Formats a number with three significant digits.
fn format_number(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats the median of some ratios, and their smallest and largest value.
fn format_ratio(spread: Spread) -> String {
    format!("{} ({} to {})", format_number(spread.median), format_number(spread.min), format_number(spread.max))
}

/// Returns the title of the report and a list of facts about the run.
pub fn report_heading(results: &Results) -> (String, Vec<String>) {
    let m = &results.machine;
    let caches: Vec<String> =
        m.caches.iter().enumerate().map(|(k, size)| format!("L{} {} KiB", k + 1, size / 1024)).collect();
    let load_average = m.load.map_or("unknown".to_owned(), |load_average| format!("{load_average:.2}"));
    let title = format!("LSTM times on {}, {} cores", m.cpu, m.cores);
    let facts = vec![
        format!(
            "{}, {}; {}. {}; commit {}; {}.",
            m.system,
            m.features.join(" "),
            caches.join(", "),
            m.rustc,
            m.commit,
            m.date
        ),
        format!(
            "{} rounds of {} for each backend and library, one after another. Load average of the minute before: {load_average}.",
            results.rounds,
            format_time(results.seconds)
        ),
    ];
    (title, facts)
}

/// Returns all tables of the report, each with a title and an explanation.
pub fn sections(results: &Results) -> Vec<(&'static str, &'static str, Table)> {
    vec![
        (
            "This library",
            "Time: the median over rounds of the median run of each round. Roofline: the least time that the machine (below) needs \
             for the case's flops and bytes; weights count as read once for the input product and once per step. GFLOP/s and \
             GB/s count the matrix products and the weights only.",
            this_library_table(results),
        ),
        (
            "Other libraries",
            "Time of another library divided by the time of this library in the same round: the median, and the smallest and \
             largest in parentheses. Above 1, this library is faster. All outputs agree; \"-\" means not timed.",
            other_libraries_table(results),
        ),
        (
            "Precision",
            "Backends and libraries with other weights than f32, and the errors of their outputs against those of the first \
             backend in f32, which are between -1 and 1: root mean square and largest. Time of the f32 backend divided by this \
             time, in the same round: above 1, this precision is faster.",
            precision_table(results),
        ),
        (
            "Cells",
            "Time of the fused cell divided by the time of another cell in the same case.",
            ratios_to_fused_cell_table(results),
        ),
        (
            "Machine limits",
            "Measured before and after the cases with the same number of threads: throughput of fused multiply-adds (FMA) on \
             registers, latency of dependent ones, and bandwidth of reads from working sets of half of each cache's size and, \
             for memory, of the largest size.",
            machine_limits_table(results),
        ),
        ("Not run", "Backends, libraries and cases that were not timed, and why.", not_run_table(results)),
    ]
}

/// Table of the times of this repository's backends.
fn this_library_table(results: &Results) -> Table {
    let mut table = Table::new([
        "case",
        "threads",
        "backend",
        "time",
        "fastest",
        "steps/s",
        "GFLOP/s",
        "GB/s",
        "roofline",
        "% of roofline",
        "bound by",
    ]);
    for times in results.times.iter().filter(|t| is_backend(results, t)) {
        let Some(case) = results.cases.iter().find(|case| case.name == times.case) else { continue };
        let seconds = times.median_s();
        let mut row = vec![
            times.case.clone(),
            times.threads.to_string(),
            times.subject.clone(),
            format_time(seconds),
            format_time(times.min_s),
            format_with_si_prefix(case.total_steps() as f64 / seconds),
        ];
        row.extend(match results.roofline(times) {
            Some(r) => [format_number(r.flops / seconds * 1e-9), format_number(r.bytes / seconds * 1e-9)],
            None => ["-".to_owned(), "-".to_owned()],
        });
        row.extend(match (results.roofline(times), results.roofline_fraction(times)) {
            (Some(r), Some(fraction)) => {
                [format_time(r.seconds), format_percent(fraction), results.describe_bound(r, times.threads)]
            }
            _ => ["-".to_owned(), "-".to_owned(), "not measured on this device".to_owned()],
        });
        table.add_row(row);
    }
    table
}

/// Whether `times` were measured on a backend of this repository, not in another library.
fn is_backend(results: &Results, times: &Times) -> bool {
    results.subjects.iter().any(|s| s.ours && s.name == times.subject)
}

/// Formats a fraction in percent.
fn format_percent(fraction: f64) -> String {
    format!("{:.0} %", fraction * 100.0)
}

/// Formats a number with the prefix k or M.
fn format_with_si_prefix(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", format_number(v * 1e-6)),
        v if v >= 1e3 => format!("{} k", format_number(v * 1e-3)),
        v => format_number(v),
    }
}

/// Table of the times of the other subjects (backends and libraries), divided by those of the base subject.
fn other_libraries_table(results: &Results) -> Table {
    let Some(base) = results.base_subject() else { return Table::new(["case", "threads"]) };
    let other_subjects: Vec<_> =
        results.subjects.iter().filter(|s| s.name != base.name && s.precision == F32).collect();
    let mut columns = vec!["case".to_owned(), "threads".to_owned(), base.name.clone()];
    columns.extend(other_subjects.iter().map(|s| if s.ours { s.name.clone() } else { s.description.clone() }));
    let mut table = Table::new(columns);
    for (case, threads, base_times) in times_of(results, &base.name) {
        let mut row = vec![case.to_owned(), threads.to_string(), format_time(base_times.median_s())];
        row.extend(other_subjects.iter().map(|other| {
            let ratio = results.times(case, &other.name, threads).and_then(|times| times.ratio_to(base_times));
            ratio.map_or("-".to_owned(), format_ratio)
        }));
        table.add_row(row);
    }
    table
}

/// Table of the times and errors of subjects with another precision than f32.
pub(crate) fn precision_table(results: &Results) -> Table {
    let mut table = Table::new([
        "case",
        "threads",
        "backend or library",
        "precision",
        "time",
        "f32 / this",
        "rms error",
        "largest error",
    ]);
    let Some(base) = results.base_subject() else { return table };
    for case in &results.cases {
        for threads in results.threads() {
            for subject in results.subjects.iter().filter(|subject| subject.precision != F32) {
                let Some(times) = results.times(&case.name, &subject.name, threads) else { continue };
                let base_times = results.times(&case.name, &base.name, threads);
                let ratio = base_times.and_then(|base_times| base_times.ratio_to(times));
                table.add_row([
                    case.name.clone(),
                    threads.to_string(),
                    if subject.ours { subject.name.clone() } else { subject.description.clone() },
                    subject.precision.clone(),
                    format_time(times.median_s()),
                    ratio.map_or("-".to_owned(), format_ratio),
                    format!("{:.1e}", times.rms_difference),
                    format!("{:.1e}", times.difference),
                ]);
            }
        }
    }
    table
}

/// Times of one subject (a backend or library), ordered by number of threads, then by case. Yields the name of the
/// case, the number of threads and the times.
fn times_of<'a>(results: &'a Results, subject: &'a str) -> impl Iterator<Item = (&'a str, usize, &'a Times)> {
    results.threads().into_iter().flat_map(move |threads| {
        let times = move |name: &'a str| results.times(name, subject, threads).map(|times| (name, threads, times));
        results.cases.iter().filter_map(move |case| times(&case.name))
    })
}

/// Compares the fused cell with other kinds of cells. For each case with another cell, returns the name of the case and
/// a ratio: the time of the same case with the fused cell, divided by the time of the case.
pub(crate) fn ratios_to_fused_cell(results: &Results, subject: &str, threads: usize) -> Vec<(String, Spread)> {
    let mut ratios = Vec::new();
    for case in results.cases.iter().filter(|case| case.cell != CellKind::Fused) {
        let fused_case = results.cases.iter().find(|other| {
            let mut other_with_same_cell = (*other).clone();
            (other_with_same_cell.name, other_with_same_cell.cell) = (case.name.clone(), case.cell);
            other.cell == CellKind::Fused && other_with_same_cell == *case
        });
        let times = |name: &str| results.times(name, subject, threads);
        if let Some((case_times, fused_times)) = times(&case.name).zip(fused_case.and_then(|fused| times(&fused.name)))
        {
            ratios.extend(fused_times.ratio_to(case_times).map(|spread| (case.name.clone(), spread)));
        }
    }
    ratios
}

/// Table that compares kinds of LSTM cells: the time of the fused cell divided by the time of each other cell.
fn ratios_to_fused_cell_table(results: &Results) -> Table {
    let mut table = Table::new(["case", "threads", "backend", "fused / this cell"]);
    for subject in results.subjects.iter().filter(|s| s.ours) {
        for threads in results.threads() {
            for (case, spread) in ratios_to_fused_cell(results, &subject.name, threads) {
                table.add_row([case, threads.to_string(), subject.name.clone(), format_ratio(spread)]);
            }
        }
    }
    table
}

/// Table of the limits of the machine: throughput, latency and bandwidths.
fn machine_limits_table(results: &Results) -> Table {
    let caches = &results.machine.caches;
    let mut columns: Vec<String> = ["threads", "instructions", "GFLOP/s", "FMA latency"].map(str::to_owned).to_vec();
    columns.extend((0..caches.len()).map(|k| format!("L{}, GB/s", k + 1)));
    columns.push("memory, GB/s".to_owned());
    let mut table = Table::new(columns);
    for limits in &results.limits {
        let mut row = vec![
            limits.threads.to_string(),
            limits.isa.clone(),
            format_number(limits.flops_per_s * 1e-9),
            format_time(limits.latency_s),
        ];
        row.extend(
            caches
                .iter()
                .map(|&size| format_number(limits.bandwidth(size as f64 / 2.0 * limits.threads as f64) * 1e-9)),
        );
        row.push(limits.bandwidths.last().map_or("-".to_owned(), |last| format_number(last.bytes_per_s * 1e-9)));
        table.add_row(row);
    }
    table
}

/// Table of what was not timed, with one row for each subject and reason.
fn not_run_table(results: &Results) -> Table {
    let mut table = Table::new(["backend or library", "threads", "cases", "reason"]);
    let mut distinct_reasons: Vec<(&str, &str)> = Vec::new();
    for n in &results.not_run {
        if !distinct_reasons.contains(&(&n.subject, &n.why)) {
            distinct_reasons.push((&n.subject, &n.why));
        }
    }
    for (subject, why) in distinct_reasons {
        let entries_with_reason =
            || results.not_run.iter().filter(|n| (n.subject.as_str(), n.why.as_str()) == (subject, why));
        let join_distinct = |values: &mut dyn Iterator<Item = String>| {
            let mut distinct_values: Vec<String> = Vec::new();
            values.for_each(|value| {
                if !distinct_values.contains(&value) {
                    distinct_values.push(value)
                }
            });
            distinct_values.join(", ")
        };
        let threads = join_distinct(&mut entries_with_reason().map(|n| n.threads.to_string()));
        let cases = join_distinct(&mut entries_with_reason().map(|n| n.case.clone().unwrap_or("all".to_owned())));
        table.add_row([subject.to_owned(), threads, cases, why.to_owned()]);
    }
    table
}

/// Formats the report as Markdown.
pub fn markdown(results: &Results) -> String {
    let (title, facts) = report_heading(results);
    let mut text = format!("# {title}\n\n{}\n", facts.join("\n"));
    for (section_title, explanation, table) in sections(results).into_iter().filter(|(.., table)| !table.is_empty()) {
        text.push_str(&format!("\n## {section_title}\n\n{explanation}\n\n{}", table.to_markdown()));
    }
    text
}

/// The main cases: cases that use the fused cell and are not part of a series of sizes.
pub(crate) fn main_cases(results: &Results) -> Vec<&Case> {
    results.cases.iter().filter(|case| case.series.is_none() && case.cell == CellKind::Fused).collect()
}

/// Short description of a case.
pub(crate) fn describe_case(case: &Case) -> String {
    let kind = match case.kind {
        CaseKind::Step => "one step of a stream",
        CaseKind::Forward => "forward",
        CaseKind::Train => "forward and backward",
    };
    let layers = match (case.layers, case.bidir) {
        (1, false) => String::new(),
        (n, false) => format!(", {n} layers"),
        (n, true) => format!(", {n} layers, both directions"),
    };
    let steps = if case.kind == CaseKind::Step { String::new() } else { format!(", {} steps", case.seq) };
    format!("{kind}, {} to {}, batch {}{steps}{layers}", case.input, case.hidden, case.batch)
}
