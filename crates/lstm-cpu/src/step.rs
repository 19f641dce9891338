//! The forward kernel of the cells: what one step computes besides its products, generic over the vector type.

use lstm_core::CellKind;

use crate::{
    activation::{clip, sigmoid, snap, tanh},
    kernels::PANEL_VECTORS,
    simd::Simd,
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
            let g = snap(g);
            let c = snap(f.fma(c, i.mul(g)));
            c.store(args.c_new.add(at));
            let o = sigmoid(bounded(args, look::<S, DIAGONAL>(args, 2, c, sum(args, x, z, 3))));
            if !args.gates.is_null() {
                let gates = args.gates.add(row * PANEL_VECTORS * S::LANES);
                i.store(gates);
                f.store(gates.add(S::LANES));
                g.store(gates.add(2 * S::LANES));
                o.store(gates.add(3 * S::LANES));
            }
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
