//! The trait [`Simd`], a vector of `f32`, with implementations for a single `f32` and for arrays of vectors.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::arithmetic::{MAGNITUDE_BITS, ROUNDING_MAGIC};

/// [`ROUNDING_MAGIC`] plus the exponent bias 127. Adding it to a float x rounds x to the nearest integer n and leaves
/// n + 127 in the low bits of the sum. Shifting the bits of the sum left by 23 gives the float 2^n.
///
/// The bias is odd, so ties round differently than with `ROUNDING_MAGIC` alone. But ties do not occur: up to
/// `SIGMOID_MAX`, no product with log2(e) has a fractional part of exactly one half, because the significand of log2(e)
/// is odd and long.
pub(crate) const MAGIC_PLUS_EXPONENT_BIAS: f32 = ROUNDING_MAGIC + 127.0;

/// A vector of `LANES` floats with the operations that `lstm_core::arithmetic` uses. Each lane rounds like the scalar
/// operation.
///
/// # Safety
/// Call a method only if the CPU supports the instruction set of the implementing type. `load` and `store` need `LANES`
/// valid floats at `p`, of any alignment.
pub(crate) trait Simd: Copy {
    /// Number of floats in a vector.
    const LANES: usize;
    /// Loads `LANES` floats.
    unsafe fn load(p: *const f32) -> Self;
    /// Stores `LANES` floats.
    unsafe fn store(self, p: *mut f32);
    /// A vector with `v` in every lane.
    unsafe fn splat(v: f32) -> Self;
    /// `self + b`
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// Bitwise AND of each lane with `mask`.
    unsafe fn and_bits(self, mask: u32) -> Self;
    /// Bitwise OR of `self` and `b`.
    unsafe fn or_bits(self, b: Self) -> Self;
    /// `min(self, bound)`. NaN stays NaN.
    unsafe fn clamp_max(self, bound: f32) -> Self;
    /// `max(self, bound)`. NaN stays NaN.
    unsafe fn clamp_min(self, bound: f32) -> Self;
    /// Computes 2^n for an integer n. The argument `self` is the float `MAGIC_PLUS_EXPONENT_BIAS + n`: `from_bits(to_bits(self) << 23)`.
    unsafe fn exp2_from_bits(self) -> Self;
    /// `a` in lanes where the sign bit of `self` is set, else `b`.
    unsafe fn select_negative(self, a: Self, b: Self) -> Self;
    /// `a` in lanes where the bits of `|self|` are less than `bound`, else `b`.
    unsafe fn select_magnitude_below(self, bound: u32, a: Self, b: Self) -> Self;
    /// `self` in lanes where `low < by < high` or `by` is NaN, else +0.
    unsafe fn select_between(self, by: Self, low: f32, high: f32) -> Self;
    /// Prefetches a cache line into the second-level cache, if the instruction set can. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// Loads `n < LANES` floats into the first lanes. The other lanes are zero.
    #[inline(always)]
    unsafe fn load_first(n: usize, p: *const f32) -> Self {
        const { assert!(Self::LANES <= 16) };
        let mut all_lanes = [0.0f32; 16];
        // SAFETY: the caller guarantees `n` valid floats at `p`; `all_lanes` is as long as the widest vector.
        unsafe {
            std::ptr::copy_nonoverlapping(p, all_lanes.as_mut_ptr(), n);
            Self::load(all_lanes.as_ptr())
        }
    }
    /// Stores the first `n` lanes, or all lanes if `n >= LANES`.
    #[inline(always)]
    unsafe fn store_first(self, n: usize, p: *mut f32) {
        // SAFETY: the caller guarantees `n` valid floats at `p`; `all_lanes` is as long as the widest vector.
        unsafe {
            if n >= Self::LANES {
                return self.store(p);
            }
            const { assert!(Self::LANES <= 16) };
            let mut all_lanes = [0.0f32; 16];
            self.store(all_lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all_lanes.as_ptr(), p, n);
        }
    }
    /// Returns the integer `n` as a float, given `self = MAGIC_PLUS_EXPONENT_BIAS + n`.
    #[inline(always)]
    unsafe fn subtract_magic(self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { self.sub(Self::splat(MAGIC_PLUS_EXPONENT_BIAS)) }
    }
}

