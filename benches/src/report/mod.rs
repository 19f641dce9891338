//! Reports of results: tables in Markdown, and a page with charts.

pub mod charts;
mod draw;
pub mod html;
pub mod readme;
pub mod table;

use crate::{
    case::{Cell, Kind},
    results::{Results, Spread, Times},
};
use table::Table;

/// A time with the unit that suits it.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// How many threads, in words.
pub fn plural(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// Three digits.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A ratio and its spread.
fn ratio(spread: Spread) -> String {
    format!("{} ({} to {})", digits(spread.mid), digits(spread.low), digits(spread.high))
}

/// The title and what is to be known before a figure is read.
pub fn head(results: &Results) -> (String, Vec<String>) {
    let m = &results.machine;
    let caches: Vec<String> =
        m.caches.iter().enumerate().map(|(k, size)| format!("L{} {} KiB", k + 1, size / 1024)).collect();
    let load = m.load.map_or("unknown".to_owned(), |load| format!("{load:.2}"));
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
            "{} turns of {} each, one after the other; processes that wanted to run in the minute before: {load}.",
            results.rounds,
            time(results.seconds)
        ),
    ];
    (title, facts)
}

/// All tables, each with its heading and a line that says how to read it.
pub fn sections(results: &Results) -> Vec<(&'static str, &'static str, Table)> {
    vec![
        (
            "Ours",
            "The median over turns of each turn's median run. The floor is what the machine needs for the case's flops and bytes \
             (below); weights count as read once for the input's product and once a step. GFLOP/s and GB/s are of the products \
             and the weights.",
            ours(results),
        ),
        (
            "Beside others",
            "Another's time over ours, turn by turn: the median, and the smallest and largest. Above 1, we are faster. Outputs \
             were compared first; \"-\": not timed.",
            beside(results),
        ),
        ("Cells", "The time of the fused cell's case over that of the same case with another cell.", cells(results)),
        (
            "The machine",
            "Loops run before and after the cases, on as many threads: fused multiply-adds on registers, one that waits for the \
             one before, and loads from bytes that are walked back and forth (half of each cache; memory: the largest size).",
            floors(results),
        ),
        ("Not run", "What was asked for and not timed, and why.", not_run(results)),
    ]
}

fn ours(results: &Results) -> Table {
    let mut table = Table::new([
        "case",
        "threads",
        "backend",
        "time",
        "fastest",
        "steps/s",
        "GFLOP/s",
        "GB/s",
        "floor",
        "of the floor",
        "bound by",
    ]);
    for times in results.times.iter().filter(|t| is_ours(results, t)) {
        let Some(case) = results.cases.iter().find(|case| case.name == times.case) else { continue };
        let seconds = times.median_s();
        let mut row = vec![
            times.case.clone(),
            times.threads.to_string(),
            times.subject.clone(),
            time(seconds),
            time(times.min_s),
            si(case.steps() as f64 / seconds),
        ];
        row.extend(match results.roofline(&times.case, times.threads) {
            Some(r) => [digits(r.flops / seconds * 1e-9), digits(r.bytes / seconds * 1e-9)],
            None => ["-".to_owned(), "-".to_owned()],
        });
        row.extend(match (results.roofline(&times.case, times.threads), results.fraction(times)) {
            (Some(r), Some(part)) => [time(r.seconds), percent(part), results.bound(r, times.threads)],
            _ => ["-".to_owned(), "-".to_owned(), "not measured on this device".to_owned()],
        });
        table.row(row);
    }
    table
}

fn is_ours(results: &Results, times: &Times) -> bool {
    results.subjects.iter().any(|s| s.ours && s.name == times.subject)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn si(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", digits(v * 1e-6)),
        v if v >= 1e3 => format!("{} k", digits(v * 1e-3)),
        v => digits(v),
    }
}

fn beside(results: &Results) -> Table {
    let Some(base) = results.base() else { return Table::new(["case", "threads"]) };
    let others: Vec<_> = results.subjects.iter().filter(|s| s.name != base.name).collect();
    let mut heads = vec!["case".to_owned(), "threads".to_owned(), base.name.clone()];
    heads.extend(others.iter().map(|s| if s.ours { s.name.clone() } else { s.about.clone() }));
    let mut table = Table::new(heads);
    for (case, threads, ours) in of(results, &base.name) {
        let mut row = vec![case.to_owned(), threads.to_string(), time(ours.median_s())];
        row.extend(others.iter().map(|other| {
            let over = results.times(case, &other.name, threads).and_then(|theirs| theirs.over(ours));
            over.map_or("-".to_owned(), ratio)
        }));
        table.row(row);
    }
    table
}

