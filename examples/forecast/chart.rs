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
const ACTUAL_COLOR: RGBColor = RGBColor(0x00, 0x00, 0x00);
const FORECAST_COLOR: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const LOSS_COLOR: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const REPEATED_COLOR: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const BOUNDARY_COLOR: RGBColor = RGBColor(0x5f, 0x5f, 0x5f);
const FORECAST_AREA_COLOR: RGBColor = RGBColor(0xf6, 0xf3, 0xee);
const GRID_COLOR: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

const CHART_WIDTH: u32 = 1200;
const FORECAST_HEIGHT: u32 = 600;
const LOSS_HEIGHT: u32 = 300;
/// Width of the area left of the vertical axes in pixels, equal in both panels so that the axes align.
const LEFT_AREA_WIDTH: u32 = 66;
const FONT_FAMILY: &str = "sans-serif";
/// Lengths of a dash and of the gap after it in pixels.
const DASH_AND_GAP: (i32, i32) = (5, 4);

type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Result of a drawing function.
type DrawResult = Result<(), Box<dyn error::Error>>;

/// Draws the chart to an SVG file and creates its directory if needed. `losses` contains the loss of each training step.
pub(crate) fn draw(report: &Report<'_>, losses: &[f64], path: &Path) -> Result<()> {
    let svg = draw_svg(report, losses).map_err(|why| Error::file(path, why))?;
    create_parent_dir(path)?;
    fs::write(path, svg).map_err(Error::io(path))
}

/// Draws the chart as SVG text.
fn draw_svg(report: &Report<'_>, losses: &[f64]) -> Result<String, Box<dyn error::Error>> {
    let mut svg = String::new();
    let height = if losses.is_empty() { FORECAST_HEIGHT } else { FORECAST_HEIGHT + LOSS_HEIGHT };
    let root = SVGBackend::with_string(&mut svg, (CHART_WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (forecast_area, loss_area) = root.split_vertically(FORECAST_HEIGHT);
    draw_forecast_panel(report, &forecast_area)?;
    if !losses.is_empty() {
        draw_loss_panel(losses, &loss_area)?;
    }
    root.present()?;
    drop((forecast_area, loss_area, root));
    Ok(svg)
}

/// Draws the actual values, the forecast, and the last known year repeated as a baseline.
fn draw_forecast_panel(report: &Report<'_>, area: &PlotArea<'_>) -> DrawResult {
    let series = report.series;
    let points = |values: &[f64], start: usize| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(k, &v)| (series.month(start + k).years(), v)).collect()
    };
    let start = series.known_values().len();
    let (min_x, max_x) = (series.month(0).years(), series.month(series.len()).years());
    let boundary_x = (series.month(start - 1).years() + series.month(start).years()) / 2.0;
    let all_values = series.values().iter().chain(&report.forecast).chain(&report.repeated_year);
    let max_y = (all_values.copied().fold(0.0, f64::max) * 1.08 / 100.0).ceil() * 100.0;
    if !max_y.is_finite() {
        return Err("the values are too large to draw".into());
    }

    let mut chart = ChartBuilder::on(area)
        .caption("Airline passengers: two years forecast by an LSTM", (FONT_FAMILY, 22))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(LEFT_AREA_WIDTH)
        .build_cartesian_2d(min_x..max_x, 0.0..max_y)?;

    chart.draw_series([Rectangle::new([(boundary_x, 0.0), (max_x, max_y)], FORECAST_AREA_COLOR.filled())])?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID_COLOR)
        .axis_style(BOUNDARY_COLOR)
        .x_labels(((max_x - min_x).ceil() as usize + 1).min(15))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("month")
        .y_desc("passengers (thousands)")
        .label_style((FONT_FAMILY, 15))
        .axis_desc_style((FONT_FAMILY, 17))
        .draw()?;

    chart.draw_series([PathElement::new([(boundary_x, 0.0), (boundary_x, max_y)], BOUNDARY_COLOR.stroke_width(1))])?;
    let text_gap = (max_x - min_x) / 120.0;
    for (text, side, offset) in [("← training data", HPos::Right, -text_gap), ("forecast →", HPos::Left, text_gap)]
    {
        let style = (FONT_FAMILY, 16).into_text_style(area).color(&BOUNDARY_COLOR).pos(Pos::new(side, VPos::Top));
        chart.draw_series([Text::new(text, (boundary_x + offset, max_y * 0.985), style)])?;
    }

    let (repeated_style, actual_style, forecast_style) =
        (REPEATED_COLOR.stroke_width(2), ACTUAL_COLOR.stroke_width(2), FORECAST_COLOR.stroke_width(3));
    let (dash, gap) = DASH_AND_GAP;
    let line = LineSeries::new(points(series.values(), 0), actual_style);
    let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], actual_style);
    chart.draw_series(line)?.label("actual").legend(legend);
    let line = LineSeries::new(points(&report.forecast, start), forecast_style);
    let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], forecast_style);
    chart.draw_series(line)?.label(format!("forecast ({:.1} % error)", report.error)).legend(legend);
    let line = DashedLineSeries::new(points(&report.repeated_year, start), dash, gap, repeated_style);
    let legend = move |(x, y)| DashedPathElement::new([(x, y), (x + 26, y)], dash, gap, repeated_style);
    let label = format!("last year repeated ({:.1} % error)", report.repeated_year_error);
    chart.draw_series(line)?.label(label).legend(legend);

    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(16)
        .legend_area_size(36)
        .label_font((FONT_FAMILY, 16))
        .draw()?;
    Ok(())
}

