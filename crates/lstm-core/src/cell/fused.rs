//! The matrix products of the fused cell: one packed matrix for all four gates.

use crate::{
    backend::{DeviceMatrix, Ops, shape::MatrixShape},
    config::Param,
    error::Result,
    quantized::OperandRange,
    weights::LayerWeights,
};

/// The weights of a layer on a device. The matrices of the gates i, f, g, o are stacked in this order.
#[derive(Clone, Debug)]
pub struct Fused<T> {
    /// Input weights `W`, `[4 * hidden_size, input_size]`.
    pub(super) w: DeviceMatrix<T>,
    /// Recurrent weights `U`, `[4 * hidden_size, state_size]`.
    pub(super) u: DeviceMatrix<T>,
    /// Bias of all gates, `[1, 4 * hidden_size]`.
    bias: Option<T>,
    /// The range of the operand of `U`.
    recurrent_range: OperandRange,
}

impl<T: Clone> Fused<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let gate_rows = 4 * spec.hidden_size;
        Ok(Fused {
            w: weights.load_matrix(b, Param::WeightIh)?,
            u: weights.load_matrix(b, Param::WeightHh)?,
            bias: weights.bias()?.map(|bias| b.snap(b.upload(MatrixShape::new(1, gate_rows), &bias)?)).transpose()?,
            recurrent_range: spec.recurrent_range(),
        })
    }

    /// Computes `bias + W x` of all gates as one matrix product.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<T> {
        self.w.multiply(b, x, OperandRange::Any, self.bias.as_ref())
    }

    /// Computes `z + U h` of all gates as one matrix product.
    pub fn add_recurrent_term<B: Ops<Tensor = T>>(&self, b: &B, z: T, h: &T) -> Result<T> {
        self.u.multiply(b, h, self.recurrent_range, Some(&z))
    }
}
