//! The parameters of a model in a common order, for the trainer.

use std::sync::Arc;

use crate::{
    error::Result,
    network::weights::{ModelLayer, ModelWeights},
    weights::{Weights, names},
};

const ROW_MAJOR_MESSAGE: &str = "ModelWeights::new makes arrays row-major";

impl ModelWeights {
    /// The name and the shape of each parameter, in the order of [`parameters_mut`](Self::parameters_mut).
    pub(crate) fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::new();
        for layer in self.layers() {
            match layer {
                ModelLayer::Embedding { name, weight } => {
                    shapes.push((format!("{name}.weight"), weight.shape().to_vec()));
                }
                ModelLayer::Lstm { name, weights, initial_state } => {
                    let of_lstm = names::parameter_shapes(weights.config()).into_iter();
                    shapes.extend(of_lstm.map(|(param, shape)| (format!("{name}.{param}"), shape)));
                    for (part, array) in initial_state.iter().flat_map(|s| [("h", &s.h), ("c", &s.c)]) {
                        shapes.push((format!("{name}.initial_{part}"), array.shape().to_vec()));
                    }
                }
                ModelLayer::Linear { name, weight, bias } => {
                    shapes.push((format!("{name}.weight"), weight.shape().to_vec()));
                    shapes.extend(bias.as_ref().map(|bias| (format!("{name}.bias"), bias.shape().to_vec())));
                }
                _ => {}
            }
        }
        shapes
    }

    /// The elements of all parameters, in the order of [`parameters_mut`](Self::parameters_mut).
    pub(crate) fn parameter_values(&self) -> impl Iterator<Item = &f32> {
        self.layers().iter().flat_map(|layer| -> Box<dyn Iterator<Item = &f32>> {
            match layer {
                ModelLayer::Embedding { weight, .. } => Box::new(weight.iter()),
                ModelLayer::Lstm { weights, initial_state, .. } => {
                    let weights = weights.layers().iter().flat_map(|layer| layer.iter().flat_map(|(_, array)| array));
                    Box::new(weights.chain(initial_state.iter().flat_map(|s| s.h.iter().chain(&s.c))))
                }
                ModelLayer::Linear { weight, bias, .. } => Box::new(weight.iter().chain(bias.iter().flatten())),
                _ => Box::new(std::iter::empty()),
            }
        })
    }

    /// The elements of all parameters, layer by layer: the weights, then the model's own initial state. Weights of an
    /// LSTM that are shared with another model are copied first.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the copy does not fit in memory.
    pub(crate) fn parameters_mut(&mut self) -> Result<Vec<&mut [f32]>> {
        let mut parameters = Vec::new();
        for layer in self.layers_mut() {
            match layer {
                ModelLayer::Embedding { weight, .. } => {
                    parameters.push(weight.as_slice_mut().expect(ROW_MAJOR_MESSAGE))
                }
                ModelLayer::Lstm { weights, initial_state, .. } => {
                    if Arc::get_mut(weights).is_none() {
                        *weights = Arc::new(weights.try_clone()?);
                    }
                    let weights = Arc::get_mut(weights).into_iter().flat_map(Weights::iter_mut);
                    parameters.extend(weights.map(|(_, values)| values));
                    let states = initial_state.iter_mut().flat_map(|s| [&mut s.h, &mut s.c]);
                    parameters.extend(states.map(|array| array.as_slice_mut().expect(ROW_MAJOR_MESSAGE)));
                }
                ModelLayer::Linear { weight, bias, .. } => {
                    parameters.push(weight.as_slice_mut().expect(ROW_MAJOR_MESSAGE));
                    parameters.extend(bias.as_mut().map(|bias| bias.as_slice_mut().expect(ROW_MAJOR_MESSAGE)));
                }
                _ => {}
            }
        }
        Ok(parameters)
    }
}
