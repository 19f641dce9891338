//! The peephole cells, whose gates also depend on the cell state, through a dense or a diagonal matrix.

use super::{Fused, Gates, split_gates};
use crate::{
    backend::Ops,
    config::{CellKind, Param},
    error::{Error, Result},
    shape::{ConcatAxis, MatrixShape},
    weights::LayerWeights,
};

/// The dense peephole cell: `U` multiplies the cell state `c` instead of `h`, and the candidate g has no recurrent
/// term.
#[derive(Clone, Debug)]
pub struct PeepholeDense<T> {
    packed: Fused<T>,
    hidden: usize,
}

impl<T: Clone> PeepholeDense<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        Ok(PeepholeDense { packed: Fused::load(b, weights)?, hidden: weights.spec().hidden_size })
    }

    /// The input weights, recurrent weights and bias, each packed for all four gates.
    pub(super) fn fused(&self) -> &Fused<T> {
        &self.packed
    }

    /// Computes `bias + W x` of all gates.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<T> {
        self.packed.input_term(b, x)
    }

    /// Computes `z + U c` for the gates i, f and o, and leaves `z` unchanged for the candidate g.
    pub fn add_recurrent_term<B: Ops<Tensor = T>>(&self, b: &B, z: T, c: &T) -> Result<Gates<T>> {
        let (rows, hidden) = (b.shape(&z).rows, self.hidden);
        let candidate = b.slice(&z, 0..rows, 2 * hidden..3 * hidden)?;
        let [i, f, _, o] = split_gates(b, ConcatAxis::Cols, &self.packed.add_recurrent_term(b, z, c)?, hidden)?;
        Ok([i, f, candidate, o])
    }
}

/// The diagonal peephole cell (Gers & Schmidhuber 2000; ONNX's input `P`): the gates i, f and o each have a vector
/// `[1, hidden_size]`, whose elementwise product with the cell state is added to the gate's pre-activation.
#[derive(Clone, Debug)]
pub struct PeepholeDiagonal<T> {
    packed: Fused<T>,
    i: T,
    f: T,
    o: T,
}

impl<T: Clone> PeepholeDiagonal<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    ///
    /// # Errors
    /// [`Error::Config`] if the layer has no diagonal peephole; [`Error::Device`] if the device fails.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let cell = weights.spec().cell;
        if cell != CellKind::PeepholeDiagonal {
            return Err(Error::config("cell", format!("expected {:?}, got {cell:?}", CellKind::PeepholeDiagonal)));
        }
        let row_shape = MatrixShape::new(1, weights.spec().hidden_size);
        let upload_vector = |param| b.snap(b.upload(row_shape, weights.elements(param))?);
        Ok(PeepholeDiagonal {
            packed: Fused::load(b, weights)?,
            i: upload_vector(Param::PeepholeI)?,
            f: upload_vector(Param::PeepholeF)?,
            o: upload_vector(Param::PeepholeO)?,
        })
    }

    /// The peephole vectors `p_i`, `p_f` and `p_o`.
    pub(super) fn peephole_weights(&self) -> [&T; 3] {
        [&self.i, &self.f, &self.o]
    }

    /// The input weights, recurrent weights and bias, each packed for all four gates.
    pub fn fused(&self) -> &Fused<T> {
        &self.packed
    }

    /// Computes `z_i = fma(c, p_i, z_i)` and `z_f = fma(c, p_f, z_f)`, with the cell state `c` before the time step.
    pub fn add_input_forget_peepholes<B: Ops<Tensor = T>>(
        &self,
        b: &B,
        [i, f, g, o]: Gates<T>,
        c: &T,
    ) -> Result<Gates<T>> {
        let i = b.mul_add(1.0, c, Some(&self.i), Some(&i))?;
        let f = b.mul_add(1.0, c, Some(&self.f), Some(&f))?;
        Ok([i, f, g, o])
    }

    /// Computes `z_o = fma(c', p_o, z_o)`, with the cell state `c'` after the time step.
    pub fn add_output_peephole<B: Ops<Tensor = T>>(&self, b: &B, zo: T, c: &T) -> Result<T> {
        b.mul_add(1.0, c, Some(&self.o), Some(&zo))
    }
}
