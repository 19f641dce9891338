//! Charts of training: how a loss changes from step to step.

use std::error;

use plotters::{
    coord::{Shift, ranged1d::AsRangedCoord, ranged1d::ValueFormatter},
    prelude::*,
};

// Okabe and Ito's palette for color vision deficiencies. The colors also differ in lightness.
pub(crate) const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub(crate) const ORANGE: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub(crate) const GRAY: RGBColor = RGBColor(0x5f, 0x5f, 0x5f);
pub(crate) const GRID_COLOR: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

pub(crate) const FONT_FAMILY: &str = "sans-serif";
/// Width of the area left of the vertical axes in pixels, equal in all panels so that the axes align.
pub(crate) const LEFT_AREA_WIDTH: u32 = 66;

/// Part of a picture.
pub(crate) type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Result of a drawing function.
pub(crate) type DrawResult<T = ()> = Result<T, Box<dyn error::Error>>;

/// A line of a chart.
pub(crate) struct Curve<'a> {
    /// Text of the legend; empty for none.
    pub(crate) label: &'a str,
    pub(crate) color: RGBColor,
    /// Number of the training step, and the value.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws curves over the training steps, with the values `y_range`. There is a legend if a curve has a label.
pub(crate) fn draw_curves<Y: AsRangedCoord<Value = f64>>(
    area: &PlotArea<'_>,
    caption: &str,
    y_desc: &str,
    y_range: Y,
    curves: &[Curve<'_>],
) -> DrawResult
where
    Y::CoordDescType: ValueFormatter<f64>,
{
    let steps = curves.iter().flat_map(|curve| &curve.points).map(|point| point.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, (FONT_FAMILY, 18))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(LEFT_AREA_WIDTH)
        .build_cartesian_2d(0.0..steps, y_range)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID_COLOR)
        .axis_style(GRAY)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| format_value(y))
        .x_desc("training steps")
        .y_desc(y_desc)
        .label_style((FONT_FAMILY, 15))
        .axis_desc_style((FONT_FAMILY, 17))
        .draw()?;
    for curve in curves {
        let style = curve.color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), style))?
            .label(curve.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], style));
    }
    if curves.iter().any(|curve| !curve.label.is_empty()) {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(16)
            .legend_area_size(36)
            .label_font((FONT_FAMILY, 16))
            .draw()?;
    }
    Ok(())
}

/// Formats a tick label of the vertical axis.
pub(crate) fn format_value(y: f64) -> String {
    if y == 0.0 || (1e-3..1e5).contains(&y) {
        let text = format!("{y:.3}");
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        format!("{y:.1e}")
    }
}
