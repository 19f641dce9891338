//! The forward kernels of the cells, generic over the vector type: what one step computes besides its products, and all of a
//! small step.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::{CellKind, arithmetic::BLOCK};

use crate::{
    activation::{clip, sigmoid, snap, tanh},
    kernels::PANEL_VECTORS,
    simd::{Simd, gather, scatter},
};

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
    /// Where `h` also goes, without padding, or null; rows are `ldy` apart.
    pub(crate) y: *mut f32,
    pub(crate) ldy: usize,
    /// Units from this panel on: padding is not written to `y`.
    pub(crate) units: usize,
    /// Where to keep the gates, rows a panel row apart, or null.
    pub(crate) gates: *mut f32,
    /// Distance between rows of `c_old`, `c_new` and `h`.
    pub(crate) stride: usize,
    pub(crate) cell: CellKind,
    pub(crate) coupled: bool,
    pub(crate) clip: Option<f32>,
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

/// Rows that are worked on together, so that the operations of one need not wait for those of another.
const TOGETHER: usize = 4;

#[inline(always)]
unsafe fn cell_rows<S: Simd, const DENSE: bool, const DIAGONAL: bool>(args: &CellArgs) {
    let width = PANEL_VECTORS * S::LANES;
    let apart = Apart { bias: 0, peephole: 0, state: args.stride, gates: width, y: args.ldy, units: 0 };
    let mut row = 0;
    // SAFETY: the caller's promise: each call handles rows below `args.rows`.
    unsafe {
        while row + TOGETHER <= args.rows {
            let args = from_row(args, row, width);
            cell_vectors::<S, TOGETHER, DENSE, DIAGONAL>(
                &args,
                apart,
                gate_vectors(args.x, width),
                gate_vectors(args.z, width),
            );
            row += TOGETHER;
        }
        while row < args.rows {
            let args = from_row(args, row, width);
            cell_vectors::<S, 1, DENSE, DIAGONAL>(
                &args,
                apart,
                gate_vectors(args.x, width),
                gate_vectors(args.z, width),
            );
            row += 1;
        }
    }
}

/// What [`Kernels::solo`](crate::kernels::Kernels::solo) works on: all panels of one row, products included.
pub(crate) struct SoloArgs {
    /// Elements of `operand`, the row that the recurrent weights multiply.
    pub(crate) k: usize,
    pub(crate) operand: *const f32,
    /// `[panels][k][panel]`
    pub(crate) u: *const f32,
    /// The first panel's; `z` is not used.
    pub(crate) cell: CellArgs,
    /// Distance between panels of `cell.x`.
    pub(crate) x_apart: usize,
    /// Distance between panels of `cell.gates`.
    pub(crate) gates_apart: usize,
    /// Elements of `input`.
    pub(crate) n: usize,
    /// The row that the input weights multiply, or null where `cell.x` has the products already.
    pub(crate) input: *const f32,
    /// `[panels][n][panel]`
    pub(crate) w: *const f32,
}

/// A step of one row with `N` panels: their products side by side, then their gates.
///
/// # Safety
/// The pointers cover `N` panels; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn solo<S: Simd, const N: usize>(args: &SoloArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.cell.cell {
            CellKind::Fused | CellKind::Unfused => solo_cell::<S, N, false, false>(args),
            CellKind::PeepholeDense => solo_cell::<S, N, true, false>(args),
            CellKind::PeepholeDiagonal => solo_cell::<S, N, false, true>(args),
        }
    }
}

#[inline(always)]
unsafe fn solo_cell<S: Simd, const N: usize, const DENSE: bool, const DIAGONAL: bool>(args: &SoloArgs) {
    let (lanes, width) = (S::LANES, PANEL_VECTORS * S::LANES);
    let apart =
        Apart { bias: width, peephole: 3 * lanes, state: lanes, gates: args.gates_apart, y: lanes, units: lanes };
    // SAFETY: the caller's promise.
    unsafe {
        let x = match args.input.is_null() {
            true => gate_vectors(args.cell.x, args.x_apart),
            false => products(args.n, args.input, args.w),
        };
        cell_vectors::<S, N, DENSE, DIAGONAL>(&args.cell, apart, x, products(args.k, args.operand, args.u));
    }
}

/// The products of a row of `k` with `N` panels of as many rows: block by block, all columns side by side.
#[inline(always)]
unsafe fn products<S: Simd, const N: usize>(k: usize, row: *const f32, panels: *const f32) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: the caller's promise: below `k` the row has elements and every panel rows.
    unsafe {
        let mut total = [[S::splat(0.0); N]; PANEL_VECTORS];
        let mut start = 0;
        while start < k {
            let mut sums = [[S::splat(0.0); N]; PANEL_VECTORS];
            for k_in in start..k.min(start + BLOCK) {
                let a = S::splat(*row.add(k_in));
                for n in 0..N {
                    for j in 0..PANEL_VECTORS {
                        let b = S::load(panels.add(((n * k + k_in) * PANEL_VECTORS + j) * S::LANES));
                        sums[j][n] = a.fma(b, sums[j][n]);
                    }
                }
            }
            total = if start == 0 { sums } else { total.add(sums) };
            start += BLOCK;
        }
        total
    }
}