impl Simd for f32 {
    const LANES: usize = 1;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { *p = self }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> f32 {
        v
    }
    #[inline(always)]
    unsafe fn add(self, b: f32) -> f32 {
        self + b
    }
    #[inline(always)]
    unsafe fn sub(self, b: f32) -> f32 {
        self - b
    }
    #[inline(always)]
    unsafe fn mul(self, b: f32) -> f32 {
        self * b
    }
    #[inline(always)]
    unsafe fn fma(self, b: f32, c: f32) -> f32 {
        self.mul_add(b, c)
    }
    #[inline(always)]
    unsafe fn and_bits(self, mask: u32) -> f32 {
        f32::from_bits(self.to_bits() & mask)
    }
    #[inline(always)]
    unsafe fn or_bits(self, b: f32) -> f32 {
        f32::from_bits(self.to_bits() | b.to_bits())
    }
    #[inline(always)]
    unsafe fn clamp_max(self, bound: f32) -> f32 {
        // Vectorized for WebAssembly, this comparison lost NaN.
        #[cfg(target_arch = "wasm32")]
        let bound = std::hint::black_box(bound);
        if self > bound { bound } else { self }
    }
    #[inline(always)]
    unsafe fn clamp_min(self, bound: f32) -> f32 {
        #[cfg(target_arch = "wasm32")]
        let bound = std::hint::black_box(bound);
        if self < bound { bound } else { self }
    }
    #[inline(always)]
    unsafe fn exp2_from_bits(self) -> f32 {
        f32::from_bits(self.to_bits() << 23)
    }
    #[inline(always)]
    unsafe fn select_negative(self, a: f32, b: f32) -> f32 {
        if self.to_bits() > MAGNITUDE_BITS { a } else { b }
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(self, bound: u32, a: f32, b: f32) -> f32 {
        if self.to_bits() & MAGNITUDE_BITS < bound { a } else { b }
    }
    #[inline(always)]
    unsafe fn select_between(self, by: f32, low: f32, high: f32) -> f32 {
        if by <= low || by >= high { 0.0 } else { self }
    }
}

/// Implements methods of [`Simd`] for an array of vectors by calling the method of each vector. The calls are
/// independent, so that their latencies overlap.
macro_rules! for_each_vector {
    ($(fn $name:ident($this:ident $(, $vector:ident: Self)* $(; $arg:ident: $ty:ty)*);)+) => {
        $(
            #[inline(always)]
            unsafe fn $name(self $(, $vector: Self)* $(, $arg: $ty)*) -> Self {
                let mut $this = self;
                for k in 0..N {
                    // SAFETY: guaranteed by the caller.
                    $this[k] = unsafe { $this[k].$name($($vector[k],)* $($arg),*) };
                }
                $this
            }
        )+
    };
}

impl<S: Simd, const N: usize> Simd for [S; N] {
    const LANES: usize = N * S::LANES;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { load_strided(p, S::LANES) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { store_strided(self, p, S::LANES) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        [unsafe { S::splat(v) }; N]
    }
    for_each_vector! {
        fn add(out, b: Self);
        fn sub(out, b: Self);
        fn mul(out, b: Self);
        fn fma(out, b: Self, c: Self);
        fn and_bits(out; mask: u32);
        fn or_bits(out, b: Self);
        fn clamp_max(out; bound: f32);
        fn clamp_min(out; bound: f32);
        fn exp2_from_bits(out);
        fn select_negative(out, a: Self, b: Self);
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(mut self, bound: u32, a: Self, b: Self) -> Self {
        for k in 0..N {
            // SAFETY: guaranteed by the caller.
            self[k] = unsafe { self[k].select_magnitude_below(bound, a[k], b[k]) };
        }
        self
    }
    #[inline(always)]
    unsafe fn select_between(mut self, by: Self, low: f32, high: f32) -> Self {
        for k in 0..N {
            // SAFETY: guaranteed by the caller.
            self[k] = unsafe { self[k].select_between(by[k], low, high) };
        }
        self
    }
}

/// Loads `N` vectors whose addresses are `stride` floats apart.
///
/// # Safety
/// `LANES` valid floats at each address; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn load_strided<S: Simd, const N: usize>(p: *const f32, stride: usize) -> [S; N] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut out = [S::splat(0.0); N];
        for k in 0..N {
            out[k] = S::load(p.add(k * stride));
        }
        out
    }
}

/// Stores `N` vectors at addresses that are `stride` floats apart.
///
/// # Safety
/// As for [`load_strided`].
#[inline(always)]
pub(crate) unsafe fn store_strided<S: Simd, const N: usize>(vectors: [S; N], p: *mut f32, stride: usize) {
    for k in 0..N {
        // SAFETY: guaranteed by the caller.
        unsafe { vectors[k].store(p.add(k * stride)) };
    }
}
