//! Draws charts as SVG: dot plots with a row for each name, and line plots.

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::results::Spread;

/// A series of values in a chart, drawn in one color.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Name in the legend.
    pub(super) name: String,
    /// Whether the dots of this series are drawn larger than those of other series.
    pub(super) bold: bool,
    /// Index into [`COLORS`].
    pub(super) color: usize,
    /// Optional value for each row of a dot plot or each x of a line plot.
    pub(super) values: Vec<Option<Spread>>,
}

/// Title, kind and tick labels of an axis.
pub(super) struct Axis {
    title: String,
    logarithmic: bool,
    /// Range that is always shown.
    include: Option<(f64, f64)>,
    /// Formats the label of a tick.
    label: fn(f64) -> String,
    /// Positions of the ticks; `None` for round numbers.
    fixed_ticks: Option<Vec<f64>>,
}

/// An axis with its range.
struct Scale {
    axis: Axis,
    min: f64,
    max: f64,
}

impl Axis {
    /// A logarithmic axis.
    pub(super) fn log(title: impl Into<String>, label: fn(f64) -> String) -> Self {
        Axis { title: title.into(), logarithmic: true, include: None, label, fixed_ticks: None }
    }

    /// A linear axis.
    pub(super) fn linear(title: impl Into<String>, include: Option<(f64, f64)>, label: fn(f64) -> String) -> Self {
        Axis { title: title.into(), logarithmic: false, include, label, fixed_ticks: None }
    }

    /// A logarithmic axis of times in seconds.
    pub(super) fn times(title: &str) -> Self {
        Axis::log(title, |v| {
            let (value, unit) = match v {
                v if v < 0.999e-6 => (v * 1e9, "ns"),
                v if v < 0.999e-3 => (v * 1e6, "us"),
                v if v < 0.999 => (v * 1e3, "ms"),
                v => (v, "s"),
            };
            format!("{} {unit}", (value * 1e3).round() / 1e3)
        })
    }

    /// Sets the positions of the ticks.
    pub(super) fn ticks_at(self, ticks: &[f64]) -> Self {
        Axis { fixed_ticks: Some(ticks.to_vec()), ..self }
    }

    /// Chooses a range that contains all values, with a margin.
    fn scale(self, values: impl Iterator<Item = f64>) -> Scale {
        let extra = self.include.into_iter().flat_map(|(min, max)| [min, max]);
        let all = values.chain(extra).filter(|v| v.is_finite() && (!self.logarithmic || *v > 0.0));
        let (min, max) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
        if self.logarithmic {
            return Scale { axis: self, min: min / 1.15, max: max * 1.15 };
        }
        let margin = (max - min).max(f64::MIN_POSITIVE) * 0.05;
        Scale { min: if min == 0.0 { 0.0 } else { min - margin }, max: max + margin, axis: self }
    }
}

impl Scale {
    /// Position of a value on the axis, from 0 at the minimum to 1 at the maximum.
    fn position(&self, v: f64) -> f64 {
        match self.axis.logarithmic {
            true => (v / self.min).ln() / (self.max / self.min).ln(),
            false => (v - self.min) / (self.max - self.min),
        }
    }

