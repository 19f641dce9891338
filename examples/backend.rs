//! What the examples compute on.

use clap::ValueEnum;

/// The backends that this program was built with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BackendName {
    /// The CPU, with all its threads
    Cpu,
    /// The fastest GPU that wgpu finds
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// The first NVIDIA GPU
    #[cfg(feature = "cuda")]
    Cuda,
    /// The kernels for NVIDIA GPUs, on the CPU: for tests, and slow
    #[cfg(feature = "cuda-host")]
    CudaHost,
}

/// A result, computed by `$run` with the backend of that name as `$backend`, or the error of opening it.
macro_rules! on {
    ($name:expr, $backend:ident => $run:expr) => {
        match $name {
            $crate::backend::BackendName::Cpu => {
                let $backend = lstm_cpu::Cpu::new();
                $run
            }
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendName::Wgpu => {
                lstm_wgpu::Wgpu::blocking().map_err(From::from).and_then(|$backend| $run)
            }
            #[cfg(feature = "cuda")]
            $crate::backend::BackendName::Cuda => lstm_cuda::Cuda::new(0).map_err(From::from).and_then(|$backend| $run),
            #[cfg(feature = "cuda-host")]
            $crate::backend::BackendName::CudaHost => {
                lstm_cuda_sim::Host::builder().build().map_err(From::from).and_then(|$backend| $run)
            }
        }
    };
}
pub(crate) use on;
