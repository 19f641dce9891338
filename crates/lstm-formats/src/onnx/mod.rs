//! ONNX files: [`OnnxModel`] reads a graph that is a chain of layers around `LSTM` nodes, [`OnnxWriter`] writes one.
//!
//! Equations and layouts are those of the ONNX standard, <https://onnx.ai/onnx/operators/onnx__LSTM.html>, for opsets 7
//! to 26. A node that is neither a layer nor one that moves elements or computes constants is an error that names it,
//! unless the caller selects `LSTM` nodes by name.
//!
//! How a graph is read: every node is evaluated, on numbers where they are known, else on labels that say where each
//! element comes from (`data`, `operators`). Sizes that the file does not fix are tried with two values each
//! (`sizes`). Nodes that compute something become stages of a `chain`. At the end, the labels of the outputs say what
//! they are (`layout`, `assemble`).
//!
//! Each module imports only modules to its left:
//! `proto`, `tensor`, `data`, `node`, `operators`, `sizes`, `layout`, `lstm_stage`, `chain`, `lstm_node`, `graph`, `walk`, `assemble`,
//! this module. `export` imports only `proto`, `export_model` both.

mod assemble;
mod chain;
mod data;
mod export;
mod export_model;
mod graph;
mod layout;
mod lstm_node;
mod lstm_stage;
mod node;
mod operators;
mod proto;
mod sizes;
mod tensor;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use ndarray::ArrayD;
use prost::Message;

pub use export::OnnxWriter;
pub use export_model::model_to_bytes;
pub use graph::{
    ModelArguments, OnnxArray, OnnxGraph, OnnxInput, OnnxInputKind, OnnxOutput, OnnxOutputKind, StateRows,
};

use crate::options::OpenOptions;
use graph::list;
use lstm_core::{Error, FloatEnvironment, Result, weights::file::read_regular};

/// The supported operator sets. Versions 23 to 26 only add element types to the operators that this module reads.
const SUPPORTED_OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// A parsed ONNX file.
///
/// A graph input with a default value, that is, with an initializer of the same name, is treated as a constant: it
/// can't be set to another value.
///
/// ```
/// use lstm_core::{Init, LstmConfig, Weights};
/// use lstm_formats::{OpenOptions, onnx::{OnnxModel, OnnxWriter}};
///
/// let weights = Weights::init(LstmConfig::new(3, 5).layers(2).bidirectional(), &Init::default(), 1)?;
/// let bytes = OnnxWriter::new(&weights).to_bytes()?;
/// let model = OnnxModel::from_bytes(&bytes)?;
/// assert_eq!(model.lstm_nodes(), ["lstm_l0", "lstm_l1"]);
/// let graph = model.graph(&OpenOptions::default())?;
/// assert_eq!(**graph.weights().lstms().next().unwrap(), weights);
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone)]
pub struct OnnxModel {
    /// Name of the file for error messages.
    source: String,
    /// Folder of the files that hold external tensor data; `None` if the model was not read from a file.
    dir: Option<PathBuf>,
    graph: proto::Graph,
    /// Size of the file.
    file_bytes: usize,
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
    /// [`Error::Io`] if the file can't be read or is not a regular file; the errors of [`from_bytes`](Self::from_bytes),
    /// with the name of the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read_regular(path)?;
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
    pub(crate) fn parse(bytes: &[u8], source: String, dir: Option<PathBuf>) -> Result<Self> {
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
        Ok(OnnxModel { source, dir, graph, file_bytes: bytes.len(), opset })
    }

    /// Returns the version of the ONNX operator set that the file uses.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Returns the names of the `LSTM` nodes in the order of the file. A node without a name is named by its index among
    /// all nodes. A node inside a branch or a loop body has the name of the outer node before it: `If_0/then/LSTM_3`.
    pub fn lstm_nodes(&self) -> Vec<String> {
        walk::lstm_names(&self.graph)
    }

