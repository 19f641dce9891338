//! The device [`Cpu`].

use std::{fmt, sync::Arc};

use crate::{builder::CpuBuilder, kernel::isa::Isa, kernel::table::Kernels, pool::ThreadPool};

/// The CPU backend: an instruction set and a pool of threads. A clone shares the threads.
///
/// Up to 256 MiB of freed memory of passes, tensors and models is kept for reuse. The memory and the threads are
/// released when the last clone is dropped, together with every tensor, layer and trace that was made with it.
#[derive(Clone)]
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: Arc<ThreadPool>,
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.isa, self.threads())
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Cpu {
    /// A backend with the fastest instruction set and as many threads as there are cores that the process may use. Uses
    /// one thread if more cannot be started.
    pub fn new() -> Self {
        let build_single_threaded = || Cpu::builder().threads(1).build();
        Cpu::builder().build().or_else(|_| build_single_threaded()).expect("one thread needs no start")
    }

    /// A builder that sets the number of threads and the instruction set.
    ///
    /// ```
    /// use lstm_cpu::{Cpu, Isa};
    /// let cpu = Cpu::builder().threads(1).isa(Isa::Plain).build()?;
    /// assert_eq!(cpu.isa(), Isa::Plain);
    /// # Ok::<(), lstm_cpu::Error>(())
    /// ```
    pub fn builder() -> CpuBuilder {
        CpuBuilder::default()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The maximum number of threads, including the calling one.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}
