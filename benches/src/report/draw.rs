//! Two kinds of drawing, as SVG: dots along one axis in a row for each name, and lines over an axis.

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::results::Spread;

/// One colour of a chart.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Drawn larger.
    pub(super) bold: bool,
    /// Its number among [`COLOURS`].
    pub(super) colour: usize,
    /// A figure, or none, for each row or place.
    pub(super) values: Vec<Option<Spread>>,
}

/// How figures become places.
pub(super) struct ConcatAxis {
    title: String,
    logarithmic: bool,
    /// What is shown in any case.
    include: Option<(f64, f64)>,
    label: fn(f64) -> String,
    /// Where its ticks are, rather than at round numbers.
    at: Option<Vec<f64>>,
}

/// An axis whose ends are known.
struct Scale {
    axis: ConcatAxis,
    low: f64,
    high: f64,
}

impl ConcatAxis {
    pub(super) fn log(title: impl Into<String>, label: fn(f64) -> String) -> Self {
        ConcatAxis { title: title.into(), logarithmic: true, include: None, label, at: None }
    }

    pub(super) fn linear(title: impl Into<String>, include: Option<(f64, f64)>, label: fn(f64) -> String) -> Self {
        ConcatAxis { title: title.into(), logarithmic: false, include, label, at: None }
    }

    /// Logarithmic, in seconds.
    pub(super) fn times(title: &str) -> Self {
        ConcatAxis::log(title, |v| {
            let (value, unit) = match v {
                v if v < 0.999e-6 => (v * 1e9, "ns"),
                v if v < 0.999e-3 => (v * 1e6, "us"),
                v if v < 0.999 => (v * 1e3, "ms"),
                v => (v, "s"),
            };
            format!("{} {unit}", (value * 1e3).round() / 1e3)
        })
    }

    /// With ticks at these figures.
    pub(super) fn at(self, ticks: &[f64]) -> Self {
        ConcatAxis { at: Some(ticks.to_vec()), ..self }
    }

    /// With ends a little beyond all figures.
    fn over(self, figures: impl Iterator<Item = f64>) -> Scale {
        let extra = self.include.into_iter().flat_map(|(low, high)| [low, high]);
        let all = figures.chain(extra).filter(|v| v.is_finite() && (!self.logarithmic || *v > 0.0));
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if self.logarithmic {
            return Scale { axis: self, low: low / 1.15, high: high * 1.15 };
        }
        let margin = (high - low).max(f64::MIN_POSITIVE) * 0.05;
        Scale { low: if low == 0.0 { 0.0 } else { low - margin }, high: high + margin, axis: self }
    }
}

impl Scale {
    /// 0 at the low end, 1 at the high.
    fn at(&self, v: f64) -> f64 {
        match self.axis.logarithmic {
            true => (v / self.low).ln() / (self.high / self.low).ln(),
            false => (v - self.low) / (self.high - self.low),
        }
    }

