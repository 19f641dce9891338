//! How a layer's units are divided among blocks that are resident at the same time, and launches of the `persistent`
//! kernels.

use bytemuck::Pod;
use lstm_core::{LayerSpec, Result, arithmetic::DOT_BLOCK};

use super::Pass;
use crate::driver::{Driver, Launch, checked_u32};

/// The largest number of threads per block: with more, a thread has too few registers for its weights.
pub(crate) const MAX_THREADS: usize = 256;

/// Number of floats in shared memory from the start of one block of `DOT_BLOCK` elements to the start of the next; the
/// floats between the blocks are padding.
pub(crate) const SHARED_BLOCK_STRIDE: usize = DOT_BLOCK + 4;

/// The largest size of a row group, a group of sequences that a block processes together.
pub(crate) const MAX_GROUP_ROWS: usize = 8;

/// Least work for which a batch is divided into at least two row groups. The work is the number of weight slices times
/// the batch size, about the number of cycles that a multiprocessor needs to start the multiply-adds. With less work,
/// the barrier that a further group needs costs more than the group saves. The value is an estimate, not a measurement.
const MIN_WORK_TO_SPLIT_BATCH: usize = 512;

/// The number of `float4` loads that each thread starts before it waits for the first.
const LOADS_IN_FLIGHT: usize = 8;

/// How a layer is divided among blocks, for one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PersistentConfig {
    pass: Pass,
    has_projection: bool,
    /// Number of blocks of `DOT_BLOCK` elements in each row that a thread block loads: see [`Pass::depth_blocks`]. With
    /// a projection, the rows of the recurrent product and of the projection differ in length, and this is the number
    /// for the longer ones.
    depth_blocks: usize,
    /// Number of hidden units that each thread block computes.
    pub(crate) units_per_block: usize,
    /// Number of elements of h that each block computes. With a projection they are fewer than the units.
    pub(crate) features_per_block: usize,
    /// Number of weight slices per thread block. A weight slice holds the weights of one quad (four sums) for one block
    /// of the inner dimension; a thread keeps it in registers. With a projection, this is the larger of the numbers for
    /// the recurrent product and the projection.
    weight_slices: usize,
    /// Number of thread blocks.
    blocks: usize,
    /// Limit of shared memory per block, in bytes.
    max_shared_bytes: u32,
}

impl PersistentConfig {
    /// Divides the layer among as many blocks as can be resident at the same time. `None` if the weights do not fit in
    /// the registers of these blocks, or if the device has no cooperative launches.
    pub(crate) fn new(driver: &impl Driver, spec: &LayerSpec, pass: Pass) -> Result<Option<Self>> {
        let (threads, max_shared_bytes) = (MAX_THREADS as u32, driver.max_shared_bytes());
        let resident_blocks =
            driver.resident_blocks("load", kernel_name(spec.proj_size.is_some(), pass), threads, max_shared_bytes)?;
        if resident_blocks == 0 {
            return Ok(None);
        }
        let config = PersistentConfig::divide_layer(spec, pass, resident_blocks, max_shared_bytes);
        let fits = config.weight_slices <= MAX_THREADS && config.shared_bytes(1, 1) <= max_shared_bytes;
        Ok(fits.then_some(config))
    }

    /// Divides the layer among at most `resident_blocks` blocks, whether its weights fit or not. In the backward pass
    /// the features per block are a multiple of four, since a thread always computes the sums of one gate for four
    /// units.
    fn divide_layer(spec: &LayerSpec, pass: Pass, resident_blocks: usize, max_shared_bytes: u32) -> Self {
        let (hidden, state_size, has_projection) = (spec.hidden_size, spec.state_size(), spec.proj_size.is_some());
        let (mut units_per_block, mut features_per_block) =
            (hidden.div_ceil(resident_blocks), state_size.div_ceil(resident_blocks));
        if pass == Pass::Backward {
            features_per_block = features_per_block.next_multiple_of(4);
        }
        if !has_projection {
            units_per_block = features_per_block;
        }
        let blocks = hidden.div_ceil(units_per_block).max(state_size.div_ceil(features_per_block));
        // In the forward pass the product with U gives the gates of units, and the projection gives features. In the
        // backward pass it is the reverse.
        let (recurrent_depth, recurrent_outputs, projection_depth, projection_outputs) = match pass {
            Pass::Forward => (state_size, units_per_block, hidden, features_per_block),
            Pass::Backward => (hidden, features_per_block, state_size, units_per_block),
        };
        let projection_slices =
            if has_projection { projection_outputs * projection_depth.div_ceil(DOT_BLOCK) } else { 0 };
        let weight_slices =
            projection_slices.max(pass.sum_quads(recurrent_outputs) * pass.depth_blocks(recurrent_depth));
        PersistentConfig {
            pass,
            has_projection,
            depth_blocks: pass.depth_blocks(hidden),
            units_per_block,
            features_per_block,
            weight_slices,
            blocks,
            max_shared_bytes,
        }
    }

