//! The parameters of a model in a common order, for the trainer.

use std::sync::Arc;

use crate::{
    network::weights::{ModelLayer, ModelWeights},
    weights::names::pytorch_name,
};

/// One array of parameters: its name in a saved model, its shape and its row-major elements.
pub(crate) type Parameter<'a> = (String, Vec<usize>, &'a mut [f32]);

const ROW_MAJOR_MESSAGE: &str = "ModelWeights::new makes arrays row-major";

impl ModelWeights {
    /// All arrays of parameters, layer by layer: the weight of an embedding; the parameters of each layer and direction
    /// of an LSTM, then `h` and `c` of its own initial state; the weight and the bias of a linear layer.
    pub(crate) fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let mut parameters = Vec::new();
        for layer in self.layers_mut() {
            match layer {
                ModelLayer::Embedding { name, weight } => {
                    let shape = weight.shape().to_vec();
                    let values = weight.as_slice_mut().expect(ROW_MAJOR_MESSAGE);
                    parameters.push((format!("{name}.weight"), shape, values));
                }
                ModelLayer::Lstm { name, weights, initial_state } => {
                    let (specs, directions) = (weights.config().layer_specs(), weights.config().num_directions());
                    let names = specs.iter().enumerate().flat_map(|(k, spec)| {
                        let full_name =
                            |param| format!("{name}.{}", pytorch_name(k / directions, spec.reverse, spec.cell, param));
                        spec.params().into_iter().map(|(param, shape)| (full_name(param), shape)).collect::<Vec<_>>()
                    });
                    let names: Vec<_> = names.collect();
                    let values = Arc::make_mut(weights).iter_mut().map(|(_, values)| values);
                    parameters
                        .extend(names.into_iter().zip(values).map(|((name, shape), values)| (name, shape, values)));
                    for (part, array) in initial_state.iter_mut().flat_map(|s| [("h", &mut s.h), ("c", &mut s.c)]) {
                        let shape = array.shape().to_vec();
                        let values = array.as_slice_mut().expect(ROW_MAJOR_MESSAGE);
                        parameters.push((format!("{name}.initial_{part}"), shape, values));
                    }
                }
                ModelLayer::Linear { name, weight, bias } => {
                    let shape = weight.shape().to_vec();
                    let values = weight.as_slice_mut().expect(ROW_MAJOR_MESSAGE);
                    parameters.push((format!("{name}.weight"), shape, values));
                    if let Some(bias) = bias {
                        let values = bias.as_slice_mut().expect(ROW_MAJOR_MESSAGE);
                        parameters.push((format!("{name}.bias"), vec![values.len()], values));
                    }
                }
                _ => {}
            }
        }
        parameters
    }
}
