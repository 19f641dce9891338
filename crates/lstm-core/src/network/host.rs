//! What the host computes around the layers: the gains, the skip connection and the softmax at the end.

use crate::network::{
    Activation,
    weights::{ModelLayer, ModelWeights},
};

impl ModelWeights {
    /// The softmax function at the end of the model, if it has one.
    pub(super) fn softmax(&self) -> Option<Activation> {
        match self.layers().last() {
            Some(ModelLayer::Activation(activation)) if activation.is_softmax() => Some(*activation),
            _ => None,
        }
    }

    /// Computes the model's output of one time step from the output `y` of its layers and the input `x` of this time
    /// step: the skip connection and the output gain.
    pub(super) fn add_skip_and_gain<'a>(&self, y: &mut [f32], x: impl IntoIterator<Item = &'a f32>) {
        if self.skip() {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += self.input_gain() * x);
        }
        if self.output_gain() != 1.0 {
            y.iter_mut().for_each(|y| *y *= self.output_gain());
        }
    }
}
