//! The user's whole network: a chain of an embedding, LSTM layers, fully connected layers and activations.

mod activation;
mod weights;

pub use activation::Activation;
pub use weights::{ModelLayer, ModelWeights};
