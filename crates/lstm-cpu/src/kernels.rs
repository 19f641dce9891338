//! The kernels, generic over the vector type, and the table through which one instruction set's are called.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::{CellKind, arithmetic::BLOCK};

use crate::{
    activation::{clip, sigmoid, snap, tanh},
    simd::Simd,
};

/// Vectors side by side in a panel of packed weights; in a recurrent panel, one for each gate.
pub(crate) const PANEL_VECTORS: usize = 4;

/// `out[r] (+)= sum over k of a[r][k] * panel[k]` for a fixed number of rows: `k` products, rows of `a` `lda` apart, rows of
/// `out` `ldo` apart, a panel row of `PANEL_VECTORS` vectors. `k` starts at a multiple of `BLOCK` of the whole product;
/// `add` says that `out` already holds the sum of the blocks before it.
///
/// # Safety
/// The pointers cover what is described.
pub(crate) type Tile =
    unsafe fn(k: usize, a: *const f32, lda: usize, panel: *const f32, out: *mut f32, ldo: usize, add: bool);

/// What [`Kernels::cell`] works on: one panel (the four gates of as many units as a vector has lanes) of some rows.
/// Rows of `x` and `z` are a panel row (`4 * LANES`) apart.
pub(crate) struct CellArgs {
    pub(crate) rows: usize,
    /// `W x`.
    pub(crate) x: *const f32,
    /// `U h`.
    pub(crate) z: *const f32,
    /// One panel row.
    pub(crate) bias: *const f32,
    /// `LANES` values for each of i, f, o.
    pub(crate) peephole: *const f32,
    /// The cell state before and after, and where to put it.
    pub(crate) c_old: *const f32,
    pub(crate) c_new: *mut f32,
    pub(crate) h: *mut f32,
    /// Distance between rows of `c_old`, `c_new` and `h`.
    pub(crate) stride: usize,
    pub(crate) cell: CellKind,
    pub(crate) coupled: bool,
    pub(crate) clip: Option<f32>,
}

/// One instruction set's kernels.
pub(crate) struct Kernels {
    pub(crate) lanes: usize,
    /// `tiles[r - 1]` handles `r` rows.
    pub(crate) tiles: &'static [Tile],
    pub(crate) cell: unsafe fn(&CellArgs),
    /// `n` values in place.
    pub(crate) snap: unsafe fn(*mut f32, usize),
    pub(crate) sigmoid: unsafe fn(*mut f32, usize),
    pub(crate) tanh: unsafe fn(*mut f32, usize),
    pub(crate) clip: unsafe fn(*mut f32, usize, f32),
    /// `out = fma(alpha * a, b, c)`, `n` values; `b` or `c` may be null as in `Backend::mul_add`.
    pub(crate) mul_add: unsafe fn(f32, *const f32, *const f32, *const f32, *mut f32, usize),
}

impl Kernels {
    /// Floats in a panel row.
    pub(crate) fn panel(&self) -> usize {
        PANEL_VECTORS * self.lanes
    }

    /// `out[r] (+)= a[r] . panel` for any number of rows, none included; see [`Tile`].
    ///
    /// # Safety
    /// As for [`Tile`].
    #[allow(clippy::too_many_arguments, reason = "a BLAS-like signature")]
    pub(crate) unsafe fn rows(
        &self,
        rows: usize,
        k: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        out: *mut f32,
        ldo: usize,
    ) {
        if let 1.. = rows
            && rows <= self.tiles.len()
        {
            // SAFETY: the caller's promise.
            return unsafe { self.tiles[rows - 1](k, a, lda, panel, out, ldo, false) };
        }
        // Slices of the panel stay in the first-level cache while all rows pass over them.
        let groups = rows.div_ceil(self.tiles.len());
        for start in (0..k).step_by(SLICE) {
            let mut row = 0;
            for group in 0..groups {
                let height = rows / groups + usize::from(group < rows % groups);
                // SAFETY: the caller's promise; the groups' heights add up to `rows`, and start < k.
                unsafe {
                    self.tiles[height - 1](
                        SLICE.min(k - start),
                        a.add(row * lda + start),
                        lda,
                        panel.add(start * self.panel()),
                        out.add(row * ldo),
                        ldo,
                        start > 0,
                    );
                }
                row += height;
            }
        }
    }
}

/// Products between two visits of the accumulators in memory: a multiple of `BLOCK`.
const SLICE: usize = 3 * BLOCK;

