//! Vectors of f32 as the kernels see them, and the one-lane vector that is plain Rust.

use lstm_core::arithmetic::{MAGIC, MAGNITUDE_BITS};

/// `LANES` floats, with just the operations that the arithmetic needs, each rounding as its scalar does.
///
/// # Safety
/// A method may only be called where the CPU has the instruction set of the implementing type; `load` and `store` want
/// `LANES` valid floats at `p`, of any alignment.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(v: f32) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The bits that `mask` has.
    unsafe fn mask(self, mask: u32) -> Self;
    /// The bits of both.
    unsafe fn or(self, b: Self) -> Self;
    /// `bound` where `self > bound`; NaN stays.
    unsafe fn at_most(self, bound: f32) -> Self;
    /// `bound` where `self < bound`; NaN stays.
    unsafe fn at_least(self, bound: f32) -> Self;
    /// `from_bits((bits << 23) + bits(1.0))`: two to the power that the low bits hold.
    unsafe fn power(self) -> Self;
    /// `a` where the sign bit is set, else `b`.
    unsafe fn if_negative(self, a: Self, b: Self) -> Self;
    /// `a` where the bits, without their sign, are less than `bound`, else `b`.
    unsafe fn if_below(self, bound: u32, a: Self, b: Self) -> Self;
    /// `self` where `low < by < high` or `by` is NaN, else +0.
    unsafe fn within(self, by: Self, low: f32, high: f32) -> Self;
    /// Brings a cache line to the second-level cache, where there is a way to ask for it; any address will do.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The integer that adding [`MAGIC`] left in the low bits.
    #[inline(always)]
    unsafe fn integer(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { self.sub(Self::splat(MAGIC)) }
    }
}

impl Simd for f32 {
    const LANES: usize = 1;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
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
    unsafe fn mask(self, mask: u32) -> f32 {
        f32::from_bits(self.to_bits() & mask)
    }
    #[inline(always)]
    unsafe fn or(self, b: f32) -> f32 {
        f32::from_bits(self.to_bits() | b.to_bits())
    }
    #[inline(always)]
    unsafe fn at_most(self, bound: f32) -> f32 {
        if self > bound { bound } else { self }
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: f32) -> f32 {
        if self < bound { bound } else { self }
    }
    #[inline(always)]
    unsafe fn power(self) -> f32 {
        f32::from_bits((self.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
    }
    #[inline(always)]
    unsafe fn if_negative(self, a: f32, b: f32) -> f32 {
        if self.to_bits() > MAGNITUDE_BITS { a } else { b }
    }
    #[inline(always)]
    unsafe fn if_below(self, bound: u32, a: f32, b: f32) -> f32 {
        if self.to_bits() & MAGNITUDE_BITS < bound { a } else { b }
    }
    #[inline(always)]
    unsafe fn within(self, by: f32, low: f32, high: f32) -> f32 {
        if by <= low || by >= high { 0.0 } else { self }
    }
}
