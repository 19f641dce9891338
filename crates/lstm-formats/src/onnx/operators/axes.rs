//! Operators that move, merge, add or remove axes: `Squeeze`, `Unsqueeze`, `Reshape`, `Transpose` and `Expand`.

use super::operands::{
    NodeInputs, axis_index, constant_integers, input_sizes, optional_integers, required_input, unexpected_input,
};
use crate::onnx::{
    node::NodeReader,
    value::{Dim, MAX_RANK, TensorView, Value, Zeros},
};
use lstm_core::Result;

/// The opset since which `Squeeze` and `Unsqueeze` take their axes from input 1 rather than from an attribute.
const FIRST_OPSET_WITH_AXES_INPUT: i64 = 13;

/// Returns the axes that a `Squeeze` or `Unsqueeze` lists, as indices below `rank`.
fn axis_indices<'a>(
    node: &mut NodeReader<'a>,
    opset: i64,
    inputs: NodeInputs<'_, 'a>,
    rank: usize,
) -> Result<Vec<usize>> {
    let axes = if opset < FIRST_OPSET_WITH_AXES_INPUT {
        node.ints_attribute("axes")?.ok_or_else(|| node.error("attribute `axes` is missing"))?.to_vec()
    } else {
        constant_integers(node, inputs, 1)?
    };
    axes.into_iter().map(|axis| axis_index(node, axis, rank)).collect()
}

/// Number of axes that a `Squeeze` or `Unsqueeze` lists; `None` if it has no list.
fn axis_count(node: &NodeReader<'_>, opset: i64, inputs: NodeInputs<'_, '_>) -> Result<Option<usize>> {
    if opset < FIRST_OPSET_WITH_AXES_INPUT {
        return Ok(node.proto.attribute.iter().find(|a| a.name == "axes").map(|a| a.ints.len()));
    }
    Ok(optional_integers(node, inputs, 1)?.map(|axes| axes.len()))
}

/// `Squeeze`: removes axes of size 1.
pub(super) fn squeeze<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    match required_input(node, inputs, 0)? {
        Value::Zeros(zeros) => {
            let axes = match (zeros.rank(), axis_count(node, opset, inputs)?) {
                (Some(rank), Some(_)) => Some(axis_indices(node, opset, inputs, rank)?),
                _ => {
                    // Marks the attribute as read. It can't be resolved without a rank.
                    node.ints_attribute("axes")?;
                    None
                }
            };
            Ok(Value::Zeros(zeros.squeeze(axes.as_deref()).map_err(|why| node.error(why))?))
        }
        Value::Integers { is_scalar: false, values } if values.len() == 1 => {
            axis_indices(node, opset, inputs, 1)?;
            Ok(Value::Integers { is_scalar: true, values: values.clone() })
        }
        Value::View(view) => {
            let axes = axis_indices(node, opset, inputs, view.axes.len())?;
            let mut out = view.clone();
            out.axes.clear();
            for (k, axis) in view.axes.iter().enumerate() {
                match axes.contains(&k) {
                    true if view.dim(axis).is_one() => {}
                    true => return Err(node.error(format!("axis {k} is not known to have size 1"))),
                    false => out.axes.push(axis.clone()),
                }
            }
            Ok(Value::View(out))
        }
        other => unexpected_input(node, "a graph input, an LSTM output or a single size", other),
    }
}

/// `Unsqueeze`: inserts axes of size 1.
pub(super) fn unsqueeze<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    match required_input(node, inputs, 0)? {
        Value::Zeros(zeros) => {
            let Some(shape) = &zeros.shape else {
                // Marks the attribute as read. It can't be resolved without a rank.
                node.ints_attribute("axes")?;
                return Ok(Value::Zeros(Zeros::of_unknown_shape()));
            };
            let rank = shape.len() + axis_count(node, opset, inputs)?.unwrap_or_default().min(MAX_RANK);
            let axes = axis_indices(node, opset, inputs, rank)?;
            Ok(Value::Zeros(Zeros::of_shape(Some(insert_axes(node, shape, &axes, &Dim::Known(1))?))))
        }
        Value::Integers { is_scalar: true, values } => {
            axis_indices(node, opset, inputs, 1)?;
            Ok(Value::Integers { is_scalar: false, values: values.clone() })
        }
        Value::View(view) => {
            let rank = view.axes.len() + axis_count(node, opset, inputs)?.unwrap_or_default().min(MAX_RANK);
            let axes = axis_indices(node, opset, inputs, rank)?;
            let axes = insert_axes(node, &view.axes, &axes, &Vec::new())?;
            Ok(Value::View(TensorView { axes, ..view.clone() }))
        }
        other => unexpected_input(node, "a graph input, an LSTM output or a single size", other),
    }
}

