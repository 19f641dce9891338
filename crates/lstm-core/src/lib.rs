//! The core of an LSTM library whose results are bit-identical on every device: everything that does not depend on one.
//!
//! **Programs depend on a backend crate instead**, `lstm-cpu`, `lstm-wgpu`, `lstm-cuda` or `lstm`, which re-exports
//! everything here. Depend on this crate for code that works on any of them:
//!
//! ```
//! use lstm_core::ndarray::{Array2, Array3};
//! use lstm_core::{Backend, Input, Lstm, LstmConfig, Result};
//!
//! /// The last hidden states of two sequences of 7 and 4 time steps.
//! fn last_states<B: Backend>(device: &B) -> Result<Array2<f32>> {
//!     let lstm = Lstm::random(device, LstmConfig::new(3, 5).layers(2), 42)?;
//!     let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//!     let (_, state) = lstm.forward(Input::from(&x).lengths(&[7, 4]))?;
//!     state.last(lstm.config())
//! }
//! ```
//!
//! To write a backend, implement [`Ops`], the primitive operations. The marker [`ReferencePath`] then makes it a
//! [`Backend`] for every cell, forward and backward. `CONTRIBUTING.md` shows a complete one.
//!
//! - What users call: [`Lstm`], [`Stream`], which runs one time step per call, and [`Tape`], which computes gradients;
//!   [`Model`], a whole network; [`train`]; [`weights`], also in safetensors files with PyTorch's tensor names.
//! - What a device implements: [`Ops`] and [`Backend`].
//! - What defines all results, to the bit: [`arithmetic`] a single operation, [`cell`] a time step, and
//!   [`mod@reference`] a whole sequence.
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
