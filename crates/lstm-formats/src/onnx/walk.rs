//! Evaluates the nodes of a graph in order: `LSTM` nodes and layers around them become stages of a chain, other nodes move
//! elements or compute constants.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};

use ndarray::{Array2, Axis, Ix2, IxDyn};

use super::{
    chain::{Chain, Input, Labels, Source, StageKind},
    data::{Budget, Data, Elements, Label, Shared, is_float_type, is_int_type},
    lstm_node::{self, Constants, LengthsOperand, Operands},
    node::{NodeReader, node_label, node_name},
    operators::{self, axis_index, broadcast_shape},
    proto::{FLOAT, Graph, INT32, INT64, Node, Tensor, ValueInfo, type_name},
    sizes::{ShapeConstraint, Size, Sizes, TRIALS},
};
use lstm_core::{Activation, Error, Result};

/// A tensor in each trial. One that does not depend on the sizes that the file leaves open is there once.
#[derive(Clone, Debug)]
pub(crate) struct Trials(Vec<Data>);

impl Trials {
    fn at(&self, trial: usize) -> &Data {
        &self.0[trial.min(self.0.len() - 1)]
    }

    /// Whether the tensor does not depend on the trial.
    fn is_fixed(&self) -> bool {
        self.0.len() == 1
    }

    /// Known floats that do not depend on the trial.
    fn as_constant(&self) -> Option<&Shared<f32>> {
        if self.is_fixed() { self.0[0].as_floats() } else { None }
    }

    pub(crate) fn to_labels(&self) -> Option<Labels> {
        Some([self.at(0).to_labels()?, self.at(1).to_labels()?])
    }

    fn has_labels(&self) -> bool {
        !self.at(0).is_known()
    }

    fn from_labels(labels: Labels, elem_type: i32) -> Self {
        let data = |array| Data { elem_type, elements: Elements::Labels(array) };
        Trials(labels.map(data).to_vec())
    }

    fn size(&self, axis: usize) -> Size {
        std::array::from_fn(|k| self.at(k).shape()[axis])
    }
}

/// What is known about a value of the graph.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    /// An initializer, which is decoded when it is used.
    Initializer(&'a Tensor),
    Known(Trials),
    /// A graph input whose number of axes is not declared.
    Unranked(&'a ValueInfo),
    /// Not computed, for this reason.
    Unknown(Rc<str>),
}

/// What the evaluation of a graph needs.
pub(crate) struct Request<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) opset: i64,
    /// Folder of the files that hold external tensor data.
    pub(crate) dir: Option<&'a Path>,
    pub(crate) file_bytes: usize,
    /// Names of the `LSTM` nodes to load, alone; empty for the whole graph.
    pub(crate) names: &'a [String],
    /// Values of scalar inputs, by name.
    pub(crate) scalar_inputs: &'a BTreeMap<String, f64>,
}

/// The state of an evaluation.
pub(crate) struct Walker<'a> {
    request: &'a Request<'a>,
    pub(crate) chain: Chain,
    values: BTreeMap<&'a str, Value<'a>>,
    budget: Budget,
    /// Labels of the nodes that were not evaluated.
    pub(crate) skipped: Vec<String>,
    /// Element types of the constants that were decoded.
    pub(crate) dtypes: BTreeSet<String>,
    /// Names of the outputs of the last `LSTM` node that was evaluated, in order.
    pub(crate) lstm_outputs: Vec<&'a str>,
}

/// The names of the `LSTM` nodes of a graph, with those in branches and loop bodies, in the order of the file.
pub(crate) fn lstm_names(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    visit_nodes(graph, "", &mut |path, node| {
        if is_standard(node) && node.op_type == "LSTM" {
            names.push(path.to_owned());
        }
    });
    names
}

/// Calls `f` with the path and the node of each node of a graph, with those in branches and loop bodies.
pub(crate) fn visit_nodes<'a>(graph: &'a Graph, prefix: &str, f: &mut impl FnMut(&str, &'a Node)) {
    for (index, node) in graph.node.iter().enumerate() {
        let path = format!("{prefix}{}", node_name(index, node));
        f(&path, node);
        for attribute in &node.attribute {
            if let Some(graph) = &attribute.g {
                visit_nodes(graph, &branch_prefix(&path, &attribute.name), f);
            }
        }
    }
}

/// The prefix of the names of nodes inside a branch: `If_0/then/`.
fn branch_prefix(path: &str, attribute: &str) -> String {
    format!("{path}/{}/", attribute.strip_suffix("_branch").unwrap_or(attribute))
}

/// Whether the node is of an operator of the ONNX standard.
fn is_standard(node: &Node) -> bool {
    ["", "ai.onnx"].contains(&node.domain.as_str()) && node.overload.is_empty()
}

/// The text of the error for an operator that can't be evaluated.
const UNSUPPORTED: &str = "this operator is not supported, and ignoring it could change the results";

impl<'a> Walker<'a> {
    /// Evaluates a graph, again and again until all sizes that can be found out are known.
    pub(crate) fn run(request: &'a Request<'a>) -> Result<Self> {
        let mut sizes = Sizes::default();
        // Each evaluation finds out something new about one of the sizes.
        for _ in 0..64 {
            sizes.restart();
            let mut chain = Chain::default();
            chain.sizes = std::mem::take(&mut sizes);
            let mut walker = Walker {
                request,
                chain,
                values: BTreeMap::new(),
                budget: Budget::new(request.file_bytes),
                skipped: Vec::new(),
                dtypes: BTreeSet::new(),
                lstm_outputs: Vec::new(),
            };
            let result = walker.start();
            match walker.chain.new_constraint.take() {
                Some(constraint) => {
                    sizes = std::mem::take(&mut walker.chain.sizes);
                    sizes.add_constraint(constraint);
                }
                None => return result.map(|()| walker),
            }
        }
        Err(Error::format("the graph", "the sizes of its inputs contradict each other"))
    }

