//! LSTM inference, streaming and training on any GPU through wgpu: Vulkan, Metal, DirectX 12 and WebGPU. Results are
//! bit-identical to those of the CPU backend.
//!
//! ```no_run
//! use lstm_wgpu::{Input, Lstm, LstmConfig, Wgpu, ndarray::Array3};
//!
//! let gpu = Wgpu::new()?; // in a browser: Wgpu::new_async().await?
//! println!("{}: {}", gpu.adapter().name, gpu.probe());
//! let lstm = Lstm::random(&gpu, LstmConfig::new(40, 128), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 40)); // batch, steps, features
//! let (y, state) = lstm.forward(Input::from(&x).lengths(&[7, 4]))?; // the CPU's bits
//! # Ok::<(), lstm_wgpu::Error>(())
//! ```
//!
//! Where to start:
//!
//! - [`Lstm`] runs sequences of any lengths, and [`Stream`] one time step per call;
//! - [`Model`] is a whole network, which [`formats::open_model`] reads from files of PyTorch, Keras, ONNX and others;
//! - [`StateDict`] and [`StateDictWriter`] load and save weights with PyTorch's names;
//! - [`train::Trainer`] and [`train::ModelTrainer`] train; [`Tape`] gives the gradients for a loop of your own.
//!
//! This crate re-exports everything of `lstm-core`, so a program depends on this crate alone. `docs/wgpu.md` in the
//! repository says which adapters have been tested, and `docs/cookbook.md` has complete programs.
//!
//! WGSL does not fully specify how floats are rounded. Therefore opening an adapter compares its results with the
//! specification. If the adapter's `fma` rounds twice, it is emulated. See [`WgpuBuilder`] and [`Probe`].
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
mod device;
mod memory;
mod pass;
mod primitives;
mod shader;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod testing;

pub use backend::Wgpu;
#[cfg(not(target_arch = "wasm32"))]
pub use device::adapters;
pub use device::{FloatBehavior, Fma, Mode, Probe, WgpuBuilder, is_software};
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
pub use memory::Tensor;
pub use pass::{Layer, Trace, WgpuStream};
pub use wgpu;
