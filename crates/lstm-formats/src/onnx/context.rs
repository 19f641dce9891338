//! What is known about a graph while its nodes are read: the values computed so far, and which of them are used.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ndarray::ArrayD;
use safetensors::Dtype;

use super::{
    node::NodeReader,
    proto::{Graph, Tensor},
    tensor,
    value::{Source, Value, Zeros},
};
use lstm_core::{Error, Result};

/// Maximum number of reads of one tensor. It bounds the size of the model that a small file can produce.
const MAX_TENSOR_READS: usize = 16;

/// What is known about a graph while its nodes are read one after another. The functions that read nodes share it.
pub(crate) struct GraphContext<'a> {
    /// Version of the ONNX operator set that the file uses.
    pub(crate) opset: i64,
    /// Folder of the files that hold external tensor data; `None` if the model was not read from a file.
    pub(crate) dir: Option<&'a Path>,
    /// The batch size, if the declared shape of the input or a constant initial state fixes it.
    pub(crate) batch_size: Option<i64>,
    /// Element types of the constants that were read.
    pub(crate) dtypes: BTreeSet<Dtype>,
    /// The values computed so far, by name.
    values: BTreeMap<&'a str, Value<'a>>,
    /// Names of the values that nodes or graph outputs use.
    used_names: BTreeSet<&'a str>,
    /// Number of reads of each tensor, by address.
    read_counts: BTreeMap<*const Tensor, usize>,
}

impl<'a> GraphContext<'a> {
    /// Creates a context without values.
    pub(crate) fn new(opset: i64, dir: Option<&'a Path>) -> Self {
        GraphContext {
            opset,
            dir,
            batch_size: None,
            dtypes: BTreeSet::new(),
            values: BTreeMap::new(),
            used_names: BTreeSet::new(),
            read_counts: BTreeMap::new(),
        }
    }

    /// Adds a value under a new name.
    pub(crate) fn define(&mut self, name: &'a str, value: Value<'a>) -> Result<()> {
        match self.values.insert(name, value) {
            Some(_) => Err(Error::format(format!("value `{name}`"), "is defined more than once")),
            None => Ok(()),
        }
    }

    /// Returns the value with this name, if it is defined.
    pub(crate) fn value(&self, name: &str) -> Option<&Value<'a>> {
        self.values.get(name)
    }

    /// Marks the value with this name as used.
    pub(crate) fn mark_used(&mut self, name: &'a str) {
        self.used_names.insert(name);
    }

    /// Returns the value of the operand of `node` with this name, and marks it as used.
    pub(crate) fn operand(&mut self, node: &NodeReader<'a>, name: &'a str) -> Result<&Value<'a>> {
        self.mark_used(name);
        let undefined_error =
            || node.error(format!("`{name}` is not an input, a constant or an output of an earlier node"));
        self.values.get(name).ok_or_else(undefined_error)
    }

    /// The tensor of a constant operand. Fails if the tensor is read more than [`MAX_TENSOR_READS`] times.
    fn constant_tensor(&mut self, node: &NodeReader<'a>, name: &'a str) -> Result<&'a Tensor> {
        let tensor = match self.operand(node, name)? {
            Value::Constant(tensor) | Value::Zeros(Zeros { tensor: Some(tensor), .. }) => *tensor,
            _ => return Err(node.error(format!("`{name}` is not a constant"))),
        };
        let read_count = self.read_counts.entry(tensor).or_default();
        *read_count += 1;
        if *read_count > MAX_TENSOR_READS {
            return Err(node.error(format!("tensor `{name}` is shared by more than {MAX_TENSOR_READS} nodes")));
        }
        Ok(tensor)
    }

    /// The elements of a constant operand of a float type.
    pub(crate) fn constant_floats(&mut self, node: &NodeReader<'a>, name: &'a str) -> Result<ArrayD<f32>> {
        let tensor = self.constant_tensor(node, name)?;
        self.dtypes.extend(tensor::float_type(tensor));
        tensor::floats(tensor, self.dir).map_err(|error| match error {
            Error::Io { .. } => error,
            other => node.error(other),
        })
    }

    /// The elements of a constant operand of an integer type.
    pub(crate) fn constant_ints(&mut self, node: &NodeReader<'a>, name: &'a str) -> Result<Vec<i64>> {
        let tensor = self.constant_tensor(node, name)?;
        tensor::ints(tensor, self.dir)
    }

    /// The declared size of the first axis of a graph input; `None` if it is not fixed.
    pub(crate) fn first_axis_size(&self, name: &str) -> Option<i64> {
        match self.values.get(name) {
            Some(Value::View(view)) => view.source_dims.first().and_then(|dim| dim.as_known()),
            _ => None,
        }
    }

    /// The declared shape of each graph input that has one, with `None` for sizes that are not fixed.
    pub(crate) fn declared_shapes(&self) -> BTreeMap<String, Vec<Option<usize>>> {
        let inputs = self.values.iter().filter_map(|(&name, value)| match value {
            Value::View(view) if view.source == Source::Input(name) && view.row_range.is_none() => {
                let sizes = view.source_dims.iter().map(|dim| usize::try_from(dim.as_known()?).ok());
                Some((name.to_owned(), sizes.collect()))
            }
            _ => None,
        });
        inputs.collect()
    }

    /// Returns an error if an input or initializer of the graph is not used.
    pub(crate) fn check_all_used(&self, graph: &'a Graph) -> Result<()> {
        let names = graph.initializer.iter().map(|t| &t.name).chain(graph.input.iter().map(|input| &input.name));
        let unused_names: Vec<String> =
            names.filter(|name| !self.used_names.contains(name.as_str())).cloned().collect();
        match unused_names.is_empty() {
            true => Ok(()),
            false => Err(Error::UnusedTensors { names: unused_names, advice: None }),
        }
    }
}
