//! Traverses the nodes of a graph in order: `LSTM` nodes become layers, other nodes are evaluated symbolically.

use std::{collections::BTreeMap, path::Path};

use super::{
    context::GraphContext,
    graph_port::{GraphPort, output_kind},
    layer::{self, Layer},
    node::{NodeReader, node_label, node_name},
    operators,
    proto::{Dimension, Graph, Tensor, ValueInfo, type_name},
    value::{Dim, MAX_RANK, Source, TensorView, Value},
};
use lstm_core::{Error, Result};

/// The result of traversing the nodes of a graph.
pub(crate) struct Traversal<'a> {
    /// The values of the graph, and which of them are used.
    pub(crate) context: GraphContext<'a>,
    /// The layers, from the first to the last.
    pub(crate) layers: Vec<Layer<'a>>,
    /// The graph outputs that the layers compute.
    pub(crate) outputs: Vec<GraphPort>,
    /// Labels of the nodes that were ignored because the caller selected other nodes by name.
    pub(crate) ignored_nodes: Vec<String>,
    /// Direction, 0 (forward) or 1 (reverse), of each `LSTM` node that is one direction of a bidirectional layer, by
    /// the index of the node.
    direction_by_node: BTreeMap<usize, usize>,
    /// Names of the `LSTM` nodes to load. With `None` all of them are loaded, and no node may be ignored.
    selected_names: Option<&'a [&'a str]>,
}

impl<'a> Traversal<'a> {
    /// Traverses a graph. `dir` is the folder of the files that hold external tensor data; `selected_names` are the
    /// names of the `LSTM` nodes to load, `None` for all.
    pub(crate) fn run(
        graph: &'a Graph,
        opset: i64,
        dir: Option<&'a Path>,
        selected_names: Option<&'a [&'a str]>,
    ) -> Result<Self> {
        let mut traversal = Traversal {
            context: GraphContext::new(opset, dir),
            layers: Vec::new(),
            outputs: Vec::new(),
            ignored_nodes: Vec::new(),
            direction_by_node: find_split_directions(graph, selected_names),
            selected_names,
        };
        for tensor in &graph.initializer {
            traversal.context.define(&tensor.name, Value::constant(tensor, dir)?)?;
        }
        let constants: BTreeMap<&str, &Tensor> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        for input in &graph.input {
            // Initializers among the inputs: required in IR versions below 4, default values in later ones.
            match constants.get(input.name.as_str()) {
                Some(tensor) => check_default_value(input, tensor)?,
                None => traversal.context.define(&input.name, input_value(input)?)?,
            }
        }
        for (index, node) in graph.node.iter().enumerate() {
            let mut node = NodeReader::new(index, node)?;
            traversal.visit_node(&mut node, index)?;
        }
        for output in &graph.output {
            let port = traversal.output_port(output);
            match selected_names {
                None => traversal.outputs.push(port?),
                Some(_) => traversal.outputs.extend(port),
            }
        }
        Ok(traversal)
    }

    /// Reads one node, and adds the values of its outputs to the context.
    fn visit_node(&mut self, node: &mut NodeReader<'a>, index: usize) -> Result<()> {
        let proto = node.proto;
        let is_standard_operator = ["", "ai.onnx"].contains(&proto.domain.as_str()) && proto.overload.is_empty();
        let is_lstm = is_standard_operator && proto.op_type == "LSTM";
        for name in proto.input.iter().filter(|name| !name.is_empty()) {
            self.context.operand(node, name)?;
        }
        let values = if is_lstm && is_selected(self.selected_names, index, proto) {
            let node_direction = self.direction_by_node.get(&index).copied();
            layer::read_layer(node, &mut self.context, &mut self.layers, node_direction)?.to_vec()
        } else {
            let values = match is_standard_operator && !is_lstm {
                true => self.evaluate(node),
                false => Err(node.error(operators::UNSUPPORTED)),
            };
            match values {
                Ok(values) => values,
                // The node is not part of the selected LSTMs.
                Err(_) if self.selected_names.is_some() => {
                    self.ignored_nodes.push(node_label(index, proto));
                    proto.output.iter().map(|name| Value::UnknownRank(name.as_str(), None)).collect()
                }
                Err(error) => return Err(error),
            }
        };
        let outputs = proto.output.iter().zip(values).filter(|(name, _)| !name.is_empty());
        outputs.into_iter().try_for_each(|(name, value)| self.context.define(name, value))
    }

    /// Evaluates a node of any operator but `LSTM`.
    fn evaluate(&self, node: &mut NodeReader<'a>) -> Result<Vec<Value<'a>>> {
        let proto = node.proto;
        let inputs: Vec<Option<&Value>> = proto.input.iter().map(|name| self.context.value(name)).collect();
        let values = operators::evaluate(node, self.context.opset, &inputs, self.context.dir)?;
        node.check_all_attributes_read()?;
        let is_output_named = |k: usize| proto.output.get(k).is_some_and(|name| !name.is_empty());
        if !is_output_named(0) || (values.len()..proto.output.len()).any(is_output_named) {
            return Err(node.error(format!("expected {} outputs, got {:?}", values.len(), proto.output)));
        }
        Ok(values)
    }

    /// Describes a graph output, which must be an output of the layers.
    fn output_port(&mut self, output: &'a ValueInfo) -> Result<GraphPort> {
        let name = output.name.as_str();
        let error = |why: String| Error::format(format!("output `{name}`"), why);
        self.context.mark_used(name);
        let Some(value) = self.context.value(name) else { return Err(error("no node computes it".into())) };
        let Value::View(view) = value else {
            return Err(error(format!("expected an output of an LSTM, got {}", value.describe())));
        };
        let last_layer_index = self.layers.len().checked_sub(1);
        let rows = match view.source {
            Source::Sequence(outputs) if Some(outputs.layer) == last_layer_index => match view.direction {
                Some(direction) => direction..direction + 1,
                None => 0..outputs.reverse_flags.len(),
            },
            Source::FinalH(start, end) | Source::FinalC(start, end) => start..end,
            _ => return Err(error(format!("expected an output of the last LSTM, got {}", value.describe()))),
        };
        if view.dropout.is_some() {
            return Err(error(format!(
                "expected no dropout after the last LSTM, got {} with dropout",
                value.describe()
            )));
        }
        let (kind, axis_meanings) = output_kind(view.source);
        let axes = view.axes.iter().map(|axis| axis.iter().map(|&k| axis_meanings[k]).collect()).collect();
        Ok(GraphPort { name: name.to_owned(), kind, rows, step: view.step, axes })
    }
}

