//! ONNX files: [`OnnxModel`] reads the `LSTM` nodes of a graph as one model, [`OnnxWriter`] writes a model.
//!
//! Equations and layouts are those of the ONNX standard, <https://onnx.ai/onnx/operators/onnx__LSTM.html>, for opsets 7
//! to 26. The nodes between and around the `LSTM` nodes may only move axes and compute sizes. Any other node is an
//! error that names it, unless the caller selects `LSTM` nodes by name.
//!
//! Each module imports only modules to its left:
//! `proto`, `tensor`, `node`, `value`, `operators`, `graph_port`, `context`, `lengths`, `initial_state`, `layer`,
//! `traversal`, `lstm`, `assemble`, this module. `export` imports only `proto`.

mod assemble;
mod context;
mod export;
mod graph_port;
mod initial_state;
mod layer;
mod lengths;
mod lstm;
mod node;
mod operators;
mod proto;
mod tensor;
#[cfg(test)]
mod tests;
mod traversal;
mod value;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use ndarray::ArrayD;
use prost::Message;

pub use export::OnnxWriter;
pub use graph_port::{GraphAxis, GraphPort, GraphPortKind};
pub use lengths::SequenceLengths;
pub use lstm::{InitialState, OnnxInputs, OnnxLstm};

use lstm_core::{Error, Result};

/// The supported operator sets. Versions 23 to 26 only add element types to the operators that this module reads.
const SUPPORTED_OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// A parsed ONNX file.
///
/// A graph input with a default value, that is, with an initializer of the same name, is treated as a constant: it
/// can't be set to another value.
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
    /// Name of the file for error messages.
    source: String,
    /// Folder of the files that hold external tensor data; `None` if the model was not read from a file.
    dir: Option<PathBuf>,
    graph: proto::Graph,
    /// Version of the ONNX operator set that the file uses.
    opset: i64,
}

impl fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnnxModel({}, opset {}, {} nodes)", self.source, self.opset, self.graph.node.len())
    }
}