    fn start(&mut self) -> Result<()> {
        let graph = self.request.graph;
        let constants: BTreeMap<&str, &Tensor> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        self.define_initializers(graph)?;
        for input in &graph.input {
            // Initializers among the inputs: required in IR versions below 4, default values in later ones.
            match constants.get(input.name.as_str()) {
                Some(tensor) => check_default_value(input, tensor)?,
                None => {
                    let value = self.input_value(input)?;
                    self.define(&input.name, value)?;
                }
            }
        }
        self.visit(graph, "")
    }

    fn define_initializers(&mut self, graph: &'a Graph) -> Result<()> {
        graph.initializer.iter().try_for_each(|t| self.define(&t.name, Value::Initializer(t)))
    }

    /// Adds a value under a new name.
    fn define(&mut self, name: &'a str, value: Value<'a>) -> Result<()> {
        match self.values.insert(name, value) {
            Some(_) => Err(Error::format(format!("value `{name}`"), "is defined more than once")),
            None => Ok(()),
        }
    }

    /// The value of a graph output; an error if it is not known.
    pub(crate) fn output(&mut self, name: &str) -> Result<Labels> {
        let error = |why: &str| Error::format(format!("output `{name}`"), why);
        match self.values.get(name) {
            None => Err(error("no node computes it")),
            Some(Value::Unknown(why)) => Err(error(why)),
            Some(Value::Known(trials)) if trials.has_labels() => {
                trials.to_labels().ok_or_else(|| error("expected values of one type"))
            }
            Some(_) => Err(error("expected an output of an LSTM, got a constant")),
        }
    }

