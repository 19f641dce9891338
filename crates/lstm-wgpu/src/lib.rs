//! LSTMs on any GPU through wgpu: Vulkan, Metal, DirectX 12 and WebGPU, with the bits of the CPU.
//! Everything of `lstm-core` is re-exported: depend on this crate alone.
//!
//! ```no_run
//! use lstm_wgpu::{Input, Lstm, LstmConfig, Wgpu, ndarray::Array3};
//!
//! let gpu = Wgpu::blocking()?; // or Wgpu::new().await?
//! println!("{}: {}", gpu.adapter().name, gpu.probe());
//! let lstm = Lstm::random(&gpu, LstmConfig::new(40, 128), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 40));
//! let (y, state) = lstm.forward(Input::from(&x))?; // the bits of `lstm_cpu::Cpu`
//! # Ok::<(), lstm_wgpu::Error>(())
//! ```
//!
//! What WGSL leaves open is found out on the adapter when it is opened, by comparing results with the specification; where
//! its `fma` does not round once, it is emulated. See [`WgpuBuilder`] and [`Probe`].

mod backend;
mod backward;
mod builder;
mod errors;
mod forward;
mod gpu;
mod guards;
mod layer;
mod limits;
mod parameters;
mod pipeline;
mod pool;
mod primitives;
mod probe;
mod shader;
#[cfg(not(target_arch = "wasm32"))]
mod spirv;
mod stream;
mod tensor;
mod trace;

pub use backend::Wgpu;
pub use builder::WgpuBuilder;
#[cfg(not(target_arch = "wasm32"))]
pub use builder::adapters;
pub use layer::Layer;
pub use lstm_core::*;
#[cfg(feature = "formats")]
pub use lstm_formats::{self as formats, OnnxInputs, OnnxLstm, OnnxModel, OnnxWriter, RtNeural};
pub use probe::{Facts, Probe};
pub use shader::{Fma, Mode};
pub use stream::WgpuStream;
pub use tensor::Tensor;
pub use trace::Trace;
pub use wgpu;