    /// Returns the names of the inputs that are declared as scalars, or with a single element, and may be
    /// [set](OpenOptions::set).
    pub fn scalar_inputs(&self) -> Vec<&str> {
        let is_constant = |name: &str| self.graph.initializer.iter().any(|tensor| tensor.name == name);
        let inputs = self.graph.input.iter().filter(|input| !is_constant(&input.name));
        let inputs = inputs.filter(|input| {
            let tensor = input.value_type.as_ref().and_then(|value_type| value_type.tensor.as_ref());
            let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
            shape.is_some_and(|shape| shape.dim.iter().all(|dim| dim.value == Some(1)))
        });
        inputs.map(|input| input.name.as_str()).collect()
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

    /// Reads the graph as a chain of layers. Floats of all types are converted to f32.
    ///
    /// Of the options, [`names`](OpenOptions::names) selects `LSTM` nodes, which are loaded alone, each on top of the one
    /// before it; what the graph computes for them becomes an input. [`set`](OpenOptions::set) gives values of scalar
    /// inputs, which may determine the branch of an `If`. [`precision`](OpenOptions::precision) converts the weights.
    ///
    /// # Errors
    /// [`Error::Format`], which names the node, output or tensor, for: a node that the chain needs and that is neither a
    /// layer nor one that moves elements or computes constants; an attribute or activation that this library does not
    /// support; a graph that is not a chain; a tensor of the wrong shape or type; a name that is not that of exactly one
    /// `LSTM` node; a value for an input that is not a scalar. [`Error::UnusedTensors`] for unused inputs.
    pub fn graph(&self, options: &OpenOptions) -> Result<OnnxGraph> {
        let _environment = FloatEnvironment::set_default();
        let result = self.read(&options.names, &options.set).and_then(|mut graph| {
            if let Some(precision) = options.precision {
                graph.weights = graph.weights.quantize(precision)?;
            }
            Ok(graph)
        });
        let result = result.map_err(|error| match options.names.is_empty() {
            true => self.with_advice(error),
            false => error,
        });
        self.with_file_name(result)
    }

    /// Reads the graph, or the `LSTM` nodes with these names.
    fn read(&self, names: &[String], set: &BTreeMap<String, f64>) -> Result<OnnxGraph> {
        let nodes = self.lstm_nodes();
        if nodes.is_empty() {
            return Err(self.without_lstm());
        }
        let error = |why: String| Error::format("the graph", why);
        let is_unique = |name: &str| nodes.iter().filter(|node| *node == name).count() == 1;
        if let Some(name) = names.iter().find(|name| !is_unique(name)) {
            return Err(error(format!(
                "expected the unique name of an LSTM node, one of {}, got `{name}`",
                list(&nodes)
            )));
        }
        let node_index = |name: &String| nodes.iter().position(|node| node == name);
        if let Some(pair) = names.windows(2).find(|pair| node_index(&pair[0]) >= node_index(&pair[1])) {
            let got = format!("`{}` followed by `{}`", pair[0], pair[1]);
            return Err(error(format!("expected each name once, in the order of {}, got {got}", list(&nodes))));
        }
        if let Some(name) = set.keys().find(|name| self.graph.input.iter().all(|input| input.name != **name)) {
            let inputs: Vec<&str> = self.graph.input.iter().map(|input| input.name.as_str()).collect();
            return Err(error(format!(
                "expected the name of an input, one of {}, to set, got `{name}`",
                list(&inputs)
            )));
        }
        let (graph, opset, file_bytes) = (&self.graph, self.opset, self.file_bytes);
        let request = walk::Request { graph, opset, dir: self.dir.as_deref(), file_bytes, names, scalar_inputs: set };
        let result = assemble::assemble(walk::Walker::run(&request)?, &request)?;
        if names.is_empty() {
            self.check_all_used(set)?;
        }
        Ok(result)
    }

    /// The error for a graph without `LSTM` nodes, which says what is there instead.
    fn without_lstm(&self) -> Error {
        let mut operators: BTreeMap<String, usize> = BTreeMap::new();
        walk::visit_nodes(&self.graph, "", &mut |_, node| {
            let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
            *operators.entry(format!("{domain}{}", node.op_type)).or_default() += 1;
        });
        let count = |name: &str| {
            operators.iter().filter(|(op, _)| op.rsplit('.').next() == Some(name)).map(|(_, n)| n).sum::<usize>()
        };
        let found =
            |name: &str, why: &str| (count(name) > 0).then(|| format!("found {} {name} nodes: {why}", count(name)));
        let quantized = "the results of this operator depend on the whole batch, so that they can't be reproduced; open \
                         the model before quantization";
        let decomposed_lstm_hint = || {
            let has = |name: &str| count(name) > 0;
            ((has("Gemm") || has("MatMul")) && has("Sigmoid") && has("Tanh")).then(|| {
                "found matrix products with Sigmoid and Tanh, maybe an LSTM that was taken apart; export the model with \
                 torch.onnx.export and nn.LSTM, which writes LSTM nodes, or open the checkpoint that it was made from"
                    .to_owned()
            })
        };
        let why = found("DynamicQuantizeLSTM", quantized)
            .or_else(|| found("GRU", "this is a GRU, not an LSTM, which this library does not run"))
            .or_else(|| found("RNN", "this is a plain RNN, not an LSTM, which this library does not run"))
            .or_else(decomposed_lstm_hint)
            .unwrap_or_else(|| {
                let operators: Vec<&String> = operators.keys().collect();
                match operators.is_empty() {
                    true => "found no nodes".into(),
                    false => format!("found the operators {}", list(&operators)),
                }
            });
        Error::format("the graph", format!("expected an LSTM node, {why}"))
    }

    /// Adds to an error which `LSTM` nodes are there, and which of them can be opened by name.
    fn with_advice(&self, error: Error) -> Error {
        let Error::Format { input, reason } = error else { return error };
        let nodes = self.lstm_nodes();
        if nodes.is_empty() {
            return Error::Format { input, reason };
        }
        let opens = |name: &&String| self.read(std::slice::from_ref(*name), &BTreeMap::new()).is_ok();
        let advice = match nodes.iter().take(4).find(opens) {
            Some(name) => format!("; an LSTM can be opened alone by its name, such as `{name}`"),
            None => String::new(),
        };
        Error::Format { input, reason: format!("{reason} (the file has {}{advice})", assemble::summary(&nodes)) }
    }

    /// Returns an error if an input of the graph is not used by any node. An initializer that is not used has no effect.
    fn check_all_used(&self, set: &BTreeMap<String, f64>) -> Result<()> {
        let mut used: BTreeSet<&str> = self.graph.output.iter().map(|output| output.name.as_str()).collect();
        used.extend(set.keys().map(String::as_str));
        walk::visit_nodes(&self.graph, "", &mut |_, node| {
            used.extend(node.input.iter().map(String::as_str));
            // The outputs of a branch may be values of the outer graph.
            let graphs = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref());
            used.extend(graphs.flat_map(|graph| graph.output.iter().map(|output| output.name.as_str())));
        });
        used.extend(self.graph.initializer.iter().map(|tensor| tensor.name.as_str()));
        let names = self.graph.input.iter().map(|input| &input.name);
        let names: Vec<String> = names.filter(|name| !used.contains(name.as_str())).cloned().collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(Error::UnusedTensors { names, advice: None }),
        }
    }

    /// Adds the name of the file to the message of a format error.
    fn with_file_name<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Format { input, reason } if input.is_empty() => Error::format(&self.source, reason),
            Error::Format { input, reason } => Error::format(format!("{}: {input}", self.source), reason),
            other => other,
        })
    }
}
