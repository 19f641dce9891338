//! The forward kernel of all cells: the gates and the new state of one time step, given the matrix products.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::CellKind;

use crate::kernel::{
    activation::{clip, sigmoid, snap, tanh},
    simd::{Simd, load_strided, store_strided},
    table::{Kernels, PANEL_VECTORS},
};

/// Arguments of the cell kernel. It runs over *items*, which are either the rows (sequences) of one panel, or the
/// panels of one row. Per item it computes the four gates of `LANES` units. Every pointer points to the data of the
/// first item.
pub(crate) struct CellArgs {
    /// Number of items.
    pub(crate) item_count: usize,
    /// Number of floats between consecutive items, for each pointer.
    pub(crate) strides: CellStrides,
    /// Input products `W x`, one panel row per item. If `bias` is null, the sum of the bias and all products.
    pub(crate) wx: *const f32,
    /// Recurrent products `U h`: one pointer per gate, each to one vector per item. In the dense peephole cell, the
    /// candidate has no recurrent weights, and its pointer is not read.
    pub(crate) uh: [*const f32; PANEL_VECTORS],
    /// Bias, one panel row. If null, `wx` holds complete sums, and `uh` is not read.
    pub(crate) bias: *const f32,
    /// Diagonal peephole weights, `LANES` values for each of the gates i, f and o.
    pub(crate) peephole: *const f32,
    /// Cell state before the step.
    pub(crate) c_old: *const f32,
    /// Output: cell state after the step.
    pub(crate) c_new: *mut f32,
    /// Output: hidden state after the step, before a projection.
    pub(crate) h: *mut f32,
    /// Output: a second copy of `h`, in rows without padding. Null if it is not needed.
    pub(crate) y: *mut f32,
    /// Number of units from the first unit of the first item to the last unit of the layer. Units beyond are padding
    /// and are not written to `y`.
    pub(crate) units: usize,
    /// Output: the values of the gates, one panel row per item. Null if they are not needed.
    pub(crate) gates: *mut f32,
    /// Equations of the cell.
    pub(crate) kind: CellKind,
    /// Whether the forget gate is `1 - i`.
    pub(crate) coupled: bool,
    /// Bound to which the pre-activations of the gates are clipped. `None` if they are not clipped.
    pub(crate) clip: Option<f32>,
}

/// Strides of the pointers in [`CellArgs`]: for each pointer, the number of floats from one item to the next. The items
/// are the rows of one panel or the panels of one row.
#[derive(Clone, Copy)]
pub(crate) struct CellStrides {
    pub(super) wx: usize,
    uh: usize,
    bias: usize,
    peephole: usize,
    /// Stride of `c_old`, `c_new` and `h`.
    state: usize,
    gates: usize,
    y: usize,
    /// Number of units from the first unit of an item to the first unit of the next item. It is 0 if the items are
    /// rows, which all have the same units.
    units: usize,
}

impl CellStrides {
    /// Returns the strides for a kernel call whose items are rows of the batch, all in the same panel of units. `state` is the leading dimension of `c_old`,
    /// `c_new` and `h`; `y` is the leading dimension of the output `y`.
    pub(crate) fn for_rows(kernels: &Kernels, state: usize, y: usize) -> Self {
        let width = kernels.panel_width();
        CellStrides { wx: width, uh: width, bias: 0, peephole: 0, state, gates: width, y, units: 0 }
    }

    /// Returns the strides for a kernel call whose items are panels of units, all in the same row of the batch. `wx`, `uh` and `gates` are the strides of the
    /// pointers with the same names in [`CellArgs`].
    pub(crate) fn for_panels(kernels: &Kernels, wx: usize, uh: usize, gates: usize) -> Self {
        let (lanes, width) = (kernels.lanes, kernels.panel_width());
        CellStrides { wx, uh, bias: width, peephole: 3 * lanes, state: lanes, gates, y: lanes, units: lanes }
    }
}

/// Computes the gates, the cell state and the hidden state of `args.item_count` items. The equations are those of
/// `lstm_core::cell`.
///
/// # Safety
/// The pointers are valid for `args.item_count` items; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn cell_forward<S: Simd>(args: &CellArgs) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match args.kind {
            CellKind::Fused | CellKind::Unfused => cell_forward_items::<S, false, false>(args),
            CellKind::PeepholeDense => cell_forward_items::<S, true, false>(args),
            CellKind::PeepholeDiagonal => cell_forward_items::<S, false, true>(args),
        }
    }
}

