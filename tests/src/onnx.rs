//! ONNX cases: a model `NAME.onnx`, and `NAME.safetensors` with inputs and the outputs that another runtime computed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, Lstm, StateDict, ndarray::ArrayD};
use lstm_formats::{OnnxInputs, OnnxLstm, OnnxModel, onnx::GraphPortKind};

use crate::score::{Score, relative_error};

/// Absolute and relative tolerance: an output value passes if `|got - want| <= TOLERANCE + TOLERANCE * |want|`.
pub const TOLERANCE: f64 = 1e-5;

/// Names of the expected outputs in the safetensors file, and the kinds of outputs of the ONNX graph that they belong
/// to.
const OUTPUTS: [(&str, GraphPortKind); 3] =
    [("Y", GraphPortKind::Sequence), ("Y_h", GraphPortKind::H), ("Y_c", GraphPortKind::C)];

/// An ONNX case: a model, its inputs and its expected outputs.
pub struct OnnxCase {
    /// Name of the files without the extension.
    pub name: String,
    /// The LSTM of the ONNX file.
    pub onnx: OnnxLstm,
    inputs: OnnxInputs,
    /// Expected outputs: the name, the index of the output in the graph, and the values.
    want: Vec<(String, usize, ArrayD<f64>)>,
}

/// Name of tensor number `k` among the tensors of one kind: `Y`, `Y_1`, `Y_2`, ...
fn numbered_name(name: &str, k: usize) -> String {
    if k == 0 { name.to_owned() } else { format!("{name}_{k}") }
}

impl OnnxCase {
    /// Reads `NAME.onnx` and the `NAME.safetensors` beside it.
    ///
    /// # Errors
    /// A file can't be read, lacks an array or contains an unknown one.
    pub fn open(path: &Path) -> Result<Self> {
        OnnxCase::read(path).with_context(|| format!("{}", path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let onnx = OnnxModel::open(path)?.lstm()?;
        let mut file = StateDict::open(path.with_extension("safetensors"))?;
        let mut take_optional = |name: &str| match file.shape(name).is_some() {
            true => file.take_any(name).map(Some),
            false => Ok(None),
        };
        let x = take_optional("X")?.context("`X` is missing")?;
        let mut take_numbered = |name: &str| {
            (0..)
                .map(|k| numbered_name(name, k))
                .map_while(|name| take_optional(&name).transpose())
                .collect::<lstm_core::Result<Vec<_>>>()
        };
        let (initial_h, initial_c) = (take_numbered("initial_h")?, take_numbered("initial_c")?);
        let lengths = file.shape("sequence_lens").is_some().then(|| file.take_i64("sequence_lens")).transpose()?;
        let mut want = Vec::new();
        for (name, kind) in OUTPUTS {
            let ports = onnx.outputs.iter().enumerate().filter(|(_, port)| port.kind == kind);
            for (k, (index, _)) in ports.enumerate() {
                let name = numbered_name(name, k);
                if file.shape(&name).is_some() {
                    let value = file.take_f64(&name)?;
                    want.push((name, index, value));
                }
            }
        }
        ensure!(!want.is_empty(), "expected at least one of the outputs Y, Y_h and Y_c");
        file.finish()?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(OnnxCase { name, onnx, inputs: OnnxInputs { x, initial_h, initial_c, lengths }, want })
    }

    /// Runs the model on a backend. Returns one score for each expected output.
    ///
    /// # Errors
    /// The backend returns an error, or the graph has no such output.
    pub fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        let model = Lstm::new(b, self.onnx.weights.clone())?;
        let got = self.onnx.run(&model, self.inputs.clone())?;
        let score = |(output, index, want): &(String, usize, ArrayD<f64>)| {
            let (_, got) = got.get(*index).with_context(|| format!("the graph has no output {index}"))?;
            let error = relative_error(want, got);
            Ok(Score { array: output.clone(), error, limit: TOLERANCE, float32_error: None })
        };
        self.want.iter().map(score).collect()
    }
}
