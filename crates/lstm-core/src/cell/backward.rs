//! The backward pass of one time step, shared by all cells. From the gradients with respect to the state after the time
//! step, it computes those with respect to the pre-activations `z` of the gates and the state before the time step.

use super::{
    Cell, CellWeights, Gates,
    activation::{apply, derivative, values_at_bounds},
};
use crate::{
    activation::constant_row,
    backend::{Ops, State},
    config::{CellKind, GateActivation},
    error::Result,
    shape::{MatrixRef, zeros},
};

/// A cell prepared for the backward pass. The gradients with respect to `x` and `h` are computed by one matrix product
/// per gate, so each gate has its own weight matrices here.
pub(crate) struct BackwardCell<'a, T> {
    cell: &'a Cell<T>,
    /// The recurrent weights `U` of each gate.
    u: Gates<T>,
    /// A row of ones, `[1, hidden_size]`.
    ones: T,
    /// The smallest and the largest value of i, f and o: those of their function at the clipping bounds, each repeated
    /// in a row `[1, hidden_size]`. `None` for a layer without `clip`.
    gate_bounds: Option<[T; 2]>,
    /// The same for the candidate g.
    candidate_bounds: Option<[T; 2]>,
}

/// The input of a time step's backward pass: what the forward pass saved, and the gradients with respect to the state
/// after the time step. All tensors have the same number of rows.
pub(crate) struct SavedStep<T> {
    /// The values of the gates i, f, g, o.
    pub(crate) gates: Gates<T>,
    /// The cell state before the time step.
    pub(crate) c_old: T,
    /// The cell state after the time step.
    pub(crate) c: T,
    /// The hidden state after the time step.
    pub(crate) h: T,
    /// Snapped gradients with respect to the state after the time step. `d.h` includes the gradient with respect to the
    /// output of the time step.
    pub(crate) d: State<T>,
}

/// The result of [`BackwardCell::step`]: the gradients of one time step.
pub(crate) struct StepGradients<T> {
    /// Gradients with respect to the gates' pre-activations.
    pub(crate) z: Gates<T>,
    /// Gradients with respect to the state before the time step.
    pub(crate) state: State<T>,
    /// For a layer with a projection, the gradient with respect to the projected hidden state, and the hidden state `h`
    /// before the projection.
    pub(crate) projection: Option<(T, T)>,
    /// For a cell with diagonal peepholes, the contributions of the time step to the gradients of `p_i`, `p_f` and
    /// `p_o`, one row for each sequence.
    pub(crate) peephole: Option<[T; 3]>,
}

/// The sum of the matrix products `d . w` over all pairs `(d, w)` in `gates`, added from left to right, as
/// `((i + f) + g) + o`.
pub(crate) fn sum_of_products<B: Ops>(b: &B, gates: &[(&B::Tensor, &B::Tensor)]) -> Result<B::Tensor> {
    let mut sum = None;
    for (d, weights) in gates {
        sum = Some(b.gemm(MatrixRef::from(*d), MatrixRef::from(*weights), sum.as_ref())?);
    }
    Ok(sum.expect("there is at least one gate"))
}

/// A tensor of zeros with the shape of `tensor`.
fn zeros_like<B: Ops>(b: &B, tensor: &B::Tensor) -> Result<B::Tensor> {
    let shape = b.shape(tensor);
    b.upload(shape, &zeros("backward", &[shape.rows, shape.cols])?)
}

impl<'a, T: Clone> BackwardCell<'a, T> {
    pub(crate) fn new<B: Ops<Tensor = T>>(b: &B, cell: &'a Cell<T>) -> Result<Self> {
        let hidden = cell.spec.hidden_size;
        let ones = constant_row(b, hidden, 1.0)?;
        let bounds = |function| cell.spec.clip.map(|bound| values_at_bounds(b, function, bound, hidden)).transpose();
        let gate_bounds = bounds(cell.spec.activations.gate)?;
        let candidate_bounds = match cell.spec.cell {
            CellKind::PeepholeDense => gate_bounds.clone(),
            _ => bounds(cell.spec.activations.candidate)?,
        };
        Ok(BackwardCell { cell, u: cell.recurrent_weights(b)?, ones, gate_bounds, candidate_bounds })
    }

