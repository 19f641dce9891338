//! LSTMs on NVIDIA GPUs, through CUDA: the same bits as on every other device. Everything of `lstm-core` is re-exported:
//! depend on this crate alone.
//!
//! It builds where no CUDA is installed, and looks for a driver and NVRTC when a device is opened. The kernels are
//! compiled for the device then, and kept: in the directory that `LSTM_CUDA_CACHE` names (nothing: nowhere), else in
//! `lstm-cuda` in the user's cache directory. A machine without NVRTC can have them [built before](kernels::prebuild).
//!
//! ```
//! use lstm_cuda::{Cuda, Lstm, LstmConfig, ndarray::Array3};
//! let cuda = match Cuda::new(0) {
//!     Ok(cuda) => cuda,
//!     // Without a driver, a device or NVRTC it says which of them is missing.
//!     Err(error) => return Ok(println!("{error}")),
//! };
//! let lstm = Lstm::random(&cuda, LstmConfig::new(3, 5), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//! let (y, state) = lstm.forward(&x)?;
//! assert_eq!((y.dim(), state.c.dim()), ((2, 7, 5), (1, 2, 5)));
//! # Ok::<(), lstm_cuda::Error>(())
//! ```
//!
//! A layer runs by one of three paths, which all give the same bits; [`Backend::path`] names the first that it can take:
//! - `cluster`, one kernel for all steps, whose blocks pass the state on through their shared memory: a hidden size of up to
//!   about 350 on devices of sm_90 and later, up to 512 where there is no `persistent`; not with a projection, and not for
//!   batches larger than the clusters that are there at once can have.
//! - `persistent`, one kernel for all steps whose blocks keep the recurrent weights in registers, where the device can hold
//!   them: on GPUs with 132 multiprocessors a hidden size of up to 1024, or of up to 2048 with a projection to up to 512;
//!   with 80 multiprocessors 800, and 672 on the way back. Not for batches of many hundred.
//! - else a kernel a step.
//!
//! # The fast mode
//!
//! [`Cuda::fast`] opens a device (sm_80 and later) whose products go to tensor cores: both operands are rounded to TF32, 10
//! bits of mantissa, so that a product is off by up to about 2^-10 of the sum of its terms' magnitudes, typically by much less, and
//! the order of the sum is the device's own. Nothing else gives it. **It has not the bits of any other device**, nor of
//! another size of batch or length of sequence: [`Backend::arithmetic`] is [`Arithmetic::Inexact`] and says why,
//! [`Backend::path`] ends in `products in tf32`, [`Backend::name`] is `cuda-tf32`. Activations and the cell are the exact
//! ones.
//!
//! Tensor cores have the products of all steps at once (the input's, all weights' and the input's gradients), those of a
//! kernel a step, and [`Backend::gemm`], from 16 rows, 8 columns and a depth of 8 on; smaller ones, such as a step of fewer than
//! 16 sequences, are exact. Layers that `cluster` or `persistent` take keep these for their steps, whose sums are exact,
//! unless a step is so large (about 2 million multiplications for each multiprocessor) that a kernel a step on tensor cores
//! should be faster.

mod args;
mod backend;
mod backward;
mod cache;
mod check;
mod cluster;
#[cfg(test)]
mod constants;
mod device;
mod driver;
mod forward;
pub mod kernels;
mod launches;
mod layer;
mod persistent;
mod stream;
mod tensor;
mod trace;

pub use backend::CudaBackend;
pub use device::Device;
#[doc(hidden)]
pub use driver::{Address, Driver, Launch};
pub use layer::{Layer, Plan};
pub use lstm_core::*;
#[cfg(feature = "formats")]
pub use lstm_formats::{self as formats, OnnxInputs, OnnxLstm, OnnxModel, OnnxWriter, RtNeural};
pub use stream::CudaStream;
pub use tensor::Tensor;
pub use trace::Trace;

/// What of a device is used: by default all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether layers take the path `cluster`.
    pub clusters: bool,
    /// Whether layers take the path `persistent`.
    pub persistent: bool,
    /// Multiprocessors to reckon with, at least 1, if fewer than there are: what is large for few of them comes up in small
    /// tests.
    pub multiprocessors: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { clusters: true, persistent: true, multiprocessors: None }
    }
}

/// An NVIDIA GPU.
pub type Cuda = CudaBackend<Device>;

impl Cuda {
    /// Opens a device by its number, from 0. All work is done in order on a stream of its own. Memory that is given back stays
    /// with the process for the next allocation, as PyTorch's does; the driver takes it back if the process asks for
    /// memory in other ways and there is none.
    ///
    /// The kernels are compiled, unless they are found compiled, and checked against the specification: see
    /// [`Backend::arithmetic`].
    ///
    /// # Errors
    /// [`Error::Device`] says what is missing: the driver, such a device, an architecture of at least sm_70, NVRTC. It also
    /// names any call that fails.
    pub fn new(ordinal: usize) -> Result<Self> {
        CudaBackend::open(Device::open(ordinal, false, Limits::default())?)
    }

    /// [`new`](Self::new) in the fast mode, which is **not exact**: see [above](crate#the-fast-mode).
    ///
    /// # Errors
    /// As for [`new`](Self::new); [`Error::Device`] also for an architecture before sm_80, and if products are off by more
    /// than rounding their operands explains.
    pub fn fast(ordinal: usize) -> Result<Self> {
        CudaBackend::open(Device::open(ordinal, true, Limits::default())?)
    }

    /// [`new`](Self::new) within limits: for tests and measurements, since the bits are the same.
    ///
    /// # Errors
    /// As for [`new`](Self::new); [`Error::Device`] also for no multiprocessors.
    pub fn within(ordinal: usize, limits: Limits) -> Result<Self> {
        CudaBackend::open(Device::open(ordinal, false, limits)?)
    }

    /// The names of the devices that there are.
    ///
    /// # Errors
    /// [`Error::Device`] without a driver.
    pub fn devices() -> Result<Vec<String>> {
        device::devices("cuda")
    }

    /// The device's name and architecture.
    pub fn device(&self) -> &str {
        self.driver.label()
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// [`Error::Device`]: what failed since somebody waited last.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}
