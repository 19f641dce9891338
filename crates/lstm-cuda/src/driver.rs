//! What the backend needs of CUDA: memory, launches, graphs. A device and the host that stands in for one do it alike.

use std::fmt;

use bytemuck::Pod;
use lstm_core::{Error, Result};

/// An address in device memory; 0 is null.
pub type Address = u64;

/// Where kernels run. Launches and copies are done in the order in which they are asked for; only `download` waits.
///
/// It is for this crate's devices only, and not part of what stays as it is. Launches hold bare addresses: whoever makes one sees to it that each is
/// of memory as large as the kernel takes it to be. Memory may be given up as soon as everything that uses it was asked
/// for; a graph's must live until its last replay was.
#[doc(hidden)]
pub trait Driver: Clone + fmt::Debug + Send + Sync + 'static {
    /// Device memory for some `f32`, freed when it is dropped and everything before has been done.
    type Memory: Send + Sync + 'static;
    /// Launches that were prepared to be asked for at once.
    type Graph: Send + Sync + 'static;

    /// A name for reports.
    fn name(&self) -> &str;
    /// Memory for `len` values; they are not defined.
    fn alloc(&self, op: &'static str, len: usize) -> Result<Self::Memory>;
    /// Where it is.
    fn address(&self, memory: &Self::Memory) -> Address;
    /// Copies `data`, of at most the memory's length, bits unchanged.
    fn upload(&self, op: &'static str, memory: &Self::Memory, data: &[f32]) -> Result<()>;
    /// Waits, and copies as many values as `out` has from `offset` on.
    fn download(&self, op: &'static str, memory: &Self::Memory, offset: usize, out: &mut [f32]) -> Result<()>;
    /// Starts a kernel.
    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()>;
    /// Prepares launches, each of which waits for the one before.
    fn graph(&self, op: &'static str, launches: Vec<Launch>) -> Result<Self::Graph>;
    /// Starts them.
    fn replay(&self, op: &'static str, graph: &Self::Graph) -> Result<()>;
    /// Whether products go to tensor cores, which round their operands: the fast mode.
    fn fast(&self) -> bool;
    /// Multiprocessors, for the choice of a kernel's tiles.
    fn multiprocessors(&self) -> usize;
    /// How many blocks of a kernel can be there at the same time; 0 where blocks can't wait for one another.
    fn resident_blocks(&self, op: &'static str, kernel: &'static str, threads: u32, shared: u32) -> Result<usize>;
    /// How many clusters of `size` blocks of a kernel can be there at the same time; 0 where there are none of that size.
    fn resident_clusters(
        &self,
        op: &'static str,
        kernel: &'static str,
        size: u32,
        threads: u32,
        shared: u32,
    ) -> Result<usize>;
    /// Most shared memory that a block can have, in bytes.
    fn max_shared(&self) -> u32;
}

/// A kernel, its grid and its arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Number of blocks.
    pub grid: u32,
    /// Threads per block.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// Whether all blocks must be there at the same time.
    pub resident: bool,
    /// Blocks of a cluster; 0 if they form none.
    pub cluster: u32,
    /// The kernel's struct, as words.
    pub args: Box<[u64]>,
}

impl Launch {
    /// `blocks` blocks without shared memory.
    ///
    /// # Errors
    /// More blocks than a grid has.
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
        Ok(Launch { kernel, grid, threads, shared: 0, resident: false, cluster: 0, args })
    }

    /// As many threads as there are elements, or somewhat fewer that take several each.
    pub(crate) fn over<A: Pod>(op: &'static str, kernel: &'static str, len: usize, args: A) -> Result<Self> {
        let threads = len.next_multiple_of(32).min(256);
        Launch::new(op, kernel, len.div_ceil(threads).min(4096), threads as u32, args)
    }
}

/// A size as kernels take it.
///
/// # Errors
/// [`Error::TooLarge`] if they can't.
pub(crate) fn size(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32).ok_or(Error::TooLarge { op, sizes: vec![n] })
}
