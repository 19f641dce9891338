//! The list of backends that are timed.

use anyhow::{Result, bail};

use crate::job::Device;

/// A backend in this build.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name of the backend and of its Cargo feature.
    pub name: &'static str,
    /// Whether its speed depends on the number of threads.
    pub threads: bool,
    /// Opens the device with a number of threads.
    open: fn(usize) -> Result<Box<dyn Device>>,
}

/// All backends in this build.
pub const BACKENDS: &[Entry] = &[
    #[cfg(feature = "cpu")]
    Entry { name: "cpu", threads: true, open: |n| Ok(Box::new(lstm_cpu::Cpu::builder().threads(n).build()?)) },
    #[cfg(feature = "wgpu")]
    Entry { name: "wgpu", threads: false, open: |_| Ok(Box::new(lstm_wgpu::Wgpu::new()?)) },
    #[cfg(feature = "cuda")]
    Entry { name: "cuda", threads: false, open: |_| Ok(Box::new(lstm_cuda::Cuda::new(0)?)) },
];

/// Opens the device of a backend with a number of threads.
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
