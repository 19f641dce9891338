//! The product of any number of rows with one panel.

use lstm_core::arithmetic::DOT_BLOCK;

use crate::{
    kernel::{table::Kernels, tile::TileArgs},
    memory::buffer::CACHE_LINE_FLOATS,
};

/// Number of panel rows by which all rows of activations are multiplied before the next panel rows are used, so that
/// these panel rows stay in the first-level cache. A multiple of `DOT_BLOCK`.
const K_SLICE_LEN: usize = 4 * DOT_BLOCK;

impl Kernels {
    /// Multiplies `rows` rows by one panel. `rows` may be zero, or more than one tile kernel handles. The pointers in
    /// `args` are those of the first row.
    ///
    /// # Safety
    /// As for [`TileKernel`](crate::kernel::tile::TileKernel).
    pub(crate) unsafe fn multiply_panel(&self, rows: usize, args: TileArgs) {
        let following_panel = args.panel.wrapping_add(args.k * self.panel_width());
        let next_panel = if args.next_panel.is_null() { following_panel } else { args.next_panel };
        if (1..=self.tile_kernels.len()).contains(&rows) {
            let (prefetch_ptr, prefetch_stride) = match args.prefetch_ptr.is_null() {
                true => (next_panel, CACHE_LINE_FLOATS),
                false => (args.prefetch_ptr, args.prefetch_stride),
            };
            // SAFETY: guaranteed by the caller.
            return unsafe { self.tile_kernels[rows - 1](&TileArgs { prefetch_ptr, prefetch_stride, ..args }) };
        }
        // All rows are multiplied by one slice of the panel before the next slice. The rows are divided evenly into
        // groups of one tile each. The first group brings the slice into the cache, so it gets one row of the last
        // group if the tiles are large enough.
        let group_count = rows.div_ceil(self.tile_kernels.len());
        let (rows_per_group, larger_group_count) = (rows / group_count.max(1), rows % group_count.max(1));
        let moves_row_to_first_group =
            rows_per_group > 3 && rows_per_group + larger_group_count.min(1) < self.tile_kernels.len();
        let extra_rows = |group: usize| {
            usize::from(group < larger_group_count) + usize::from(moves_row_to_first_group && group == 0)
        };
        let removed_rows = |group: usize| usize::from(moves_row_to_first_group && group + 1 == group_count);
        // Each group prefetches an even share. More at once would evict what is needed now.
        let prefetch_stride = if args.prefetch_ptr.is_null() { self.panel_width() } else { args.prefetch_stride };
        let prefetch_stride = prefetch_stride.div_ceil(group_count.max(1)).min(CACHE_LINE_FLOATS);
        for start in (0..args.k).step_by(K_SLICE_LEN) {
            let prefetch_ptr = match args.prefetch_ptr.is_null() {
                true if start + K_SLICE_LEN < args.k => {
                    args.panel.wrapping_add((start + K_SLICE_LEN) * self.panel_width())
                }
                true => next_panel,
                false => args.prefetch_ptr.wrapping_add(start * group_count * prefetch_stride),
            };
            let mut row = 0;
            for group in 0..group_count {
                let group_rows = rows_per_group + extra_rows(group) - removed_rows(group);
                // SAFETY: guaranteed by the caller; the heights of the groups add up to `rows`, and `start < k`.
                unsafe {
                    self.tile_kernels[group_rows - 1](&TileArgs {
                        k: K_SLICE_LEN.min(args.k - start),
                        a: args.a.offset(row, start / DOT_BLOCK),
                        panel: args.panel.add(start * self.panel_width()),
                        out: args.out.add(row * args.ldo),
                        accumulate: args.accumulate || start > 0,
                        prefetch_ptr: prefetch_ptr.wrapping_add(group * K_SLICE_LEN * prefetch_stride),
                        prefetch_stride,
                        ..args
                    });
                }
                row += group_rows;
            }
        }
    }
}
