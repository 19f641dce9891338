//! Operators that move elements, and arithmetic on known numbers. The sizes of all tensors are known here.

use std::path::Path;

use half::{bf16, f16};
use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use super::{
    data::{Budget, Data, Elements, Label, Shared, is_float_type, is_int_type, map_elements},
    node::NodeReader,
    proto::{BFLOAT16, BOOL, FLOAT, FLOAT16, INT64, type_name},
};
use lstm_core::Result;

/// The inputs of a node; `None` for an omitted one.
pub(crate) type Inputs<'i> = [Option<&'i Data>];

/// The largest number of axes.
const MAX_RANK: usize = 16;

/// The smallest slice end that stands for the end of the axis, whatever its size. Exporters write the largest INT32 or
/// INT64 for it.
pub(crate) const OPEN_SLICE_END: i64 = i32::MAX as i64;

/// Reads input `k`, which must be present.
fn required<'i>(node: &NodeReader<'_>, inputs: &Inputs<'i>, k: usize) -> Result<&'i Data> {
    inputs.get(k).copied().flatten().ok_or_else(|| node.error(format!("input {k} is missing")))
}

/// Reads input `k`, which must be known integers if it is present.
fn optional_ints(node: &NodeReader<'_>, inputs: &Inputs<'_>, k: usize) -> Result<Option<Vec<i64>>> {
    let Some(data) = inputs.get(k).copied().flatten() else { return Ok(None) };
    let ints = data.as_ints().filter(|ints| ints.ndim() <= 1 && ints.len() <= 1 << 16);
    let error = || node.error(format!("input {k}: expected a vector of constant integers"));
    Ok(Some(ints.ok_or_else(error)?.iter().copied().collect()))
}

/// Reads input `k`, which must be known integers.
fn required_ints(node: &NodeReader<'_>, inputs: &Inputs<'_>, k: usize) -> Result<Vec<i64>> {
    optional_ints(node, inputs, k)?.ok_or_else(|| node.error(format!("input {k} is missing")))
}

/// The index of an axis. A negative `axis` is counted from the end.
pub(crate) fn axis_index(node: &NodeReader<'_>, axis: i64, rank: usize) -> Result<usize> {
    let index = usize::try_from(if axis < 0 { axis.saturating_add(rank as i64) } else { axis });
    let index = index.ok().filter(|&axis| axis < rank);
    index.ok_or_else(|| node.error(format!("axis {axis} is out of range for {rank} axes")))
}

/// Sizes of axes, which must not be negative.
fn sizes(node: &NodeReader<'_>, values: &[i64]) -> Result<Vec<usize>> {
    let sizes = values.iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<Vec<_>, _>>();
    let sizes = sizes.ok().filter(|sizes| sizes.len() <= MAX_RANK);
    sizes.ok_or_else(|| node.error(format!("invalid shape {values:?}")))
}

/// The shape to which two arrays of these shapes are broadcast.
pub(crate) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], k: usize| (k + shape.len()).checked_sub(rank).map_or(1, |k| shape[k]);
    let size = |k| match (at(a, k), at(b, k)) {
        (n, m) if n == m || m == 1 => Some(n),
        (1, m) => Some(m),
        _ => None,
    };
    (0..rank).map(size).collect()
}

/// Reads the number of the operator's attribute or input that lists axes: an attribute before opset 13.
fn axes(node: &mut NodeReader<'_>, since: i64, opset: i64, inputs: &Inputs<'_>) -> Result<Option<Vec<i64>>> {
    match opset < since {
        true => Ok(node.ints_attribute("axes")?.map(<[i64]>::to_vec)),
        false => optional_ints(node, inputs, 1),
    }
}

/// Changes the shape of an array.
fn reshaped<T: Clone>(array: &Shared<T>, shape: &[usize]) -> Shared<T> {
    array.to_shape(IxDyn(shape)).expect("the caller compared the numbers of elements").into_owned().into_shared()
}

