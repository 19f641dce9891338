//! [`Simd`] for AVX-512: 16 lanes.

use std::arch::x86_64::*;

use crate::kernel::{quantized::integers::Integers, simd::Simd};

impl Simd for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: `Simd` requires AVX-512, and 16 valid floats at `p`.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn load_first(n: usize, p: *const f32) -> Self {
        // SAFETY: the caller guarantees `n` valid floats; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn store_first(self, n: usize, p: *mut f32) {
        // SAFETY: the caller guarantees `n` valid floats; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, if n < 16 { (1 << n) - 1 } else { u16::MAX }, self) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_add_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_sub_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_mul_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn and_bits(self, mask: u32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_and_ps(self, _mm512_castsi512_ps(_mm512_set1_epi32(mask as i32))) }
    }
    #[inline(always)]
    unsafe fn or_bits(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_or_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn clamp_max(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller. If one operand is NaN, min and max return the second.
        unsafe { _mm512_min_ps(_mm512_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn clamp_min(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_max_ps(_mm512_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn exp2_from_bits(self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self))) }
    }
    #[inline(always)]
    unsafe fn select_negative(self, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(self)), b, a) }
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(self, bound: u32, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let magnitude = _mm512_castps_si512(self.and_bits(0x7fff_ffff));
            _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(bound as i32)), b, a)
        }
    }
    #[inline(always)]
    unsafe fn select_between(self, by: Self, low: f32, high: f32) -> Self {
        // SAFETY: guaranteed by the caller. Comparisons with NaN are false.
        unsafe {
            let at_or_below_low = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(by, _mm512_set1_ps(low));
            let at_or_above_high = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(by, _mm512_set1_ps(high));
            _mm512_mask_blend_ps(at_or_below_low | at_or_above_high, self, _mm512_setzero_ps())
        }
    }
}

/// With VNNI.
impl Integers for __m512i {
    type Floats = __m512;
    const ACTIVATION_OFFSET: u8 = 128;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_add_epi32(self, b) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_max_epi32(self, b) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> i32 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_reduce_max_epi32(self) }
    }
    #[inline(always)]
    unsafe fn from_bits(v: __m512) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> __m512 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_cvtepi32_ps(self) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const i32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<const ELEMENT_BYTES: usize>(self, activations: Self, weights: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match ELEMENT_BYTES {
                1 => _mm512_dpbusd_epi32(self, activations, weights),
                _ => _mm512_dpwssd_epi32(self, activations, weights),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match ELEMENT_BYTES {
                1 => _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(self)),
                _ => _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(self)),
            }
        }
    }
}

crate::kernel::table::define_kernels!(
    __m512, "avx512f,avx512bw,avx512dq,avx512vl,fma"; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1;
    single_row: 1, 2, 3, 4
);

crate::kernel::quantized::define_quantized_kernels!(
    __m512i, "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512vnni"; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1;
    single_row: 1 x 4, 2 x 2, 3 x 1, 4 x 1
);
