//! The matrix products of the unfused cell: separate matrices for each gate.

use super::Gates;
use crate::{
    backend::Ops,
    config::Param,
    error::Result,
    shape::{MatrixRef, MatrixShape},
    weights::LayerWeights,
};

/// The weights of a layer, separate for each gate.
#[derive(Clone, Debug)]
pub struct Unfused<T> {
    gates: Gates<Gate<T>>,
}

#[derive(Clone, Debug)]
struct Gate<T> {
    /// `W: [hidden_size, input_size]`.
    w: T,
    /// `U: [hidden_size, state_size]`.
    u: T,
    /// `[1, hidden_size]`.
    bias: Option<T>,
}

impl<T: Clone> Unfused<T> {
    /// Uploads and snaps the weights of a layer.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let bias = weights.bias();
        let gate = |k: usize| {
            let gate_part = |rows: usize, cols: usize, all: &[f32]| {
                let len = rows * cols;
                b.snap(b.upload(MatrixShape::new(rows, cols), &all[k * len..(k + 1) * len])?)
            };
            Ok(Gate {
                w: gate_part(spec.hidden_size, spec.input_size, weights.elements(Param::WeightIh))?,
                u: gate_part(spec.hidden_size, spec.state_size(), weights.elements(Param::WeightHh))?,
                bias: bias.as_deref().map(|all| gate_part(1, spec.hidden_size, all)).transpose()?,
            })
        };
        Ok(Unfused { gates: [gate(0)?, gate(1)?, gate(2)?, gate(3)?] })
    }

    /// `W` of each gate.
    pub(super) fn input_weights(&self) -> Gates<T> {
        self.gates.each_ref().map(|gate| gate.w.clone())
    }

    /// `U` of each gate.
    pub(super) fn recurrent_weights(&self) -> Gates<T> {
        self.gates.each_ref().map(|gate| gate.u.clone())
    }

    /// Computes `bias + W x` as four matrix products, one for each gate.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let product = |gate: &Gate<T>| b.gemm(x.into(), MatrixRef::from(&gate.w).t(), gate.bias.as_ref());
        Ok([product(i)?, product(f)?, product(g)?, product(o)?])
    }

    /// Computes `z + U h` as four matrix products, one for each gate.
    pub fn recurrent<B: Ops<Tensor = T>>(&self, b: &B, z: Gates<T>, h: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let product = |gate: &Gate<T>, z: &T| b.gemm(h.into(), MatrixRef::from(&gate.u).t(), Some(z));
        Ok([product(i, &z[0])?, product(f, &z[1])?, product(g, &z[2])?, product(o, &z[3])?])
    }
}