/// A subject's times in the order of threads and cases.
pub(crate) fn of<'a>(results: &'a Results, subject: &'a str) -> impl Iterator<Item = (&'a str, usize, &'a Times)> {
    results.threads().into_iter().flat_map(move |threads| {
        let times = move |name: &'a str| results.times(name, subject, threads).map(|times| (name, threads, times));
        results.cases.iter().filter_map(move |case| times(&case.name))
    })
}

/// For each cell but the fused: the case, the same with the fused cell, and the ratio of their times.
pub(crate) fn cell_ratios(results: &Results, subject: &str, threads: usize) -> Vec<(String, Spread)> {
    let mut ratios = Vec::new();
    for case in results.cases.iter().filter(|case| case.cell != Cell::Fused) {
        let fused = results.cases.iter().find(|other| {
            let mut same = (*other).clone();
            (same.name, same.cell) = (case.name.clone(), case.cell);
            other.cell == Cell::Fused && same == *case
        });
        let times = |name: &str| results.times(name, subject, threads);
        if let Some((mine, fused)) = times(&case.name).zip(fused.and_then(|fused| times(&fused.name))) {
            ratios.extend(fused.over(mine).map(|spread| (case.name.clone(), spread)));
        }
    }
    ratios
}

fn cells(results: &Results) -> Table {
    let mut table = Table::new(["case", "threads", "backend", "fused over it"]);
    for subject in results.subjects.iter().filter(|s| s.ours) {
        for threads in results.threads() {
            for (case, spread) in cell_ratios(results, &subject.name, threads) {
                table.row([case, threads.to_string(), subject.name.clone(), ratio(spread)]);
            }
        }
    }
    table
}

fn floors(results: &Results) -> Table {
    let caches = &results.machine.caches;
    let mut heads: Vec<String> = ["threads", "loops", "GFLOP/s", "one waits"].map(str::to_owned).to_vec();
    heads.extend((0..caches.len()).map(|k| format!("L{}, GB/s", k + 1)));
    heads.push("memory, GB/s".to_owned());
    let mut table = Table::new(heads);
    for floor in &results.floors {
        let mut row =
            vec![floor.threads.to_string(), floor.isa.clone(), digits(floor.flops * 1e-9), time(floor.latency_s)];
        row.extend(caches.iter().map(|&size| digits(floor.bandwidth(size as f64 / 2.0 * floor.threads as f64) * 1e-9)));
        row.push(floor.ladder.last().map_or("-".to_owned(), |last| digits(last.rate * 1e-9)));
        table.row(row);
    }
    table
}

fn not_run(results: &Results) -> Table {
    let mut table = Table::new(["who", "threads", "cases", "why"]);
    // A reason that is the same for several cases is told once.
    let mut reasons: Vec<(&str, &str)> = Vec::new();
    for n in &results.not_run {
        if !reasons.contains(&(&n.subject, &n.why)) {
            reasons.push((&n.subject, &n.why));
        }
    }
    for (subject, why) in reasons {
        let same = || results.not_run.iter().filter(|n| (n.subject.as_str(), n.why.as_str()) == (subject, why));
        let once = |all: &mut dyn Iterator<Item = String>| {
            let mut each: Vec<String> = Vec::new();
            all.for_each(|one| {
                if !each.contains(&one) {
                    each.push(one)
                }
            });
            each.join(", ")
        };
        let threads = once(&mut same().map(|n| n.threads.to_string()));
        let cases = once(&mut same().map(|n| n.case.clone().unwrap_or("all".to_owned())));
        table.row([subject.to_owned(), threads, cases, why.to_owned()]);
    }
    table
}

/// The report as Markdown.
pub fn markdown(results: &Results) -> String {
    let (title, facts) = head(results);
    let mut text = format!("# {title}\n\n{}\n", facts.join("\n"));
    for (heading, about, table) in sections(results).into_iter().filter(|(.., table)| !table.is_empty()) {
        text.push_str(&format!("\n## {heading}\n\n{about}\n\n{}", table.markdown()));
    }
    text
}

/// The cases that one table shows first: those of no chart, of the fused cell.
pub(crate) fn main_cases(results: &Results) -> Vec<&crate::case::Case> {
    results.cases.iter().filter(|case| case.series.is_none() && case.cell == Cell::Fused).collect()
}

/// What a case is, in a few words.
pub(crate) fn describe(case: &crate::case::Case) -> String {
    let kind = match case.kind {
        Kind::Step => "one step of a stream",
        Kind::Forward => "forward",
        Kind::Train => "forward and backward",
    };
    let layers = match (case.layers, case.bidir) {
        (1, false) => String::new(),
        (n, false) => format!(", {n} layers"),
        (n, true) => format!(", {n} layers, both directions"),
    };
    let steps = if case.kind == Kind::Step { String::new() } else { format!(", {} steps", case.seq) };
    format!("{kind}, {} to {}, batch {}{steps}{layers}", case.input, case.hidden, case.batch)
}
