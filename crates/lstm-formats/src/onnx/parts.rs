//! The operators that take parts and join them: of sizes, of states, of an LSTM's outputs.

use super::{
    node::Op,
    ops::{Inputs, axis, data, numbers, one, refuse},
    select,
    value::{Dim, MAX_RANK, Source, Value},
    zeros::Zeros,
};
use lstm_core::Result;

pub(super) fn gather<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let along = op.int("axis")?.unwrap_or(0);
    let value = one(op, inputs, 0)?;
    let scalar = matches!(one(op, inputs, 1)?, Value::Numbers { scalar: true, .. });
    let indices = numbers(op, inputs, 1)?;
    if let Value::Numbers { scalar: false, values } = value {
        axis(op, along, 1)?;
        let chosen = indices.into_iter().map(|k| Ok(values[axis(op, k, values.len())?]));
        return Ok(Value::Numbers { scalar, values: chosen.collect::<Result<_>>()? });
    }
    let &[index] = &indices[..] else { return Err(op.fail(format!("expected one index, got {indices:?}"))) };
    let along = axis(op, along, rank(value))?;
    let end = if index == -1 { i64::MAX } else { index.saturating_add(1) };
    let part = select::cut(value, along, index, end);
    part.and_then(|part| if scalar { select::without_axis(part, along) } else { Ok(part) }).map_err(|why| op.fail(why))
}

/// Equal parts, or parts of given sizes, of what a `Slice` can take parts of.
pub(super) fn split<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Vec<Value<'a>>> {
    let along = op.int("axis")?.unwrap_or(0);
    let n = op.node.output.len();
    let given = match opset {
        ..13 => op.ints("split")?.map(<[i64]>::to_vec),
        _ => inputs.get(1).copied().flatten().map(|_| numbers(op, inputs, 1)).transpose()?,
    };
    let parts = op.int("num_outputs")?;
    if parts.is_some_and(|parts| usize::try_from(parts) != Ok(n)) {
        return Err(op.fail(format!("attribute `num_outputs`: expected the {n} outputs, got {parts:?}")));
    }
    let value = one(op, inputs, 0)?;
    let along = match value {
        Value::Zeros(Zeros { shape: None, .. }) => return Ok(vec![Value::Zeros(Zeros::made(None)); n]),
        _ => axis(op, along, rank(value))?,
    };
    let size = match value {
        Value::Data(data) => data.dim(&data.axes[along]),
        Value::Zeros(zeros) => match zeros.shape.as_ref().map(|shape| shape[along]) {
            Some(size @ Dim::Known(_)) => size,
            _ => return Ok(vec![Value::Zeros(zeros.cut(along, 0, 1)); n]),
        },
        _ => return refuse(op, "data to split", value),
    };
    let Dim::Known(size) = size else { return Err(op.fail(format!("the size of axis {along} is not known"))) };
    let sizes = match given {
        Some(sizes) => sizes,
        None if n > 0 && size % n as i64 == 0 => vec![size / n as i64; n],
        None => return Err(op.fail(format!("{size} don't split into {n} equal parts"))),
    };
    if sizes.len() != n || sizes.iter().any(|&s| s <= 0) || sizes.iter().copied().fold(0, i64::saturating_add) != size {
        return Err(op.fail(format!("expected {n} sizes that add up to {size}, got {sizes:?}")));
    }
    let mut at = 0;
    let cut = |&size: &i64| {
        at += size;
        select::cut(value, along, at - size, at).map_err(|why| op.fail(why))
    };
    sizes.iter().map(cut).collect()
}

/// Axes of a value; none where they are not known.
fn rank(value: &Value<'_>) -> usize {
    match value {
        Value::Data(data) => data.axes.len(),
        Value::Joined { parts, .. } => parts.first().map_or(0, |part| part.axes.len()),
        Value::Zeros(zeros) => zeros.rank().unwrap_or_default(),
        Value::Numbers { scalar: false, .. } => 1,
        _ => 0,
    }
}