    /// Round numbers between the ends, not more than ten.
    fn ticks(&self) -> Vec<f64> {
        if let Some(at) = &self.axis.at {
            return at.clone();
        }
        let inside = |v: &f64| *v >= self.low * (1.0 - 1e-9) && *v <= self.high * (1.0 + 1e-9);
        if !self.axis.logarithmic {
            let rough = (self.high - self.low) / 6.0;
            let power = 10f64.powf(rough.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
            return (0..10).map(|k| ((self.low / step).ceil() + f64::from(k)) * step).filter(inside).collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let of = |steps: &[u32]| -> Vec<f64> {
            // Written and read, so that a label shows the number that is meant.
            let number = |k: i32, m: &u32| format!("{m}e{k}").parse().unwrap_or(f64::NAN);
            decades.clone().flat_map(|k| steps.iter().map(move |m| number(k, m))).filter(inside).collect()
        };
        let fits = [of(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), of(&[1, 2, 5]), of(&[1, 3]), of(&[1])]
            .into_iter()
            .find(|ticks| ticks.len() <= 10);
        fits.unwrap_or_else(|| {
            let all = of(&[1]);
            let every = all.len().div_ceil(10);
            all.into_iter().step_by(every).collect()
        })
    }
}

const WIDTH: i32 = 1000;
/// Of drawings whose labels there are figures.
const LEFT: i32 = 110;
const RIGHT: i32 = 150;
const TOP: i32 = 60;
const BOTTOM: i32 = 52;

const INK: RGBColor = RGBColor(34, 34, 34);
const GREY: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Colours that people with any sight can tell apart as far as ten can be.
const COLOURS: [RGBColor; 10] = [
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

/// What of plotters can fail is writing to a string.
fn drawn<E: std::fmt::Display>(result: std::result::Result<(), E>) -> Result<()> {
    result.map_err(|error| anyhow!("drawing: {error}"))
}

fn text(area: &Area<'_>, at: (i32, i32), text: &str, size: i32, colour: RGBColor, anchor: (HPos, VPos)) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(anchor.0, anchor.1));
    drawn(area.draw(&Text::new(text.to_owned(), at, style)))
}

fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), colour: RGBColor, width: u32) -> Result<()> {
    drawn(area.draw(&PathElement::new(vec![from, to], colour.stroke_width(width))))
}

fn legend(area: &Area<'_>, series: &[Series]) -> Result<()> {
    for (k, series) in series.iter().enumerate() {
        let y = TOP + 12 + 22 * k as i32;
        let x = WIDTH - RIGHT + 24;
        drawn(area.draw(&Circle::new((x, y), radius(series), colour(series).filled())))?;
        text(area, (x + 12, y), &series.name, 14, INK, (HPos::Left, VPos::Center))?;
    }
    Ok(())
}

fn colour(series: &Series) -> RGBColor {
    COLOURS[series.colour % COLOURS.len()]
}

fn radius(series: &Series) -> i32 {
    if series.bold { 6 } else { 4 }
}

/// Ticks, their labels and the title of the axis below.
fn bottom(area: &Area<'_>, scale: &Scale, left: i32, height: i32, x: impl Fn(f64) -> i32) -> Result<()> {
    for tick in scale.ticks() {
        line(area, (x(tick), TOP), (x(tick), height - BOTTOM), GRID, 1)?;
        text(area, (x(tick), height - BOTTOM + 8), &(scale.axis.label)(tick), 13, GREY, (HPos::Center, VPos::Top))?;
    }
    let middle = (left + WIDTH - RIGHT) / 2;
    text(area, (middle, height - 20), &scale.axis.title, 13, GREY, (HPos::Center, VPos::Top))
}

/// Runs a drawing of this height with its title.
fn svg(title: &str, height: i32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        text(&area, (12, 12), title, 17, INK, (HPos::Left, VPos::Top))?;
        draw(&area)?;
        drawn(area.present())?;
    }
    Ok(svg)
}

/// A row for each name, with a dot for each series that has a figure there, and a line at a figure to compare with.
pub(super) fn dots(
    title: &str,
    axis: ConcatAxis,
    rows: &[String],
    series: &[Series],
    mark: Option<f64>,
) -> Result<String> {
    let each = 14 + 7 * series.len().clamp(2, 10) as i32;
    let height = (TOP + BOTTOM + each * rows.len() as i32).max(TOP + BOTTOM + 22 * series.len() as i32);
    let longest = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
    // A letter of 13 pixels is 7 wide, on average.
    let left = LEFT.max(7 * longest as i32 + 30);
    let figures = series.iter().flat_map(|s| s.values.iter().flatten().flat_map(|v| [v.low, v.high]));
    let scale = axis.over(figures.chain(mark));
    let x = |v: f64| left + (scale.at(v) * f64::from(WIDTH - RIGHT - left)).round() as i32;
    svg(title, height, |area| {
        bottom(area, &scale, left, height, x)?;
        if let Some(mark) = mark {
            line(area, (x(mark), TOP), (x(mark), height - BOTTOM), GREY, 2)?;
        }
        for (k, row) in rows.iter().enumerate() {
            let top = TOP + each * k as i32;
            line(area, (left, top), (WIDTH - RIGHT, top), GRID, 1)?;
            text(area, (left - 10, top + each / 2), row, 13, INK, (HPos::Right, VPos::Center))?;
            // The first series is drawn last, on top.
            for (n, series) in series.iter().enumerate().rev() {
                let Some(v) = series.values[k] else { continue };
                let colour = colour(series);
                let y = top + 10 + 7 * n as i32;
                line(area, (x(v.low), y), (x(v.high), y), colour, 2)?;
                drawn(area.draw(&Circle::new((x(v.mid), y), radius(series), colour.filled())))?;
            }
        }
        legend(area, series)
    })
}

