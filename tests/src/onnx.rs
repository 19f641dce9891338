//! ONNX cases: a model `NAME.onnx`, and `NAME.safetensors` with inputs and the outputs that another runtime computed.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, Model, StateDict, ndarray::ArrayD};
use lstm_formats::{
    OnnxArray, OnnxGraph, OnnxModel, OpenOptions,
    onnx::{OnnxInputKind, OnnxOutput, OnnxOutputKind, StateRows},
};

use crate::score::{Score, relative_error};

/// Absolute and relative tolerance: an output value passes if `|got - want| <= TOLERANCE + TOLERANCE * |want|`.
pub const TOLERANCE: f64 = 1e-5;

/// An ONNX case: a model, its inputs and its expected outputs.
pub struct OnnxCase {
    /// Name of the files without the extension.
    pub name: String,
    /// The model of the ONNX file.
    pub graph: OnnxGraph,
    /// Arrays for the inputs of the graph, by name.
    pub inputs: BTreeMap<String, OnnxArray>,
    /// Expected outputs, by the name of the graph output.
    want: Vec<(String, ArrayD<f64>)>,
}

/// The name of a tensor for a graph input or output of this kind, without a number.
fn state_name<'n>(rows: &[StateRows], names: [&'n str; 2]) -> &'n str {
    names[usize::from(rows.iter().all(|rows| rows.is_c))]
}

/// Names of the form `Y`, `Y_1`, `Y_2` for graph inputs or outputs of the same kind.
fn numbered<'n>(kinds: impl Iterator<Item = Option<&'n str>>) -> Vec<Option<String>> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let number = |name: &'n str| {
        let count = counts.entry(name).or_default();
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}_{}", *count - 1) }
    };
    let names: Vec<Option<&str>> = kinds.collect();
    let mut number = number;
    names.into_iter().map(|name| name.map(&mut number)).collect()
}

impl OnnxCase {
    /// Reads `NAME.onnx` and the `NAME.safetensors` beside it. The tensors are named `in.` and `out.` with the name of the
    /// graph input or output, or by their kind: `X`, `initial_h`, `initial_c`, `sequence_lens`, `Y`, `Y_h`, `Y_c`, with
    /// `_1` and so on for further ones of the same kind.
    ///
    /// # Errors
    /// A file can't be read, lacks an array or contains an unknown one.
    pub fn open(path: &Path) -> Result<Self> {
        OnnxCase::read(path).with_context(|| format!("{}", path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let mut file = StateDict::open(path.with_extension("safetensors"))?;
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let mut inputs: BTreeMap<String, OnnxArray> = BTreeMap::new();
        for name in names.iter().filter(|name| !name.starts_with("out.") && !name.starts_with("Y")) {
            let shape = file.shape(name).unwrap_or_default().to_vec();
            let array = match file.dtype(name).map(|dtype| dtype.to_string()).as_deref() {
                Some("I32" | "I64") => ArrayD::from_shape_vec(shape, file.take_i64(name)?)?.into(),
                _ => file.take_any(name)?.into(),
            };
            inputs.insert(name.strip_prefix("in.").unwrap_or(name).to_owned(), array);
        }
        let model = OnnxModel::open(path)?;
        let mut options = OpenOptions::default();
        // Scalar integers choose a branch.
        for (name, array) in &inputs {
            if let OnnxArray::I64(array) = array
                && let (1, Some(&value)) = (array.len(), array.first())
                && model.scalar_inputs().contains(&name.as_str())
            {
                options.set.insert(name.clone(), value as f64);
            }
        }
        let graph = model.graph(&options)?;
        if !names.iter().any(|name| name.starts_with("in.")) {
            let mut ports: Vec<_> = graph.inputs().iter().collect();
            ports.sort_by_key(|port| match &port.kind {
                OnnxInputKind::State(rows) => rows.first().map(|rows| (rows.lstm, rows.rows.start)),
                _ => None,
            });
            let kinds = ports.iter().map(|port| match &port.kind {
                OnnxInputKind::Features | OnnxInputKind::Tokens => Some("X"),
                OnnxInputKind::Lengths => Some("sequence_lens"),
                OnnxInputKind::State(rows) => Some(state_name(rows, ["initial_h", "initial_c"])),
                _ => None,
            });
            let arrays = ports.iter().zip(numbered(kinds)).map(|(port, kind)| {
                let array = inputs.remove(&kind.unwrap_or_default());
                Ok((port.name.clone(), array.with_context(|| format!("no array for the input `{}`", port.name))?))
            });
            let arrays = arrays.collect::<Result<_>>()?;
            ensure!(inputs.is_empty(), "unknown arrays {:?}", inputs.keys());
            inputs = arrays;
        }
        let kinds = graph.outputs().iter().map(|port| match &port.kind {
            OnnxOutputKind::State(rows) => Some(state_name(rows, ["Y_h", "Y_c"])),
            _ => Some("Y"),
        });
        let mut want = Vec::new();
        for (port, kind) in graph.outputs().iter().zip(numbered(kinds)) {
            // The last step of a model that runs forward is its final state, too.
            let is_state = |port: &OnnxOutput| matches!(port.kind, OnnxOutputKind::State(_));
            let is_output = !graph.outputs().iter().any(is_state) && !names.iter().any(|name| name == "Y");
            let state = if is_output { "Y_h" } else { "" };
            for name in [format!("out.{}", port.name), kind.unwrap_or_default(), state.to_owned()] {
                if names.contains(&name) {
                    want.push((port.name.clone(), file.take_f64(&name)?));
                }
            }
        }
        ensure!(!want.is_empty(), "expected at least one output");
        file.finish()?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(OnnxCase { name, graph, inputs, want })
    }

    /// Runs the model on a backend. Returns one score for each expected output.
    ///
    /// # Errors
    /// The backend returns an error, or the graph has no such output.
    pub fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        let model = Model::new(b, self.graph.weights().clone())?;
        let got: BTreeMap<String, ArrayD<f32>> = self.graph.run(&model, self.inputs.clone())?.into_iter().collect();
        let score = |(output, want): &(String, ArrayD<f64>)| {
            let got = got.get(output).with_context(|| format!("the graph has no output {output}"))?;
            ensure!(got.shape() == want.shape(), "{output}: expected shape {:?}, got {:?}", want.shape(), got.shape());
            let error = relative_error(want, got);
            Ok(Score { array: output.clone(), error, limit: TOLERANCE, float32_error: None })
        };
        self.want.iter().map(score).collect()
    }
}
