//! Symbolic evaluation of the operators that exporters place between and around LSTMs. They move axes and compute
//! sizes, but no other numbers.
//!
//! `constants`, `axes` and `parts` import `operands`; this module imports all four.

mod axes;
mod constants;
mod operands;
mod parts;

use std::path::Path;

use super::{
    node::NodeReader,
    value::{MAX_RANK, Value},
};
use lstm_core::Result;
use operands::{NodeInputs, required_input};

/// Evaluates a node of any operator but `LSTM`, and returns the values of its outputs. `dir` is the folder of the files
/// that hold external tensor data.
pub(crate) fn evaluate<'a>(
    node: &mut NodeReader<'a>,
    opset: i64,
    inputs: NodeInputs<'_, 'a>,
    dir: Option<&Path>,
) -> Result<Vec<Value<'a>>> {
    let value = match node.proto.op_type.as_str() {
        "Constant" => constants::constant(node, dir)?,
        "ConstantOfShape" => constants::constant_of_shape(node, inputs, dir)?,
        "Cast" => constants::cast(node, inputs)?,
        "Shape" => constants::shape(node, inputs)?,
        "Add" | "Sub" | "Mul" | "Div" => constants::arithmetic(node, inputs)?,
        "Identity" => required_input(node, inputs, 0)?.clone(),
        "Dropout" => constants::dropout(node, opset, inputs, dir)?,
        "Squeeze" => axes::squeeze(node, opset, inputs)?,
        "Unsqueeze" => axes::unsqueeze(node, opset, inputs)?,
        "Reshape" => axes::reshape(node, inputs)?,
        "Transpose" => axes::transpose(node, inputs)?,
        "Expand" => axes::expand(node, inputs)?,
        "Gather" => parts::gather(node, inputs)?,
        "Split" => return parts::split(node, opset, inputs),
        "Slice" => parts::slice(node, opset, inputs)?,
        "Concat" => parts::concat(node, inputs)?,
        _ => return Err(node.error(UNSUPPORTED)),
    };
    if let Value::View(view) = &value
        && view.axes.len() > MAX_RANK
    {
        return Err(node.error(format!("more than {MAX_RANK} axes")));
    }
    Ok(vec![value])
}

/// The text of the error for an operator that can't be evaluated.
pub(crate) const UNSUPPORTED: &str = "this operator is not supported, and ignoring it could change the results";
