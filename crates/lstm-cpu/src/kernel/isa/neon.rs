//! [`Simd`] for NEON: 4 lanes. Every 64-bit Arm processor has NEON.

use std::arch::{aarch64::*, asm};

use crate::kernel::{quantized::integers::Integers, simd::Simd};

impl Simd for float32x4_t {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: `Simd` requires 4 valid floats at `p`.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { vst1q_f32(p, self) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vaddq_f32(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vsubq_f32(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vmulq_f32(self, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vfmaq_f32(c, self, b) }
    }
    #[inline(always)]
    unsafe fn and_bits(self, mask: u32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(self), vdupq_n_u32(mask))) }
    }
    #[inline(always)]
    unsafe fn or_bits(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(self), vreinterpretq_u32_f32(b))) }
    }
    #[inline(always)]
    unsafe fn clamp_max(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller. A comparison with NaN is false and keeps `self`.
        unsafe { vbslq_f32(vcgtq_f32(self, vdupq_n_f32(bound)), vdupq_n_f32(bound), self) }
    }
    #[inline(always)]
    unsafe fn clamp_min(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vbslq_f32(vcltq_f32(self, vdupq_n_f32(bound)), vdupq_n_f32(bound), self) }
    }
    #[inline(always)]
    unsafe fn exp2_from_bits(self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(self))) }
    }
    #[inline(always)]
    unsafe fn select_negative(self, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(self)), a, b) }
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(self, bound: u32, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { vbslq_f32(vcltq_u32(vreinterpretq_u32_f32(self.and_bits(0x7fff_ffff)), vdupq_n_u32(bound)), a, b) }
    }
    #[inline(always)]
    unsafe fn select_between(self, by: Self, low: f32, high: f32) -> Self {
        // SAFETY: guaranteed by the caller. Comparisons with NaN are false.
        unsafe {
            let is_outside = vorrq_u32(vcleq_f32(by, vdupq_n_f32(low)), vcgeq_f32(by, vdupq_n_f32(high)));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(self), is_outside))
        }
    }
}

/// A vector of integers. With `SDOT`, the processor must have the dot product instruction of Armv8.2.
#[derive(Clone, Copy)]
pub(super) struct NeonIntegers<const SDOT: bool>(int32x4_t);

impl<const SDOT: bool> Integers for NeonIntegers<SDOT> {
    type Floats = float32x4_t;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        // SAFETY: guaranteed by the caller.
        NeonIntegers(unsafe { vld1q_s32(p) })
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> Self {
        // SAFETY: guaranteed by the caller.
        NeonIntegers(unsafe { vdupq_n_s32(v) })
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        NeonIntegers(unsafe { vaddq_s32(self.0, b.0) })
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        NeonIntegers(unsafe { vmaxq_s32(self.0, b.0) })
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> i32 {
        // SAFETY: guaranteed by the caller.
        unsafe { vmaxvq_s32(self.0) }
    }
    #[inline(always)]
    unsafe fn from_bits(v: float32x4_t) -> Self {
        // SAFETY: guaranteed by the caller.
        NeonIntegers(unsafe { vreinterpretq_s32_f32(v) })
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { vcvtq_f32_s32(self.0) }
    }
    #[inline(always)]
    unsafe fn dot<const ELEMENT_BYTES: usize>(self, activations: Self, weights: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            NeonIntegers(match ELEMENT_BYTES {
                1 if SDOT => {
                    let mut sum = self.0;
                    // The intrinsic `vdotq_s32` is not stable. The instruction accesses no memory and no flags.
                    asm!(
                        ".arch_extension dotprod",
                        "sdot {sum:v}.4s, {activations:v}.16b, {weights:v}.16b",
                        sum = inout(vreg) sum,
                        activations = in(vreg) activations.0,
                        weights = in(vreg) weights.0,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                    sum
                }
                1 => {
                    let (a, w) = (vreinterpretq_s8_s32(activations.0), vreinterpretq_s8_s32(weights.0));
                    // Two products are at most 2 * 127 * 127, which fits in 16 bits.
                    let pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(w)), vmull_high_s8(a, w));
                    vpadalq_s16(self.0, pairs)
                }
                _ => {
                    let (a, w) = (vreinterpretq_s16_s32(activations.0), vreinterpretq_s16_s32(weights.0));
                    let sums = vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(w)), vmull_high_s16(a, w));
                    vaddq_s32(self.0, sums)
                }
            })
        }
    }
    #[inline(always)]
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let halves = vmovn_s32(self.0);
            match ELEMENT_BYTES {
                1 => {
                    let bytes = vmovn_s16(vcombine_s16(halves, halves));
                    p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
                }
                _ => vst1_s16(p.cast(), halves),
            }
        }
    }
}

crate::kernel::table::define_kernels!(
    float32x4_t; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1;
    single_row: 1, 2, 3, 4, 5, 6
);

/// Without the dot product instruction.
pub(super) mod without_sdot {
    use super::{KERNELS, NeonIntegers};

    crate::kernel::quantized::define_quantized_kernels!(
        NeonIntegers<false>; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1; single_row: 1 x 4, 2 x 2, 3 x 1, 4 x 1
    );
}

/// With the dot product instruction of Armv8.2.
pub(super) mod with_sdot {
    use super::{KERNELS, NeonIntegers};

    crate::kernel::quantized::define_quantized_kernels!(
        NeonIntegers<true>; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1; single_row: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1
    );
}