/// Inserts copies of `new` into `old`, so that they get the indices `axes` in the result.
fn insert_axes<T: Clone>(node: &NodeReader<'_>, old: &[T], axes: &[usize], new: &T) -> Result<Vec<T>> {
    let mut old_axes = old.iter().cloned();
    let all_indices = 0..old.len() + axes.len();
    let all_axes = all_indices.map(|k| if axes.contains(&k) { Some(new.clone()) } else { old_axes.next() });
    all_axes.collect::<Option<_>>().ok_or_else(|| node.error("an axis is repeated"))
}

/// `Reshape`: changes the shape. It is supported for zeros, for integers, and for views if it only merges axes, or adds
/// or removes axes of size 1.
pub(super) fn reshape<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    /// Maximum number of axes before and after a `Reshape` of a view, because the search for the axes that it merges
    /// takes exponential time.
    const MAX_RESHAPE_RANK: usize = 6;
    let zero_copies_size = node.int_attribute("allowzero")?.unwrap_or(0) == 0;
    let target_shape = required_input(node, inputs, 1)?;
    let Value::Integers { is_scalar: false, values: target_shape } = target_shape else {
        return unexpected_input(node, "the sizes of a shape", target_shape);
    };
    match required_input(node, inputs, 0)? {
        Value::Zeros(zeros) => {
            zeros.reshape(target_shape, zero_copies_size).map(Value::Zeros).map_err(|why| node.error(why))
        }
        Value::Integers { values, .. } => {
            let is_scalar = target_shape.is_empty() && values.len() == 1;
            let is_unchanged = matches!(target_shape[..], [Dim::Known(n)] if n == -1 || n == values.len() as i64);
            match is_scalar || is_unchanged {
                true => Ok(Value::Integers { is_scalar, values: values.clone() }),
                false => Err(node.error(format!("cannot reshape {} integers to {target_shape:?}", values.len()))),
            }
        }
        Value::View(view) if target_shape.len() <= MAX_RESHAPE_RANK && view.axes.len() <= MAX_RESHAPE_RANK => {
            let reshaped = view.reshape(target_shape, zero_copies_size).map(Value::View);
            let unsupported_error = || {
                let shape = view.shape();
                node.error(format!("expected a reshape that only merges axes, got {shape:?} to {target_shape:?}"))
            };
            reshaped.ok_or_else(unsupported_error)
        }
        other => unexpected_input(node, "integers, or a graph input or LSTM output of up to 6 axes", other),
    }
}

/// `Transpose`: permutes axes; without `perm`, it reverses their order.
pub(super) fn transpose<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let value = required_input(node, inputs, 0)?;
    let perm = node.ints_attribute("perm")?;
    let view = value.to_view(perm.map_or(0, <[i64]>::len)).map_err(|why| node.error(why))?;
    let rank = view.axes.len();
    let perm = match perm {
        Some(perm) => perm.iter().map(|&k| axis_index(node, k, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted_perm = perm.clone();
    sorted_perm.sort_unstable();
    if !sorted_perm.into_iter().eq(0..rank) {
        return Err(node.error(format!("attribute `perm`: expected a permutation of {rank} axes, got {perm:?}")));
    }
    let axes = perm.iter().map(|&k| view.axes[k].clone()).collect();
    Ok(Value::View(TensorView { axes, ..view }))
}

/// `Expand`: broadcasts to a larger shape. Only zeros are supported.
pub(super) fn expand<'a>(node: &NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let value = required_input(node, inputs, 0)?;
    let Value::Zeros(zeros) = value else { return unexpected_input(node, "zeros to expand", value) };
    let Some(target_shape) = input_sizes(inputs, 1) else { return Ok(Value::Zeros(Zeros::of_unknown_shape())) };
    zeros.expand(target_shape).map(Value::Zeros).map_err(|why| node.error(why))
}