/// Draws the training loss on a logarithmic axis.
fn draw_loss_panel(losses: &[f64], area: &PlotArea<'_>) -> DrawResult {
    // Clamped, because the logarithmic axis can't show 0 or extreme values.
    let points = || losses.iter().zip(0u32..).map(|(&loss, k)| (f64::from(k), loss.clamp(1e-15, 1e99)));
    let (min_loss, max_loss) =
        points().fold((f64::MAX, 0.0f64), |(min_loss, max_loss), (_, loss)| (min_loss.min(loss), max_loss.max(loss)));
    let log_base = if max_loss / min_loss < 100.0 { 2.0 } else { 10.0 };
    let mut chart = ChartBuilder::on(area)
        .caption("Training loss: mean squared error of the year-over-year growth of the next month", (FONT_FAMILY, 18))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(LEFT_AREA_WIDTH)
        .build_cartesian_2d(0.0..losses.len() as f64, (min_loss / 1.1..max_loss * 1.1).log_scale().base(log_base))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID_COLOR)
        .axis_style(BOUNDARY_COLOR)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| format_loss(y))
        .x_desc("training steps")
        .y_desc("loss (units of the variance)")
        .label_style((FONT_FAMILY, 15))
        .axis_desc_style((FONT_FAMILY, 17))
        .draw()?;
    chart.draw_series(LineSeries::new(points(), LOSS_COLOR.stroke_width(2)))?;
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
    use lstm::Cpu;

    use super::*;
    use crate::{HORIZON_MONTHS, model::Model, repository_data, series::Series};

    #[test]
    fn draws_extreme_losses() -> Result<()> {
        let (series, file) =
            (Series::read(&repository_data("passengers.csv"), HORIZON_MONTHS)?, Path::new("model.safetensors"));
        let report = Report::new(&series, &Model::open(&Cpu::new(), &repository_data("model.safetensors"))?, file)?;
        let charts: Vec<_> = [&[][..], &[1.0], &[0.25; 9], &[0.0, 0.0], &[1e300, 1.0, 0.0], &[f64::MAX, 1e-300]]
            .iter()
            .map(|losses| draw_svg(&report, losses).expect("the chart can be drawn"))
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