    /// Positions of the ticks: the fixed ones, or at most ten round numbers.
    fn ticks(&self) -> Vec<f64> {
        if let Some(ticks) = &self.axis.fixed_ticks {
            return ticks.clone();
        }
        let is_in_range = |v: &f64| *v >= self.min * (1.0 - 1e-9) && *v <= self.max * (1.0 + 1e-9);
        if !self.axis.logarithmic {
            let rough = (self.max - self.min) / 6.0;
            let power = 10f64.powf(rough.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
            return (0..10).map(|k| ((self.min / step).ceil() + f64::from(k)) * step).filter(is_in_range).collect();
        }
        let decades = self.min.log10().floor() as i32..=self.max.log10().ceil() as i32;
        let ticks_at_digits = |digits: &[u32]| -> Vec<f64> {
            // Parsed from text, so that the value is exactly the decimal number of the label.
            let number = |k: i32, m: &u32| format!("{m}e{k}").parse().unwrap_or(f64::NAN);
            decades.clone().flat_map(|k| digits.iter().map(move |m| number(k, m))).filter(is_in_range).collect()
        };
        let fits = [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[1, 2, 5], &[1, 3], &[1]]
            .map(ticks_at_digits)
            .into_iter()
            .find(|ticks| ticks.len() <= 10);
        fits.unwrap_or_else(|| {
            let all = ticks_at_digits(&[1]);
            let every = all.len().div_ceil(10);
            all.into_iter().step_by(every).collect()
        })
    }
}

/// Width of a chart in pixels.
const WIDTH: i32 = 1000;
/// Least width of the left margin, for labels that are numbers.
const LEFT: i32 = 110;
/// Width of the right margin, which has the legend.
const RIGHT: i32 = 150;
/// Height of the top margin, which has the title.
const TOP: i32 = 60;
/// Height of the bottom margin, which has tick labels and the title of the axis.
const BOTTOM: i32 = 52;

const TEXT_COLOR: RGBColor = RGBColor(34, 34, 34);
const LABEL_COLOR: RGBColor = RGBColor(110, 110, 110);
const GRID_COLOR: RGBColor = RGBColor(225, 225, 225);

/// Colors of series, chosen to be distinguishable with color vision deficiencies.
const COLORS: [RGBColor; 10] = [
    RGBColor(0, 90, 181),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 80, 40),
    RGBColor(150, 150, 150),
    RGBColor(120, 60, 180),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Converts an error of plotters.
fn convert_error<E: std::fmt::Display>(result: std::result::Result<(), E>) -> Result<()> {
    result.map_err(|error| anyhow!("drawing: {error}"))
}

/// Draws text.
fn text(area: &Area<'_>, at: (i32, i32), text: &str, size: i32, color: RGBColor, anchor: (HPos, VPos)) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&color).pos(Pos::new(anchor.0, anchor.1));
    convert_error(area.draw(&Text::new(text.to_owned(), at, style)))
}

/// Draws a line.
fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> Result<()> {
    convert_error(area.draw(&PathElement::new(vec![from, to], color.stroke_width(width))))
}

/// Draws the legend in the right margin.
fn legend(area: &Area<'_>, series: &[Series]) -> Result<()> {
    for (k, series) in series.iter().enumerate() {
        let y = TOP + 12 + 22 * k as i32;
        let x = WIDTH - RIGHT + 24;
        convert_error(area.draw(&Circle::new((x, y), radius(series), color(series).filled())))?;
        text(area, (x + 12, y), &series.name, 14, TEXT_COLOR, (HPos::Left, VPos::Center))?;
    }
    Ok(())
}

/// Color of a series.
fn color(series: &Series) -> RGBColor {
    COLORS[series.color % COLORS.len()]
}

/// Radius of the dots of a series in pixels.
fn radius(series: &Series) -> i32 {
    if series.bold { 6 } else { 4 }
}

/// Draws the ticks, labels and title of the horizontal axis.
fn horizontal_axis(area: &Area<'_>, scale: &Scale, left: i32, height: i32, x: impl Fn(f64) -> i32) -> Result<()> {
    for tick in scale.ticks() {
        line(area, (x(tick), TOP), (x(tick), height - BOTTOM), GRID_COLOR, 1)?;
        text(
            area,
            (x(tick), height - BOTTOM + 8),
            &(scale.axis.label)(tick),
            13,
            LABEL_COLOR,
            (HPos::Center, VPos::Top),
        )?;
    }
    let middle = (left + WIDTH - RIGHT) / 2;
    text(area, (middle, height - 20), &scale.axis.title, 13, LABEL_COLOR, (HPos::Center, VPos::Top))
}

/// Creates an SVG image of this height with a title, and calls `draw` to draw the chart.
fn svg(title: &str, height: i32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        convert_error(area.fill(&WHITE))?;
        text(&area, (12, 12), title, 17, TEXT_COLOR, (HPos::Left, VPos::Top))?;
        draw(&area)?;
        convert_error(area.present())?;
    }
    Ok(svg)
}

