//! A simulated GPU for tests of `lstm-cuda` on machines without one. This crate is not published.
//!
//! [`CudaHost`] is the CUDA backend on a simulated device, [`Host`], which runs the CUDA kernels on the CPU. The
//! kernels' own sources are compiled for the CPU, and each CUDA thread is a fiber. This is slow, but the results are
//! bit-identical to those of every other exact backend.
//!
//! ```
//! use lstm_cuda_sim::Host;
//! match Host::builder().cluster_size(2).build() {
//!     Ok(cuda) => println!("{cuda:?}"),
//!     // For example, the CPU has no AVX2.
//!     Err(error) => println!("{error}"),
//! }
//! ```
//!
//! The folder `cpp` also has a simulated NVIDIA driver, a fake NVRTC and definitions of the PTX instructions in C++.
//! The test `driver` builds them as the libraries `libcuda.so` and `libnvrtc.so`, which `lstm_cuda::Cuda` then loads
//! instead of NVIDIA's.

mod builder;
mod host;

pub use builder::{HostBuilder, Schedule};
pub use host::Host;
use lstm_cuda::CudaBackend;

/// The CUDA backend on the simulated device. Its name is `cuda-host`, or `cuda-host-tf32` in TF32 mode.
pub type CudaHost = CudaBackend<Host>;
