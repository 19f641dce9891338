//! [`Simd`] for NEON: 4 lanes. Every 64-bit Arm processor has NEON.

use std::arch::aarch64::*;

use crate::kernel::simd::Simd;

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

crate::kernel::table::define_kernels!(
    float32x4_t; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1;
    single_row: 1, 2, 3, 4, 5, 6
);
