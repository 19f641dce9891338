//! Draws the waveform, the speech probability, and the segments of speech.

use std::ops::Range;

use plotters::{coord::Shift, prelude::*};

use crate::{
    Result,
    model::CHUNK,
    seconds,
    segments::{BEGIN_PROBABILITY, END_PROBABILITY},
};

// Okabe and Ito's palette for color vision deficiencies.
const WAVEFORM_COLOR: RGBColor = RGBColor(0x5f, 0x5f, 0x5f);
const PROBABILITY_COLOR: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SEGMENT_COLOR: RGBColor = RGBColor(0xfb, 0xe8, 0xd3);
const THRESHOLD_COLOR: RGBColor = RGBColor(0xd5, 0x5e, 0x00);

const WIDTH: u32 = 1200;
const PANEL_HEIGHT: u32 = 260;
const FONT_FAMILY: &str = "sans-serif";

/// Draws the picture as SVG text.
pub(crate) fn draw(samples: &[f32], probabilities: &[f32], segments: &[Range<usize>]) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (WIDTH, 2 * PANEL_HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(PANEL_HEIGHT);

    let peak = samples.iter().fold(f32::MIN_POSITIVE, |peak, v| peak.max(v.abs()));
    // The range of the samples of each of at most `WIDTH` columns.
    let column = samples.len().div_ceil(WIDTH as usize).max(1);
    let columns = samples.chunks(column).zip(0usize..).map(|(samples, k)| {
        let range = samples.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
        let time = seconds(k * column);
        PathElement::new([(time, f64::from(range.0)), (time, f64::from(range.1))], WAVEFORM_COLOR)
    });
    let baseline = PathElement::new(vec![(0.0, 0.0), (seconds(samples.len()), 0.0)], WAVEFORM_COLOR);
    let columns = columns.chain([baseline]);
    draw_panel(
        &upper,
        "Waveform; segments of speech are shaded",
        f64::from(-peak)..f64::from(peak),
        columns,
        (samples.len(), segments),
    )?;

    let steps = probabilities.iter().zip(0usize..).flat_map(|(&probability, k)| {
        let probability = f64::from(probability);
        [(seconds(k * CHUNK), probability), (seconds((k + 1) * CHUNK), probability)]
    });
    let line = PathElement::new(steps.collect::<Vec<_>>(), PROBABILITY_COLOR.stroke_width(2));
    let end = seconds(samples.len());
    let thresholds = [BEGIN_PROBABILITY, END_PROBABILITY].map(|threshold| {
        let threshold = f64::from(threshold);
        PathElement::new(vec![(0.0, threshold), (end, threshold)], THRESHOLD_COLOR)
    });
    let caption = "Speech probability, and the thresholds where speech begins and ends";
    draw_panel(&lower, caption, 0.0..1.0, thresholds.into_iter().chain([line]), (samples.len(), segments))?;
    root.present()?;
    drop((upper, lower, root));
    Ok(svg)
}

/// Draws one panel: the segments of speech, and `elements` above them. `len` is the number of samples.
fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    y: Range<f64>,
    elements: impl Iterator<Item = PathElement<(f64, f64)>>,
    (len, segments): (usize, &[Range<usize>]),
) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, (FONT_FAMILY, 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..seconds(len).max(f64::MIN_POSITIVE), y.clone())?;
    chart.draw_series(segments.iter().map(|segment| {
        let corners = [(seconds(segment.start), y.start), (seconds(segment.end), y.end)];
        Rectangle::new(corners, SEGMENT_COLOR.filled())
    }))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("time (s)")
        .y_labels(5)
        .label_style((FONT_FAMILY, 14))
        .axis_desc_style((FONT_FAMILY, 15))
        .draw()?;
    chart.draw_series(elements)?;
    Ok(())
}
