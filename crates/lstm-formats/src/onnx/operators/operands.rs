//! Reads the inputs of an operator.

use crate::onnx::{
    node::NodeReader,
    value::{Dim, Value},
};
use lstm_core::Result;

/// The values of a node's inputs, `None` for an omitted input.
pub(crate) type NodeInputs<'i, 'a> = &'i [Option<&'i Value<'a>>];

/// Returns the value of input `k`, or `None` if the input is omitted.
pub(super) fn optional_input<'i, 'a>(inputs: NodeInputs<'i, 'a>, k: usize) -> Option<&'i Value<'a>> {
    inputs.get(k).copied().flatten()
}

/// Returns the value of input `k`, which must be present.
pub(super) fn required_input<'i, 'a>(
    node: &NodeReader<'a>,
    inputs: NodeInputs<'i, 'a>,
    k: usize,
) -> Result<&'i Value<'a>> {
    optional_input(inputs, k).ok_or_else(|| node.error(format!("input {k} is missing")))
}

/// Returns the error for an input `got` where the operator needs an input of the kind `expected`.
pub(super) fn unexpected_input<'a, T>(node: &NodeReader<'a>, expected: &str, got: &Value<'a>) -> Result<T> {
    Err(node.error(format!("expected {expected}, got {}", got.describe())))
}

/// Returns the elements of input `k`, which must be constant integers.
pub(super) fn constant_integers<'a>(node: &NodeReader<'a>, inputs: NodeInputs<'_, 'a>, k: usize) -> Result<Vec<i64>> {
    let value = required_input(node, inputs, k)?;
    let Value::Integers { values, .. } = value else { return unexpected_input(node, "integers", value) };
    let known_values = values.iter().map(|dim| dim.as_known()).collect::<Option<_>>();
    known_values.ok_or_else(|| node.error(format!("input {k}: expected constant integers")))
}

/// Returns the elements of input `k`, which must be constant integers, or `None` if the input is omitted.
pub(super) fn optional_integers<'a>(
    node: &NodeReader<'a>,
    inputs: NodeInputs<'_, 'a>,
    k: usize,
) -> Result<Option<Vec<i64>>> {
    optional_input(inputs, k).map(|_| constant_integers(node, inputs, k)).transpose()
}

/// Returns input `k` as a list of axis sizes; `None` if the input is omitted or not a known list of integers.
pub(super) fn input_sizes<'i, 'a>(inputs: NodeInputs<'i, 'a>, k: usize) -> Option<&'i [Dim<'a>]> {
    match optional_input(inputs, k)? {
        Value::Integers { is_scalar: false, values } => Some(values),
        _ => None,
    }
}

/// Returns the index of an axis. A negative `axis` is counted from the end.
pub(super) fn axis_index(node: &NodeReader<'_>, axis: i64, rank: usize) -> Result<usize> {
    let index = usize::try_from(if axis < 0 { axis.saturating_add(rank as i64) } else { axis });
    let index = index.ok().filter(|&axis| axis < rank);
    index.ok_or_else(|| node.error(format!("axis {axis} is out of range for {rank} axes")))
}
