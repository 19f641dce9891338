//! The product of any number of rows with one panel.

use lstm_core::arithmetic::BLOCK;

use crate::{
    kernel::{table::Kernels, tile::TileArgs},
    memory::buffer::CACHE_LINE_FLOATS,
};

/// Number of products that are added to the sums of all rows before the next products are added. The panel rows for
/// these products stay in the first-level cache while all rows use them. A multiple of `BLOCK`.
const K_SLICE: usize = 4 * BLOCK;

impl Kernels {
    /// Multiplies `rows` rows by one panel. `rows` may be zero or exceed the largest tile. `args` describes the first
    /// row and the first product.
    ///
    /// # Safety
    /// As for [`TileKernel`](crate::kernel::tile::TileKernel).
    pub(crate) unsafe fn multiply_panel(&self, rows: usize, args: TileArgs) {
        let following = args.panel.wrapping_add(args.k * self.panel_width());
        let next_panel = if args.next_panel.is_null() { following } else { args.next_panel };
        if (1..=self.tiles.len()).contains(&rows) {
            let (prefetch, prefetch_stride) = match args.prefetch.is_null() {
                true => (next_panel, CACHE_LINE_FLOATS),
                false => (args.prefetch, args.prefetch_stride),
            };
            // SAFETY: guaranteed by the caller.
            return unsafe { self.tiles[rows - 1](&TileArgs { prefetch, prefetch_stride, ..args }) };
        }
        // All rows are multiplied by one slice of the panel before the next slice. The rows are divided evenly into
        // groups of one tile each. The first group brings the slice into the cache, so it gets one row of the last
        // group if the tiles are large enough.
        let groups = rows.div_ceil(self.tiles.len());
        let (base_height, taller_groups) = (rows / groups.max(1), rows % groups.max(1));
        let shift_row = base_height > 3 && base_height + taller_groups.min(1) < self.tiles.len();
        let extra = |group: usize| usize::from(group < taller_groups) + usize::from(shift_row && group == 0);
        let missing = |group: usize| usize::from(shift_row && group + 1 == groups);
        // Each group prefetches an even share. More at once would evict what is needed now.
        let prefetch_stride = if args.prefetch.is_null() { self.panel_width() } else { args.prefetch_stride };
        let prefetch_stride = prefetch_stride.div_ceil(groups.max(1)).min(CACHE_LINE_FLOATS);
        for start in (0..args.k).step_by(K_SLICE) {
            let prefetch = match args.prefetch.is_null() {
                true if start + K_SLICE < args.k => args.panel.wrapping_add((start + K_SLICE) * self.panel_width()),
                true => next_panel,
                false => args.prefetch.wrapping_add(start * groups * prefetch_stride),
            };
            let mut row = 0;
            for group in 0..groups {
                let height = base_height + extra(group) - missing(group);
                // SAFETY: guaranteed by the caller; the heights of the groups add up to `rows`, and `start < k`.
                unsafe {
                    self.tiles[height - 1](&TileArgs {
                        k: K_SLICE.min(args.k - start),
                        a: args.a.offset(row, start / BLOCK),
                        panel: args.panel.add(start * self.panel_width()),
                        out: args.out.add(row * args.ldo),
                        accumulate: args.accumulate || start > 0,
                        prefetch: prefetch.wrapping_add(group * K_SLICE * prefetch_stride),
                        prefetch_stride,
                        ..args
                    });
                }
                row += height;
            }
        }
    }
}