pub(super) fn concat<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let along = op.int("axis")?.unwrap_or(0);
    let first = one(op, inputs, 0)?;
    if let Value::Numbers { .. } = first {
        let mut all = Vec::new();
        for k in 0..inputs.len() {
            let value = one(op, inputs, k)?;
            let Value::Numbers { scalar: false, values } = value else { return refuse(op, "sizes", value) };
            all.extend_from_slice(values);
            if all.len() > MAX_RANK {
                return Err(op.fail(format!("more than {MAX_RANK} sizes")));
            }
        }
        axis(op, along, 1)?;
        return Ok(Value::Numbers { scalar: false, values: all });
    }
    let all = (0..inputs.len()).map(|k| one(op, inputs, k)).collect::<Result<Vec<_>>>()?;
    let zeros = all.iter().map(|value| if let Value::Zeros(zeros) = value { Some(zeros) } else { None });
    if let Some(zeros) = zeros.collect::<Option<Vec<_>>>() {
        let along = zeros[0].rank().map_or(Ok(0), |rank| axis(op, along, rank))?;
        let joined = zeros[1..].iter().try_fold(zeros[0].clone(), |joined, zeros| joined.join(zeros, along));
        return joined.map(|joined| Value::Zeros(Zeros::made(joined.shape))).map_err(|why| op.fail(why));
    }
    // Inputs that make up an initial state.
    let outside = |value: &Value| match value {
        Value::Data(data) => matches!(data.source, Source::Outside(_)),
        other => matches!(other, Value::Rankless(..)),
    };
    if all.iter().all(|value| outside(value)) && all.len() <= MAX_RANK {
        let parts = all.iter().map(|value| data(op, value, 3)).collect::<Result<Vec<_>>>()?;
        let rank = parts.first().map_or(0, |part| part.axes.len());
        let along = axis(op, along, rank)?;
        if parts.iter().any(|part| part.axes.len() != rank) {
            return Err(op.fail("expected inputs of as many axes"));
        }
        return Ok(Value::Joined { along, parts });
    }
    let mut joined = data(op, first, 0)?;
    let along = axis(op, along, joined.axes.len())?;
    for value in &all[1..] {
        joined = select::join(&joined, &data(op, value, 0)?, along).map_err(|why| op.fail(why))?;
    }
    Ok(Value::Data(joined))
}

pub(super) fn slice<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let value = one(op, inputs, 0)?;
    let bounds = bounds(op, opset, inputs);
    if let Value::Zeros(zeros) = value {
        // Parts of zeros are zeros, whichever they are.
        let along = |along| zeros.rank().and_then(|rank| axis(op, along, rank).ok());
        let cut = bounds.ok().and_then(|(k, start, end)| Some(zeros.cut(along(k)?, start, end)));
        return Ok(Value::Zeros(cut.unwrap_or(Zeros::made(None))));
    }
    let (along, start, end) = bounds?;
    let along = axis(op, along, rank(value))?;
    match value {
        Value::Numbers { scalar: false, values } => {
            let range = select::range(start, end, values.len());
            Ok(Value::Numbers { scalar: false, values: values[range].to_vec() })
        }
        other => select::cut(other, along, start, end).map_err(|why| op.fail(why)),
    }
}

/// The one axis of a `Slice`, where it starts and where it ends.
fn bounds<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<(i64, i64, i64)> {
    let (starts, ends, axes, steps) = if opset < 10 {
        let mut ints = |name| Ok(op.ints(name)?.map(<[i64]>::to_vec));
        (ints("starts")?.unwrap_or_default(), ints("ends")?.unwrap_or_default(), ints("axes")?, None)
    } else {
        let optional = |k| inputs.get(k).copied().flatten().map(|_| numbers(op, inputs, k)).transpose();
        (numbers(op, inputs, 1)?, numbers(op, inputs, 2)?, optional(3)?, optional(4)?)
    };
    let (&[start], &[end]) = (&starts[..], &ends[..]) else {
        return Err(op.fail("expected a slice of one axis"));
    };
    let along = axes.as_deref().unwrap_or(&[0]);
    let (&[along], None | Some([1])) = (along, steps.as_deref()) else {
        return Err(op.fail("expected a slice of one axis, without a step"));
    };
    Ok((along, start, end))
}