/// Changes the shape of a tensor, which must keep the number of elements.
fn reshape_to(node: &NodeReader<'_>, data: &Data, shape: &[usize], budget: &mut Budget) -> Result<Data> {
    let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
    if len != Some(data.len()) || shape.len() > MAX_RANK {
        return Err(node.error(format!("cannot reshape {:?} to {shape:?}", data.shape())));
    }
    budget.charge::<Label>(shape).map_err(|why| node.error(why))?;
    Ok(map_elements!(data, array => reshaped(array, shape)))
}

/// The starts, ends, axes and steps of a `Slice`.
pub(crate) struct SliceBounds {
    pub(crate) starts: Vec<i64>,
    pub(crate) ends: Vec<i64>,
    pub(crate) axes: Vec<usize>,
    pub(crate) steps: Vec<i64>,
}

/// Reads the bounds of a `Slice`.
pub(crate) fn slice_bounds(node: &mut NodeReader<'_>, opset: i64, inputs: &Inputs<'_>) -> Result<SliceBounds> {
    let rank = required(node, inputs, 0)?.shape().len();
    let (starts, ends, axes, steps) = if opset < 10 {
        let mut ints = |name| Ok(node.ints_attribute(name)?.map(<[i64]>::to_vec));
        (ints("starts")?.unwrap_or_default(), ints("ends")?.unwrap_or_default(), ints("axes")?, None)
    } else {
        let optional = |k| optional_ints(node, inputs, k);
        (required_ints(node, inputs, 1)?, required_ints(node, inputs, 2)?, optional(3)?, optional(4)?)
    };
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&len| len != starts.len()) || steps.contains(&0) {
        return Err(node.error(format!("invalid bounds {starts:?}, {ends:?}, axes {axes:?}, steps {steps:?}")));
    }
    let axes: Vec<usize> = axes.iter().map(|&axis| axis_index(node, axis, rank)).collect::<Result<_>>()?;
    Ok(SliceBounds { starts, ends, axes, steps })
}

/// `Slice` with any steps.
fn slice(data: &Data, bounds: &SliceBounds) -> Data {
    let mut result = data.clone();
    for (k, &axis) in bounds.axes.iter().enumerate() {
        let n = data.shape()[axis] as i64;
        let (step, from_end) = (bounds.steps[k], |v: i64| if v < 0 { v.saturating_add(n) } else { v });
        let (start, end) = (from_end(bounds.starts[k]), from_end(bounds.ends[k]));
        // With a negative step ONNX goes from `start` down to `end`, exclusive; ndarray takes the range and reverses it.
        let (low, high) = match step > 0 {
            true => (start.clamp(0, n), end.clamp(0, n)),
            false => (end.clamp(-1, n - 1) + 1, start.clamp(-1, n - 1) + 1),
        };
        let range = Slice { start: low as isize, end: Some(high.max(low) as isize), step: step as isize };
        result = map_elements!(&result, array => {
            let mut array = array.clone();
            array.slice_axis_inplace(Axis(axis), range);
            array
        });
    }
    result
}

/// Selects the elements with these indices along an axis.
fn gather<T: Clone>(array: &Shared<T>, axis: usize, indices: &[usize], shape: &[usize]) -> Shared<T> {
    reshaped(&array.select(Axis(axis), indices).into_shared(), shape)
}

/// Joins arrays.
fn concat<T: Clone>(node: &NodeReader<'_>, axis: usize, arrays: &[Shared<T>]) -> Result<Shared<T>> {
    let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
    concatenate(Axis(axis), &views).map(ArrayD::into_shared).map_err(|_| {
        let shapes: Vec<_> = arrays.iter().map(|array| array.shape()).collect();
        node.error(format!("cannot join {shapes:?} along axis {axis}"))
    })
}