/// Whether the caller selected this `LSTM` node. Without `selected_names`, all nodes are selected.
fn is_selected(selected_names: Option<&[&str]>, index: usize, node: &super::proto::Node) -> bool {
    selected_names.is_none_or(|selected_names| selected_names.contains(&node_name(index, node).as_str()))
}

/// Finds bidirectional layers that are split into two nodes: pairs of one forward and one reverse `LSTM` node with the
/// same input. Returns the index and direction of each of these nodes.
fn find_split_directions(graph: &Graph, selected_names: Option<&[&str]>) -> BTreeMap<usize, usize> {
    let mut nodes_by_input: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "LSTM") {
        let direction = node.attribute.iter().find(|a| a.name == "direction").and_then(|a| a.s.as_deref());
        let direction = ["forward", "reverse"].iter().position(|d| d.as_bytes() == direction.unwrap_or(b"forward"));
        if let (Some(direction), Some(x), true) =
            (direction, node.input.first(), is_selected(selected_names, index, node))
        {
            nodes_by_input.entry(x).or_default().push((index, direction));
        }
    }
    let direction_pairs = nodes_by_input.into_values().filter(|nodes| matches!(nodes[..], [(_, a), (_, b)] if a != b));
    direction_pairs.flatten().collect()
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

/// Returns the symbolic value of a graph input. The nodes that use the input check its type.
fn input_value(input: &ValueInfo) -> Result<Value<'_>> {
    let name = input.name.as_str();
    let error = |why: String| Error::format(format!("input `{name}`"), why);
    let tensor = input.value_type.as_ref().and_then(|value_type| value_type.tensor.as_ref());
    let elem_type = Some(tensor.and_then(|tensor| tensor.elem_type).unwrap_or_default());
    let Some(shape) = tensor.and_then(|tensor| tensor.shape.as_ref()) else {
        return Ok(Value::UnknownRank(name, elem_type));
    };
    if shape.dim.len() > MAX_RANK {
        return Err(error(format!("expected at most {MAX_RANK} axes, got {}", shape.dim.len())));
    }
    let size = |(axis, dim): (usize, &Dimension)| match dim.value {
        Some(size) if size < 0 => Err(error(format!("axis {axis} has the negative size {size}"))),
        Some(size) => Ok(Dim::Known(size)),
        None => Ok(Dim::Symbolic(name, axis)),
    };
    let dims = shape.dim.iter().enumerate().map(size).collect::<Result<_>>()?;
    Ok(Value::View(TensorView { elem_type, ..TensorView::new(Source::Input(name), dims) }))
}
