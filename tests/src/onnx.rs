//! ONNX cases: `NAME.onnx` beside `NAME.safetensors` with inputs and the outputs that another runtime gave for them, and
//! how far a backend is from these.

use std::{fmt, path::Path};

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, Lstm, StateDict, ndarray::ArrayD};
use lstm_formats::{OnnxInputs, OnnxLstm, OnnxModel, onnx::GraphPortKind};

use crate::verify::Compared;

/// What passes: `|got - want| <= TOLERANCE + TOLERANCE * |want|`.
pub const TOLERANCE: f64 = 1e-5;

/// Names of expected outputs, and what they are.
const OUTPUTS: [(&str, GraphPortKind); 3] =
    [("Y", GraphPortKind::Sequence), ("Y_h", GraphPortKind::H), ("Y_c", GraphPortKind::C)];

/// A case: a model, its inputs, its outputs.
pub struct OnnxCase {
    /// The files' name without extension.
    pub name: String,
    /// The model.
    pub onnx: OnnxLstm,
    inputs: OnnxInputs,
    /// Names and values of outputs, by the graph's number of each.
    want: Vec<(String, usize, ArrayD<f64>)>,
}

/// How far one output is from the other runtime's.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// `Y`, `Y_h` or `Y_c`; the second of a kind is `Y_1` and so on.
    pub output: String,
    /// `max |got - want| / (1 + |want|)`; infinite where a NaN came or a shape differs.
    pub error: f64,
}

impl Score {
    /// Whether it is within the tolerance.
    pub fn passes(&self) -> bool {
        self.error <= TOLERANCE
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok" } else { "FAIL" };
        write!(f, "{:<5} error {:.2e}  limit {TOLERANCE:.0e}  {verdict}", self.output, self.error)
    }
}

/// The name of the tensor for the first of a kind, or for one that follows.
fn numbered(name: &str, k: usize) -> String {
    if k == 0 { name.to_owned() } else { format!("{name}_{k}") }
}

impl OnnxCase {
    fn read(path: &Path) -> Result<Self> {
        let onnx = OnnxModel::open(path)?.lstm()?;
        let mut file = StateDict::open(path.with_extension("safetensors"))?;
        let mut optional = |name: &str| match file.shape(name).is_some() {
            true => file.take_any(name).map(Some),
            false => Ok(None),
        };
        let x = optional("X")?.context("`X` is missing")?;
        let mut several = |name: &str| {
            (0..)
                .map(|k| numbered(name, k))
                .map_while(|name| optional(&name).transpose())
                .collect::<lstm_core::Result<Vec<_>>>()
        };
        let (initial_h, initial_c) = (several("initial_h")?, several("initial_c")?);
        let lengths = file.shape("sequence_lens").is_some().then(|| file.take_i64("sequence_lens")).transpose()?;
        let mut want = Vec::new();
        for (name, kind) in OUTPUTS {
            let ports = onnx.outputs.iter().enumerate().filter(|(_, port)| port.kind == kind);
            for (k, (index, _)) in ports.enumerate() {
                let name = numbered(name, k);
                if file.shape(&name).is_some() {
                    let value = file.take_f64(&name)?;
                    want.push((name, index, value));
                }
            }
        }
        ensure!(!want.is_empty(), "none of Y, Y_h and Y_c is there");
        file.finish()?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(OnnxCase { name, onnx, inputs: OnnxInputs { x, initial_h, initial_c, lengths }, want })
    }
}

impl Compared for OnnxCase {
    type Score = Score;

    const EXTENSION: &str = "onnx";

    fn open(path: &Path) -> Result<Self> {
        OnnxCase::read(path).with_context(|| format!("{}", path.display()))
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// One score for each output that the file knows.
    fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        let model = Lstm::new(b, self.onnx.weights.clone())?;
        let got = self.onnx.run(&model, self.inputs.clone())?;
        let score = |(output, index, want): &(String, usize, ArrayD<f64>)| {
            let (_, got) = got.get(*index).with_context(|| format!("no output {index}"))?;
            Ok(Score { output: output.clone(), error: crate::golden::error(want, got) })
        };
        self.want.iter().map(score).collect()
    }

    fn ratio(score: &Score) -> f64 {
        score.error / TOLERANCE
    }
}