/// Repeats a tensor by broadcasting it.
pub(crate) fn broadcast(node: &NodeReader<'_>, data: &Data, shape: &[usize], budget: &mut Budget) -> Result<Data> {
    budget.charge::<Label>(shape).map_err(|why| node.error(why))?;
    let error = || node.error(format!("cannot expand {:?} to {shape:?}", data.shape()));
    Ok(map_elements!(data, array => {
        array.broadcast(IxDyn(shape)).ok_or_else(error)?.to_owned().into_shared()
    }))
}

/// Combines two arrays of the same shape.
fn zip<T: Copy, R>(a: &Shared<T>, b: &Shared<T>, f: impl Fn(T, T) -> R) -> ArrayD<R> {
    let values = a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect();
    ArrayD::from_shape_vec(a.raw_dim(), values).expect("both have the same shape")
}

/// An arithmetic operator or comparison of known numbers; `None` for other operators.
fn binary(node: &NodeReader<'_>, op: &str, a: &Data, b: &Data, budget: &mut Budget) -> Result<Option<Data>> {
    let shape = broadcast_shape(a.shape(), b.shape());
    let shape = shape.ok_or_else(|| node.error(format!("cannot combine {:?} and {:?}", a.shape(), b.shape())))?;
    let (a, b) = (broadcast(node, a, &shape, budget)?, broadcast(node, b, &shape, budget)?);
    let elem_type = a.elem_type;
    let elements = match (&a.elements, &b.elements) {
        (Elements::Floats(a), Elements::Floats(b)) => {
            let compare = |f: fn(f32, f32) -> bool| Elements::Ints(zip(a, b, |a, b| i64::from(f(a, b))).into_shared());
            let combine =
                |f: fn(f32, f32) -> f32| Elements::Floats(zip(a, b, |a, b| round_to(elem_type, f(a, b))).into_shared());
            match op {
                "Add" => combine(|a, b| a + b),
                "Sub" => combine(|a, b| a - b),
                "Mul" => combine(|a, b| a * b),
                "Div" => combine(|a, b| a / b),
                "Max" => combine(f32::max),
                "Min" => combine(f32::min),
                "Pow" => combine(f32::powf),
                "Equal" => compare(|a, b| a == b),
                "Less" => compare(|a, b| a < b),
                "LessOrEqual" => compare(|a, b| a <= b),
                "Greater" => compare(|a, b| a > b),
                "GreaterOrEqual" => compare(|a, b| a >= b),
                _ => return Ok(None),
            }
        }
        (Elements::Ints(a), Elements::Ints(b)) => {
            let compare = |f: fn(i64, i64) -> bool| zip(a, b, |a, b| i64::from(f(a, b)));
            if op == "Div" && b.iter().any(|&b| b == 0) {
                return Err(node.error("division by zero"));
            }
            let result = match op {
                "Add" => zip(a, b, i64::wrapping_add),
                "Sub" => zip(a, b, i64::wrapping_sub),
                "Mul" => zip(a, b, i64::wrapping_mul),
                "Div" => zip(a, b, i64::wrapping_div),
                "Max" => zip(a, b, i64::max),
                "Min" => zip(a, b, i64::min),
                "And" => zip(a, b, |a, b| a & b),
                "Or" => zip(a, b, |a, b| a | b),
                "Xor" => zip(a, b, |a, b| a ^ b),
                "Equal" => compare(|a, b| a == b),
                "Less" => compare(|a, b| a < b),
                "LessOrEqual" => compare(|a, b| a <= b),
                "Greater" => compare(|a, b| a > b),
                "GreaterOrEqual" => compare(|a, b| a >= b),
                _ => return Ok(None),
            };
            Elements::Ints(result.into_shared())
        }
        _ => return Ok(None),
    };
    let elem_type = if COMPARISONS.contains(&op) { BOOL } else { elem_type };
    Ok(Some(Data { elem_type, elements }))
}

/// Operators that compare numbers.
pub(crate) const COMPARISONS: [&str; 5] = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"];

/// Whether a float type holds fewer digits than f32, in which layers compute.
fn is_half_type(elem_type: i32) -> bool {
    [FLOAT16, BFLOAT16].contains(&elem_type)
}