/// Number of items that are computed together, so that their latencies overlap.
const ITEMS_PER_ITERATION: usize = 4;

/// Does what [`cell_forward`] does, with the kind of cell as compile-time constants.
///
/// # Safety
/// As for [`cell_forward`].
#[inline(always)]
unsafe fn cell_forward_items<S: Simd, const DENSE_PEEPHOLE: bool, const DIAGONAL_PEEPHOLE: bool>(args: &CellArgs) {
    let mut n = 0;
    // SAFETY: guaranteed by the caller: each call handles items below `args.item_count`.
    unsafe {
        while n + ITEMS_PER_ITERATION <= args.item_count {
            let args = skip_items(args, n);
            let z = load_sums::<S, ITEMS_PER_ITERATION, DENSE_PEEPHOLE>(&args);
            cell_forward_vectors::<S, ITEMS_PER_ITERATION, DENSE_PEEPHOLE, DIAGONAL_PEEPHOLE>(&args, z);
            n += ITEMS_PER_ITERATION;
        }
        while n < args.item_count {
            let args = skip_items(args, n);
            let z = load_sums::<S, 1, DENSE_PEEPHOLE>(&args);
            cell_forward_vectors::<S, 1, DENSE_PEEPHOLE, DIAGONAL_PEEPHOLE>(&args, z);
            n += 1;
        }
    }
}

/// Loads the products of `N` items and returns the sums of bias and products.
///
/// # Safety
/// As for [`cell_forward`], with `N` items.
#[inline(always)]
unsafe fn load_sums<S: Simd, const N: usize, const DENSE_PEEPHOLE: bool>(args: &CellArgs) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let wx = load_panel_gates(args.wx, args.strides.wx);
        if args.bias.is_null() {
            return wx;
        }
        add_bias_and_products::<S, N, DENSE_PEEPHOLE>(args, wx, load_gates_at(args.uh, args.strides.uh))
    }
}

/// Computes `(bias + wx) + uh` of `N` items. The candidate of the dense peephole cell has no `uh`.
///
/// # Safety
/// As for [`cell_forward`], with `N` items.
#[inline(always)]
pub(crate) unsafe fn add_bias_and_products<S: Simd, const N: usize, const DENSE_PEEPHOLE: bool>(
    args: &CellArgs,
    wx: [[S; N]; PANEL_VECTORS],
    uh: [[S; N]; PANEL_VECTORS],
) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let x = load_panel_gates::<S, N>(args.bias, args.strides.bias).add(wx);
        let candidate = if DENSE_PEEPHOLE { x[2] } else { x[2].add(uh[2]) };
        [x[0].add(uh[0]), x[1].add(uh[1]), candidate, x[3].add(uh[3])]
    }
}

/// Loads one vector of each gate from `N` panel rows that are `stride` floats apart.
///
/// # Safety
/// A valid panel row at each address; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn load_panel_gates<S: Simd, const N: usize>(
    p: *const f32,
    stride: usize,
) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: guaranteed by the caller.
    unsafe { load_gates_at([p, p.add(S::LANES), p.add(2 * S::LANES), p.add(3 * S::LANES)], stride) }
}

/// Loads `N` vectors of each gate. `p` holds the address of each gate's first vector. The vectors of a gate are
/// `stride` floats apart.
///
/// # Safety
/// A valid vector at each address; otherwise as for [`Simd`].
#[inline(always)]
unsafe fn load_gates_at<S: Simd, const N: usize>(
    p: [*const f32; PANEL_VECTORS],
    stride: usize,
) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        [load_strided(p[0], stride), load_strided(p[1], stride), load_strided(p[2], stride), load_strided(p[3], stride)]
    }
}

/// Does what [`cell_forward`] does, for `N` items whose sums of bias and products are passed in registers.
///
/// # Safety
/// As for [`cell_forward`], with `N` items.
#[inline(always)]
pub(crate) unsafe fn cell_forward_vectors<
    S: Simd,
    const N: usize,
    const DENSE_PEEPHOLE: bool,
    const DIAGONAL_PEEPHOLE: bool,
