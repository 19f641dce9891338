//! Reads and writes the models of other programs.
//!
//! | module | format | feature |
//! |---|---|---|
//! | [`onnx`] | ONNX files with `LSTM` nodes, read and written | `onnx` |
//! | [`rtneural`] | RTNeural's JSON files, read | `rtneural` |
//!
//! Both features are on by default. Safetensors files with PyTorch's tensor names are read and written by
//! [`lstm_core::StateDict`].
//!
//! Users of a backend crate such as `lstm-cpu` do not need this crate: its feature `formats`, on by default, re-exports
//! everything here.

#![deny(unsafe_code)]

#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "rtneural")]
pub mod rtneural;

#[cfg(feature = "onnx")]
pub use onnx::{OnnxInputs, OnnxLstm, OnnxModel, OnnxWriter};
#[cfg(feature = "rtneural")]
pub use rtneural::RtNeural;
