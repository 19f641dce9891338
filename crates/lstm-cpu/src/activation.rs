//! `snap`, `clip`, `sigmoid` and `tanh` of `lstm_core::arithmetic`, line by line, on vectors.

use lstm_core::arithmetic::*;

use crate::simd::{MAGIC_BIASED, Simd};

/// # Safety
/// As for [`Simd`]; so below.
#[inline(always)]
pub(crate) unsafe fn snap<S: Simd>(v: S) -> S {
    // SAFETY: the caller's promise; so below.
    unsafe { v.if_below(SNAP_BITS, S::splat(0.0), v) }
}

#[inline(always)]
pub(crate) unsafe fn clip<S: Simd>(v: S, bound: f32) -> S {
    // SAFETY: as above.
    unsafe { v.at_most(bound).at_least(-bound) }
}

#[inline(always)]
unsafe fn horner<S: Simd, const N: usize>(table: &[f32; N], x: S) -> S {
    // SAFETY: as above.
    unsafe {
        let mut sum = S::splat(table[N - 1]);
        let mut k = N - 1;
        while k > 0 {
            k -= 1;
            sum = sum.fma(x, S::splat(table[k]));
        }
        sum
    }
}

/// `(s, r)` with `exp = s * exp(r)`; see `lstm_core::arithmetic`.
#[inline(always)]
unsafe fn split<S: Simd>(z: S, log2: f32, high: f32, low: f32) -> (S, S) {
    // SAFETY: as above.
    unsafe {
        let t = z.fma(S::splat(log2), S::splat(MAGIC_BIASED));
        let n = t.integer();
        // `-z` as a product, so that no operation of its own is needed: exact.
        let r = n.fma(S::splat(high), z.mul(S::splat(-1.0)));
        (t.power(), n.fma(S::splat(low), r))
    }
}

#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S) -> S {
    // SAFETY: as above.
    unsafe {
        let z = x.mask(MAGNITUDE_BITS).at_most(SIGMOID_MAX);
        let (s, r) = split(z, -LOG2_E, -LN2_HIGH, -LN2_LOW);
        let m = r.mul(r).fma(horner(&EXP, r), r);
        let e = s.fma(m, s);
        let num = x.if_negative(e, S::splat(1.0));
        let y0 = horner(&SIGMOID, e);
        let t0 = num.mul(y0).mask(SPLIT_MASK);
        let d = num.sub(t0);
        t0.mul(S::splat(-1.0)).fma(e, d).fma(y0, t0)
    }
}

#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S) -> S {
    // SAFETY: as above.
    unsafe {
        let z = x.mask(MAGNITUDE_BITS).at_most(TANH_MAX);
        let (s, r) = split(z, -2.0 * LOG2_E, -0.5 * LN2_HIGH, -0.5 * LN2_LOW);
        let m = r.mul(r).fma(horner(&EXP_TWICE, r), r);
        let h = s.fma(S::splat(-0.5), S::splat(0.5));
        let q = s.mul(S::splat(-1.0)).fma(m, h);
        let y0 = horner(&TANH, q);
        let t0 = q.mul(y0).mask(SPLIT_MASK);
        let d = q.sub(t0);
        let y = t0.fma(q, d).fma(y0, t0);
        let y = y.mask(MAGNITUDE_BITS).or(x.mask(!MAGNITUDE_BITS));
        x.if_below(TANH_LINEAR_BITS, x, y)
    }
}