/// Rounds a number to the nearest one of a float type.
fn round_to(elem_type: i32, v: f32) -> f32 {
    match elem_type {
        FLOAT16 => f16::from_f32(v).to_f32(),
        BFLOAT16 => bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// Converts the elements of a tensor to another type; `None` if that could change elements that are not known.
fn cast(data: &Data, to: i32) -> Option<Data> {
    let elements = match &data.elements {
        Elements::Floats(array) if is_half_type(to) => Elements::Floats(array.mapv(|v| round_to(to, v)).into_shared()),
        Elements::Labels(_) if is_half_type(to) && data.elem_type != to => return None,
        Elements::Floats(array) if is_int_type(to) => {
            let convert = |v: f32| if to == BOOL { i64::from(v != 0.0) } else { v as i64 };
            Elements::Ints(array.mapv(convert).into_shared())
        }
        Elements::Ints(array) if is_float_type(to) => {
            Elements::Floats(array.mapv(|v| round_to(to, v as f32)).into_shared())
        }
        Elements::Ints(array) if to == BOOL => Elements::Ints(array.mapv(|v| i64::from(v != 0)).into_shared()),
        // Integers as floats: they may have been floats before, whose fractions were cut off.
        Elements::Labels(_) if to == BOOL || (is_int_type(data.elem_type) && is_float_type(to)) => return None,
        same if is_int_type(to) || is_float_type(to) => same.clone(),
        _ => return None,
    };
    Some(Data { elem_type: to, elements })
}

/// Evaluates a node of an operator that moves elements, or whose inputs are known. Returns `None` for other operators.
pub(crate) fn evaluate(
    node: &mut NodeReader<'_>,
    opset: i64,
    inputs: &Inputs<'_>,
    dir: Option<&Path>,
    budget: &mut Budget,
) -> Result<Option<Vec<Data>>> {
    let op = node.proto.op_type.as_str();
    let data = match op {
        "Constant" => constant(node, dir)?,
        "ConstantOfShape" => {
            let value = node.tensor_attribute("value")?.map(|t| Data::constant(t, dir)).transpose()?;
            let shape = sizes(node, &required_ints(node, inputs, 0)?)?;
            let value = value.unwrap_or_else(|| Data::floats(ArrayD::zeros(IxDyn(&[1]))));
            let value = reshape_to(node, &value, &[], budget)?;
            broadcast(node, &value, &shape, budget)?
        }
        "Identity" => required(node, inputs, 0)?.clone(),
        "Cast" => {
            let to = node.int_attribute("to")?.and_then(|to| i32::try_from(to).ok()).unwrap_or_default();
            node.int_attribute("saturate")?;
            node.string_attribute("round_mode")?;
            let data = required(node, inputs, 0)?;
            let (from, into) = (type_name(data.elem_type), type_name(to));
            let advice = match is_half_type(to) && is_float_type(data.elem_type) {
                true => ", because it rounds what a layer computes; open the FLOAT model that this one was made from",
                false => "",
            };
            cast(data, to)
                .ok_or_else(|| node.error(format!("a cast from {from} to {into} is not supported{advice}")))?
        }
        "Shape" | "Size" => {
            let data = required(node, inputs, 0)?;
            let shape: Vec<i64> = data.shape().iter().map(|&n| n as i64).collect();
            let (start, end) = (node.int_attribute("start")?.unwrap_or(0), node.int_attribute("end")?);
            let n = shape.len() as i64;
            let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
            let (start, end) = (clamp(start), end.map_or(n as usize, clamp));
            match op {
                "Size" => Data::ints(ndarray::arr0(data.len() as i64).into_dyn()),
                _ => Data::ints(ndarray::arr1(&shape[start..end.max(start)]).into_dyn()),
            }
        }
        "Squeeze" => {
            let axes = axes(node, 13, opset, inputs)?;
            let data = required(node, inputs, 0)?;
            let rank = data.shape().len();
            let axes: Vec<usize> = match axes {
                Some(axes) => axes.iter().map(|&axis| axis_index(node, axis, rank)).collect::<Result<_>>()?,
                None => (0..rank).filter(|&axis| data.shape()[axis] == 1).collect(),
            };
            if let Some(axis) = axes.iter().find(|&&axis| data.shape()[axis] != 1) {
                return Err(node.error(format!("axis {axis} does not have size 1")));
            }
            let shape: Vec<usize> = (0..rank).filter(|k| !axes.contains(k)).map(|k| data.shape()[k]).collect();
            reshape_to(node, data, &shape, budget)?
        }
        "Unsqueeze" => {
            let axes = axes(node, 13, opset, inputs)?.ok_or_else(|| node.error("axes are missing"))?;
            let data = required(node, inputs, 0)?;
            let rank = data.shape().len() + axes.len();
            let axes: Vec<usize> = axes.iter().map(|&axis| axis_index(node, axis, rank)).collect::<Result<_>>()?;
            let mut old = data.shape().iter();
            let next = |k: usize| if axes.contains(&k) { Some(1) } else { old.next().copied() };
            let shape: Option<Vec<usize>> = (0..rank).map(next).collect();
            reshape_to(node, data, &shape.ok_or_else(|| node.error("repeated axes"))?, budget)?
        }
        "Reshape" => {
            let allow_zero = node.int_attribute("allowzero")?.unwrap_or(0) != 0;
            let data = required(node, inputs, 0)?;
            let target = required_ints(node, inputs, 1)?;
            let mut shape = Vec::new();
            for (k, &n) in target.iter().enumerate() {
                shape.push(match n {
                    0 if !allow_zero => {
                        let size = data.shape().get(k).copied();
                        size.ok_or_else(|| node.error(format!("size 0 at index {k} copies an axis that is not there")))?
                    }
                    -1 => 1,
                    n => sizes(node, &[n])?[0],
                });
            }
            if let [k] = (0..target.len()).filter(|&k| target[k] == -1).collect::<Vec<_>>()[..] {
                let rest = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n)).unwrap_or(0);
                shape[k] = data.len().checked_div(rest).unwrap_or(0);
            }
            reshape_to(node, data, &shape, budget)?
        }
        "Flatten" => {
            let axis = node.int_attribute("axis")?.unwrap_or(1);
            let data = required(node, inputs, 0)?;
            let rank = data.shape().len();
            let axis = if axis == rank as i64 { rank } else { axis_index(node, axis, rank)? };
            let shape = [data.shape()[..axis].iter().product(), data.shape()[axis..].iter().product()];
            reshape_to(node, data, &shape, budget)?
        }
        "Transpose" => {
            let perm = node.ints_attribute("perm")?.map(<[i64]>::to_vec);
            let data = required(node, inputs, 0)?;
            let rank = data.shape().len();
            let perm = match perm {
                Some(perm) => sizes(node, &perm)?,
                None => (0..rank).rev().collect(),
            };
            if perm.len() != rank || (0..rank).any(|axis| !perm.contains(&axis)) {
                return Err(node.error(format!("attribute `perm`: expected an order of {rank} axes, got {perm:?}")));
            }
            map_elements!(data, array => array.clone().permuted_axes(IxDyn(&perm)))
        }
        "Expand" => {
            let data = required(node, inputs, 0)?;
            let shape = sizes(node, &required_ints(node, inputs, 1)?)?;
            let target = broadcast_shape(data.shape(), &shape);
            let error = || node.error(format!("cannot expand {:?} to {shape:?}", data.shape()));
            broadcast(node, data, &target.ok_or_else(error)?, budget)?
        }
        "Tile" => {
            let mut data = required(node, inputs, 0)?.clone();
            let repeats = sizes(node, &required_ints(node, inputs, 1)?)?;
            if repeats.len() != data.shape().len() {
                return Err(node.error(format!("expected {} repeats, got {repeats:?}", data.shape().len())));
            }
            for (axis, &repeat) in repeats.iter().enumerate() {
                let size = data.shape()[axis];
                let mut shape = data.shape().to_vec();
                shape[axis] = size.saturating_mul(repeat);
                budget.charge::<Label>(&shape).map_err(|why| node.error(why))?;
                let indices: Vec<usize> = (0..shape[axis]).map(|k| k % size.max(1)).collect();
                data = map_elements!(&data, array => gather(array, axis, &indices, &shape));
            }
            data
        }
        "Gather" => {
            let axis = node.int_attribute("axis")?.unwrap_or(0);
            let (data, indices) = (required(node, inputs, 0)?, required(node, inputs, 1)?);
            // Labels as indices are tokens.
            let Some(ints) = indices.as_ints() else { return Ok(None) };
            let axis = axis_index(node, axis, data.shape().len())?;
            let n = data.shape()[axis];
            let shape = [&data.shape()[..axis], ints.shape(), &data.shape()[axis + 1..]].concat();
            budget.charge::<Label>(&shape).map_err(|why| node.error(why))?;
            let index = |&k: &i64| {
                axis_index(node, k, n).map_err(|_| {
                    node.error(format!("index {k} is out of range of axis {axis}, or the file does not fix its size"))
                })
            };
            let ints: Vec<usize> = ints.iter().map(index).collect::<Result<_>>()?;
            map_elements!(data, array => gather(array, axis, &ints, &shape))
        }
        "Slice" => {
            let bounds = slice_bounds(node, opset, inputs)?;
            slice(required(node, inputs, 0)?, &bounds)
        }
        "Split" => return split(node, opset, inputs).map(Some),
        "Concat" => {
            let axis = node.int_attribute("axis")?.unwrap_or(0);
            let parts = (0..inputs.len()).map(|k| required(node, inputs, k)).collect::<Result<Vec<_>>>()?;
            let first = *parts.first().ok_or_else(|| node.error("expected an input"))?;
            let axis = axis_index(node, axis, first.shape().len())?;
            if parts.iter().any(|part| part.shape().len() != first.shape().len()) {
                return Err(node.error("expected inputs with the same number of axes"));
            }
            for part in &parts {
                budget.charge::<Label>(part.shape()).map_err(|why| node.error(why))?;
            }
            let floats = parts.iter().map(|part| part.as_floats().cloned()).collect::<Option<Vec<_>>>();
            let ints = parts.iter().map(|part| part.as_ints().cloned()).collect::<Option<Vec<_>>>();
            let labels = || parts.iter().map(|part| part.to_labels()).collect::<Option<Vec<_>>>();
            let elements = match (floats, ints) {
                (Some(floats), _) => Elements::Floats(concat(node, axis, &floats)?),
                (_, Some(ints)) => Elements::Ints(concat(node, axis, &ints)?),
                _ => {
                    let labels = labels().ok_or_else(|| node.error("cannot join values with constant integers"))?;
                    Elements::Labels(concat(node, axis, &labels)?)
                }
            };
            Data { elem_type: first.elem_type, elements }
        }
        "Where" => {
            let (condition, a, b) =
                (required(node, inputs, 0)?, required(node, inputs, 1)?, required(node, inputs, 2)?);
            let shape = broadcast_shape(condition.shape(), a.shape()).and_then(|s| broadcast_shape(&s, b.shape()));
            let shape = shape.ok_or_else(|| node.error("the shapes do not match"))?;
            let condition = broadcast(node, condition, &shape, budget)?;
            let (a, b) = (broadcast(node, a, &shape, budget)?, broadcast(node, b, &shape, budget)?);
            let Some(condition) = condition.as_ints() else { return Ok(None) };
            fn select<T: Copy>(condition: &Shared<i64>, a: &Shared<T>, b: &Shared<T>) -> Shared<T> {
                let values = condition.iter().zip(a.iter().zip(b)).map(|(&c, (&a, &b))| if c != 0 { a } else { b });
                ArrayD::from_shape_vec(a.raw_dim(), values.collect()).expect("all have the same shape").into_shared()
            }
            let elements = match (&a.elements, &b.elements) {
                (Elements::Floats(a), Elements::Floats(b)) => Elements::Floats(select(condition, a, b)),
                (Elements::Ints(a), Elements::Ints(b)) => Elements::Ints(select(condition, a, b)),
                _ => match (a.to_labels(), b.to_labels()) {
                    (Some(a), Some(b)) => Elements::Labels(select(condition, &a, &b)),
                    _ => return Ok(None),
                },
            };
            Data { elem_type: a.elem_type, elements }
        }
        "Range" => {
            let [start, limit, delta] = [0, 1, 2].map(|k| required_ints(node, inputs, k));
            let (&[start], &[limit], &[delta]) = (&start?[..], &limit?[..], &delta?[..]) else {
                return Err(node.error("expected scalars"));
            };
            if delta == 0 {
                return Err(node.error("expected a step other than 0"));
            }
            let (span, step) = (i128::from(limit) - i128::from(start), i128::from(delta));
            let len = if span.signum() == step.signum() { (span.abs() + step.abs() - 1) / step.abs() } else { 0 };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            budget.charge::<i64>(&[len]).map_err(|why| node.error(why))?;
            Data::ints(
                (0..len as i64)
                    .map(|k| start.wrapping_add(k.wrapping_mul(delta)))
                    .collect::<ndarray::Array1<i64>>()
                    .into_dyn(),
            )
        }
        "ReverseSequence" => {
            let (time, batch) =
                (node.int_attribute("time_axis")?.unwrap_or(0), node.int_attribute("batch_axis")?.unwrap_or(1));
            let (data, lengths) = (required(node, inputs, 0)?, required_ints(node, inputs, 1)?);
            let (time, _) = (axis_index(node, time, data.shape().len())?, axis_index(node, batch, data.shape().len())?);
            if lengths.iter().any(|&len| len != data.shape()[time] as i64) {
                return Err(node.error("expected lengths equal to the number of time steps"));
            }
            map_elements!(data, array => {
                let mut array = array.clone();
                array.invert_axis(Axis(time));
                array
            })
        }
        "ReduceProd" | "ReduceMax" | "ReduceMin" => {
            let keep = node.int_attribute("keepdims")?.unwrap_or(1) != 0;
            let axes = axes(node, 18, opset, inputs)?;
            let data = required(node, inputs, 0)?;
            let Some(ints) = data.as_ints().filter(|ints| ints.ndim() <= 1 && axes.is_none_or(|axes| axes.len() <= 1))
            else {
                return Ok(None);
            };
            let value = match op {
                "ReduceProd" => Some(ints.iter().fold(1i64, |a, &b| a.wrapping_mul(b))),
                "ReduceMax" => ints.iter().copied().max(),
                _ => ints.iter().copied().min(),
            };
            let value = value.ok_or_else(|| node.error("expected elements"))?;
            let shape = vec![1; if keep { ints.ndim() } else { 0 }];
            Data::ints(ArrayD::from_elem(IxDyn(&shape), value))
        }
        "Neg" | "Abs" | "Not" | "Floor" | "Ceil" | "Sqrt" | "Reciprocal" => {
            let data = required(node, inputs, 0)?;
            match (&data.elements, op) {
                (Elements::Floats(array), _) => {
                    let f = match op {
                        "Neg" => |v: f32| -v,
                        "Abs" => f32::abs,
                        "Floor" => f32::floor,
                        "Ceil" => f32::ceil,
                        "Sqrt" => f32::sqrt,
                        _ => f32::recip,
                    };
                    Data { elem_type: data.elem_type, elements: Elements::Floats(array.mapv(f).into_shared()) }
                }
                (Elements::Ints(array), "Neg") => Data::ints(array.mapv(i64::wrapping_neg)),
                (Elements::Ints(array), "Abs") => Data::ints(array.mapv(i64::wrapping_abs)),
                (Elements::Ints(array), "Not") => {
                    Data { elem_type: BOOL, elements: Elements::Ints(array.mapv(|v| i64::from(v == 0)).into_shared()) }
                }
                _ => return Ok(None),
            }
        }
        _ => {
            let [Some(a), Some(b)] = inputs else { return Ok(None) };
            if !a.is_known() || !b.is_known() {
                return Ok(None);
            }
            match binary(node, op, a, b, budget)? {
                Some(data) => data,
                None => return Ok(None),
            }
        }
    };
    Ok(Some(vec![data]))
}

