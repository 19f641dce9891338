//! Operators that select parts of values or concatenate values: `Gather`, `Split`, `Slice` and `Concat`.

use super::operands::{NodeInputs, axis_index, constant_integers, optional_integers, required_input, unexpected_input};
use crate::onnx::{
    node::NodeReader,
    value::{Dim, MAX_RANK, Source, TensorView, Value, Zeros, slice_range},
};
use lstm_core::Result;

/// `Gather`: selects elements by their indices along an axis. A vector of integers supports any indices, other values
/// support a single index.
pub(super) fn gather<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let axis = node.int_attribute("axis")?.unwrap_or(0);
    let value = required_input(node, inputs, 0)?;
    let is_scalar = matches!(required_input(node, inputs, 1)?, Value::Integers { is_scalar: true, .. });
    let indices = constant_integers(node, inputs, 1)?;
    if let Value::Integers { is_scalar: false, values } = value {
        axis_index(node, axis, 1)?;
        let selected_values = indices.into_iter().map(|k| Ok(values[axis_index(node, k, values.len())?]));
        return Ok(Value::Integers { is_scalar, values: selected_values.collect::<Result<_>>()? });
    }
    let &[index] = &indices[..] else { return Err(node.error(format!("expected one index, got {indices:?}"))) };
    let axis = axis_index(node, axis, value.rank())?;
    let end = if index == -1 { i64::MAX } else { index.saturating_add(1) };
    let part = value.slice(axis, index, end);
    part.and_then(|part| if is_scalar { part.remove_axis(axis) } else { Ok(part) }).map_err(|why| node.error(why))
}

/// `Split`: splits an axis into equal parts, or into parts of given sizes.
pub(super) fn split<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: NodeInputs<'_, 'a>) -> Result<Vec<Value<'a>>> {
    let axis = node.int_attribute("axis")?.unwrap_or(0);
    let outputs = node.proto.output.len();
    let split_sizes = match opset {
        ..13 => node.ints_attribute("split")?.map(<[i64]>::to_vec),
        _ => optional_integers(node, inputs, 1)?,
    };
    let num_outputs = node.int_attribute("num_outputs")?;
    if num_outputs.is_some_and(|n| usize::try_from(n) != Ok(outputs)) {
        return Err(node.error(format!("attribute `num_outputs`: expected {outputs}, got {num_outputs:?}")));
    }
    let value = required_input(node, inputs, 0)?;
    let axis = match value {
        Value::Zeros(Zeros { shape: None, .. }) => return Ok(vec![Value::Zeros(Zeros::of_unknown_shape()); outputs]),
        _ => axis_index(node, axis, value.rank())?,
    };
    let size = match value {
        Value::View(view) => view.dim(&view.axes[axis]),
        Value::Zeros(zeros) => match zeros.shape.as_ref().map(|shape| shape[axis]) {
            Some(size @ Dim::Known(_)) => size,
            // The parts of an axis of unknown size have unknown sizes.
            _ => return Ok(vec![Value::Zeros(zeros.slice(axis, 0, 1)); outputs]),
        },
        _ => return unexpected_input(node, "a graph input or an LSTM output to split", value),
    };
    let Dim::Known(size) = size else { return Err(node.error(format!("the size of axis {axis} is not known"))) };
    let sizes = match split_sizes {
        Some(sizes) => sizes,
        None if outputs > 0 && size % outputs as i64 == 0 => vec![size / outputs as i64; outputs],
        None => return Err(node.error(format!("cannot split {size} into {outputs} equal parts"))),
    };
    let total_size = sizes.iter().copied().fold(0, i64::saturating_add);
    if sizes.len() != outputs || sizes.iter().any(|&size| size <= 0) || total_size != size {
        return Err(node.error(format!("expected {outputs} sizes that add up to {size}, got {sizes:?}")));
    }
    let mut end = 0;
    let next_part = |&size: &i64| {
        end += size;
        value.slice(axis, end - size, end).map_err(|why| node.error(why))
    };
    sizes.iter().map(next_part).collect()
}

/// `Slice`: selects a range of one axis.
pub(super) fn slice<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let value = required_input(node, inputs, 0)?;
    let bounds = slice_bounds(node, opset, inputs);
    if let Value::Zeros(zeros) = value {
        // Every part of zeros is zeros. Without valid bounds, its shape is unknown.
        let index = |axis| zeros.rank().and_then(|rank| axis_index(node, axis, rank).ok());
        let part = bounds.ok().and_then(|(axis, start, end)| Some(zeros.slice(index(axis)?, start, end)));
        return Ok(Value::Zeros(part.unwrap_or(Zeros::of_unknown_shape())));
    }
    let (axis, start, end) = bounds?;
    let axis = axis_index(node, axis, value.rank())?;
    match value {
        Value::Integers { is_scalar: false, values } => {
            let range = slice_range(start, end, values.len());
            Ok(Value::Integers { is_scalar: false, values: values[range].to_vec() })
        }
        other => other.slice(axis, start, end).map_err(|why| node.error(why)),
    }
}

