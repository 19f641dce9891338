//! The cells, written once from a backend's primitives, and the step that they share.
//!
//! A cell splits `z = (bias + W x) + U h` in two: [`Cell::input_term`], which does not depend on the state and so runs over
//! all time steps at once, and [`Cell::step`].

mod backward;
mod fused;
mod peephole;
mod unfused;

pub(crate) use backward::{Backward, Kept, StepGradients, product};
pub use fused::Fused;
pub use peephole::{PeepholeDense, PeepholeDiagonal};
pub use unfused::Unfused;

use crate::{
    backend::{Ops, State},
    config::{CellKind, LayerSpec, Param},
    error::{Error, Result},
    shape::{ConcatAxis, MatrixShape},
    weights::LayerWeights,
};

/// One value per gate, in the order i, f, g, o.
pub type Gates<T> = [T; 4];

/// A layer's cell on a device: its snapped weights and its equations.
#[derive(Clone, Debug)]
pub struct Cell<T> {
    spec: LayerSpec,
    kind: Kind<T>,
    /// `W_hr: [proj, hidden]`.
    projection: Option<T>,
    /// `[1, hidden]`, for `1 - i`.
    ones: Option<T>,
}

#[derive(Clone, Debug)]
enum Kind<T> {
    Fused(Fused<T>),
    Unfused(Unfused<T>),
    PeepholeDense(PeepholeDense<T>),
    PeepholeDiagonal(PeepholeDiagonal<T>),
}

/// `bias + W x` for some rows, as the cell's products give it.
#[derive(Clone, Debug)]
pub enum InputTerm<T> {
    /// All gates side by side, `[rows, 4 * hidden]`.
    Packed(T),
    /// `[rows, hidden]` each.
    Split(Gates<T>),
}

impl<T: Clone> InputTerm<T> {
    /// Some of the rows.
    pub fn rows<B: Ops<Tensor = T>>(&self, b: &B, rows: std::ops::Range<usize>) -> Result<Self> {
        let cut = |z: &T| b.slice(z, rows.clone(), 0..b.shape(z).cols);
        Ok(match self {
            InputTerm::Packed(z) => InputTerm::Packed(cut(z)?),
            InputTerm::Split([i, f, g, o]) => InputTerm::Split([cut(i)?, cut(f)?, cut(g)?, cut(o)?]),
        })
    }
}