/// `Constant`: its value is in one of several attributes.
fn constant(node: &mut NodeReader<'_>, dir: Option<&Path>) -> Result<Data> {
    if let Some(t) = node.tensor_attribute("value")? {
        return Data::constant(t, dir);
    }
    if let Some(value) = node.float_attribute("value_float")? {
        return Ok(Data::floats(ndarray::arr0(value).into_dyn()));
    }
    if let Some(value) = node.int_attribute("value_int")? {
        return Ok(Data::ints(ndarray::arr0(value).into_dyn()));
    }
    if let Some(values) = node.ints_attribute("value_ints")? {
        return Ok(Data::ints(ndarray::arr1(values).into_dyn()));
    }
    match node.floats_attribute("value_floats")? {
        [] => Err(node.error("expected a constant of numbers")),
        values => Ok(Data::floats(ndarray::arr1(values).into_dyn())),
    }
}

/// `Split`: equal parts, or parts of given sizes.
fn split(node: &mut NodeReader<'_>, opset: i64, inputs: &Inputs<'_>) -> Result<Vec<Data>> {
    let axis = node.int_attribute("axis")?.unwrap_or(0);
    let outputs = node.proto.output.len();
    let parts = match opset {
        ..13 => node.ints_attribute("split")?.map(<[i64]>::to_vec),
        _ => optional_ints(node, inputs, 1)?,
    };
    let num_outputs = node.int_attribute("num_outputs")?;
    if num_outputs.is_some_and(|n| usize::try_from(n) != Ok(outputs)) {
        return Err(node.error(format!("attribute `num_outputs`: expected {outputs}, got {num_outputs:?}")));
    }
    let data = required(node, inputs, 0)?;
    let axis = axis_index(node, axis, data.shape().len())?;
    let size = data.shape()[axis];
    let parts = match parts {
        Some(parts) => sizes_of_parts(node, &parts)?,
        None if outputs > 0 && size % outputs == 0 => vec![size / outputs; outputs],
        None => return Err(node.error(format!("cannot split {size} into {outputs} equal parts"))),
    };
    if parts.len() != outputs || parts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(size) {
        return Err(node.error(format!("expected {outputs} sizes that add up to {size}, got {parts:?}")));
    }
    let mut end = 0;
    let part = |&n: &usize| {
        let bounds =
            SliceBounds { starts: vec![end as i64], ends: vec![(end + n) as i64], axes: vec![axis], steps: vec![1] };
        end += n;
        slice(data, &bounds)
    };
    Ok(parts.iter().map(part).collect())
}

/// The sizes of the parts of a `Split`.
fn sizes_of_parts(node: &NodeReader<'_>, parts: &[i64]) -> Result<Vec<usize>> {
    let parts = parts.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    parts.ok_or_else(|| node.error("expected sizes that are not negative"))
}

/// The value of a scalar that the user set for a graph input of this type.
pub(crate) fn scalar(elem_type: i32, shape: &[usize], value: f64) -> Option<Data> {
    let shape = IxDyn(shape);
    match elem_type {
        _ if is_int_type(elem_type) && value.fract() == 0.0 => {
            Some(Data { elem_type, ..Data::ints(ArrayD::from_elem(shape, value as i64)) })
        }
        _ if is_float_type(elem_type) => {
            Some(Data { elem_type, ..Data::floats(ArrayD::from_elem(shape, value as f32)) })
        }
        FLOAT | INT64 => None,
        _ => None,
    }
}
