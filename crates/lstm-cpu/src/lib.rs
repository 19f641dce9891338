//! LSTM inference, streaming and training on the CPU, with AVX-512, AVX2, NEON or plain Rust, chosen at run time, on any
//! number of threads. Results are bit-identical on all of them.
//!
//! ```
//! use lstm_cpu::{Cpu, Input, Lstm, LstmConfig, ndarray::Array3};
//!
//! let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(3, 5), 42)?; // a seed
//! let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//! let (y, state) = lstm.forward(Input::from(&x).lengths(&[7, 4]))?;
//! assert_eq!((y.dim(), state.c.dim()), ((2, 7, 5), (1, 2, 5)));
//!
//! // One time step per call, without allocation, gives the same bits.
//! let (mut stream, mut out) = (lstm.stream(1)?, [0.0; 5]);
//! for t in 0..7 {
//!     stream.step(&[1.0; 3], &mut out)?;
//!     assert_eq!(out[..], y.as_slice().unwrap()[5 * t..][..5]);
//! }
//! # Ok::<(), lstm_cpu::Error>(())
//! ```
//!
//! Where to start:
//!
//! - [`Lstm`] runs sequences of any lengths, and [`Stream`] one time step per call;
//! - [`Model`] is a whole network, which [`formats::open_model`] reads from files of PyTorch, Keras, ONNX and others;
//! - [`StateDict`] and [`StateDictWriter`] load and save weights with PyTorch's names;
//! - [`train::Trainer`] and [`train::ModelTrainer`] train; [`Tape`] gives the gradients for a loop of your own.
//!
//! In the repository, `docs/cookbook.md` has complete programs, and `docs/from-pytorch.md` shows PyTorch and this library
//! side by side. This crate re-exports everything in `lstm-core`, so users need no other crate.
//!
//! # Cells
//!
//! A cell can also be run by itself, on matrices of the device:
//!
//! ```
//! use lstm_cpu::{CellKind, Cpu, Init, LstmConfig, MatrixShape, Ops, State, Weights, cell::Cell};
//! let cpu = Cpu::new();
//! let weights = Weights::init(LstmConfig::new(3, 5).cell(CellKind::PeepholeDense), &Init::default(), 42)?;
//! let cell = Cell::load(&cpu, &weights.layers()[0])?;
//! let x = cpu.upload(MatrixShape::new(2, 3), &[0.5; 6])?; // two sequences
//! let zeros = cpu.upload(MatrixShape::new(2, 5), &[0.0; 10])?;
//! let input = cell.input_term(&cpu, &x)?; // bias + W x
//! let state = cell.step(&cpu, input, &State { h: zeros.clone(), c: zeros })?;
//! assert_eq!(state.h.as_slice().len(), 10);
//! # Ok::<(), lstm_cpu::Error>(())
//! ```
//!
//! # Features
//!
//! All are on by default. Without them the crate runs models and computes gradients, with few dependencies.
//!
//! - `safetensors`: [`StateDict`] and [`StateDictWriter`], safetensors files.
//! - `onnx`, `audio`, `keras` and `pytorch`: [`formats`], the files of other programs.
//! - `formats`: all features above.
//! - `train`: [`train`], losses, optimizers and training runs. Its checkpoints need the feature `safetensors`.

mod backend;
mod builder;
mod cpu;
mod kernel;
mod layer;
mod memory;
mod ops;
mod pass;
mod pool;

/// The examples of the README and of the documentation, as tests.
#[cfg(all(doctest, feature = "formats", feature = "train"))]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/formats.md")]
#[doc = include_str!("../../../docs/history.md")]
#[doc = include_str!("../../../docs/from-pytorch.md")]
struct DocumentationTests;

pub use builder::CpuBuilder;
pub use cpu::Cpu;
pub use kernel::isa::Isa;
pub use layer::{CpuLinear, Layer, Plan};
// Everything public in lstm-core, so that users depend on this crate alone. Every backend has the same list.
#[cfg(feature = "train")]
pub use lstm_core::train;
pub use lstm_core::{
    Activation, Arithmetic, Backend, Bias, BidirectionalOutput, CellKind, Checkpointing, ConcatAxis, DeviceMatrix,
    Direction, Dropout, Error, ExecutionPath, FloatEnvironment, GATES, GateActivation, GateActivations, Gradients,
    HostState, Init, InitKind, Input, LayerGradients, LayerOutput, LayerOutputGradients, LayerSpec, LayerWeights,
    Linear, LinearGradients, LinearWeights, Lstm, LstmConfig, MatrixRef, MatrixShape, MaybeSend, MaybeSync, Model,
    ModelGradients, ModelInput, ModelLayer, ModelOutput, ModelStream, ModelTape, ModelTrainOutput, ModelWeights, Ops,
    OutputGradients, Param, Precision, QuantizedMatrix, QuantizedRows, Reference, ReferencePath, Result, Sequence,
    State, Stream, Tape, TrainOutput, WeightGradients, Weights, arithmetic, cell, ndarray, quantized, reference, shape,
    weights,
};
#[cfg(feature = "safetensors")]
pub use lstm_core::{StateDict, StateDictWriter, TensorNames};
#[cfg(any(feature = "onnx", feature = "audio", feature = "keras", feature = "pytorch"))]
pub use lstm_formats as formats;
#[cfg(feature = "onnx")]
pub use lstm_formats::{OnnxArray, OnnxGraph, OnnxModel, OnnxWriter};
pub use memory::tensor::Tensor;
pub use pass::{stream::CpuStream, trace::Trace};