    /// Returns the number of threads per block, for `rows` rows in a group: enough to process each row with its own set
    /// of threads (one per weight slice), to load all rows at once, and to compute one cell per thread, but at most
    /// [`MAX_THREADS`].
    fn threads_per_block(&self, rows: usize) -> usize {
        let thread_groups = (MAX_THREADS / self.weight_slices).min(rows);
        let loading_threads = (rows * self.depth_blocks * DOT_BLOCK / 4).div_ceil(LOADS_IN_FLIGHT);
        loading_threads
            .max(rows * self.units_per_block)
            .clamp(thread_groups * self.weight_slices, MAX_THREADS)
            .next_multiple_of(32)
    }

    /// Returns how many rows of a group of `rows` rows are loaded and multiplied at a time: as many as all threads can
    /// load at once.
    pub(crate) fn tile_rows(&self, rows: usize) -> usize {
        let loads_per_row = self.depth_blocks * DOT_BLOCK / 4;
        if self.has_projection {
            rows
        } else {
            (self.threads_per_block(rows) * LOADS_IN_FLIGHT / loads_per_row).clamp(1, rows)
        }
    }

    /// Bytes of shared memory per block. Kernels without a projection have two buffers each
    /// for rows of the input and for partial sums of the gates.
    fn shared_bytes(&self, rows: usize, batch: usize) -> u32 {
        let buffer_floats =
            self.tile_rows(rows) * self.depth_blocks * SHARED_BLOCK_STRIDE + rows * 4 * self.weight_slices;
        let shared_floats = if self.has_projection { 1 } else { 2 } * buffer_floats
            + batch * (self.units_per_block + self.features_per_block);
        (shared_floats * 4).try_into().unwrap_or(u32::MAX)
    }

    /// Returns the number of rows (sequences) in a row group; `None` if the batch is too large. A batch with enough
    /// work is divided into at least two groups, so that the products of one group are computed while the cells of
    /// another group are computed and exchanged between blocks.
    pub(crate) fn rows_per_group(&self, batch: usize) -> Option<usize> {
        let max_rows = if batch * self.weight_slices >= MIN_WORK_TO_SPLIT_BATCH { batch.div_ceil(2) } else { batch };
        let fits = |rows: &usize| self.shared_bytes(*rows, batch) <= self.max_shared_bytes;
        let rows = (1..=max_rows.min(MAX_GROUP_ROWS)).rev().find(fits)?;
        // The same number in each group, as far as possible.
        Some(batch.div_ceil(batch.div_ceil(rows)))
    }

    /// Returns the launch of the kernel for a batch, with `rows` rows per group.
    pub(crate) fn launch(&self, op: &'static str, rows: usize, batch: usize, args: impl Pod) -> Result<Launch> {
        checked_u32(op, batch * self.units_per_block)?;
        let kernel = kernel_name(self.has_projection, self.pass);
        let launch = Launch::new(op, kernel, self.blocks, self.threads_per_block(rows) as u32, args)?;
        Ok(Launch { shared_bytes: self.shared_bytes(rows, batch), cooperative: true, ..launch })
    }
}

