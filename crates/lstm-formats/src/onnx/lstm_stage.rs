//! An LSTM layer as a stage of a chain.

use lstm_core::GateActivations;
use ndarray::{Array2, ArrayD};

/// The lengths of the sequences.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lengths {
    /// All sequences are as long as the input.
    Full,
    Constant(Vec<usize>),
    /// A graph input, by index.
    Input(usize),
}

/// An element of an initial state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StateElement {
    Constant(f32),
    /// The element of a graph input. In the input, `block` elements of each sequence are adjacent; `index` counts the
    /// elements of one sequence.
    Input {
        input: usize,
        block: usize,
        index: usize,
    },
}

/// The initial `h` or `c` of one direction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// The same for all sequences, for each unit.
    Shared(Vec<StateElement>),
    /// Constants for each sequence and unit.
    PerSequence(Array2<f32>),
}

impl State {
    /// A state of zeros.
    pub(crate) fn zeros(hidden: usize) -> Self {
        State::Shared(vec![StateElement::Constant(0.0); hidden])
    }
}

/// One direction of an LSTM layer.
#[derive(Clone, Debug)]
pub(crate) struct LstmDirection {
    /// Whether it runs from the last time step of the input to the first.
    pub(crate) reverse: bool,
    /// The features of the stage before it that it reads.
    pub(crate) columns: Vec<usize>,
    /// `W`, one column for each of these features, then the other parameters in the order of
    /// [`LayerSpec::params`](lstm_core::LayerSpec::params).
    pub(crate) weight_ih: Array2<f32>,
    pub(crate) params: Vec<ArrayD<f32>>,
    /// The initial `h` and `c`.
    pub(crate) states: [State; 2],
}

/// An LSTM layer: one node, or two that are its directions.
#[derive(Clone, Debug)]
pub(crate) struct LstmStage {
    /// The name of the node, or of the first of two.
    pub(crate) name: String,
    pub(crate) hidden: usize,
    pub(crate) attributes: Attributes,
    pub(crate) has_bias: bool,
    pub(crate) has_peepholes: bool,
    pub(crate) lengths: Lengths,
    pub(crate) directions: Vec<LstmDirection>,
}

impl LstmStage {
    /// Whether all sequences are as long as the input.
    pub(crate) fn is_full_length(&self) -> bool {
        self.lengths == Lengths::Full
    }

    /// Whether the reverse direction comes first.
    fn is_swapped(&self) -> bool {
        self.directions.len() == 2 && self.directions[0].reverse
    }

    /// Index of a feature in the output of the layer.
    pub(crate) fn output_index(&self, feature: usize) -> usize {
        match self.is_swapped() {
            true => (feature + self.hidden) % (2 * self.hidden),
            false => feature,
        }
    }

    /// The directions in the order of the layer: forward, then reverse.
    pub(crate) fn ordered_directions(&self) -> Vec<&LstmDirection> {
        let mut directions: Vec<_> = self.directions.iter().collect();
        if self.is_swapped() {
            directions.reverse();
        }
        directions
    }
}

/// The attributes that all directions share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) clip: Option<f32>,
    /// Whether the input and forget gates are coupled: ONNX's attribute `input_forget`.
    pub(crate) coupled: bool,
    pub(crate) activations: GateActivations,
}
