//! Operators that make or convert constants and compute sizes: `Constant`, `ConstantOfShape`, `Cast`, `Shape`, integer
//! arithmetic and `Dropout`.

use std::path::Path;

use super::operands::{NodeInputs, input_sizes, optional_input, required_input, unexpected_input};
use crate::onnx::{
    node::NodeReader,
    proto::{DOUBLE, FLOAT, INT32, INT64, type_name},
    tensor,
    value::{Dim, MAX_RANK, Source, TensorView, Value, Zeros, slice_range},
};
use lstm_core::Result;

/// `Constant`: makes a tensor, an integer or a short list of integers.
pub(super) fn constant<'a>(node: &mut NodeReader<'a>, dir: Option<&Path>) -> Result<Value<'a>> {
    if let Some(tensor) = node.tensor_attribute("value")? {
        return Value::constant(tensor, dir);
    }
    if let Some(n) = node.int_attribute("value_int")? {
        return Ok(Value::Integers { is_scalar: true, values: vec![Dim::Known(n)] });
    }
    match node.ints_attribute("value_ints")? {
        Some(values) if values.len() <= MAX_RANK => {
            Ok(Value::Integers { is_scalar: false, values: values.iter().copied().map(Dim::Known).collect() })
        }
        _ => Err(node.error("expected an attribute `value`, `value_int` or `value_ints`")),
    }
}

/// `ConstantOfShape`: fills a tensor with a constant, of which only zero is supported.
pub(super) fn constant_of_shape<'a>(
    node: &mut NodeReader<'a>,
    inputs: NodeInputs<'_, 'a>,
    dir: Option<&Path>,
) -> Result<Value<'a>> {
    let value = node.tensor_attribute("value")?.map(|tensor| Value::constant(tensor, dir)).transpose()?;
    match value {
        None | Some(Value::Zeros(_)) => Ok(Value::Zeros(Zeros::of_shape(input_sizes(inputs, 0).map(<[_]>::to_vec)))),
        Some(other) => unexpected_input(node, "a fill value of zero", &other),
    }
}

/// `Cast`: converts the element type. It is supported where it changes no value, except that all float constants are
/// rounded to f32.
pub(super) fn cast<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let to = node.int_attribute("to")?.unwrap_or_default();
    let value = required_input(node, inputs, 0)?;
    let casts_to_float = [FLOAT, DOUBLE].map(i64::from).contains(&to);
    let casts_to_integer = [INT32, INT64].map(i64::from).contains(&to);
    match value {
        Value::Zeros(_) if casts_to_float => Ok(value.clone()),
        Value::Constant(t) if casts_to_float && tensor::is_float(t) => Ok(value.clone()),
        Value::Integers { .. } if casts_to_integer => Ok(value.clone()),
        // Sequence lengths. A length that does not fit the target type exceeds the number of steps of any input.
        Value::View(TensorView { elem_type: Some(INT32 | INT64), .. }) | Value::UnknownRank(_, Some(INT32 | INT64))
            if casts_to_integer =>
        {
            let mut value = value.clone();
            if let Value::View(TensorView { elem_type, .. }) | Value::UnknownRank(_, elem_type) = &mut value {
                *elem_type = i32::try_from(to).ok();
            }
            Ok(value)
        }
        other => {
            let target_type = i32::try_from(to).map_or_else(|_| format!("element type {to}"), type_name);
            unexpected_input(node, &format!("constants or sequence lengths to cast to {target_type}"), other)
        }
    }
}

/// `Shape`: returns the sizes of the axes of a value, or a range of these sizes.
pub(super) fn shape<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    let (start, end) = (node.int_attribute("start")?, node.int_attribute("end")?);
    let values = match required_input(node, inputs, 0)? {
        Value::View(view) => view.shape(),
        Value::Constant(t) if t.dims.len() <= MAX_RANK => t.dims.iter().copied().map(Dim::Known).collect(),
        other => return unexpected_input(node, "a value with a shape", other),
    };
    let range = slice_range(start.unwrap_or(0), end.unwrap_or(i64::MAX), values.len());
    Ok(Value::Integers { is_scalar: false, values: values[range].to_vec() })
}

/// `Add`, `Sub`, `Mul` and `Div`: supported for two integers. Of symbolic sizes, sums, differences and quotients are
/// [`Dim::Unknown`].
pub(super) fn arithmetic<'a>(node: &mut NodeReader<'a>, inputs: NodeInputs<'_, 'a>) -> Result<Value<'a>> {
    const EXPECTED_OPERANDS: &str = "two integers";
    let (a, b) = (required_input(node, inputs, 0)?, required_input(node, inputs, 1)?);
    let (
        Value::Integers { is_scalar: a_is_scalar, values: a_values },
        Value::Integers { is_scalar: b_is_scalar, values: b_values },
    ) = (a, b)
    else {
        let other = if let Value::Integers { .. } = a { b } else { a };
        return unexpected_input(node, EXPECTED_OPERANDS, other);
    };
    let (&[u], &[v]) = (&a_values[..], &b_values[..]) else { return unexpected_input(node, EXPECTED_OPERANDS, a) };
    let value = match (node.proto.op_type.as_str(), u, v) {
        ("Mul", u, v) => u.multiply(v),
        (op_type, Dim::Known(u), Dim::Known(v)) => {
            let value = match op_type {
                "Add" => u.checked_add(v),
                "Sub" => u.checked_sub(v),
                // Runtimes round quotients of negative numbers in different directions.
                _ => (u >= 0 && v > 0).then(|| u / v),
            };
            value.map_or(Dim::Unknown, Dim::Known)
        }
        _ => Dim::Unknown,
    };
    Ok(Value::Integers { is_scalar: *a_is_scalar && *b_is_scalar, values: vec![value] })
}

/// `Dropout`: returns its input unchanged, as in inference. Between two layers, it sets the dropout probability of the
/// model.
pub(super) fn dropout<'a>(
    node: &mut NodeReader<'a>,
    opset: i64,
    inputs: NodeInputs<'_, 'a>,
    dir: Option<&Path>,
) -> Result<Value<'a>> {
    let ratio = if opset < 12 {
        node.float_attribute("ratio")?
    } else {
        node.int_attribute("seed")?;
        match optional_input(inputs, 1) {
            Some(Value::Constant(t) | Value::Zeros(Zeros { tensor: Some(t), .. })) => {
                let ratio = tensor::floats(t, dir)?;
                let scalar = ratio.first().copied().filter(|_| ratio.ndim() == 0);
                let not_scalar_error =
                    || node.error(format!("ratio: expected a scalar, got shape {:?}", ratio.shape()));
                Some(scalar.ok_or_else(not_scalar_error)?)
            }
            None => None,
            Some(other) => return unexpected_input(node, "a constant ratio", other),
        }
    };
    let training_mode = optional_input(inputs, 2);
    if training_mode.is_some_and(|value| !matches!(value, Value::Constant(t) if tensor::is_false(t))) {
        return Err(node.error("`training_mode` must be false: expected a model for inference"));
    }
    let mut out = required_input(node, inputs, 0)?.to_view(0).map_err(|why| node.error(why))?;
    if out.dropout.is_some() || !matches!(out.source, Source::Sequence(_)) {
        return Err(node.error("expected a single dropout between two layers"));
    }
    out.dropout = Some(ratio.unwrap_or(0.5));
    Ok(Value::View(out))
}
