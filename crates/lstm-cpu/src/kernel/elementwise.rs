//! Elementwise kernels and column sums, generic over the vector type. The last elements, if they do not fill a vector,
//! are copied to a padded array or processed one at a time.

use lstm_core::arithmetic::DOT_BLOCK;

use crate::kernel::{
    activation::{clip, sigmoid, snap, tanh},
    simd::Simd,
};

/// Prefetches one vector of each of `rows` rows that are `stride` floats apart. The addresses need not be valid.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn prefetch_rows<S: Simd>(p: *const f32, rows: usize, stride: usize) {
    for row in 0..rows {
        let p = p.wrapping_add(row * stride);
        // A vector may span two cache lines. SAFETY: guaranteed by the caller.
        unsafe {
            S::prefetch(p);
            S::prefetch(p.wrapping_add(S::LANES - 1));
        }
    }
}

/// Defines a kernel that replaces each of `n` values by the result of the function `f` for that value.
macro_rules! map_in_place {
    ($name:ident, $f:ident $(, $arg:ident)?) => {
        #[doc = concat!("Replaces each of the `n` floats at `p` by its `", stringify!($f), "`.")]
        ///
        /// # Safety
        /// `n` valid floats at `p`; otherwise as for [`Simd`].
        #[inline(always)]
        pub(crate) unsafe fn $name<S: Simd>(p: *mut f32, n: usize $(, $arg: f32)?) {
            let vectorized_len = n - n % S::LANES;
            // SAFETY: the vectors end at `vectorized_len`, the rest at `n`; `remainder` is as long as the widest
            // vector.
            unsafe {
                for k in (0..vectorized_len).step_by(S::LANES) {
                    $f(S::load(p.add(k)) $(, $arg)?).store(p.add(k));
                }
                if vectorized_len < n {
                    let mut remainder = [0.0f32; 16];
                    std::ptr::copy_nonoverlapping(p.add(vectorized_len), remainder.as_mut_ptr(), n - vectorized_len);
                    $f(S::load(remainder.as_ptr()) $(, $arg)?).store(remainder.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(remainder.as_ptr(), p.add(vectorized_len), n - vectorized_len);
                }
            }
        }
    };
}
map_in_place!(map_snap, snap);
map_in_place!(map_sigmoid, sigmoid);
map_in_place!(map_tanh, tanh);
map_in_place!(map_clip, clip, bound);

/// Arguments of [`column_sums`], which sums `LANES` columns of a matrix `x`.
pub(crate) struct ColumnSumArgs {
    /// Number of rows of `x`.
    pub(crate) rows: usize,
    /// First row of `x`; the kernel reads `LANES` columns.
    pub(crate) x: *const f32,
    /// Leading dimension of `x`, in floats.
    pub(crate) ldx: usize,
    /// Matrix of the same size as `x`, by which `x` is multiplied element by element before the sum. Null for the sums
    /// of `x`.
    pub(crate) y: *const f32,
    /// Leading dimension of `y`, in floats.
    pub(crate) ldy: usize,
    /// Output: `LANES` sums.
    pub(crate) out: *mut f32,
}

/// Computes the sum of each column of `x`, or of `x * y`. The order of the additions is that of
/// `lstm_core::arithmetic::dot` of the column and a vector of ones.
///
/// # Safety
/// The pointers are valid for what [`ColumnSumArgs`] describes; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn column_sums<S: Simd>(args: &ColumnSumArgs) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut total = S::splat(0.0);
        for start in (0..args.rows).step_by(DOT_BLOCK) {
            let mut sum = S::splat(0.0);
            for row in start..args.rows.min(start + DOT_BLOCK) {
                let x = S::load(args.x.add(row * args.ldx));
                let x = if args.y.is_null() { x } else { x.mul(S::load(args.y.add(row * args.ldy))) };
                sum = sum.add(x);
            }
            total = if start == 0 { sum } else { total.add(sum) };
        }
        total.store(args.out);
    }
}

/// Computes `fma(alpha * a, b, c)` of each of `n` elements, as `Ops::mul_add` defines it. `b` and `c` may be null.
///
/// # Safety
/// `n` valid floats at `a` and `out`, and at `b` and `c` unless they are null; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn mul_add<S: Simd>(
    alpha: f32,
    a: *const f32,
    b: *const f32,
    c: *const f32,
    out: *mut f32,
    n: usize,
) {
    let vectorized_len = n - n % S::LANES;
    // SAFETY: guaranteed by the caller.
    unsafe {
        for k in (0..vectorized_len).step_by(S::LANES) {
            mul_add_at::<S>(alpha, a, b, c, out, k);
        }
        for k in vectorized_len..n {
            mul_add_at::<f32>(alpha, a, b, c, out, k);
        }
    }
}

/// Computes [`mul_add`] of the `LANES` elements from index `k` on.
///
/// # Safety
/// As for [`mul_add`], with `k + LANES <= n`.
#[inline(always)]
unsafe fn mul_add_at<S: Simd>(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, k: usize) {
    // SAFETY: guaranteed by the caller: the vector at `k` ends within `n`.
    unsafe {
        let product = S::splat(alpha).mul(S::load(a.add(k)));
        let value = match (b.is_null(), c.is_null()) {
            (true, true) => product,
            (false, true) => product.mul(S::load(b.add(k))),
            (true, false) => product.add(S::load(c.add(k))),
            (false, false) => product.fma(S::load(b.add(k)), S::load(c.add(k))),
        };
        value.store(out.add(k));
    }
}