/// A [`Tile`] of `ROWS` rows that sums `BLOCKS` blocks side by side, so that few rows still keep the adders busy.
///
/// # Safety
/// As for [`Tile`] and [`Simd`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const ROWS: usize, const BLOCKS: usize>(
    k: usize,
    a: *const f32,
    lda: usize,
    panel: *const f32,
    out: *mut f32,
    ldo: usize,
    add: bool,
) {
    let width = PANEL_VECTORS * S::LANES;
    let (mut start, mut add) = (0, add);
    while start < k {
        // SAFETY: the caller's promise: all offsets are below k, ROWS and the panel's width.
        unsafe {
            let (a, panel) = (a.add(start), panel.add(start * width));
            if BLOCKS > 1 && k - start >= BLOCKS * BLOCK {
                tile_blocks::<S, ROWS, BLOCKS>(BLOCK, a, lda, panel, out, ldo, add);
                start += BLOCKS * BLOCK;
            } else {
                tile_blocks::<S, ROWS, 1>(BLOCK.min(k - start), a, lda, panel, out, ldo, add);
                start += BLOCK;
            }
        }
        add = true;
    }
}

/// `BLOCKS` adjacent blocks of `len` products each; for more than one, `len` is `BLOCK`.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn tile_blocks<S: Simd, const ROWS: usize, const BLOCKS: usize>(
    len: usize,
    a: *const f32,
    lda: usize,
    panel: *const f32,
    out: *mut f32,
    ldo: usize,
    add: bool,
) {
    let width = PANEL_VECTORS * S::LANES;
    // SAFETY: as for `tile`.
    unsafe {
        let mut sums = [[[S::splat(0.0); PANEL_VECTORS]; ROWS]; BLOCKS];
        for k in 0..len {
            for q in 0..BLOCKS {
                let b = panel.add((q * BLOCK + k) * width);
                let b =
                    [S::load(b), S::load(b.add(S::LANES)), S::load(b.add(2 * S::LANES)), S::load(b.add(3 * S::LANES))];
                for r in 0..ROWS {
                    let a = S::splat(*a.add(r * lda + q * BLOCK + k));
                    for j in 0..PANEL_VECTORS {
                        sums[q][r][j] = a.fma(b[j], sums[q][r][j]);
                    }
                }
            }
        }
        for r in 0..ROWS {
            for j in 0..PANEL_VECTORS {
                let out = out.add(r * ldo + j * S::LANES);
                let mut total = if add { S::load(out).add(sums[0][r][j]) } else { sums[0][r][j] };
                for q in 1..BLOCKS {
                    total = total.add(sums[q][r][j]);
                }
                total.store(out);
            }
        }
    }
}

/// The gates, the cell state and the output of one panel: see [`CellArgs`] and `lstm_core::cell`.
///
/// # Safety
/// The pointers cover `rows` rows; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn cell<S: Simd>(args: &CellArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.cell {
            CellKind::Fused | CellKind::Unfused => cell_rows::<S, false, false>(args),
            CellKind::PeepholeDense => cell_rows::<S, true, false>(args),
            CellKind::PeepholeDiagonal => cell_rows::<S, false, true>(args),
        }
    }
}

#[inline(always)]
unsafe fn cell_rows<S: Simd, const DENSE: bool, const DIAGONAL: bool>(args: &CellArgs) {
    // SAFETY: the caller's promise: every access is within a row's panel or vector.
    unsafe {
        for row in 0..args.rows {
            let (x, z) = (args.x.add(row * PANEL_VECTORS * S::LANES), args.z.add(row * PANEL_VECTORS * S::LANES));
            let at = row * args.stride;
            let c = S::load(args.c_old.add(at));
            let i = sigmoid(bounded(args, look::<S, DIAGONAL>(args, 0, c, sum(args, x, z, 0))));
            let f = if args.coupled {
                i.fma(S::splat(-1.0), S::splat(1.0))
            } else {
                sigmoid(bounded(args, look::<S, DIAGONAL>(args, 1, c, sum(args, x, z, 1))))
            };
            let g = if DENSE {
                sigmoid(bounded(args, input::<S>(args, x, 2)))
            } else {
                tanh(bounded(args, sum::<S>(args, x, z, 2)))
            };
            let c = snap(f.fma(c, i.mul(snap(g))));
            c.store(args.c_new.add(at));
            let o = sigmoid(bounded(args, look::<S, DIAGONAL>(args, 2, c, sum(args, x, z, 3))));
            let h = if DENSE { tanh(o.mul(c)) } else { o.mul(tanh(c)) };
            snap(h).store(args.h.add(at));
        }
    }
}

