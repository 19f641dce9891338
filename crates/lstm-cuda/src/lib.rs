//! LSTMs on NVIDIA GPUs through CUDA.
mod args;
mod backend;
mod backward;
#[cfg(test)]
mod constants;
mod driver;
mod forward;
#[cfg(host_kernels)]
mod host;
mod launches;
mod layer;
mod persistent;
mod stream;
mod tensor;
mod trace;

pub use lstm_core::*;
pub use backend::CudaOn;
#[cfg(host_kernels)]
pub type CudaHost = CudaOn<host::Host>;
#[cfg(host_kernels)]
impl CudaOn<host::Host> { pub fn new() -> Result<Self> { Ok(CudaOn { driver: host::Host::new(0)? }) } }
