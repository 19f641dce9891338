//! How the graph's inputs and outputs lie: which axis holds what, and moving arrays to and from the library's own order.

use std::ops::Range;

use ndarray::{ArrayD, IxDyn};

use super::{
    node::Op,
    value::{Data, Source},
};
use lstm_core::{Error, Result};

/// What an axis of an input or output counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortAxis {
    /// Steps of the sequences.
    Steps,
    /// Sequences of the batch.
    Batch,
    /// Layers, and within a layer its directions: the first axis of a [`HostState`](lstm_core::HostState).
    Layers,
    /// Directions of the last layer.
    Directions,
    /// Features of an input, of one direction's output, or of a state.
    Features,
}

/// What an input or output of the graph is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// The sequences: the graph's input.
    #[default]
    Input,
    /// The last layer's outputs, ONNX's `Y`.
    Sequence,
    /// `h` of layers, initial or final.
    H,
    /// `c` of layers, initial or final.
    C,
}

/// An input or output of the graph that holds floats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: PortKind,
    /// Which rows of a [`HostState`](lstm_core::HostState) it holds, one for each layer and direction; of a sequence, which of
    /// the last layer's directions.
    pub rows: Range<usize>,
    /// Of a sequence, the only step it holds, counted from the end if it is negative; all of them if there is none.
    pub step: Option<i64>,
    /// Its axes, each a product of the named ones, the first counting slowest; one of none has size 1.
    pub axes: Vec<Vec<PortAxis>>,
}

impl Port {
    /// Of a value from outside whose axes, as they are now, have these labels.
    pub(super) fn outside(op: &Op<'_>, data: &Data<'_>, labels: [PortAxis; 3]) -> Result<Port> {
        let Source::Outside(name) = data.source else { return Err(op.fail("expected a value from outside")) };
        let mut axes = vec![Vec::new(); data.atoms.len()];
        for (axis, label) in data.axes.iter().zip(labels) {
            match axis[..] {
                [] => {}
                [atom] => axes[atom].push(label),
                _ => return Err(op.fail(format!("several axes of `{name}` are one here"))),
            }
        }
        Ok(Port { name: name.to_owned(), axes, ..Port::default() })
    }

    /// Moves an array that lies as the file has it to the order `to`, one axis each.
    pub(super) fn take(&self, array: ArrayD<f32>, to: &[PortAxis]) -> Result<ArrayD<f32>> {
        let fail = |got: &[usize]| {
            Error::shape(format!("onnx input `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        if shape.len() != self.axes.len() || self.axes.iter().zip(&shape).any(|(axis, &n)| axis.is_empty() && n != 1) {
            return Err(fail(&shape));
        }
        // An input's axis counts one thing.
        let size = |label| self.axes.iter().position(|axis| axis[..] == [label]).map_or(1, |k| shape[k]);
        let there: Vec<PortAxis> = self.axes.concat();
        let missing = to.iter().copied().filter(|label| !there.contains(label));
        let order: Vec<PortAxis> = there.iter().copied().chain(missing).collect();
        let sizes: Vec<usize> = order.iter().map(|&label| size(label)).collect();
        let array = array.as_standard_layout().into_owned();
        let array = array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| fail(&shape))?;
        permute(array, &order, to).ok_or_else(|| fail(&shape))
    }

    /// Moves an array whose axes are `from` to the file's.
    pub(super) fn give(&self, array: ArrayD<f32>, from: &[PortAxis]) -> Result<ArrayD<f32>> {
        let fail = |got: &[usize]| {
            Error::shape(format!("onnx output `{}`", self.name), format!("axes {:?}", self.axes), format!("{got:?}"))
        };
        let shape = array.shape().to_vec();
        let size = |label: &PortAxis| from.iter().position(|f| f == label).map_or(1, |k| shape[k]);
        let there: Vec<PortAxis> = self.axes.concat();
        let missing = from.iter().copied().filter(|label| !there.contains(label));
        let order: Vec<PortAxis> = there.iter().copied().chain(missing).collect();
        let array = permute(array, from, &order).ok_or_else(|| fail(&shape))?;
        let sizes: Vec<usize> = self.axes.iter().map(|axis| axis.iter().map(size).product()).collect();
        let array = array.as_standard_layout().into_owned();
        array.into_shape_with_order(IxDyn(&sizes)).map_err(|_| fail(&shape))
    }
}

/// What axes of a source count, and what kind of output it is.
pub(super) fn labels(source: Source<'_>) -> (PortKind, &'static [PortAxis]) {
    use PortAxis::{Batch, Directions, Features, Layers, Steps};
    match source {
        Source::Outside(_) => (PortKind::Input, &[]),
        Source::Sequence(_) => (PortKind::Sequence, &[Steps, Directions, Batch, Features]),
        Source::H(..) => (PortKind::H, &[Layers, Batch, Features]),
        Source::C(..) => (PortKind::C, &[Layers, Batch, Features]),
    }
}

/// `None` if the two are not orders of the same axes.
fn permute(array: ArrayD<f32>, from: &[PortAxis], to: &[PortAxis]) -> Option<ArrayD<f32>> {
    let order: Vec<usize> = to.iter().map(|label| from.iter().position(|f| f == label)).collect::<Option<_>>()?;
    (order.len() == array.ndim() && order.len() == from.len()).then(|| array.permuted_axes(IxDyn(&order)))
}
