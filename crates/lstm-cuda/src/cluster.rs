//! How a small layer's units are shared out among the blocks of a cluster, and launches of that kernel.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::BLOCK};

use crate::{
    driver::{Driver, Launch},
    persistent::{MAX_ROWS, MAX_THREADS, PITCH, Way},
};

/// Larger layers' weights do not fit into the largest cluster.
const MAX_HIDDEN: usize = 512;

/// By [`Way`].
const KERNELS: [&str; 2] = ["cluster", "cluster_back"];

/// Blocks of a cluster: more than 8 are not on every device, and more than 16 on none.
const SIZES: [u32; 5] = [1, 2, 4, 8, 16];

/// A cluster's blocks, and what each of them has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clusters {
    way: Way,
    /// Blocks of the depth.
    depth: usize,
    size: u32,
    pub(crate) units: usize,
    /// Fours of sums over each block of the depth.
    fours: usize,
    /// Those whose weights are in registers; those of the others are in shared memory.
    pub(crate) held: usize,
    /// How many can be there at once.
    count: usize,
    max_shared: u32,
}

impl Clusters {
    /// As few blocks as hold the weights in registers, since what they tell one another is what costs; else as few as hold
    /// them at all. None where there are no such clusters, or for cells whose steps exchange twice.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec, way: Way) -> Result<Option<Self>> {
        if spec.proj_size.is_some() {
            return Ok(None);
        }
        let max_shared = driver.max_shared();
        Clusters::choose(way, spec.hidden_size, max_shared, |size| {
            driver.resident_clusters("load", KERNELS[way as usize], size, MAX_THREADS as u32, max_shared)
        })
    }

    /// `resident` tells how many clusters of so many blocks can be there at once.
    fn choose(
        way: Way,
        hidden: usize,
        max_shared: u32,
        resident: impl Fn(u32) -> Result<usize>,
    ) -> Result<Option<Self>> {
        if hidden > MAX_HIDDEN {
            return Ok(None);
        }
        for in_registers in [true, false] {
            for size in SIZES {
                let (units, depth) = (hidden.div_ceil(size as usize), way.blocks(hidden));
                let fours = way.fours(units);
                let held = fours.min(MAX_THREADS / depth);
                let clusters = Clusters { way, depth, size, units, fours, held, count: 0, max_shared };
                // A thread has the weights of one four in registers, and of one at most in shared memory.
                let fits = fours <= 2 * held && units <= MAX_THREADS && clusters.shared(1) <= max_shared as usize;
                if clusters.is_in_registers() != in_registers || !fits {
                    continue;
                }
                let count = resident(size)?;
                if count > 0 {
                    return Ok(Some(Clusters { count, ..clusters }));
                }
            }
        }
        Ok(None)
    }

    /// Whether registers hold all weights.
    pub(crate) fn is_in_registers(&self) -> bool {
        self.held == self.fours
    }

    /// Bytes of shared memory of a block, for so many sequences.
    fn shared(&self, rows: usize) -> usize {
        let weights = (self.fours - self.held) * self.depth * 4 * BLOCK;
        4 * (rows * (2 * self.depth * PITCH + 4 * self.depth * self.fours) + weights)
    }

    /// How many sequences a cluster has, if clusters that are there at once can have them all.
    pub(crate) fn rows(&self, batch: usize) -> Option<usize> {
        let rows = batch.div_ceil(self.count);
        let fits = rows * self.units <= MAX_THREADS && self.shared(rows) <= self.max_shared as usize;
        (rows <= MAX_ROWS && fits).then_some(rows)
    }

    /// Starts enough clusters for a batch, each with some `rows` of it.
    pub(crate) fn launch(&self, op: &'static str, rows: usize, batch: usize, args: impl Pod) -> Result<Launch> {
        // Groups of threads share out the rows, and each unit of each of these has a thread.
        let groups = (MAX_THREADS / (self.held * self.depth)).min(rows);
        let threads = (groups * self.held * self.depth).max(rows * self.units).next_multiple_of(32) as u32;
        let kernel = KERNELS[self.way as usize];
        let launch = Launch::new(op, kernel, batch.div_ceil(rows) * self.size as usize, threads, args)?;
        // It fits: see `rows`.
        Ok(Launch { shared: self.shared(rows) as u32, cluster: self.size, ..launch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of a block of sm_90.
    const SM_90: u32 = 227 << 10;

    /// Of each way, the blocks, the units of one, and how many of its fours of sums are held.
    fn choose(hidden: usize, largest: u32) -> [Option<(u32, usize, usize)>; 2] {
        [Way::Forward, Way::Back].map(|way| {
            let resident = |size| Ok(if size <= largest { 132 / size as usize } else { 0 });
            Clusters::choose(way, hidden, SM_90, resident).unwrap().map(|c| (c.size, c.units, c.held))
        })
    }

    #[test]
    fn as_few_blocks_as_hold_the_weights() {
        assert_eq!(choose(1, 16), [Some((1, 1, 1)); 2]);
        assert_eq!(choose(64, 16), [Some((1, 64, 64)), Some((1, 64, 16))]);
        assert_eq!(choose(128, 16), [Some((2, 64, 64)), Some((2, 64, 16))]);
        assert_eq!(choose(256, 16), [Some((8, 32, 32)), Some((8, 32, 8))]);
        assert_eq!(choose(320, 16), [Some((16, 20, 20)), Some((16, 20, 5))]);
        // From here on some weights are in shared memory.
        assert_eq!(choose(512, 16), [Some((16, 32, 16)), Some((16, 32, 4))]);
        assert_eq!(choose(320, 8), [Some((8, 40, 25)), Some((8, 40, 6))]);
        assert_eq!(choose(512, 8), [None; 2]);
        assert_eq!(choose(513, 16), [None; 2]);
        assert_eq!(choose(64, 0), [None; 2]);
    }

    #[test]
    fn batches_that_clusters_have_at_once() {
        let clusters = Clusters::choose(Way::Forward, 512, SM_90, |_| Ok(8)).unwrap().unwrap();
        assert_eq!((clusters.rows(1), clusters.rows(8), clusters.rows(9)), (Some(1), Some(1), Some(2)));
        // Shared memory, 227 KiB: 128 for weights, 12.5 for a sequence.
        assert_eq!((clusters.rows(56), clusters.rows(57)), (Some(7), None));
        // 18 for what the way back tells of one, and 8 for its sums.
        let clusters = Clusters::choose(Way::Back, 512, SM_90, |_| Ok(8)).unwrap().unwrap();
        assert_eq!((clusters.rows(24), clusters.rows(25)), (Some(3), None));
        // Threads.
        let clusters = Clusters::choose(Way::Forward, 64, SM_90, |_| Ok(2)).unwrap().unwrap();
        assert_eq!((clusters.rows(8), clusters.rows(9)), (Some(4), None));
    }

    #[test]
    fn every_layer_s_units_have_a_thread_and_fit() {
        for hidden in 1..=MAX_HIDDEN {
            for (largest, way) in SIZES.into_iter().flat_map(|size| [(size, Way::Forward), (size, Way::Back)]) {
                let clusters = Clusters::choose(way, hidden, SM_90, |size| Ok((size <= largest).into())).unwrap();
                let Some(c) = clusters else { continue };
                assert!(c.units * c.size as usize >= hidden && c.held * c.depth <= MAX_THREADS);
                assert!(c.fours <= 2 * c.held && c.fours == way.fours(c.units));
                let rows = c.rows(1).expect("one sequence always fits");
                assert!(c.shared(rows) <= SM_90 as usize);
            }
        }
    }
}
