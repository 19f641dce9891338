//! What the user knows about a model file.

use std::collections::BTreeMap;

use lstm_core::{CellKind, Precision};

/// What the user knows about a file that the file does not say, and the precision that the user wants. The default opens
/// a file that says everything, as it is.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Which LSTM to open, alone, if the file has more than that: the prefix of its tensor names, or the names of its
    /// nodes in an ONNX file. Other prefixes select a part of a state dict, such as one of several models. Empty for the
    /// whole model.
    pub names: Vec<String>,
    /// The layers of a state dict, which has no graph, in order: `"embedding, rec, last, lin:relu, out"`. Each entry is
    /// the prefix of a layer's tensors, with an optional activation after a colon, `last` for the last time step, `h_n`
    /// for the final hidden state, or `dropout(p)`.
    pub layers: Option<String>,
    /// Values of scalar graph inputs of an ONNX file, by name, such as the sample rate `sr`.
    pub set: BTreeMap<String, f64>,
    /// The cell, for tensor names that do not determine it.
    pub cell: Option<CellKind>,
    /// Bound on the inputs of the gate activations, for a state dict, which does not contain it.
    pub clip: Option<f32>,
    /// Whether the input and forget gates are coupled, for a state dict, which does not say so.
    pub coupled: bool,
    /// The precision to which the weights are converted; `None` for that of the file. See
    /// [`ModelWeights::quantize`](lstm_core::ModelWeights::quantize).
    pub precision: Option<Precision>,
}
