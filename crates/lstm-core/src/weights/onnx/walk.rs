//! One walk over the graph in its order: LSTM nodes become layers, all else must be understood or is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ndarray::ArrayD;
use safetensors::Dtype;

use super::{
    layer::{self, Layer},
    node::{Op, label},
    ops,
    port::{Port, PortAxis, PortKind},
    proto::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, Graph, INT32, Tensor, ValueInfo},
    tensor,
    value::{Data, Dim, MAX_RANK, Source, Value},
};
use crate::error::{Error, Result};

/// Nodes that may share a tensor. More would make a small file a model without bound.
const MAX_SHARED: usize = 16;

/// The state of the walk.
pub(super) struct Walk<'a> {
    pub(super) opset: i64,
    pub(super) layers: Vec<Layer<'a>>,
    /// Element types of the constants that were read.
    pub(super) dtypes: BTreeSet<Dtype>,
    /// Nodes that are left out, as the caller chose.
    pub(super) ignored: Vec<String>,
    dir: Option<&'a Path>,
    /// The nodes to load; `None`: all, and nothing may be left.
    chosen: Option<&'a [&'a str]>,
    values: BTreeMap<&'a str, Value<'a>>,
    used: BTreeSet<&'a str>,
    reads: BTreeMap<*const Tensor, usize>,
}

impl<'a> Walk<'a> {
    /// Walks; returns the outputs too.
    pub(super) fn run(
        graph: &'a Graph,
        opset: i64,
        dir: Option<&'a Path>,
        chosen: Option<&'a [&'a str]>,
    ) -> Result<(Self, Vec<Port>)> {
        let mut walk = Walk {
            opset,
            layers: Vec::new(),
            dtypes: BTreeSet::new(),
            ignored: Vec::new(),
            dir,
            chosen,
            values: BTreeMap::new(),
            used: BTreeSet::new(),
            reads: BTreeMap::new(),
        };
        for tensor in &graph.initializer {
            walk.define(&tensor.name, ops::constant(tensor, dir)?)?;
        }
        let constants: BTreeSet<&str> = walk.values.keys().copied().collect();
        for input in &graph.input {
            // Old files list initializers among the inputs.
            if !constants.contains(input.name.as_str()) {
                walk.define(&input.name, self::input(input)?)?;
            }
        }
        for (index, node) in graph.node.iter().enumerate() {
            let mut op = Op::new(index, node)?;
            walk.node(&mut op, index)?;
        }
        let mut outputs = Vec::new();
        for output in &graph.output {
            let port = walk.output(output);
            match chosen {
                None => outputs.push(port?),
                Some(_) => outputs.extend(port),
            }
        }
        Ok((walk, outputs))
    }

    fn define(&mut self, name: &'a str, value: Value<'a>) -> Result<()> {
        match self.values.insert(name, value) {
            Some(_) => Err(Error::format(format!("value `{name}`"), "is computed twice")),
            None => Ok(()),
        }
    }

    fn node(&mut self, op: &mut Op<'a>, index: usize) -> Result<()> {
        let node = op.node;
        let ours = ["", "ai.onnx"].contains(&node.domain.as_str()) && node.overload.is_empty();
        let is_lstm = ours && node.op_type == "LSTM";
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            self.value(op, name)?;
        }
        let outputs = || node.output.iter().map(String::as_str);
        if is_lstm && self.chosen.is_none_or(|chosen| chosen.contains(&name(node, index).as_str())) {
            let (layer, values) = layer::read(op, self)?;
            self.layers.push(layer);
            for (name, value) in outputs().zip(values).filter(|(name, _)| !name.is_empty()) {
                self.define(name, value)?;
            }
            return Ok(());
        }
        let value = if ours && !is_lstm {
            let inputs: Vec<Option<&Value>> = node.input.iter().map(|name| self.values.get(name.as_str())).collect();
            let value = ops::eval(op, self.opset, &inputs, self.dir);
            value.and_then(|value| op.finish().map(|()| value))
        } else {
            Err(op.fail("this operator is no part of an LSTM, and would be ignored"))
        };
        match (value, outputs().next().filter(|name| !name.is_empty())) {
            (Ok(value), Some(name)) => self.define(name, value),
            (Ok(_), None) => Err(op.fail("it has no output")),
            // Of a part of the model that the caller does not want.
            (Err(_), _) if self.chosen.is_some() => {
                self.ignored.push(label(index, node));
                outputs().filter(|name| !name.is_empty()).try_for_each(|name| self.define(name, Value::Rankless(name)))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// What is known of an operand.
    pub(super) fn value(&mut self, op: &Op<'a>, name: &'a str) -> Result<&Value<'a>> {
        self.used.insert(name);
        let none = || op.fail(format!("its input `{name}` is no input, no constant and no output of a node before it"));
        self.values.get(name).ok_or_else(none)
    }

    /// The tensor behind a constant.
    fn tensor(&mut self, op: &Op<'a>, name: &'a str) -> Result<&'a Tensor> {
        let (Value::Constant(tensor) | Value::Zeros(Some(tensor))) = *self.value(op, name)? else {
            return Err(op.fail(format!("`{name}` is no constant")));
        };
        let reads = self.reads.entry(tensor).or_default();
        *reads += 1;
        if *reads > MAX_SHARED {
            return Err(op.fail(format!("tensor `{name}` is shared by more than {MAX_SHARED} nodes")));
        }
        Ok(tensor)
    }

    /// A constant's elements.
    pub(super) fn floats(&mut self, op: &Op<'a>, name: &'a str) -> Result<ArrayD<f32>> {
        let tensor = self.tensor(op, name)?;
        self.dtypes.extend(tensor::float_type(tensor));
        tensor::floats(tensor, self.dir).map_err(|error| match error {
            Error::Io { .. } => error,
            other => op.fail(other),
        })
    }

    /// A constant's elements.
    pub(super) fn ints(&mut self, op: &Op<'a>, name: &'a str) -> Result<Vec<i64>> {
        let tensor = self.tensor(op, name)?;
        tensor::ints(tensor, self.dir)
    }

    /// The declared size of an input's first axis.
    pub(super) fn first_size(&self, name: &str) -> Option<i64> {
        match self.values.get(name) {
            Some(Value::Data(data)) => {
                data.atoms.first().and_then(|d| if let Dim::Known(n) = d { Some(*n) } else { None })
            }
            _ => None,
        }
    }

    /// An output of the graph, which must be one of the chain's.
    fn output(&mut self, output: &'a ValueInfo) -> Result<Port> {
        let name = output.name.as_str();
        let fail = |why: String| Error::format(format!("output `{name}`"), why);
        self.used.insert(name);
        let Some(value) = self.values.get(name) else { return Err(fail("no node computes it".into())) };
        let sequence = [PortAxis::Steps, PortAxis::Directions, PortAxis::Batch, PortAxis::Features];
        let state = [PortAxis::Layers, PortAxis::Batch, PortAxis::Features];
        let last = self.layers.len().checked_sub(1);
        let (data, kind, labels, first, layers) = match value {
            Value::Data(data) if data.dropout.is_none() => match data.source {
                Source::Sequence(k) if Some(k) == last => (data, PortKind::Sequence, &sequence[..], k, 1),
                Source::H(from, to) => (data, PortKind::H, &state[..], from, to - from),
                Source::C(from, to) => (data, PortKind::C, &state[..], from, to - from),
                _ => return Err(fail(format!("it is {}, not an output of the last LSTM", value.describe()))),
            },
            other => return Err(fail(format!("it is {}, not a plain output of an LSTM", other.describe()))),
        };
        let axes = data.axes.iter().map(|axis| axis.iter().map(|&atom| labels[atom]).collect()).collect();
        Ok(Port { name: name.to_owned(), kind, first_layer: first, layers, axes })
    }

    /// An error for inputs and initializers that nothing reads.
    pub(super) fn all_used(&self, graph: &'a Graph) -> Result<()> {
        let names = graph.initializer.iter().map(|t| &t.name).chain(graph.input.iter().map(|input| &input.name));
        let unused: Vec<String> = names.filter(|name| !self.used.contains(name.as_str())).cloned().collect();
        if unused.is_empty() { Ok(()) } else { Err(Error::UnusedTensors { names: unused }) }
    }
}