impl OnnxModel {
    /// Reads a file. Tensors in external files, which must be in the folder of the model or below, are read when they
    /// are needed.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be read; the errors of [`from_bytes`](Self::from_bytes), with the name of the
    /// file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = parent.unwrap_or(Path::new(".")).to_owned();
        Self::parse(&bytes, path.display().to_string(), Some(dir))
    }

    /// Parses the bytes of a file that has no external data.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are not an ONNX model, or if the model has an operator set other than 7 to 26,
    /// sparse or quantized tensors, or functions in the domain of the ONNX standard.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, "onnx".into(), None)
    }

    /// Parses a file. `source` is its name for error messages, `dir` the folder of the files that hold external tensor
    /// data.
    fn parse(bytes: &[u8], source: String, dir: Option<PathBuf>) -> Result<Self> {
        let error = |why: String| Error::format(&source, why);
        let model = proto::Model::decode(bytes).map_err(|e| error(e.to_string()))?;
        let is_standard_domain = |domain: &str| ["", "ai.onnx"].contains(&domain);
        let opsets = model.opset_import.iter().filter(|o| is_standard_domain(o.domain.as_deref().unwrap_or_default()));
        let versions: Vec<i64> = opsets.map(|o| o.version.unwrap_or_default()).collect();
        let &[opset] = &versions[..] else {
            return Err(error(format!("expected one version of the ONNX operator set, got {versions:?}")));
        };
        if !SUPPORTED_OPSETS.contains(&opset) {
            return Err(error(format!(
                "expected a version of the ONNX operator set in {SUPPORTED_OPSETS:?}, got {opset}"
            )));
        }
        if let Some(function) = model.functions.iter().find(|f| is_standard_domain(&f.domain)) {
            let why = format!("redefinition of the standard operator `{}` is not supported", function.name);
            return Err(error(why));
        }
        let graph = model.graph.ok_or_else(|| error("expected a graph, found none".into()))?;
        if !graph.sparse_initializer.is_empty() || !graph.quantization.is_empty() {
            return Err(error("sparse and quantized tensors are not supported".into()));
        }
        Ok(OnnxModel { source, dir, graph, opset })
    }

    /// Returns the version of the ONNX operator set that the file uses.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Returns the names of the `LSTM` nodes in the order of the file. A node without a name is named by its index
    /// among all nodes.
    pub fn lstm_nodes(&self) -> Vec<String> {
        let nodes = self.graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "LSTM");
        nodes.map(|(index, node)| node::node_name(index, node)).collect()
    }

    /// Returns the names of the initializers, for [`tensor`](Self::tensor).
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.graph.initializer.iter().map(|tensor| tensor.name.as_str())
    }

    /// Reads an initializer of type FLOAT, FLOAT16, BFLOAT16 or DOUBLE, such as the weights of a dense layer. Elements
    /// are rounded to the nearest f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::TensorType`] for another element type; [`Error::Format`] if the number of
    /// elements does not match the shape; [`Error::TooLarge`] if the shape does not fit in memory; [`Error::Io`] if
    /// external data can't be read.
    pub fn tensor(&self, name: &str) -> Result<ArrayD<f32>> {
        let initializer = self.graph.initializer.iter().find(|tensor| tensor.name == name);
        let missing_error = || Error::MissingTensor { name: name.into(), expected: "an initializer".into() };
        self.with_file_name(tensor::floats(initializer.ok_or_else(missing_error)?, self.dir.as_deref()))
    }

    /// Loads the whole graph as one model, in which each `LSTM` node is a layer on top of the previous one. Floats of
    /// all types are converted to f32.
    ///
    /// # Errors
    /// [`Error::Format`], which names the node, output or tensor, for: a node that is not an `LSTM` and does more than
    /// move axes; an attribute or activation that this library does not support; layers that differ in more than their
    /// input size; a graph output that is not an output of the LSTM; a tensor of the wrong shape or type.
    /// [`Error::UnusedTensors`] for unused inputs and initializers.
    pub fn lstm(&self) -> Result<OnnxLstm> {
        self.load(None)
    }

    /// Loads the `LSTM` nodes with these [names](Self::lstm_nodes) as one model, in which each is a layer on top of the
    /// previous one. Nodes that are not part of it are listed in [`OnnxLstm::ignored_nodes`].
    ///
    /// # Errors
    /// The errors of [`lstm`](Self::lstm), except those about ignored nodes, unused tensors and other outputs;
    /// [`Error::Format`] if a name is not that of exactly one `LSTM` node, or the names are not in the order of the
    /// file.
    pub fn lstm_named(&self, names: &[&str]) -> Result<OnnxLstm> {
        self.load(Some(names))
    }

    /// Loads the `LSTM` nodes with these names, or all of them for `None`.
    fn load(&self, names: Option<&[&str]>) -> Result<OnnxLstm> {
        let nodes = self.lstm_nodes();
        if nodes.is_empty() {
            return Err(Error::format(&self.source, "expected an LSTM node, found none"));
        }
        let is_unique = |name: &str| nodes.iter().filter(|node| *node == name).count() == 1;
        if let Some(name) = names.unwrap_or_default().iter().find(|name| !is_unique(name)) {
            let why = format!("expected the unique name of an LSTM node, one of {nodes:?}, got `{name}`");
            return Err(Error::format(&self.source, why));
        }
        let node_index = |name: &&str| nodes.iter().position(|node| node == name);
        let mut name_pairs = names.unwrap_or_default().windows(2);
        if let Some(name_pair) = name_pairs.find(|name_pair| node_index(&name_pair[0]) >= node_index(&name_pair[1])) {
            let got = format!("`{}` followed by `{}`", name_pair[0], name_pair[1]);
            let why = format!("expected each name once, in the order of {nodes:?}, got {got}");
            return Err(Error::format(&self.source, why));
        }
        self.with_file_name(self.assemble(names))
    }

    /// Loads the `LSTM` nodes with these names, or all of them for `None`. [`load`](Self::load) has checked the names.
    fn assemble(&self, names: Option<&[&str]>) -> Result<OnnxLstm> {
        let traversal = traversal::Traversal::run(&self.graph, self.opset, self.dir.as_deref(), names)?;
        let all_used_result = traversal.context.check_all_used(&self.graph);
        let lstm = assemble::assemble(traversal)?;
        if names.is_none() {
            all_used_result?;
        }
        Ok(lstm)
    }

    /// Adds the name of the file to the message of a format error.
    fn with_file_name<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Format { input, reason } => Error::Format { input: format!("{}: {input}", self.source), reason },
            other => other,
        })
    }
}
