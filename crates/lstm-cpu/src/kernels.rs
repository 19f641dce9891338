//! The products' kernels, generic over the vector type, and the table through which one instruction set's are called.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use std::ptr::null;

use lstm_core::arithmetic::BLOCK;

pub(crate) use crate::step::solo;
use crate::{
    elementwise::ColumnArgs,
    simd::{Simd, gather},
    step::{CellArgs, SoloArgs},
    step_backward::CellBackwardArgs,
};

/// Vectors side by side in a panel of packed weights: one for each gate, or what `Packed` says.
pub(crate) const PANEL_VECTORS: usize = 4;

/// A matrix in memory: element (r, c) lies at `r * row + c / BLOCK * block + c % BLOCK * col` from `at`. One of `row` and
/// `col` is 1.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) at: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
    pub(crate) block: usize,
}

impl Strided {
    /// Row-major.
    pub(crate) fn rows(at: *const f32, row: usize) -> Self {
        Strided { at, row, col: 1, block: BLOCK }
    }

    /// The same row-major matrix, transposed.
    pub(crate) fn t(self) -> Self {
        debug_assert_eq!(self.block, BLOCK * self.col);
        Strided { row: self.col, col: self.row, block: BLOCK * self.row, ..self }
    }

    /// From row `row` and column `block * BLOCK` on.
    ///
    /// # Safety
    /// There is that element, or it is one past the end.
    #[inline(always)]
    pub(crate) unsafe fn from(self, row: usize, block: usize) -> Self {
        // SAFETY: the caller's promise.
        Strided { at: unsafe { self.at.add(row * self.row + block * self.block) }, ..self }
    }
}

/// A product of some rows with a panel: `out[r] (+)= sum over k of a[r][k] * panel[k]`.
#[derive(Clone, Copy)]
pub(crate) struct TileArgs {
    /// Products of each sum; they start at a multiple of `BLOCK` of the whole product.
    pub(crate) k: usize,
    pub(crate) a: Strided,
    /// `k` panel rows of `PANEL_VECTORS` vectors.
    pub(crate) panel: *const f32,
    pub(crate) out: *mut f32,
    /// Distance between rows of `out`.
    pub(crate) ldo: usize,
    /// Whether `out` already holds the sum of the blocks before.
    pub(crate) add: bool,
    /// For [`Kernels::rows`]: the panel that is used next, of which lines are fetched meanwhile, with more rows than a tile has
    /// after the rest of this one. If null, the one that follows in memory.
    pub(crate) next: *const f32,
    /// What is fetched, `pace` floats further with each product: any address. For `Kernels::rows`, what is fetched instead of
    /// panels, `pace` floats for each product of all rows, or null.
    pub(crate) ahead: *const f32,
    pub(crate) pace: usize,
}

impl TileArgs {
    /// A whole product, without `next` and `ahead`.
    pub(crate) fn new(k: usize, a: Strided, panel: *const f32, out: *mut f32, ldo: usize) -> Self {
        TileArgs { k, a, panel, out, ldo, add: false, next: null(), ahead: null(), pace: 0 }
    }
}

/// A kernel for a fixed number of rows.
///
/// # Safety
/// The pointers cover what [`TileArgs`] describes.
pub(crate) type Tile = unsafe fn(&TileArgs);

/// A whole step for a fixed number of panels.
///
/// # Safety
/// The pointers cover what [`SoloArgs`] describes.
pub(crate) type Solo = unsafe fn(&SoloArgs);

/// One instruction set's kernels.
pub(crate) struct Kernels {
    pub(crate) lanes: usize,
    /// `tiles[r - 1]` handles `r` rows.
    pub(crate) tiles: &'static [Tile],
    pub(crate) cell: unsafe fn(&CellArgs),
    /// `solo[p - 1]` makes a step of one row with `p` panels: as many as registers hold the sums of.
    pub(crate) solo: &'static [Solo],
    pub(crate) cell_backward: unsafe fn(&CellBackwardArgs),
    pub(crate) column_sums: unsafe fn(&ColumnArgs),
    /// Asks for a vector in each of `rows` rows, `apart` floats from one another, at any address.
    pub(crate) fetch: unsafe fn(*const f32, rows: usize, apart: usize),
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