/// What a caller calls a node: its name, or its number where it has none.
pub(super) fn name(node: &super::proto::Node, index: usize) -> String {
    if node.name.is_empty() { index.to_string() } else { node.name.clone() }
}

/// An input of the graph.
fn input(input: &ValueInfo) -> Result<Value<'_>> {
    let name = input.name.as_str();
    let fail = |why: String| Error::format(format!("input `{name}`"), why);
    let Some(tensor) = input.kind.as_ref().and_then(|kind| kind.tensor.as_ref()) else {
        return Err(fail("expected a tensor".into()));
    };
    let kind = tensor.elem_type.unwrap_or_default();
    if ![FLOAT, FLOAT16, DOUBLE, BFLOAT16, INT32].contains(&kind) {
        return Err(fail(format!("element type {kind}: expected floats, or INT32 for lengths")));
    }
    let Some(shape) = &tensor.shape else { return Ok(Value::Rankless(name)) };
    if shape.dim.len() > MAX_RANK {
        return Err(fail(format!("{} axes", shape.dim.len())));
    }
    let size = |(axis, dim): (usize, &super::proto::Dimension)| match dim.value {
        Some(size) if size < 0 => Err(fail(format!("axis {axis} has size {size}"))),
        Some(size) => Ok(Dim::Known(size)),
        None => Ok(Dim::Open(name, axis)),
    };
    let atoms = shape.dim.iter().enumerate().map(size).collect::<Result<_>>()?;
    Ok(Value::Data(Data::new(Source::Outside(name), atoms)))
}