/// Returns the axis, start and end of a `Slice`. It must slice one axis, with a step of 1.
fn slice_bounds<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: NodeInputs<'_, 'a>) -> Result<(i64, i64, i64)> {
    let (starts, ends, axes, steps) = if opset < 10 {
        let mut ints_attribute = |name| Ok(node.ints_attribute(name)?.map(<[i64]>::to_vec));
        (
            ints_attribute("starts")?.unwrap_or_default(),
            ints_attribute("ends")?.unwrap_or_default(),
            ints_attribute("axes")?,
            None,
        )
    } else {
        let required_ints = |k| constant_integers(node, inputs, k);
        let optional_ints = |k| optional_integers(node, inputs, k);
        (required_ints(1)?, required_ints(2)?, optional_ints(3)?, optional_ints(4)?)
    };
    let (&[start], &[end]) = (&starts[..], &ends[..]) else {
        return Err(node.error("expected a slice of one axis"));
    };
    let axes = axes.as_deref().unwrap_or(&[0]);
    let (&[axis], None | Some([1])) = (axes, steps.as_deref()) else {
        return Err(node.error("expected a slice of one axis, without a step"));
    };
    Ok((axis, start, end))
}

/// `Concat`: supported for integers, zeros, graph inputs, final states of consecutive layers or directions, and the
/// output sequences of both directions of a layer.
pub(super) fn concat<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let axis = node.int_attribute("axis")?.unwrap_or(0);
    let first = required_input(node, inputs, 0)?;
    if let Value::Integers { .. } = first {
        let mut all_integers = Vec::new();
        for k in 0..inputs.len() {
            let value = required_input(node, inputs, k)?;
            let Value::Integers { is_scalar: false, values } = value else {
                return unexpected_input(node, "a vector of integers", value);
            };
            all_integers.extend_from_slice(values);
            if all_integers.len() > MAX_RANK {
                return Err(node.error(format!("more than {MAX_RANK} integers")));
            }
        }
        axis_index(node, axis, 1)?;
        return Ok(Value::Integers { is_scalar: false, values: all_integers });
    }
    let values = (0..inputs.len()).map(|k| required_input(node, inputs, k)).collect::<Result<Vec<_>>>()?;
    let zeros = values.iter().map(|value| if let Value::Zeros(zeros) = value { Some(zeros) } else { None });
    if let Some(zeros) = zeros.collect::<Option<Vec<_>>>() {
        let axis = zeros[0].rank().map_or(Ok(0), |rank| axis_index(node, axis, rank))?;
        let joined_zeros = zeros[1..].iter().try_fold(zeros[0].clone(), |joined, zeros| joined.concat(zeros, axis));
        let joined_zeros = joined_zeros.map_err(|why| node.error(why))?;
        return Ok(Value::Zeros(Zeros::of_shape(joined_zeros.shape)));
    }
    // Graph inputs that together are an initial state.
    let is_graph_input = |value: &Value| match value {
        Value::View(view) => matches!(view.source, Source::Input(_)),
        other => matches!(other, Value::UnknownRank(..)),
    };
    let to_view =
        |value: &Value<'a>, rank| -> Result<TensorView<'a>> { value.to_view(rank).map_err(|why| node.error(why)) };
    if values.iter().all(|value| is_graph_input(value)) && values.len() <= MAX_RANK {
        let parts = values.iter().map(|value| to_view(value, 3)).collect::<Result<Vec<_>>>()?;
        let rank = parts.first().map_or(0, |part| part.axes.len());
        let axis = axis_index(node, axis, rank)?;
        if parts.iter().any(|part| part.axes.len() != rank) {
            return Err(node.error("expected inputs with the same number of axes"));
        }
        return Ok(Value::Concat { axis, parts });
    }
    let mut joined_view = to_view(first, 0)?;
    let axis = axis_index(node, axis, joined_view.axes.len())?;
    for value in &values[1..] {
        joined_view = joined_view.concat(&to_view(value, 0)?, axis).map_err(|why| node.error(why))?;
    }
    Ok(Value::View(joined_view))
}
