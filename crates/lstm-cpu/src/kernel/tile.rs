//! The tile kernel: a few rows of activations times one panel of weights.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use std::ptr::null;

use lstm_core::arithmetic::DOT_BLOCK;

use crate::kernel::{
    simd::{Simd, load_strided},
    strided::StridedMatrix,
    table::PANEL_VECTORS,
};

/// Arguments of a [`TileKernel`]: `out[r] = sum over k of a[r][k] * panel[k]`, or that sum added to `out[r]`.
#[derive(Clone, Copy)]
pub(crate) struct TileArgs {
    /// Number of products in each sum. If they are a part of a longer sum, the index of the first product in the longer
    /// sum is a multiple of `DOT_BLOCK`.
    pub(crate) k: usize,
    /// Rows of activations, `k` columns.
    pub(crate) a: StridedMatrix,
    /// `k` panel rows of `PANEL_VECTORS` vectors.
    pub(crate) panel: *const f32,
    /// Output, one panel row per row of `a`.
    pub(crate) out: *mut f32,
    /// Leading dimension of `out`, in floats.
    pub(crate) ldo: usize,
    /// Whether the sums are added to `out`. If so, `out` holds the sums of the preceding blocks on entry.
    pub(crate) accumulate: bool,
    /// The panel that the caller will multiply by next, to be prefetched. Null if that panel follows the current one in
    /// memory. Only [`Kernels::multiply_panel`](crate::kernel::table::Kernels::multiply_panel) reads this field. If its
    /// rows need several tiles, it prefetches the rest of the current panel first.
    pub(crate) next_panel: *const f32,
    /// First address to prefetch, which need not be valid. `Kernels::multiply_panel` prefetches it instead of panels,
    /// unless it is null.
    pub(crate) prefetch_ptr: *const f32,
    /// Number of floats by which a tile kernel advances the prefetch address after each of the `k` products. If the
    /// rows need several tiles, `Kernels::multiply_panel` divides this number among them.
    pub(crate) prefetch_stride: usize,
}

impl TileArgs {
    /// Arguments for complete sums of `k` products, with default prefetching.
    pub(crate) fn new(k: usize, a: StridedMatrix, panel: *const f32, out: *mut f32, ldo: usize) -> Self {
        TileArgs {
            k,
            a,
            panel,
            out,
            ldo,
            accumulate: false,
            next_panel: null(),
            prefetch_ptr: null(),
            prefetch_stride: 0,
        }
    }
}

/// A kernel that multiplies a fixed number of rows by one panel.
///
/// # Safety
/// The pointers are valid for what [`TileArgs`] describes.
pub(crate) type TileKernel = unsafe fn(&TileArgs);

/// A [`TileKernel`] for `ROWS` rows. It sums `BLOCKS` blocks at once, so that there are enough independent sums to hide
/// the latency of fused multiply-add even with few rows.
///
/// # Safety
/// As for [`TileKernel`] and [`Simd`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const ROWS: usize, const BLOCKS: usize>(args: &TileArgs) {
    debug_assert!(args.a.col_stride == 1 || args.a.row_stride == 1);
    // SAFETY: guaranteed by the caller.
    unsafe {
        match args.a.col_stride {
            1 => tile_with_layout::<S, ROWS, BLOCKS, false>(args),
            _ => tile_with_layout::<S, ROWS, BLOCKS, true>(args),
        }
    }
}

