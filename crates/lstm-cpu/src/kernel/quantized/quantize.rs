//! The kernel that quantizes rows of activations.

use lstm_core::{
    arithmetic::{MAGNITUDE_BITS, ROUNDING_MAGIC},
    quantized::{OperandRange, RowScale, ScaleTable},
};

use crate::kernel::{
    quantized::{integers::Integers, tile::IntegerRows},
    simd::Simd,
};

/// Arguments of the kernel that quantizes rows.
pub(crate) struct QuantizeArgs<'a> {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Number of values in a row.
    pub(crate) k: usize,
    /// Snapped values, rows `ldx` floats apart.
    pub(crate) x: *const f32,
    pub(crate) ldx: usize,
    /// The range of the values.
    pub(crate) range: OperandRange,
    /// The constants of the layer's format.
    pub(crate) table: &'a ScaleTable,
    /// Output.
    pub(crate) to: IntegerRows,
}

/// Quantizes rows as [`Format::multiply_row`](lstm_core::quantized::Format::multiply_row) does.
///
/// # Safety
/// The pointers are valid for what [`QuantizeArgs`] describes; otherwise as for [`Integers`].
#[inline(always)]
pub(crate) unsafe fn quantize_rows<I: Integers, const ELEMENT_BYTES: usize>(args: &QuantizeArgs<'_>) {
    for row in 0..args.rows {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (x, to) = (args.x.add(row * args.ldx), args.to.skip(row));
            *to.factors = quantize_row::<I, ELEMENT_BYTES>(x, args.k, args.range, args.table, to.q);
        }
    }
}

/// Quantizes a row of `k` values and returns the factor from an integer to a value.
///
/// # Safety
/// As for [`quantize_rows`].
#[inline(always)]
pub(crate) unsafe fn quantize_row<I: Integers, const ELEMENT_BYTES: usize>(
    x: *const f32,
    k: usize,
    range: OperandRange,
    table: &ScaleTable,
    q: *mut i32,
) -> f32 {
    let (lanes, q) = (I::Floats::LANES, q.cast::<u8>());
    let whole_vectors = k / lanes * lanes;
    // SAFETY: guaranteed by the caller.
    unsafe {
        // The values after the last whole vector, then zeros.
        let rest = I::Floats::load_first(k - whole_vectors, x.add(whole_vectors));
        let mut magnitudes = I::from_bits(rest.and_bits(MAGNITUDE_BITS));
        for n in (0..whole_vectors).step_by(lanes) {
            magnitudes = magnitudes.max(I::from_bits(I::Floats::load(x.add(n)).and_bits(MAGNITUDE_BITS)));
        }
        let RowScale { to_integer, from_integer } = table.row_scale(magnitudes.max_lane() as u32, range);
        // The low bits of the sum are the integer, as in `lstm_core::quantized::to_int`.
        let offset = if ELEMENT_BYTES == 1 { I::ACTIVATION_OFFSET } else { 0 };
        let magic = I::Floats::splat(ROUNDING_MAGIC + f32::from(offset));
        if to_integer == 0.0 {
            // The product with a value that is not finite would be NaN.
            for n in (0..k).step_by(lanes) {
                I::from_bits(magic).store_low::<ELEMENT_BYTES>(q.add(n * ELEMENT_BYTES));
            }
            return from_integer;
        }
        let factor = I::Floats::splat(to_integer);
        for n in (0..whole_vectors).step_by(lanes) {
            let rounded = I::Floats::load(x.add(n)).fma(factor, magic);
            I::from_bits(rounded).store_low::<ELEMENT_BYTES>(q.add(n * ELEMENT_BYTES));
        }
        if whole_vectors < k {
            I::from_bits(rest.fma(factor, magic)).store_low::<ELEMENT_BYTES>(q.add(whole_vectors * ELEMENT_BYTES));
        }
        from_integer
    }
}
