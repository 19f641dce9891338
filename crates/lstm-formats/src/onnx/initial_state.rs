//! The inputs `initial_h` and `initial_c` of an `LSTM` node.

use ndarray::{ArrayD, Axis, concatenate};

use super::{
    context::GraphContext,
    graph_port::{GraphAxis, GraphPort},
    node::NodeReader,
    value::{Dim, Source, TensorView, Value},
};
use lstm_core::Result;

/// Index of `initial_h` among the inputs of an `LSTM` node.
pub(crate) const INITIAL_H_INPUT: usize = 5;
/// Index of `initial_c` among the inputs of an `LSTM` node.
pub(crate) const INITIAL_C_INPUT: usize = 6;

/// The initial `h` or `c` of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LayerInitialState<'a> {
    /// Zeros.
    Zeros,
    /// A constant, shape `[directions, batch, hidden]`.
    Constant(ArrayD<f32>),
    /// The concatenated rows of graph inputs.
    Inputs(Vec<StateRows<'a>>),
}

/// Rows of a graph input that hold the initial state of one or two directions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateRows<'a> {
    /// The whole graph input from which the rows are taken.
    pub(crate) port: GraphPort,
    /// Name of the graph input.
    pub(crate) source: &'a str,
    /// Start and end of the range of rows in the graph input; `None` for all of its rows.
    pub(crate) row_range: Option<(i64, i64)>,
    /// Number of rows.
    pub(crate) row_count: usize,
}

impl LayerInitialState<'_> {
    /// Joins the states of the forward and the backward direction; `None` if they are not of the same kind:
    /// zeros, constants or inputs.
    pub(crate) fn join_directions(states: [Self; 2]) -> Option<Self> {
        use LayerInitialState::{Constant, Inputs, Zeros};
        match states {
            [Zeros, Zeros] => Some(Zeros),
            [Constant(a), Constant(b)] => concatenate(Axis(0), &[a.view(), b.view()]).ok().map(Constant),
            [Inputs(mut a), Inputs(b)] => {
                a.extend(b);
                Some(Inputs(a))
            }
            _ => None,
        }
    }
}

/// Reads the initial `h` or `c` of a node: its input `k`, [`INITIAL_H_INPUT`] or [`INITIAL_C_INPUT`]. `batch_first`
/// tells whether the batch is the first axis.
pub(crate) fn read_initial_state<'a>(
    node: &NodeReader<'a>,
    context: &mut GraphContext<'a>,
    k: usize,
    batch_first: bool,
    [directions, hidden_size]: [usize; 2],
) -> Result<LayerInitialState<'a>> {
    let Some(name) = node.input_name(k) else { return Ok(LayerInitialState::Zeros) };
    let input_name = if k == INITIAL_H_INPUT { "initial_h" } else { "initial_c" };
    let value = context.operand(node, name)?.clone();
    match &value {
        Value::Zeros(zeros) => {
            if let Some(shape) = &zeros.shape {
                check_shape(node, context, input_name, shape.clone(), batch_first, [directions, hidden_size])?;
            }
            Ok(LayerInitialState::Zeros)
        }
        Value::Constant(_) => {
            let mut array = context.constant_floats(node, name)?;
            let shape = array.shape().iter().map(|&size| Dim::Known(size as i64)).collect();
            check_shape(node, context, input_name, shape, batch_first, [directions, hidden_size])?;
            if batch_first {
                array.swap_axes(0, 1);
            }
            Ok(LayerInitialState::Constant(array))
        }
        Value::Concat { axis, parts } => {
            if *axis != usize::from(batch_first) {
                let why = format!("{input_name}: expected inputs concatenated along the layers, got axis {axis}");
                return Err(node.error(why));
            }
            let inputs = parts.iter().map(|part| state_rows(node, input_name, part, batch_first, hidden_size));
            let inputs = inputs.collect::<Result<Vec<_>>>()?;
            let rows = inputs.iter().fold(0, |sum: usize, input| sum.saturating_add(input.row_count));
            if rows != directions || inputs.iter().any(|input| input.row_count == 0) {
                let got = value.describe();
                return Err(node.error(format!("{input_name}: expected {directions} rows, got {rows} of {got}")));
            }
            Ok(LayerInitialState::Inputs(inputs))
        }
        _ => {
            let view = value.to_view(3).map_err(|why| node.error(why))?;
            let mut input = state_rows(node, input_name, &view, batch_first, hidden_size)?;
            let rows = view.dim(&view.axes[usize::from(batch_first)]);
            if rows.as_known().is_some_and(|rows| rows != directions as i64) {
                let expected = format!("{directions} rows x batch x {hidden_size}");
                return Err(node.error(format!("{input_name}: expected {expected}, got {:?}", view.shape())));
            }
            input.row_count = directions;
            Ok(LayerInitialState::Inputs(vec![input]))
        }
    }
}

