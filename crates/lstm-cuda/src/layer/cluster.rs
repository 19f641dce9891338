//! How the units of a small layer are divided among the blocks of a cluster, and launches of the `cluster` kernels.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::BLOCK};

use super::{
    Pass,
    persistent::{MAX_ROWS, MAX_THREADS, PITCH},
};
use crate::driver::{Driver, Launch};

/// The largest hidden size whose weights can fit in the largest cluster.
const MAX_HIDDEN: usize = 512;

/// The kernels, indexed by [`Pass`].
const KERNELS: [&str; 2] = ["cluster_forward", "cluster_backward"];

/// Cluster sizes to choose from, in blocks. More than 8 are not available on every device, and more than 16 on none.
const SIZES: [u32; 5] = [1, 2, 4, 8, 16];

/// How a layer is divided among the blocks of a cluster, for one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ClusterConfig {
    pass: Pass,
    /// Number of blocks of the inner dimension: see [`Pass::depth_blocks`].
    depth_blocks: usize,
    /// Number of blocks per cluster.
    size: u32,
    /// Number of units per block.
    pub(crate) units: usize,
    /// Number of quads (groups of four sums) per block of the inner dimension: see [`Pass::quads`].
    quads: usize,
    /// Number of quads whose weights are in registers; the weights of the others are in shared memory.
    pub(crate) register_quads: usize,
    /// Number of clusters that can be resident at the same time.
    count: usize,
    /// Limit of shared memory per block, in bytes.
    max_shared_bytes: u32,
}

