//! Opening a device: [`Cuda`], its builder, and limits for tests and measurements.

use lstm_core::Result;

use crate::{
    backend::CudaBackend,
    device::{self, CudaDriver},
};

/// The CUDA backend on an NVIDIA GPU.
pub type Cuda = CudaBackend<CudaDriver>;

/// Limits on which kernels the layers use, for tests and measurements. By default there are no limits. Exact results do
/// not depend on the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct KernelLimits {
    /// Whether layers may use the execution path `cluster`, which runs all steps in one launch on thread block
    /// clusters.
    pub allow_clusters: bool,
    /// Whether layers may use the execution path `persistent`, which runs all steps in one cooperative launch.
    pub allow_persistent: bool,
    /// Upper limit, at least 1, of the number of multiprocessors for which kernels and tile sizes are chosen; `None`
    /// for no limit. With a small limit, the kernels for large problems are used for small problems, too.
    pub max_multiprocessors: Option<usize>,
}

impl KernelLimits {
    /// Sets whether layers may use the execution path `cluster`.
    pub fn allow_clusters(self, allow: bool) -> Self {
        KernelLimits { allow_clusters: allow, ..self }
    }

    /// Sets whether layers may use the execution path `persistent`.
    pub fn allow_persistent(self, allow: bool) -> Self {
        KernelLimits { allow_persistent: allow, ..self }
    }

    /// Sets an upper limit of the number of multiprocessors for which kernels and tile sizes are chosen.
    pub fn max_multiprocessors(self, count: usize) -> Self {
        KernelLimits { max_multiprocessors: Some(count), ..self }
    }
}

impl Default for KernelLimits {
    fn default() -> Self {
        KernelLimits { allow_clusters: true, allow_persistent: true, max_multiprocessors: None }
    }
}

/// Options for opening a device; made by [`Cuda::builder`].
///
/// ```
/// use lstm_cuda::{Cuda, KernelLimits};
/// let limits = KernelLimits::default().allow_clusters(false);
/// match Cuda::builder().ordinal(0).limit_kernels(limits).build() {
///     Ok(cuda) => println!("{}", cuda.device_name()),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct CudaBuilder {
    ordinal: usize,
    allow_tf32: bool,
    limits: KernelLimits,
}

impl CudaBuilder {
    /// Selects the device by its number, counted from 0. Default: 0.
    pub fn ordinal(mut self, ordinal: usize) -> Self {
        self.ordinal = ordinal;
        self
    }

    /// Sets whether matrix products may run on tensor cores in TF32. This is faster but **not exact**: see [TF32
    /// mode](crate#tf32-mode). Needs sm_80 or later. Default: false.
    pub fn allow_tf32(mut self, allow: bool) -> Self {
        self.allow_tf32 = allow;
        self
    }

    /// Limits which kernels the layers use. Default: no limits.
    pub fn limit_kernels(mut self, limits: KernelLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Opens the device, compiles the kernels for it unless compiled kernels are found, and tests its arithmetic. The
    /// result of the test is [`Ops::arithmetic`](crate::Ops::arithmetic).
    ///
    /// All work of the device runs in order on one CUDA stream, which is not used for anything else. Freed memory stays
    /// with the process for later allocations, as in PyTorch. The driver releases it when other allocations in the
    /// process would otherwise fail for lack of memory.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if something is missing (the driver, the device, an architecture of at
    /// least sm_70, or sm_80 with TF32, NVRTC), if a call of the driver fails, if the limit of multiprocessors is 0, or
    /// if products in TF32 have larger errors than rounding their operands to TF32 can cause.
    pub fn build(self) -> Result<Cuda> {
        CudaBackend::open(CudaDriver::open(self.ordinal, self.allow_tf32, self.limits)?)
    }
}

impl Cuda {
    /// Opens the first device with default options: the same as `Cuda::builder().build()`.
    ///
    /// # Errors
    /// As for [`CudaBuilder::build`].
    pub fn new() -> Result<Self> {
        Cuda::builder().build()
    }

    /// Returns the default options for opening a device.
    pub fn builder() -> CudaBuilder {
        CudaBuilder::default()
    }

    /// Returns the names of all devices, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no driver.
    pub fn devices() -> Result<Vec<String>> {
        device::devices("cuda")
    }

    /// The device's name and architecture, such as `NVIDIA H100, sm_90`.
    pub fn device_name(&self) -> &str {
        self.driver.label()
    }

    /// Waits until all enqueued work has finished.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if work failed since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}
