//! The losses of a run, which its checkpoint keeps, and their chart. The example of `lstm-mpi` uses it, too.

use std::{fs, path::Path};

use lstm::{
    ndarray::{Array2, Axis},
    train::CheckpointExtras,
};
use plotters::prelude::*;

use crate::charts::{BLUE, Curve, DrawResult, ORANGE, draw_curves};

const SIZE: (u32, u32) = (1000, 500);
/// The most points of a line; each is the mean of as many losses as needed.
const MAX_POINTS: usize = 300;
/// Names of the arrays in the checkpoint.
const TENSOR_NAMES: [&str; 2] = ["curve.training", "curve.validation"];

/// Losses in bits per character, each after the number of a step.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) training: Vec<[f32; 2]>,
    pub(crate) validation: Vec<[f32; 2]>,
}

/// A point of [`Losses`].
pub(crate) fn point(step: u64, bits: f64) -> [f32; 2] {
    [step as f32, bits as f32]
}

impl Losses {
    /// Adds the losses to a checkpoint.
    pub(crate) fn add_to(&self, mut extras: CheckpointExtras) -> CheckpointExtras {
        for (name, points) in TENSOR_NAMES.into_iter().zip([&self.training, &self.validation]) {
            if !points.is_empty() {
                extras = extras.with_tensor(name, Array2::from(points.clone()).into_dyn());
            }
        }
        extras
    }

    /// Takes the losses from a checkpoint. Those of older versions have none.
    pub(crate) fn take_from(extras: &mut CheckpointExtras) -> Result<Self, String> {
        let mut take = |name: &str| -> Result<Vec<[f32; 2]>, String> {
            let Some(points) = extras.tensors.remove(name) else { return Ok(Vec::new()) };
            match points.shape() {
                [_, 2] => Ok(points.axis_iter(Axis(0)).map(|point| [point[[0]], point[[1]]]).collect()),
                shape => Err(format!("tensor `extra.{name}`: expected the shape [points, 2], found {shape:?}")),
            }
        };
        let [training, validation] = TENSOR_NAMES;
        Ok(Losses { training: take(training)?, validation: take(validation)? })
    }

    /// Draws the losses to an SVG file, and creates its directory if needed.
    pub(crate) fn draw(&self, path: &Path) -> DrawResult {
        let svg = self.draw_svg()?;
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(fs::write(path, svg)?)
    }

    fn draw_svg(&self) -> DrawResult<String> {
        let averaged = self.training.len().div_ceil(MAX_POINTS).max(1);
        let means = self.training.chunks(averaged).filter_map(|points| {
            let sum: f64 = points.iter().map(|&[_, bits]| f64::from(bits)).sum();
            points.last().map(|&[step, _]| (f64::from(step), sum / points.len() as f64))
        });
        let label = if averaged == 1 { "training".into() } else { format!("training, mean of {averaged} steps") };
        let validation = self.validation.iter().map(|&[step, bits]| (f64::from(step), f64::from(bits)));
        let mut curves = vec![
            Curve { label: &label, color: BLUE, points: means.collect() },
            Curve { label: "validation", color: ORANGE, points: validation.collect() },
        ];
        curves.retain(|curve| !curve.points.is_empty());
        let largest = curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(0.1, f64::max);
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        draw_curves(&root, "Loss of the language model", "bits per character", 0.0..1.05 * largest, &curves)?;
        root.present()?;
        drop(root);
        Ok(svg)
    }
}
