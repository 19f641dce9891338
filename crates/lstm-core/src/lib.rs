//! LSTMs that give the same bits on every device.
//!
//! This crate holds everything that is not a device: the [`Backend`] trait, the arithmetic that each device must give
//! to the bit ([`arithmetic`]), four cells written once from a backend's primitives ([`cell`]), whole sequences
//! ([`mod@reference`]), the model that users run ([`Lstm`]), streaming ([`Stream`]), gradients ([`Tape`]), training
//! ([`train`]) and weights in PyTorch's and ONNX's files ([`weights`]).
//!
//! Depend on a backend crate such as `lstm-cpu` instead: it re-exports all of this.

#![deny(unsafe_code)]

pub mod arithmetic;
mod backend;
pub mod cell;
mod config;
mod error;
mod model;
pub mod reference;
pub mod train;
pub mod weights;

pub use backend::{
    Arithmetic, Backend, BidirectionalOutput, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, Ops,
    ReferencePath, Sequence, State, WeightGradients,
    shape::{self, ConcatAxis, MatrixRef, MatrixShape},
};
pub use config::{Bias, CellKind, Direction, GATES, LayerSpec, LstmConfig, Param};
pub use error::{Error, Result};
pub use model::{Checkpointing, Gradients, HostState, Input, Lstm, OutputGradients, Stream, Tape, TrainOutput};
pub use reference::Reference;
pub use weights::{
    LayerWeights, Weights,
    init::{Init, InitKind},
    names::TensorNames,
    state_dict::{StateDict, StateDictWriter},
};

pub use ndarray;
