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

#[cfg(feature = "onnx")]
pub mod onnx;
mod open;
#[cfg(feature = "rtneural")]
pub mod rtneural;

#[cfg(feature = "onnx")]
pub use onnx::{OnnxArray, OnnxGraph, OnnxModel, OnnxWriter};
pub use open::{Format, ModelFile, OpenOptions, detect, open};
#[cfg(feature = "rtneural")]
pub use rtneural::RtNeural;
