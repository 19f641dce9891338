//! `lstm-peers PEER THREADS`: another library's LSTM as one that the conductor of `lstm-benches` times. Threads come from the
//! environment, as each library reads them.

mod burn;
mod candle;
mod onnx;

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lstm_benches::{case::Case, worker};
use safetensors::SafeTensors;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("expected PEER THREADS")?;
    match name.as_str() {
        "candle" => worker::serve(Ok(about("candle", "candle-nn")), candle::prepare),
        "burn" => worker::serve(Ok(about("burn-flex", "burn")), burn::prepare::<::burn::backend::Flex>),
        "burn-wgpu" => worker::serve(Ok(about("burn-wgpu", "burn")), burn::prepare::<::burn::backend::Wgpu>),
        "rten" => worker::serve(Ok(about("rten", "rten")), onnx::rten),
        "tract" => worker::serve(Ok(about("tract", "tract-onnx")), onnx::tract),
        _ => bail!("there is no peer {name}"),
    }
}

/// A name, and the version that Cargo.lock has of its crate.
fn about(name: &str, crate_name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    // The last one, where an older version is somebody's dependency.
    let entry = lock.rsplit_once(&format!("name = \"{crate_name}\"\nversion = \""));
    let version = entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("of an unknown version");
    format!("{name} {version}")
}

/// A case's weights by PyTorch's names, and its input.
struct Model {
    tensors: HashMap<String, Tensor>,
    x: Tensor,
}

#[derive(Clone)]
struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Model {
    fn open(dir: &Path) -> Result<Model> {
        let bytes = std::fs::read(dir.join("weights.safetensors"))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tensor = |view: safetensors::tensor::TensorView<'_>| {
            let data = view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            Tensor { shape: view.shape().to_vec(), data }
        };
        let mut tensors: HashMap<String, Tensor> =
            file.iter().map(|(name, view)| (name.to_owned(), tensor(view))).collect();
        let x = tensors.remove("x").context("expected an input `x`")?;
        Ok(Model { tensors, x })
    }

    /// For those who have single layers only.
    fn one_layer(case: &Case, dir: &Path) -> Result<Model> {
        ensure!(
            case.layers == 1 && !case.bidir,
            "it has one layer in one direction; others would be ours, not its own"
        );
        let model = Model::open(dir)?;
        ensure!(!model.tensors.is_empty(), "it has no peepholes");
        Ok(model)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("expected a tensor `{name}`"))
    }
}

/// `(batch, steps, features)` as `(steps, batch, features)`, or the other way round.
fn swap(data: &[f32], [first, second, features]: [usize; 3]) -> Vec<f32> {
    let rows = (0..second).flat_map(|s| (0..first).map(move |f| (f * second + s) * features));
    rows.flat_map(|at| &data[at..at + features]).copied().collect()
}
