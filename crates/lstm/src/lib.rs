//! LSTM inference, streaming and training on a CPU or GPU that is chosen at run time. Results are bit-identical on
//! every exact device.
//!
//! ```
//! # #[cfg(feature = "cpu")] fn main() -> Result<(), lstm::Error> {
//! use lstm::{Device, Lstm, LstmConfig, ndarray::Array3};
//!
//! let device = Device::open("auto")?; // a GPU if there is one, else the CPU
//! for skipped in device.skipped() {
//!     eprintln!("not used: {skipped}");
//! }
//! let lstm = Lstm::random(&device, LstmConfig::new(3, 5), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//! let (y, state) = lstm.forward(&x)?;
//! assert_eq!((y.dim(), state.c.dim()), ((2, 7, 5), (1, 2, 5)));
//! # Ok(()) }
//! # #[cfg(not(feature = "cpu"))] fn main() {}
//! ```
//!
//! [`Device`] is the backend of programs that do not know at build time where they will run. It is one of the backends
//! in this build, each of which is a feature: `cpu` (default), `wgpu` and `cuda`. The feature `formats` (default) reads
//! and writes files of other programs.
//!
//! Where to start:
//!
//! - [`Lstm`] runs sequences of any lengths, and [`Stream`] one time step per call;
//! - [`Model`] is a whole network, which [`formats::open_model`] reads from files of PyTorch, Keras, ONNX and others;
//! - [`StateDict`] and [`StateDictWriter`] load and save weights with PyTorch's names;
//! - [`train::Trainer`] and [`train::ModelTrainer`] train; [`Tape`] gives the gradients for a loop of your own.
//!
//! In the repository, `docs/cookbook.md` has complete programs, and `docs/from-pytorch.md` shows PyTorch and this library
//! side by side.
//!
//! This crate re-exports everything of `lstm-core`, the formats, and the backends' own types, such as [`Cpu`]: a
//! program that always runs on one backend can use it without [`Device`].

#![deny(unsafe_code)]
#![cfg_attr(
    not(any(feature = "cpu", feature = "wgpu", feature = "cuda")),
    allow(unused, unreachable_code, reason = "without a backend, no device exists")
)]

mod backends;
mod device;

pub use backends::{BACKENDS, BackendInfo};
pub use device::{
    Device, DeviceBuilder, DeviceLayer, DeviceLinear, DevicePlan, DeviceStream, DeviceTensor, DeviceTrace, Opened,
    Skipped,
};
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
#[cfg(feature = "cpu")]
pub use lstm_cpu::{Cpu, CpuBuilder, Isa};
#[cfg(feature = "cuda")]
pub use lstm_cuda::{Cuda, CudaBuilder, KernelLimits};
#[cfg(any(feature = "onnx", feature = "audio", feature = "keras", feature = "pytorch"))]
pub use lstm_formats as formats;
#[cfg(feature = "onnx")]
pub use lstm_formats::{OnnxArray, OnnxGraph, OnnxModel, OnnxWriter};
#[cfg(all(feature = "wgpu", not(target_arch = "wasm32")))]
pub use lstm_wgpu::adapters;
#[cfg(feature = "wgpu")]
pub use lstm_wgpu::{FloatBehavior, Fma, Mode, Probe, Wgpu, WgpuBuilder, is_software, wgpu};
