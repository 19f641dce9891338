//! Reading the inputs of an operator.

use crate::onnx::{
    node::NodeReader,
    value::{Dim, Value},
};
use lstm_core::Result;

/// The values of a node's inputs, `None` for an omitted input.
pub(crate) type Inputs<'i, 'a> = &'i [Option<&'i Value<'a>>];

/// Input `k`, or `None` if it is omitted.
pub(super) fn optional<'i, 'a>(inputs: Inputs<'i, 'a>, k: usize) -> Option<&'i Value<'a>> {
    inputs.get(k).copied().flatten()
}

/// Input `k`, which must be present.
pub(super) fn required<'i, 'a>(node: &NodeReader<'a>, inputs: Inputs<'i, 'a>, k: usize) -> Result<&'i Value<'a>> {
    optional(inputs, k).ok_or_else(|| node.error(format!("input {k} is missing")))
}

/// An error for an input of an unsupported kind.
pub(super) fn unexpected<'a, T>(node: &NodeReader<'a>, expected: &str, got: &Value<'a>) -> Result<T> {
    Err(node.error(format!("expected {expected}, got {}", got.describe())))
}

/// Input `k`, which must be constant integers.
pub(super) fn constant_integers<'a>(node: &NodeReader<'a>, inputs: Inputs<'_, 'a>, k: usize) -> Result<Vec<i64>> {
    let value = required(node, inputs, k)?;
    let Value::Integers { values, .. } = value else { return unexpected(node, "integers", value) };
    let known = values.iter().map(|dim| dim.known()).collect::<Option<_>>();
    known.ok_or_else(|| node.error(format!("input {k}: expected constant integers")))
}

/// Input `k` as constant integers, or `None` if it is omitted.
pub(super) fn optional_integers<'a>(
    node: &NodeReader<'a>,
    inputs: Inputs<'_, 'a>,
    k: usize,
) -> Result<Option<Vec<i64>>> {
    optional(inputs, k).map(|_| constant_integers(node, inputs, k)).transpose()
}

/// Input `k` as the sizes of a shape; `None` if they can't be derived.
pub(super) fn sizes<'i, 'a>(inputs: Inputs<'i, 'a>, k: usize) -> Option<&'i [Dim<'a>]> {
    match optional(inputs, k)? {
        Value::Integers { is_scalar: false, values } => Some(values),
        _ => None,
    }
}

/// The index of an axis that may be counted from the end.
pub(super) fn axis_index(node: &NodeReader<'_>, axis: i64, rank: usize) -> Result<usize> {
    let from_start = usize::try_from(if axis < 0 { axis.saturating_add(rank as i64) } else { axis });
    let found = from_start.ok().filter(|&axis| axis < rank);
    found.ok_or_else(|| node.error(format!("axis {axis} is out of range for {rank} axes")))
}
