//! The quantized arithmetic, version 1, as scalar functions: every device must return these results, bit for bit.
//!
//! A quantized matrix holds integers `q` and one scale `s` per row: the weight is about `q s`. A row of inputs is
//! quantized when it is multiplied, with one scale `D` per row. The products of integers are summed exactly, so the order
//! of a sum is free; then
//!
//! ```text
//! z = fma(f32(V), s D, z)    for each block of inputs, in order; V is the exact sum of the block's products
//! ```
//!
//! where `z` starts as the bias, or as what was summed before. `docs/specification.md` describes the same in words. A
//! change of any constant, order or formula is a new version.

use crate::{
    arithmetic::{MAGNITUDE_BITS, ROUNDING_MAGIC, SNAP_THRESHOLD_BITS, snap},
    config::Precision,
};

/// The constants of a quantized precision: the largest integer and the length of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The precision.
    pub precision: Precision,
    /// Largest magnitude of an integer, of weights and of inputs.
    pub max: i32,
    /// Number of products in a block. The sum of a block is exact in an i32; with int8 it is also exact in an f32.
    pub block: usize,
}

/// The constants of [`Precision::Int8`].
pub const INT8: Format = Format { precision: Precision::Int8, max: 127, block: 1024 };
/// The constants of [`Precision::Int12`].
pub const INT12: Format = Format { precision: Precision::Int12, max: 2047, block: 512 };

impl Precision {
    /// The constants of a quantized precision; `None` for [`Precision::F32`].
    pub const fn format(self) -> Option<Format> {
        match self {
            Precision::F32 => None,
            Precision::Int8 => Some(INT8),
            Precision::Int12 => Some(INT12),
        }
    }
}

/// The range of an operand, which follows from where it stands in the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperandRange {
    /// The values may have any magnitude, and the scale follows from the largest of the row: inputs `x`, projected
    /// hidden states, the cell state as an operand of the dense peephole cell.
    Any,
    /// The values are at most 1 in magnitude, unless the caller's initial state or an unbounded activation function
    /// makes them larger: the hidden state without a projection, and the hidden state before the projection. The scale
    /// is that of a row whose largest magnitude is 1, or larger. A kernel then knows the scale before the row.
    Unit,
}

/// Bit pattern of the f32 1, which the largest magnitude of a row of [`OperandRange::Unit`] is at least.
pub const ONE_BITS: u32 = 0x3f80_0000;
/// What is added to the bits of the largest magnitude of a row before they are split into an exponent and an eighth of an
/// octave: rounds up to the next eighth.
pub const EIGHTH_ROUND_UP: u32 = 0x000f_ffff;

/// How a row of inputs is quantized: `q = round(v * to_integer)`, and an integer stands for `q * from_integer`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScale {
    /// The factor `F` from a value to an integer; 0 if all integers are 0.
    pub to_integer: f32,
    /// The factor `D` from an integer to a value; NaN if the row has a value that is not finite.
    pub from_integer: f32,
}

/// The factors of a format for rows of every magnitude, computed once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleTable {
    to_integer: [f32; 8],
    from_integer: [f32; 8],
}

impl ScaleTable {
    /// The scale of a row of snapped values. `magnitude` is the largest of the values' bits without their signs.
    #[inline(always)]
    pub fn row_scale(&self, magnitude: u32, range: OperandRange) -> RowScale {
        if range == OperandRange::Unit && magnitude <= ONE_BITS {
            return RowScale { to_integer: self.to_integer[0], from_integer: self.from_integer[0] };
        }
        if magnitude < SNAP_THRESHOLD_BITS {
            return RowScale { to_integer: 0.0, from_integer: 0.0 };
        }
        // The exponent of NaN and infinity is 255.
        let rounded = magnitude + EIGHTH_ROUND_UP;
        let (exponent, eighth) = (rounded >> 23, (rounded >> 20 & 7) as usize);
        if exponent >= 254 {
            return RowScale { to_integer: 0.0, from_integer: f32::NAN };
        }
        RowScale {
            to_integer: self.to_integer[eighth] * f32::from_bits((254 - exponent) << 23),
            from_integer: self.from_integer[eighth] * f32::from_bits(exponent << 23),
        }
    }
}

