//! The four LSTM cells, composed of the primitives of [`Ops`], and the time step that they share.
//!
//! A cell computes `z = (bias + W x) + U h` in two parts: [`Cell::input_term`] does not depend on the state, so it runs
//! over all time steps at once; [`Cell::step`] adds the recurrent term.

mod activation;
mod backward;
mod fused;
mod peephole;
mod unfused;

pub(crate) use backward::{BackwardCell, SavedStep, StepGradients, sum_of_products};
pub use fused::Fused;
pub use peephole::{PeepholeDense, PeepholeDiagonal};
pub use unfused::Unfused;

use self::activation::{apply, apply_to_gate};

use crate::{
    activation::constant_row,
    backend::{DeviceMatrix, Ops, State},
    config::{CellKind, LayerSpec, Param},
    error::{Error, Result},
    quantized::OperandRange,
    shape::{ConcatAxis, MatrixShape},
    weights::LayerWeights,
};

/// One value per gate, in the order i, f, g, o.
pub type Gates<T> = [T; 4];

/// An LSTM cell on a device: the [snapped](crate::arithmetic::snap) weights of a layer, and the equations of one time
/// step.
#[derive(Clone, Debug)]
pub struct Cell<T> {
    spec: LayerSpec,
    weights: CellWeights<T>,
    /// Projection weights `W_hr`, `[proj_size, hidden_size]`.
    projection: Option<DeviceMatrix<T>>,
    /// A row of ones, `[1, hidden_size]`, to compute the coupled forget gate `f = 1 - i`; `None` if the gates are not
    /// coupled.
    ones: Option<T>,
}

#[derive(Clone, Debug)]
enum CellWeights<T> {
    Fused(Fused<T>),
    Unfused(Unfused<T>),
    PeepholeDense(PeepholeDense<T>),
    PeepholeDiagonal(PeepholeDiagonal<T>),
}

/// The input term `bias + W x` of some rows, computed by [`Cell::input_term`].
#[derive(Clone, Debug)]
pub enum InputTerm<T> {
    /// One matrix with all gates side by side, `[rows, 4 * hidden_size]`.
    Packed(T),
    /// One matrix for each gate, `[rows, hidden_size]`.
    Split(Gates<T>),
}

impl<T: Clone> InputTerm<T> {
    /// Copies a range of rows of the input term.
    pub fn rows<B: Ops<Tensor = T>>(&self, b: &B, rows: std::ops::Range<usize>) -> Result<Self> {
        let slice_rows = |z: &T| b.slice(z, rows.clone(), 0..b.shape(z).cols);
        Ok(match self {
            InputTerm::Packed(z) => InputTerm::Packed(slice_rows(z)?),
            InputTerm::Split([i, f, g, o]) => {
                InputTerm::Split([slice_rows(i)?, slice_rows(f)?, slice_rows(g)?, slice_rows(o)?])
            }
        })
    }
}