    /// The value of a graph input.
    fn input_value(&mut self, input: &'a ValueInfo) -> Result<Value<'a>> {
        let name = input.name.as_str();
        let error = |why: String| Error::format(format!("input `{name}`"), why);
        let tensor = input.value_type.as_ref().and_then(|value_type| value_type.tensor.as_ref());
        let Some(tensor) = tensor else {
            return Ok(Value::Unknown(format!("the input `{name}` is not a tensor").into()));
        };
        let elem_type = tensor.elem_type.unwrap_or_default();
        let mut shape = Vec::new();
        match &tensor.shape {
            Some(dims) => {
                if dims.dim.len() > 16 {
                    return Err(error(format!("expected at most 16 axes, got {}", dims.dim.len())));
                }
                for (axis, dim) in dims.dim.iter().enumerate() {
                    shape.push(match (dim.value, dim.param.as_deref().filter(|param| !param.is_empty())) {
                        (Some(size), _) => match usize::try_from(size) {
                            Ok(size) => [size; TRIALS],
                            Err(_) => return Err(error(format!("axis {axis} has the negative size {size}"))),
                        },
                        (None, Some(param)) => self.unfixed_size(format!("?{param}"))?,
                        (None, None) => self.unfixed_size(format!("{name}.{axis}"))?,
                    });
                }
            }
            // A scalar may lack a shape.
            None if self.request.scalar_inputs.contains_key(name) => {}
            None => match self.chain.sizes.rank(name) {
                Some(rank) => {
                    for axis in 0..rank {
                        shape.push(self.unfixed_size(format!("{name}.{axis}"))?);
                    }
                }
                None => return Ok(Value::Unranked(input)),
            },
        }
        if let Some(&value) = self.request.scalar_inputs.get(name) {
            let shape: Vec<usize> = shape.iter().map(|size| if size[0] == size[1] { size[0] } else { 1 }).collect();
            let is_scalar = shape.iter().all(|&n| n == 1);
            let data = is_scalar.then(|| operators::scalar(elem_type, &shape, value)).flatten();
            let type_name = type_name(elem_type);
            let why =
                || error(format!("can't be set to {value}: expected a scalar, got {type_name} of shape {shape:?}"));
            return Ok(Value::Known(Trials(vec![data.ok_or_else(why)?])));
        }
        if !is_float_type(elem_type) && !is_int_type(elem_type) {
            return Ok(Value::Unknown(format!("expected numbers, got `{name}` of {}", type_name(elem_type)).into()));
        }
        let input = Input { name: name.to_owned(), is_int: [INT32, INT64].contains(&elem_type), shape };
        let labels = self.chain.add_input(input, &mut self.budget).map_err(error)?;
        Ok(Value::Known(Trials::from_labels(labels, elem_type)))
    }

    /// A size that the file does not fix.
    fn unfixed_size(&mut self, name: String) -> Result<Size> {
        let error = || Error::format("the graph", "has too many inputs whose sizes are not fixed");
        self.chain.sizes.get(&name).ok_or_else(error)
    }

    /// Evaluates the nodes of a graph in order.
    fn visit(&mut self, graph: &'a Graph, prefix: &str) -> Result<()> {
        for (index, node) in graph.node.iter().enumerate() {
            let mut reader = NodeReader::new(index, node)?;
            for name in node.input.iter().filter(|name| !name.is_empty()) {
                if !self.values.contains_key(name.as_str()) {
                    let why = format!("`{name}` is not an input, a constant or an output of an earlier node");
                    return Err(reader.error(why));
                }
            }
            let path = format!("{prefix}{}", node_name(index, node));
            let values = self.evaluate(&mut reader, index, &path);
            if self.chain.new_constraint.is_some() {
                return values.map(drop);
            }
            let values = match values {
                Ok(values) => values,
                Err(error) if is_standard(node) && node.op_type == "LSTM" => return Err(error),
                Err(error) => {
                    self.skipped.push(node_label(index, node));
                    vec![Value::Unknown(reason(error).into()); node.output.len()]
                }
            };
            for (name, value) in node.output.iter().zip(values).filter(|(name, _)| !name.is_empty()) {
                self.define(name, value)?;
            }
        }
        Ok(())
    }

    /// Whether the caller asked for this `LSTM` node.
    fn is_selected(&self, path: &str) -> bool {
        self.request.names.is_empty() || self.request.names.iter().any(|name| name == path)
    }

    /// Evaluates a node.
    fn evaluate(&mut self, node: &mut NodeReader<'a>, index: usize, path: &str) -> Result<Vec<Value<'a>>> {
        let op = node.proto.op_type.as_str();
        if !is_standard(node.proto) {
            return Err(node.error(UNSUPPORTED));
        }
        match op {
            "LSTM" if self.is_selected(path) => {
                self.lstm_outputs.clear();
                self.lstm_outputs.extend(node.proto.output.iter().map(String::as_str));
                return self.lstm(node, path);
            }
            "LSTM" => {
                self.skipped.push(node_label(index, node.proto));
                let why = format!("{}: not selected", node.label);
                return Ok(vec![Value::Unknown(why.into()); node.proto.output.len()]);
            }
            "If" => return self.branch(node, path),
            "Loop" | "Scan" => return self.body(node, path),
            _ => {}
        }
        let mut inputs = Vec::new();
        for k in 0..node.proto.input.len() {
            inputs.push(self.operand(node, k, op)?);
        }
        if op == "Cast" {
            // Other integers may have been floats before, so that a cast back would not be the identity.
            for Data { elem_type, elements } in inputs.iter_mut().flatten().flat_map(|trials| &mut trials.0) {
                if matches!(elements, Elements::Labels(labels) if self.chain.are_integer_inputs(labels)) {
                    *elem_type = FLOAT;
                }
            }
        }
        self.check_sizes(node, op, &inputs)?;
        let inputs: Vec<Option<&Trials>> = inputs.iter().map(Option::as_ref).collect();
        let trials = if inputs.iter().flatten().all(|trials| trials.is_fixed()) { 1 } else { TRIALS };
        let mut results: Vec<Vec<Data>> = Vec::new();
        for trial in 0..trials {
            let data: Vec<Option<&Data>> = inputs.iter().map(|input| input.map(|trials| trials.at(trial))).collect();
            let mut reader = NodeReader::new(index, node.proto)?;
            let (opset, dir) = (self.request.opset, self.request.dir);
            match operators::evaluate(&mut reader, opset, &data, dir, &mut self.budget)? {
                Some(outputs) => {
                    reader.check_all_attributes_read()?;
                    results.push(outputs);
                }
                None => break,
            }
        }
        if op == "Constant"
            && let Some(t) = node.proto.attribute.iter().find_map(|a| a.t.as_ref())
        {
            self.note_dtype(t);
        }
        let values: Vec<Trials> = if results.len() == trials {
            let outputs = results.iter().map(Vec::len).min().unwrap_or(0);
            let output = |k: usize| {
                let data: Vec<Data> = results.iter().map(|outputs| outputs[k].clone()).collect();
                // A part of a shape may be the same for all sizes.
                let is_same = data.len() > 1 && data[0].as_ints().is_some_and(|a| Some(a) == data[1].as_ints());
                Trials(if is_same { data[..1].to_vec() } else { data })
            };
            (0..outputs).map(output).collect()
        } else {
            let values = self.layer(node, op, &inputs)?;
            node.check_all_attributes_read()?;
            vec![values]
        };
        let is_output_named = |k: usize| node.proto.output.get(k).is_some_and(|name| !name.is_empty());
        if !is_output_named(0) || (values.len()..node.proto.output.len()).any(is_output_named) {
            return Err(node.error(format!("expected {} outputs, got {:?}", values.len(), node.proto.output)));
        }
        Ok(values.into_iter().map(Value::Known).collect())
    }

    fn note_dtype(&mut self, t: &Tensor) {
        let elem_type = t.data_type.unwrap_or_default();
        if is_float_type(elem_type) {
            self.dtypes.insert(type_name(elem_type));
        }
    }

    /// The value of input `k` of a node; `None` if the input is omitted.
    fn operand(&mut self, node: &NodeReader<'a>, k: usize, op: &str) -> Result<Option<Trials>> {
        let Some(name) = node.input_name(k) else { return Ok(None) };
        match self.values.get(name) {
            Some(Value::Known(trials)) => Ok(Some(trials.clone())),
            Some(&Value::Initializer(tensor)) => {
                self.note_dtype(tensor);
                let data = Data::constant(tensor, self.request.dir).map_err(|error| match error {
                    Error::Io { .. } => error,
                    other => node.error(reason(other)),
                })?;
                let value = Trials(vec![data]);
                self.values.insert(name, Value::Known(value.clone()));
                Ok(Some(value))
            }
            Some(Value::Unranked(input)) => {
                let perm = node.proto.attribute.iter().find(|a| a.name == "perm").map(|a| a.ints.len());
                let rank = match op {
                    "LSTM" => Some(if k == 4 { 1 } else { 3 }),
                    "Transpose" => perm.filter(|&rank| rank <= 4),
                    _ => None,
                };
                self.chain.new_constraint = rank.map(|rank| ShapeConstraint::Rank(input.name.clone(), rank));
                Err(node.error(format!("the shape of the input `{name}` is not declared")))
            }
            Some(Value::Unknown(why)) => Err(Error::format("", why)),
            None => Err(node.error(format!("input {k} is missing"))),
        }
    }

    /// Rejects operations whose result for one size says nothing about other sizes.
    fn check_sizes(&mut self, node: &mut NodeReader<'a>, op: &str, inputs: &[Option<Trials>]) -> Result<()> {
        if inputs.iter().flatten().all(Trials::is_fixed) {
            return Ok(());
        }
        let hint = self.hint(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>());
        let why = hint.unwrap_or_else(|| "the result depends on sizes that the file does not fix".into());
        let error = |node: &NodeReader<'_>| node.error(&why);
        let ints = |k: usize, trial: usize| inputs.get(k)?.as_ref()?.at(trial).as_ints().cloned();
        match op {
            "Concat" => {
                let axis = node.proto.attribute.iter().find(|a| a.name == "axis").and_then(|a| a.i).unwrap_or(0);
                let mut parts = inputs.iter().flatten();
                let Some(first) = parts.next() else { return Ok(()) };
                let rank = first.at(0).shape().len();
                let axis = axis_index(node, axis, rank)?;
                for part in parts.filter(|part| part.at(0).shape().len() == rank) {
                    for other in (0..rank).filter(|&other| other != axis) {
                        let result = self.chain.require_equal(part.size(other), first.size(other), "elements");
                        result.map_err(|why| node.error(format!("axis {other}: {why}")))?;
                    }
                }
                Ok(())
            }
            "Slice" => {
                let data = |trial: usize| inputs.iter().map(|i| i.as_ref().map(|i| i.at(trial))).collect::<Vec<_>>();
                let bounds = |trial| {
                    let mut reader = NodeReader::new(0, node.proto)?;
                    operators::slice_bounds(&mut reader, self.request.opset, &data(trial))
                };
                let (a, b) = (bounds(0)?, bounds(1)?);
                let Some(input) = &inputs[0] else { return Ok(()) };
                for (k, &axis) in a.axes.iter().enumerate() {
                    let size = input.size(axis);
                    let least = *size.iter().min().unwrap_or(&0) as i64;
                    // A constant bound must mean the same for every size of the axis.
                    let is_safe =
                        |x: i64, y: i64| x != y || x.unsigned_abs() <= least as u64 || x >= OPEN_END || x <= -OPEN_END;
                    if size[0] != size[1] && !(is_safe(a.starts[k], b.starts[k]) && is_safe(a.ends[k], b.ends[k])) {
                        let (start, end) = (a.starts[k], a.ends[k]);
                        let why = format!("the range {start}..{end} of axis {axis}, whose size the file does not fix");
                        return Err(node.error(why));
                    }
                }
                Ok(())
            }
            "Div" | "Mod" => {
                for trial in 0..TRIALS {
                    if let (Some(a), Some(b)) = (ints(0, trial), ints(1, trial))
                        && let Some(&divisor) = b.first()
                        && (b.len() != 1 || divisor == 0 || a.iter().any(|a| a % divisor != 0))
                    {
                        return Err(error(node));
                    }
                }
                Ok(())
            }
            "Max" | "Min" | "And" | "Or" | "Xor" | "Not" | "ReduceMax" | "ReduceMin" => {
                let are_known = inputs.iter().flatten().all(|trials| !trials.has_labels());
                if are_known { Err(error(node)) } else { Ok(()) }
            }
            _ if operators::COMPARISONS.contains(&op) => {
                // Sizes are not negative, so that they never equal -1.
                for (k, other) in [(0, 1), (1, 0)] {
                    let (Some(a), Some(b)) = (ints(k, 0), ints(k, 1)) else { return Err(error(node)) };
                    let Some(other) = ints(other, 0).filter(|o| o.len() == a.len()) else {
                        if a == b {
                            continue;
                        }
                        return Err(error(node));
                    };
                    let changes = |((a, b), other): ((&i64, &i64), &i64)| {
                        a != b && !(op == "Equal" && *a >= 0 && *b >= 0 && *other < 0)
                    };
                    if a.len() != b.len() || a.iter().zip(&b).zip(&other).any(changes) {
                        return Err(error(node));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Evaluates a node of a layer other than an LSTM.
    fn layer(&mut self, node: &mut NodeReader<'a>, op: &str, inputs: &[Option<&Trials>]) -> Result<Trials> {
        let label = node.label.clone();
        let input = |k: usize| inputs.get(k).copied().flatten();
        let is_layer = matches!(op, "MatMul" | "Gemm" | "Add" | "Sub" | "Mul" | "Div" | "Neg" | "Relu" | "Sigmoid")
            || matches!(op, "Tanh" | "HardSigmoid" | "Softmax" | "LogSoftmax" | "Dropout" | "Gather")
            || matches!(op, "Clip" | "ReduceSum" | "ReduceMean");
        // With names only the LSTMs are loaded. A dropout may be between them.
        let is_wanted = self.request.names.is_empty() || op == "Dropout";
        let Some(first) = input(0).filter(|_| is_layer && is_wanted) else {
            return Err(node.error(self.hint(inputs).unwrap_or_else(|| UNSUPPORTED.into())));
        };
        let labels = || -> Result<Labels> {
            let labels = first.to_labels().filter(|_| first.has_labels());
            labels.ok_or_else(|| Error::format(&label, "expected outputs of a layer, got constants"))
        };
        let (chain, budget) = (&mut self.chain, &mut self.budget);
        let result = match op {
            "Gather" => {
                node.int_attribute("axis")?.filter(|&axis| axis != 0).map_or(Ok(()), |axis| {
                    Err(node.error(format!("an embedding along axis {axis} is not supported")))
                })?;
                let weight = first.as_constant().and_then(|w| w.to_owned().into_dimensionality::<Ix2>().ok());
                let tokens = input(1).filter(|tokens| is_int_type(tokens.at(0).elem_type));
                match (weight, tokens.and_then(Trials::to_labels)) {
                    (Some(weight), Some(tokens)) => chain.embedding(&label, &tokens, weight, budget),
                    _ => Err("expected a constant table and tokens".into()),
                }
            }
            "MatMul" => matmul(chain, &label, first, input(1), budget),
            "Gemm" => {
                let alpha = node.float_attribute("alpha")?.unwrap_or(1.0);
                let beta = node.float_attribute("beta")?.unwrap_or(1.0);
                let trans =
                    |node: &mut NodeReader<'_>, name| Ok::<bool, Error>(node.int_attribute(name)?.unwrap_or(0) != 0);
                let (trans_a, trans_b) = (trans(node, "transA")?, trans(node, "transB")?);
                let a = labels()?;
                let a = a.map(|a| if trans_a { a.reversed_axes() } else { a });
                let b = input(1).and_then(Trials::as_constant);
                let b = b.and_then(|b| b.to_owned().into_dimensionality::<Ix2>().ok());
                let b = b.filter(|_| a[0].ndim() == 2).ok_or_else(|| node.error("expected a constant matrix B"))?;
                let weight = if trans_b { b } else { b.reversed_axes() };
                let y = chain.linear(&label, &a, weight.as_standard_layout().into_owned() * alpha, budget);
                match input(2) {
                    Some(c) => y.and_then(|y| with_constant(chain, &label, &y, c, true, |c| beta * c, budget)),
                    None => y,
                }
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let second = input(1).ok_or_else(|| node.error("input 1 is missing"))?;
                arithmetic(chain, &label, op, first, second, budget)
            }
            "Neg" => {
                let labels = labels()?;
                let ones = labels.each_ref().map(|array| array.mapv(|_| -1.0).into_shared());
                chain.affine(&label, &labels, &ones, false, budget)
            }
            "Relu" => chain.elementwise(&label, &labels()?, StageKind::Activation(Activation::Relu)),
            "Sigmoid" => chain.elementwise(&label, &labels()?, StageKind::Activation(Activation::Sigmoid)),
            "Tanh" => chain.elementwise(&label, &labels()?, StageKind::Activation(Activation::Tanh)),
            "HardSigmoid" => {
                let alpha = node.float_attribute("alpha")?.unwrap_or(0.2);
                let beta = node.float_attribute("beta")?.unwrap_or(0.5);
                let activation = Activation::HardSigmoid { alpha, beta };
                chain.elementwise(&label, &labels()?, StageKind::Activation(activation))
            }
            "Softmax" | "LogSoftmax" => {
                let axis = node.int_attribute("axis")?.unwrap_or(if self.request.opset < 13 { 1 } else { -1 });
                let labels = labels()?;
                let rank = labels[0].ndim();
                let axis = axis_index(node, axis, rank)?;
                let axes = if self.request.opset < 13 { axis..rank } else { axis..axis + 1 };
                let activation = if op == "Softmax" { Activation::Softmax } else { Activation::LogSoftmax };
                chain.softmax(&label, &labels, axes, activation)
            }
            "Clip" => {
                let activation = clip(node, self.request.opset, inputs)?;
                chain.elementwise(&label, &labels()?, StageKind::Activation(activation))
            }
            "Dropout" => return self.dropout(node, inputs),
            _ => {
                let labels = labels()?;
                let rank = labels[0].ndim();
                let axes = match self.request.opset < if op == "ReduceSum" { 13 } else { 18 } {
                    true => node.ints_attribute("axes")?.map(<[i64]>::to_vec),
                    false => input(1).and_then(|axes| Some(axes.at(0).as_ints()?.iter().copied().collect())),
                };
                let keep = node.int_attribute("keepdims")?.unwrap_or(1) != 0;
                node.int_attribute("noop_with_empty_axes")?;
                let &[axis] = &axes.unwrap_or_default()[..] else {
                    return Err(node.error("expected a sum over one axis"));
                };
                let axis = axis_index(node, axis, rank)?;
                let n = labels[0].shape()[axis];
                if n != labels[1].shape()[axis] || n == 0 {
                    return Err(node.error("a sum over time steps or sequences is not supported"));
                }
                let factor = if op == "ReduceSum" { 1.0 } else { 1.0 / n as f32 };
                let part = |k: usize| {
                    (factor, labels.each_ref().map(|array| array.index_axis(Axis(axis), k).to_owned().into_shared()))
                };
                let terms: Vec<_> = (0..n).map(part).collect();
                let sum = chain.sum(&label, &terms, budget);
                let unsqueeze = |array: Shared<Label>| array.insert_axis(Axis(axis));
                sum.map(|labels| if keep { labels.map(unsqueeze) } else { labels })
            }
        };
        result.map(|labels| Trials::from_labels(labels, FLOAT)).map_err(|why| node.error(why))
    }

    /// Advice for a node that depends on a scalar input.
    fn hint(&self, inputs: &[Option<&Trials>]) -> Option<String> {
        let input = inputs.iter().flatten().find_map(|trials| match &trials.at(0).elements {
            Elements::Labels(array) if array.len() == 1 => match self.chain.resolve(*array.first()?)? {
                Source::Input(input) => Some(&self.chain.inputs[input]),
                _ => None,
            },
            _ => None,
        })?;
        let name = &input.name;
        Some(format!("the graph depends on the input `{name}`; set its value, for example with `--set {name}=16000`"))
    }

    /// `Dropout`, which is the identity in inference. Its probability is part of the chain.
    fn dropout(&mut self, node: &mut NodeReader<'a>, inputs: &[Option<&Trials>]) -> Result<Trials> {
        let input = |k: usize| inputs.get(k).copied().flatten();
        let first = input(0).ok_or_else(|| node.error("input 0 is missing"))?;
        let ratio = if self.request.opset < 12 {
            node.float_attribute("ratio")?.unwrap_or(0.5)
        } else {
            node.int_attribute("seed")?;
            match input(1) {
                None => 0.5,
                Some(ratio) => {
                    let array = ratio.as_constant().filter(|array| array.ndim() == 0);
                    let error = || node.error(format!("ratio: expected a scalar, got shape {:?}", ratio.at(0).shape()));
                    array.and_then(|array| array.first().copied()).ok_or_else(error)?
                }
            }
        };
        let is_false = |mode: &Trials| mode.at(0).as_ints().is_some_and(|mode| mode.iter().all(|&v| v == 0));
        if input(2).is_some_and(|mode| !is_false(mode)) {
            return Err(node.error("`training_mode` must be false: expected a model for inference"));
        }
        if !first.has_labels() || ratio == 0.0 {
            return Ok(first.clone());
        }
        let labels = first.to_labels().ok_or_else(|| node.error("expected outputs of a layer"))?;
        // The dropout of an input does nothing in inference.
        let dropped = self.chain.elementwise(&node.label.clone(), &labels, StageKind::Dropout(ratio));
        dropped.map(|labels| Trials::from_labels(labels, FLOAT)).map_err(|why| node.error(why))
    }

    /// `If`: follows the branch that a constant condition selects, or the one that contains a selected `LSTM` node.
    fn branch(&mut self, node: &mut NodeReader<'a>, path: &str) -> Result<Vec<Value<'a>>> {
        let branches = [node.graph_attribute("then_branch")?, node.graph_attribute("else_branch")?];
        let prefixes = ["then_branch", "else_branch"].map(|name| branch_prefix(path, name));
        let condition = self.operand(node, 0, "If");
        let known = match &condition {
            Ok(Some(trials)) if trials.is_fixed() && trials.at(0).len() == 1 => {
                trials.at(0).as_ints().and_then(|ints| ints.first().copied())
            }
            _ => None,
        };
        let is_named = |k: usize| self.request.names.iter().any(|name| name.starts_with(&prefixes[k]));
        let branch = match (known, is_named(0), is_named(1)) {
            (_, true, false) => 0,
            (_, false, true) => 1,
            (Some(condition), ..) => usize::from(condition == 0),
            _ => {
                let why = match condition {
                    Err(error) => reason(error),
                    Ok(condition) => {
                        let hint = condition.as_ref().and_then(|condition| self.hint(&[Some(condition)]));
                        hint.unwrap_or_else(|| "its condition is not a constant".into())
                    }
                };
                return Err(node.error(format!("which branch runs is not known: {why}")));
            }
        };
        self.inline(node, branches[branch], &prefixes[branch])
    }

    /// Evaluates the nodes of a branch as if they were in place of the node.
    fn inline(&mut self, node: &NodeReader<'a>, graph: &'a Graph, prefix: &str) -> Result<Vec<Value<'a>>> {
        self.define_initializers(graph)?;
        self.visit(graph, prefix)?;
        let value = |output: &ValueInfo| {
            let value = self.values.get(output.name.as_str()).cloned();
            value.ok_or_else(|| node.error(format!("no node of the branch computes `{}`", output.name)))
        };
        graph.output.iter().map(value).collect()
    }

    /// `Loop` and `Scan`, whose body is read only for an `LSTM` node in it that the caller asks for.
    fn body(&mut self, node: &mut NodeReader<'a>, path: &str) -> Result<Vec<Value<'a>>> {
        let body = node.graph_attribute("body")?;
        let prefix = branch_prefix(path, "body");
        let why: Rc<str> = node.error(UNSUPPORTED).to_string().into();
        if self.request.names.iter().any(|name| name.starts_with(&prefix)) {
            for input in &body.input {
                self.define(&input.name, Value::Unknown(why.clone()))?;
            }
            self.inline(node, body, &prefix)?;
        }
        self.skipped.push(node.label.clone());
        Ok(vec![Value::Unknown(why); node.proto.output.len()])
    }

    /// An `LSTM` node.
    fn lstm(&mut self, node: &mut NodeReader<'a>, path: &str) -> Result<Vec<Value<'a>>> {
        let attributes = lstm_node::read_attributes(node, self.request.opset)?;
        if node.proto.input.len() > 8 || node.proto.output.len() > 3 {
            return Err(node.error("expected at most 8 inputs and 3 outputs"));
        }
        let constant = |walker: &mut Self, k: usize, name: &str| -> Result<Option<Shared<f32>>> {
            let Some(value) = walker.operand(node, k, "LSTM")? else { return Ok(None) };
            let array = value.as_constant().cloned();
            array.map(Some).ok_or_else(|| node.error(format!("input {k} ({name}): expected a constant of floats")))
        };
        let missing = |k: usize, name: &str| node.error(format!("input {k} ({name}) is missing"));
        let w = constant(self, 1, "W")?.ok_or_else(|| missing(1, "W"))?;
        let r = constant(self, 2, "R")?.ok_or_else(|| missing(2, "R"))?;
        let constants = Constants { w, r, b: constant(self, 3, "B")?, p: constant(self, 7, "P")? };
        let hidden = attributes.hidden_size.or(constants.r.shape().last().copied()).unwrap_or_default();
        let input_size = constants.w.shape().last().copied().unwrap_or_default();
        let num_directions = attributes.direction.reverse_flags().len();

        // Axes in the order of this library, and back.
        let swap = |labels: Labels| match attributes.batch_first {
            true => labels.map(|array| if array.ndim() == 3 { array.permuted_axes(IxDyn(&[1, 0, 2])) } else { array }),
            false => labels,
        };
        let x_name = node.input_name(0).ok_or_else(|| missing(0, "X"))?;
        let fixed = |n: usize| [n; TRIALS];
        let x = match self.sequence_operand(node, 0)? {
            Some(x) => swap(x),
            None => {
                let (steps, batch) =
                    (self.unfixed_size(format!("{x_name}.steps"))?, self.unfixed_size("?batch".into())?);
                let shape = if attributes.batch_first { [batch, steps] } else { [steps, batch] };
                swap(self.new_input(node, x_name, vec![shape[0], shape[1], fixed(input_size)])?)
            }
        };
        let batch: Size = std::array::from_fn(|k| x[k].shape().get(1).copied().unwrap_or(1));
        let lengths = match self.operand(node, 4, "LSTM")? {
            None => LengthsOperand::None,
            Some(lengths) if lengths.at(0).elem_type != INT32 => {
                let (name, found) = (node.input_name(4).unwrap_or_default(), type_name(lengths.at(0).elem_type));
                return Err(node.error(format!("sequence_lens: expected INT32, got `{name}` of {found}")));
            }
            Some(lengths) => match (lengths.at(0).as_ints(), lengths.at(1).as_ints(), lengths.to_labels()) {
                (Some(a), Some(b), _) => LengthsOperand::Known([a.clone(), b.clone()]),
                (_, _, Some(labels)) => LengthsOperand::Labels(labels),
                _ => return Err(node.error("sequence_lens: expected integers")),
            },
        };
        let mut states = [None, None];
        for (k, state) in states.iter_mut().enumerate() {
            let Some(name) = node.input_name(5 + k) else { continue };
            let value = self.sequence_operand(node, 5 + k)?;
            // A state that the graph computes becomes an input if only this node is loaded.
            let is_computed = |labels: &Labels| {
                let is_computed = |&label: &Label| !matches!(self.chain.resolve(label), None | Some(Source::Input(_)));
                labels[0].iter().any(is_computed)
            };
            let is_named = !self.request.names.is_empty();
            *state = match value {
                Some(labels) if !(is_named && is_computed(&labels)) => Some(swap(labels)),
                _ => {
                    let (d, h) = (fixed(num_directions), fixed(hidden));
                    let shape = if attributes.batch_first { vec![batch, d, h] } else { vec![d, batch, h] };
                    Some(swap(self.new_input(node, name, shape)?))
                }
            };
        }
        let batch_first = attributes.batch_first;
        let operands = Operands { x, lengths, states };
        let outputs =
            lstm_node::add(&mut self.chain, &node.label, path, attributes, &constants, operands, &mut self.budget);
        let [y, h, c] = outputs.map_err(|why| node.error(why))?;
        let permute = |labels: Labels, order: &[usize]| match batch_first {
            true => labels.map(|array| array.permuted_axes(IxDyn(order))),
            false => labels,
        };
        let outputs = [permute(y, &[2, 0, 1, 3]), permute(h, &[1, 0, 2]), permute(c, &[1, 0, 2])];
        Ok(outputs.map(|labels| Value::Known(Trials::from_labels(labels, FLOAT))).to_vec())
    }

    /// Labels of input `k` of an `LSTM` node. With names, `None` for a value that the graph computes in ways that are not
    /// supported.
    fn sequence_operand(&mut self, node: &NodeReader<'a>, k: usize) -> Result<Option<Labels>> {
        let name = node.input_name(k).unwrap_or_default();
        let is_unknown = matches!(self.values.get(name), Some(Value::Unknown(_)));
        if is_unknown && !self.request.names.is_empty() {
            return Ok(None);
        }
        let Some(value) = self.operand(node, k, "LSTM")? else { return Ok(None) };
        let what = ["X", "", "", "", "", "initial_h", "initial_c"][k];
        let found = type_name(value.at(0).elem_type);
        let labels = value.to_labels().filter(|_| is_float_type(value.at(0).elem_type));
        labels.map(Some).ok_or_else(|| node.error(format!("{what}: expected floats, got `{name}` of {found}")))
    }

    /// Makes a value of the graph an input.
    fn new_input(&mut self, node: &NodeReader<'a>, name: &'a str, shape: Vec<Size>) -> Result<Labels> {
        let input = Input { name: name.to_owned(), is_int: false, shape };
        let labels = self.chain.add_input(input, &mut self.budget).map_err(|why| node.error(why))?;
        self.values.insert(name, Value::Known(Trials::from_labels(labels.clone(), FLOAT)));
        Ok(labels)
    }
}

/// The message of an error without the name of the operation.
fn reason(error: Error) -> String {
    match error {
        Error::Format { input, reason } if input.is_empty() => reason,
        other => other.to_string(),
    }
}

const OPEN_END: i64 = operators::OPEN_SLICE_END;

/// A product of features with a constant matrix, on either side.
fn matmul(
    chain: &mut Chain,
    label: &str,
    a: &Trials,
    b: Option<&Trials>,
    budget: &mut Budget,
) -> std::result::Result<Labels, String> {
    let b = b.ok_or("input 1 is missing")?;
    let error = || "expected a product of a layer's outputs and a constant matrix".to_owned();
    let matrix = |value: &Trials| -> Option<Array2<f32>> {
        let array = value.as_constant()?;
        let rank = array.ndim();
        let leading = array.shape()[..rank.saturating_sub(2)].iter().all(|&n| n == 1);
        let shape = [array.shape()[rank.checked_sub(2)?], array.shape()[rank - 1]];
        leading.then(|| array.to_shape(shape).ok().map(|view| view.into_owned())).flatten()
    };
    match (a.has_labels(), b.has_labels()) {
        (true, false) => {
            let labels = a.to_labels().ok_or_else(error)?;
            if let Some(vector) = b.as_constant().filter(|b| b.ndim() == 1) {
                let weight = vector.to_owned().insert_axis(Axis(0)).into_dimensionality().map_err(|_| error())?;
                let y = chain.linear(label, &labels, weight, budget)?;
                let last = y[0].ndim() - 1;
                return Ok(y.map(|array| array.index_axis_move(Axis(last), 0)));
            }
            let weight = matrix(b).ok_or_else(error)?.reversed_axes().as_standard_layout().into_owned();
            chain.linear(label, &labels, weight, budget)
        }
        (false, true) => {
            let weight = matrix(a).ok_or_else(error)?;
            let swap = |array: Shared<Label>| {
                let mut array = array;
                let rank = array.ndim();
                array.swap_axes(rank - 1, rank - 2);
                array
            };
            let labels = b.to_labels().filter(|labels| labels[0].ndim() >= 2).ok_or_else(error)?;
            chain.linear(label, &labels.map(swap), weight, budget).map(|labels| labels.map(swap))
        }
        _ => Err(error()),
    }
}

/// The activation that a `Clip` is: relu without an upper bound, and a hard sigmoid of slope 1 from 0 to 1.
fn clip(node: &mut NodeReader<'_>, opset: i64, inputs: &[Option<&Trials>]) -> Result<Activation> {
    let bounds = match opset < 11 {
        true => [node.float_attribute("min")?, node.float_attribute("max")?],
        false => {
            let mut bounds = [None; 2];
            for (k, bound) in bounds.iter_mut().enumerate() {
                let Some(input) = inputs.get(k + 1).copied().flatten() else { continue };
                let value = input.as_constant().filter(|array| array.len() == 1).and_then(|array| array.first());
                *bound = Some(*value.ok_or_else(|| node.error("expected constant bounds"))?);
            }
            bounds
        }
    };
    match bounds {
        [Some(0.0), None | Some(f32::MAX..)] => Ok(Activation::Relu),
        [Some(0.0), Some(1.0)] => Ok(Activation::HardSigmoid { alpha: 1.0, beta: 0.0 }),
        [min, max] => {
            let text = |bound: Option<f32>| bound.map_or("none".to_owned(), |bound| bound.to_string());
            let got = format!("{} and {}", text(min), text(max));
            Err(node.error(format!("expected the bounds 0 and none, as a relu has, or 0 and 1, got {got}")))
        }
    }
}

/// Adds a constant to features or multiplies them by it.
fn with_constant(
    chain: &mut Chain,
    label: &str,
    labels: &Labels,
    constant: &Trials,
    is_sum: bool,
    f: impl Fn(f32) -> f32,
    budget: &mut Budget,
) -> std::result::Result<Labels, String> {
    let error = |k: usize| format!("cannot combine {:?} and {:?}", labels[k].shape(), constant.at(k).shape());
    // A size that is not fixed may be that of the constant.
    let last = |shape: &[usize]| shape.last().copied().unwrap_or(1);
    let size: Size = std::array::from_fn(|k| last(labels[k].shape()));
    let constant_size: Size = std::array::from_fn(|k| last(constant.at(k).shape()));
    if constant_size != [1; TRIALS] && size != [1; TRIALS] {
        chain.require_equal(size, constant_size, "features")?;
    }
    let mut wide_labels = Vec::new();
    let mut wide_constants = Vec::new();
    for (k, array) in labels.iter().enumerate() {
        let floats = constant.at(k).as_floats().ok_or("expected constants of a float type")?;
        let shape = broadcast_shape(array.shape(), floats.shape()).ok_or_else(|| error(k))?;
        budget.charge::<(Label, f32)>(&shape)?;
        let shape = IxDyn(&shape);
        wide_labels.push(array.broadcast(shape.clone()).ok_or_else(|| error(k))?.to_owned().into_shared());
        wide_constants.push(floats.broadcast(shape).ok_or_else(|| error(k))?.mapv(&f).into_shared());
    }
    let (Ok(labels), Ok(constants)) = (wide_labels.try_into(), wide_constants.try_into()) else {
        return Err("expected one array for each trial".into());
    };
    chain.affine(label, &labels, &constants, is_sum, budget)
}

/// `Add`, `Sub`, `Mul` and `Div` of features and constants, and `Add` and `Sub` of features.
fn arithmetic(
    chain: &mut Chain,
    label: &str,
    op: &str,
    a: &Trials,
    b: &Trials,
    budget: &mut Budget,
) -> std::result::Result<Labels, String> {
    let labels = |value: &Trials| value.to_labels().ok_or_else(|| "expected floats".to_owned());
    match (a.has_labels(), b.has_labels(), op) {
        (true, true, "Add" | "Sub") => {
            let (a, b) = (labels(a)?, labels(b)?);
            chain.sum(label, &[(1.0, a), (if op == "Add" { 1.0 } else { -1.0 }, b)], budget)
        }
        (true, true, _) => Err("a product of the outputs of layers is not a chain of layers".into()),
        (true, false, "Add") => with_constant(chain, label, &labels(a)?, b, true, |c| c, budget),
        (true, false, "Sub") => with_constant(chain, label, &labels(a)?, b, true, |c| -c, budget),
        (true, false, "Mul") => with_constant(chain, label, &labels(a)?, b, false, |c| c, budget),
        (true, false, "Div") => with_constant(chain, label, &labels(a)?, b, false, |c| 1.0 / c, budget),
        (false, true, "Add") => with_constant(chain, label, &labels(b)?, a, true, |c| c, budget),
        (false, true, "Mul") => with_constant(chain, label, &labels(b)?, a, false, |c| c, budget),
        (false, true, "Sub") => {
            let minus = with_constant(chain, label, &labels(b)?, a, false, |_| -1.0, budget)?;
            with_constant(chain, label, &minus, a, true, |c| c, budget)
        }
        _ => Err("division by the outputs of a layer is not supported".into()),
    }
}

/// Checks that the declared type and shape of an input agree with its default value.
fn check_default_value(input: &ValueInfo, tensor: &Tensor) -> Result<()> {
    let Some(declared_type) = input.value_type.as_ref().and_then(|value_type| value_type.tensor.as_ref()) else {
        return Ok(());
    };
    let mismatch_error = |expected: String, got: String| {
        let why = format!("expected {expected}, as in its initializer, got {got}");
        Err(Error::format(format!("input `{}`", input.name), why))
    };
    let elem_type = tensor.data_type.unwrap_or_default();
    if let Some(got) = declared_type.elem_type.filter(|&got| got != elem_type) {
        return mismatch_error(type_name(elem_type), type_name(got));
    }
    let Some(shape) = &declared_type.shape else { return Ok(()) };
    let sizes: Vec<_> = shape.dim.iter().map(|dim| dim.value).collect();
    let size_agrees = |(declared, actual): (&Option<i64>, &i64)| declared.is_none_or(|declared| declared == *actual);
    if sizes.len() == tensor.dims.len() && sizes.iter().zip(&tensor.dims).all(size_agrees) {
        return Ok(());
    }
    let sizes: Vec<_> = sizes.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
    mismatch_error(format!("{:?}", tensor.dims), format!("[{}]", sizes.join(", ")))
}
