//! The user's whole network: a chain of an embedding, LSTM layers, fully connected layers and activations.

mod activation;
#[cfg(feature = "safetensors")]
mod file;
mod host;
mod input;
mod model;
#[cfg(feature = "train")]
mod parameters;
mod run;
mod stream;
mod tape;
mod weights;

pub use activation::Activation;
pub use input::{ModelInput, ModelOutput};
pub use model::Model;
pub use stream::ModelStream;
pub use tape::{ModelGradients, ModelTape, ModelTrainOutput};
pub use weights::{ModelLayer, ModelWeights};
