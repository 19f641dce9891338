//! The charts of a report: which results each chart shows. Drawing is in `draw`.

use anyhow::Result;

use super::{
    draw::{self, Axis, Series},
    format_thread_count, main_cases, ratios_to_fused_cell,
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
pub fn all_charts(results: &Results) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    let threads = results.threads();
    for &n in &threads {
        charts.push(times_chart(results, n)?);
    }
    for &n in &threads {
        charts.push(ratios_chart(results, n)?);
    }
    charts.push(roofline_fractions_chart(results)?);
    charts.push(cell_ratios_chart(results)?);
    for series in [case::VariedSize::Hidden, case::VariedSize::Batch, case::VariedSize::Seq] {
        for &n in &threads {
            charts.push(scaling_chart(results, series, n)?);
        }
    }
    charts.push(bandwidth_chart(results)?);
    Ok(charts.into_iter().flatten().collect())
}

/// Index in `draw::COLORS` of black, the color in which rooflines are drawn.
const ROOFLINE_COLOR_INDEX: usize = 9;

/// Returns a spread whose median, smallest and largest value are all `value`.
fn spread_of_value(value: f64) -> Spread {
    Spread { median: value, min: value, max: value }
}

/// Draws a chart, or returns `None` if no series has a value.
fn chart_unless_empty(
    series: &[Series],
    draw: impl FnOnce() -> Result<String>,
    caption: String,
) -> Result<Option<Chart>> {
    if series.iter().all(|s| s.values.iter().all(Option::is_none)) {
        return Ok(None);
    }
    Ok(Some(Chart { svg: draw()?, caption }))
}

/// Creates one series of values for each subject (a backend or another library). `value` takes the names of the case
/// and the subject and returns the value to show. Subjects without values are left out.
fn series_by_subject(results: &Results, cases: &[&Case], value: impl Fn(&str, &str) -> Option<Spread>) -> Vec<Series> {
    let series_of = |(color_index, s): (usize, &Subject)| Series {
        name: s.name.clone(),
        bold: s.ours,
        color_index,
        values: cases.iter().map(|case| value(&case.name, &s.name)).collect(),
    };
    let all_series = results.subjects.iter().enumerate().map(series_of);
    all_series.filter(|s| s.values.iter().any(Option::is_some)).collect()
}

/// Chart of the times of all subjects (backends and other libraries).
fn times_chart(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let cases = main_cases(results);
    let series = series_by_subject(results, &cases, |case, subject| {
        Spread::of(results.times(case, subject, threads)?.round_medians_s.iter().copied())
    });
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time of one run, {}", format_thread_count(threads));
    let caption =
        "Further left is faster; the axis is logarithmic. Lines extend from the fastest to the slowest round."
            .to_owned();
    chart_unless_empty(
        &series,
        || draw::dot_plot(&title, Axis::times("time of one run"), &rows, &series, None),
        caption,
    )
}

/// Chart that shows how much slower or faster other subjects (backends and libraries) are than the base subject.
fn ratios_chart(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let Some(base) = results.base_subject() else { return Ok(None) };
    let cases = main_cases(results);
    let mut series = series_by_subject(results, &cases, |case, subject| {
        results.times(case, subject, threads)?.ratio_to(results.times(case, &base.name, threads)?)
    });
    series.retain(|s| s.name != base.name);
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time relative to {}, {}", base.name, format_thread_count(threads));
    let caption = format!(
        "Right of 1, {} is faster; the leftmost dot is the fastest of the others. Lines extend from the smallest to the largest \
         ratio within a round. The axis is logarithmic.",
        base.name
    );
    let axis = Axis::log(format!("time / time of {}", base.name), |v| format!("{v}"));
    chart_unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption)
}

/// Chart of how close the base subject comes to the roofline: the least possible time of each case divided by the
/// measured time.
fn roofline_fractions_chart(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base_subject() else { return Ok(None) };
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series.is_none()).collect();
    let series_for_threads = |(color_index, threads): (usize, usize)| Series {
        name: format_thread_count(threads),
        bold: true,
        color_index,
        values: cases
            .iter()
            .map(|case| results.roofline_fraction(results.times(&case.name, &base.name, threads)?).map(spread_of_value))
            .collect(),
    };
    let series: Vec<Series> = results.threads().into_iter().enumerate().map(series_for_threads).collect();
    let row_label = |case: &&Case| {
        let threads = results.threads();
        let bound_descriptions =
            threads.iter().filter_map(|&n| Some(results.describe_bound(results.f32_roofline(&case.name, n)?, n)));
        let mut bound_descriptions: Vec<String> = bound_descriptions.collect();
        bound_descriptions.dedup();
        format!("{} ({})", case.name, bound_descriptions.join("; "))
    };
    let rows: Vec<String> = cases.iter().map(row_label).collect();
    let title = format!("Percent of roofline, {}", base.name);
    let caption = "The least time that this machine needs for a case's flops and bytes, divided by the measured time. What bounds \
                   the case is in parentheses.";
    let axis = Axis::linear("roofline / time", Some((0.0, 1.0)), |v| format!("{:.0} %", v * 100.0));
    chart_unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption.to_owned())
}

