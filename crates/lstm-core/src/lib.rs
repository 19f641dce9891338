//! The core of an LSTM library whose results are bit-identical on every device.
//!
//! **Users depend on a backend crate such as `lstm-cpu`**, which re-exports everything here. This crate holds what does
//! not depend on a device:
//!
//! - the types that users call: [`Lstm`], the model; [`Stream`], which runs one time step per call; [`Tape`], which
//!   computes gradients; and the module [`train`], for training;
//! - [`Model`], a whole network: an embedding, LSTMs, linear layers and activations, with its own stream and tape;
//! - [`weights`]: parameters, and safetensors files with PyTorch's tensor names;
//! - the traits that a device implements: [`Ops`], the primitive operations, and [`Backend`], whole layers;
//! - the definition of all results, to the bit: [`arithmetic`], of one operation; [`cell`], of a time step;
//!   [`mod@reference`], of a whole sequence.
//!
//! The default feature `train` enables [`train`], and the default feature `safetensors` everything that reads and
//! writes safetensors files.

#![deny(unsafe_code)]

mod activation;
pub mod arithmetic;
mod backend;
pub mod cell;
mod config;
mod error;
mod float_environment;
mod memory;
mod model;
mod network;
pub mod quantized;
pub mod reference;
#[cfg(feature = "train")]
pub mod train;
pub mod weights;

pub use backend::{
    Arithmetic, Backend, BidirectionalOutput, DeviceMatrix, ExecutionPath, LayerGradients, LayerOutput,
    LayerOutputGradients, LinearWeights, MaybeSend, MaybeSync, Ops, QuantizedMatrix, ReferencePath, Sequence, State,
    WeightGradients,
    shape::{self, ConcatAxis, MatrixRef, MatrixShape},
};
pub use config::{
    Bias, CellKind, Direction, GATES, GateActivation, GateActivations, LayerSpec, LstmConfig, Param, Precision,
};
pub use error::{Error, Result};
pub use float_environment::FloatEnvironment;
pub use model::{
    Checkpointing, Dropout, Gradients, HostState, Input, Linear, LinearGradients, Lstm, OutputGradients, Stream, Tape,
    TrainOutput,
};
pub use network::{
    Activation, Model, ModelGradients, ModelInput, ModelLayer, ModelOutput, ModelStream, ModelTape, ModelTrainOutput,
    ModelWeights,
};
pub use reference::Reference;
pub use weights::{
    LayerWeights, QuantizedRows, Weights,
    init::{Init, InitKind},
};
#[cfg(feature = "safetensors")]
pub use weights::{
    names::TensorNames,
    state_dict::{StateDict, StateDictWriter},
};

pub use ndarray;
