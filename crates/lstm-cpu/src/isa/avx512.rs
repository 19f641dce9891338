//! 16 lanes: AVX-512.

use std::arch::x86_64::*;

use crate::simd::Simd;

impl Simd for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise in `Simd`: AVX-512 is there, `p` has 16 floats; so below.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a hint, which no address makes fail.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn store_first(self, n: usize, p: *mut f32) {
        // SAFETY: as above, for `n` floats.
        unsafe { _mm512_mask_storeu_ps(p, if n < 16 { (1 << n) - 1 } else { u16::MAX }, self) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn mask(self, mask: u32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_and_ps(self, _mm512_castsi512_ps(_mm512_set1_epi32(mask as i32))) }
    }
    #[inline(always)]
    unsafe fn or(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_or_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn at_most(self, bound: f32) -> Self {
        // SAFETY: as above. Of NaN and a number, min and max give the second operand.
        unsafe { _mm512_min_ps(_mm512_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(_mm512_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn power(self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self))) }
    }
    #[inline(always)]
    unsafe fn if_negative(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(self)), b, a) }
    }
    #[inline(always)]
    unsafe fn if_below(self, bound: u32, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let magnitude = _mm512_castps_si512(self.mask(0x7fff_ffff));
            _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(bound as i32)), b, a)
        }
    }
    #[inline(always)]
    unsafe fn within(self, by: Self, low: f32, high: f32) -> Self {
        // SAFETY: as above. Comparisons with NaN are false.
        unsafe {
            let low = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(by, _mm512_set1_ps(low));
            let high = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(by, _mm512_set1_ps(high));
            _mm512_mask_blend_ps(low | high, self, _mm512_setzero_ps())
        }
    }
}

crate::kernels::kernels!(
    __m512, "avx512f,avx512bw,avx512dq,avx512vl,fma"; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1;
    solo: 1, 2, 3, 4
);
