//! The dot product of two vectors in memory, for layers with few outputs.

use lstm_core::arithmetic::{DOT_BLOCK, snap};

/// Computes [`dot`](lstm_core::arithmetic::dot) of `x` and `w`, which have `n` values each. The values of `x` are
/// snapped first. The code uses loops rather than closures, because closures would not be compiled for the target
/// features of the caller.
///
/// # Safety
/// Both pointers are valid for `n` values.
#[inline(always)]
pub(crate) unsafe fn dot_snapped(x: *const f32, w: *const f32, n: usize) -> f32 {
    // SAFETY: guaranteed by the caller.
    let (x, w) = unsafe { (std::slice::from_raw_parts(x, n), std::slice::from_raw_parts(w, n)) };
    let mut total = 0.0;
    for (block, (x, w)) in x.chunks(DOT_BLOCK).zip(w.chunks(DOT_BLOCK)).enumerate() {
        let mut sum = 0.0f32;
        for (x, w) in x.iter().zip(w) {
            sum = snap(*x).mul_add(*w, sum);
        }
        total = if block == 0 { sum } else { total + sum };
    }
    total
}