// Functions rather than closures: a closure is not sure to be compiled with the kernel's target features.

/// `bias + W x` of a gate.
#[inline(always)]
unsafe fn input<S: Simd>(args: &CellArgs, x: *const f32, gate: usize) -> S {
    // SAFETY: as for `cell_rows`; so below.
    unsafe { S::load(args.bias.add(gate * S::LANES)).add(S::load(x.add(gate * S::LANES))) }
}

/// `(bias + W x) + U h` of a gate.
#[inline(always)]
unsafe fn sum<S: Simd>(args: &CellArgs, x: *const f32, z: *const f32, gate: usize) -> S {
    // SAFETY: as above.
    unsafe { input::<S>(args, x, gate).add(S::load(z.add(gate * S::LANES))) }
}

/// The diagonal peephole's term, for i, f, o as 0, 1, 2.
#[inline(always)]
unsafe fn look<S: Simd, const DIAGONAL: bool>(args: &CellArgs, gate: usize, c: S, z: S) -> S {
    // SAFETY: as above.
    if DIAGONAL { unsafe { c.fma(S::load(args.peephole.add(gate * S::LANES)), z) } } else { z }
}

#[inline(always)]
unsafe fn bounded<S: Simd>(args: &CellArgs, z: S) -> S {
    match args.clip {
        // SAFETY: as above.
        Some(bound) => unsafe { clip(z, bound) },
        None => z,
    }
}

/// `f` of each of `n` values in place; the rest that fills no vector goes through a padded copy.
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

/// Instantiates all kernels for one vector type, with its target features, as `KERNELS`. `tiles: rows x blocks, ...` in
/// order from one row.
macro_rules! kernels {
    ($simd:ty $(, $features:literal)?; tiles: $($rows:literal x $blocks:literal),+) => {
        /// # Safety
        /// The features are there; as for the generic kernel of the name; so below.
        $(#[target_feature(enable = $features)])?
        unsafe fn cell(args: &$crate::kernels::CellArgs) {
            // SAFETY: the caller's promise; so below.
            unsafe { $crate::kernels::cell::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn snap(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::kernels::map_snap::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn sigmoid(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::kernels::map_sigmoid::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn tanh(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::kernels::map_tanh::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn clip(p: *mut f32, n: usize, bound: f32) {
            // SAFETY: as above.
            unsafe { $crate::kernels::map_clip::<$simd>(p, n, bound) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn mul_add(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::kernels::mul_add::<$simd>(alpha, a, b, c, out, n) }
        }
        pub(crate) static KERNELS: $crate::kernels::Kernels = $crate::kernels::Kernels {
            lanes: <$simd as $crate::simd::Simd>::LANES,
            tiles: $crate::kernels::tiles!($simd $(, $features)?; $($rows x $blocks),+),
            cell,
            snap,
            sigmoid,
            tanh,
            clip,
            mul_add,
        };
    };
}
pub(crate) use kernels;

/// The tiles of [`kernels!`], each a function of its own.
macro_rules! tiles {
    ($simd:ty; $($rows:literal x $blocks:literal),+) => {
        &[$({
            /// # Safety
            /// As for [`crate::kernels::Tile`].
            unsafe fn tile(k: usize, a: *const f32, lda: usize, panel: *const f32, out: *mut f32, ldo: usize, add: bool) {
                // SAFETY: the caller's promise.
                unsafe { $crate::kernels::tile::<$simd, $rows, $blocks>(k, a, lda, panel, out, ldo, add) }
            }
            tile
        }),+]
    };
    ($simd:ty, $features:literal; $($rows:literal x $blocks:literal),+) => {
        &[$({
            /// # Safety
            /// The features are there; as for [`crate::kernels::Tile`].
            #[target_feature(enable = $features)]
            unsafe fn tile(k: usize, a: *const f32, lda: usize, panel: *const f32, out: *mut f32, ldo: usize, add: bool) {
                // SAFETY: the caller's promise.
                unsafe { $crate::kernels::tile::<$simd, $rows, $blocks>(k, a, lda, panel, out, ldo, add) }
            }
            tile
        }),+]
    };
}
pub(crate) use tiles;
