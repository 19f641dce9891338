//! `lstm-peers PEER THREADS`: times the LSTM of another Rust library as a worker of `lstm-benches`. Each library reads its
//! number of threads from environment variables, which the benchmark sets.

mod burn;
mod candle;
mod onnx;

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lstm_benches::{case::Case, worker};
use safetensors::SafeTensors;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("expected arguments PEER THREADS")?;
    match name.as_str() {
        "candle" => worker::serve(Ok(version("candle", "candle-nn")), candle::prepare),
        "burn" => worker::serve(Ok(version("burn-flex", "burn")), burn::prepare::<::burn::backend::Flex>),
        "burn-wgpu" => worker::serve(Ok(version("burn-wgpu", "burn")), burn::prepare::<::burn::backend::Wgpu>),
        "rten" => worker::serve(Ok(version("rten", "rten")), onnx::rten),
        "tract" => worker::serve(Ok(version("tract", "tract-onnx")), onnx::tract),
        _ => bail!("no peer `{name}`"),
    }
}

/// Name of a library, and the version of its crate in Cargo.lock.
fn version(name: &str, crate_name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    // The last entry, because an older version may be a transitive dependency.
    let entry = lock.rsplit_once(&format!("name = \"{crate_name}\"\nversion = \""));
    let number = entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("(unknown version)");
    format!("{name} {number}")
}

/// Weights and input of a case.
struct Model {
    /// Weights by PyTorch's tensor names.
    tensors: HashMap<String, Tensor>,
    /// Input, shape `(steps, batch, features)`.
    x: Tensor,
}

/// An f32 tensor in row-major order.
#[derive(Clone)]
struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Model {
    /// Reads the weights and input from the directory of a case.
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

    /// As [`open`](Self::open), for libraries that have only single layers with one direction.
    fn one_layer(case: &Case, dir: &Path) -> Result<Model> {
        ensure!(case.layers == 1 && !case.bidir, "the library has only single layers with one direction");
        let model = Model::open(dir)?;
        ensure!(!model.tensors.is_empty(), "the library has no peephole connections");
        Ok(model)
    }

    /// The weight tensor with a name.
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("expected a tensor `{name}`"))
    }
}

/// Swaps the first two axes of a row-major array, such as `(batch, steps, features)` to `(steps, batch, features)`.
fn swap_axes(data: &[f32], [first, second, features]: [usize; 3]) -> Vec<f32> {
    let rows = (0..second).flat_map(|s| (0..first).map(move |f| (f * second + s) * features));
    rows.flat_map(|at| &data[at..at + features]).copied().collect()
}
