//! How the units of a small layer are divided among the blocks of a cluster, and launches of the `cluster` kernels.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::DOT_BLOCK};

use super::{
    Pass,
    persistent::{MAX_GROUP_ROWS, MAX_THREADS, SHARED_BLOCK_STRIDE},
};
use crate::driver::{Driver, Launch};

/// The largest hidden size whose weights can fit in the largest cluster.
const MAX_HIDDEN: usize = 512;

/// The names of the kernels, indexed by [`Pass`].
const KERNELS: [&str; 2] = ["cluster_forward", "cluster_backward"];

/// Cluster sizes to choose from, in blocks. Clusters of more than 8 blocks are not available on every device, clusters
/// of more than 16 blocks on none.
const CLUSTER_SIZES: [u32; 5] = [1, 2, 4, 8, 16];

/// How a layer is divided among the blocks of a cluster, for one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ClusterConfig {
    pass: Pass,
    /// Number of blocks of 32 elements into which the inner dimension of the recurrent product is divided: see
    /// [`Pass::depth_blocks`].
    depth_blocks: usize,
    /// Number of blocks per cluster.
    cluster_size: u32,
    /// Number of hidden units that each thread block computes.
    pub(crate) units_per_block: usize,
    /// Number of quads that a thread block computes for each block of the inner dimension. A quad is a group of four
    /// sums that one thread computes: see [`Pass::sum_quads`].
    sum_quads: usize,
    /// Number of quads (groups of four sums) whose weights are in registers; the weights of the other quads are in
    /// shared memory.
    pub(crate) quads_in_registers: usize,
    /// Number of clusters that can be resident at the same time.
    resident_clusters: usize,
    /// Limit of shared memory per block, in bytes.
    max_shared_bytes: u32,
}

