//! Symbolic values: what is known about the values of a graph without running it.
//!
//! The operators around LSTMs are evaluated on symbolic values. `zeros` and `view` import `dim`; this module imports
//! all three.

mod dim;
mod view;
mod zeros;

use std::path::Path;

pub(crate) use dim::{Dim, MAX_RANK, slice_range};
pub(crate) use view::{LayerOutputs, Source, TensorView};
pub(crate) use zeros::Zeros;

use super::{proto::Tensor, tensor};
use lstm_core::Result;

/// What is known about a value of the graph without running it.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    /// A constant tensor that is neither [`Integers`](Value::Integers) nor [`Zeros`](Value::Zeros).
    Constant(&'a Tensor),
    /// A scalar or a short vector of integers.
    Integers { is_scalar: bool, values: Vec<Dim<'a>> },
    /// Floats that are all +0.
    Zeros(Zeros<'a>),
    /// A view of a graph input or an LSTM output.
    View(TensorView<'a>),
    /// The concatenation of graph inputs along an axis.
    Concat { axis: usize, parts: Vec<TensorView<'a>> },
    /// A graph input, or an output of an ignored node, whose number of axes is unknown. The fields are its name and its
    /// ONNX element type, which is `None` for an output of a node.
    UnknownRank(&'a str, Option<i32>),
}

impl<'a> Value<'a> {
    /// Returns the value of an initializer or of a `Constant` node. `dir` is the folder of the files that hold external
    /// tensor data.
    pub(crate) fn constant(t: &'a Tensor, dir: Option<&Path>) -> Result<Self> {
        let shape = tensor::shape(t)?;
        let is_short = shape.len() <= 1 && shape.iter().product::<usize>() <= MAX_RANK;
        if tensor::is_int(t) && is_short {
            let values = tensor::ints(t, dir)?.into_iter().map(Dim::Known).collect();
            return Ok(Value::Integers { is_scalar: shape.is_empty(), values });
        }
        if tensor::is_float(t) && tensor::is_zero(t) && shape.len() <= MAX_RANK {
            // Decoding checks that there are as many elements as the shape says.
            tensor::floats(t, dir)?;
            let shape = Some(t.dims.iter().copied().map(Dim::Known).collect());
            return Ok(Value::Zeros(Zeros { tensor: Some(t), shape }));
        }
        Ok(Value::Constant(t))
    }

    /// Describes the value in words for error messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Constant(tensor) => format!("the constant `{}`", tensor.name),
            Value::Integers { values, .. } => format!("{} integers", values.len()),
            Value::Zeros(_) => "zeros".into(),
            Value::UnknownRank(name, elem_type) => {
                let view = TensorView { elem_type: *elem_type, ..TensorView::new(Source::Input(name), Vec::new()) };
                format!("`{name}`{}, whose shape is not declared", view.type_suffix())
            }
            Value::View(view) => view.describe(),
            Value::Concat { parts, .. } => parts.iter().map(TensorView::describe).collect::<Vec<_>>().join(" and "),
        }
    }

    /// Returns this value as a view. If its number of axes is unknown, the view has `rank` axes; a `rank` of 0 is then
    /// an error.
    pub(crate) fn to_view(&self, rank: usize) -> Result<TensorView<'a>, String> {
        match self {
            Value::View(view) => Ok(view.clone()),
            Value::UnknownRank(name, elem_type) if (1..=MAX_RANK).contains(&rank) => {
                let dims = (0..rank).map(|axis| Dim::Symbolic(name, axis)).collect();
                Ok(TensorView { elem_type: *elem_type, ..TensorView::new(Source::Input(name), dims) })
            }
            other => Err(format!("expected an input of the graph or an output of an LSTM, got {}", other.describe())),
        }
    }

    /// Number of axes; 0 if the number is unknown, or if the value can't be sliced.
    pub(crate) fn rank(&self) -> usize {
        match self {
            Value::View(view) => view.axes.len(),
            Value::Concat { parts, .. } => parts.first().map_or(0, |part| part.axes.len()),
            Value::Zeros(zeros) => zeros.rank().unwrap_or_default(),
            Value::Integers { is_scalar: false, .. } => 1,
            _ => 0,
        }
    }

    /// Slices one axis by Python's `[start:end]`. A slice of concatenated inputs must consist of whole inputs.
    pub(crate) fn slice(&self, axis: usize, start: i64, end: i64) -> Result<Self, String> {
        match self {
            Value::View(view) => view.slice(axis, start, end).map(Value::View),
            Value::Zeros(zeros) => Ok(Value::Zeros(zeros.slice(axis, start, end))),
            Value::Concat { axis: concat_axis, parts } if *concat_axis == axis => {
                let mut total_size = 0;
                let mut bounds = vec![0];
                for part in parts {
                    let size = part.dim(&part.axes[axis]).as_known();
                    let size = size.ok_or("cannot slice a concatenation of inputs whose sizes are not fixed")?;
                    total_size = i64::checked_add(total_size, size).ok_or("the inputs have too many rows")?;
                    bounds.push(total_size);
                }
                let range = slice_range(start, end, total_size as usize);
                let part_index_at = |row: usize| bounds.iter().position(|&bound| bound == row as i64);
                let (Some(first_part), Some(end_part)) = (part_index_at(range.start), part_index_at(range.end)) else {
                    return Err(format!("expected whole inputs, got rows {range:?} of inputs with bounds {bounds:?}"));
                };
                match &parts[first_part..end_part] {
                    [] => Err(format!("expected a non-empty range of the {total_size} rows, got {start}..{end}")),
                    [single] => Ok(Value::View(single.clone())),
                    several => Ok(Value::Concat { axis, parts: several.to_vec() }),
                }
            }
            other => Err(format!("expected sizes, states or LSTM outputs, got {}", other.describe())),
        }
    }

    /// Removes an axis of size 1.
    pub(crate) fn remove_axis(self, axis: usize) -> Result<Self, String> {
        match self {
            Value::View(mut view) if axis < view.axes.len() => {
                if !view.dim(&view.axes[axis]).is_one() {
                    return Err(format!("axis {axis} is not known to have size 1"));
                }
                view.axes.remove(axis);
                Ok(Value::View(view))
            }
            other => Err(format!("expected a value with an axis {axis}, got {}", other.describe())),
        }
    }
}