impl<T: Clone> Cell<T> {
    /// Brings a layer's weights to the device.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let snapped = |rows, cols, data: &[f32]| b.snap(b.upload(MatrixShape::new(rows, cols), data)?);
        let (hidden, ones) = (spec.hidden_size, vec![1.0; spec.hidden_size]);
        Ok(Cell {
            spec,
            kind: match spec.cell {
                CellKind::Fused => Kind::Fused(Fused::load(b, weights)?),
                CellKind::Unfused => Kind::Unfused(Unfused::load(b, weights)?),
                CellKind::PeepholeDense => Kind::PeepholeDense(PeepholeDense::load(b, weights)?),
                CellKind::PeepholeDiagonal => Kind::PeepholeDiagonal(PeepholeDiagonal::load(b, weights)?),
            },
            projection: spec.proj_size.map(|p| snapped(p, hidden, weights.expect(Param::WeightHr))).transpose()?,
            ones: spec.coupled.then(|| b.upload(MatrixShape::new(1, hidden), &ones)).transpose()?,
        })
    }

    /// What the cell is.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// `bias + W x` for every row of snapped `x: [rows, input]`.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<InputTerm<T>> {
        match &self.kind {
            Kind::Fused(cell) => cell.input_term(b, x).map(InputTerm::Packed),
            Kind::Unfused(cell) => cell.input_term(b, x).map(InputTerm::Split),
            Kind::PeepholeDense(cell) => cell.input_term(b, x).map(InputTerm::Packed),
            Kind::PeepholeDiagonal(cell) => cell.fused().input_term(b, x).map(InputTerm::Packed),
        }
    }

    /// One time step from what [`input_term`](Self::input_term) gave for its rows and the snapped state before it:
    ///
    /// ```text
    /// z = input + U h     (dense peephole: U c, and no U term in z_g)
    /// i, f, o = sigmoid(z)    g = snap(tanh(z_g))    c' = snap(fma(f, c, i g))    h' = snap(o tanh(c'))
    /// ```
    ///
    /// with the diagonal peephole's terms, `clip`, `f = 1 - i`, the dense peephole's `g = snap(sigmoid(z_g))` and
    /// `h' = snap(tanh(o c'))`, and the projection `h'' = snap(W_hr h')` where the spec has them.
    pub fn step<B: Ops<Tensor = T>>(&self, b: &B, input: InputTerm<T>, state: &State<T>) -> Result<State<T>> {
        self.step_with_gates(b, input, state).map(|(state, _)| state)
    }

    /// [`step`](Self::step) that also returns the gates: `i`, `f` (or `1 - i`), the snapped `g`, `o`.
    pub fn step_with_gates<B: Ops<Tensor = T>>(
        &self,
        b: &B,
        input: InputTerm<T>,
        state: &State<T>,
    ) -> Result<(State<T>, Gates<T>)> {
        let LayerSpec { hidden_size, clip, .. } = self.spec;
        let bounded = |z: T| match clip {
            Some(bound) => b.clip(z, bound),
            None => Ok(z),
        };
        let sigmoid = |z: T| b.sigmoid(bounded(z)?);
        let (h, c) = (&state.h, &state.c);

        let [zi, zf, zg, zo] = match (&self.kind, input) {
            (Kind::Fused(cell), InputTerm::Packed(z)) => {
                split(b, ConcatAxis::Cols, &cell.recurrent(b, z, h)?, hidden_size)?
            }
            (Kind::Unfused(cell), InputTerm::Split(z)) => cell.recurrent(b, z, h)?,
            (Kind::PeepholeDense(cell), InputTerm::Packed(z)) => cell.recurrent(b, z, c)?,
            (Kind::PeepholeDiagonal(cell), InputTerm::Packed(z)) => {
                let z = split(b, ConcatAxis::Cols, &cell.fused().recurrent(b, z, h)?, hidden_size)?;
                cell.add_old_peepholes(b, z, c)?
            }
            _ => return Err(Error::shape("step: input", "what this cell's `input` gave", "another cell's")),
        };
        let i = sigmoid(zi)?;
        let f = match &self.ones {
            Some(ones) => b.mul_add(-1.0, &i, None, Some(ones))?,
            None => sigmoid(zf)?,
        };
        let g = match self.kind {
            Kind::PeepholeDense(_) => b.snap(sigmoid(zg)?)?,
            _ => b.snap(b.tanh(bounded(zg)?)?)?,
        };
        let product = b.mul_add(1.0, &i, Some(&g), None)?;
        let c = b.snap(b.mul_add(1.0, &f, Some(c), Some(&product))?)?;
        let zo = match &self.kind {
            Kind::PeepholeDiagonal(cell) => cell.add_output_peephole(b, zo, &c)?,
            _ => zo,
        };
        let o = sigmoid(zo)?;
        let h = match self.kind {
            Kind::PeepholeDense(_) => b.tanh(b.mul_add(1.0, &o, Some(&c), None)?)?,
            _ => b.mul_add(1.0, &o, Some(&b.tanh(c.clone())?), None)?,
        };
        let h = b.snap(h)?;
        let h = match &self.projection {
            Some(w) => b.snap(b.gemm((&h).into(), crate::MatrixRef::from(w).t(), None)?)?,
            None => h,
        };
        Ok((State { h, c }, [i, f, g, o]))
    }

    /// `W`, gate by gate: `[hidden, input]` each.
    pub(crate) fn input_weights<B: Ops<Tensor = T>>(&self, b: &B) -> Result<Gates<T>> {
        match self.packed() {
            Ok(cell) => split(b, ConcatAxis::Rows, &cell.w, self.spec.hidden_size),
            Err(cell) => Ok(cell.input_weights()),
        }
    }

    /// `U`, gate by gate: `[hidden, state]` each.
    pub(crate) fn recurrent_weights<B: Ops<Tensor = T>>(&self, b: &B) -> Result<Gates<T>> {
        match self.packed() {
            Ok(cell) => split(b, ConcatAxis::Rows, &cell.u, self.spec.hidden_size),
            Err(cell) => Ok(cell.recurrent_weights()),
        }
    }

    /// The packed matrices, or those of each gate.
    fn packed(&self) -> Result<&Fused<T>, &Unfused<T>> {
        match &self.kind {
            Kind::Fused(cell) => Ok(cell),
            Kind::PeepholeDense(cell) => Ok(cell.fused()),
            Kind::PeepholeDiagonal(cell) => Ok(cell.fused()),
            Kind::Unfused(cell) => Err(cell),
        }
    }
}

/// The four gates that lie side by side or below one another, `hidden` each.
pub(crate) fn split<B: Ops>(b: &B, axis: ConcatAxis, z: &B::Tensor, hidden: usize) -> Result<Gates<B::Tensor>> {
    let MatrixShape { rows, cols } = b.shape(z);
    let gate = |k| match axis {
        ConcatAxis::Rows => b.slice(z, k * hidden..(k + 1) * hidden, 0..cols),
        ConcatAxis::Cols => b.slice(z, 0..rows, k * hidden..(k + 1) * hidden),
    };
    Ok([gate(0)?, gate(1)?, gate(2)?, gate(3)?])
}
