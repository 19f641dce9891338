//! The list of backends that are timed.

use anyhow::{Result, bail};

use crate::job::Device;

/// A backend in this build.
#[derive(Clone, Copy, Debug)]
pub struct BackendEntry {
    /// Name of the backend and of its Cargo feature.
    pub name: &'static str,
    /// Whether the speed of the backend depends on the number of threads.
    pub uses_threads: bool,
    /// Opens the device of the backend; the argument is the number of threads.
    open: fn(usize) -> Result<Box<dyn Device>>,
}

/// All backends in this build.
pub const BACKENDS: &[BackendEntry] = &[
    #[cfg(feature = "cpu")]
    BackendEntry {
        name: "cpu",
        uses_threads: true,
        open: |n| Ok(Box::new(lstm_cpu::Cpu::builder().threads(n).build()?)),
    },
    #[cfg(feature = "wgpu")]
    BackendEntry { name: "wgpu", uses_threads: false, open: |_| Ok(Box::new(lstm_wgpu::Wgpu::new()?)) },
    #[cfg(feature = "cuda")]
    BackendEntry { name: "cuda", uses_threads: false, open: |_| Ok(Box::new(lstm_cuda::Cuda::new(0)?)) },
];

/// Opens the device of the backend `name`, which uses `threads` threads if it runs on the CPU.
///
/// # Errors
/// If the backend is not in this build or has no usable device.
pub fn open(name: &str, threads: usize) -> Result<Box<dyn Device>> {
    match BACKENDS.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.open)(threads),
        None => {
            let names: Vec<_> = BACKENDS.iter().map(|entry| entry.name).collect();
            bail!("no backend `{name}` in this build; expected one of {}", names.join(", "))
        }
    }
}