/// Distances between the vectors that are worked on together: rows of a panel or panels of a row.
#[derive(Clone, Copy)]
struct Apart {
    bias: usize,
    peephole: usize,
    state: usize,
    gates: usize,
    y: usize,
    units: usize,
}

/// One vector of each gate, for `N` panels or rows `apart` floats from one another.
#[inline(always)]
unsafe fn gate_vectors<S: Simd, const N: usize>(p: *const f32, apart: usize) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: the caller's promise: a panel row at each.
    unsafe {
        [
            gather(p, apart),
            gather(p.add(S::LANES), apart),
            gather(p.add(2 * S::LANES), apart),
            gather(p.add(3 * S::LANES), apart),
        ]
    }
}

/// What [`cell`] computes, for `N` vectors of units from their `W x` and `U h`.
#[inline(always)]
unsafe fn cell_vectors<S: Simd, const N: usize, const DENSE: bool, const DIAGONAL: bool>(
    args: &CellArgs,
    apart: Apart,
    x: [[S; N]; PANEL_VECTORS],
    z: [[S; N]; PANEL_VECTORS],
) {
    // SAFETY: the caller's promise: every access is within a row's panel or vector.
    unsafe {
        let x = gate_vectors::<S, N>(args.bias, apart.bias).add(x);
        let c: [S; N] = gather(args.c_old, apart.state);
        let g = if DENSE { sigmoid(bounded(args, x[2])) } else { tanh(bounded(args, x[2].add(z[2]))) };
        let z_i = bounded(args, look::<S, N, DIAGONAL>(args, apart, 0, c, x[0].add(z[0])));
        let [i, f] = if args.coupled {
            let i = sigmoid(z_i);
            [i, i.fma(Simd::splat(-1.0), Simd::splat(1.0))]
        } else {
            sigmoid([z_i, bounded(args, look::<S, N, DIAGONAL>(args, apart, 1, c, x[1].add(z[1])))])
        };
        let g = snap(g);
        let c = snap(f.fma(c, i.mul(g)));
        scatter(c, args.c_new, apart.state);
        let o = sigmoid(bounded(args, look::<S, N, DIAGONAL>(args, apart, 2, c, x[3].add(z[3]))));
        if !args.gates.is_null() {
            scatter(i, args.gates, apart.gates);
            scatter(f, args.gates.add(S::LANES), apart.gates);
            scatter(g, args.gates.add(2 * S::LANES), apart.gates);
            scatter(o, args.gates.add(3 * S::LANES), apart.gates);
        }
        let h = if DENSE { tanh(o.mul(c)) } else { o.mul(tanh(c)) };
        let h = snap(h);
        scatter(h, args.h, apart.state);
        if !args.y.is_null() {
            for n in 0..N {
                h[n].store_first(args.units - n * apart.units, args.y.add(n * apart.y));
            }
        }
    }
}

// Functions rather than closures: a closure is not sure to be compiled with the kernel's target features.

/// The diagonal peephole's term, for i, f, o as 0, 1, 2.
#[inline(always)]
unsafe fn look<S: Simd, const N: usize, const DIAGONAL: bool>(
    args: &CellArgs,
    apart: Apart,
    gate: usize,
    c: [S; N],
    z: [S; N],
) -> [S; N] {
    // SAFETY: as for `cell_vectors`; so below.
    if DIAGONAL { unsafe { c.fma(gather(args.peephole.add(gate * S::LANES), apart.peephole), z) } } else { z }
}

#[inline(always)]
unsafe fn bounded<S: Simd>(args: &CellArgs, z: S) -> S {
    match args.clip {
        // SAFETY: as above.
        Some(bound) => unsafe { clip(z, bound) },
        None => z,
    }
}

/// `args` from row `row` on.
#[inline(always)]
unsafe fn from_row(args: &CellArgs, row: usize, width: usize) -> CellArgs {
    let state = row * args.stride;
    // SAFETY: the caller's promise: there is such a row.
    unsafe {
        CellArgs {
            x: args.x.add(row * width),
            z: args.z.add(row * width),
            c_old: args.c_old.add(state),
            c_new: args.c_new.add(state),
            h: args.h.add(state),
            // Null stays null.
            gates: if args.gates.is_null() { args.gates } else { args.gates.add(row * width) },
            y: if args.y.is_null() { args.y } else { args.y.add(row * args.ldy) },
            ..*args
        }
    }
}
