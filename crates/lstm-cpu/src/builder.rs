//! The builder of a [`Cpu`].

use std::{num::NonZero, sync::Arc};

use lstm_core::{Error, Result};

use crate::{Cpu, kernel::isa::Isa, pool::ThreadPool};

/// Builds a [`Cpu`] with a number of threads and an instruction set; see [`Cpu::builder`].
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct CpuBuilder {
    threads: Option<usize>,
    always_all_threads: bool,
    isa: Option<Isa>,
}

impl CpuBuilder {
    /// The largest number of threads.
    pub const MAX_THREADS: usize = 1024;

    /// Checks a number of threads without starting any.
    ///
    /// # Errors
    /// [`Error::Config`] if it is 0 or more than [`MAX_THREADS`](Self::MAX_THREADS).
    pub fn check_threads(threads: usize) -> Result<()> {
        let max = Self::MAX_THREADS;
        if (1..=max).contains(&threads) {
            return Ok(());
        }
        Err(Error::config("threads", format!("expected 1 to {max}, got {threads}")))
    }

    /// Sets the maximum number of threads, including the calling one. Default: the number of cores that the process may
    /// use. Layers too small to gain from several threads run on the calling thread alone. Results are bit-identical
    /// for any number of threads.
    ///
    /// Threads synchronize at every time step, tens of thousands of times a second, so each should have a core of its
    /// own. While other programs keep the cores busy, layers run on the calling thread alone.
    pub fn threads(self, n: usize) -> Self {
        CpuBuilder { threads: Some(n), ..self }
    }

    /// Uses all threads even while other programs keep the cores busy, which is then slower than one thread. This is
    /// meant for tests of the threads.
    pub fn always_all_threads(self) -> Self {
        CpuBuilder { always_all_threads: true, ..self }
    }

    /// Sets the instruction set. Default: the fastest that the processor supports.
    pub fn isa(self, isa: Isa) -> Self {
        CpuBuilder { isa: Some(isa), ..self }
    }

    /// Starts the threads and returns the backend.
    ///
    /// # Errors
    /// [`Error::Config`] if the number of threads is 0 or more than 1024, or if the processor does not support the
    /// instruction set. [`Error::Device`] if threads cannot be started. WebAssembly supports only one thread.
    pub fn build(self) -> Result<Cpu> {
        let available = Isa::available();
        let isa = self.isa.unwrap_or(available[0]);
        let kernels = isa.kernels().ok_or_else(|| {
            let names: Vec<_> = available.iter().map(Isa::to_string).collect();
            Error::config("isa", format!("this processor supports {}, got {isa}", names.join(", ")))
        })?;
        let threads = self.threads.unwrap_or_else(default_threads);
        Self::check_threads(threads)?;
        let pool = ThreadPool::new(threads, !self.always_all_threads).map_err(|e| Error::Device {
            backend: "cpu".into(),
            op: "start threads",
            reason: e.to_string(),
        })?;
        Ok(Cpu { isa, kernels, pool: Arc::new(pool) })
    }
}

/// The number of cores that the process may use, at most 1024.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(CpuBuilder::MAX_THREADS)
}
