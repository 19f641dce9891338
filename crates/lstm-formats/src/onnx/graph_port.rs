//! Graph inputs and outputs: the meaning of their axes, and permuting arrays between the layout of the graph and the
//! layout of this library.

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
    /// Initial or final `h` of layers.
    H,
    /// Initial or final `c` of layers.
    C,
}

/// A graph input or output that holds floats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphPort {
    /// Name of the input or output.
    pub name: String,
    /// What the input or output holds.
    pub kind: GraphPortKind,
    /// For a state, the rows of a [`HostState`](lstm_core::HostState), one for each layer and direction. For an output
    /// sequence, the directions of the last layer.
    pub rows: Range<usize>,
    /// For an output sequence, its only time step, negative if counted from the end; `None` for all steps.
    pub step: Option<i64>,
    /// For each axis of the array, what it contains: one meaning, or several if axes were merged by a reshape, the
    /// slowest varying first. An axis with an empty list has size 1.
    pub axes: Vec<Vec<GraphAxis>>,
}

impl GraphPort {
    /// The graph input that `view` refers to. `meanings` are the meanings of the three axes of the view.
    pub(crate) fn input(node: &NodeReader<'_>, view: &TensorView<'_>, meanings: [GraphAxis; 3]) -> Result<GraphPort> {
        let Source::Input(name) = view.source else { return Err(node.error("expected an input of the graph")) };
        let mut axes = vec![Vec::new(); view.source_dims.len()];
        for (axis, meaning) in view.axes.iter().zip(meanings) {
            match axis[..] {
                [] => {}
                [source_axis] => axes[source_axis].push(meaning),
                _ => return Err(node.error(format!("merged axes of the input `{name}` are not supported"))),
            }
        }
        Ok(GraphPort { name: name.to_owned(), axes, ..GraphPort::default() })
    }

    /// Permutes an input array from the layout of the graph to the axes `to`.
    pub(crate) fn permute_input(&self, array: ArrayD<f32>, to: &[GraphAxis]) -> Result<ArrayD<f32>> {
        let mismatch = |got: &[usize]| {
            Error::shape(format!("onnx input `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        if shape.len() != self.axes.len() || self.axes.iter().zip(&shape).any(|(axis, &n)| axis.is_empty() && n != 1) {
            return Err(mismatch(&shape));
        }
        // Inputs have no merged axes.
        let size = |label| self.axes.iter().position(|axis| axis[..] == [label]).map_or(1, |k| shape[k]);
        let present: Vec<GraphAxis> = self.axes.concat();
        let missing = to.iter().copied().filter(|label| !present.contains(label));
        let order: Vec<GraphAxis> = present.iter().copied().chain(missing).collect();
        let sizes: Vec<usize> = order.iter().map(|&label| size(label)).collect();
        let array = array.as_standard_layout().into_owned();
        let array = array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| mismatch(&shape))?;
        permute(array, &order, to).ok_or_else(|| mismatch(&shape))
    }

    /// Permutes an output array with the axes `from` to the layout of the graph.
    pub(crate) fn permute_output(&self, array: ArrayD<f32>, from: &[GraphAxis]) -> Result<ArrayD<f32>> {
        let mismatch = |got: &[usize]| {
            Error::shape(format!("onnx output `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        let size = |label: &GraphAxis| from.iter().position(|f| f == label).map_or(1, |k| shape[k]);
        let present: Vec<GraphAxis> = self.axes.concat();
        let missing = from.iter().copied().filter(|label| !present.contains(label));
        let order: Vec<GraphAxis> = present.iter().copied().chain(missing).collect();
        let array = permute(array, from, &order).ok_or_else(|| mismatch(&shape))?;
        let sizes: Vec<usize> = self.axes.iter().map(|axis| axis.iter().map(size).product()).collect();
        let array = array.as_standard_layout().into_owned();
        array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| mismatch(&shape))
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

/// Permutes the axes `from` to the order `to`; `None` unless both list the same axes.
fn permute(array: ArrayD<f32>, from: &[GraphAxis], to: &[GraphAxis]) -> Option<ArrayD<f32>> {
    let order: Vec<usize> = to.iter().map(|label| from.iter().position(|f| f == label)).collect::<Option<_>>()?;
    (order.len() == array.ndim() && order.len() == from.len()).then(|| array.permuted_axes(IxDyn(&order)))
}