    /// The backward pass of one time step.
    ///
    /// ```text
    /// dz_o = snap((dh tanh(c')) o')      dc = snap(fma(dh o, tanh'(c'), dc))
    /// dz_i = snap((dc g) i')    dz_f = snap((dc c) f')    dz_g = snap((dc i) g')
    /// dc_old = snap(dc f)       dh_old = snap(((dz_i U_i + dz_f U_f) + dz_g U_g) + dz_o U_o)
    /// ```
    ///
    /// Here `c` and `c'` are the cell state before and after the time step, and `dc` and `dh` are the gradients with
    /// respect to the new state. For a gate with a sigmoid, `s' = fma(-s, s, s)` is the derivative at the gate's value
    /// `s`; for a tanh with the value `t`, the derivative is `t' = fma(-t, t, 1)`. `docs/specification.md` has the
    /// derivatives of the other functions, and the equations of the other cells and options.
    pub(crate) fn step<B: Ops<Tensor = T>>(&self, b: &B, saved: SavedStep<T>) -> Result<StepGradients<T>> {
        let spec = &self.cell.spec;
        let is_dense_peephole = spec.cell == CellKind::PeepholeDense;
        let mul = |x: &T, y: &T| b.mul_add(1.0, x, Some(y), None);
        let snapped_fma = |x: &T, y: &T, z: &T| b.snap(b.mul_add(1.0, x, Some(y), Some(z))?);
        let functions = spec.activations;
        let output_derivative = |t: &T| derivative(b, functions.output, t, &self.ones);
        // A pre-activation that was clipped has no influence on the gate.
        let dz = |d: T, gate: &T, function: GateActivation, bounds: &Option<[T; 2]>| {
            let dz = b.snap(mul(&d, &derivative(b, function, gate, &self.ones)?)?)?;
            match bounds {
                Some([lower_bound, upper_bound]) => b.select_between(dz, gate, lower_bound, upper_bound),
                None => Ok(dz),
            }
        };
        let dz_gate = |d: T, gate: &T| dz(d, gate, functions.gate, &self.gate_bounds);

        let SavedStep { gates: [i, f, g, o], c_old, c, h, d: State { h: dh, c: dc } } = saved;
        let mut projection = None;
        // h = o t with t = tanh(c), or another function; dense peephole: h = tanh(o t) with t = c. `dq` is the gradient of
        // the product o t.
        let (dq, t, dc) = if is_dense_peephole {
            let dq = mul(&dh, &output_derivative(&h)?)?;
            let dc = snapped_fma(&dq, &o, &dc)?;
            (dq, c.clone(), dc)
        } else {
            let t = apply(b, functions.output, c.clone())?;
            let dq = match &self.cell.projection {
                Some(w) => {
                    projection = Some((dh.clone(), b.snap(mul(&o, &t)?)?));
                    b.snap(b.gemm((&dh).into(), w.as_f32()?.into(), None)?)?
                }
                None => dh,
            };
            let dc = snapped_fma(&mul(&dq, &o)?, &output_derivative(&t)?, &dc)?;
            (dq, t, dc)
        };
        let dz_o = dz_gate(mul(&dq, &t)?, &o)?;
        let diagonal_peepholes = match &self.cell.weights {
            CellWeights::PeepholeDiagonal(cell) => Some(cell.peephole_weights()),
            _ => None,
        };
        let dc = match diagonal_peepholes {
            Some([_, _, p_o]) => snapped_fma(&dz_o, p_o, &dc)?,
            None => dc,
        };
        let (dz_i, dz_f) = if spec.coupled {
            // f = 1 - i has no pre-activation of its own.
            let d = b.mul_add(-1.0, &dc, Some(&c_old), Some(&mul(&dc, &g)?))?;
            (dz_gate(d, &i)?, zeros_like(b, &f)?)
        } else {
            (dz_gate(mul(&dc, &g)?, &i)?, dz_gate(mul(&dc, &c_old)?, &f)?)
        };
        let candidate = if is_dense_peephole { functions.gate } else { functions.candidate };
        let dz_g = dz(mul(&dc, &i)?, &g, candidate, &self.candidate_bounds)?;

        let [u_i, u_f, u_g, u_o] = &self.u;
        let state = if is_dense_peephole {
            let peephole_term = b.snap(sum_of_products(b, &[(&dz_i, u_i), (&dz_f, u_f), (&dz_o, u_o)])?)?;
            // The dense peephole cell does not read h.
            State { h: zeros_like(b, &h)?, c: snapped_fma(&dc, &f, &peephole_term)? }
        } else {
            let dh = b.snap(sum_of_products(b, &[(&dz_i, u_i), (&dz_f, u_f), (&dz_g, u_g), (&dz_o, u_o)])?)?;
            let mut dc = b.snap(mul(&dc, &f)?)?;
            if let Some([p_i, p_f, _]) = diagonal_peepholes {
                dc = snapped_fma(&dz_i, p_i, &dc)?;
                dc = snapped_fma(&dz_f, p_f, &dc)?;
            }
            State { h: dh, c: dc }
        };
        let peephole = match diagonal_peepholes {
            Some(_) => Some([mul(&dz_i, &c_old)?, mul(&dz_f, &c_old)?, mul(&dz_o, &c)?]),
            None => None,
        };
        Ok(StepGradients { z: [dz_i, dz_f, dz_g, dz_o], state, projection, peephole })
    }
}