impl ClusterConfig {
    /// Chooses the smallest cluster whose blocks can keep all weights in registers. If there is none, chooses the
    /// smallest cluster whose blocks can keep the weights in registers and shared memory together. Small clusters are
    /// preferred because most time is spent on exchanges between blocks. Returns `None` if the device has no such
    /// clusters, or if the layer has a projection, since each step would then need two exchanges.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec, pass: Pass) -> Result<Option<Self>> {
        if spec.proj_size.is_some() {
            return Ok(None);
        }
        let max_shared_bytes = driver.max_shared_bytes();
        ClusterConfig::choose_cluster(pass, spec.hidden_size, max_shared_bytes, |cluster_size| {
            driver.resident_clusters("load", KERNELS[pass as usize], cluster_size, MAX_THREADS as u32, max_shared_bytes)
        })
    }

    /// Does the work of [`ClusterConfig::new`] without a driver. `count_resident` returns how many clusters of a given
    /// size can be resident at the same time.
    fn choose_cluster(
        pass: Pass,
        hidden: usize,
        max_shared_bytes: u32,
        count_resident: impl Fn(u32) -> Result<usize>,
    ) -> Result<Option<Self>> {
        if hidden > MAX_HIDDEN {
            return Ok(None);
        }
        for in_registers in [true, false] {
            for cluster_size in CLUSTER_SIZES {
                let (units_per_block, depth_blocks) =
                    (hidden.div_ceil(cluster_size as usize), pass.depth_blocks(hidden));
                let sum_quads = pass.sum_quads(units_per_block);
                let quads_in_registers = sum_quads.min(MAX_THREADS / depth_blocks);
                let config = ClusterConfig {
                    pass,
                    depth_blocks,
                    cluster_size,
                    units_per_block,
                    sum_quads,
                    quads_in_registers,
                    resident_clusters: 0,
                    max_shared_bytes,
                };
                // A thread has the weights of one quad in registers, and of at most one in shared memory.
                let weights_fit = sum_quads <= 2 * quads_in_registers
                    && units_per_block <= MAX_THREADS
                    && config.shared_bytes(1) <= max_shared_bytes as usize;
                if config.holds_weights_in_registers() != in_registers || !weights_fit {
                    continue;
                }
                let resident_clusters = count_resident(cluster_size)?;
                if resident_clusters > 0 {
                    return Ok(Some(ClusterConfig { resident_clusters, ..config }));
                }
            }
        }
        Ok(None)
    }

    /// Whether all weights are in registers.
    pub(crate) fn holds_weights_in_registers(&self) -> bool {
        self.quads_in_registers == self.sum_quads
    }

    /// Bytes of shared memory per block if a cluster runs `rows` sequences.
    fn shared_bytes(&self, rows: usize) -> usize {
        let weight_floats = (self.sum_quads - self.quads_in_registers) * self.depth_blocks * 4 * DOT_BLOCK;
        4 * (rows * (2 * self.depth_blocks * SHARED_BLOCK_STRIDE + 4 * self.depth_blocks * self.sum_quads)
            + weight_floats)
    }

    /// Returns how many sequences of a batch each cluster runs; `None` if the clusters that can be resident at the same
    /// time can't run the whole batch.
    pub(crate) fn rows_per_cluster(&self, batch: usize) -> Option<usize> {
        let rows = batch.div_ceil(self.resident_clusters);
        let fits =
            rows * self.units_per_block <= MAX_THREADS && self.shared_bytes(rows) <= self.max_shared_bytes as usize;
        (rows <= MAX_GROUP_ROWS && fits).then_some(rows)
    }

    /// Returns the launch of the kernel for a batch, with `rows` sequences per cluster.
    pub(crate) fn launch(&self, op: &'static str, rows: usize, batch: usize, args: impl Pod) -> Result<Launch> {
        // Groups of threads divide the rows among them for the sums; for the cells there is a thread per unit and row.
        let thread_groups = (MAX_THREADS / (self.quads_in_registers * self.depth_blocks)).min(rows);
        let threads = (thread_groups * self.quads_in_registers * self.depth_blocks)
            .max(rows * self.units_per_block)
            .next_multiple_of(32) as u32;
        let kernel = KERNELS[self.pass as usize];
        let launch = Launch::new(op, kernel, batch.div_ceil(rows) * self.cluster_size as usize, threads, args)?;
        // The cast is lossless, since `rows` has compared the size with the limit.
        Ok(Launch { shared_bytes: self.shared_bytes(rows) as u32, cluster_size: self.cluster_size, ..launch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of shared memory that a block of sm_90 can have.
    const SM_90_SHARED_BYTES: u32 = 227 << 10;

    /// Returns, for each pass, the cluster size, the units per block and the number of `float4` weights that each thread
    /// keeps in registers. The device has 132 multiprocessors and clusters of up to `largest_cluster` blocks.
    fn choose_clusters(hidden: usize, largest_cluster: u32) -> [Option<(u32, usize, usize)>; 2] {
        Pass::ALL.map(|pass| {
            let count_resident =
                |cluster_size| Ok(if cluster_size <= largest_cluster { 132 / cluster_size as usize } else { 0 });
            ClusterConfig::choose_cluster(pass, hidden, SM_90_SHARED_BYTES, count_resident)
                .unwrap()
                .map(|c| (c.cluster_size, c.units_per_block, c.quads_in_registers))
        })
    }

    #[test]
    fn chooses_smallest_cluster_that_holds_the_weights() {
        assert_eq!(choose_clusters(1, 16), [Some((1, 1, 1)); 2]);
        assert_eq!(choose_clusters(64, 16), [Some((1, 64, 64)), Some((1, 64, 16))]);
        assert_eq!(choose_clusters(128, 16), [Some((2, 64, 64)), Some((2, 64, 16))]);
        assert_eq!(choose_clusters(256, 16), [Some((8, 32, 32)), Some((8, 32, 8))]);
        assert_eq!(choose_clusters(320, 16), [Some((16, 20, 20)), Some((16, 20, 5))]);
        // Some weights are in shared memory.
        assert_eq!(choose_clusters(512, 16), [Some((16, 32, 16)), Some((16, 32, 4))]);
        assert_eq!(choose_clusters(320, 8), [Some((8, 40, 25)), Some((8, 40, 6))]);
        assert_eq!(choose_clusters(512, 8), [None; 2]);
        assert_eq!(choose_clusters(513, 16), [None; 2]);
        assert_eq!(choose_clusters(64, 0), [None; 2]);
    }

    #[test]
    fn rows_per_cluster_within_limits() {
        let clusters =
            ClusterConfig::choose_cluster(Pass::Forward, 512, SM_90_SHARED_BYTES, |_| Ok(8)).unwrap().unwrap();
        assert_eq!(
            (clusters.rows_per_cluster(1), clusters.rows_per_cluster(8), clusters.rows_per_cluster(9)),
            (Some(1), Some(1), Some(2))
        );
        // Limited by shared memory, 227 KiB: 128 KiB for weights and 12.5 KiB per sequence.
        assert_eq!((clusters.rows_per_cluster(56), clusters.rows_per_cluster(57)), (Some(7), None));
        // In the backward pass, 18 KiB per sequence for the exchange and 8 KiB for the sums.
        let clusters =
            ClusterConfig::choose_cluster(Pass::Backward, 512, SM_90_SHARED_BYTES, |_| Ok(8)).unwrap().unwrap();
        assert_eq!((clusters.rows_per_cluster(24), clusters.rows_per_cluster(25)), (Some(3), None));
        // Limited by the number of threads.
        let clusters =
            ClusterConfig::choose_cluster(Pass::Forward, 64, SM_90_SHARED_BYTES, |_| Ok(2)).unwrap().unwrap();
        assert_eq!((clusters.rows_per_cluster(8), clusters.rows_per_cluster(9)), (Some(4), None));
    }

    #[test]
    fn every_unit_has_a_thread_and_fits_in_shared_memory() {
        for hidden in 1..=MAX_HIDDEN {
            for (largest_cluster, pass) in CLUSTER_SIZES
                .into_iter()
                .flat_map(|cluster_size| [(cluster_size, Pass::Forward), (cluster_size, Pass::Backward)])
            {
                let clusters = ClusterConfig::choose_cluster(pass, hidden, SM_90_SHARED_BYTES, |cluster_size| {
                    Ok((cluster_size <= largest_cluster).into())
                })
                .unwrap();
                let Some(c) = clusters else { continue };
                assert!(
                    c.units_per_block * c.cluster_size as usize >= hidden
                        && c.quads_in_registers * c.depth_blocks <= MAX_THREADS
                );
                assert!(c.sum_quads <= 2 * c.quads_in_registers && c.sum_quads == pass.sum_quads(c.units_per_block));
                let rows = c.rows_per_cluster(1).expect("one sequence always fits");
                assert!(c.shared_bytes(rows) <= SM_90_SHARED_BYTES as usize);
            }
        }
    }
}
