//! The charts of a report: what is drawn of which results. How is in `draw`.

use anyhow::Result;

use super::{
    cell_ratios,
    draw::{self, ConcatAxis, Series},
    main_cases, plural,
};
use crate::{
    case::{self, Case},
    results::{Results, Spread},
};

/// A drawing and what it says.
#[derive(Clone, Debug)]
pub struct Chart {
    /// An `<svg>` element.
    pub svg: String,
    /// How to read it.
    pub caption: String,
}

/// All charts that these results have the figures for.
///
/// # Errors
/// What the drawing library refuses.
pub fn all(results: &Results) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    let threads = results.threads();
    for &n in &threads {
        charts.push(times(results, n)?);
    }
    for &n in &threads {
        charts.push(ratios(results, n)?);
    }
    charts.push(fractions(results)?);
    charts.push(cells(results)?);
    for series in [case::Series::Hidden, case::Series::Batch, case::Series::Seq] {
        for &n in &threads {
            charts.push(scaling(results, series, n)?);
        }
    }
    charts.push(bandwidth(results)?);
    Ok(charts.into_iter().flatten().collect())
}

/// The floor's colour, black.
const FLOOR: usize = 9;

fn point(value: f64) -> Spread {
    Spread { mid: value, low: value, high: value }
}

/// A chart, unless no series has a figure.
fn unless_empty(series: &[Series], draw: impl FnOnce() -> Result<String>, caption: String) -> Result<Option<Chart>> {
    if series.iter().all(|s| s.values.iter().all(Option::is_none)) {
        return Ok(None);
    }
    Ok(Some(Chart { svg: draw()?, caption }))
}

/// One series for each subject: a figure, or none, for each case.
fn by_subject(results: &Results, cases: &[&Case], figure: impl Fn(&str, &str) -> Option<Spread>) -> Vec<Series> {
    let series = |(colour, s): (usize, &crate::results::Subject)| Series {
        name: s.name.clone(),
        bold: s.ours,
        colour,
        values: cases.iter().map(|case| figure(&case.name, &s.name)).collect(),
    };
    let all = results.subjects.iter().enumerate().map(series);
    all.filter(|s| s.values.iter().any(Option::is_some)).collect()
}

fn times(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let cases = main_cases(results);
    let series = by_subject(results, &cases, |case, subject| {
        Spread::of(results.times(case, subject, threads)?.turns_s.iter().copied())
    });
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time of one run, {}", plural(threads));
    let caption =
        "Further left is faster; the axis is logarithmic. Lines go from the fastest turn to the slowest.".to_owned();
    unless_empty(&series, || draw::dots(&title, ConcatAxis::times("time of one run"), &rows, &series, None), caption)
}

fn ratios(results: &Results, threads: usize) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let cases = main_cases(results);
    let mut series = by_subject(results, &cases, |case, subject| {
        results.times(case, subject, threads)?.over(results.times(case, &base.name, threads)?)
    });
    series.retain(|s| s.name != base.name);
    let rows: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let title = format!("Time of others over that of {}, {}", base.name, plural(threads));
    let caption = format!(
        "Right of 1, {} is faster; the leftmost dot is the best of the others. Lines go from the smallest ratio of turns beside \
         each other to the largest. The axis is logarithmic.",
        base.name
    );
    let axis = ConcatAxis::log(format!("time over that of {}", base.name), |v| format!("{v}"));
    unless_empty(&series, || draw::dots(&title, axis, &rows, &series, Some(1.0)), caption)
}

fn fractions(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series.is_none()).collect();
    let one = |(colour, threads): (usize, usize)| Series {
        name: plural(threads),
        bold: true,
        colour,
        values: cases
            .iter()
            .map(|case| results.fraction(results.times(&case.name, &base.name, threads)?).map(point))
            .collect(),
    };
    let series: Vec<Series> = results.threads().into_iter().enumerate().map(one).collect();
    let bound = |case: &&Case| {
        let threads = results.threads();
        let bounds = threads.iter().filter_map(|&n| Some(results.bound(results.roofline(&case.name, n)?, n)));
        let mut bounds: Vec<String> = bounds.collect();
        bounds.dedup();
        format!("{} ({})", case.name, bounds.join("; "))
    };
    let rows: Vec<String> = cases.iter().map(bound).collect();
    let title = format!("How near {} is to the floor", base.name);
    let caption = "The least time that this machine needs for a case's flops and bytes, over the time measured; in brackets what \
                   bounds it.";
    let axis = ConcatAxis::linear("floor over time", Some((0.0, 1.0)), |v| format!("{:.0} %", v * 100.0));
    unless_empty(&series, || draw::dots(&title, axis, &rows, &series, Some(1.0)), caption.to_owned())
}

