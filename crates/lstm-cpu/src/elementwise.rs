//! Kernels that treat every element alike, generic over the vector type; the rest that fills no vector goes through a
//! padded copy or one lane at a time.

use lstm_core::arithmetic::BLOCK;

use crate::{
    activation::{clip, sigmoid, snap, tanh},
    simd::Simd,
};

/// See [`Kernels::fetch`](crate::kernels::Kernels::fetch).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn fetch<S: Simd>(p: *const f32, rows: usize, apart: usize) {
    for row in 0..rows {
        let p = p.wrapping_add(row * apart);
        // A vector may lie in two lines. SAFETY: the caller's promise.
        unsafe {
            S::prefetch(p);
            S::prefetch(p.wrapping_add(S::LANES - 1));
        }
    }
}

/// `f` of each of `n` values in place.
macro_rules! map {
    ($name:ident, $f:ident $(, $arg:ident)?) => {
        /// # Safety
        /// `p` has `n` floats; as for [`Simd`].
        #[inline(always)]
        pub(crate) unsafe fn $name<S: Simd>(p: *mut f32, n: usize $(, $arg: f32)?) {
            let whole = n - n % S::LANES;
            // SAFETY: the vectors end at `whole`, the rest at `n`; `rest` has as many floats as any vector.
            unsafe {
                for k in (0..whole).step_by(S::LANES) {
                    $f(S::load(p.add(k)) $(, $arg)?).store(p.add(k));
                }
                if whole < n {
                    let mut rest = [0.0f32; 16];
                    std::ptr::copy_nonoverlapping(p.add(whole), rest.as_mut_ptr(), n - whole);
                    $f(S::load(rest.as_ptr()) $(, $arg)?).store(rest.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(rest.as_ptr(), p.add(whole), n - whole);
                }
            }
        }
    };
}
map!(map_snap, snap);
map!(map_sigmoid, sigmoid);
map!(map_tanh, tanh);
map!(map_clip, clip, bound);

/// What [`column_sums`] works on: `LANES` columns of some rows.
pub(crate) struct ColumnArgs {
    pub(crate) rows: usize,
    pub(crate) x: *const f32,
    /// Distance between rows of `x`.
    pub(crate) ldx: usize,
    /// Factors of the elements of `x`, their rows `ldy` apart, or null.
    pub(crate) y: *const f32,
    pub(crate) ldy: usize,
    /// The sums.
    pub(crate) out: *mut f32,
}

/// The sum of each column, in the order of `lstm_core::arithmetic::dot` with ones.
///
/// # Safety
/// The pointers cover what [`ColumnArgs`] describes; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn column_sums<S: Simd>(args: &ColumnArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut total = S::splat(0.0);
        for start in (0..args.rows).step_by(BLOCK) {
            let mut sum = S::splat(0.0);
            for row in start..args.rows.min(start + BLOCK) {
                let x = S::load(args.x.add(row * args.ldx));
                let x = if args.y.is_null() { x } else { x.mul(S::load(args.y.add(row * args.ldy))) };
                sum = sum.add(x);
            }
            total = if start == 0 { sum } else { total.add(sum) };
        }
        total.store(args.out);
    }
}

/// See [`Kernels::mul_add`].
///
/// # Safety
/// `a` and `out` have `n` floats, `b` and `c` too or are null; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn mul_add<S: Simd>(
    alpha: f32,
    a: *const f32,
    b: *const f32,
    c: *const f32,
    out: *mut f32,
    n: usize,
) {
    let whole = n - n % S::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for k in (0..whole).step_by(S::LANES) {
            mul_add_at::<S>(alpha, a, b, c, out, k);
        }
        for k in whole..n {
            mul_add_at::<f32>(alpha, a, b, c, out, k);
        }
    }
}

#[inline(always)]
unsafe fn mul_add_at<S: Simd>(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, k: usize) {
    // SAFETY: as for `mul_add`: a vector at k lies within n.
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
