//! [`Simd`] for AVX2 and FMA: 8 lanes.

use std::arch::x86_64::*;

use crate::kernel::{quantized::integers::Integers, simd::Simd};

impl Simd for __m256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: `Simd` requires AVX2 and FMA, and 8 valid floats at `p`.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn load_first(n: usize, p: *const f32) -> Self {
        // SAFETY: the caller guarantees `n` valid floats; masked lanes are not read.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes))
        }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_add_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_sub_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_mul_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn and_bits(self, mask: u32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_and_ps(self, _mm256_castsi256_ps(_mm256_set1_epi32(mask as i32))) }
    }
    #[inline(always)]
    unsafe fn or_bits(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_or_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn clamp_max(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller. If one operand is NaN, min and max return the second.
        unsafe { _mm256_min_ps(_mm256_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn clamp_min(self, bound: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_max_ps(_mm256_set1_ps(bound), self) }
    }
    #[inline(always)]
    unsafe fn exp2_from_bits(self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self))) }
    }
    #[inline(always)]
    unsafe fn select_negative(self, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller. The blend looks at sign bits only.
        unsafe { _mm256_blendv_ps(b, a, self) }
    }
    #[inline(always)]
    unsafe fn select_magnitude_below(self, bound: u32, a: Self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let magnitude = _mm256_castps_si256(self.and_bits(0x7fff_ffff));
            let is_below = _mm256_cmpgt_epi32(_mm256_set1_epi32(bound as i32), magnitude);
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(is_below))
        }
    }
    #[inline(always)]
    unsafe fn select_between(self, by: Self, low: f32, high: f32) -> Self {
        // SAFETY: guaranteed by the caller. Comparisons with NaN are false.
        unsafe {
            let at_or_below_low = _mm256_cmp_ps::<_CMP_LE_OQ>(by, _mm256_set1_ps(low));
            let at_or_above_high = _mm256_cmp_ps::<_CMP_GE_OQ>(by, _mm256_set1_ps(high));
            _mm256_andnot_ps(_mm256_or_ps(at_or_below_low, at_or_above_high), self)
        }
    }
}

impl Integers for __m256i {
    type Floats = __m256;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_add_epi32(self, b) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_max_epi32(self, b) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> i32 {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let half = _mm_max_epi32(_mm256_castsi256_si128(self), _mm256_extracti128_si256::<1>(self));
            let two = _mm_max_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }
    #[inline(always)]
    unsafe fn from_bits(v: __m256) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_castps_si256(v) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_cvtepi32_ps(self) }
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
            let sums = match ELEMENT_BYTES {
                // `maddubs` reads its first operand without signs, so the weights get the signs. Two products are at
                // most 2 * 127 * 127 and do not saturate.
                1 => {
                    let weights = _mm256_sign_epi8(weights, activations);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(activations), weights);
                    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
                }
                _ => _mm256_madd_epi16(activations, weights),
            };
            _mm256_add_epi32(self, sums)
        }
    }
    #[inline(always)]
    unsafe fn store_low<const ELEMENT_BYTES: usize>(self, p: *mut u8) {
        // SAFETY: guaranteed by the caller. The values are in the low bytes, so packing does not saturate once the
        // high bytes are zero.
        unsafe {
            match ELEMENT_BYTES {
                1 => {
                    let bytes = _mm256_and_si256(self, _mm256_set1_epi32(0xff));
                    let halves = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                    _mm_storel_epi64(p.cast(), _mm_packus_epi16(halves, halves));
                }
                _ => {
                    let halves = _mm256_and_si256(self, _mm256_set1_epi32(0xffff));
                    let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
                    _mm_storeu_si128(p.cast(), _mm_packus_epi32(low, high));
                }
            }
        }
    }
}

crate::kernel::table::define_kernels!(__m256, "avx2,fma"; tiles: 1 x 2, 2 x 1, 3 x 1; single_row: 1, 2, 3);
crate::kernel::quantized::define_quantized_kernels!(
    __m256i, "avx2,fma"; tiles: 1 x 2, 2 x 1, 3 x 1; single_row: 1 x 2, 2 x 1, 3 x 1
);
