//! [`Simd`] for WebAssembly: 4 lanes of simd128. A WebAssembly module has the instructions that it was compiled with, or
//! does not load; so the target features of the build choose these kernels.

use std::arch::wasm32::*;

use crate::kernel::{quantized::integers::Integers, simd::Simd};

/// How a vector computes `a * b + c`, rounded once.
pub(super) trait MultiplyAdd: Copy {
    /// `a * b + c`
    fn multiply_add(a: v128, b: v128, c: v128) -> v128;
}

/// Multiply-add in f64, for simd128, which has no fused multiply-add.
///
/// The product of two f32 is exact in f64. The sum is rounded to f64, and then to f32. Rounding twice differs from
/// rounding once only if the f64 is in the middle between two f32 and is not the exact sum. These sums are rounded to odd
/// first. A subnormal result may differ, because there f32 has fewer bits; no result of the library depends on those.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[derive(Clone, Copy)]
pub(super) struct InF64;

#[cfg(any(test, not(target_feature = "relaxed-simd")))]
impl MultiplyAdd for InF64 {
    #[inline(always)]
    fn multiply_add(a: v128, b: v128, c: v128) -> v128 {
        let product_low = f64x2_mul(f64x2_promote_low_f32x4(a), f64x2_promote_low_f32x4(b));
        let product_high = f64x2_mul(promote_high(a), promote_high(b));
        let (c_low, c_high) = (f64x2_promote_low_f32x4(c), promote_high(c));
        let (sum_low, sum_high) = (f64x2_add(product_low, c_low), f64x2_add(product_high, c_high));
        if v128_any_true(v128_or(is_midpoint(sum_low), is_midpoint(sum_high))) {
            return add_rounding_to_odd(product_low, product_high, c_low, c_high);
        }
        demote(sum_low, sum_high)
    }
}

/// The upper two floats as f64.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[inline(always)]
fn promote_high(v: v128) -> v128 {
    f64x2_promote_low_f32x4(i32x4_shuffle::<2, 3, 2, 3>(v, v))
}

/// Four f64 as f32.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[inline(always)]
fn demote(low: v128, high: v128) -> v128 {
    i32x4_shuffle::<0, 1, 4, 5>(f32x4_demote_f64x2_zero(low), f32x4_demote_f64x2_zero(high))
}

/// Whether an f64 is in the middle between two normal f32: its lowest 29 bits, which an f32 lacks, are a one and zeros.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[inline(always)]
fn is_midpoint(v: v128) -> v128 {
    i64x2_eq(v128_and(v, i64x2_splat(0x1fff_ffff)), i64x2_splat(0x1000_0000))
}

/// The four sums `product + c`. A function of its own, as few sums need it.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[cold]
#[inline(never)]
fn add_rounding_to_odd(product_low: v128, product_high: v128, c_low: v128, c_high: v128) -> v128 {
    demote(round_midpoint_to_odd(product_low, c_low), round_midpoint_to_odd(product_high, c_high))
}

/// `a + b` in f64. A sum that is a midpoint and not exact is moved by one unit in the last place towards the exact sum.
#[cfg(any(test, not(target_feature = "relaxed-simd")))]
#[inline(always)]
fn round_midpoint_to_odd(a: v128, b: v128) -> v128 {
    let sum = f64x2_add(a, b);
    // The rounding error, exactly (Knuth's TwoSum).
    let b_part = f64x2_sub(sum, a);
    let error = f64x2_add(f64x2_sub(a, f64x2_sub(sum, b_part)), f64x2_sub(b, b_part));
    let is_inexact = f64x2_ne(error, f64x2_splat(0.0));
    // -1 if the exact sum is nearer to zero, else 1. Bits of an f64 are ordered as its magnitude.
    let direction = v128_or(i64x2_shr(v128_xor(error, sum), 63), i64x2_splat(1));
    i64x2_add(sum, v128_and(direction, v128_and(is_inexact, is_midpoint(sum))))
}

/// The multiply-add of relaxed-simd, where the engine fuses it; see [`fuses`].
#[cfg(target_feature = "relaxed-simd")]
#[derive(Clone, Copy)]
pub(super) struct Relaxed;

#[cfg(target_feature = "relaxed-simd")]
impl MultiplyAdd for Relaxed {
    #[inline(always)]
    fn multiply_add(a: v128, b: v128, c: v128) -> v128 {
        f32x4_relaxed_madd(a, b, c)
    }
}

/// Whether the multiply-add of relaxed-simd rounds once here. WebAssembly allows an engine to round once or twice, but
/// always in the same way in one environment.
#[cfg(target_feature = "relaxed-simd")]
pub(super) fn fuses() -> bool {
    use std::hint::black_box;
    // (1 + e) (1 + e) - (1 + 2 e) is e^2, or 0 if the product is rounded.
    let a = black_box(f32x4_splat(1.0 + f32::EPSILON));
    let c = black_box(f32x4_splat(-1.0 - 2.0 * f32::EPSILON));
    let expected = f32x4_splat(f32::EPSILON * f32::EPSILON);
    u32x4_all_true(f32x4_eq(f32x4_relaxed_madd(a, a, c), expected))
}