    /// The product of any number of rows, none included; `args` says where the first row and the first product are.
    ///
    /// # Safety
    /// As for [`Tile`].
    pub(crate) unsafe fn rows(&self, rows: usize, args: TileArgs) {
        let follows = args.panel.wrapping_add(args.k * self.panel());
        let next = if args.next.is_null() { follows } else { args.next };
        if (1..=self.tiles.len()).contains(&rows) {
            let (ahead, pace) = if args.ahead.is_null() { (next, LINE) } else { (args.ahead, args.pace) };
            // SAFETY: the caller's promise.
            return unsafe { self.tiles[rows - 1](&TileArgs { ahead, pace, ..args }) };
        }
        // Slices of the panel stay in the first-level cache while all rows pass over them.
        let groups = rows.div_ceil(self.tiles.len());
        // An even share for each, but the first, which brings the slice there, has one of the last one's where it can.
        let (low, taller) = (rows / groups.max(1), rows % groups.max(1));
        let shift = low > 3 && low + taller.min(1) < self.tiles.len();
        let more = |group: usize| usize::from(group < taller) + usize::from(shift && group == 0);
        let less = |group: usize| usize::from(shift && group + 1 == groups);
        // An even share by each group: more at once would keep the cache from what is needed now.
        let pace = if args.ahead.is_null() { self.panel() } else { args.pace };
        let pace = pace.div_ceil(groups.max(1)).min(LINE);
        for start in (0..args.k).step_by(SLICE) {
            let ahead = match args.ahead.is_null() {
                true if start + SLICE < args.k => args.panel.wrapping_add((start + SLICE) * self.panel()),
                true => next,
                false => args.ahead.wrapping_add(start * groups * pace),
            };
            let mut row = 0;
            for group in 0..groups {
                let height = low + more(group) - less(group);
                // SAFETY: the caller's promise; the groups' heights add up to `rows`, and start < k.
                unsafe {
                    self.tiles[height - 1](&TileArgs {
                        k: SLICE.min(args.k - start),
                        a: args.a.from(row, start / BLOCK),
                        panel: args.panel.add(start * self.panel()),
                        out: args.out.add(row * args.ldo),
                        add: args.add || start > 0,
                        ahead: ahead.wrapping_add(group * SLICE * pace),
                        pace,
                        ..args
                    });
                }
                row += height;
            }
        }
    }
}

/// Floats in a cache line.
pub(crate) const LINE: usize = 16;

/// Products between two visits of the accumulators in memory: a multiple of `BLOCK`.
const SLICE: usize = 4 * BLOCK;

/// A [`Tile`] of `ROWS` rows that sums `BLOCKS` blocks side by side, so that few rows still keep the adders busy.
///
/// # Safety
/// As for [`Tile`] and [`Simd`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const ROWS: usize, const BLOCKS: usize>(args: &TileArgs) {
    debug_assert!(args.a.col == 1 || args.a.row == 1);
    // SAFETY: the caller's promise.
    unsafe {
        match args.a.col {
            1 => tile_of::<S, ROWS, BLOCKS, false>(args),
            _ => tile_of::<S, ROWS, BLOCKS, true>(args),
        }
    }
}

/// [`tile`] of rows whose elements are adjacent, or, `TRANSPOSED`, of adjacent rows: the compiler should know, as integer
/// additions, of addresses, take turns with multiply-adds.
///
/// # Safety
/// As for [`Tile`] and [`Simd`]; `args.a.row` is 1 if `TRANSPOSED`, otherwise `args.a.col` is.
#[inline(always)]
unsafe fn tile_of<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(args: &TileArgs) {
    let width = PANEL_VECTORS * S::LANES;
    let mut start = 0;
    while start < args.k {
        // SAFETY: the caller's promise: start < k.
        unsafe {
            let block = TileArgs {
                k: BLOCK.min(args.k - start),
                a: args.a.from(0, start / BLOCK),
                panel: args.panel.add(start * width),
                add: args.add || start > 0,
                ahead: args.ahead.wrapping_add(start * args.pace),
                ..*args
            };
            if BLOCKS > 1 && args.k - start >= BLOCKS * BLOCK {
                tile_blocks::<S, ROWS, BLOCKS, TRANSPOSED>(&block);
                start += BLOCKS * BLOCK;
            } else {
                tile_blocks::<S, ROWS, 1, TRANSPOSED>(&block);
                start += BLOCK;
            }
        }
    }
}

/// Products in a row of a block without a jump, for the same reason. Eight were slower, two almost as fast.
const UNROLL: usize = 4;

/// `BLOCKS` adjacent blocks of `k` products each; for more than one, `k` is `BLOCK`.
///
/// # Safety
/// As for [`tile_of`].
#[inline(always)]
unsafe fn tile_blocks<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(args: &TileArgs) {
    // SAFETY: the caller's promise: there are `args.k` products, of which each call makes one.
    unsafe {
        let mut sums = [[[S::splat(0.0); PANEL_VECTORS]; ROWS]; BLOCKS];
        let mut k = 0;
        while k + UNROLL <= args.k {
            for ahead in 0..UNROLL {
                tile_product::<S, ROWS, BLOCKS, TRANSPOSED>(args, k, ahead, &mut sums);
            }
            k += UNROLL;
        }
        while k < args.k {
            tile_product::<S, ROWS, BLOCKS, TRANSPOSED>(args, k, 0, &mut sums);
            k += 1;
        }
        for r in 0..ROWS {
            for j in 0..PANEL_VECTORS {
                let out = args.out.add(r * args.ldo + j * S::LANES);
                let mut total = if args.add { S::load(out).add(sums[0][r][j]) } else { sums[0][r][j] };
                for q in 1..BLOCKS {
                    total = total.add(sums[q][r][j]);
                }
                total.store(out);
            }
        }
    }
}

