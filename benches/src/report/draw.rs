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
    pub(super) color_index: usize,
    /// Value for each row of a dot plot, or for each x of a line plot; `None` where there is no value.
    pub(super) values: Vec<Option<Spread>>,
}

/// Title, kind and tick labels of an axis.
pub(super) struct Axis {
    title: String,
    logarithmic: bool,
    /// Range that the axis shows even if the values do not reach it.
    shown_range: Option<(f64, f64)>,
    /// Formats the label of a tick.
    format_label: fn(f64) -> String,
    /// Values at which the axis has ticks; `None` to choose round numbers.
    fixed_ticks: Option<Vec<f64>>,
}

/// An axis with the range of values that it shows.
struct Scale {
    axis: Axis,
    min: f64,
    max: f64,
}

impl Axis {
    /// A logarithmic axis.
    pub(super) fn log(title: impl Into<String>, format_label: fn(f64) -> String) -> Self {
        Axis { title: title.into(), logarithmic: true, shown_range: None, format_label, fixed_ticks: None }
    }

    /// A linear axis.
    pub(super) fn linear(
        title: impl Into<String>,
        shown_range: Option<(f64, f64)>,
        format_label: fn(f64) -> String,
    ) -> Self {
        Axis { title: title.into(), logarithmic: false, shown_range, format_label, fixed_ticks: None }
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

    /// Sets the values at which the axis has ticks.
    pub(super) fn ticks_at(self, ticks: &[f64]) -> Self {
        Axis { fixed_ticks: Some(ticks.to_vec()), ..self }
    }

    /// Chooses the range of the axis so that it contains all values, with a margin.
    fn into_scale(self, values: impl Iterator<Item = f64>) -> Scale {
        let shown_bounds = self.shown_range.into_iter().flat_map(|(min, max)| [min, max]);
        let all_values = values.chain(shown_bounds).filter(|v| v.is_finite() && (!self.logarithmic || *v > 0.0));
        let (min, max) = all_values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
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

    /// Values at which the axis has ticks: the fixed ones, or at most ten round numbers.
    fn ticks(&self) -> Vec<f64> {
        if let Some(ticks) = &self.axis.fixed_ticks {
            return ticks.clone();
        }
        let is_in_range = |v: &f64| *v >= self.min * (1.0 - 1e-9) && *v <= self.max * (1.0 + 1e-9);
        if !self.axis.logarithmic {
            let rough_step = (self.max - self.min) / 6.0;
            let power_of_ten = 10f64.powf(rough_step.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0]
                .map(|m| m * power_of_ten)
                .into_iter()
                .find(|step| *step >= rough_step)
                .unwrap_or(rough_step);
            return (0..10).map(|k| ((self.min / step).ceil() + f64::from(k)) * step).filter(is_in_range).collect();
        }
        let decade_exponents = self.min.log10().floor() as i32..=self.max.log10().ceil() as i32;
        let ticks_at_digits = |digits: &[u32]| -> Vec<f64> {
            // Parsed from text, so that the value is exactly the decimal number of the label.
            let tick_value = |k: i32, m: &u32| format!("{m}e{k}").parse().unwrap_or(f64::NAN);
            decade_exponents
                .clone()
                .flat_map(|k| digits.iter().map(move |m| tick_value(k, m)))
                .filter(is_in_range)
                .collect()
        };
        let fitting_ticks = [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[1, 2, 5], &[1, 3], &[1]]
            .map(ticks_at_digits)
            .into_iter()
            .find(|ticks| ticks.len() <= 10);
        fitting_ticks.unwrap_or_else(|| {
            let decade_ticks = ticks_at_digits(&[1]);
            let tick_stride = decade_ticks.len().div_ceil(10);
            decade_ticks.into_iter().step_by(tick_stride).collect()
        })
    }
}

/// Width of a chart in pixels.
const CHART_WIDTH: i32 = 1000;
/// Least width of the left margin, for labels that are numbers.
const LEFT_MARGIN: i32 = 110;
/// Width of the right margin, which has the legend.
const RIGHT_MARGIN: i32 = 150;
/// Height of the top margin, which has the title.
const TOP_MARGIN: i32 = 60;
/// Height of the bottom margin, which has tick labels and the title of the axis.
const BOTTOM_MARGIN: i32 = 52;

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

type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Converts an error of the drawing crate plotters.
fn convert_error<E: std::fmt::Display>(result: std::result::Result<(), E>) -> Result<()> {
    result.map_err(|error| anyhow!("drawing: {error}"))
}

/// Draws text.
fn draw_text(
    area: &PlotArea<'_>,
    position: (i32, i32),
    text: &str,
    size: i32,
    color: RGBColor,
    anchor: (HPos, VPos),
) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&color).pos(Pos::new(anchor.0, anchor.1));
    convert_error(area.draw(&Text::new(text.to_owned(), position, style)))
}