fn cells(results: &Results) -> Result<Option<Chart>> {
    let Some(base) = results.base() else { return Ok(None) };
    let ratios: Vec<_> = results.threads().into_iter().map(|n| (n, cell_ratios(results, &base.name, n))).collect();
    let mut rows: Vec<String> = Vec::new();
    for (name, _) in ratios.iter().flat_map(|(_, ratios)| ratios) {
        if !rows.contains(name) {
            rows.push(name.clone());
        }
    }
    let one = |colour: usize| Series {
        name: plural(ratios[colour].0),
        bold: true,
        colour,
        values: rows
            .iter()
            .map(|row| ratios[colour].1.iter().find(|(name, _)| name == row).map(|(_, spread)| *spread))
            .collect(),
    };
    let series: Vec<Series> = (0..ratios.len()).map(one).collect();
    let title = format!("The fused cell's time over that of other cells, {}", base.name);
    let caption =
        "Left of 1 the other cell is slower. Lines go from the smallest ratio of turns to the largest.".to_owned();
    let axis = ConcatAxis::linear("fused over it", Some((0.0, 1.0)), |v| format!("{v:.1}"));
    unless_empty(&series, || draw::dots(&title, axis, &rows, &series, Some(1.0)), caption)
}

fn scaling(results: &Results, series: case::Series, threads: usize) -> Result<Option<Chart>> {
    let cases: Vec<&Case> = results.cases.iter().filter(|case| case.series == Some(series)).collect();
    let size = |case: &Case| match series {
        case::Series::Hidden => case.hidden,
        case::Series::Batch => case.batch,
        case::Series::Seq => case.seq,
    } as f64;
    let mut lines =
        by_subject(results, &cases, |case, subject| Some(point(results.times(case, subject, threads)?.median_s())));
    let floor = |case: &&Case| results.roofline(&case.name, threads).map(|r| point(r.seconds));
    if !lines.is_empty() {
        lines.push(Series {
            name: "floor".to_owned(),
            bold: false,
            colour: FLOOR,
            values: cases.iter().map(floor).collect(),
        });
    }
    let Some(first) = cases.first() else { return Ok(None) };
    let (what, rest) = match series {
        case::Series::Hidden => ("hidden size", format!("batch {}, {} steps", first.batch, first.seq)),
        case::Series::Batch => ("batch", format!("hidden size {}, {} steps", first.hidden, first.seq)),
        case::Series::Seq => ("steps", format!("hidden size {}, batch {}", first.hidden, first.batch)),
    };
    let xs: Vec<f64> = cases.iter().map(|case| size(case)).collect();
    let title = format!("Time by {what}, {rest}, {}", plural(threads));
    let caption = "Forward, whole sequences. Both axes are logarithmic.".to_owned();
    let x = ConcatAxis::log(what, |v| format!("{v}")).at(&xs);
    unless_empty(&lines, || draw::lines(&title, x, ConcatAxis::times("time of one run"), &xs, &lines), caption)
}

fn bandwidth(results: &Results) -> Result<Option<Chart>> {
    // By the bytes of one thread, so that cache sizes are at one place.
    let each = |floor: &crate::floor::Floor| {
        floor.ladder.iter().map(|step| step.bytes / floor.threads as f64).collect::<Vec<_>>()
    };
    let Some(longest) = results.floors.iter().max_by_key(|floor| floor.ladder.len()) else { return Ok(None) };
    let line = |(colour, floor): (usize, &crate::floor::Floor)| Series {
        name: plural(floor.threads),
        bold: true,
        colour,
        values: (0..longest.ladder.len()).map(|k| floor.ladder.get(k).map(|step| point(step.rate))).collect(),
    };
    let series: Vec<Series> = results.floors.iter().enumerate().map(line).collect();
    let x = ConcatAxis::log("bytes of each thread, walked back and forth", |v| match v {
        v if v >= 1e9 => format!("{:.0} GB", v * 1e-9),
        v if v >= 1e6 => format!("{:.0} MB", v * 1e-6),
        v => format!("{:.0} kB", v * 1e-3),
    });
    let y = ConcatAxis::log("all threads together", |v| format!("{:.0} GB/s", v * 1e-9));
    let caption = "What the floors of bandwidth come from, measured before and after the cases.".to_owned();
    unless_empty(&series, || draw::lines("How fast this machine reads", x, y, &each(longest), &series), caption)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_figures_there_is_no_chart() {
        let series = [Series { name: String::new(), bold: false, colour: 0, values: vec![None] }];
        let never = || -> Result<String> { panic!("nothing to draw") };
        assert!(unless_empty(&series, never, String::new()).unwrap().is_none());
    }
}
