//! Operators that select or concatenate parts: `Gather`, `Split`, `Slice` and `Concat`.

use super::operands::{Inputs, axis_index, constant_integers, optional_integers, required, unexpected};
use crate::onnx::{
    node::NodeReader,
    value::{Dim, MAX_RANK, Source, TensorView, Value, Zeros, slice_range},
};
use lstm_core::Result;

/// `Gather`: supported with any indices for a vector of integers, otherwise with a single index along an axis.
pub(super) fn gather<'a>(node: &mut NodeReader<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let axis = node.int("axis")?.unwrap_or(0);
    let value = required(node, inputs, 0)?;
    let is_scalar = matches!(required(node, inputs, 1)?, Value::Integers { is_scalar: true, .. });
    let indices = constant_integers(node, inputs, 1)?;
    if let Value::Integers { is_scalar: false, values } = value {
        axis_index(node, axis, 1)?;
        let selected = indices.into_iter().map(|k| Ok(values[axis_index(node, k, values.len())?]));
        return Ok(Value::Integers { is_scalar, values: selected.collect::<Result<_>>()? });
    }
    let &[index] = &indices[..] else { return Err(node.error(format!("expected one index, got {indices:?}"))) };
    let axis = axis_index(node, axis, value.rank())?;
    let end = if index == -1 { i64::MAX } else { index.saturating_add(1) };
    let part = value.slice(axis, index, end);
    part.and_then(|part| if is_scalar { part.remove_axis(axis) } else { Ok(part) }).map_err(|why| node.error(why))
}

/// `Split`: equal parts, or parts of given sizes.
pub(super) fn split<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Vec<Value<'a>>> {
    let axis = node.int("axis")?.unwrap_or(0);
    let outputs = node.proto.output.len();
    let given_sizes = match opset {
        ..13 => node.ints("split")?.map(<[i64]>::to_vec),
        _ => optional_integers(node, inputs, 1)?,
    };
    let num_outputs = node.int("num_outputs")?;
    if num_outputs.is_some_and(|n| usize::try_from(n) != Ok(outputs)) {
        return Err(node.error(format!("attribute `num_outputs`: expected {outputs}, got {num_outputs:?}")));
    }
    let value = required(node, inputs, 0)?;
    let axis = match value {
        Value::Zeros(Zeros { shape: None, .. }) => return Ok(vec![Value::Zeros(Zeros::unknown()); outputs]),
        _ => axis_index(node, axis, value.rank())?,
    };
    let size = match value {
        Value::View(view) => view.dim(&view.axes[axis]),
        Value::Zeros(zeros) => match zeros.shape.as_ref().map(|shape| shape[axis]) {
            Some(size @ Dim::Known(_)) => size,
            // The parts of an axis of unknown size have unknown sizes.
            _ => return Ok(vec![Value::Zeros(zeros.slice(axis, 0, 1)); outputs]),
        },
        _ => return unexpected(node, "a graph input or an LSTM output to split", value),
    };
    let Dim::Known(size) = size else { return Err(node.error(format!("the size of axis {axis} is not known"))) };
    let sizes = match given_sizes {
        Some(sizes) => sizes,
        None if outputs > 0 && size % outputs as i64 == 0 => vec![size / outputs as i64; outputs],
        None => return Err(node.error(format!("cannot split {size} into {outputs} equal parts"))),
    };
    let total = sizes.iter().copied().fold(0, i64::saturating_add);
    if sizes.len() != outputs || sizes.iter().any(|&size| size <= 0) || total != size {
        return Err(node.error(format!("expected {outputs} sizes that add up to {size}, got {sizes:?}")));
    }
    let mut end = 0;
    let part = |&size: &i64| {
        end += size;
        value.slice(axis, end - size, end).map_err(|why| node.error(why))
    };
    sizes.iter().map(part).collect()
}

/// `Slice`: a range of one axis.
pub(super) fn slice<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let value = required(node, inputs, 0)?;
    let bounds = slice_bounds(node, opset, inputs);
    if let Value::Zeros(zeros) = value {
        // Every part of zeros is zeros. Without valid bounds, its shape is unknown.
        let index = |axis| zeros.rank().and_then(|rank| axis_index(node, axis, rank).ok());
        let part = bounds.ok().and_then(|(axis, start, end)| Some(zeros.slice(index(axis)?, start, end)));
        return Ok(Value::Zeros(part.unwrap_or(Zeros::unknown())));
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

/// The axis, start and end of a `Slice`, which must have one axis and no step.
fn slice_bounds<'a>(node: &mut NodeReader<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<(i64, i64, i64)> {
    let (starts, ends, axes, steps) = if opset < 10 {
        let mut ints = |name| Ok(node.ints(name)?.map(<[i64]>::to_vec));
        (ints("starts")?.unwrap_or_default(), ints("ends")?.unwrap_or_default(), ints("axes")?, None)
    } else {
        let required = |k| constant_integers(node, inputs, k);
        let optional = |k| optional_integers(node, inputs, k);
        (required(1)?, required(2)?, optional(3)?, optional(4)?)
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
pub(super) fn concat<'a>(node: &mut NodeReader<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let axis = node.int("axis")?.unwrap_or(0);
    let first = required(node, inputs, 0)?;
    if let Value::Integers { .. } = first {
        let mut all = Vec::new();
        for k in 0..inputs.len() {
            let value = required(node, inputs, k)?;
            let Value::Integers { is_scalar: false, values } = value else {
                return unexpected(node, "a vector of integers", value);
            };
            all.extend_from_slice(values);
            if all.len() > MAX_RANK {
                return Err(node.error(format!("more than {MAX_RANK} integers")));
            }
        }
        axis_index(node, axis, 1)?;
        return Ok(Value::Integers { is_scalar: false, values: all });
    }
    let values = (0..inputs.len()).map(|k| required(node, inputs, k)).collect::<Result<Vec<_>>>()?;
    let zeros = values.iter().map(|value| if let Value::Zeros(zeros) = value { Some(zeros) } else { None });
    if let Some(zeros) = zeros.collect::<Option<Vec<_>>>() {
        let axis = zeros[0].rank().map_or(Ok(0), |rank| axis_index(node, axis, rank))?;
        let joined = zeros[1..].iter().try_fold(zeros[0].clone(), |joined, zeros| joined.concat(zeros, axis));
        let joined = joined.map_err(|why| node.error(why))?;
        return Ok(Value::Zeros(Zeros::computed(joined.shape)));
    }
    // Graph inputs that together are an initial state.
    let is_input = |value: &Value| match value {
        Value::View(view) => matches!(view.source, Source::Input(_)),
        other => matches!(other, Value::UnknownRank(..)),
    };
    let to_view =
        |value: &Value<'a>, rank| -> Result<TensorView<'a>> { value.to_view(rank).map_err(|why| node.error(why)) };
    if values.iter().all(|value| is_input(value)) && values.len() <= MAX_RANK {
        let parts = values.iter().map(|value| to_view(value, 3)).collect::<Result<Vec<_>>>()?;
        let rank = parts.first().map_or(0, |part| part.axes.len());
        let axis = axis_index(node, axis, rank)?;
        if parts.iter().any(|part| part.axes.len() != rank) {
            return Err(node.error("expected inputs with the same number of axes"));
        }
        return Ok(Value::Concat { axis, parts });
    }
    let mut joined = to_view(first, 0)?;
    let axis = axis_index(node, axis, joined.axes.len())?;
    for value in &values[1..] {
        joined = joined.concat(&to_view(value, 0)?, axis).map_err(|why| node.error(why))?;
    }
    Ok(Value::View(joined))
}
