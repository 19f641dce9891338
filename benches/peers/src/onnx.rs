//! rten and tract, which run ONNX models.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use lstm_benches::{
    case::{Case, CaseKind},
    job::PreparedCase,
};

use crate::Model;

/// Path of the ONNX model of a case, and its input with shape.
fn open(case: &Case, dir: &Path) -> Result<(PathBuf, Vec<f32>, [usize; 3])> {
    ensure!(case.kind == CaseKind::Forward, "the library only runs forward passes over whole sequences");
    let path = dir.join("model.onnx");
    ensure!(path.exists(), "ONNX has no dense peephole cell");
    Ok((path, Model::open(dir)?.x.data, [case.seq, case.batch, case.input]))
}

/// A prepared case made of two closures.
struct Closure<F: FnMut() -> Result<Vec<f32>>, G: FnMut() -> Result<()>> {
    output: F,
    run: G,
}

impl<F: FnMut() -> Result<Vec<f32>>, G: FnMut() -> Result<()>> PreparedCase for Closure<F, G> {
    fn run(&mut self) -> Result<()> {
        (self.run)()
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        (self.output)()
    }
}

/// Prepares a case with rten.
pub(crate) fn rten(case: &Case, dir: &Path) -> Result<Box<dyn PreparedCase>> {
    use rten_tensor::{NdTensor, prelude::*};

    let (path, x, shape) = open(case, dir)?;
    let model = std::rc::Rc::new(rten::Model::load_file(path).map_err(|error| anyhow!("{error}"))?);
    let (input, y) = (model.node_id("X")?, model.node_id("Y")?);
    let x = NdTensor::from_data(shape, x);
    let forward = move || {
        let mut outputs = model.run(vec![(input, x.view().into())], &[y], None)?;
        outputs.pop().context("no output")
    };
    let forward_only = forward.clone();
    let output = move || {
        let y: rten_tensor::Tensor<f32> = forward()?.try_into().map_err(|error| anyhow!("{error:?}"))?;
        Ok(y.iter().copied().collect())
    };
    Ok(Box::new(Closure { output, run: move || forward_only().map(|y| drop(std::hint::black_box(y))) }))
}

/// Prepares a case with tract.
pub(crate) fn tract(case: &Case, dir: &Path) -> Result<Box<dyn PreparedCase>> {
    use tract_onnx::prelude::*;

    let (path, x, shape) = open(case, dir)?;
    let model = tract_onnx::onnx().with_ignore_output_shapes(true).model_for_path(path)?;
    let model = model.with_input_fact(0, f32::fact(shape).into())?.with_outputs_by_name(["Y"])?;
    let model = model.into_optimized()?.into_runnable()?;
    let x = Tensor::from_shape(&shape, &x)?;
    let forward = move || Ok::<_, anyhow::Error>(model.run(tvec!(x.clone().into()))?.remove(0));
    let forward_only = forward.clone();
    let output = move || Ok(forward()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
    Ok(Box::new(Closure { output, run: move || forward_only().map(|y| drop(std::hint::black_box(y))) }))
}