/// Lines over `xs`, which figures of the series belong to.
pub(super) fn lines(title: &str, x: ConcatAxis, y: ConcatAxis, xs: &[f64], series: &[Series]) -> Result<String> {
    let height = 440;
    let x_scale = x.over(xs.iter().copied());
    let y_scale = y.over(series.iter().flat_map(|s| s.values.iter().flatten().map(|v| v.mid)));
    let x = |v: f64| LEFT + (x_scale.at(v) * f64::from(WIDTH - RIGHT - LEFT)).round() as i32;
    let y = |v: f64| height - BOTTOM - (y_scale.at(v) * f64::from(height - BOTTOM - TOP)).round() as i32;
    svg(title, height, |area| {
        bottom(area, &x_scale, LEFT, height, x)?;
        for tick in y_scale.ticks() {
            line(area, (LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), GRID, 1)?;
            text(area, (LEFT - 10, y(tick)), &(y_scale.axis.label)(tick), 13, GREY, (HPos::Right, VPos::Center))?;
        }
        text(area, (LEFT, TOP - 6), &y_scale.axis.title, 13, GREY, (HPos::Left, VPos::Bottom))?;
        for series in series.iter().rev() {
            let colour = colour(series);
            let points = xs.iter().zip(&series.values).filter_map(|(&at, v)| v.map(|v| (x(at), y(v.mid))));
            let points: Vec<(i32, i32)> = points.collect();
            drawn(area.draw(&PathElement::new(points.clone(), colour.stroke_width(2))))?;
            for point in points {
                drawn(area.draw(&Circle::new(point, radius(series) - 1, colour.filled())))?;
            }
        }
        legend(area, series)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let ticks = |axis: ConcatAxis, figures: &[f64]| axis.over(figures.iter().copied()).ticks();
        let log = || ConcatAxis::log("", |v| format!("{v}"));
        assert_eq!(ticks(log(), &[0.9, 4.0]), [0.8, 0.9, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(log(), &[1e-7, 1.0]), [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]);
        assert_eq!(ticks(ConcatAxis::linear("", Some((0.0, 1.0)), |_| String::new()), &[0.5]).len(), 6);
        for figures in [[1e-9, 1e9], [1.0, 1.0], [3.0, 3.1]] {
            let ticks = ticks(log(), &figures);
            assert!(ticks.len() <= 10, "{ticks:?}");
        }
    }

    #[test]
    fn a_chart_holds_its_names_and_dots() {
        let spread = |mid: f64| Some(Spread { mid, low: mid * 0.9, high: mid * 1.1 });
        let series = [
            Series { name: "ours".to_owned(), bold: true, colour: 0, values: vec![spread(1.0), spread(2.0)] },
            Series { name: "theirs".to_owned(), bold: false, colour: 1, values: vec![spread(3.0), None] },
        ];
        let rows = ["a".to_owned(), "b <c>".to_owned()];
        let svg = dots("title", ConcatAxis::times("time"), &rows, &series, None).unwrap();
        // Three figures and two of the legend.
        assert_eq!(svg.matches("<circle").count(), 5);
        for name in ["title", "ours", "theirs", "b &lt;c&gt;"] {
            assert!(svg.contains(name), "{name}");
        }
    }
}
