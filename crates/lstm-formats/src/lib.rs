//! Opens model files of other programs, whatever their format, and writes ONNX.
//!
//! ```
//! # #[cfg(feature = "pytorch")] fn main() -> Result<(), lstm_core::Error> {
//! use lstm_formats::{OpenOptions, open};
//!
//! let file = open("../../tests/data/models/torch-plain.pt", &OpenOptions::default())?;
//! for layer in file.weights.layers() {
//!     println!("{layer}");
//! }
//! assert_eq!((file.weights.input_size(), file.weights.output_size()), (5, 3));
//! # Ok(()) }
//! # #[cfg(not(feature = "pytorch"))] fn main() {}
//! ```
//!
//! [`open_model`] also loads the model on a device: `let model = open_model(&Cpu::new(), "amp.nam")?;`. The backend
//! crates, such as `lstm-cpu`, re-export this crate as `formats`, by their default feature of this name.
//! `docs/formats.md` in the repository says what is read of each format, and what is refused.
//!
//! | files | feature |
//! |---|---|
//! | PyTorch: `.pt`, `.pth`, `.ckpt`, `.bin` of `torch.save` | `pytorch` |
//! | safetensors with PyTorch's tensor names, or written by this library | `safetensors` |
//! | ONNX with `LSTM` nodes, which [`onnx`] also writes | `onnx` |
//! | Keras 2 and 3: `.keras`, and `.h5` with a whole model | `keras` |
//! | GuitarML, AIDA-X, Neural Amp Modeler, RTNeural: `.json`, `.aidax`, `.nam` | `audio` |
//!
//! All features are on by default. For a single LSTM in a safetensors file there is also [`lstm_core::StateDict`].

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
