//! The operators that exporters put between and around LSTMs: none of them computes anything but sizes. Those that take
//! parts are in `parts.rs`.

use std::path::Path;

use super::{
    node::Op,
    parts,
    proto::{DOUBLE, FLOAT, INT32, INT64, Tensor, type_name},
    select, tensor,
    value::{Data, Dim, MAX_RANK, Source, Value},
    zeros::Zeros,
};
use lstm_core::Result;

pub(super) type Inputs<'i, 'a> = &'i [Option<&'i Value<'a>>];

/// What a constant is good for.
pub(super) fn constant<'a>(t: &'a Tensor, dir: Option<&Path>) -> Result<Value<'a>> {
    let shape = tensor::shape(t)?;
    let few = shape.len() <= 1 && shape.iter().product::<usize>() <= MAX_RANK;
    if tensor::is_int(t) && few {
        let values = tensor::ints(t, dir)?.into_iter().map(Dim::Known).collect();
        return Ok(Value::Numbers { scalar: shape.is_empty(), values });
    }
    if tensor::is_float(t) && tensor::is_zero(t) && shape.len() <= MAX_RANK {
        // Only if as many elements are there as the shape says.
        let shape = Some(t.dims.iter().copied().map(Dim::Known).collect());
        return tensor::floats(t, dir).map(|_| Value::Zeros(Zeros { tensor: Some(t), shape }));
    }
    Ok(Value::Constant(t))
}

/// The values of the outputs of any operator but `LSTM`.
pub(super) fn eval<'a>(
    op: &mut Op<'a>,
    opset: i64,
    inputs: Inputs<'_, 'a>,
    dir: Option<&Path>,
) -> Result<Vec<Value<'a>>> {
    let value = match op.node.op_type.as_str() {
        "Constant" => constant_node(op, dir)?,
        "Identity" => one(op, inputs, 0)?.clone(),
        "Cast" => cast(op, inputs)?,
        "Shape" => shape(op, inputs)?,
        "Gather" => parts::gather(op, inputs)?,
        "Split" => return parts::split(op, opset, inputs),
        "Squeeze" => squeeze(op, opset, inputs)?,
        "Unsqueeze" => unsqueeze(op, opset, inputs)?,
        "Concat" => parts::concat(op, inputs)?,
        "Slice" => parts::slice(op, opset, inputs)?,
        "Add" | "Sub" | "Mul" | "Div" => arithmetic(op, inputs)?,
        "Reshape" => reshape(op, inputs)?,
        "Transpose" => transpose(op, inputs)?,
        "Expand" => match one(op, inputs, 0)? {
            Value::Zeros(zeros) => match sizes(inputs, 1) {
                Some(target) => Value::Zeros(zeros.expand(target).map_err(|why| op.fail(why))?),
                None => Value::Zeros(Zeros::made(None)),
            },
            other => return Err(op.fail(format!("expected zeros to expand, got {}", other.describe()))),
        },
        "ConstantOfShape" => match op.tensor("value")?.map(|t| constant(t, dir)).transpose()? {
            None | Some(Value::Zeros(_)) => Value::Zeros(Zeros::made(sizes(inputs, 0).map(<[_]>::to_vec))),
            Some(other) => return Err(op.fail(format!("expected zeros to fill with, got {}", other.describe()))),
        },
        "Dropout" => dropout(op, opset, inputs, dir)?,
        _ => return Err(op.fail("this operator is no part of an LSTM, and would be ignored")),
    };
    if let Value::Data(data) = &value
        && data.axes.len() > MAX_RANK
    {
        return Err(op.fail(format!("more than {MAX_RANK} axes")));
    }
    Ok(vec![value])
}

pub(super) fn one<'i, 'a>(op: &Op<'a>, inputs: Inputs<'i, 'a>, k: usize) -> Result<&'i Value<'a>> {
    inputs.get(k).copied().flatten().ok_or_else(|| op.fail(format!("input {k} is missing")))
}

/// An error that says which input was what.
pub(super) fn refuse<'a, T>(op: &Op<'a>, expected: &str, got: &Value<'a>) -> Result<T> {
    Err(op.fail(format!("expected {expected}, got {}", got.describe())))
}

