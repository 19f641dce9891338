//! The forward kernels of the cells, generic over the vector type: what one step computes besides its products, and all of a
//! small step.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::{CellKind, arithmetic::BLOCK};

use crate::{
    activation::{clip, sigmoid, snap, tanh},
    kernels::{Kernels, PANEL_VECTORS},
    simd::{Simd, gather, scatter},
};

/// What [`Kernels::cell`] works on: one panel (the four gates of as many units as a vector has lanes) of some rows, or some
/// panels of one row.
pub(crate) struct CellArgs {
    /// How many; all below is of the first.
    pub(crate) count: usize,
    pub(crate) apart: Apart,
    /// `W x`.
    pub(crate) x: *const f32,
    /// A vector of `U h` for each gate; the dense peephole's candidate has none.
    pub(crate) z: [*const f32; PANEL_VECTORS],
    /// One panel row.
    pub(crate) bias: *const f32,
    /// `LANES` values for each of i, f, o.
    pub(crate) peephole: *const f32,
    /// The cell state before and after, and where to put it.
    pub(crate) c_old: *const f32,
    pub(crate) c_new: *mut f32,
    pub(crate) h: *mut f32,
    /// Where `h` also goes, without padding, or null.
    pub(crate) y: *mut f32,
    /// Units from this panel on: padding is not written to `y`.
    pub(crate) units: usize,
    /// Where to keep the gates, or null.
    pub(crate) gates: *mut f32,
    pub(crate) cell: CellKind,
    pub(crate) coupled: bool,
    pub(crate) clip: Option<f32>,
}

/// Distances, in floats, between the rows of a panel or the panels of a row.
#[derive(Clone, Copy)]
pub(crate) struct Apart {
    x: usize,
    z: usize,
    bias: usize,
    peephole: usize,
    /// Of `c_old`, `c_new` and `h`.
    state: usize,
    gates: usize,
    y: usize,
    units: usize,
}

impl Apart {
    /// Rows of a panel, those of the state `state` and those of `y` so far apart.
    pub(crate) fn rows(kernels: &Kernels, state: usize, y: usize) -> Self {
        let width = kernels.panel();
        Apart { x: width, z: width, bias: 0, peephole: 0, state, gates: width, y, units: 0 }
    }

    /// Panels of a row, those of `x`, `z` and the gates so far apart.
    pub(crate) fn panels(kernels: &Kernels, x: usize, z: usize, gates: usize) -> Self {
        let (lanes, width) = (kernels.lanes, kernels.panel());
        Apart { x, z, bias: width, peephole: 3 * lanes, state: lanes, gates, y: lanes, units: lanes }
    }
}

/// The gates, the cell state and the output: see [`CellArgs`] and `lstm_core::cell`.
///
/// # Safety
/// The pointers cover `count` rows or panels; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn cell<S: Simd>(args: &CellArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.cell {
            CellKind::Fused | CellKind::Unfused => cells::<S, false, false>(args),
            CellKind::PeepholeDense => cells::<S, true, false>(args),
            CellKind::PeepholeDiagonal => cells::<S, false, true>(args),
        }
    }
}

/// How many are worked on together, so that the operations of one need not wait for those of another.
const TOGETHER: usize = 4;

#[inline(always)]
unsafe fn cells<S: Simd, const DENSE: bool, const DIAGONAL: bool>(args: &CellArgs) {
    let mut n = 0;
    // SAFETY: the caller's promise: each call handles those below `args.count`.
    unsafe {
        while n + TOGETHER <= args.count {
            let args = from(args, n);
            let (x, z) = (gate_vectors(args.x, args.apart.x), gather_each(args.z, args.apart.z));
            cell_vectors::<S, TOGETHER, DENSE, DIAGONAL>(&args, x, z);
            n += TOGETHER;
        }
        while n < args.count {
            let args = from(args, n);
            let (x, z) = (gate_vectors(args.x, 0), gather_each(args.z, 0));
            cell_vectors::<S, 1, DENSE, DIAGONAL>(&args, x, z);
            n += 1;
        }
    }
}

/// What [`Kernels::solo`](crate::kernels::Kernels::solo) works on: all panels of one row, products included.
pub(crate) struct SoloArgs {
    /// Elements of `operand`, the row that the recurrent weights multiply.
    pub(crate) k: usize,
    pub(crate) operand: *const f32,
    /// `[recurrent panels][k][panel]`
    pub(crate) u: *const f32,
    /// Panels; `z` and `count` are not used.
    pub(crate) cell: CellArgs,
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
    // SAFETY: the caller's promise.
    unsafe {
        let x = match args.input.is_null() {
            true => gate_vectors(args.cell.x, args.cell.apart.x),
            false => products::<S, N, false>(args.n, args.input, args.w),
        };
        cell_vectors::<S, N, DENSE, DIAGONAL>(&args.cell, x, products::<S, N, DENSE>(args.k, args.operand, args.u));
    }
}

