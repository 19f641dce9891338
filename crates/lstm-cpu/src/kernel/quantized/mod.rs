//! The kernels of quantized layers. A panel of quantized weights has the layout of a panel of floats, with words of
//! adjacent integers in place of the floats: `[words of a row][panel]`. The dot product of the words of a row of
//! activations and a panel row takes the place of the multiply-add.

pub(crate) mod integers;
pub(crate) mod quantize;
pub(crate) mod single_row;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

use std::fmt;

pub(crate) use quantize::QuantizeArgs;
pub(crate) use single_row::{QuantizedSingleRowArgs, QuantizedSingleRowKernel};
pub(crate) use tile::{BLOCK_WORDS, IntegerRows, QuantizedPanel, QuantizedTileArgs, QuantizedTileKernel};

use crate::{kernel::table::Kernels, memory::buffer::CACHE_LINE_FLOATS};

/// The kernels of one instruction set for one quantized precision.
pub(crate) struct QuantizedKernels {
    /// The kernels that do not depend on the precision.
    pub(crate) kernels: &'static Kernels,
    /// Number of bytes of an integer.
    pub(crate) bytes: usize,
    /// What is added to each activation; see [`Integers::ACTIVATION_OFFSET`](integers::Integers::ACTIVATION_OFFSET).
    pub(crate) activation_offset: i32,
    /// Quantizes rows of activations.
    pub(crate) quantize_rows: unsafe fn(&QuantizeArgs<'_>),
    /// The kernels that multiply rows by a panel. `tile_kernels[r - 1]` multiplies `r` rows.
    pub(crate) tile_kernels: &'static [QuantizedTileKernel],
    /// The kernels that compute a whole time step of one row. `single_row_kernels[p - 1]` computes `p` panels.
    pub(crate) single_row_kernels: &'static [QuantizedSingleRowKernel],
}

impl fmt::Debug for QuantizedKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantizedKernels({} lanes, {} bytes)", self.kernels.lanes, self.bytes)
    }
}

impl QuantizedKernels {
    /// Number of words that hold `k` integers.
    pub(crate) fn words(&self, k: usize) -> usize {
        (k * self.bytes).div_ceil(4)
    }

    /// Number of words between rows of `k` quantized activations. An odd number of cache lines, so that a column of
    /// rows does not fall into few sets of the cache.
    pub(crate) fn row_stride(&self, k: usize) -> usize {
        (self.words(k).div_ceil(CACHE_LINE_FLOATS) | 1) * CACHE_LINE_FLOATS
    }

    /// Multiplies `count` rows by one panel. `count` may be zero, or more than one tile kernel handles. `next_panel` is
    /// the panel that the caller will multiply by next.
    ///
    /// # Safety
    /// As for [`QuantizedTileKernel`], with `count` rows.
    pub(crate) unsafe fn multiply_panel(&self, count: usize, args: QuantizedTileArgs, next_panel: *const i32) {
        // The rows are divided evenly into groups of one tile each. Each group prefetches a share of the next panel,
        // which has `PANEL_VECTORS` vectors for each word.
        let groups = count.div_ceil(self.tile_kernels.len());
        let lines = self.kernels.panel_width().div_ceil(CACHE_LINE_FLOATS);
        let mut row = 0;
        for group in 0..groups {
            let group_rows = (count - row).div_ceil(groups - group);
            let share = next_panel.wrapping_add(group % lines * args.panel.words * CACHE_LINE_FLOATS);
            // SAFETY: guaranteed by the caller; the heights of the groups add up to `count`.
            unsafe {
                self.tile_kernels[group_rows - 1](&QuantizedTileArgs {
                    rows: args.rows.skip(row),
                    addend: args.addend.add(row * args.addend_stride),
                    out: args.out.add(row * args.ldo),
                    prefetch: share,
                    ..args
                });
            }
            row += group_rows;
        }
    }
}

/// Compiles the kernels of quantized layers for one vector type and its target features, and puts them into a static
/// `QUANTIZED`: first those of int8, then those of int12. Needs a static `KERNELS` with the same number of lanes. The
/// lists are those of `define_kernels!`: numbers of rows, or of panels, and of sums into which the kernel splits each sum.
macro_rules! define_quantized_kernels {
    (
        $integers:ty $(, $features:literal)?;
        tiles: $($rows:literal x $splits:literal),+;
        single_row: $($panels:literal x $row_splits:literal),*
    ) => {
        pub(crate) static QUANTIZED: [$crate::kernel::quantized::QuantizedKernels; 2] = [
            $crate::kernel::quantized::define_quantized_kernels!(
                @bytes 1, $integers $(, $features)?; [$([$rows, $splits]),+]; [$([$panels, $row_splits]),*]
            ),
            $crate::kernel::quantized::define_quantized_kernels!(
                @bytes 2, $integers $(, $features)?; [$([$rows, $splits]),+]; [$([$panels, $row_splits]),*]
            ),
        ];
    };
    (@bytes $bytes:literal, $integers:ty $(, $features:literal)?; [$([$rows:literal, $splits:literal]),+]; [$([$panels:literal, $row_splits:literal]),*]) => {{
        // SAFETY of the functions below: the processor must support the target features, and the arguments must satisfy
        // the generic kernel.
        $(#[target_feature(enable = $features)])?
        unsafe fn quantize_rows(args: &$crate::kernel::quantized::QuantizeArgs<'_>) {
            // SAFETY: guaranteed by the caller.
            unsafe { $crate::kernel::quantized::quantize::quantize_rows::<$integers, $bytes>(args) }
        }
        $crate::kernel::quantized::QuantizedKernels {
            kernels: &KERNELS,
            bytes: $bytes,
            activation_offset: if $bytes == 1 {
                <$integers as $crate::kernel::quantized::integers::Integers>::ACTIVATION_OFFSET as i32
            } else {
                0
            },
            quantize_rows,
            tile_kernels: $crate::kernel::table::kernel_table!(
                quantized_tile($crate::kernel::quantized::QuantizedTileArgs), $integers $(, $features)?;
                $([$bytes, $rows, $splits]),+
            ),
            single_row_kernels: $crate::kernel::table::kernel_table!(
                quantized_single_row($crate::kernel::quantized::QuantizedSingleRowArgs<'_>), $integers $(, $features)?;
                $([$bytes, $panels, $row_splits]),*
            ),
        }
    }};
}
pub(crate) use define_quantized_kernels;