/// Draws a line.
fn draw_line(area: &PlotArea<'_>, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> Result<()> {
    convert_error(area.draw(&PathElement::new(vec![from, to], color.stroke_width(width))))
}

/// Draws the legend in the right margin.
fn draw_legend(area: &PlotArea<'_>, series: &[Series]) -> Result<()> {
    for (k, series) in series.iter().enumerate() {
        let y = TOP_MARGIN + 12 + 22 * k as i32;
        let x = CHART_WIDTH - RIGHT_MARGIN + 24;
        convert_error(area.draw(&Circle::new((x, y), dot_radius(series), color_of(series).filled())))?;
        draw_text(area, (x + 12, y), &series.name, 14, TEXT_COLOR, (HPos::Left, VPos::Center))?;
    }
    Ok(())
}

/// Color of a series.
fn color_of(series: &Series) -> RGBColor {
    COLORS[series.color_index % COLORS.len()]
}

/// Radius of the dots of a series in pixels.
fn dot_radius(series: &Series) -> i32 {
    if series.bold { 6 } else { 4 }
}

/// Draws the ticks, labels and title of the horizontal axis. `x` converts a value to a horizontal pixel position.
fn draw_horizontal_axis(
    area: &PlotArea<'_>,
    scale: &Scale,
    left_margin: i32,
    height: i32,
    x: impl Fn(f64) -> i32,
) -> Result<()> {
    for tick in scale.ticks() {
        draw_line(area, (x(tick), TOP_MARGIN), (x(tick), height - BOTTOM_MARGIN), GRID_COLOR, 1)?;
        draw_text(
            area,
            (x(tick), height - BOTTOM_MARGIN + 8),
            &(scale.axis.format_label)(tick),
            13,
            LABEL_COLOR,
            (HPos::Center, VPos::Top),
        )?;
    }
    let axis_middle = (left_margin + CHART_WIDTH - RIGHT_MARGIN) / 2;
    draw_text(area, (axis_middle, height - 20), &scale.axis.title, 13, LABEL_COLOR, (HPos::Center, VPos::Top))
}

/// Creates an SVG image that is `height` pixels high and has a title, and calls `draw` to draw the chart.
fn draw_svg(title: &str, height: i32, draw: impl FnOnce(&PlotArea<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (CHART_WIDTH as u32, height as u32)).into_drawing_area();
        convert_error(area.fill(&WHITE))?;
        draw_text(&area, (12, 12), title, 17, TEXT_COLOR, (HPos::Left, VPos::Top))?;
        draw(&area)?;
        convert_error(area.present())?;
    }
    Ok(svg)
}

/// Draws a dot plot. In each row, every series that has a value for this row is drawn as a dot at the median, and a
/// line from the smallest to the largest value. If `marked_value` is given, a vertical line is drawn at this value.
pub(super) fn dot_plot(
    title: &str,
    axis: Axis,
    rows: &[String],
    series: &[Series],
    marked_value: Option<f64>,
) -> Result<String> {
    let row_height = 14 + 7 * series.len().clamp(2, 10) as i32;
    let height = (TOP_MARGIN + BOTTOM_MARGIN + row_height * rows.len() as i32)
        .max(TOP_MARGIN + BOTTOM_MARGIN + 22 * series.len() as i32);
    let max_row_length = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
    // A character of font size 13 is about 7 pixels wide.
    let left_margin = LEFT_MARGIN.max(7 * max_row_length as i32 + 30);
    let values = series.iter().flat_map(|s| s.values.iter().flatten().flat_map(|v| [v.min, v.max]));
    let scale = axis.into_scale(values.chain(marked_value));
    let x =
        |v: f64| left_margin + (scale.position(v) * f64::from(CHART_WIDTH - RIGHT_MARGIN - left_margin)).round() as i32;
    draw_svg(title, height, |area| {
        draw_horizontal_axis(area, &scale, left_margin, height, x)?;
        if let Some(marked_value) = marked_value {
            draw_line(area, (x(marked_value), TOP_MARGIN), (x(marked_value), height - BOTTOM_MARGIN), LABEL_COLOR, 2)?;
        }
        for (k, row) in rows.iter().enumerate() {
            let row_top = TOP_MARGIN + row_height * k as i32;
            draw_line(area, (left_margin, row_top), (CHART_WIDTH - RIGHT_MARGIN, row_top), GRID_COLOR, 1)?;
            draw_text(
                area,
                (left_margin - 10, row_top + row_height / 2),
                row,
                13,
                TEXT_COLOR,
                (HPos::Right, VPos::Center),
            )?;
            // The first series is drawn last, on top.
            for (n, series) in series.iter().enumerate().rev() {
                let Some(v) = series.values[k] else { continue };
                let color = color_of(series);
                let y = row_top + 10 + 7 * n as i32;
                draw_line(area, (x(v.min), y), (x(v.max), y), color, 2)?;
                convert_error(area.draw(&Circle::new((x(v.median), y), dot_radius(series), color.filled())))?;
            }
        }
        draw_legend(area, series)
    })
}