/// Data of a given rank, if the value has none of its own.
pub(super) fn data<'a>(op: &Op<'a>, value: &Value<'a>, rank: usize) -> Result<Data<'a>> {
    match value {
        Value::Data(data) => Ok(data.clone()),
        Value::Rankless(name, kind) if (1..=MAX_RANK).contains(&rank) => {
            let sizes = (0..rank).map(|k| Dim::Open(name, k)).collect();
            Ok(Data { kind: *kind, ..Data::new(Source::Outside(name), sizes) })
        }
        other => refuse(op, "an input or an output of an LSTM", other),
    }
}

/// Integers that are known.
pub(super) fn numbers<'a>(op: &Op<'a>, inputs: Inputs<'_, 'a>, k: usize) -> Result<Vec<i64>> {
    let value = one(op, inputs, k)?;
    let Value::Numbers { values, .. } = value else { return refuse(op, "integers", value) };
    let known = values.iter().map(|dim| if let Dim::Known(n) = dim { Some(*n) } else { None });
    known.collect::<Option<_>>().ok_or_else(|| op.fail(format!("input {k}: expected integers that are constant")))
}

/// Sizes, as far as they are known; `None` where it is something else that tells them.
fn sizes<'i, 'a>(inputs: Inputs<'i, 'a>, k: usize) -> Option<&'i [Dim<'a>]> {
    match inputs.get(k).copied().flatten()? {
        Value::Numbers { scalar: false, values } => Some(values),
        _ => None,
    }
}

/// The axes that `Squeeze` and its like name: an attribute before `since`, an input after.
fn axes<'a>(
    op: &mut Op<'a>,
    opset: i64,
    since: i64,
    inputs: Inputs<'_, 'a>,
    k: usize,
    rank: usize,
) -> Result<Vec<usize>> {
    let axes = if opset < since {
        op.ints("axes")?.ok_or_else(|| op.fail("attribute `axes` is missing"))?.to_vec()
    } else {
        numbers(op, inputs, k)?
    };
    axes.into_iter().map(|a| axis(op, a, rank)).collect()
}

/// An axis counted from either end.
pub(super) fn axis(op: &Op<'_>, axis: i64, rank: usize) -> Result<usize> {
    let from_start = usize::try_from(if axis < 0 { axis.saturating_add(rank as i64) } else { axis });
    let found = from_start.ok().filter(|&a| a < rank);
    found.ok_or_else(|| op.fail(format!("axis {axis} is not one of {rank}")))
}

fn constant_node<'a>(op: &mut Op<'a>, dir: Option<&Path>) -> Result<Value<'a>> {
    if let Some(t) = op.tensor("value")? {
        return constant(t, dir);
    }
    if let Some(n) = op.int("value_int")? {
        return Ok(Value::Numbers { scalar: true, values: vec![Dim::Known(n)] });
    }
    match op.ints("value_ints")? {
        Some(values) if values.len() <= MAX_RANK => {
            Ok(Value::Numbers { scalar: false, values: values.iter().copied().map(Dim::Known).collect() })
        }
        _ => Err(op.fail("expected an attribute `value`, `value_int` or `value_ints`")),
    }
}

/// Only where no element that matters changes but by rounding to f32, which all elements are anyway.
fn cast<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let to = op.int("to")?.unwrap_or_default();
    let value = one(op, inputs, 0)?;
    let (float, int) = ([FLOAT, DOUBLE].map(i64::from), [INT32, INT64].map(i64::from));
    match value {
        Value::Zeros(_) if float.contains(&to) => Ok(value.clone()),
        Value::Constant(t) if float.contains(&to) && tensor::is_float(t) => Ok(value.clone()),
        Value::Numbers { .. } if int.contains(&to) => Ok(value.clone()),
        // Lengths; one that a type can't hold is more than any input has steps.
        Value::Data(Data { kind: Some(INT32 | INT64), .. }) | Value::Rankless(_, Some(INT32 | INT64))
            if int.contains(&to) =>
        {
            let mut value = value.clone();
            if let Value::Data(Data { kind, .. }) | Value::Rankless(_, kind) = &mut value {
                *kind = i32::try_from(to).ok();
            }
            Ok(value)
        }
        other => {
            let to = i32::try_from(to).map_or_else(|_| format!("element type {to}"), type_name);
            refuse(op, &format!("constants or lengths that {to} holds"), other)
        }
    }
}

