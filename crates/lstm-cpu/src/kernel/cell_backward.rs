//! The backward kernel of all cells: the gradients of the gates and of the cell state in one time step.

use lstm_core::CellKind;

use crate::kernel::{
    activation::{snap, tanh},
    simd::Simd,
    table::PANEL_VECTORS,
};

/// Arguments of the backward kernel, which handles one panel (`LANES` units) of some rows (sequences). Every pointer
/// points to the data of the first row. `dh`, `dc` and `dz` are the gradients of the loss with respect to `h`, `c` and
/// the pre-activations `z`.
pub(crate) struct CellBackwardArgs {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Gate values that the forward pass saved: one panel row for each row.
    pub(crate) gates: *const f32,
    /// Diagonal peephole weights, `LANES` values for each of the gates i, f and o.
    pub(crate) peephole: *const f32,
    /// Cell state before the step.
    pub(crate) c_old: *const f32,
    /// Cell state after the step.
    pub(crate) c_new: *const f32,
    /// Gradient of the hidden state before a projection.
    pub(crate) dh: *const f32,
    /// Leading dimension of `dh`, in floats.
    pub(crate) ldh: usize,
    /// On entry, the gradient of the cell state after the step. On return, the gradient of the cell state before the
    /// step. In the dense peephole cell, the result is incomplete: the caller must multiply it by `f` and add the
    /// recurrent products.
    pub(crate) dc: *mut f32,
    /// Output: the values of the forget gate. It is written only in the dense peephole cell.
    pub(crate) f: *mut f32,
    /// Output: the hidden state before the projection. Null if it is not needed.
    pub(crate) h: *mut f32,
    /// Leading dimension of `c_old`, `c_new` and `h`, in floats.
    pub(crate) ld_state: usize,
    /// Leading dimension of `dc` and `f`, in floats.
    pub(crate) ldc: usize,
    /// Output: the gradients of the pre-activations of the gates.
    pub(crate) dz: *mut f32,
    /// Number of floats from one gate to the next in `dz`.
    pub(crate) gate_stride: usize,
    /// Leading dimension of `dz`, in floats.
    pub(crate) ldz: usize,
    /// Equations of the cell.
    pub(crate) kind: CellKind,
    /// Whether the forget gate is `1 - i`.
    pub(crate) coupled: bool,
    /// If pre-activations are clipped, the values of the activations at the clip bounds.
    pub(crate) clip_bounds: Option<ClipBounds>,
}

/// Values of the activations at the clip bounds: `[f(-clip), f(clip)]`. A gate that has one of these values was
/// clipped, so the gradient of its pre-activation is zero.
#[derive(Clone, Copy)]
pub(crate) struct ClipBounds {
    /// Values of sigmoid at the bounds.
    pub(crate) sigmoid: [f32; 2],
    /// Values of tanh at the bounds.
    pub(crate) tanh: [f32; 2],
}

/// Computes the gradients of `args.rows` rows. The equations are those of `lstm_core::cell`.
///
/// # Safety
/// The pointers are valid for `args.rows` rows; otherwise as for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn cell_backward<S: Simd>(args: &CellBackwardArgs) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match args.kind {
            CellKind::Fused | CellKind::Unfused => cell_backward_rows::<S, false, false>(args),
            CellKind::PeepholeDense => cell_backward_rows::<S, true, false>(args),
            CellKind::PeepholeDiagonal => cell_backward_rows::<S, false, true>(args),
        }
    }
}