/// Does what [`tile`] does, for activations whose columns are adjacent in memory, or, if `TRANSPOSED`, whose rows are
/// adjacent. The layout is a compile-time constant to save address arithmetic: integer additions compete with
/// multiply-adds for execution ports.
///
/// # Safety
/// As for [`TileKernel`] and [`Simd`]. `args.a.row_stride` is 1 if `TRANSPOSED`, else `args.a.col_stride` is 1.
#[inline(always)]
unsafe fn tile_with_layout<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(args: &TileArgs) {
    let width = PANEL_VECTORS * S::LANES;
    let mut start = 0;
    while start < args.k {
        // SAFETY: guaranteed by the caller, as `start < k`.
        unsafe {
            let block_args = TileArgs {
                k: DOT_BLOCK.min(args.k - start),
                a: args.a.offset(0, start / DOT_BLOCK),
                panel: args.panel.add(start * width),
                accumulate: args.accumulate || start > 0,
                prefetch_ptr: args.prefetch_ptr.wrapping_add(start * args.prefetch_stride),
                ..*args
            };
            if BLOCKS > 1 && args.k - start >= BLOCKS * DOT_BLOCK {
                tile_blocks::<S, ROWS, BLOCKS, TRANSPOSED>(&block_args);
                start += BLOCKS * DOT_BLOCK;
            } else {
                tile_blocks::<S, ROWS, 1, TRANSPOSED>(&block_args);
                start += DOT_BLOCK;
            }
        }
    }
}

/// Number of products per iteration of the unrolled loop, which saves address arithmetic. In measurements, eight were
/// slower and two almost as fast.
const UNROLL: usize = 4;

/// Sums `BLOCKS` adjacent blocks of `args.k` products each. If there is more than one block, `args.k` is `DOT_BLOCK`.
///
/// # Safety
/// As for [`tile_with_layout`].
#[inline(always)]
unsafe fn tile_blocks<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(args: &TileArgs) {
    // SAFETY: guaranteed by the caller: there are `args.k` products, and each call adds one of them.
    unsafe {
        let mut sums = [[[S::splat(0.0); PANEL_VECTORS]; ROWS]; BLOCKS];
        let mut k = 0;
        while k + UNROLL <= args.k {
            for offset in 0..UNROLL {
                add_product::<S, ROWS, BLOCKS, TRANSPOSED>(args, k, offset, &mut sums);
            }
            k += UNROLL;
        }
        while k < args.k {
            add_product::<S, ROWS, BLOCKS, TRANSPOSED>(args, k, 0, &mut sums);
            k += 1;
        }
        for r in 0..ROWS {
            for j in 0..PANEL_VECTORS {
                let out = args.out.add(r * args.ldo + j * S::LANES);
                let mut total = if args.accumulate { S::load(out).add(sums[0][r][j]) } else { sums[0][r][j] };
                for q in 1..BLOCKS {
                    total = total.add(sums[q][r][j]);
                }
                total.store(out);
            }
        }
    }
}

/// Adds product `k + offset` to every sum.
///
/// # Safety
/// As for [`tile_with_layout`], with `k + offset < args.k`.
#[inline(always)]
unsafe fn add_product<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(
    args: &TileArgs,
    k: usize,
    offset: usize,
    sums: &mut [[[S; PANEL_VECTORS]; ROWS]; BLOCKS],
) {
    let (a, width) = (args.a, PANEL_VECTORS * S::LANES);
    // SAFETY: guaranteed by the caller.
    unsafe {
        // With one or two rows, memory bandwidth is the limit, and prefetching gains nothing.
        if ROWS > 2 {
            S::prefetch(args.prefetch_ptr.wrapping_add((k + offset) * args.prefetch_stride));
        }
        for q in 0..BLOCKS {
            // Adding the constant last lets the load instruction encode it as its displacement.
            let b = args.panel.add(k * width).add((q * DOT_BLOCK + offset) * width);
            let b: [S; PANEL_VECTORS] = load_strided(b, S::LANES);
            for r in 0..ROWS {
                let block_ptr = a.ptr.add(q * a.block_stride);
                let element_ptr = match TRANSPOSED {
                    true => block_ptr.add((k + offset) * a.col_stride + r),
                    false => block_ptr.add(r * a.row_stride + k).add(offset),
                };
                let a = S::splat(*element_ptr);
                for j in 0..PANEL_VECTORS {
                    sums[q][r][j] = a.fma(b[j], sums[q][r][j]);
                }
            }
        }
    }
}
