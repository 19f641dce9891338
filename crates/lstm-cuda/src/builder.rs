//! Opening a device: [`Cuda`], its builder, and limits for tests and measurements.

use lstm_core::Result;

use crate::{
    backend::CudaBackend,
    device::{self, Device},
};

/// An NVIDIA GPU.
pub type Cuda = CudaBackend<Device>;

/// Restricts which kernels layers use. The default restricts nothing. Exact results do not depend on it: it is for
/// tests and measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLimits {
    /// Whether layers may use the execution path `cluster`.
    pub clusters: bool,
    /// Whether layers may use the execution path `persistent`.
    pub persistent: bool,
    /// The largest number of multiprocessors that kernel and tile selection assumes, at least 1. `None` for as many as
    /// the device has. With a small number, small problems use the kernels for large ones.
    pub multiprocessors: Option<usize>,
}

impl Default for KernelLimits {
    fn default() -> Self {
        KernelLimits { clusters: true, persistent: true, multiprocessors: None }
    }
}

/// Options for opening a device; made by [`Cuda::builder`].
///
/// ```
/// use lstm_cuda::{Cuda, KernelLimits};
/// let limits = KernelLimits { clusters: false, ..KernelLimits::default() };
/// match Cuda::builder().ordinal(0).limit_kernels(limits).build() {
///     Ok(cuda) => println!("{}", cuda.device()),
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
    /// The device's number, from 0. Default: 0.
    pub fn ordinal(mut self, ordinal: usize) -> Self {
        self.ordinal = ordinal;
        self
    }

    /// Whether matrix products may run on tensor cores in TF32. This is faster but **not exact**: see
    /// [TF32 mode](crate#tf32-mode). Needs sm_80 or later. Default: false.
    pub fn allow_tf32(mut self, allow: bool) -> Self {
        self.allow_tf32 = allow;
        self
    }

    /// Restricts which kernels layers use. Default: no restrictions.
    pub fn limit_kernels(mut self, limits: KernelLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Opens the device, compiles its kernels unless compiled ones are found, and tests its arithmetic. The result of
    /// the test is [`Ops::arithmetic`](crate::Ops::arithmetic).
    ///
    /// All work of the device runs in order on one CUDA stream, which is not used for anything else. Freed memory stays
    /// with the process for later allocations, as in PyTorch. The driver releases it when other allocations in the
    /// process would otherwise fail for lack of memory.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if something is missing (the driver, the device, an architecture of at
    /// least sm_70, or sm_80 with TF32, NVRTC), if a call of the driver fails, if the limit of multiprocessors is 0, or
    /// if products in TF32 are less accurate than the rounding of their operands explains.
    pub fn build(self) -> Result<Cuda> {
        CudaBackend::open(Device::open(self.ordinal, self.allow_tf32, self.limits)?)
    }
}

impl Cuda {
    /// Opens a device by its number, from 0, with default options: the same as
    /// `Cuda::builder().ordinal(ordinal).build()`.
    ///
    /// # Errors
    /// As for [`CudaBuilder::build`].
    pub fn new(ordinal: usize) -> Result<Self> {
        Cuda::builder().ordinal(ordinal).build()
    }

    /// Options for opening a device.
    pub fn builder() -> CudaBuilder {
        CudaBuilder::default()
    }

    /// The names of all devices, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no driver.
    pub fn devices() -> Result<Vec<String>> {
        device::devices("cuda")
    }

    /// The device's name and architecture, such as `NVIDIA H100, sm_90`.
    pub fn device(&self) -> &str {
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
