//! A step's part of the backward pass, once for all cells: from the gradients of the state after it to those of the
//! gates' sums and of the state before it.

use super::{Cell, Gates, Kind};
use crate::{
    backend::{Ops, State},
    config::CellKind,
    error::Result,
    shape::{MatrixRef, MatrixShape, zeros},
};

/// A cell prepared for a backward pass: the weights of each gate apart, since `dx` and `dh` are one product per gate.
pub(crate) struct Backward<'a, T> {
    cell: &'a Cell<T>,
    u: Gates<T>,
    /// `[1, hidden]`
    ones: T,
    /// With `clip`, the values that a gate has at its bounds.
    bounds: Option<Bounds<T>>,
}

struct Bounds<T> {
    sigmoid: [T; 2],
    tanh: [T; 2],
}

/// What the forward pass kept of a step, and the gradients of the state after it, all of the same rows.
pub(crate) struct Kept<T> {
    pub(crate) gates: Gates<T>,
    pub(crate) c_old: T,
    pub(crate) c: T,
    pub(crate) h: T,
    /// Snapped; the output's own gradient is in it.
    pub(crate) d: State<T>,
}

/// A step's gradients.
pub(crate) struct StepGradients<T> {
    /// Of the gates' sums.
    pub(crate) z: Gates<T>,
    /// Of the state before the step.
    pub(crate) state: State<T>,
    /// With a projection, the gradient of its result and its operand `h`.
    pub(crate) projection: Option<(T, T)>,
    /// With diagonal peepholes, what each row adds to the gradient of `p_i`, `p_f` and `p_o`.
    pub(crate) peephole: Option<[T; 3]>,
}

/// `a . b`, or `acc + a . b`, gate by gate from the left: `((i + f) + g) + o`.
pub(crate) fn product<B: Ops>(b: &B, gates: &[(&B::Tensor, &B::Tensor)]) -> Result<B::Tensor> {
    let mut sum = None;
    for (d, weights) in gates {
        sum = Some(b.gemm(MatrixRef::from(*d), MatrixRef::from(*weights), sum.as_ref())?);
    }
    Ok(sum.expect("a cell has gates"))
}

/// Zeros in the shape of `like`.
fn none<B: Ops>(b: &B, like: &B::Tensor) -> Result<B::Tensor> {
    let shape = b.shape(like);
    b.upload(shape, &zeros("backward", &[shape.rows, shape.cols])?)
}

impl<'a, T: Clone> Backward<'a, T> {
    pub(crate) fn new<B: Ops<Tensor = T>>(b: &B, cell: &'a Cell<T>) -> Result<Self> {
        let hidden = cell.spec.hidden_size;
        let row = |v: f32| b.upload(MatrixShape::new(1, hidden), &vec![v; hidden]);
        let bounds = cell.spec.clip.map(|bound| {
            let sigmoid = [b.sigmoid(row(-bound)?)?, b.sigmoid(row(bound)?)?];
            Ok(Bounds { sigmoid, tanh: [b.tanh(row(-bound)?)?, b.tanh(row(bound)?)?] })
        });
        Ok(Backward { cell, u: cell.recurrent_weights(b)?, ones: row(1.0)?, bounds: bounds.transpose()? })
    }