impl Format {
    /// The factors `F` for a largest magnitude of `(8 + j) / 8`: `f32(8 max / (8 + j))`.
    pub fn to_integer_factors(&self) -> [f32; 8] {
        std::array::from_fn(|j| (f64::from(self.max) * 8.0 / (8 + j) as f64) as f32)
    }

    /// The factors `D` for a largest magnitude of `(8 + j) / 8`: `f32((8 + j) / (8 max))`.
    pub fn from_integer_factors(&self) -> [f32; 8] {
        std::array::from_fn(|j| ((8 + j) as f64 / (8.0 * f64::from(self.max))) as f32)
    }

    /// The factors for rows of every magnitude.
    pub fn scale_table(&self) -> ScaleTable {
        ScaleTable { to_integer: self.to_integer_factors(), from_integer: self.from_integer_factors() }
    }

    /// The scale of a row of snapped values; see [`ScaleTable::row_scale`].
    pub fn row_scale(&self, magnitude: u32, range: OperandRange) -> RowScale {
        self.scale_table().row_scale(magnitude, range)
    }

    /// Adds `x W^T` to `z`, for one row of inputs `x`, which are snapped, and a matrix `W` of integers `[out, in]` with a scale per
    /// row: for each block of inputs, `z[n] = fma(f32(V[n]), scale[n] * D, z[n])`. Allocates nothing.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn multiply_row(&self, x: &[f32], range: OperandRange, weights: &[i16], scale: &[f32], z: &mut [f32]) {
        assert!(weights.len() == x.len() * z.len() && scale.len() == z.len() && self.block <= MAX_BLOCK);
        let magnitude = x.iter().fold(0, |max: u32, &v| max.max(snap(v).to_bits() & MAGNITUDE_BITS));
        let RowScale { to_integer, from_integer } = self.row_scale(magnitude, range);
        for (k, x_block) in x.chunks(self.block).enumerate() {
            let mut q = [0i16; MAX_BLOCK];
            let q = &mut q[..x_block.len()];
            if to_integer != 0.0 {
                q.iter_mut().zip(x_block).for_each(|(q, &v)| *q = to_int(snap(v), to_integer));
            }
            for ((z, scale), row) in z.iter_mut().zip(scale).zip(weights.chunks_exact(x.len())) {
                let row = &row[k * self.block..][..q.len()];
                let sum: i32 = q.iter().zip(row).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum();
                *z = (sum as f32).mul_add(scale * from_integer, *z);
            }
        }
    }

    /// The smallest scale of a row of weights that is not zero: that of a row whose largest magnitude is 2^-40.
    pub fn min_scale(&self) -> f32 {
        (f64::from(f32::from_bits(SNAP_THRESHOLD_BITS)) / f64::from(self.max)) as f32
    }

    /// The largest scale of a row of weights: that of a row whose largest magnitude is [`MAX_WEIGHT`].
    pub fn max_scale(&self) -> f32 {
        (f64::from(MAX_WEIGHT) / f64::from(self.max)) as f32
    }

    /// Quantizes a row of weights: `q = round_ties_even(snap(w) max / m)` in f64, where `m` is the largest magnitude of
    /// the row, and the scale `f32(m / max)`. The row must be finite and at most [`MAX_WEIGHT`] in magnitude.
    pub fn quantize_weights(&self, row: &[f32], q: &mut [i16]) -> f32 {
        let largest = row.iter().fold(0f32, |largest, &w| largest.max(snap(w).abs()));
        let factor = if largest > 0.0 { f64::from(self.max) / f64::from(largest) } else { 0.0 };
        let quantize = |w: f32| (f64::from(snap(w)) * factor).round_ties_even() as i16;
        q.iter_mut().zip(row).for_each(|(q, &w)| *q = quantize(w));
        (f64::from(largest) / f64::from(self.max)) as f32
    }
}

/// Number of products in the longest block.
const MAX_BLOCK: usize = 1024;

/// Largest magnitude of a weight that can be quantized, so that no product of an integer and a scale overflows.
pub const MAX_WEIGHT: f32 = f32::from_bits(0x7f00_0000);

/// The integer nearest to `v * to_integer`, ties to even: the low bits of `fma(v, to_integer, 1.5 * 2^23)`.
pub fn to_int(v: f32, to_integer: f32) -> i16 {
    v.mul_add(to_integer, ROUNDING_MAGIC).to_bits().wrapping_sub(ROUNDING_MAGIC.to_bits()) as i16
}
