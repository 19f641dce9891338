//! The matrix products of the unfused cell: separate matrices for each gate.

use super::Gates;
use crate::{
    backend::Ops,
    config::Param,
    error::Result,
    shape::{MatrixRef, MatrixShape},
    weights::LayerWeights,
};

/// The weights of a layer on a device, with separate matrices for each gate.
#[derive(Clone, Debug)]
pub struct Unfused<T> {
    gates: Gates<Gate<T>>,
}

#[derive(Clone, Debug)]
struct Gate<T> {
    /// Input weights `W`, `[hidden_size, input_size]`.
    w: T,
    /// Recurrent weights `U`, `[hidden_size, state_size]`.
    u: T,
    /// Bias of the gate, `[1, hidden_size]`.
    bias: Option<T>,
}

impl<T: Clone> Unfused<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let bias = weights.bias();
        let load_gate = |k: usize| {
            let upload_gate_part = |rows: usize, cols: usize, all: &[f32]| {
                let len = rows * cols;
                b.snap(b.upload(MatrixShape::new(rows, cols), &all[k * len..(k + 1) * len])?)
            };
            Ok(Gate {
                w: upload_gate_part(spec.hidden_size, spec.input_size, weights.elements(Param::WeightIh))?,
                u: upload_gate_part(spec.hidden_size, spec.state_size(), weights.elements(Param::WeightHh))?,
                bias: bias.as_deref().map(|all| upload_gate_part(1, spec.hidden_size, all)).transpose()?,
            })
        };
        Ok(Unfused { gates: [load_gate(0)?, load_gate(1)?, load_gate(2)?, load_gate(3)?] })
    }

    /// The input weights `W` of each gate.
    pub(super) fn input_weights(&self) -> Gates<T> {
        self.gates.each_ref().map(|gate| gate.w.clone())
    }

    /// The recurrent weights `U` of each gate.
    pub(super) fn recurrent_weights(&self) -> Gates<T> {
        self.gates.each_ref().map(|gate| gate.u.clone())
    }

    /// Computes `bias + W x` as four matrix products, one for each gate.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let gate_product = |gate: &Gate<T>| b.gemm(x.into(), MatrixRef::from(&gate.w).t(), gate.bias.as_ref());
        Ok([gate_product(i)?, gate_product(f)?, gate_product(g)?, gate_product(o)?])
    }

    /// Computes `z + U h` as four matrix products, one for each gate.
    pub fn add_recurrent_term<B: Ops<Tensor = T>>(&self, b: &B, z: Gates<T>, h: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let gate_product = |gate: &Gate<T>, z: &T| b.gemm(h.into(), MatrixRef::from(&gate.u).t(), Some(z));
        Ok([gate_product(i, &z[0])?, gate_product(f, &z[1])?, gate_product(g, &z[2])?, gate_product(o, &z[3])?])
    }
}
