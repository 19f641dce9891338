//! Draws the training curves, and beside them the confusion matrix.

use lstm::ndarray::Axis;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    Evaluation,
    charts::{BLUE, Curve, DrawResult, FONT_FAMILY, GRAY, ORANGE, PlotArea, draw_curves},
    reviews::CLASSES,
};

const SIZE: (u32, u32) = (1200, 520);
const CURVES_WIDTH: u32 = 620;
/// Corner of the matrix in its panel, and the size of a cell, in pixels.
const MATRIX_CORNER: (i32, i32) = (150, 46);
const CELL: i32 = 102;
/// Steps over which the loss of the training is averaged.
const AVERAGED: usize = 10;

/// Draws the picture as SVG text. `losses` has the loss of each step, and `test_losses` numbers of steps with the loss on
/// the reviews of the test.
pub(crate) fn draw(losses: &[f64], test_losses: &[(u64, f64)], evaluation: &Evaluation) -> DrawResult<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(CURVES_WIDTH);

    let means = losses.chunks(AVERAGED).enumerate().map(|(k, losses)| {
        let step = k * AVERAGED + losses.len();
        (step as f64, losses.iter().sum::<f64>() / losses.len() as f64)
    });
    let training = format!("training, mean of {AVERAGED} steps");
    let curves = [
        Curve { label: &training, color: BLUE, points: means.collect() },
        Curve {
            label: "test",
            color: ORANGE,
            points: test_losses.iter().map(|&(step, loss)| (step as f64, loss)).collect(),
        },
    ];
    let largest = curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(0.1, f64::max);
    draw_curves(&left, "Loss", "cross entropy (nats)", 0.0..1.05 * largest, &curves)?;
    draw_confusion(&right, evaluation)?;
    root.present()?;
    drop((left, right, root));
    Ok(svg)
}

/// Draws the number of reviews by true class, one row each, and class that the model gives.
fn draw_confusion(area: &PlotArea<'_>, evaluation: &Evaluation) -> DrawResult {
    let (left, top) = MATRIX_CORNER;
    let style = |size: u32, h: HPos, v: VPos, color: &'static RGBColor| {
        (FONT_FAMILY, size).into_text_style(area).color(color).pos(Pos::new(h, v))
    };
    let side = CELL * CLASSES.len() as i32;
    let title = format!("Confusion matrix of the test: {:.1} % correct", 100.0 * evaluation.accuracy());
    area.draw_text(&title, &style(18, HPos::Center, VPos::Top, &BLACK), (left + side / 2, 14))?;
    let text_style = style(17, HPos::Center, VPos::Bottom, &BLACK);
    area.draw_text("class that the model gives", &text_style, (left + side / 2, top + side + 50))?;
    let rotated = style(17, HPos::Center, VPos::Top, &BLACK).transform(FontTransform::Rotate270);
    area.draw_text("true class", &rotated, (10, top + side / 2))?;

    for (row, counts) in evaluation.confusion.axis_iter(Axis(0)).enumerate() {
        let total = counts.sum().max(1) as f64;
        for (column, &count) in counts.iter().enumerate() {
            let (x, y) = (left + column as i32 * CELL, top + row as i32 * CELL);
            let share = count as f64 / total;
            let rectangle = [(x, y), (x + CELL, y + CELL)];
            area.draw(&Rectangle::new(rectangle, BLUE.mix(share).filled()))?;
            area.draw(&Rectangle::new(rectangle, GRAY))?;
            let color = if share > 0.5 { &WHITE } else { &BLACK };
            let middle = (x + CELL / 2, y + CELL / 2);
            area.draw_text(&count.to_string(), &style(20, HPos::Center, VPos::Center, color), middle)?;
        }
        let middle = row as i32 * CELL + CELL / 2;
        area.draw_text(CLASSES[row], &style(15, HPos::Right, VPos::Center, &BLACK), (left - 8, top + middle))?;
        let below = (left + middle, top + side + 8);
        area.draw_text(CLASSES[row], &style(15, HPos::Center, VPos::Top, &BLACK), below)?;
    }
    Ok(())
}