    /// One step.
    ///
    /// ```text
    /// dz_o = snap((dh tanh(c')) o')      dc = snap(fma(dh o, tanh'(c'), dc))
    /// dz_i = snap((dc g) i')    dz_f = snap((dc c) f')    dz_g = snap((dc i) g')
    /// dc_old = snap(dc f)       dh_old = snap(((dz_i U_i + dz_f U_f) + dz_g U_g) + dz_o U_o)
    /// ```
    ///
    /// where `s' = fma(-s, s, s)` for a sigmoid's value and `t' = fma(-t, t, 1)` for a tanh's; the rest in
    /// `docs/arithmetic.md`.
    pub(crate) fn step<B: Ops<Tensor = T>>(&self, b: &B, kept: Kept<T>) -> Result<StepGradients<T>> {
        let spec = &self.cell.spec;
        let dense = spec.cell == CellKind::PeepholeDense;
        let mul = |x: &T, y: &T| b.mul_add(1.0, x, Some(y), None);
        let snapped_fma = |x: &T, y: &T, z: &T| b.snap(b.mul_add(1.0, x, Some(y), Some(z))?);
        let of_sigmoid = |s: &T| b.mul_add(-1.0, s, Some(s), Some(s));
        let of_tanh = |t: &T| b.mul_add(-1.0, t, Some(t), Some(&self.ones));
        // Where the gate's sum was clipped, it had no influence.
        let dz = |d: T, gate: &T, slope: T, tanh: bool| {
            let dz = b.snap(mul(&d, &slope)?)?;
            match &self.bounds {
                Some(bounds) => {
                    let [low, high] = if tanh { &bounds.tanh } else { &bounds.sigmoid };
                    b.select_between(dz, gate, low, high)
                }
                None => Ok(dz),
            }
        };
        let dz_sigmoid = |d: T, s: &T| dz(d, s, of_sigmoid(s)?, false);

        let Kept { gates: [i, f, g, o], c_old, c, h, d: State { h: dh, c: dc } } = kept;
        let mut projection = None;
        // h = o t or, dense, tanh(o c): `dq` is the gradient of o's factor's product, `t` that factor.
        let (dq, t, dc) = if dense {
            let dq = mul(&dh, &of_tanh(&h)?)?;
            let dc = snapped_fma(&dq, &o, &dc)?;
            (dq, c.clone(), dc)
        } else {
            let t = b.tanh(c.clone())?;
            let dq = match &self.cell.projection {
                Some(w) => {
                    projection = Some((dh.clone(), b.snap(mul(&o, &t)?)?));
                    b.snap(b.gemm((&dh).into(), w.into(), None)?)?
                }
                None => dh,
            };
            let dc = snapped_fma(&mul(&dq, &o)?, &of_tanh(&t)?, &dc)?;
            (dq, t, dc)
        };
        let dz_o = dz_sigmoid(mul(&dq, &t)?, &o)?;
        let diagonal = match &self.cell.kind {
            Kind::PeepholeDiagonal(cell) => Some(cell.vectors()),
            _ => None,
        };
        let dc = match diagonal {
            Some([_, _, p_o]) => snapped_fma(&dz_o, p_o, &dc)?,
            None => dc,
        };
        let (dz_i, dz_f) = if spec.coupled {
            // f = 1 - i has no sum of its own.
            let d = b.mul_add(-1.0, &dc, Some(&c_old), Some(&mul(&dc, &g)?))?;
            (dz_sigmoid(d, &i)?, none(b, &f)?)
        } else {
            (dz_sigmoid(mul(&dc, &g)?, &i)?, dz_sigmoid(mul(&dc, &c_old)?, &f)?)
        };
        let d = mul(&dc, &i)?;
        let dz_g = if dense { dz_sigmoid(d, &g)? } else { dz(d, &g, of_tanh(&g)?, true)? };

        let [u_i, u_f, u_g, u_o] = &self.u;
        let state = if dense {
            let look = b.snap(product(b, &[(&dz_i, u_i), (&dz_f, u_f), (&dz_o, u_o)])?)?;
            // h is not fed back.
            State { h: none(b, &h)?, c: snapped_fma(&dc, &f, &look)? }
        } else {
            let dh = b.snap(product(b, &[(&dz_i, u_i), (&dz_f, u_f), (&dz_g, u_g), (&dz_o, u_o)])?)?;
            let mut dc = b.snap(mul(&dc, &f)?)?;
            if let Some([p_i, p_f, _]) = diagonal {
                dc = snapped_fma(&dz_i, p_i, &dc)?;
                dc = snapped_fma(&dz_f, p_f, &dc)?;
            }
            State { h: dh, c: dc }
        };
        let peephole = match diagonal {
            Some(_) => Some([mul(&dz_i, &c_old)?, mul(&dz_f, &c_old)?, mul(&dz_o, &c)?]),
            None => None,
        };
        Ok(StepGradients { z: [dz_i, dz_f, dz_g, dz_o], state, projection, peephole })
    }
}