/// The product `k + ahead` of every sum.
///
/// # Safety
/// As for [`tile_of`]; there is that product.
#[inline(always)]
unsafe fn tile_product<S: Simd, const ROWS: usize, const BLOCKS: usize, const TRANSPOSED: bool>(
    args: &TileArgs,
    k: usize,
    ahead: usize,
    sums: &mut [[[S; PANEL_VECTORS]; ROWS]; BLOCKS],
) {
    let (a, width) = (args.a, PANEL_VECTORS * S::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        // Few rows read the panel at the speed of the memory anyway.
        if ROWS > 2 {
            S::prefetch(args.ahead.wrapping_add((k + ahead) * args.pace));
        }
        for q in 0..BLOCKS {
            // The constant last: it then needs no addition of its own.
            let b = args.panel.add(k * width).add((q * BLOCK + ahead) * width);
            let b: [S; PANEL_VECTORS] = gather(b, S::LANES);
            for r in 0..ROWS {
                let at = a.at.add(q * a.block);
                let at = if TRANSPOSED { at.add((k + ahead) * a.col + r) } else { at.add(r * a.row + k).add(ahead) };
                let a = S::splat(*at);
                for j in 0..PANEL_VECTORS {
                    sums[q][r][j] = a.fma(b[j], sums[q][r][j]);
                }
            }
        }
    }
}

/// Instantiates all kernels for one vector type, with its target features, as `KERNELS`. `tiles: rows x blocks, ...` in
/// order from one row. `solo: panels, ...` in order from one panel.
macro_rules! kernels {
    ($simd:ty $(, $features:literal)?; tiles: $($rows:literal x $blocks:literal),+; solo: $($panels:literal),*) => {
        /// # Safety
        /// The features are there; as for the generic kernel of the name; so below.
        $(#[target_feature(enable = $features)])?
        unsafe fn cell(args: &$crate::step::CellArgs) {
            // SAFETY: the caller's promise; so below.
            unsafe { $crate::step::cell::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn cell_backward(args: &$crate::step_backward::CellBackwardArgs) {
            // SAFETY: as above.
            unsafe { $crate::step_backward::cell_backward::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn column_sums(args: &$crate::elementwise::ColumnArgs) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::column_sums::<$simd>(args) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn fetch(p: *const f32, rows: usize, apart: usize) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::fetch::<$simd>(p, rows, apart) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn snap(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::map_snap::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn sigmoid(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::map_sigmoid::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn tanh(p: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::map_tanh::<$simd>(p, n) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn clip(p: *mut f32, n: usize, bound: f32) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::map_clip::<$simd>(p, n, bound) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn mul_add(alpha: f32, a: *const f32, b: *const f32, c: *const f32, out: *mut f32, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::elementwise::mul_add::<$simd>(alpha, a, b, c, out, n) }
        }
        pub(crate) static KERNELS: $crate::kernels::Kernels = $crate::kernels::Kernels {
            lanes: <$simd as $crate::simd::Simd>::LANES,
            tiles: $crate::kernels::table!(tile($crate::kernels::TileArgs), $simd $(, $features)?; $([$rows, $blocks]),+),
            solo: $crate::kernels::table!(solo($crate::step::SoloArgs), $simd $(, $features)?; $([$panels]),*),
            cell,
            cell_backward,
            column_sums,
            fetch,
            snap,
            sigmoid,
            tanh,
            clip,
            mul_add,
        };
    };
}
pub(crate) use kernels;

/// A table of kernels of one kind for [`kernels!`], each a function of its own with its own constants.
macro_rules! table {
    ($kernel:ident($args:ty), $simd:ty; $([$($n:literal),+]),*) => {
        &[$({
            /// # Safety
            /// As for the generic kernel.
            unsafe fn kernel(args: &$args) {
                // SAFETY: the caller's promise.
                unsafe { $crate::kernels::$kernel::<$simd, $($n),+>(args) }
            }
            kernel
        }),*]
    };
    ($kernel:ident($args:ty), $simd:ty, $features:literal; $([$($n:literal),+]),*) => {
        &[$({
            /// # Safety
            /// The features are there; as for the generic kernel.
            #[target_feature(enable = $features)]
            unsafe fn kernel(args: &$args) {
                // SAFETY: the caller's promise.
                unsafe { $crate::kernels::$kernel::<$simd, $($n),+>(args) }
            }
            kernel
        }),*]
    };
}
pub(crate) use table;