fn shape<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let (start, end) = (op.int("start")?, op.int("end")?);
    let values = match one(op, inputs, 0)? {
        Value::Data(data) => data.shape(),
        Value::Constant(t) if t.dims.len() <= MAX_RANK => t.dims.iter().copied().map(Dim::Known).collect(),
        other => return refuse(op, "a value with a shape", other),
    };
    let range = select::range(start.unwrap_or(0), end.unwrap_or(i64::MAX), values.len());
    Ok(Value::Numbers { scalar: false, values: values[range].to_vec() })
}

/// How many axes `Squeeze` and its like name; `None` if they name none.
fn named(op: &Op<'_>, opset: i64, inputs: Inputs<'_, '_>) -> Result<Option<usize>> {
    Ok(match opset {
        ..13 => op.node.attribute.iter().find(|a| a.name == "axes").map(|a| a.ints.len()),
        _ => inputs.get(1).copied().flatten().map(|_| numbers(op, inputs, 1)).transpose()?.map(|axes| axes.len()),
    })
}

/// New axes at these places among the old ones.
fn spread<T: Clone>(op: &Op<'_>, old: &[T], axes: &[usize], new: &T) -> Result<Vec<T>> {
    let mut old = old.iter().cloned();
    let all = (0..old.len() + axes.len()).map(|k| if axes.contains(&k) { Some(new.clone()) } else { old.next() });
    all.collect::<Option<_>>().ok_or_else(|| op.fail("an axis is named twice"))
}

fn squeeze<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    match one(op, inputs, 0)? {
        Value::Zeros(zeros) => {
            let axes = match (zeros.rank(), named(op, opset, inputs)?) {
                (Some(rank), Some(_)) => Some(axes(op, opset, 13, inputs, 1, rank)?),
                _ => op.ints("axes")?.and(None),
            };
            Ok(Value::Zeros(zeros.squeeze(axes.as_deref()).map_err(|why| op.fail(why))?))
        }
        Value::Numbers { scalar: false, values } if values.len() == 1 => {
            axes(op, opset, 13, inputs, 1, 1)?;
            Ok(Value::Numbers { scalar: true, values: values.clone() })
        }
        Value::Data(data) => {
            let axes = axes(op, opset, 13, inputs, 1, data.axes.len())?;
            let mut out = data.clone();
            out.axes.clear();
            for (k, axis) in data.axes.iter().enumerate() {
                match axes.contains(&k) {
                    true if data.dim(axis).is_one() => {}
                    true => return Err(op.fail(format!("axis {k} is not known to be of size 1"))),
                    false => out.axes.push(axis.clone()),
                }
            }
            Ok(Value::Data(out))
        }
        other => refuse(op, "data or one size", other),
    }
}

fn unsqueeze<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let value = one(op, inputs, 0)?;
    match value {
        Value::Zeros(zeros) => {
            let Some(old) = &zeros.shape else {
                op.ints("axes")?;
                return Ok(Value::Zeros(Zeros::made(None)));
            };
            let rank = old.len() + named(op, opset, inputs)?.unwrap_or_default().min(MAX_RANK);
            let axes = axes(op, opset, 13, inputs, 1, rank)?;
            Ok(Value::Zeros(Zeros::made(Some(spread(op, old, &axes, &Dim::Known(1))?))))
        }
        Value::Numbers { scalar: true, values } => {
            axes(op, opset, 13, inputs, 1, 1)?;
            Ok(Value::Numbers { scalar: false, values: values.clone() })
        }
        Value::Data(data) => {
            let rank = data.axes.len() + named(op, opset, inputs)?.unwrap_or_default().min(MAX_RANK);
            let axes = axes(op, opset, 13, inputs, 1, rank)?;
            Ok(Value::Data(Data { axes: spread(op, &data.axes, &axes, &Vec::new())?, ..data.clone() }))
        }
        other => refuse(op, "data or one size", other),
    }
}