impl<T: Clone> Cell<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = *weights.spec();
        let hidden = spec.hidden_size;
        Ok(Cell {
            spec,
            weights: match spec.cell {
                CellKind::Fused => CellWeights::Fused(Fused::load(b, weights)?),
                CellKind::Unfused => CellWeights::Unfused(Unfused::load(b, weights)?),
                CellKind::PeepholeDense => CellWeights::PeepholeDense(PeepholeDense::load(b, weights)?),
                CellKind::PeepholeDiagonal => CellWeights::PeepholeDiagonal(PeepholeDiagonal::load(b, weights)?),
            },
            projection: spec.proj_size.map(|_| weights.load_matrix(b, Param::WeightHr)).transpose()?,
            ones: spec.coupled.then(|| constant_row(b, hidden, 1.0)).transpose()?,
        })
    }

    /// The configuration of the layer.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// Computes the input term `bias + W x` of each row of `x: [rows, input_size]`. The values of `x` must be
    /// [snapped](crate::arithmetic::snap): magnitudes below 2^-40 are +0.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<InputTerm<T>> {
        match &self.weights {
            CellWeights::Fused(cell) => cell.input_term(b, x).map(InputTerm::Packed),
            CellWeights::Unfused(cell) => cell.input_term(b, x).map(InputTerm::Split),
            CellWeights::PeepholeDense(cell) => cell.input_term(b, x).map(InputTerm::Packed),
            CellWeights::PeepholeDiagonal(cell) => cell.fused().input_term(b, x).map(InputTerm::Packed),
        }
    }

    /// Runs one time step. `input_term` is the input term of this time step, and `state` the snapped state before it.
    /// Returns the new state.
    ///
    /// ```text
    /// z = input_term + U h
    /// i, f, o = sigmoid(z)    g = snap(tanh(z_g))    c' = snap(fma(f, c, i g))    h' = snap(o tanh(c'))
    /// ```
    ///
    /// The layer's configuration may change this:
    /// - Dense peephole: `z = input_term + U c` for i, f, o and `z_g = input_term`; `g = snap(sigmoid(z_g))`;
    ///   `h' = snap(tanh(o c'))`.
    /// - Diagonal peephole: `z_i` and `z_f` add `p c`, and `z_o` adds `p c'`.
    /// - Clip: each `z` is bounded to `[-clip, clip]` before its activation.
    /// - Coupled gates: `f = 1 - i`.
    /// - Projection: the result is `h'' = snap(W_hr h')`.
    /// - Activations: other functions take the place of sigmoid and tanh. Where i, f and o have tanh, they are snapped.
    pub fn step<B: Ops<Tensor = T>>(&self, b: &B, input_term: InputTerm<T>, state: &State<T>) -> Result<State<T>> {
        self.step_with_gates(b, input_term, state).map(|(state, _)| state)
    }

    /// Like [`step`](Self::step), but also returns the gates `i`, `f`, the snapped `g`, and `o`.
    pub fn step_with_gates<B: Ops<Tensor = T>>(
        &self,
        b: &B,
        input_term: InputTerm<T>,
        state: &State<T>,
    ) -> Result<(State<T>, Gates<T>)> {
        let LayerSpec { hidden_size, clip, activations, .. } = self.spec;
        let clip_pre_activation = |z: T| match clip {
            Some(bound) => b.clip(z, bound),
            None => Ok(z),
        };
        let gate = |z: T| apply_to_gate(b, activations.gate, clip_pre_activation(z)?);
        let (h, c) = (&state.h, &state.c);

        let [zi, zf, zg, zo] = match (&self.weights, input_term) {
            (CellWeights::Fused(cell), InputTerm::Packed(z)) => {
                split_gates(b, ConcatAxis::Cols, &cell.add_recurrent_term(b, z, h)?, hidden_size)?
            }
            (CellWeights::Unfused(cell), InputTerm::Split(z)) => cell.add_recurrent_term(b, z, h)?,
            (CellWeights::PeepholeDense(cell), InputTerm::Packed(z)) => cell.add_recurrent_term(b, z, c)?,
            (CellWeights::PeepholeDiagonal(cell), InputTerm::Packed(z)) => {
                let z = split_gates(b, ConcatAxis::Cols, &cell.fused().add_recurrent_term(b, z, h)?, hidden_size)?;
                cell.add_input_forget_peepholes(b, z, c)?
            }
            _ => {
                return Err(Error::shape(
                    "step: input_term",
                    "the input term of this cell",
                    "that of a cell of another kind",
                ));
            }
        };
        let i = gate(zi)?;
        let f = match &self.ones {
            Some(ones) => b.mul_add(-1.0, &i, None, Some(ones))?,
            None => gate(zf)?,
        };
        let g = match self.weights {
            CellWeights::PeepholeDense(_) => b.snap(gate(zg)?)?,
            _ => b.snap(apply(b, activations.candidate, clip_pre_activation(zg)?)?)?,
        };
        let i_times_g = b.mul_add(1.0, &i, Some(&g), None)?;
        let c = b.snap(b.mul_add(1.0, &f, Some(c), Some(&i_times_g))?)?;
        let zo = match &self.weights {
            CellWeights::PeepholeDiagonal(cell) => cell.add_output_peephole(b, zo, &c)?,
            _ => zo,
        };
        let o = gate(zo)?;
        let h = match self.weights {
            CellWeights::PeepholeDense(_) => apply(b, activations.output, b.mul_add(1.0, &o, Some(&c), None)?)?,
            _ => b.mul_add(1.0, &o, Some(&apply(b, activations.output, c.clone())?), None)?,
        };
        let h = b.snap(h)?;
        let h = match &self.projection {
            Some(w) => b.snap(w.multiply(b, &h, OperandRange::Unit, None)?)?,
            None => h,
        };
        Ok((State { h, c }, [i, f, g, o]))
    }

    /// The input weights `W` of each gate, `[hidden_size, input_size]`.
    pub(crate) fn input_weights<B: Ops<Tensor = T>>(&self, b: &B) -> Result<Gates<T>> {
        match self.packed_or_separate() {
            Ok(cell) => as_f32(cell.w.split_gates(b)?),
            Err(cell) => as_f32(cell.input_weights()),
        }
    }

    /// The recurrent weights `U` of each gate, `[hidden_size, state_size]`.
    pub(crate) fn recurrent_weights<B: Ops<Tensor = T>>(&self, b: &B) -> Result<Gates<T>> {
        match self.packed_or_separate() {
            Ok(cell) => as_f32(cell.u.split_gates(b)?),
            Err(cell) => as_f32(cell.recurrent_weights()),
        }
    }

    /// Returns `Ok` with the packed matrices of all gates or, for the unfused cell, `Err` with the separate matrices of
    /// each gate.
    fn packed_or_separate(&self) -> Result<&Fused<T>, &Unfused<T>> {
        match &self.weights {
            CellWeights::Fused(cell) => Ok(cell),
            CellWeights::PeepholeDense(cell) => Ok(cell.fused()),
            CellWeights::PeepholeDiagonal(cell) => Ok(cell.fused()),
            CellWeights::Unfused(cell) => Err(cell),
        }
    }
}

/// The float matrices of the gates, which gradients are computed with.
fn as_f32<T: Clone>(gates: Gates<DeviceMatrix<T>>) -> Result<Gates<T>> {
    let [i, f, g, o] = gates.each_ref().map(DeviceMatrix::as_f32);
    Ok([i?.clone(), f?.clone(), g?.clone(), o?.clone()])
}

/// Splits a matrix in which the four gates are joined along `axis`, with `hidden` rows or columns each.
pub(crate) fn split_gates<B: Ops>(b: &B, axis: ConcatAxis, z: &B::Tensor, hidden: usize) -> Result<Gates<B::Tensor>> {
    let MatrixShape { rows, cols } = b.shape(z);
    let slice_gate = |k| match axis {
        ConcatAxis::Rows => b.slice(z, k * hidden..(k + 1) * hidden, 0..cols),
        ConcatAxis::Cols => b.slice(z, 0..rows, k * hidden..(k + 1) * hidden),
    };
    Ok([slice_gate(0)?, slice_gate(1)?, slice_gate(2)?, slice_gate(3)?])
}
