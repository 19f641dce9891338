//! Vectors of f32 as the kernels see them: one lane, which is plain Rust, and several vectors side by side.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::arithmetic::{MAGIC, MAGNITUDE_BITS};

/// [`MAGIC`] with the exponent's bias in it: the low bits are then, shifted, a power of two. An odd number added moves no
/// rounding, as there are no ties: up to `SIGMOID_MAX` no product with log2(e), whose significand is odd and long, ends in one
/// half.
pub(crate) const MAGIC_BIASED: f32 = MAGIC + 127.0;

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
    /// Two to the power that adding [`MAGIC_BIASED`] left in the low bits: `from_bits(bits << 23)`.
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
    /// Stores the first `n` lanes, all of them where `n` is more.
    #[inline(always)]
    unsafe fn store_first(self, n: usize, p: *mut f32) {
        // SAFETY: the caller's promise, for `n` floats; `all` has as many as any vector.
        unsafe {
            if n >= Self::LANES {
                return self.store(p);
            }
            const { assert!(Self::LANES <= 16) };
            let mut all = [0.0f32; 16];
            self.store(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
    /// The integer that adding [`MAGIC_BIASED`] left in the low bits.
    #[inline(always)]
    unsafe fn integer(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { self.sub(Self::splat(MAGIC_BIASED)) }
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
        f32::from_bits(self.to_bits() << 23)
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

/// Operations on several vectors at once, written one after the other, so that each need not wait for the one before.
macro_rules! each {
    ($(fn $name:ident($this:ident $(, $vector:ident: Self)* $(; $arg:ident: $ty:ty)*);)+) => {
        $(
            #[inline(always)]
            unsafe fn $name(self $(, $vector: Self)* $(, $arg: $ty)*) -> Self {
                let mut $this = self;
                for k in 0..N {
                    // SAFETY: the caller's promise.
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
        // SAFETY: the caller's promise; so below.
        unsafe { gather(p, S::LANES) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { scatter(self, p, S::LANES) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: as above.
        [unsafe { S::splat(v) }; N]
    }
    each! {
        fn add(out, b: Self);
        fn sub(out, b: Self);
        fn mul(out, b: Self);
        fn fma(out, b: Self, c: Self);
        fn mask(out; mask: u32);
        fn or(out, b: Self);
        fn at_most(out; bound: f32);
        fn at_least(out; bound: f32);
        fn power(out);
        fn if_negative(out, a: Self, b: Self);
    }
    #[inline(always)]
    unsafe fn if_below(mut self, bound: u32, a: Self, b: Self) -> Self {
        for k in 0..N {
            // SAFETY: as above.
            self[k] = unsafe { self[k].if_below(bound, a[k], b[k]) };
        }
        self
    }
    #[inline(always)]
    unsafe fn within(mut self, by: Self, low: f32, high: f32) -> Self {
        for k in 0..N {
            // SAFETY: as above.
            self[k] = unsafe { self[k].within(by[k], low, high) };
        }
        self
    }
}

/// Vectors `apart` floats from one another.
///
/// # Safety
/// `LANES` valid floats at each; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd, const N: usize>(p: *const f32, apart: usize) -> [S; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut out = [S::splat(0.0); N];
        for k in 0..N {
            out[k] = S::load(p.add(k * apart));
        }
        out
    }
}

/// Stores vectors `apart` floats from one another.
///
/// # Safety
/// As for [`gather`].
#[inline(always)]
pub(crate) unsafe fn scatter<S: Simd, const N: usize>(vectors: [S; N], p: *mut f32, apart: usize) {
    for k in 0..N {
        // SAFETY: the caller's promise.
        unsafe { vectors[k].store(p.add(k * apart)) };
    }
}
