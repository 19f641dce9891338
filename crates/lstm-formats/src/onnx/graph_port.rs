//! Graph inputs and outputs: the meaning of their axes, and the permutation of arrays between the layout of the graph
//! and the layout of this library.

use std::ops::Range;

use ndarray::{ArrayD, IxDyn};

use super::{
    node::NodeReader,
    value::{Source, TensorView},
};
use lstm_core::{Error, Result};

/// The meaning of an axis of a graph input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphAxis {
    /// Time steps.
    Steps,
    /// Sequences of the batch.
    Batch,
    /// Layers, and within a layer its directions: the first axis of a [`HostState`](lstm_core::HostState).
    Layers,
    /// Directions of the last layer.
    Directions,
    /// Features of an input, of the output of one direction, or of a state.
    Features,
}

/// What a graph input or output holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GraphPortKind {
    /// The input sequences.
    #[default]
    Input,
    /// The output sequences of the last layer, ONNX's `Y`.
    Sequence,
    /// The initial hidden state `h` of layers (an input), or their final one (an output).
    H,
    /// The initial cell state `c` of layers (an input), or their final one (an output).
    C,
}

/// A graph input or output that holds floats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GraphPort {
    /// Name of the input or output.
    pub name: String,
    /// What the input or output holds.
    pub kind: GraphPortKind,
    /// For a state, the rows of a [`HostState`](lstm_core::HostState) that the input or output holds; each row belongs
    /// to one layer and direction. For an output sequence, the directions of the last layer that it holds.
    pub rows: Range<usize>,
    /// For an output that holds a single time step, the index of that step, negative if counted from the end. Otherwise
    /// `None`.
    pub step: Option<i64>,
    /// For each axis of the array, what it contains: one meaning, or several if axes were merged by a reshape, the
    /// slowest varying first. An axis with an empty list has size 1.
    pub axes: Vec<Vec<GraphAxis>>,
}

impl GraphPort {
    /// The graph input that `view` refers to. `axis_meanings` are the meanings of the three axes of the view.
    pub(crate) fn from_view(
        node: &NodeReader<'_>,
        view: &TensorView<'_>,
        axis_meanings: [GraphAxis; 3],
    ) -> Result<GraphPort> {
        let Source::Input(name) = view.source else { return Err(node.error("expected an input of the graph")) };
        let mut axes = vec![Vec::new(); view.source_dims.len()];
        for (axis, meaning) in view.axes.iter().zip(axis_meanings) {
            match axis[..] {
                [] => {}
                [source_axis] => axes[source_axis].push(meaning),
                _ => return Err(node.error(format!("merged axes of the input `{name}` are not supported"))),
            }
        }
        Ok(GraphPort { name: name.to_owned(), axes, ..GraphPort::default() })
    }

    /// Permutes an input array from the layout of the graph to the axes `to_axes`.
    pub(crate) fn permute_input(&self, array: ArrayD<f32>, to_axes: &[GraphAxis]) -> Result<ArrayD<f32>> {
        let shape_error = |got: &[usize]| {
            Error::shape(format!("onnx input `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        if shape.len() != self.axes.len() || self.axes.iter().zip(&shape).any(|(axis, &n)| axis.is_empty() && n != 1) {
            return Err(shape_error(&shape));
        }
        // Inputs have no merged axes.
        let size = |meaning| self.axes.iter().position(|axis| axis[..] == [meaning]).map_or(1, |k| shape[k]);
        let present_axes: Vec<GraphAxis> = self.axes.concat();
        let missing_axes = to_axes.iter().copied().filter(|meaning| !present_axes.contains(meaning));
        let order: Vec<GraphAxis> = present_axes.iter().copied().chain(missing_axes).collect();
        let sizes: Vec<usize> = order.iter().map(|&meaning| size(meaning)).collect();
        let array = array.as_standard_layout().into_owned();
        let array = array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| shape_error(&shape))?;
        permute(array, &order, to_axes).ok_or_else(|| shape_error(&shape))
    }

    /// Permutes an output array with the axes `from_axes` to the layout of the graph.
    pub(crate) fn permute_output(&self, array: ArrayD<f32>, from_axes: &[GraphAxis]) -> Result<ArrayD<f32>> {
        let shape_error = |got: &[usize]| {
            Error::shape(format!("onnx output `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        let size = |meaning: &GraphAxis| from_axes.iter().position(|f| f == meaning).map_or(1, |k| shape[k]);
        let present_axes: Vec<GraphAxis> = self.axes.concat();
        let missing_axes = from_axes.iter().copied().filter(|meaning| !present_axes.contains(meaning));
        let order: Vec<GraphAxis> = present_axes.iter().copied().chain(missing_axes).collect();
        let array = permute(array, from_axes, &order).ok_or_else(|| shape_error(&shape))?;
        let sizes: Vec<usize> = self.axes.iter().map(|axis| axis.iter().map(size).product()).collect();
        let array = array.as_standard_layout().into_owned();
        array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| shape_error(&shape))
    }
}

/// The kind of a graph output that is computed from `source`, and the meanings of the axes of `source`.
pub(crate) fn output_kind(source: Source<'_>) -> (GraphPortKind, &'static [GraphAxis]) {
    use GraphAxis::{Batch, Directions, Features, Layers, Steps};
    match source {
        Source::Input(_) => (GraphPortKind::Input, &[]),
        Source::Sequence(_) => (GraphPortKind::Sequence, &[Steps, Directions, Batch, Features]),
        Source::FinalH(..) => (GraphPortKind::H, &[Layers, Batch, Features]),
        Source::FinalC(..) => (GraphPortKind::C, &[Layers, Batch, Features]),
    }
}

/// Permutes the axes `from_axes` to the order `to_axes`; `None` unless both list the same axes.
fn permute(array: ArrayD<f32>, from_axes: &[GraphAxis], to_axes: &[GraphAxis]) -> Option<ArrayD<f32>> {
    let order: Vec<usize> =
        to_axes.iter().map(|meaning| from_axes.iter().position(|f| f == meaning)).collect::<Option<_>>()?;
    (order.len() == array.ndim() && order.len() == from_axes.len()).then(|| array.permuted_axes(IxDyn(&order)))
}
