//! The matrix products of the unfused cell: separate matrices for each gate.

use super::Gates;
use crate::{
    backend::{DeviceMatrix, Ops},
    config::Param,
    error::{Error, Result},
    quantized::OperandRange,
    shape::MatrixShape,
    weights::LayerWeights,
};

/// The weights of a layer on a device, with separate matrices for each gate.
#[derive(Clone, Debug)]
pub struct Unfused<T> {
    gates: Gates<Gate<T>>,
    /// The range of the operand of `U`.
    recurrent_range: OperandRange,
}

#[derive(Clone, Debug)]
struct Gate<T> {
    /// Input weights `W`, `[hidden_size, input_size]`.
    w: DeviceMatrix<T>,
    /// Recurrent weights `U`, `[hidden_size, state_size]`.
    u: DeviceMatrix<T>,
    /// Bias of the gate, `[1, hidden_size]`.
    bias: Option<T>,
}

impl<T: Clone> Unfused<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let bias = weights.bias()?;
        let matrix = |param| weights.load_matrix(b, param)?.split_gates(b);
        let [w_i, w_f, w_g, w_o] = matrix(Param::WeightIh)?;
        let [u_i, u_f, u_g, u_o] = matrix(Param::WeightHh)?;
        let shape = MatrixShape::new(1, spec.hidden_size);
        let load_gate = |k: usize, w, u| {
            let bias = bias.as_deref().map(|all| &all[k * spec.hidden_size..(k + 1) * spec.hidden_size]);
            Ok::<_, Error>(Gate { w, u, bias: bias.map(|bias| b.snap(b.upload(shape, bias)?)).transpose()? })
        };
        let gates =
            [load_gate(0, w_i, u_i)?, load_gate(1, w_f, u_f)?, load_gate(2, w_g, u_g)?, load_gate(3, w_o, u_o)?];
        Ok(Unfused { gates, recurrent_range: spec.recurrent_range() })
    }

    /// The input weights `W` of each gate.
    pub(super) fn input_weights(&self) -> Gates<DeviceMatrix<T>> {
        self.gates.each_ref().map(|gate| gate.w.clone())
    }

    /// The recurrent weights `U` of each gate.
    pub(super) fn recurrent_weights(&self) -> Gates<DeviceMatrix<T>> {
        self.gates.each_ref().map(|gate| gate.u.clone())
    }

    /// Computes `bias + W x` as four matrix products, one for each gate.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let gate_product = |gate: &Gate<T>| gate.w.multiply(b, x, OperandRange::Any, gate.bias.as_ref());
        Ok([gate_product(i)?, gate_product(f)?, gate_product(g)?, gate_product(o)?])
    }

    /// Computes `z + U h` as four matrix products, one for each gate.
    pub fn add_recurrent_term<B: Ops<Tensor = T>>(&self, b: &B, z: Gates<T>, h: &T) -> Result<Gates<T>> {
        let [i, f, g, o] = &self.gates;
        let gate_product = |gate: &Gate<T>, z: &T| gate.u.multiply(b, h, self.recurrent_range, Some(z));
        Ok([gate_product(i, &z[0])?, gate_product(f, &z[1])?, gate_product(g, &z[2])?, gate_product(o, &z[3])?])
    }
}