/// Draws a line plot. Value `k` of each series is drawn at the horizontal position `xs[k]`.
pub(super) fn line_plot(title: &str, x: Axis, y: Axis, xs: &[f64], series: &[Series]) -> Result<String> {
    let height = 440;
    let x_scale = x.into_scale(xs.iter().copied());
    let y_scale = y.into_scale(series.iter().flat_map(|s| s.values.iter().flatten().map(|v| v.median)));
    let x = |v: f64| {
        LEFT_MARGIN + (x_scale.position(v) * f64::from(CHART_WIDTH - RIGHT_MARGIN - LEFT_MARGIN)).round() as i32
    };
    let y = |v: f64| {
        height - BOTTOM_MARGIN - (y_scale.position(v) * f64::from(height - BOTTOM_MARGIN - TOP_MARGIN)).round() as i32
    };
    draw_svg(title, height, |area| {
        draw_horizontal_axis(area, &x_scale, LEFT_MARGIN, height, x)?;
        for tick in y_scale.ticks() {
            draw_line(area, (LEFT_MARGIN, y(tick)), (CHART_WIDTH - RIGHT_MARGIN, y(tick)), GRID_COLOR, 1)?;
            draw_text(
                area,
                (LEFT_MARGIN - 10, y(tick)),
                &(y_scale.axis.format_label)(tick),
                13,
                LABEL_COLOR,
                (HPos::Right, VPos::Center),
            )?;
        }
        draw_text(
            area,
            (LEFT_MARGIN, TOP_MARGIN - 6),
            &y_scale.axis.title,
            13,
            LABEL_COLOR,
            (HPos::Left, VPos::Bottom),
        )?;
        for series in series.iter().rev() {
            let color = color_of(series);
            let points = xs.iter().zip(&series.values).filter_map(|(&x_value, v)| v.map(|v| (x(x_value), y(v.median))));
            let points: Vec<(i32, i32)> = points.collect();
            convert_error(area.draw(&PathElement::new(points.clone(), color.stroke_width(2))))?;
            for point in points {
                convert_error(area.draw(&Circle::new(point, dot_radius(series) - 1, color.filled())))?;
            }
        }
        draw_legend(area, series)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_round_numbers() {
        let ticks = |axis: Axis, values: &[f64]| axis.into_scale(values.iter().copied()).ticks();
        let log_axis = || Axis::log("", |v| format!("{v}"));
        assert_eq!(ticks(log_axis(), &[0.9, 4.0]), [0.8, 0.9, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(log_axis(), &[1e-7, 1.0]), [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]);
        assert_eq!(ticks(Axis::linear("", Some((0.0, 1.0)), |_| String::new()), &[0.5]).len(), 6);
        for values in [[1e-9, 1e9], [1.0, 1.0], [3.0, 3.1]] {
            let ticks = ticks(log_axis(), &values);
            assert!(ticks.len() <= 10, "{ticks:?}");
        }
    }

    #[test]
    fn dot_plot_contains_names_and_dots() {
        let spread = |median: f64| Some(Spread { median, min: median * 0.9, max: median * 1.1 });
        let series = [
            Series { name: "ours".to_owned(), bold: true, color_index: 0, values: vec![spread(1.0), spread(2.0)] },
            Series { name: "theirs".to_owned(), bold: false, color_index: 1, values: vec![spread(3.0), None] },
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
