//! The operations that the backend needs from CUDA: memory, kernel launches and graphs. They are implemented by GPUs,
//! and by a simulated GPU that runs on the CPU.

use std::fmt;

use bytemuck::Pod;
use lstm_core::{Error, Result};

/// An address in device memory; 0 is null.
pub type Address = u64;

/// A device that runs kernels. Launches and copies run in the order in which they are enqueued. Only `download` waits
/// for them.
///
/// This trait is for the devices of this workspace only and is not covered by semantic versioning. A [`Launch`] holds
/// plain addresses: the code that creates it guarantees that each address refers to a memory block of at least the size
/// that the kernel assumes. Memory may be dropped as soon as everything that uses it has been enqueued. Memory that a
/// graph uses must live until the graph's last launch was enqueued.
#[doc(hidden)]
pub trait Driver: Clone + fmt::Debug + Send + Sync + 'static {
    /// Device memory for a fixed number of `f32` values. After a drop, the memory is freed when all work enqueued
    /// before the drop has finished.
    type Memory: Send + Sync + 'static;
    /// A CUDA graph: a sequence of kernel launches that is recorded once and can be launched many times.
    type Graph: Send + Sync + 'static;

    /// The backend's name.
    fn name(&self) -> &str;
    /// Allocates memory for `len` uninitialized `f32` values.
    fn alloc(&self, op: &'static str, len: usize) -> Result<Self::Memory>;
    /// The address of the memory's first value.
    fn address(&self, memory: &Self::Memory) -> Address;
    /// Copies `data` to the start of `memory`, bits unchanged. `data` must not be longer than the memory.
    fn upload(&self, op: &'static str, memory: &Self::Memory, data: &[f32]) -> Result<()>;
    /// Waits for all enqueued work, then fills `out` with the values of `memory` from index `offset` on.
    fn download(&self, op: &'static str, memory: &Self::Memory, offset: usize, out: &mut [f32]) -> Result<()>;
    /// Enqueues a kernel launch.
    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()>;
    /// Makes a graph of `launches` without running them. When the graph runs, each launch waits for the one before it.
    fn record_graph(&self, op: &'static str, launches: Vec<Launch>) -> Result<Self::Graph>;
    /// Enqueues all launches of a graph.
    fn launch_graph(&self, op: &'static str, graph: &Self::Graph) -> Result<()>;
    /// Whether matrix products may run on tensor cores, which round their operands to TF32.
    fn allows_tf32(&self) -> bool;
    /// The number of multiprocessors for which kernels and tile sizes are chosen.
    fn multiprocessors(&self) -> usize;
    /// How many blocks of a kernel can be resident at the same time; 0 if the device has no cooperative launches.
    /// `threads` and `shared_bytes` are per block.
    fn resident_blocks(&self, op: &'static str, kernel: &'static str, threads: u32, shared_bytes: u32)
    -> Result<usize>;
    /// How many clusters of `cluster_size` blocks of a kernel can be resident at the same time; 0 if the device has no
    /// clusters of this size. `threads` and `shared_bytes` are per block.
    fn resident_clusters(
        &self,
        op: &'static str,
        kernel: &'static str,
        cluster_size: u32,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<usize>;
    /// The largest amount of shared memory that a block can have, in bytes.
    fn max_shared_bytes(&self) -> u32;
}

/// A kernel launch: the kernel, its grid and its arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Number of blocks.
    pub grid: u32,
    /// Threads per block.
    pub threads: u32,
    /// Bytes of shared memory per block.
    pub shared_bytes: u32,
    /// Whether this is a cooperative launch: all blocks must be resident at the same time.
    pub cooperative: bool,
    /// Blocks per cluster; 0 without clusters.
    pub cluster_size: u32,
    /// The kernel's argument struct, as 64-bit words.
    pub args: Box<[u64]>,
}

impl Launch {
    /// Returns a launch of `blocks` blocks without shared memory.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there are more blocks than a grid can have.
    pub(crate) fn new<A: Pod>(
        op: &'static str,
        kernel: &'static str,
        blocks: usize,
        threads: u32,
        args: A,
    ) -> Result<Self> {
        let grid = u32::try_from(blocks).ok().filter(|&n| n <= i32::MAX as u32);
        let grid = grid.ok_or(Error::TooLarge { op, sizes: vec![blocks, threads as usize] })?;
        let args = Box::from(bytemuck::cast_slice::<A, u64>(&[args]));
        Ok(Launch { kernel, grid, threads, shared_bytes: 0, cooperative: false, cluster_size: 0, args })
    }

    /// Returns a launch of an elementwise kernel with one thread per element. For many elements there are fewer
    /// threads, and each processes several elements.
    pub(crate) fn elementwise<A: Pod>(op: &'static str, kernel: &'static str, len: usize, args: A) -> Result<Self> {
        let threads = len.next_multiple_of(32).min(256);
        Launch::new(op, kernel, len.div_ceil(threads).min(4096), threads as u32, args)
    }
}

/// Converts a size to `u32`, the type of sizes in kernel arguments.
///
/// # Errors
/// [`Error::TooLarge`] if the size is larger than `i32::MAX`.
pub(crate) fn checked_u32(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32).ok_or(Error::TooLarge { op, sizes: vec![n] })
}
