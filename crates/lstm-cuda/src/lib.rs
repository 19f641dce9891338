//! LSTM inference, streaming and training on NVIDIA GPUs through CUDA. Results are bit-identical to those of every
//! other exact backend.
//!
//! ```
//! use lstm_cuda::{Cuda, Lstm, LstmConfig, ndarray::Array3};
//! let cuda = match Cuda::new() {
//!     Ok(cuda) => cuda,
//!     // The error says whether the driver, the device or NVRTC is missing.
//!     Err(error) => return Ok(println!("{error}")),
//! };
//! let lstm = Lstm::random(&cuda, LstmConfig::new(3, 5), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//! let (y, state) = lstm.forward(&x)?;
//! assert_eq!((y.dim(), state.c.dim()), ((2, 7, 5), (1, 2, 5)));
//! # Ok::<(), lstm_cuda::Error>(())
//! ```
//!
//! Where to start:
//!
//! - [`Lstm`] runs sequences of any lengths, and [`Stream`] one time step per call;
//! - [`Model`] is a whole network, which [`formats::open_model`] reads from files of PyTorch, Keras, ONNX and others;
//! - [`StateDict`] and [`StateDictWriter`] load and save weights with PyTorch's names;
//! - [`train::Trainer`] and [`train::ModelTrainer`] train; [`Tape`] gives the gradients for a loop of your own.
//!
//! This crate re-exports everything of `lstm-core`, so a program depends on this crate alone. `docs/cuda.md` in the
//! repository says what has been tested, and `docs/cookbook.md` has complete programs.
//!
//! # Driver and NVRTC
//!
//! This crate builds on machines without CUDA: the driver and NVRTC are loaded when a device is opened. The kernels are then
//! compiled for the device and cached, in the directory that the environment variable `LSTM_CUDA_CACHE` names, or in
//! `lstm-cuda` in the user's cache directory. If the variable is set but empty, nothing is cached. For machines without
//! NVRTC the kernels can be [compiled elsewhere](kernels::prebuild).
//!
//! # Execution paths
//!
//! A layer runs on one of three execution paths, with bit-identical results. [`Backend::path`] returns the first of
//! them that the layer can use for a batch of one:
//! - `cluster`: one kernel launch for all steps, whose thread block clusters exchange the state through shared memory.
//!   It needs sm_90 or later. It is used for hidden sizes up to about 350, or up to 512 if `persistent` is not
//!   available, but not for layers with a projection, nor for batches that do not fit in the clusters that can be
//!   resident at the same time.
//! - `persistent`: one cooperative launch for all steps, whose blocks keep the recurrent weights in registers. The
//!   weights must fit in the registers: on GPUs with 132 multiprocessors up to a hidden size of 1024, or 2048 with a
//!   projection to at most 512; with 80 multiprocessors up to 800 in the forward pass and 672 in the backward pass. It
//!   is not used for batches of many hundred sequences.
//! - `one kernel per step`, for everything else.
//!
//! # TF32 mode
//!
//! [`CudaBuilder::allow_tf32`] opens a device (sm_80 or later) in a faster mode in which matrix products run on tensor
//! cores. Both operands are rounded to TF32, which has 10 bits of mantissa. A product is thereby off by up to about
//! 2^-10 of the sum of its terms' magnitudes, typically by much less, and the order of summation is up to the device.
//! **Results are neither bit-identical to other devices, nor independent of the batch size and sequence length**:
//! [`Ops::arithmetic`] is [`Arithmetic::Inexact`] with the reason, [`Backend::path`] ends in `products in tf32`, and
//! [`Ops::name`] is `cuda-tf32`. Activations and cells are exact.
//!
//! The products on tensor cores are those over all steps at once (of the input, of the weights' gradients and of the
//! input's gradient), those of the path `one kernel per step`, and [`Ops::gemm`], if they have at least 16 rows, 8
//! columns and a depth of 8. Smaller products, such as a step of fewer than 16 sequences, are exact. Layers that can
//! use `cluster` or `persistent` do so, with exact recurrent products, unless a step has so many multiplications (about
//! 2 million per multiprocessor) that one kernel per step on tensor cores should be faster.
//!
//! # Features
//!
//! All are on by default. Without them the crate runs models and computes gradients, with few dependencies.
//!
//! - `safetensors`: [`StateDict`] and [`StateDictWriter`], safetensors files.
//! - `onnx`, `audio`, `keras` and `pytorch`: [`formats`], the files of other programs.
//! - `formats`: all of these.
//! - `train`: [`train`], losses, optimizers and training runs. Its checkpoints take `safetensors`.
//! - `bindings`: the interface of CUDA 13.0. Without it, a program chooses the version by a feature of the crate
//!   `cudarc`; otherwise it is that of the installed CUDA, or the latest that `cudarc` has.

mod backend;
mod builder;
mod device;
mod driver;
pub mod kernels;
mod launch;
mod layer;
mod self_test;
mod sequence;
mod stream;
mod tensor;

pub use backend::CudaBackend;
pub use builder::{Cuda, CudaBuilder, KernelLimits};
pub use device::CudaDriver;
#[doc(hidden)]
pub use driver::{Address, Driver, Launch};
pub use layer::{Layer, Plan};
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
pub use sequence::Trace;
pub use stream::CudaStream;
pub use tensor::Tensor;
