//! The trait [`Integers`], a vector of 32-bit integers with the operations of the quantized kernels, and its
//! implementation without vector instructions.
//!
//! Integers of activations and weights take `ELEMENT_BYTES` bytes: one with int8, two with int12. A *word* of 32 bits holds
//! adjacent integers of one row, so `4 / ELEMENT_BYTES` of them.

use crate::kernel::simd::Simd;

/// A vector of as many 32-bit integers as `Floats` has floats.
///
/// # Safety
/// Call a method only if the CPU supports the instruction set of the implementing type. `load` needs `LANES` valid
/// integers at `p`, of any alignment, and `store_low` memory for `LANES * ELEMENT_BYTES` bytes.
pub(crate) trait Integers: Copy {
    /// The vector of floats with as many lanes.
    type Floats: Simd;
    /// What is added to each activation of one byte before it is stored, because the instruction of `dot` reads it
    /// without a sign: 128, or 0. The sum of the products must then start at minus this times the sum of the weights.
    const ACTIVATION_OFFSET: u8 = 0;
    /// Loads `LANES` integers.
    unsafe fn load(p: *const i32) -> Self;
    /// A vector with `v` in every lane.
    unsafe fn splat(v: i32) -> Self;
    /// `self + b`
    unsafe fn add(self, b: Self) -> Self;
    /// The larger of `self` and `b` in each lane.
    unsafe fn max(self, b: Self) -> Self;
    /// The largest lane.
    unsafe fn max_lane(self) -> i32;
    /// The bits of floats.
    unsafe fn from_bits(v: Self::Floats) -> Self;
    /// The nearest floats, ties to even.
    unsafe fn to_floats(self) -> Self::Floats;
    /// Prefetches a cache line into the first-level cache, if the instruction set can. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_: *const i32) {}
    /// Adds to each lane the products of the integers in the words of `activations` and `weights`.
    unsafe fn dot<const ELEMENT_BYTES: usize>(self, activations: Self, weights: Self) -> Self;
    /// Stores the low `ELEMENT_BYTES` bytes of each lane, without gaps.
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8);
}

impl Integers for i32 {
    type Floats = f32;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> i32 {
        // SAFETY: guaranteed by the caller.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> i32 {
        v
    }
    #[inline(always)]
    unsafe fn add(self, b: i32) -> i32 {
        self + b
    }
    #[inline(always)]
    unsafe fn max(self, b: i32) -> i32 {
        Ord::max(self, b)
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> i32 {
        self
    }
    #[inline(always)]
    unsafe fn from_bits(v: f32) -> i32 {
        v.to_bits() as i32
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    unsafe fn dot<const ELEMENT_BYTES: usize>(self, activations: i32, weights: i32) -> i32 {
        let (mut sum, a, w) = (self, activations.to_ne_bytes(), weights.to_ne_bytes());
        if ELEMENT_BYTES == 1 {
            for k in 0..4 {
                sum += i32::from(a[k] as i8) * i32::from(w[k] as i8);
            }
        } else {
            for k in [0, 2] {
                let integer = |word: [u8; 4]| i32::from(i16::from_ne_bytes([word[k], word[k + 1]]));
                sum += integer(a) * integer(w);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match ELEMENT_BYTES {
                1 => *p = self as u8,
                _ => p.cast::<i16>().write_unaligned(self as i16),
            }
        }
    }
}
