//! The input `sequence_lens` of an `LSTM` node.

use super::{
    context::GraphContext,
    node::NodeReader,
    proto::{INT32, type_name},
    tensor,
    value::{Source, TensorView, Value},
};
use lstm_core::Result;

/// Index of `sequence_lens` among the inputs of an `LSTM` node.
const SEQUENCE_LENS_INPUT: usize = 4;

/// Where the lengths of the sequences come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SequenceLengths {
    /// All sequences are as long as the input.
    #[default]
    Full,
    /// A constant in the file, one length per sequence.
    Constant(Vec<usize>),
    /// The graph input of this name.
    Input(String),
}

/// Reads the input `sequence_lens` of an `LSTM` node.
pub(crate) fn read_lengths<'a>(node: &NodeReader<'a>, context: &mut GraphContext<'a>) -> Result<SequenceLengths> {
    let Some(name) = node.input_name(SEQUENCE_LENS_INPUT) else { return Ok(SequenceLengths::Full) };
    let unexpected_error =
        |got: String| node.error(format!("sequence_lens: expected a graph input or constant lengths, got {got}"));
    let values = match context.operand(node, name)? {
        Value::UnknownRank(_, Some(elem_type)) | Value::View(TensorView { elem_type: Some(elem_type), .. })
            if *elem_type != INT32 =>
        {
            let got = format!("`{name}` of {}", type_name(*elem_type));
            return Err(node.error(format!("sequence_lens: expected INT32, got {got}")));
        }
        Value::UnknownRank(name, _) => return Ok(SequenceLengths::Input((*name).to_owned())),
        Value::View(TensorView { source: Source::Input(name), source_dims, axes, row_range: None, .. })
            if source_dims.len() == 1 && axes.len() == 1 =>
        {
            return Ok(SequenceLengths::Input((*name).to_owned()));
        }
        Value::Constant(t) if tensor::is_int(t) && t.dims.len() == 1 => context.constant_ints(node, name)?,
        Value::Integers { is_scalar: false, values } => {
            let known_lengths = values.iter().map(|dim| dim.as_known());
            known_lengths.collect::<Option<Vec<_>>>().ok_or_else(|| unexpected_error("sizes of an input".into()))?
        }
        other => return Err(unexpected_error(other.describe())),
    };
    let lengths = values.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>();
    lengths.map(SequenceLengths::Constant).map_err(|_| unexpected_error(format!("{values:?}")))
}