/// The products of a row of `k` with the gates of `N` panels' units: block by block, all columns side by side. If `DENSE`, the
/// candidate has none.
#[inline(always)]
unsafe fn products<S: Simd, const N: usize, const DENSE: bool>(
    k: usize,
    row: *const f32,
    panels: *const f32,
) -> [[S; N]; PANEL_VECTORS] {
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
                        if DENSE && j == 2 {
                            continue;
                        }
                        let vector = if DENSE { n * 3 + j.min(2) } else { n * PANEL_VECTORS + j };
                        let (panel, column) = (vector / PANEL_VECTORS, vector % PANEL_VECTORS);
                        let b = S::load(panels.add(((panel * k + k_in) * PANEL_VECTORS + column) * S::LANES));
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

/// One vector of each gate, for `N` panels or rows `apart` floats from one another.
#[inline(always)]
unsafe fn gate_vectors<S: Simd, const N: usize>(p: *const f32, apart: usize) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: the caller's promise: a panel row at each.
    unsafe { gather_each([p, p.add(S::LANES), p.add(2 * S::LANES), p.add(3 * S::LANES)], apart) }
}

/// The same, where each gate's are elsewhere.
#[inline(always)]
unsafe fn gather_each<S: Simd, const N: usize>(
    p: [*const f32; PANEL_VECTORS],
    apart: usize,
) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: the caller's promise: a vector at each.
    unsafe { [gather(p[0], apart), gather(p[1], apart), gather(p[2], apart), gather(p[3], apart)] }
}

/// What [`cell`] computes, for `N` vectors of units from their `W x` and `U h`.
#[inline(always)]
unsafe fn cell_vectors<S: Simd, const N: usize, const DENSE: bool, const DIAGONAL: bool>(
    args: &CellArgs,
    x: [[S; N]; PANEL_VECTORS],
    z: [[S; N]; PANEL_VECTORS],
) {
    let apart = args.apart;
    // SAFETY: the caller's promise: every access is within a row's panel or vector.
    unsafe {
        let x = gate_vectors::<S, N>(args.bias, apart.bias).add(x);
        let c: [S; N] = gather(args.c_old, apart.state);
        let g = if DENSE { sigmoid(bounded(args, x[2])) } else { tanh(bounded(args, x[2].add(z[2]))) };
        let z_i = bounded(args, look::<S, N, DIAGONAL>(args, 0, c, x[0].add(z[0])));
        let [i, f] = if args.coupled {
            let i = sigmoid(z_i);
            [i, i.fma(Simd::splat(-1.0), Simd::splat(1.0))]
        } else {
            sigmoid([z_i, bounded(args, look::<S, N, DIAGONAL>(args, 1, c, x[1].add(z[1])))])
        };
        let g = snap(g);
        let c = snap(f.fma(c, i.mul(g)));
        scatter(c, args.c_new, apart.state);
        let o = sigmoid(bounded(args, look::<S, N, DIAGONAL>(args, 2, c, x[3].add(z[3]))));
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
    gate: usize,
    c: [S; N],
    z: [S; N],
) -> [S; N] {
    // SAFETY: as for `cell_vectors`; so below.
    if DIAGONAL { unsafe { c.fma(gather(args.peephole.add(gate * S::LANES), args.apart.peephole), z) } } else { z }
}

#[inline(always)]
unsafe fn bounded<S: Simd>(args: &CellArgs, z: S) -> S {
    match args.clip {
        // SAFETY: as above.
        Some(bound) => unsafe { clip(z, bound) },
        None => z,
    }
}

/// `args` from the `n`th on.
#[inline(always)]
unsafe fn from(args: &CellArgs, n: usize) -> CellArgs {
    let apart = args.apart;
    let (z, state) = (n * apart.z, n * apart.state);
    // SAFETY: the caller's promise: there are so many.
    unsafe {
        CellArgs {
            x: args.x.add(n * apart.x),
            z: [args.z[0].add(z), args.z[1].add(z), args.z[2].add(z), args.z[3].add(z)],
            bias: args.bias.add(n * apart.bias),
            // Null stays null, or is not used.
            peephole: args.peephole.wrapping_add(n * apart.peephole),
            c_old: args.c_old.add(state),
            c_new: args.c_new.add(state),
            h: args.h.add(state),
            gates: if args.gates.is_null() { args.gates } else { args.gates.add(n * apart.gates) },
            y: if args.y.is_null() { args.y } else { args.y.add(n * apart.y) },
            units: args.units - n * apart.units,
            ..*args
        }
    }
}