/// Returns the name of the `persistent` kernel for a pass.
fn kernel_name(has_projection: bool, pass: Pass) -> &'static str {
    match (has_projection, pass) {
        (false, Pass::Forward) => "persistent_forward",
        (false, Pass::Backward) => "persistent_backward",
        (true, Pass::Forward) => "persistent_projected_forward",
        (true, Pass::Backward) => "persistent_projected_backward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::LstmConfig;

    /// Divides a layer for the forward and the backward pass.
    fn divide_layer_for_all_passes(
        hidden: usize,
        proj_size: Option<usize>,
        resident_blocks: usize,
        max_shared_bytes: u32,
    ) -> [PersistentConfig; 2] {
        let config = LstmConfig::new(1, hidden);
        let spec = proj_size.into_iter().fold(config, LstmConfig::proj_size).layer_specs()[0];
        Pass::ALL.map(|pass| PersistentConfig::divide_layer(&spec, pass, resident_blocks, max_shared_bytes))
    }

    #[test]
    fn every_unit_and_feature_has_a_thread() {
        for hidden in 1..=200 {
            for proj_size in
                [None, Some(1), Some(hidden / 2), Some(hidden - 1)].into_iter().filter(|p| p.is_none_or(|p| p > 0))
            {
                for resident_blocks in 1..=hidden + 1 {
                    let state_size = proj_size.unwrap_or(hidden);
                    for config in divide_layer_for_all_passes(hidden, proj_size, resident_blocks, 48 << 10) {
                        assert!(
                            config.blocks <= resident_blocks
                                && config.blocks * config.units_per_block >= hidden
                                && config.blocks * config.features_per_block >= state_size
                        );
                        let (recurrent_depth, sum_quads) = match config.pass {
                            Pass::Forward => (state_size, config.units_per_block),
                            Pass::Backward => {
                                (4 * hidden.div_ceil(DOT_BLOCK) * DOT_BLOCK, config.features_per_block / 4)
                            }
                        };
                        assert!(sum_quads * recurrent_depth.div_ceil(DOT_BLOCK) <= config.weight_slices);
                        let (projection_depth, projection_outputs) = if config.pass == Pass::Forward {
                            (hidden, config.features_per_block)
                        } else {
                            (state_size, config.units_per_block)
                        };
                        assert!(
                            proj_size.is_none()
                                || projection_outputs * projection_depth.div_ceil(DOT_BLOCK) <= config.weight_slices
                        );
                        for rows in [1, 3, 8] {
                            let threads = config.threads_per_block(rows);
                            assert!(
                                config.weight_slices > MAX_THREADS
                                    || threads >= config.weight_slices && threads <= MAX_THREADS
                            );
                            assert!((1..=rows).contains(&config.tile_rows(rows)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn shared_memory_matches_kernel_layout() {
        // Double buffers of rows of h and of sums of depth blocks for four gates, then the block's h and c.
        let [forward, backward] = divide_layer_for_all_passes(37, None, 5, 48 << 10);
        assert_eq!(
            (forward.units_per_block, forward.features_per_block, forward.weight_slices, forward.blocks),
            (8, 8, 16, 5)
        );
        assert_eq!(forward.shared_bytes(3, 5), 4 * (2 * 3 * (2 * 36 + 4 * 16) + 5 * 16));
        assert_eq!(
            (backward.units_per_block, backward.features_per_block, backward.weight_slices, backward.blocks),
            (8, 8, 2 * 8, 5)
        );
        assert_eq!(backward.shared_bytes(3, 5), 4 * (2 * 3 * (4 * 2 * 36 + 4 * 16) + 5 * 16));
        // Single buffers; that of rows has room for the projection's operand, which is longer than h.
        let [forward, backward] = divide_layer_for_all_passes(37, Some(20), 5, 48 << 10);
        assert_eq!((forward.units_per_block, forward.features_per_block, forward.weight_slices), (8, 4, 8));
        assert_eq!((backward.units_per_block, backward.features_per_block, backward.weight_slices), (8, 4, 8));
        assert_eq!(backward.shared_bytes(3, 5), 4 * (3 * (4 * 2 * 36 + 4 * 8) + 5 * 12));
    }

    #[test]
    fn row_groups_and_tiles_of_large_layers() {
        // A device with 132 multiprocessors and one block on each.
        let configs = divide_layer_for_all_passes(1024, None, 132, 227 << 10);
        assert_eq!(
            configs.map(|config| (config.units_per_block, config.weight_slices, config.blocks)),
            [(8, 256, 128); 2]
        );
        for (batch, rows) in [(1, 1), (2, 1), (9, 5), (16, 8), (64, 8), (65, 8)] {
            assert_eq!(configs.map(|config| config.rows_per_group(batch)), [Some(rows); 2], "{batch}");
        }
        // All rows of a tile are loaded at once.
        assert_eq!(configs.map(|config| config.tile_rows(8)), [8, 2]);
        // With spare threads, several groups of threads divide the rows.
        let [forward, backward] = divide_layer_for_all_passes(512, None, 132, 227 << 10);
        assert_eq!((forward.weight_slices, forward.threads_per_block(1), forward.threads_per_block(8)), (64, 64, 256));
        assert_eq!((forward.rows_per_group(7), forward.rows_per_group(8)), (Some(7), Some(4)));
        assert_eq!((backward.units_per_block, backward.blocks, backward.weight_slices), (4, 128, 64));
        // In the backward pass the number of units per block is a multiple of four.
        assert_eq!(
            divide_layer_for_all_passes(256, None, 132, 227 << 10)
                .map(|config| (config.units_per_block, config.blocks)),
            [(2, 128), (4, 64)]
        );
    }

    #[test]
    fn largest_layers_that_fit() {
        // The number of resident blocks, and the largest hidden size that fits in each pass.
        for (resident_blocks, want) in [(80, [800, 672]), (108, [896, 864]), (132, [1024, 1024])] {
            let fits = |hidden, pass: Pass| {
                divide_layer_for_all_passes(hidden, None, resident_blocks, 96 << 10)[pass as usize].weight_slices
                    <= MAX_THREADS
            };
            let largest_hidden_sizes = Pass::ALL.map(|pass| (1..2000).filter(|&hidden| fits(hidden, pass)).max());
            assert_eq!(largest_hidden_sizes, want.map(Some), "{resident_blocks}");
        }
        let weight_slices = |hidden, proj_size| {
            divide_layer_for_all_passes(hidden, Some(proj_size), 132, 227 << 10).map(|config| config.weight_slices)
        };
        assert_eq!(weight_slices(1024, 512), [128, 128]);
        assert_eq!(weight_slices(1600, 512), [208, 208]);
        assert_eq!(weight_slices(2048, 512), [256, 256]);
        assert_eq!(weight_slices(1280, 640), [200, 320]);
    }
}
