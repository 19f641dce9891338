//! The user's whole network: a chain of an embedding, LSTM layers, fully connected layers and activations.

mod activation;
mod host;
mod input;
mod model;
mod run;
mod stream;
mod weights;

pub use activation::Activation;
pub use input::{ModelInput, ModelOutput};
pub use model::Model;
pub use stream::ModelStream;
pub use weights::{ModelLayer, ModelWeights};
