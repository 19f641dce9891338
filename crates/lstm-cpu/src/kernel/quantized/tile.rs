//! The tile kernel of quantized layers: a few rows of activations times one panel of weights.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use crate::kernel::{quantized::integers::Integers, simd::Simd, table::PANEL_VECTORS};

/// Number of words of a row in a block of exact sums, with either precision.
pub(crate) const BLOCK_WORDS: usize = 256;

/// Number of words in a cache line.
const CACHE_LINE_WORDS: usize = 16;

/// Quantized rows of activations, which are multiplied by panels.
#[derive(Clone, Copy)]
pub(crate) struct IntegerRows {
    /// The integers, in words. A row has memory up to the next multiple of `LANES` integers.
    pub(crate) q: *mut i32,
    /// Number of words between rows.
    pub(crate) stride: usize,
    /// The factor from an integer to a value, of each row.
    pub(crate) factors: *mut f32,
}

impl IntegerRows {
    /// The rows from number `row` on.
    ///
    /// # Safety
    /// There are at least `row` rows.
    #[inline(always)]
    pub(crate) unsafe fn skip(self, row: usize) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { IntegerRows { q: self.q.add(row * self.stride), factors: self.factors.add(row), ..self } }
    }
}

/// One panel of quantized weights.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedPanel {
    /// Number of words of a row of activations.
    pub(crate) words: usize,
    /// The integers, `[words][panel]` words.
    pub(crate) weights: *const i32,
    /// The integers at which the sums of each block start, `[blocks][panel]`.
    pub(crate) starts: *const i32,
    /// The scale of each row of weights, `[panel]`.
    pub(crate) scales: *const f32,
}

/// Arguments of a [`QuantizedTileKernel`]: for each block of words,
/// `z[r] = fma(sum over k of rows[r][k] * panel[k], scale * factor[r], z[r])`.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedTileArgs {
    pub(crate) rows: IntegerRows,
    pub(crate) panel: QuantizedPanel,
    /// What the results are added to, one panel row per row.
    pub(crate) addend: *const f32,
    /// Leading dimension of `addend` in floats: 0 if all rows have the same addend.
    pub(crate) addend_stride: usize,
    /// Output `z`, one panel row per row.
    pub(crate) out: *mut f32,
    /// Leading dimension of `out`, in floats.
    pub(crate) ldo: usize,
    /// First address to prefetch, which need not be valid: a cache line for each word.
    pub(crate) prefetch: *const i32,
}

/// A kernel that multiplies a fixed number of rows by one panel.
///
/// # Safety
/// The pointers are valid for what [`QuantizedTileArgs`] describes.
pub(crate) type QuantizedTileKernel = unsafe fn(&QuantizedTileArgs);

/// A [`QuantizedTileKernel`] for `ROWS` rows. It splits each sum into `SPLITS` sums, so that there are enough
/// independent ones to hide the latency of the dot product even with few rows. The order of an exact sum is free.
///
/// # Safety
/// As for [`QuantizedTileKernel`] and [`Integers`].
#[inline(always)]
pub(crate) unsafe fn quantized_tile<I: Integers, const ELEMENT_BYTES: usize, const ROWS: usize, const SPLITS: usize>(
    args: &QuantizedTileArgs,
) {
    let (lanes, width) = (I::Floats::LANES, PANEL_VECTORS * I::Floats::LANES);
    let QuantizedTileArgs { rows, panel, .. } = *args;
    let (mut first_word, mut starts) = (0, panel.starts);
    while first_word < panel.words {
        let words = BLOCK_WORDS.min(panel.words - first_word);
        // SAFETY: guaranteed by the caller, as `first_word + words <= panel.words`.
        unsafe {
            let mut sums = [[[I::splat(0); PANEL_VECTORS]; ROWS]; SPLITS];
            for j in 0..PANEL_VECTORS {
                for r in 0..ROWS {
                    sums[0][r][j] = I::load(starts.add(j * lanes));
                }
            }
            let (a, w) = (rows.q.add(first_word), panel.weights.add(first_word * width));
            let prefetch = args.prefetch.wrapping_add(first_word * CACHE_LINE_WORDS);
            let mut k = 0;
            while k + SPLITS <= words {
                for split in 0..SPLITS {
                    // With one or two rows, memory bandwidth is the limit, and prefetching gains nothing.
                    if ROWS > 2 {
                        I::prefetch(prefetch.wrapping_add((k + split) * CACHE_LINE_WORDS));
                    }
                    add_products::<I, ELEMENT_BYTES, ROWS>(
                        a.add(k).add(split),
                        rows.stride,
                        w.add(k * width).add(split * width),
                        &mut sums[split],
                    );
                }
                k += SPLITS;
            }
            while k < words {
                add_products::<I, ELEMENT_BYTES, ROWS>(a.add(k), rows.stride, w.add(k * width), &mut sums[0]);
                k += 1;
            }
            for r in 0..ROWS {
                let factor = I::Floats::splat(*rows.factors.add(r));
                let out = args.out.add(r * args.ldo);
                let addend = if first_word == 0 { args.addend.add(r * args.addend_stride) } else { out };
                for j in 0..PANEL_VECTORS {
                    let mut sum = sums[0][r][j];
                    for split in 1..SPLITS {
                        sum = sum.add(sums[split][r][j]);
                    }
                    let scale = I::Floats::load(panel.scales.add(j * lanes)).mul(factor);
                    sum.to_floats().fma(scale, I::Floats::load(addend.add(j * lanes))).store(out.add(j * lanes));
                }
            }
            starts = starts.add(width);
        }
        first_word += words;
    }
}

/// Adds the products of one word of each row and one panel row to the sums.
///
/// # Safety
/// As for [`quantized_tile`].
#[inline(always)]
unsafe fn add_products<I: Integers, const ELEMENT_BYTES: usize, const ROWS: usize>(
    a: *const i32,
    stride: usize,
    weights: *const i32,
    sums: &mut [[I; PANEL_VECTORS]; ROWS],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut w = [I::splat(0); PANEL_VECTORS];
        for j in 0..PANEL_VECTORS {
            w[j] = I::load(weights.add(j * I::Floats::LANES));
        }
        for r in 0..ROWS {
            let a = I::splat(*a.add(r * stride));
            for j in 0..PANEL_VECTORS {
                sums[r][j] = sums[r][j].dot::<ELEMENT_BYTES>(a, w[j]);
            }
        }
    }
}
