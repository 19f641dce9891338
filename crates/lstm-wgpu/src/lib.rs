//! LSTMs on any GPU through wgpu: Vulkan, Metal, DirectX 12 and WebGPU, with the bits of the CPU.
//! Everything of `lstm-core` is re-exported: depend on this crate alone.

mod backend;
mod backward;
mod builder;
mod errors;
mod forward;
mod gpu;
mod layer;
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
pub use probe::{Facts, Probe};
pub use shader::{Fma, Mode};
pub use stream::WgpuStream;
pub use tensor::Tensor;
pub use trace::Trace;
pub use wgpu;
