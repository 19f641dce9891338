//! The backward kernel of the cells: a step's gradients besides their products, generic over the vector type.

use lstm_core::CellKind;

use crate::{
    activation::{snap, tanh},
    kernels::PANEL_VECTORS,
    simd::Simd,
};

/// What [`Kernels::cell_backward`](crate::kernels::Kernels::cell_backward) works on: one panel of some rows, as for
/// [`CellArgs`](crate::step::CellArgs).
pub(crate) struct CellBackwardArgs {
    pub(crate) rows: usize,
    /// As the forward pass kept them, rows a panel row apart.
    pub(crate) gates: *const f32,
    /// `LANES` values for each of i, f, o.
    pub(crate) peephole: *const f32,
    /// The cell state before and after.
    pub(crate) c_old: *const f32,
    pub(crate) c_new: *const f32,
    /// The gradient of `h` before a projection.
    pub(crate) dh: *const f32,
    /// Distance between rows of `dh`.
    pub(crate) ldh: usize,
    /// The gradient of the cell state, after the step on entry and before it on return; the dense peephole's still lacks
    /// the factor `f` and the products.
    pub(crate) dc: *mut f32,
    /// With the dense peephole, where to put `f`; with a projection, where to put `h` before it; else null.
    pub(crate) f: *mut f32,
    pub(crate) h: *mut f32,
    /// Distance between rows of `c_old`, `c_new` and `h`.
    pub(crate) stride: usize,
    /// Distance between rows of `dc` and `f`.
    pub(crate) ldc: usize,
    /// The gradients of the gates' sums: gates this far apart, rows that far.
    pub(crate) dz: *mut f32,
    pub(crate) gate: usize,
    pub(crate) ldz: usize,
    pub(crate) cell: CellKind,
    pub(crate) coupled: bool,
    pub(crate) bounds: Option<Bounds>,
}

/// The values that gates have where their sum is at the bounds of `clip`.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) sigmoid: [f32; 2],
    pub(crate) tanh: [f32; 2],
}

/// See [`CellBackwardArgs`] and `lstm_core::cell`.
///
/// # Safety
/// The pointers cover `rows` rows; as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn cell_backward<S: Simd>(args: &CellBackwardArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.cell {
            CellKind::Fused | CellKind::Unfused => backward_rows::<S, false, false>(args),
            CellKind::PeepholeDense => backward_rows::<S, true, false>(args),
            CellKind::PeepholeDiagonal => backward_rows::<S, false, true>(args),
        }
    }
}

#[inline(always)]
unsafe fn backward_rows<S: Simd, const DENSE: bool, const DIAGONAL: bool>(args: &CellBackwardArgs) {
    // SAFETY: the caller's promise: every access is within a row's panel or vector.
    unsafe {
        for row in 0..args.rows {
            let gates = args.gates.add(row * PANEL_VECTORS * S::LANES);
            let (i, f) = (S::load(gates), S::load(gates.add(S::LANES)));
            let (g, o) = (S::load(gates.add(2 * S::LANES)), S::load(gates.add(3 * S::LANES)));
            let at = row * args.stride;
            let (c_old, c) = (S::load(args.c_old.add(at)), S::load(args.c_new.add(at)));
            let (dh, dc) = (S::load(args.dh.add(row * args.ldh)), S::load(args.dc.add(row * args.ldc)));

            // h = o t or, dense, tanh(o c).
            let (dq, t, dc) = if DENSE {
                let dq = dh.mul(of_tanh(snap(tanh(o.mul(c)))));
                (dq, c, snap(dq.fma(o, dc)))
            } else {
                let t = tanh(c);
                if !args.h.is_null() {
                    snap(o.mul(t)).store(args.h.add(at));
                }
                (dh, t, snap(dh.mul(o).fma(of_tanh(t), dc)))
            };
            let dz_o = of_gate(args, dq.mul(t), o);
            let dc = if DIAGONAL { snap(dz_o.fma(peephole(args, 2), dc)) } else { dc };
            let (dz_i, dz_f) = if args.coupled {
                let d = dc.mul(S::splat(-1.0)).fma(c_old, dc.mul(g));
                (of_gate(args, d, i), S::splat(0.0))
            } else {
                (of_gate(args, dc.mul(g), i), of_gate(args, dc.mul(c_old), f))
            };
            let dg = dc.mul(i);
            let dz_g = if DENSE { of_gate(args, dg, g) } else { of_candidate(args, dg, g) };

            let dz = args.dz.add(row * args.ldz);
            dz_i.store(dz);
            dz_f.store(dz.add(args.gate));
            dz_g.store(dz.add(2 * args.gate));
            dz_o.store(dz.add(3 * args.gate));
            let before = if DENSE {
                f.store(args.f.add(row * args.ldc));
                dc
            } else if DIAGONAL {
                let before = snap(dz_i.fma(peephole(args, 0), snap(dc.mul(f))));
                snap(dz_f.fma(peephole(args, 1), before))
            } else {
                snap(dc.mul(f))
            };
            before.store(args.dc.add(row * args.ldc));
        }
    }
}

// Functions rather than closures: a closure is not sure to be compiled with the kernel's target features.

/// A sigmoid's slope, given its value.
#[inline(always)]
unsafe fn of_sigmoid<S: Simd>(s: S) -> S {
    // SAFETY: as for `backward_rows`; so below.
    unsafe { s.mul(S::splat(-1.0)).fma(s, s) }
}

/// A tanh's.
#[inline(always)]
unsafe fn of_tanh<S: Simd>(t: S) -> S {
    // SAFETY: as above.
    unsafe { t.mul(S::splat(-1.0)).fma(t, S::splat(1.0)) }
}

/// The gradient of the sum of a gate that is a sigmoid, given that of its value.
#[inline(always)]
unsafe fn of_gate<S: Simd>(args: &CellBackwardArgs, d: S, gate: S) -> S {
    // SAFETY: as above.
    unsafe { of_sum(d, gate, of_sigmoid(gate), args.bounds.map(|bounds| bounds.sigmoid)) }
}

/// The gradient of the sum of a candidate that is a tanh.
#[inline(always)]
unsafe fn of_candidate<S: Simd>(args: &CellBackwardArgs, d: S, g: S) -> S {
    // SAFETY: as above.
    unsafe { of_sum(d, g, of_tanh(g), args.bounds.map(|bounds| bounds.tanh)) }
}

/// Where the sum was clipped it had no influence.
#[inline(always)]
unsafe fn of_sum<S: Simd>(d: S, value: S, slope: S, bounds: Option<[f32; 2]>) -> S {
    // SAFETY: as above.
    unsafe {
        let dz = snap(d.mul(slope));
        match bounds {
            Some([low, high]) => dz.within(value, low, high),
            None => dz,
        }
    }
}

/// The peephole of i, f, o as 0, 1, 2.
#[inline(always)]
unsafe fn peephole<S: Simd>(args: &CellBackwardArgs, gate: usize) -> S {
    // SAFETY: as above.
    unsafe { S::load(args.peephole.add(gate * S::LANES)) }
}
