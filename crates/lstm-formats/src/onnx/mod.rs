//! ONNX files: an [`OnnxModel`] whose `LSTM` nodes become one model, and an [`OnnxWriter`].
//!
//! Equations and layouts are those of ONNX's own definition, <https://onnx.ai/onnx/operators/onnx__LSTM.html>, opsets 7
//! to 26. All nodes between and around the LSTMs must be of the kind that only moves axes and computes sizes; whatever
//! else is in the graph is an error that names it, unless the caller chose LSTMs by name.

mod chain;
#[cfg(test)]
mod declared;
#[cfg(test)]
mod edits;
mod export;
mod layer;
mod node;
mod ops;
mod parts;
mod port;
mod proto;
#[cfg(test)]
mod refusals;
mod select;
mod start;
mod tensor;
mod value;
mod walk;
mod zeros;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use ndarray::ArrayD;
use prost::Message;

pub use chain::{Initial, OnnxInputs, OnnxLstm};
pub use export::OnnxWriter;
pub use layer::Lengths;
pub use port::{Port, PortAxis, PortKind};

use lstm_core::{Error, Result};

/// The operator sets that are read. After 22, the operators that are read took new element types and nothing else.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// A model file, parsed.
///
/// An input of the graph that has a default, which is an initializer of its name, counts as the constant that it is: it
/// can't be fed with anything else.
///
/// ```
/// use lstm_core::{Init, LstmConfig, Weights};
/// use lstm_formats::onnx::{OnnxModel, OnnxWriter};
///
/// let weights = Weights::init(LstmConfig::new(3, 5).layers(2).bidirectional(), &Init::default(), 1)?;
/// let bytes = OnnxWriter::new(&weights).to_bytes()?;
/// let model = OnnxModel::from_bytes(&bytes)?;
/// assert_eq!(model.lstm_nodes(), ["lstm_l0", "lstm_l1"]);
/// assert_eq!(model.lstm()?.weights, weights);
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone)]
pub struct OnnxModel {
    /// What errors call it.
    what: String,
    dir: Option<PathBuf>,
    graph: proto::Graph,
    opset: i64,
}

impl fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnnxModel({}, opset {}, {} nodes)", self.what, self.opset, self.graph.node.len())
    }
}

