//! Reads and writes model files of other programs.
//!
//! | module | format | feature |
//! |---|---|---|
//! | `pytorch` | files of `torch.save`: [`open`] reads them | `pytorch` |
//! | `state_dict` | safetensors files with PyTorch's tensor names: [`open`] reads them | `safetensors` |
//! | [`onnx`] | ONNX files with `LSTM` nodes: reads and writes | `onnx` |
//! | `audio` | models of GuitarML, AIDA-X, Neural Amp Modeler and RTNeural: [`open`] reads them | `audio` |
//! | `keras` | Keras models, `.keras` and whole-model `.h5` files: [`open`] reads them | `keras` |
//!
//! All features are on by default. [`lstm_core::StateDict`] reads safetensors files with PyTorch's tensor names.
//!
//! The backend crates, such as `lstm-cpu`, re-export this crate by their default feature `formats`.

#![deny(unsafe_code)]

#[cfg(feature = "audio")]
mod audio;
mod detect;
#[cfg(any(feature = "audio", all(test, feature = "keras")))]
mod evaluate;
mod file;
#[cfg(any(feature = "audio", feature = "keras"))]
mod json;
#[cfg(feature = "keras")]
mod keras;
#[cfg(feature = "onnx")]
pub mod onnx;
mod open;
mod options;
#[cfg(feature = "pytorch")]
mod pytorch;
#[cfg(feature = "safetensors")]
mod state_dict;
#[cfg(all(test, any(feature = "audio", feature = "keras")))]
mod test_files;

pub use detect::detect;
pub use file::{Format, ModelFile};
#[cfg(feature = "onnx")]
pub use onnx::{OnnxArray, OnnxGraph, OnnxModel, OnnxWriter};
pub use open::{open, open_bytes, open_model};
pub use options::OpenOptions;
