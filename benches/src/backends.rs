//! The list of backends that are timed.

use anyhow::{Result, bail};
use lstm::{BACKENDS, BackendInfo};

use crate::job::Device;

/// The backends that are timed: those in this build whose results are bit-exact.
pub fn backends() -> impl Iterator<Item = &'static BackendInfo> {
    BACKENDS.iter().filter(|info| info.is_compiled && info.is_default)
}

/// Whether the speed of a backend depends on the number of threads.
pub fn uses_threads(info: &BackendInfo) -> bool {
    info.has_option("threads")
}

/// Opens the device of the backend `name`, which uses `threads` threads if it runs on the CPU.
///
/// # Errors
/// If the backend is not in this build or has no usable device.
pub fn open(name: &str, threads: usize) -> Result<Box<dyn Device>> {
    let Some(info) = backends().find(|info| info.name == name) else {
        let names: Vec<_> = backends().map(|info| info.name).collect();
        bail!("no backend `{name}` in this build; expected one of {}", names.join(", "))
    };
    let builder = lstm::Device::builder().backend(name);
    let builder = if uses_threads(info) { builder.threads(threads) } else { builder };
    Ok(match builder.open()? {
        // A step of a small model takes about as long as a hundred instructions, so it is timed without a choice at run time.
        #[cfg(feature = "cpu")]
        lstm::Device::Cpu(cpu) => Box::new(cpu.into_backend()),
        other => Box::new(other),
    })
}
