//! How a [`Cpu`] is made.

use std::{num::NonZero, sync::Arc};

use lstm_core::{Error, Result};

use crate::{backend::Cpu, isa::Isa, pool::Pool};

/// Chooses threads and instruction set; see [`Cpu::builder`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBuilder {
    threads: Option<usize>,
    isa: Option<Isa>,
}

impl CpuBuilder {
    /// Uses at most `n` threads, the calling one included; by default as many as the process may use. Work too small to
    /// gain from more runs on the calling thread alone. The bits do not depend on it.
    ///
    /// Threads meet at every time step, tens of thousands of times a second: give them cores of their own. Where other
    /// programs keep the cores busy, one thread is faster.
    pub fn threads(self, n: usize) -> Self {
        CpuBuilder { threads: Some(n), ..self }
    }

    /// Uses `isa` instead of the fastest that the machine has.
    pub fn isa(self, isa: Isa) -> Self {
        CpuBuilder { isa: Some(isa), ..self }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Config`] for 0 or more than 1024 threads or an instruction set that the machine lacks;
    /// [`Error::Device`] if threads can't be started (on wasm, more than one).
    pub fn build(self) -> Result<Cpu> {
        let available = Isa::available();
        let isa = self.isa.unwrap_or(available[0]);
        let kernels = isa.kernels().ok_or_else(|| {
            let list: Vec<_> = available.iter().map(Isa::to_string).collect();
            Error::config("isa", format!("this machine has {}, not {isa}", list.join(", ")))
        })?;
        let threads = self.threads.unwrap_or_else(default_threads);
        if !(1..=1024).contains(&threads) {
            return Err(Error::config("threads", format!("expected 1 to 1024, got {threads}")));
        }
        let pool = Pool::new(threads).map_err(|e| Error::Device {
            backend: "cpu".into(),
            op: "start threads",
            reason: e.to_string(),
        })?;
        Ok(Cpu { isa, kernels, pool: Arc::new(pool) })
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(1024)
}