/// A vector of floats with the multiply-add `M`.
#[derive(Clone, Copy)]
pub(super) struct Floats<M>(v128, std::marker::PhantomData<M>);

impl<M> Floats<M> {
    #[inline(always)]
    fn new(v: v128) -> Self {
        Floats(v, std::marker::PhantomData)
    }
}

impl<M: MultiplyAdd> Simd for Floats<M> {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: `Simd` requires 4 valid floats at `p`.
        Self::new(unsafe { v128_load(p.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { v128_store(p.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Self::new(f32x4_splat(v))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self::new(f32x4_add(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self::new(f32x4_sub(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self::new(f32x4_mul(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self::new(M::multiply_add(self.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn and_bits(self, mask: u32) -> Self {
        Self::new(v128_and(self.0, u32x4_splat(mask)))
    }
    #[inline(always)]
    unsafe fn or_bits(self, b: Self) -> Self {
        Self::new(v128_or(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn clamp_max(self, bound: f32) -> Self {
        // A comparison with NaN is false and keeps `self`. With `f32x4_pmin`, compiled code lost NaN.
        let bound = f32x4_splat(bound);
        Self::new(v128_bitselect(bound, self.0, f32x4_gt(self.0, bound)))
    }
    #[inline(always)]
    unsafe fn clamp_min(self, bound: f32) -> Self {
        let bound = f32x4_splat(bound);
        Self::new(v128_bitselect(bound, self.0, f32x4_lt(self.0, bound)))
    }
    #[inline(always)]
    unsafe fn exp2_from_bits(self) -> Self {
        Self::new(i32x4_shl(self.0, 23))
    }
    #[inline(always)]
    unsafe fn select_negative(self, a: Self, b: Self) -> Self {
        Self::new(v128_bitselect(a.0, b.0, i32x4_shr(self.0, 31)))
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(self, bound: u32, a: Self, b: Self) -> Self {
        let magnitude = v128_and(self.0, u32x4_splat(0x7fff_ffff));
        Self::new(v128_bitselect(a.0, b.0, i32x4_lt(magnitude, u32x4_splat(bound))))
    }
    #[inline(always)]
    unsafe fn select_between(self, by: Self, low: f32, high: f32) -> Self {
        // Comparisons with NaN are false.
        let is_outside = v128_or(f32x4_le(by.0, f32x4_splat(low)), f32x4_ge(by.0, f32x4_splat(high)));
        Self::new(v128_andnot(self.0, is_outside))
    }
}

/// A vector of integers, for floats with the multiply-add `M`.
#[derive(Clone, Copy)]
pub(super) struct WasmIntegers<M>(v128, std::marker::PhantomData<M>);

impl<M> WasmIntegers<M> {
    #[inline(always)]
    fn new(v: v128) -> Self {
        WasmIntegers(v, std::marker::PhantomData)
    }
}

impl<M: MultiplyAdd> Integers for WasmIntegers<M> {
    type Floats = Floats<M>;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        // SAFETY: guaranteed by the caller.
        Self::new(unsafe { v128_load(p.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> Self {
        Self::new(i32x4_splat(v))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self::new(i32x4_add(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Self::new(i32x4_max(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> i32 {
        let two = i32x4_max(self.0, i32x4_shuffle::<2, 3, 0, 1>(self.0, self.0));
        i32x4_extract_lane::<0>(i32x4_max(two, i32x4_shuffle::<1, 0, 3, 2>(two, two)))
    }
    #[inline(always)]
    unsafe fn from_bits(v: Floats<M>) -> Self {
        Self::new(v.0)
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Floats<M> {
        Floats::new(f32x4_convert_i32x4(self.0))
    }
    #[inline(always)]
    unsafe fn dot<const ELEMENT_BYTES: usize>(self, activations: Self, weights: Self) -> Self {
        let sums = match ELEMENT_BYTES {
            // The bytes with even and with odd positions as 16 bits, so that each sum stays in the lane of its word.
            1 => {
                let even = |v: v128| i16x8_shr(i16x8_shl(v, 8), 8);
                let odd = |v: v128| i16x8_shr(v, 8);
                i32x4_add(
                    i32x4_dot_i16x8(even(activations.0), even(weights.0)),
                    i32x4_dot_i16x8(odd(activations.0), odd(weights.0)),
                )
            }
            _ => i32x4_dot_i16x8(activations.0, weights.0),
        };
        Self::new(i32x4_add(self.0, sums))
    }
    #[inline(always)]
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match ELEMENT_BYTES {
                1 => {
                    let bytes = i8x16_shuffle::<0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>(self.0, self.0);
                    v128_store32_lane::<0>(bytes, p.cast());
                }
                _ => {
                    let halves = i16x8_shuffle::<0, 2, 4, 6, 0, 0, 0, 0>(self.0, self.0);
                    v128_store64_lane::<0>(halves, p.cast());
                }
            }
        }
    }
}

/// With multiply-add in f64. Each takes dozens of instructions, so that more rows at once gain nothing.
#[cfg(not(target_feature = "relaxed-simd"))]
pub(super) mod exact {
    use super::{Floats, InF64, WasmIntegers};

    crate::kernel::table::define_kernels!(Floats<InF64>; tiles: 1 x 1, 2 x 1; single_row: 1, 2, 3, 4);
    crate::kernel::quantized::define_quantized_kernels!(
        WasmIntegers<InF64>; tiles: 1 x 2, 2 x 1, 3 x 1; single_row: 1 x 2, 2 x 1, 3 x 1, 4 x 1
    );
}

/// With the fused multiply-add of relaxed-simd.
#[cfg(target_feature = "relaxed-simd")]
pub(super) mod relaxed {
    use super::{Floats, Relaxed, WasmIntegers};

    crate::kernel::table::define_kernels!(Floats<Relaxed>; tiles: 1 x 2, 2 x 1, 3 x 1; single_row: 1, 2, 3, 4);
    crate::kernel::quantized::define_quantized_kernels!(
        WasmIntegers<Relaxed>; tiles: 1 x 2, 2 x 1, 3 x 1; single_row: 1 x 2, 2 x 1, 3 x 1, 4 x 1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Triples whose sums are near the middle between two floats, near zero by cancellation, and infinite.
    fn triples() -> impl Iterator<Item = [f32; 3]> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..2_000_000).map(move |n| {
            let (r, q, t) = (next(), next(), next());
            // Random sign and bits of the significand, of which the lowest are zero.
            let float = |bits: u64, exponent: u64| {
                let significand = bits as u32 & 0x7f_ffff & !((1u32 << ((bits >> 58) % 24)) - 1);
                f32::from_bits((bits as u32 & 0x8000_0000) | (exponent as u32) << 23 | significand)
            };
            let power_of_two = |exponent: u64| f32::from_bits((exponent as u32) << 23);
            let sign = |bits: u64| if bits & 1 == 0 { 1.0 } else { -1.0 };
            match n % 8 {
                // The product is next to half a unit in the last place of `c`.
                0..4 => {
                    let (tiny, exponent) = (power_of_two(127 - 15 - (r >> 9) % 9), (q >> 9) % 20);
                    let c = power_of_two(117 + exponent);
                    let c = f32::from_bits(c.to_bits() | (t >> 20) as u32 & 0x7f_ffff);
                    [sign(r) * (1.0 + tiny), sign(q) * (1.0 - tiny) * power_of_two(93 + exponent), sign(t >> 3) * c]
                }
                4 => {
                    let (a, b) = (float(r, 120 + (r >> 40) % 14), float(q, 120 + (q >> 40) % 14));
                    [a, b, -(a * b)]
                }
                5 if n % 64 == 5 => [f32::INFINITY, float(q, 120), float(t, 250)],
                5 => [float(r, 190), float(q, 180 + (q >> 40) % 8), float(t, 250)],
                _ => [float(r, 120 + (r >> 40) % 14), float(q, 120 + (q >> 40) % 14), float(t, 90 + (t >> 40) % 60)],
            }
        })
    }

    fn check<M: MultiplyAdd>() {
        let (mut midpoints, triples) = (0, triples().collect::<Vec<_>>());
        for four in triples.chunks_exact(4) {
            let column = |k: usize| f32x4(four[0][k], four[1][k], four[2][k], four[3][k]);
            let mut actual = [0.0f32; 4];
            // SAFETY: the vector has the size of the array.
            unsafe { v128_store(actual.as_mut_ptr().cast(), M::multiply_add(column(0), column(1), column(2))) };
            for (&[a, b, c], actual) in four.iter().zip(actual) {
                let sum = f64::from(a) * f64::from(b) + f64::from(c);
                midpoints += usize::from(sum.is_finite() && sum.to_bits() & 0x1fff_ffff == 0x1000_0000);
                let expected = a.mul_add(b, c);
                let is_same = actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan();
                assert!(is_same, "{a:e} * {b:e} + {c:e}: expected {expected:e}, got {actual:e}");
            }
        }
        // Enough of those that need care.
        assert!(midpoints > 100_000, "{midpoints}");
    }

    #[test]
    fn multiply_add_in_f64_rounds_once() {
        check::<InF64>();
    }

    #[cfg(target_feature = "relaxed-simd")]
    #[test]
    fn relaxed_multiply_add_rounds_once_if_it_fuses() {
        if fuses() {
            check::<Relaxed>();
        } else {
            assert!(std::panic::catch_unwind(check::<Relaxed>).is_err());
        }
    }
}