>(
    args: &CellArgs,
    z: [[S; N]; PANEL_VECTORS],
) {
    let strides = args.strides;
    // SAFETY: guaranteed by the caller: every access is within an item's panel row or vector.
    unsafe {
        let c: [S; N] = load_strided(args.c_old, strides.state);
        let z_g = clip_if_set(args, z[2]);
        let g = if DENSE_PEEPHOLE { sigmoid(z_g) } else { tanh(z_g) };
        let z_i = clip_if_set(args, add_peephole::<S, N, DIAGONAL_PEEPHOLE>(args, 0, c, z[0]));
        let [i, f] = if args.coupled {
            let i = sigmoid(z_i);
            [i, i.fma(Simd::splat(-1.0), Simd::splat(1.0))]
        } else {
            sigmoid([z_i, clip_if_set(args, add_peephole::<S, N, DIAGONAL_PEEPHOLE>(args, 1, c, z[1]))])
        };
        let g = snap(g);
        let c = snap(f.fma(c, i.mul(g)));
        store_strided(c, args.c_new, strides.state);
        let o = sigmoid(clip_if_set(args, add_peephole::<S, N, DIAGONAL_PEEPHOLE>(args, 2, c, z[3])));
        if !args.gates.is_null() {
            store_strided(i, args.gates, strides.gates);
            store_strided(f, args.gates.add(S::LANES), strides.gates);
            store_strided(g, args.gates.add(2 * S::LANES), strides.gates);
            store_strided(o, args.gates.add(3 * S::LANES), strides.gates);
        }
        let h = if DENSE_PEEPHOLE { tanh(o.mul(c)) } else { o.mul(tanh(c)) };
        let h = snap(h);
        store_strided(h, args.h, strides.state);
        if !args.y.is_null() {
            for n in 0..N {
                h[n].store_first(args.units - n * strides.units, args.y.add(n * strides.y));
            }
        }
    }
}

// These are functions rather than closures: a closure might be compiled without the kernel's target features.

/// Returns `z` plus the diagonal peephole term of a gate. Returns `z` unchanged if `DIAGONAL_PEEPHOLE` is false.
/// `index` is 0, 1 or 2 for the gates i, f and o.
///
/// # Safety
/// As for [`cell_forward_vectors`].
#[inline(always)]
unsafe fn add_peephole<S: Simd, const N: usize, const DIAGONAL_PEEPHOLE: bool>(
    args: &CellArgs,
    index: usize,
    c: [S; N],
    z: [S; N],
) -> [S; N] {
    match DIAGONAL_PEEPHOLE {
        // SAFETY: guaranteed by the caller.
        true => unsafe { c.fma(load_strided(args.peephole.add(index * S::LANES), args.strides.peephole), z) },
        false => z,
    }
}

/// Returns `z`, clipped if the layer has a clip bound.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn clip_if_set<S: Simd>(args: &CellArgs, z: S) -> S {
    match args.clip {
        // SAFETY: guaranteed by the caller.
        Some(bound) => unsafe { clip(z, bound) },
        None => z,
    }
}

/// Returns the arguments for the items from number `n` on: all pointers are advanced by `n` items, and the units of the
/// first `n` items are subtracted from `units`.
///
/// # Safety
/// The pointers are valid for more than `n` items.
#[inline(always)]
unsafe fn skip_items(args: &CellArgs, n: usize) -> CellArgs {
    let strides = args.strides;
    let (uh, state) = (n * strides.uh, n * strides.state);
    // SAFETY: guaranteed by the caller.
    unsafe {
        CellArgs {
            wx: args.wx.add(n * strides.wx),
            uh: [args.uh[0].add(uh), args.uh[1].add(uh), args.uh[2].add(uh), args.uh[3].add(uh)],
            // Null if `wx` holds complete sums.
            bias: if args.bias.is_null() { args.bias } else { args.bias.add(n * strides.bias) },
            // May be null or dangling: it is read only by the diagonal peephole cell.
            peephole: args.peephole.wrapping_add(n * strides.peephole),
            c_old: args.c_old.add(state),
            c_new: args.c_new.add(state),
            h: args.h.add(state),
            gates: if args.gates.is_null() { args.gates } else { args.gates.add(n * strides.gates) },
            y: if args.y.is_null() { args.y } else { args.y.add(n * strides.y) },
            units: args.units - n * strides.units,
            ..*args
        }
    }
}
