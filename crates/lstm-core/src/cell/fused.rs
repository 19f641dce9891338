//! The matrix products of the fused cell: one packed matrix for all four gates.

use crate::{
    backend::{
        Ops,
        shape::{MatrixRef, MatrixShape},
    },
    config::Param,
    error::Result,
    weights::LayerWeights,
};

/// The weights of a layer on a device. The matrices of the gates i, f, g, o are stacked in this order.
#[derive(Clone, Debug)]
pub struct Fused<T> {
    /// Input weights `W`, `[4 * hidden_size, input_size]`.
    pub(super) w: T,
    /// Recurrent weights `U`, `[4 * hidden_size, state_size]`.
    pub(super) u: T,
    /// Bias of all gates, `[1, 4 * hidden_size]`.
    bias: Option<T>,
}

impl<T: Clone> Fused<T> {
    /// Uploads the weights of a layer, with [`snap`](crate::arithmetic::snap) applied to each value.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let gate_rows = 4 * spec.hidden_size;
        let upload_snapped = |rows, cols, data: &[f32]| b.snap(b.upload(MatrixShape::new(rows, cols), data)?);
        Ok(Fused {
            w: upload_snapped(gate_rows, spec.input_size, weights.elements(Param::WeightIh))?,
            u: upload_snapped(gate_rows, spec.state_size(), weights.elements(Param::WeightHh))?,
            bias: weights.bias().map(|bias| upload_snapped(1, gate_rows, &bias)).transpose()?,
        })
    }

    /// Computes `bias + W x` of all gates as one matrix product.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<T> {
        b.gemm(x.into(), MatrixRef::from(&self.w).t(), self.bias.as_ref())
    }

    /// Computes `z + U h` of all gates as one matrix product.
    pub fn add_recurrent_term<B: Ops<Tensor = T>>(&self, b: &B, z: T, h: &T) -> Result<T> {
        b.gemm(h.into(), MatrixRef::from(&self.u).t(), Some(&z))
    }
}
