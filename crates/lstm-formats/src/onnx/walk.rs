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
    port::{self, Port},
    proto::{Graph, Tensor, ValueInfo, type_name},
    tensor,
    value::{Data, Dim, MAX_RANK, Source, Value},
    zeros::Zeros,
};
use lstm_core::{Error, Result};

/// Nodes that may share a tensor. More would make a small file a model without bound.
const MAX_SHARED: usize = 16;

/// The state of the walk.
pub(super) struct Walk<'a> {
    pub(super) opset: i64,
    pub(super) layers: Vec<Layer<'a>>,
    /// The number of sequences that the file fixes, by the input's size or by constant states.
    pub(super) batch: Option<i64>,
    /// Element types of the constants that were read.
    pub(super) dtypes: BTreeSet<Dtype>,
    /// Nodes that are left out, as the caller chose.
    pub(super) ignored: Vec<String>,
    /// LSTMs that are the two directions of one layer: of each, the direction it is.
    pairs: BTreeMap<usize, usize>,
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
            batch: None,
            dtypes: BTreeSet::new(),
            ignored: Vec::new(),
            pairs: pairs(graph, chosen),
            dir,
            chosen,
            values: BTreeMap::new(),
            used: BTreeSet::new(),
            reads: BTreeMap::new(),
        };
        for tensor in &graph.initializer {
            walk.define(&tensor.name, ops::constant(tensor, dir)?)?;
        }
        let constants: BTreeMap<&str, &Tensor> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        for input in &graph.input {
            // Old files list initializers among the inputs; in newer ones these are defaults.
            match constants.get(input.name.as_str()) {
                Some(tensor) => default(input, tensor)?,
                None => walk.define(&input.name, self::input(input)?)?,
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
            let values = layer::read(op, self, self.pairs.get(&index).copied())?;
            for (name, value) in outputs().zip(values).filter(|(name, _)| !name.is_empty()) {
                self.define(name, value)?;
            }
            return Ok(());
        }
        let values = if ours && !is_lstm {
            let inputs: Vec<Option<&Value>> = node.input.iter().map(|name| self.values.get(name.as_str())).collect();
            let values = ops::eval(op, self.opset, &inputs, self.dir);
            let values = values.and_then(|values| op.finish().map(|()| values));
            let named = |k: usize| node.output.get(k).is_some_and(|name| !name.is_empty());
            let fits = |values: &Vec<Value>| named(0) && !(values.len()..node.output.len()).any(named);
            values.and_then(|values| match fits(&values) {
                true => Ok(values),
                false => Err(op.fail(format!("expected {} outputs, got {:?}", values.len(), node.output))),
            })
        } else {
            Err(op.fail("this operator is no part of an LSTM, and would be ignored"))
        };
        match values {
            Ok(values) => {
                let named = outputs().zip(values).filter(|(name, _)| !name.is_empty());
                named.into_iter().try_for_each(|(name, value)| self.define(name, value))
            }
            // Of a part of the model that the caller does not want.
            Err(_) if self.chosen.is_some() => {
                self.ignored.push(label(index, node));
                outputs()
                    .filter(|name| !name.is_empty())
                    .try_for_each(|name| self.define(name, Value::Rankless(name, None)))
            }
            Err(error) => Err(error),
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
        let tensor = match self.value(op, name)? {
            Value::Constant(tensor) | Value::Zeros(Zeros { tensor: Some(tensor), .. }) => *tensor,
            _ => return Err(op.fail(format!("`{name}` is no constant"))),
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

    /// Of each input that is declared with a shape, the sizes that it fixes.
    pub(super) fn declared(&self) -> BTreeMap<String, Vec<Option<usize>>> {
        let size = |dim: &Dim<'_>| if let Dim::Known(n) = dim { usize::try_from(*n).ok() } else { None };
        let inputs = self.values.iter().filter_map(|(&name, value)| match value {
            Value::Data(data) if data.source == Source::Outside(name) && data.part.is_none() => {
                Some((name.to_owned(), data.atoms.iter().map(size).collect()))
            }
            _ => None,
        });
        inputs.collect()
    }

    /// An output of the graph, which must be one of the chain's.
    fn output(&mut self, output: &'a ValueInfo) -> Result<Port> {
        let name = output.name.as_str();
        let fail = |why: String| Error::format(format!("output `{name}`"), why);
        self.used.insert(name);
        let Some(value) = self.values.get(name) else { return Err(fail("no node computes it".into())) };
        let last = self.layers.len().checked_sub(1);
        let Value::Data(data) = value else {
            return Err(fail(format!("it is {}, not a plain output of an LSTM", value.describe())));
        };
        let rows = match data.source {
            Source::Sequence(of) if Some(of.layer) == last => match data.direction {
                Some(direction) => direction..direction + 1,
                None => 0..of.reversals.len(),
            },
            Source::H(from, to) | Source::C(from, to) => from..to,
            _ => return Err(fail(format!("it is {}, not an output of the last LSTM", value.describe()))),
        };
        if data.dropout.is_some() {
            return Err(fail(format!("it is {} after a dropout", value.describe())));
        }
        let (kind, labels) = port::labels(data.source);
        let axes = data.axes.iter().map(|axis| axis.iter().map(|&atom| labels[atom]).collect()).collect();
        Ok(Port { name: name.to_owned(), kind, rows, step: data.step, axes })
    }

    /// An error for inputs and initializers that nothing reads.
    pub(super) fn all_used(&self, graph: &'a Graph) -> Result<()> {
        let names = graph.initializer.iter().map(|t| &t.name).chain(graph.input.iter().map(|input| &input.name));
        let unused: Vec<String> = names.filter(|name| !self.used.contains(name.as_str())).cloned().collect();
        if unused.is_empty() { Ok(()) } else { Err(Error::UnusedTensors { names: unused }) }
    }
}

/// Pairs of LSTMs over one input, of which one walks forward and the other in reverse: a bidirectional layer in two halves.
fn pairs(graph: &Graph, chosen: Option<&[&str]>) -> BTreeMap<usize, usize> {
    let mut over: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "LSTM") {
        let direction = node.attribute.iter().find(|a| a.name == "direction").and_then(|a| a.s.as_deref());
        let direction = ["forward", "reverse"].iter().position(|d| d.as_bytes() == direction.unwrap_or(b"forward"));
        let wanted = chosen.is_none_or(|chosen| chosen.contains(&name(node, index).as_str()));
        if let (Some(direction), Some(x), true) = (direction, node.input.first(), wanted) {
            over.entry(x).or_default().push((index, direction));
        }
    }
    let pairs = over.into_values().filter(|nodes| matches!(nodes[..], [(_, a), (_, b)] if a != b));
    pairs.flatten().collect()
}

/// What a caller calls a node: its name, or its number where it has none.
pub(super) fn name(node: &super::proto::Node, index: usize) -> String {
    if node.name.is_empty() { index.to_string() } else { node.name.clone() }
}

/// Checks that an input is declared as its default is.
fn default(input: &ValueInfo, tensor: &Tensor) -> Result<()> {
    let Some(declared) = input.kind.as_ref().and_then(|kind| kind.tensor.as_ref()) else { return Ok(()) };
    let fail = |want: String, got: String| {
        let why = format!("expected what its initializer is, {want}, got {got}");
        Err(Error::format(format!("input `{}`", input.name), why))
    };
    let kind = tensor.data_type.unwrap_or_default();
    if let Some(got) = declared.elem_type.filter(|&got| got != kind) {
        return fail(type_name(kind), type_name(got));
    }
    let Some(shape) = &declared.shape else { return Ok(()) };
    let sizes: Vec<_> = shape.dim.iter().map(|dim| dim.value).collect();
    let same = |(got, want): (&Option<i64>, &i64)| got.is_none_or(|got| got == *want);
    if sizes.len() == tensor.dims.len() && sizes.iter().zip(&tensor.dims).all(same) {
        return Ok(());
    }
    let sizes: Vec<_> = sizes.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
    fail(format!("{:?}", tensor.dims), format!("[{}]", sizes.join(", ")))
}

/// An input of the graph.
fn input(input: &ValueInfo) -> Result<Value<'_>> {
    let name = input.name.as_str();
    let fail = |why: String| Error::format(format!("input `{name}`"), why);
    // Of another type, or no tensor, it is refused where a node that matters takes it.
    let tensor = input.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
    let kind = Some(tensor.and_then(|tensor| tensor.elem_type).unwrap_or_default());
    let Some(shape) = tensor.and_then(|tensor| tensor.shape.as_ref()) else { return Ok(Value::Rankless(name, kind)) };
    if shape.dim.len() > MAX_RANK {
        return Err(fail(format!("{} axes", shape.dim.len())));
    }
    let size = |(axis, dim): (usize, &super::proto::Dimension)| match dim.value {
        Some(size) if size < 0 => Err(fail(format!("axis {axis} has size {size}"))),
        Some(size) => Ok(Dim::Known(size)),
        None => Ok(Dim::Open(name, axis)),
    };
    let atoms = shape.dim.iter().enumerate().map(size).collect::<Result<_>>()?;
    Ok(Value::Data(Data { kind, ..Data::new(Source::Outside(name), atoms) }))
}
