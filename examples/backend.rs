//! Selection of the backend by a command-line option.

use clap::ValueEnum;

/// The backends in this build.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BackendName {
    /// The CPU, with all cores
    Cpu,
    /// The most powerful GPU that wgpu finds
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// The first NVIDIA GPU
    #[cfg(feature = "cuda")]
    Cuda,
    /// The CUDA kernels run on the CPU; slow, for tests
    #[cfg(feature = "cuda-host")]
    CudaHost,
}

/// Opens the device of the backend `$name` as `$backend` and evaluates `$run`. The value is the result of `$run`, or the error
/// of opening the device.
macro_rules! with_backend {
    ($name:expr, $backend:ident => $run:expr) => {
        match $name {
            $crate::backend::BackendName::Cpu => {
                let $backend = lstm_cpu::Cpu::new();
                $run
            }
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendName::Wgpu => lstm_wgpu::Wgpu::new().map_err(From::from).and_then(|$backend| $run),
            #[cfg(feature = "cuda")]
            $crate::backend::BackendName::Cuda => lstm_cuda::Cuda::new(0).map_err(From::from).and_then(|$backend| $run),
            #[cfg(feature = "cuda-host")]
            $crate::backend::BackendName::CudaHost => {
                lstm_cuda_sim::Host::builder().build().map_err(From::from).and_then(|$backend| $run)
            }
        }
    };
}
pub(crate) use with_backend;
