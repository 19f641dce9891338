//! The charts of a report: which results each chart shows. Drawing is in `draw`.

use anyhow::Result;

use super::{
    cell_ratios,
    draw::{self, Axis, Series},
    main_cases, thread_count,
};
use crate::{
    case::{self, Case},
    results::{Results, Spread, Subject},
    roofline::MachineLimits,
};

/// A chart with its caption.
#[derive(Clone, Debug)]
pub struct Chart {
    /// The chart as an `<svg>` element.
    pub svg: String,
    /// Explanation of the chart.
    pub caption: String,
}

/// Draws all charts for which there are results.
///
/// # Errors
/// If a chart can't be drawn.
pub fn all(results: &Results) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    let threads = results.threads();
    for &n in &threads {
        charts.push(times(results, n)?);
    }
    for &n in &threads {
        charts.push(ratios(results, n)?);
    }
    charts.push(roofline_fractions(results)?);
    charts.push(cells(results)?);
    for series in [case::Series::Hidden, case::Series::Batch, case::Series::Seq] {
        for &n in &threads {
            charts.push(scaling(results, series, n)?);
        }
    }
    charts.push(bandwidth(results)?);
    Ok(charts.into_iter().flatten().collect())
}

/// Index of the color of the roofline, black.
const ROOFLINE_COLOR: usize = 9;

/// A spread of a single value.
fn single_value(value: f64) -> Spread {
    Spread { median: value, min: value, max: value }
}

/// Draws a chart, or returns `None` if no series has a value.
fn unless_empty(series: &[Series], draw: impl FnOnce() -> Result<String>, caption: String) -> Result<Option<Chart>> {
    if series.iter().all(|s| s.values.iter().all(Option::is_none)) {
        return Ok(None);
    }
    Ok(Some(Chart { svg: draw()?, caption }))
}

/// One series for each subject, with an optional value for each case. Subjects without values are left out.
fn by_subject(results: &Results, cases: &[&Case], value: impl Fn(&str, &str) -> Option<Spread>) -> Vec<Series> {
    let series = |(color, s): (usize, &Subject)| Series {
        name: s.name.clone(),
        bold: s.ours,
        color,
        values: cases.iter().map(|case| value(&case.name, &s.name)).collect(),
    };
    let all = results.subjects.iter().enumerate().map(series);
    all.filter(|s| s.values.iter().any(Option::is_some)).collect()
}

/// Chart of the times of all subjects.
fn times(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let cases = main_cases(results);
    let series = by_subject(results, &cases, |case, subject| {
        Spread::of(results.times(case, subject, threads)?.round_medians_s.iter().copied())
    });
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time of one run, {}", thread_count(threads));
    let caption =
        "Further left is faster; the axis is logarithmic. Lines extend from the fastest to the slowest round."
            .to_owned();
    unless_empty(&series, || draw::dot_plot(&title, Axis::times("time of one run"), &rows, &series, None), caption)
}

/// Chart of the times of other subjects relative to the base subject.
fn ratios(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let cases = main_cases(results);
    let mut series = by_subject(results, &cases, |case, subject| {
        results.times(case, subject, threads)?.ratio_to(results.times(case, &base.name, threads)?)
    });
    series.retain(|s| s.name != base.name);
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time relative to {}, {}", base.name, thread_count(threads));
    let caption = format!(
        "Right of 1, {} is faster; the leftmost dot is the fastest of the others. Lines extend from the smallest to the largest \
         ratio within a round. The axis is logarithmic.",
        base.name
    );
    let axis = Axis::log(format!("time / time of {}", base.name), |v| format!("{v}"));
    unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption)
}

/// Chart of the roofline fraction of the base subject in each case.
fn roofline_fractions(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series.is_none()).collect();
    let one = |(color, threads): (usize, usize)| Series {
        name: thread_count(threads),
        bold: true,
        color,
        values: cases
            .iter()
            .map(|case| results.roofline_fraction(results.times(&case.name, &base.name, threads)?).map(single_value))
            .collect(),
    };
    let series: Vec<Series> = results.threads().into_iter().enumerate().map(one).collect();
    let row_label = |case: &&Case| {
        let threads = results.threads();
        let bounds = threads.iter().filter_map(|&n| Some(results.describe_bound(results.roofline(&case.name, n)?, n)));
        let mut bounds: Vec<String> = bounds.collect();
        bounds.dedup();
        format!("{} ({})", case.name, bounds.join("; "))
    };
    let rows: Vec<String> = cases.iter().map(row_label).collect();
    let title = format!("Percent of roofline, {}", base.name);
    let caption = "The least time that this machine needs for a case's flops and bytes, divided by the measured time. What bounds \
                   the case is in parentheses.";
    let axis = Axis::linear("roofline / time", Some((0.0, 1.0)), |v| format!("{:.0} %", v * 100.0));
    unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption.to_owned())
}