/// Arithmetic with two sizes.
fn arithmetic<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let (a, b) = (one(op, inputs, 0)?, one(op, inputs, 1)?);
    let (Value::Numbers { scalar: x, values: u }, Value::Numbers { scalar: y, values: v }) = (a, b) else {
        let other = if let Value::Numbers { .. } = a { b } else { a };
        return refuse(op, "one size and another", other);
    };
    let (&[u], &[v]) = (&u[..], &v[..]) else { return refuse(op, "one size and another", a) };
    let value = match (op.node.op_type.as_str(), u, v) {
        ("Mul", u, v) => u.times(v),
        (kind, Dim::Known(u), Dim::Known(v)) => {
            let value = match kind {
                "Add" => u.checked_add(v),
                "Sub" => u.checked_sub(v),
                // Of others, runtimes differ in the direction of rounding.
                _ => (u >= 0 && v > 0).then(|| u / v),
            };
            value.map_or(Dim::Unknown, Dim::Known)
        }
        _ => Dim::Unknown,
    };
    Ok(Value::Numbers { scalar: *x && *y, values: vec![value] })
}

fn reshape<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let zero_copies = op.int("allowzero")?.unwrap_or(0) == 0;
    let target = one(op, inputs, 1)?;
    let Value::Numbers { scalar: false, values: target } = target else { return refuse(op, "sizes", target) };
    match one(op, inputs, 0)? {
        Value::Zeros(zeros) => zeros.reshape(target, zero_copies).map(Value::Zeros).map_err(|why| op.fail(why)),
        Value::Numbers { values, .. } => {
            let scalar = target.is_empty() && values.len() == 1;
            let fits = matches!(target[..], [Dim::Known(n)] if n == -1 || n == values.len() as i64);
            match scalar || fits {
                true => Ok(Value::Numbers { scalar, values: values.clone() }),
                false => Err(op.fail(format!("{} sizes don't become {target:?}", values.len()))),
            }
        }
        Value::Data(data) if target.len() <= 6 && data.axes.len() <= 6 => {
            let reshaped = data.reshape(target, zero_copies).map(Value::Data);
            reshaped.ok_or_else(|| op.fail(format!("{:?} to {target:?} is more than merging axes", data.shape())))
        }
        other => refuse(op, "data of up to 6 axes or sizes", other),
    }
}

fn transpose<'a>(op: &mut Op<'a>, inputs: Inputs<'_, 'a>) -> Result<Value<'a>> {
    let value = one(op, inputs, 0)?;
    let perm = op.ints("perm")?;
    let data = data(op, value, perm.map_or(0, <[i64]>::len))?;
    let rank = data.axes.len();
    let perm = match perm {
        Some(perm) => perm.iter().map(|&k| axis(op, k, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(op.fail(format!("attribute `perm`: expected an order of {rank} axes, got {perm:?}")));
    }
    Ok(Value::Data(Data { axes: perm.iter().map(|&k| data.axes[k].clone()).collect(), ..data }))
}

/// Does nothing outside training; becomes the model's dropout where it stands between two layers.
fn dropout<'a>(op: &mut Op<'a>, opset: i64, inputs: Inputs<'_, 'a>, dir: Option<&Path>) -> Result<Value<'a>> {
    let ratio = if opset < 12 {
        op.float("ratio")?
    } else {
        op.int("seed")?;
        match inputs.get(1).copied().flatten() {
            Some(Value::Constant(t) | Value::Zeros(Zeros { tensor: Some(t), .. })) => {
                let ratio = tensor::floats(t, dir)?;
                let one = ratio.first().copied().filter(|_| ratio.ndim() == 0);
                Some(one.ok_or_else(|| op.fail(format!("ratio: expected a scalar, got shape {:?}", ratio.shape())))?)
            }
            None => None,
            Some(other) => return refuse(op, "a constant ratio", other),
        }
    };
    let training = inputs.get(2).copied().flatten();
    if training.is_some_and(|value| !matches!(value, Value::Constant(t) if tensor::is_false(t))) {
        return Err(op.fail("`training_mode` is given; expected a model for inference"));
    }
    let mut out = data(op, one(op, inputs, 0)?, 0)?;
    if out.dropout.is_some() || !matches!(out.source, Source::Sequence(_)) {
        return Err(op.fail("expected one dropout between two layers"));
    }
    out.dropout = Some(ratio.unwrap_or(0.5));
    Ok(Value::Data(out))
}
