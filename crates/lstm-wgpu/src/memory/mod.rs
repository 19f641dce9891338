//! Device memory: tensors, the pool that recycles their buffers, and transfers to and from the host.

mod device_memory;
mod guards;
mod pool;
mod tensor;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
mod transfer;

pub use tensor::Tensor;

pub(crate) use device_memory::DeviceMemory;
pub(crate) use pool::{BufferPool, lock};