impl OnnxModel {
    /// Reads a file. Tensors that it keeps in other files are read when they are needed, from its folder or below.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; [`Error::Format`] as for [`from_bytes`](Self::from_bytes), naming the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = parent.unwrap_or(Path::new(".")).to_owned();
        Self::parse(&bytes, path.display().to_string(), Some(dir))
    }

    /// Takes the bytes of a file that keeps all its tensors in itself.
    ///
    /// # Errors
    /// [`Error::Format`] if they are no ONNX model, or one of another operator set than 7 to 26, with sparse or
    /// quantised tensors, or with operators of its own under ONNX's names.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, "onnx".into(), None)
    }

    fn parse(bytes: &[u8], what: String, dir: Option<PathBuf>) -> Result<Self> {
        let fail = |why: String| Error::format(&what, why);
        let model = proto::Model::decode(bytes).map_err(|e| fail(e.to_string()))?;
        let standard = |domain: &str| ["", "ai.onnx"].contains(&domain);
        let opsets = model.opset_import.iter().filter(|o| standard(o.domain.as_deref().unwrap_or_default()));
        let versions: Vec<i64> = opsets.map(|o| o.version.unwrap_or_default()).collect();
        let &[opset] = &versions[..] else { return Err(fail(format!("expected one operator set, got {versions:?}"))) };
        if !OPSETS.contains(&opset) {
            return Err(fail(format!("expected an operator set of {OPSETS:?}, got {opset}")));
        }
        if let Some(function) = model.functions.iter().find(|f| standard(&f.domain)) {
            return Err(fail(format!("the file has its own operator `{}`", function.name)));
        }
        let graph = model.graph.ok_or_else(|| fail("there is no graph".into()))?;
        if !graph.sparse_initializer.is_empty() || !graph.quantization.is_empty() {
            return Err(fail("sparse and quantised tensors are not read".into()));
        }
        Ok(OnnxModel { what, dir, graph, opset })
    }

    /// The operator set the file is written for.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Names of the `LSTM` nodes in the order of the file; of one without a name, its number among all nodes.
    pub fn lstm_nodes(&self) -> Vec<String> {
        let nodes = self.graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "LSTM");
        nodes.map(|(index, node)| walk::name(node, index)).collect()
    }

    /// Names of the initializers, which [`tensor`](Self::tensor) reads.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.graph.initializer.iter().map(|tensor| tensor.name.as_str())
    }

    /// An initializer of FLOAT, FLOAT16, BFLOAT16 or DOUBLE (rounded to the nearest f32), such as a head's weights.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorType`], [`Error::Format`] if the elements are not as many as the shape
    /// says or can't be held; what reading another file gives.
    pub fn tensor(&self, name: &str) -> Result<ArrayD<f32>> {
        let found = self.graph.initializer.iter().find(|tensor| tensor.name == name);
        let missing = || Error::MissingTensor { name: name.into(), expected: "an initializer".into() };
        self.named(tensor::floats(found.ok_or_else(missing)?, self.dir.as_deref()))
    }

    /// The whole graph as one model: each `LSTM` node is a layer on top of the one before. Defaults of inputs are
    /// constants here. Floats of any type are computed with as f32, whichever other type they meet.
    ///
    /// # Errors
    /// [`Error::Format`] naming the node, output or tensor, what was expected and what came: a node that is neither an
    /// LSTM nor only moves axes; an attribute, activation or combination that this library does not have; layers that
    /// differ in more than their input's size; an output that is not the chain's; tensors of other shapes and types.
    /// [`Error::UnusedTensors`] for inputs and initializers that nothing reads.
    pub fn lstm(&self) -> Result<OnnxLstm> {
        self.load(None)
    }

    /// The model made of the `LSTM` nodes with these names, each on top of the one before. Nodes that are then left
    /// out are listed in [`OnnxLstm::ignored`].
    ///
    /// # Errors
    /// Those of [`lstm`](Self::lstm), but for what is no part of these nodes and of what lies between them, and
    /// [`Error::Format`] for a name that no `LSTM` node has, and for names that are not in the order of the file.
    pub fn lstm_named(&self, names: &[&str]) -> Result<OnnxLstm> {
        self.load(Some(names))
    }

    fn load(&self, names: Option<&[&str]>) -> Result<OnnxLstm> {
        let nodes = self.lstm_nodes();
        if nodes.is_empty() {
            return Err(Error::format(&self.what, "expected an LSTM node, found none"));
        }
        let unknown = names.unwrap_or_default().iter().find(|name| nodes.iter().filter(|n| n == *name).count() != 1);
        if let Some(name) = unknown {
            let why = format!("expected the name of one LSTM node out of {nodes:?}, got `{name}`");
            return Err(Error::format(&self.what, why));
        }
        let place = |name: &&str| nodes.iter().position(|node| node == name);
        if let Some(pair) = names.unwrap_or_default().windows(2).find(|pair| place(&pair[0]) >= place(&pair[1])) {
            let why = format!(
                "expected names in the order of {nodes:?}, each once, got `{}` and then `{}`",
                pair[0], pair[1]
            );
            return Err(Error::format(&self.what, why));
        }
        let walk = walk::Walk::run(&self.graph, self.opset, self.dir.as_deref(), names);
        let loaded = walk.and_then(|(mut walk, outputs)| {
            let lstm = chain::assemble(&mut walk, outputs)?;
            if names.is_none() {
                walk.all_used(&self.graph)?;
            }
            Ok(lstm)
        });
        self.named(loaded)
    }

    /// Puts the file's name before what is wrong with it.
    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Format { what, why } => Error::Format { what: format!("{}: {what}", self.what), why },
            other => other,
        })
    }
}