/// Does what [`cell_backward`] does, with the kind of cell as compile-time constants.
///
/// # Safety
/// As for [`cell_backward`].
#[inline(always)]
unsafe fn cell_backward_rows<S: Simd, const DENSE_PEEPHOLE: bool, const DIAGONAL_PEEPHOLE: bool>(
    args: &CellBackwardArgs,
) {
    // SAFETY: guaranteed by the caller: every access is within a row's panel row or vector.
    unsafe {
        for row in 0..args.rows {
            let gates = args.gates.add(row * PANEL_VECTORS * S::LANES);
            let (i, f) = (S::load(gates), S::load(gates.add(S::LANES)));
            let (g, o) = (S::load(gates.add(2 * S::LANES)), S::load(gates.add(3 * S::LANES)));
            let offset = row * args.ld_state;
            let (c_old, c) = (S::load(args.c_old.add(offset)), S::load(args.c_new.add(offset)));
            let (dh, dc) = (S::load(args.dh.add(row * args.ldh)), S::load(args.dc.add(row * args.ldc)));

            // h = o * t with t = tanh(c); for the dense peephole cell h = tanh(o * c).
            let (dq, t, dc) = if DENSE_PEEPHOLE {
                let dq = dh.mul(tanh_derivative(snap(tanh(o.mul(c)))));
                (dq, c, snap(dq.fma(o, dc)))
            } else {
                let t = tanh(c);
                if !args.h.is_null() {
                    snap(o.mul(t)).store(args.h.add(offset));
                }
                (dh, t, snap(dh.mul(o).fma(tanh_derivative(t), dc)))
            };
            let dz_o = gate_gradient(args, dq.mul(t), o);
            let dc = if DIAGONAL_PEEPHOLE { snap(dz_o.fma(load_peephole(args, 2), dc)) } else { dc };
            let (dz_i, dz_f) = if args.coupled {
                let d = dc.mul(S::splat(-1.0)).fma(c_old, dc.mul(g));
                (gate_gradient(args, d, i), S::splat(0.0))
            } else {
                (gate_gradient(args, dc.mul(g), i), gate_gradient(args, dc.mul(c_old), f))
            };
            let dg = dc.mul(i);
            let dz_g = if DENSE_PEEPHOLE { gate_gradient(args, dg, g) } else { candidate_gradient(args, dg, g) };

            let dz = args.dz.add(row * args.ldz);
            dz_i.store(dz);
            dz_f.store(dz.add(args.gate_stride));
            dz_g.store(dz.add(2 * args.gate_stride));
            dz_o.store(dz.add(3 * args.gate_stride));
            let dc_old = if DENSE_PEEPHOLE {
                f.store(args.f.add(row * args.ldc));
                dc
            } else if DIAGONAL_PEEPHOLE {
                let dc_old = snap(dz_i.fma(load_peephole(args, 0), snap(dc.mul(f))));
                snap(dz_f.fma(load_peephole(args, 1), dc_old))
            } else {
                snap(dc.mul(f))
            };
            dc_old.store(args.dc.add(row * args.ldc));
        }
    }
}

// These are functions rather than closures: a closure might be compiled without the kernel's target features.

/// The derivative of sigmoid at the point where sigmoid has the value `s`: `s - s * s`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn sigmoid_derivative<S: Simd>(s: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { s.mul(S::splat(-1.0)).fma(s, s) }
}

/// The derivative of tanh at the point where tanh has the value `t`: `1 - t * t`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn tanh_derivative<S: Simd>(t: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { t.mul(S::splat(-1.0)).fma(t, S::splat(1.0)) }
}

/// The gradient of the pre-activation of a sigmoid gate. `d` is the gradient of the gate's value `gate`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn gate_gradient<S: Simd>(args: &CellBackwardArgs, d: S, gate: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { preactivation_gradient(d, gate, sigmoid_derivative(gate), args.clip_bounds.map(|bounds| bounds.sigmoid)) }
}

/// The gradient of the pre-activation of a tanh candidate. `d` is the gradient of the candidate's value `g`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn candidate_gradient<S: Simd>(args: &CellBackwardArgs, d: S, g: S) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { preactivation_gradient(d, g, tanh_derivative(g), args.clip_bounds.map(|bounds| bounds.tanh)) }
}

/// Returns the gradient of a pre-activation: `snap(d * derivative)`. It is +0 in lanes where `value`, the value of the
/// activation, has reached one of the `clip_bounds`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn preactivation_gradient<S: Simd>(d: S, value: S, derivative: S, clip_bounds: Option<[f32; 2]>) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let dz = snap(d.mul(derivative));
        match clip_bounds {
            Some([low, high]) => dz.select_between(value, low, high),
            None => dz,
        }
    }
}

/// The diagonal peephole weights of a gate. `index` is 0, 1 or 2 for the gates i, f and o.
///
/// # Safety
/// The layer has diagonal peepholes; otherwise as for [`cell_backward`].
#[inline(always)]
unsafe fn load_peephole<S: Simd>(args: &CellBackwardArgs, index: usize) -> S {
    // SAFETY: guaranteed by the caller.
    unsafe { S::load(args.peephole.add(index * S::LANES)) }
}
