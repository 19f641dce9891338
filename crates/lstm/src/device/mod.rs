//! A device of any backend, chosen at run time.

mod backend;
mod builder;
mod call;
mod opened;
mod ops;
mod values;

use std::fmt;

pub use builder::DeviceBuilder;
pub use opened::{Opened, Skipped};
pub use values::{DeviceLayer, DeviceLinear, DevicePlan, DeviceStream, DeviceTensor, DeviceTrace};

#[cfg(feature = "cpu")]
use lstm_cpu::Cpu;
#[cfg(feature = "cuda")]
use lstm_cuda::Cuda;
#[cfg(feature = "wgpu")]
use lstm_wgpu::Wgpu;

/// A device of any backend in this build. It is a [`Backend`](crate::Backend), so that one program runs on whatever
/// device it finds: `Lstm<Device>`, `Stream<Device>`, `Trainer<Device>`. Results are those of the backend inside, bit
/// for bit. Clones refer to the same device.
///
/// Tensors, layers and other values belong to the device that made them. A value of another backend is an
/// [`Error::Device`](crate::Error::Device) that names both backends.
///
/// ```
/// # #[cfg(feature = "cpu")] fn main() -> Result<(), lstm::Error> {
/// use lstm::{Cpu, Device, Ops};
/// let device = Device::open("cpu")?; // or "auto": a GPU if there is one
/// match &device {
///     Device::Cpu(cpu) => println!("{} with {} threads", cpu.isa(), cpu.threads()),
///     other => println!("{other:?}"),
/// }
/// let own = Device::from(Cpu::builder().threads(1).build()?); // a backend with all of its own options
/// assert_eq!((device.name(), own.name()), ("cpu", "cpu"));
/// # Ok(()) }
/// # #[cfg(not(feature = "cpu"))] fn main() {}
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    #[cfg(feature = "cpu")]
    Cpu(Opened<Cpu>),
    /// An adapter of wgpu.
    #[cfg(feature = "wgpu")]
    Wgpu(Opened<Wgpu>),
    /// An NVIDIA GPU, through CUDA.
    #[cfg(feature = "cuda")]
    Cuda(Opened<Cuda>),
}

/// Evaluates `$body` for the backend inside a [`Device`]: `$backend` is this backend, or `$call` is a [`call::Call`] of
/// the operation `$op` on it. The body is compiled once for each backend, with the backend's own type.
macro_rules! on_backend {
    ($device:expr, $op:literal, $call:ident => $body:expr) => {
        on_backend!($device, backend => {
            let $call = $crate::device::call::Call::new(backend, $op);
            $body
        })
    };
    ($device:expr, $backend:ident => $body:expr) => {
        // By value and `ref`, so that the match is complete in a build without backends, too.
        match *$device {
            #[cfg(feature = "cpu")]
            $crate::device::Device::Cpu(ref opened) => {
                let $backend: &lstm_cpu::Cpu = opened;
                $body
            }
            #[cfg(feature = "wgpu")]
            $crate::device::Device::Wgpu(ref opened) => {
                let $backend: &lstm_wgpu::Wgpu = opened;
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::device::Device::Cuda(ref opened) => {
                let $backend: &lstm_cuda::Cuda = opened;
                $body
            }
        }
    };
}
use on_backend;

impl Device {
    /// The backends that an automatic choice tried and did not take before it took this one, each with the reason.
    /// Empty if the caller named the backend or made this device from a backend.
    pub fn skipped(&self) -> &[Skipped] {
        match *self {
            #[cfg(feature = "cpu")]
            Device::Cpu(ref opened) => opened.skipped(),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(ref opened) => opened.skipped(),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref opened) => opened.skipped(),
        }
    }

    fn set_skipped(&mut self, skipped: Vec<Skipped>) {
        match *self {
            #[cfg(feature = "cpu")]
            Device::Cpu(ref mut opened) => opened.set_skipped(skipped),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(ref mut opened) => opened.set_skipped(skipped),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref mut opened) => opened.set_skipped(skipped),
        }
    }
}

/// Formats the backend inside, such as `Cpu(avx2, 8 threads)`.
impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on_backend!(self, backend => backend.fmt(f))
    }
}

#[cfg(feature = "cpu")]
impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Self {
        Device::Cpu(cpu.into())
    }
}

#[cfg(feature = "wgpu")]
impl From<Wgpu> for Device {
    fn from(wgpu: Wgpu) -> Self {
        Device::Wgpu(wgpu.into())
    }
}

#[cfg(feature = "cuda")]
impl From<Cuda> for Device {
    fn from(cuda: Cuda) -> Self {
        Device::Cuda(cuda.into())
    }
}