/// Checks the shape of a constant initial state, as far as its sizes are known. All constant states must have the same
/// batch size.
fn check_shape(
    node: &NodeReader<'_>,
    context: &mut GraphContext<'_>,
    input_name: &str,
    mut shape: Vec<Dim<'_>>,
    batch_first: bool,
    [directions, hidden_size]: [usize; 2],
) -> Result<()> {
    if batch_first && shape.len() == 3 {
        shape.swap(0, 1);
    }
    let may_equal = |size: Dim<'_>, expected: usize| size.as_known().is_none_or(|size| size == expected as i64);
    let batch = match shape[..] {
        [rows, batch, features] if may_equal(rows, directions) && may_equal(features, hidden_size) => Some(batch),
        _ => None,
    };
    match batch {
        Some(Dim::Known(n)) if n >= 0 && context.batch_size.is_none_or(|batch| batch == n) => {
            context.batch_size = Some(n);
        }
        Some(Dim::Symbolic(..) | Dim::Unknown) => {}
        _ => {
            let batch = context.batch_size.map_or("batch".into(), |batch| batch.to_string());
            let expected = format!("[{directions}, {batch}, {hidden_size}]");
            return Err(node.error(format!("{input_name}: expected {expected}, got {shape:?}")));
        }
    }
    Ok(())
}

/// The rows of a graph input that `view` selects. Each row is the state of one direction.
fn state_rows<'a>(
    node: &NodeReader<'a>,
    input_name: &str,
    view: &TensorView<'a>,
    batch_first: bool,
    hidden_size: usize,
) -> Result<StateRows<'a>> {
    let error = |why: String| node.error(format!("{input_name}: {why}"));
    let Source::Input(source) = view.source else {
        return Err(error(format!("expected a graph input or a constant, got {}", view.describe())));
    };
    if !view.is_float() {
        return Err(error(format!("expected floats, got {}", view.describe())));
    }
    let axis_meanings = match batch_first {
        false => [GraphAxis::Layers, GraphAxis::Batch, GraphAxis::Features],
        true => [GraphAxis::Batch, GraphAxis::Layers, GraphAxis::Features],
    };
    let shape = view.shape();
    if shape.len() != 3 || shape[2].as_known().is_some_and(|size| size != hidden_size as i64) {
        return Err(error(format!("expected rows x batch x {hidden_size}, got {shape:?}")));
    }
    // 0 for an unknown number of rows. The caller rejects it for one of several inputs, and replaces it for a single
    // one.
    let row_count =
        shape[usize::from(batch_first)].as_known().map_or(0, |rows| usize::try_from(rows).unwrap_or_default());
    let port = GraphPort::from_view(node, view, axis_meanings)?;
    if view.row_range.is_some() && port.axes.first().is_none_or(|axis| axis != &[GraphAxis::Layers]) {
        return Err(error("slices of the batch or features of a graph input are not supported".into()));
    }
    Ok(StateRows { port, source, row_range: view.row_range, row_count })
}
