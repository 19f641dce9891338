//! The fused cell's products: one packed matrix for all four gates.

use crate::{
    backend::Ops,
    config::Param,
    error::Result,
    shape::{MatrixRef, MatrixShape},
    weights::LayerWeights,
};

/// `W: [4 * hidden, input]`, `U: [4 * hidden, state]`, `bias: [1, 4 * hidden]`; gates i, f, g, o.
#[derive(Clone, Debug)]
pub struct Fused<T> {
    pub(super) w: T,
    pub(super) u: T,
    bias: Option<T>,
}

impl<T: Clone> Fused<T> {
    /// Brings a layer's weights to the device, snapped.
    pub fn load<B: Ops<Tensor = T>>(b: &B, weights: &LayerWeights) -> Result<Self> {
        let spec = weights.spec();
        let gates = 4 * spec.hidden_size;
        let snapped = |rows, cols, data: &[f32]| b.snap(b.upload(MatrixShape::new(rows, cols), data)?);
        Ok(Fused {
            w: snapped(gates, spec.input_size, weights.expect(Param::WeightIh))?,
            u: snapped(gates, spec.state_size(), weights.expect(Param::WeightHh))?,
            bias: weights.bias().map(|bias| snapped(1, gates, &bias)).transpose()?,
        })
    }

    /// `bias + W x`: one product.
    pub fn input_term<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<T> {
        b.gemm(x.into(), MatrixRef::from(&self.w).t(), self.bias.as_ref())
    }

    /// `z + U h`: one product.
    pub fn recurrent<B: Ops<Tensor = T>>(&self, b: &B, z: T, h: &T) -> Result<T> {
        b.gemm(h.into(), MatrixRef::from(&self.u).t(), Some(&z))
    }
}