/// Draws a dot plot. In each row, every series that has a value for this row is drawn as a dot at the median, and a
/// line from the smallest to the largest value. If `mark` is given, a vertical line is drawn at this value.
pub(super) fn dot_plot(
    title: &str,
    axis: Axis,
    rows: &[String],
    series: &[Series],
    mark: Option<f64>,
) -> Result<String> {
    let row_height = 14 + 7 * series.len().clamp(2, 10) as i32;
    let height = (TOP + BOTTOM + row_height * rows.len() as i32).max(TOP + BOTTOM + 22 * series.len() as i32);
    let longest = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
    // A character of font size 13 is about 7 pixels wide.
    let left = LEFT.max(7 * longest as i32 + 30);
    let values = series.iter().flat_map(|s| s.values.iter().flatten().flat_map(|v| [v.min, v.max]));
    let scale = axis.scale(values.chain(mark));
    let x = |v: f64| left + (scale.position(v) * f64::from(WIDTH - RIGHT - left)).round() as i32;
    svg(title, height, |area| {
        horizontal_axis(area, &scale, left, height, x)?;
        if let Some(mark) = mark {
            line(area, (x(mark), TOP), (x(mark), height - BOTTOM), LABEL_COLOR, 2)?;
        }
        for (k, row) in rows.iter().enumerate() {
            let top = TOP + row_height * k as i32;
            line(area, (left, top), (WIDTH - RIGHT, top), GRID_COLOR, 1)?;
            text(area, (left - 10, top + row_height / 2), row, 13, TEXT_COLOR, (HPos::Right, VPos::Center))?;
            // The first series is drawn last, on top.
            for (n, series) in series.iter().enumerate().rev() {
                let Some(v) = series.values[k] else { continue };
                let color = color(series);
                let y = top + 10 + 7 * n as i32;
                line(area, (x(v.min), y), (x(v.max), y), color, 2)?;
                convert_error(area.draw(&Circle::new((x(v.median), y), radius(series), color.filled())))?;
            }
        }
        legend(area, series)
    })
}

/// Draws a line plot. Value `k` of each series is drawn at the horizontal position `xs[k]`.
pub(super) fn line_plot(title: &str, x: Axis, y: Axis, xs: &[f64], series: &[Series]) -> Result<String> {
    let height = 440;
    let x_scale = x.scale(xs.iter().copied());
    let y_scale = y.scale(series.iter().flat_map(|s| s.values.iter().flatten().map(|v| v.median)));
    let x = |v: f64| LEFT + (x_scale.position(v) * f64::from(WIDTH - RIGHT - LEFT)).round() as i32;
    let y = |v: f64| height - BOTTOM - (y_scale.position(v) * f64::from(height - BOTTOM - TOP)).round() as i32;
    svg(title, height, |area| {
        horizontal_axis(area, &x_scale, LEFT, height, x)?;
        for tick in y_scale.ticks() {
            line(area, (LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), GRID_COLOR, 1)?;
            text(
                area,
                (LEFT - 10, y(tick)),
                &(y_scale.axis.label)(tick),
                13,
                LABEL_COLOR,
                (HPos::Right, VPos::Center),
            )?;
        }
        text(area, (LEFT, TOP - 6), &y_scale.axis.title, 13, LABEL_COLOR, (HPos::Left, VPos::Bottom))?;
        for series in series.iter().rev() {
            let color = color(series);
            let points = xs.iter().zip(&series.values).filter_map(|(&x_value, v)| v.map(|v| (x(x_value), y(v.median))));
            let points: Vec<(i32, i32)> = points.collect();
            convert_error(area.draw(&PathElement::new(points.clone(), color.stroke_width(2))))?;
            for point in points {
                convert_error(area.draw(&Circle::new(point, radius(series) - 1, color.filled())))?;
            }
        }
        legend(area, series)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_round_numbers() {
        let ticks = |axis: Axis, values: &[f64]| axis.scale(values.iter().copied()).ticks();
        let log = || Axis::log("", |v| format!("{v}"));
        assert_eq!(ticks(log(), &[0.9, 4.0]), [0.8, 0.9, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(log(), &[1e-7, 1.0]), [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]);
        assert_eq!(ticks(Axis::linear("", Some((0.0, 1.0)), |_| String::new()), &[0.5]).len(), 6);
        for values in [[1e-9, 1e9], [1.0, 1.0], [3.0, 3.1]] {
            let ticks = ticks(log(), &values);
            assert!(ticks.len() <= 10, "{ticks:?}");
        }
    }

    #[test]
    fn dot_plot_contains_names_and_dots() {
        let spread = |median: f64| Some(Spread { median, min: median * 0.9, max: median * 1.1 });
        let series = [
            Series { name: "ours".to_owned(), bold: true, color: 0, values: vec![spread(1.0), spread(2.0)] },
            Series { name: "theirs".to_owned(), bold: false, color: 1, values: vec![spread(3.0), None] },
        ];
        let rows = ["a".to_owned(), "b <c>".to_owned()];
        let svg = dot_plot("title", Axis::times("time"), &rows, &series, None).unwrap();
        // Three values and two entries of the legend.
        assert_eq!(svg.matches("<circle").count(), 5);
        for name in ["title", "ours", "theirs", "b &lt;c&gt;"] {
            assert!(svg.contains(name), "{name}");
        }
    }
}
