//! Reads and writes model files of other programs.
//!
//! | module | format | feature |
//! |---|---|---|
//! | [`onnx`] | ONNX files with `LSTM` nodes: reads and writes | `onnx` |
//! | [`rtneural`] | RTNeural's JSON files: reads | `rtneural` |
//!
//! Both features are on by default. [`lstm_core::StateDict`] reads safetensors files with PyTorch's tensor names.
//!
//! The backend crates, such as `lstm-cpu`, re-export this crate by their default feature `formats`.

#![deny(unsafe_code)]

mod detect;
#[cfg(feature = "onnx")]
pub mod onnx;
mod open;
#[cfg(feature = "pytorch")]
mod pytorch;
#[cfg(feature = "rtneural")]
pub mod rtneural;
#[cfg(feature = "safetensors")]
mod state_dict;

pub use detect::detect;
#[cfg(feature = "onnx")]
pub use onnx::{OnnxInputs, OnnxLstm, OnnxModel, OnnxWriter};
pub use open::{Format, ModelFile, OpenOptions, open};
#[cfg(feature = "rtneural")]
pub use rtneural::RtNeural;
