//! Options of the simulated device.

use lstm_core::Result;

use crate::{CudaHost, Host};

/// The order in which the blocks of a grid and the threads of a block are scheduled. Results must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// By ascending block and thread number.
    #[default]
    Ascending,
    /// By descending block and thread number.
    Descending,
    /// In a pseudorandom order that depends on this seed and changes during the launch.
    Random(u32),
}

impl Schedule {
    /// Returns the number that stands for this schedule in `executor.cpp`.
    #[cfg_attr(not(kernels_compiled), allow(dead_code, reason = "without kernels, nothing is scheduled"))]
    pub(crate) fn executor_code(self) -> u32 {
        match self {
            Schedule::Ascending => 0,
            Schedule::Descending => 1,
            Schedule::Random(seed) => seed.saturating_add(2),
        }
    }
}

/// Options for opening a simulated device; made by [`Host::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct HostBuilder {
    #[cfg_attr(not(kernels_compiled), allow(dead_code, reason = "without kernels, nothing is scheduled"))]
    pub(crate) schedule: Schedule,
    pub(crate) resident_blocks: usize,
    pub(crate) cluster_size: u32,
    pub(crate) allow_tf32: bool,
}

impl Default for HostBuilder {
    fn default() -> Self {
        HostBuilder { schedule: Schedule::Ascending, resident_blocks: 8, cluster_size: 0, allow_tf32: false }
    }
}

impl HostBuilder {
    /// Sets the order in which blocks and threads are scheduled. Default: [`Schedule::Ascending`].
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets the number of blocks that can be resident at the same time. With 0, no layer uses the execution path
    /// `persistent`. Default: 8.
    pub fn resident_blocks(mut self, blocks: usize) -> Self {
        self.resident_blocks = blocks;
        self
    }

    /// Sets the number of blocks in a thread block cluster. The device supports clusters of this size only. With 0, it
    /// supports none, and no layer uses the execution path `cluster`. Default: 0.
    pub fn cluster_size(mut self, blocks: u32) -> Self {
        self.cluster_size = blocks;
        self
    }

    /// Sets whether matrix products may run on simulated tensor cores, which round their operands to TF32. The order in
    /// which they add products may differ from that of a real GPU. Default: false.
    pub fn allow_tf32(mut self, allow: bool) -> Self {
        self.allow_tf32 = allow;
        self
    }

    /// Opens the simulated device and tests its arithmetic.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if the kernels can't run on this machine, which needs Linux, an
    /// x86-64 CPU with AVX2 and FMA, and a C++ compiler at build time; or if products in TF32 have larger errors than
    /// rounding their operands to TF32 can cause.
    pub fn build(self) -> Result<CudaHost> {
        CudaHost::open(Host::new(self)?)
    }
}
