//! Draws the chart: the forecast, and below it the training loss, if the model was trained.

use std::{error, fs, path::Path};

use plotters::{
    coord::Shift,
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    error::{Error, Result, create_parent_dir},
    report::Report,
};

// Okabe and Ito's palette for color vision deficiencies. The colors also differ in lightness.
const ACTUAL: RGBColor = RGBColor(0x00, 0x00, 0x00);
const FORECAST: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const LOSS: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const REPEATED: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const BOUNDARY: RGBColor = RGBColor(0x5f, 0x5f, 0x5f);
const FORECAST_AREA: RGBColor = RGBColor(0xf6, 0xf3, 0xee);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

const WIDTH: u32 = 1200;
const FORECAST_HEIGHT: u32 = 600;
const LOSS_HEIGHT: u32 = 300;
/// Width of the area left of the vertical axes in pixels, equal in both panels so that the axes align.
const LEFT: u32 = 66;
const FONT: &str = "sans-serif";
/// Lengths of a dash and of a gap in pixels.
const DASH: (i32, i32) = (5, 4);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Result of drawing.
type DrawResult = Result<(), Box<dyn error::Error>>;

/// Draws the chart to an SVG file and creates its directory if needed. `losses` contains the loss of each training step.
pub(crate) fn draw(report: &Report<'_>, losses: &[f64], path: &Path) -> Result<()> {
    let svg = svg(report, losses).map_err(|why| Error::file(path, why))?;
    create_parent_dir(path)?;
    fs::write(path, svg).map_err(Error::io(path))
}

/// Draws the chart as SVG text.
fn svg(report: &Report<'_>, losses: &[f64]) -> Result<String, Box<dyn error::Error>> {
    let mut svg = String::new();
    let height = if losses.is_empty() { FORECAST_HEIGHT } else { FORECAST_HEIGHT + LOSS_HEIGHT };
    let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(FORECAST_HEIGHT);
    forecast_panel(report, &above)?;
    if !losses.is_empty() {
        loss_panel(losses, &below)?;
    }
    root.present()?;
    drop((above, below, root));
    Ok(svg)
}

/// Draws the actual values, the forecast, and the repeated last year.
fn forecast_panel(report: &Report<'_>, area: &Area<'_>) -> DrawResult {
    let series = report.series;
    let points = |values: &[f64], start: usize| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(k, &v)| (series.month(start + k).years(), v)).collect()
    };
    let start = series.known().len();
    let (left, right) = (series.month(0).years(), series.month(series.len()).years());
    let boundary = (series.month(start - 1).years() + series.month(start).years()) / 2.0;
    let all = series.values().iter().chain(&report.forecast).chain(&report.repeated);
    let top = (all.copied().fold(0.0, f64::max) * 1.08 / 100.0).ceil() * 100.0;
    if !top.is_finite() {
        return Err("the values are too large to draw".into());
    }

    let mut chart = ChartBuilder::on(area)
        .caption("Airline passengers: two years forecast by an LSTM", (FONT, 22))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(left..right, 0.0..top)?;

    chart.draw_series([Rectangle::new([(boundary, 0.0), (right, top)], FORECAST_AREA.filled())])?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(BOUNDARY)
        .x_labels(((right - left).ceil() as usize + 1).min(15))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("month")
        .y_desc("passengers (thousands)")
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 17))
        .draw()?;

    chart.draw_series([PathElement::new([(boundary, 0.0), (boundary, top)], BOUNDARY.stroke_width(1))])?;
    let gap = (right - left) / 120.0;
    for (text, side, gap) in [("← training data", HPos::Right, -gap), ("forecast →", HPos::Left, gap)] {
        let style = (FONT, 16).into_text_style(area).color(&BOUNDARY).pos(Pos::new(side, VPos::Top));
        chart.draw_series([Text::new(text, (boundary + gap, top * 0.985), style)])?;
    }

    let (repeated, actual, forecast) = (REPEATED.stroke_width(2), ACTUAL.stroke_width(2), FORECAST.stroke_width(3));
    let (dash, gap) = DASH;
    let all = LineSeries::new(points(series.values(), 0), actual);
    let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], actual);
    chart.draw_series(all)?.label("actual").legend(legend);
    let line = LineSeries::new(points(&report.forecast, start), forecast);
    let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], forecast);
    chart.draw_series(line)?.label(format!("forecast ({:.1} % error)", report.error)).legend(legend);
    let line = DashedLineSeries::new(points(&report.repeated, start), dash, gap, repeated);
    let legend = move |(x, y)| DashedPathElement::new([(x, y), (x + 26, y)], dash, gap, repeated);
    let label = format!("last year repeated ({:.1} % error)", report.error_repeated);
    chart.draw_series(line)?.label(label).legend(legend);

    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(16)
        .legend_area_size(36)
        .label_font((FONT, 16))
        .draw()?;
    Ok(())
}

/// Draws the training loss on a logarithmic axis.
fn loss_panel(losses: &[f64], area: &Area<'_>) -> DrawResult {
    // Clamped, because the logarithmic axis can't show 0 or extreme values.
    let points = || losses.iter().zip(0u32..).map(|(&loss, k)| (f64::from(k), loss.clamp(1e-15, 1e99)));
    let (low, high) = points().fold((f64::MAX, 0.0f64), |(low, high), (_, loss)| (low.min(loss), high.max(loss)));
    let base = if high / low < 100.0 { 2.0 } else { 10.0 };
    let mut chart = ChartBuilder::on(area)
        .caption("Training loss: mean squared error of the year-over-year growth of the next month", (FONT, 18))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(0.0..losses.len() as f64, (low / 1.1..high * 1.1).log_scale().base(base))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(BOUNDARY)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| format_loss(y))
        .x_desc("training steps")
        .y_desc("loss (units of the variance)")
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 17))
        .draw()?;
    chart.draw_series(LineSeries::new(points(), LOSS.stroke_width(2)))?;
    Ok(())
}

/// Formats a tick label of the loss axis.
fn format_loss(y: f64) -> String {
    if (1e-3..1e5).contains(&y) {
        format!("{y:.3}").trim_end_matches('0').trim_end_matches('.').into()
    } else {
        format!("{y:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use lstm_cpu::Cpu;

    use super::*;
    use crate::{HORIZON, model::Model, repository_data, series::Series};

    #[test]
    fn draws_extreme_losses() -> Result<()> {
        let (series, file) =
            (Series::read(&repository_data("passengers.csv"), HORIZON)?, Path::new("model.safetensors"));
        let report = Report::new(&series, &Model::open(&Cpu::new(), &repository_data("model.safetensors"))?, file)?;
        let charts: Vec<_> = [&[][..], &[1.0], &[0.25; 9], &[0.0, 0.0], &[1e300, 1.0, 0.0], &[f64::MAX, 1e-300]]
            .iter()
            .map(|losses| svg(&report, losses).expect("the chart can be drawn"))
            .collect();
        assert!(!charts[0].contains("training steps") && charts[1].contains("training steps"));
        assert!(charts[2].contains("0.25"));
        Ok(())
    }

    #[test]
    fn loss_labels_are_short() {
        for (y, want) in [(1.0, "1"), (0.25, "0.25"), (1024.0, "1024"), (1e-5, "1.0e-5"), (131_072.0, "1.3e5")] {
            assert_eq!(format_loss(y), want);
        }
    }
}
