//! The picture of a forecast.

use std::{error, fs, path::Path};

use plotters::{
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{Error, Result, series::Series};

// Okabe and Ito's colours, which people tell apart whatever colours they see; besides, they differ in lightness.
const ACTUAL: RGBColor = RGBColor(0x00, 0x00, 0x00);
const FORECAST: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const REPEATED: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const BOUNDARY: RGBColor = RGBColor(0x5f, 0x5f, 0x5f);
const FORECAST_AREA: RGBColor = RGBColor(0xf6, 0xf3, 0xee);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

const SIZE: (u32, u32) = (1200, 600);
const FONT: &str = "sans-serif";
/// Length of a dash and of a gap, in pixels.
const DASH: (i32, i32) = (5, 4);

/// What is drawn.
pub(crate) struct Chart<'a> {
    /// All actual figures.
    pub(crate) series: &'a Series,
    /// The forecast of the last months.
    pub(crate) forecast: &'a [f64],
    /// The last known year, repeated over the same months.
    pub(crate) repeated: &'a [f64],
    /// Mean absolute error of the forecast in percent.
    pub(crate) error: f64,
    /// That of the repeated year.
    pub(crate) error_repeated: f64,
}

impl Chart<'_> {
    /// Draws an SVG file and makes its folder if need be.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let svg = self.svg().map_err(|why| Error::file(path, why))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        fs::write(path, svg).map_err(Error::io(path))
    }

    fn svg(&self) -> Result<String, Box<dyn error::Error + '_>> {
        let series = self.series;
        let points = |values: &[f64], start: usize| -> Vec<(f64, f64)> {
            values.iter().enumerate().map(|(k, &v)| (series.month(start + k).years(), v)).collect()
        };
        let start = series.len() - self.forecast.len();
        let (left, right) = (series.month(0).years(), series.month(series.len()).years());
        let boundary = (series.month(start - 1).years() + series.month(start).years()) / 2.0;
        let all = series.values().iter().chain(self.forecast).chain(self.repeated);
        let top = (all.copied().fold(0.0, f64::max) * 1.08 / 100.0).ceil() * 100.0;
        if !top.is_finite() {
            return Err("the figures are too large to draw".into());
        }

        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption("Airline passengers: two years forecast by an LSTM", (FONT, 22))
            .margin(14)
            .margin_right(24)
            .x_label_area_size(52)
            .y_label_area_size(66)
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
        for (text, side, gap) in [("← trained on", HPos::Right, -gap), ("forecast →", HPos::Left, gap)] {
            let style = (FONT, 16).into_text_style(&root).color(&BOUNDARY).pos(Pos::new(side, VPos::Top));
            chart.draw_series([Text::new(text, (boundary + gap, top * 0.985), style)])?;
        }

        let (repeated, actual, forecast) = (REPEATED.stroke_width(2), ACTUAL.stroke_width(2), FORECAST.stroke_width(3));
        let (dash, gap) = DASH;
        let all = LineSeries::new(points(series.values(), 0), actual);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], actual);
        chart.draw_series(all)?.label("actual").legend(legend);
        let line = LineSeries::new(points(self.forecast, start), forecast);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], forecast);
        chart.draw_series(line)?.label(format!("forecast ({:.1} % off)", self.error)).legend(legend);
        let line = DashedLineSeries::new(points(self.repeated, start), dash, gap, repeated);
        let legend = move |(x, y)| DashedPathElement::new([(x, y), (x + 26, y)], dash, gap, repeated);
        let label = format!("last year repeated ({:.1} % off)", self.error_repeated);
        chart.draw_series(line)?.label(label).legend(legend);

        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .margin(16)
            .legend_area_size(36)
            .label_font((FONT, 16))
            .draw()?;
        root.present()?;
        drop(chart);
        drop(root);
        Ok(svg)
    }
}