/// Chart of the fused cell's time relative to other cells.
fn cells(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let ratios: Vec<_> = results.threads().into_iter().map(|n| (n, cell_ratios(results, &base.name, n))).collect();
    let mut rows: Vec<String> = Vec::new();
    for (name, _) in ratios.iter().flat_map(|(_, ratios)| ratios) {
        if !rows.contains(name) {
            rows.push(name.clone());
        }
    }
    let one = |color: usize| Series {
        name: thread_count(ratios[color].0),
        bold: true,
        color,
        values: rows
            .iter()
            .map(|row| ratios[color].1.iter().find(|(name, _)| name == row).map(|(_, spread)| *spread))
            .collect(),
    };
    let series: Vec<Series> = (0..ratios.len()).map(one).collect();
    let title = format!("Time of the fused cell relative to other cells, {}", base.name);
    let caption =
        "Left of 1 the other cell is slower. Lines go from the smallest ratio of turns to the largest.".to_owned();
    let axis = Axis::linear("fused over it", Some((0.0, 1.0)), |v| format!("{v:.1}"));
    unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption)
}

fn scaling(results: &Results, series: case::Series, threads: usize) -> Result<Option<Chart>> {
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series == Some(series)).collect();
    let size = |case: &Case| match series {
        case::Series::Hidden => case.hidden,
        case::Series::Batch => case.batch,
        case::Series::Seq => case.seq,
    } as f64;
    let mut lines = by_subject(results, &cases, |case, subject| {
        Some(single_value(results.times(case, subject, threads)?.median_s()))
    });
    let roofline = |case: &&Case| results.roofline(&case.name, threads).map(|r| single_value(r.seconds));
    if !lines.is_empty() {
        lines.push(Series {
            name: "roofline".to_owned(),
            bold: false,
            color: ROOFLINE_COLOR,
            values: cases.iter().map(roofline).collect(),
        });
    }
    let Some(first) = cases.first() else { return Ok(None) };
    let (what, rest) = match series {
        case::Series::Hidden => ("hidden size", format!("batch {}, {} steps", first.batch, first.seq)),
        case::Series::Batch => ("batch", format!("hidden size {}, {} steps", first.hidden, first.seq)),
        case::Series::Seq => ("steps", format!("hidden size {}, batch {}", first.hidden, first.batch)),
    };
    let xs: Vec<f64> = cases.iter().map(|case| size(case)).collect();
    let title = format!("Time by {what}, {rest}, {}", thread_count(threads));
    let caption = "Forward, whole sequences. Both axes are logarithmic.".to_owned();
    let x = Axis::log(what, |v| format!("{v}")).ticks_at(&xs);
    unless_empty(&lines, || draw::line_plot(&title, x, Axis::times("time of one run"), &xs, &lines), caption)
}

/// Chart of the read bandwidth for growing working sets.
fn bandwidth(results: &Results) -> Result<Option<Chart>> {
    // By bytes per thread, so that a cache size is at the same position for all numbers of threads.
    let bytes_per_thread = |limits: &MachineLimits| {
        limits.bandwidths.iter().map(|point| point.bytes / limits.threads as f64).collect::<Vec<_>>()
    };
    let Some(longest) = results.limits.iter().max_by_key(|limits| limits.bandwidths.len()) else { return Ok(None) };
    let line = |(color, limits): (usize, &MachineLimits)| Series {
        name: thread_count(limits.threads),
        bold: true,
        color,
        values: (0..longest.bandwidths.len())
            .map(|k| limits.bandwidths.get(k).map(|point| single_value(point.bytes_per_s)))
            .collect(),
    };
    let series: Vec<Series> = results.limits.iter().enumerate().map(line).collect();
    let x = Axis::log("working set per thread", |v| match v {
        v if v >= 1e9 => format!("{:.0} GB", v * 1e-9),
        v if v >= 1e6 => format!("{:.0} MB", v * 1e-6),
        v => format!("{:.0} kB", v * 1e-3),
    });
    let y = Axis::log("bandwidth of all threads", |v| format!("{:.0} GB/s", v * 1e-9));
    let caption = "The bandwidths that rooflines are calculated from, measured before and after the cases.".to_owned();
    unless_empty(
        &series,
        || draw::line_plot("Read bandwidth of this machine", x, y, &bytes_per_thread(longest), &series),
        caption,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_series_give_no_chart() {
        let series = [Series { name: String::new(), bold: false, color: 0, values: vec![None] }];
        let unreachable = || -> Result<String> { panic!("nothing to draw") };
        assert!(unless_empty(&series, unreachable, String::new()).unwrap().is_none());
    }
}
