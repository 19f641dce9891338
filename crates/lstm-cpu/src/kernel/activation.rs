//! Vector versions of `snap`, `clip`, `sigmoid` and `tanh`, with the operations of `lstm_core::arithmetic` in the same
//! order.

use lstm_core::arithmetic::*;

use crate::kernel::simd::{MAGIC_PLUS_EXPONENT_BIAS, Simd};

/// `lstm_core::arithmetic::snap` of each lane.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn snap<S: Simd>(v: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { v.select_magnitude_below(SNAP_THRESHOLD_BITS, S::splat(0.0), v) }
}

/// `lstm_core::arithmetic::clip` of each lane.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn clip<S: Simd>(v: S, bound: f32) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { v.clamp_max(bound).clamp_min(-bound) }
}

/// The polynomial with `coefficients`, lowest degree first, at `x`, by Horner's method.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn horner<S: Simd, const N: usize>(coefficients: &[f32; N], x: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sum = S::splat(coefficients[N - 1]);
        let mut k = N - 1;
        while k > 0 {
            k -= 1;
            sum = sum.fma(x, S::splat(coefficients[k]));
        }
        sum
    }
}

/// Reduces the argument of `exp(-scale * z)`: returns `s` and `r` such that `exp(-scale * z) = s * exp(scale * r)`,
/// where `s` is a power of two and `r` is small. `log2_e` is `-log2(e) * scale`; `ln2_high` and `ln2_low` are the two
/// parts of `-ln(2) / scale`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn reduce_range<S: Simd>(z: S, log2_e: f32, ln2_high: f32, ln2_low: f32) -> (S, S) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let t = z.fma(S::splat(log2_e), S::splat(MAGIC_PLUS_EXPONENT_BIAS));
        let n = t.subtract_magic();
        // Exact. The multiplication negates `z` without a negation operation in `Simd`.
        let r = n.fma(S::splat(ln2_high), z.mul(S::splat(-1.0)));
        (t.exp2_from_bits(), n.fma(S::splat(ln2_low), r))
    }
}

/// `lstm_core::arithmetic::sigmoid` of each lane.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let z = x.and_bits(MAGNITUDE_BITS).clamp_max(SIGMOID_MAX);
        let (s, r) = reduce_range(z, -LOG2_E, -LN2_HIGH, -LN2_LOW);
        let m = r.mul(r).fma(horner(&EXP_POLYNOMIAL, r), r);
        let e = s.fma(m, s);
        let numerator = x.select_negative(e, S::splat(1.0));
        let y0 = horner(&SIGMOID_POLYNOMIAL, e);
        let t0 = numerator.mul(y0).and_bits(CLEAR_LOW_BITS_MASK);
        let d = numerator.sub(t0);
        t0.mul(S::splat(-1.0)).fma(e, d).fma(y0, t0)
    }
}

/// `lstm_core::arithmetic::tanh` of each lane.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let z = x.and_bits(MAGNITUDE_BITS).clamp_max(TANH_MAX);
        let (s, r) = reduce_range(z, -2.0 * LOG2_E, -0.5 * LN2_HIGH, -0.5 * LN2_LOW);
        let m = r.mul(r).fma(horner(&EXP_2R_POLYNOMIAL, r), r);
        let h = s.fma(S::splat(-0.5), S::splat(0.5));
        let q = s.mul(S::splat(-1.0)).fma(m, h);
        let y0 = horner(&TANH_POLYNOMIAL, q);
        let t0 = q.mul(y0).and_bits(CLEAR_LOW_BITS_MASK);
        let d = q.sub(t0);
        let y = t0.fma(q, d).fma(y0, t0);
        let y = y.and_bits(MAGNITUDE_BITS).or_bits(x.and_bits(!MAGNITUDE_BITS));
        x.select_magnitude_below(TANH_LINEAR_BITS, x, y)
    }
}
