//! Draws the chart: the forecast, and below it the training loss, if the model was trained.

use std::{fs, path::Path};

use plotters::{
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    charts::{BLUE, Curve, DrawResult, FONT_FAMILY, GRAY, GRID_COLOR, LEFT_AREA_WIDTH, ORANGE, PlotArea, draw_curves},
    error::{Error, Result, create_parent_dir},
    report::Report,
};

// With the colors of `charts.rs`.
const ACTUAL_COLOR: RGBColor = BLACK;
const REPEATED_COLOR: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const FORECAST_AREA_COLOR: RGBColor = RGBColor(0xf6, 0xf3, 0xee);

const CHART_WIDTH: u32 = 1200;
const FORECAST_HEIGHT: u32 = 600;
const LOSS_HEIGHT: u32 = 300;
/// Lengths of a dash and of the gap after it in pixels.
const DASH_AND_GAP: (i32, i32) = (5, 4);

/// Draws the chart to an SVG file and creates its directory if needed. `losses` contains the loss of each training step.
pub(crate) fn draw(report: &Report<'_>, losses: &[f64], path: &Path) -> Result<()> {
    let svg = draw_svg(report, losses).map_err(|why| Error::file(path, why))?;
    create_parent_dir(path)?;
    fs::write(path, svg).map_err(Error::io(path))
}

/// Draws the chart as SVG text.
fn draw_svg(report: &Report<'_>, losses: &[f64]) -> DrawResult<String> {
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
        .axis_style(GRAY)
        .x_labels(((max_x - min_x).ceil() as usize + 1).min(15))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("month")
        .y_desc("passengers (thousands)")
        .label_style((FONT_FAMILY, 15))
        .axis_desc_style((FONT_FAMILY, 17))
        .draw()?;

    chart.draw_series([PathElement::new([(boundary_x, 0.0), (boundary_x, max_y)], GRAY.stroke_width(1))])?;
    let text_gap = (max_x - min_x) / 120.0;
    for (text, side, offset) in [("← training data", HPos::Right, -text_gap), ("forecast →", HPos::Left, text_gap)]
    {
        let style = (FONT_FAMILY, 16).into_text_style(area).color(&GRAY).pos(Pos::new(side, VPos::Top));
        chart.draw_series([Text::new(text, (boundary_x + offset, max_y * 0.985), style)])?;
    }

    let (repeated_style, actual_style, forecast_style) =
        (REPEATED_COLOR.stroke_width(2), ACTUAL_COLOR.stroke_width(2), ORANGE.stroke_width(3));
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
    let points: Vec<_> =
        losses.iter().zip(1u32..).map(|(&loss, step)| (f64::from(step), loss.clamp(1e-15, 1e99))).collect();
    let (min_loss, max_loss) = points
        .iter()
        .fold((f64::MAX, 0.0f64), |(min_loss, max_loss), &(_, loss)| (min_loss.min(loss), max_loss.max(loss)));
    let log_base = if max_loss / min_loss < 100.0 { 2.0 } else { 10.0 };
    let caption = "Training loss: mean squared error of the year-over-year growth of the next month";
    let range = (min_loss / 1.1..max_loss * 1.1).log_scale().base(log_base);
    draw_curves(area, caption, "loss (units of the variance)", range, &[Curve { label: "", color: BLUE, points }])
}

#[cfg(test)]
mod tests {
    use lstm::Cpu;

    use super::*;
    use crate::{HORIZON_MONTHS, charts::format_value, model::Model, repository_data, series::Series};

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
            assert_eq!(format_value(y), want);
        }
    }
}