impl ClusterConfig {
    /// Chooses the smallest cluster that can keep all weights in registers, since most time is spent on exchanges
    /// between blocks. If there is none, chooses the smallest cluster that can keep the weights in registers and shared
    /// memory together. `None` if the device has no such clusters, or if the layer has a projection, since each step
    /// would then need two exchanges.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec, pass: Pass) -> Result<Option<Self>> {
        if spec.proj_size.is_some() {
            return Ok(None);
        }
        let max_shared_bytes = driver.max_shared_bytes();
        ClusterConfig::choose(pass, spec.hidden_size, max_shared_bytes, |size| {
            driver.resident_clusters("load", KERNELS[pass as usize], size, MAX_THREADS as u32, max_shared_bytes)
        })
    }

    /// [`ClusterConfig::new`] without a driver: `resident` returns how many clusters of a size can be resident at the
    /// same time.
    fn choose(
        pass: Pass,
        hidden: usize,
        max_shared_bytes: u32,
        resident: impl Fn(u32) -> Result<usize>,
    ) -> Result<Option<Self>> {
        if hidden > MAX_HIDDEN {
            return Ok(None);
        }
        for in_registers in [true, false] {
            for size in SIZES {
                let (units, depth_blocks) = (hidden.div_ceil(size as usize), pass.depth_blocks(hidden));
                let quads = pass.quads(units);
                let register_quads = quads.min(MAX_THREADS / depth_blocks);
                let clusters = ClusterConfig {
                    pass,
                    depth_blocks,
                    size,
                    units,
                    quads,
                    register_quads,
                    count: 0,
                    max_shared_bytes,
                };
                // A thread has the weights of one quad in registers, and of at most one in shared memory.
                let fits = quads <= 2 * register_quads
                    && units <= MAX_THREADS
                    && clusters.shared_bytes(1) <= max_shared_bytes as usize;
                if clusters.is_in_registers() != in_registers || !fits {
                    continue;
                }
                let count = resident(size)?;
                if count > 0 {
                    return Ok(Some(ClusterConfig { count, ..clusters }));
                }
            }
        }
        Ok(None)
    }

    /// Whether all weights are in registers.
    pub(crate) fn is_in_registers(&self) -> bool {
        self.register_quads == self.quads
    }

    /// Bytes of shared memory per block if a cluster runs `rows` sequences.
    fn shared_bytes(&self, rows: usize) -> usize {
        let weights = (self.quads - self.register_quads) * self.depth_blocks * 4 * BLOCK;
        4 * (rows * (2 * self.depth_blocks * PITCH + 4 * self.depth_blocks * self.quads) + weights)
    }

    /// How many sequences of a batch each cluster runs; `None` if the clusters that can be resident at the same time
    /// can't run the whole batch.
    pub(crate) fn rows(&self, batch: usize) -> Option<usize> {
        let rows = batch.div_ceil(self.count);
        let fits = rows * self.units <= MAX_THREADS && self.shared_bytes(rows) <= self.max_shared_bytes as usize;
        (rows <= MAX_ROWS && fits).then_some(rows)
    }

    /// The launch for a batch, with `rows` sequences per cluster.
    pub(crate) fn launch(&self, op: &'static str, rows: usize, batch: usize, args: impl Pod) -> Result<Launch> {
        // Groups of threads divide the rows among them for the sums; for the cells there is a thread per unit and row.
        let groups = (MAX_THREADS / (self.register_quads * self.depth_blocks)).min(rows);
        let threads =
            (groups * self.register_quads * self.depth_blocks).max(rows * self.units).next_multiple_of(32) as u32;
        let kernel = KERNELS[self.pass as usize];
        let launch = Launch::new(op, kernel, batch.div_ceil(rows) * self.size as usize, threads, args)?;
        // The cast is lossless, since `rows` has compared the size with the limit.
        Ok(Launch { shared_bytes: self.shared_bytes(rows) as u32, cluster_size: self.size, ..launch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of shared memory that a block of sm_90 can have.
    const SM_90_SHARED_BYTES: u32 = 227 << 10;

    /// For both passes, the cluster size, the units per block and the quads in registers, on a device with 132
    /// multiprocessors and clusters of up to `largest` blocks.
    fn choose(hidden: usize, largest: u32) -> [Option<(u32, usize, usize)>; 2] {
        Pass::BOTH.map(|pass| {
            let resident = |size| Ok(if size <= largest { 132 / size as usize } else { 0 });
            ClusterConfig::choose(pass, hidden, SM_90_SHARED_BYTES, resident)
                .unwrap()
                .map(|c| (c.size, c.units, c.register_quads))
        })
    }

    #[test]
    fn chooses_smallest_cluster_that_holds_the_weights() {
        assert_eq!(choose(1, 16), [Some((1, 1, 1)); 2]);
        assert_eq!(choose(64, 16), [Some((1, 64, 64)), Some((1, 64, 16))]);
        assert_eq!(choose(128, 16), [Some((2, 64, 64)), Some((2, 64, 16))]);
        assert_eq!(choose(256, 16), [Some((8, 32, 32)), Some((8, 32, 8))]);
        assert_eq!(choose(320, 16), [Some((16, 20, 20)), Some((16, 20, 5))]);
        // Some weights are in shared memory.
        assert_eq!(choose(512, 16), [Some((16, 32, 16)), Some((16, 32, 4))]);
        assert_eq!(choose(320, 8), [Some((8, 40, 25)), Some((8, 40, 6))]);
        assert_eq!(choose(512, 8), [None; 2]);
        assert_eq!(choose(513, 16), [None; 2]);
        assert_eq!(choose(64, 0), [None; 2]);
    }

    #[test]
    fn rows_per_cluster_within_limits() {
        let clusters = ClusterConfig::choose(Pass::Forward, 512, SM_90_SHARED_BYTES, |_| Ok(8)).unwrap().unwrap();
        assert_eq!((clusters.rows(1), clusters.rows(8), clusters.rows(9)), (Some(1), Some(1), Some(2)));
        // Limited by shared memory, 227 KiB: 128 KiB for weights and 12.5 KiB per sequence.
        assert_eq!((clusters.rows(56), clusters.rows(57)), (Some(7), None));
        // In the backward pass, 18 KiB per sequence for the exchange and 8 KiB for the sums.
        let clusters = ClusterConfig::choose(Pass::Backward, 512, SM_90_SHARED_BYTES, |_| Ok(8)).unwrap().unwrap();
        assert_eq!((clusters.rows(24), clusters.rows(25)), (Some(3), None));
        // Limited by the number of threads.
        let clusters = ClusterConfig::choose(Pass::Forward, 64, SM_90_SHARED_BYTES, |_| Ok(2)).unwrap().unwrap();
        assert_eq!((clusters.rows(8), clusters.rows(9)), (Some(4), None));
    }

    #[test]
    fn every_unit_has_a_thread_and_fits_in_shared_memory() {
        for hidden in 1..=MAX_HIDDEN {
            for (largest, pass) in SIZES.into_iter().flat_map(|size| [(size, Pass::Forward), (size, Pass::Backward)]) {
                let clusters =
                    ClusterConfig::choose(pass, hidden, SM_90_SHARED_BYTES, |size| Ok((size <= largest).into()))
                        .unwrap();
                let Some(c) = clusters else { continue };
                assert!(c.units * c.size as usize >= hidden && c.register_quads * c.depth_blocks <= MAX_THREADS);
                assert!(c.quads <= 2 * c.register_quads && c.quads == pass.quads(c.units));
                let rows = c.rows(1).expect("one sequence always fits");
                assert!(c.shared_bytes(rows) <= SM_90_SHARED_BYTES as usize);
            }
        }
    }
}