/// Chart that compares kinds of LSTM cells: the time of the fused cell divided by the time of each other cell.
fn cell_ratios_chart(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base_subject() else { return Ok(None) };
    let ratios_per_thread_count: Vec<_> =
        results.threads().into_iter().map(|n| (n, ratios_to_fused_cell(results, &base.name, n))).collect();
    let mut rows: Vec<String> = Vec::new();
    for (name, _) in ratios_per_thread_count.iter().flat_map(|(_, ratios)| ratios) {
        if !rows.contains(name) {
            rows.push(name.clone());
        }
    }
    let series_for_threads = |color_index: usize| Series {
        name: format_thread_count(ratios_per_thread_count[color_index].0),
        bold: true,
        color_index,
        values: rows
            .iter()
            .map(|row| {
                ratios_per_thread_count[color_index].1.iter().find(|(name, _)| name == row).map(|(_, spread)| *spread)
            })
            .collect(),
    };
    let series: Vec<Series> = (0..ratios_per_thread_count.len()).map(series_for_threads).collect();
    let title = format!("Time of the fused cell relative to other cells, {}", base.name);
    let caption =
        "Left of 1 the other cell is slower. Lines go from the smallest ratio of turns to the largest.".to_owned();
    let axis = Axis::linear("fused over it", Some((0.0, 1.0)), |v| format!("{v:.1}"));
    chart_unless_empty(&series, || draw::dot_plot(&title, axis, &rows, &series, Some(1.0)), caption)
}

/// Chart of the times of a series of cases in which one size, such as the hidden size, grows.
fn scaling_chart(results: &Results, series: case::VariedSize, threads: usize) -> Result<Option<Chart>> {
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series == Some(series)).collect();
    let varied_size_of = |case: &Case| match series {
        case::VariedSize::Hidden => case.hidden,
        case::VariedSize::Batch => case.batch,
        case::VariedSize::Seq => case.seq,
    } as f64;
    let mut lines = series_by_subject(results, &cases, |case, subject| {
        Some(spread_of_value(results.times(case, subject, threads)?.median_s()))
    });
    let roofline = |case: &&Case| results.f32_roofline(&case.name, threads).map(|r| spread_of_value(r.seconds));
    if !lines.is_empty() {
        lines.push(Series {
            name: "roofline".to_owned(),
            bold: false,
            color_index: ROOFLINE_COLOR_INDEX,
            values: cases.iter().map(roofline).collect(),
        });
    }
    let Some(first_case) = cases.first() else { return Ok(None) };
    let (varied_size, other_sizes) = match series {
        case::VariedSize::Hidden => ("hidden size", format!("batch {}, {} steps", first_case.batch, first_case.seq)),
        case::VariedSize::Batch => ("batch", format!("hidden size {}, {} steps", first_case.hidden, first_case.seq)),
        case::VariedSize::Seq => ("steps", format!("hidden size {}, batch {}", first_case.hidden, first_case.batch)),
    };
    let xs: Vec<f64> = cases.iter().map(|case| varied_size_of(case)).collect();
    let title = format!("Time by {varied_size}, {other_sizes}, {}", format_thread_count(threads));
    let caption = "Forward, whole sequences. Both axes are logarithmic.".to_owned();
    let x = Axis::log(varied_size, |v| format!("{v}")).ticks_at(&xs);
    chart_unless_empty(&lines, || draw::line_plot(&title, x, Axis::times("time of one run"), &xs, &lines), caption)
}

/// Chart of the read bandwidth for growing working sets.
fn bandwidth_chart(results: &Results) -> Result<Option<Chart>> {
    // By bytes per thread, so that a cache size is at the same position for all numbers of threads.
    let bytes_per_thread = |limits: &MachineLimits| {
        limits.bandwidths.iter().map(|point| point.bytes / limits.threads as f64).collect::<Vec<_>>()
    };
    let Some(longest_limits) = results.limits.iter().max_by_key(|limits| limits.bandwidths.len()) else {
        return Ok(None);
    };
    let series_of = |(color_index, limits): (usize, &MachineLimits)| Series {
        name: format_thread_count(limits.threads),
        bold: true,
        color_index,
        values: (0..longest_limits.bandwidths.len())
            .map(|k| limits.bandwidths.get(k).map(|point| spread_of_value(point.bytes_per_s)))
            .collect(),
    };
    let series: Vec<Series> = results.limits.iter().enumerate().map(series_of).collect();
    let x = Axis::log("working set per thread", |v| match v {
        v if v >= 1e9 => format!("{:.0} GB", v * 1e-9),
        v if v >= 1e6 => format!("{:.0} MB", v * 1e-6),
        v => format!("{:.0} kB", v * 1e-3),
    });
    let y = Axis::log("bandwidth of all threads", |v| format!("{:.0} GB/s", v * 1e-9));
    let caption = "The bandwidths that rooflines are calculated from, measured before and after the cases.".to_owned();
    chart_unless_empty(
        &series,
        || draw::line_plot("Read bandwidth of this machine", x, y, &bytes_per_thread(longest_limits), &series),
        caption,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_series_give_no_chart() {
        let series = [Series { name: String::new(), bold: false, color_index: 0, values: vec![None] }];
        let must_not_draw = || -> Result<String> { panic!("nothing to draw") };
        assert!(chart_unless_empty(&series, must_not_draw, String::new()).unwrap().is_none());
    }
}
