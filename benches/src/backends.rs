//! The one list of backends that are timed.

use anyhow::{Result, bail};

use crate::job::Device;

/// A backend of this build.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name, which is its feature's too.
    pub name: &'static str,
    /// Whether its speed depends on the number of threads.
    pub threads: bool,
    /// Opens it with so many threads, or says why it can't run here.
    open: fn(usize) -> Result<Box<dyn Device>>,
}

/// The backends of this build.
pub const BACKENDS: &[Entry] = &[
    #[cfg(feature = "cpu")]
    Entry { name: "cpu", threads: true, open: |n| Ok(Box::new(lstm_cpu::Cpu::builder().threads(n).build()?)) },
    #[cfg(feature = "wgpu")]
    Entry { name: "wgpu", threads: false, open: |_| Ok(Box::new(lstm_wgpu::Wgpu::blocking()?)) },
    #[cfg(feature = "cuda")]
    Entry { name: "cuda", threads: false, open: |_| Ok(Box::new(lstm_cuda::Cuda::new(0)?)) },
];

/// Opens a backend with so many threads.
///
/// # Errors
/// That it is not in this build, or why it can't run here.
pub fn open(name: &str, threads: usize) -> Result<Box<dyn Device>> {
    match BACKENDS.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.open)(threads),
        None => {
            let names: Vec<_> = BACKENDS.iter().map(|entry| entry.name).collect();
            bail!("no backend `{name}` in this build, which holds: {}", names.join(", "))
        }
    }
}
