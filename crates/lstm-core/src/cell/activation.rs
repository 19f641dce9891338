//! The activation functions of a cell on a device, and their derivatives.

use crate::{
    arithmetic::snap,
    backend::{Ops, shape::MatrixShape},
    config::{GateActivation, LayerSpec},
    error::Result,
};

/// The activation functions of a layer.
#[derive(Clone, Debug)]
pub(super) struct CellFunctions<T> {
    /// The function of i, f and o, and of the candidate of the dense peephole cell.
    pub(super) gate: CellFunction<T>,
    /// The function of the candidate g.
    pub(super) candidate: CellFunction<T>,
    /// The function of the cell state in the output.
    pub(super) output: CellFunction<T>,
}

impl<T: Clone> CellFunctions<T> {
    pub(super) fn new<B: Ops<Tensor = T>>(b: &B, spec: &LayerSpec) -> Result<Self> {
        let function = |activation| CellFunction::new(b, activation, spec.hidden_size);
        Ok(CellFunctions {
            gate: function(spec.activations.gate)?,
            candidate: function(spec.activations.candidate)?,
            output: function(spec.activations.output)?,
        })
    }
}

/// An activation function, with the constants that it needs, each repeated in a row `[1, hidden_size]`.
#[derive(Clone, Debug)]
pub(super) enum CellFunction<T> {
    Sigmoid,
    Tanh,
    Relu { zero: T, two: T },
    HardSigmoid { alpha: f32, alpha_row: T, beta_minus_half: T, half: T, zero: T },
}

impl<T: Clone> CellFunction<T> {
    fn new<B: Ops<Tensor = T>>(b: &B, activation: GateActivation, hidden: usize) -> Result<Self> {
        let row = |v: f32| b.upload(MatrixShape::new(1, hidden), &vec![v; hidden]);
        Ok(match activation {
            GateActivation::Sigmoid => CellFunction::Sigmoid,
            GateActivation::Tanh => CellFunction::Tanh,
            GateActivation::Relu => CellFunction::Relu { zero: row(0.0)?, two: row(2.0)? },
            GateActivation::HardSigmoid { alpha, beta } => CellFunction::HardSigmoid {
                alpha: snap(alpha),
                alpha_row: row(snap(alpha))?,
                beta_minus_half: row(snap(beta) - 0.5)?,
                half: row(0.5)?,
                zero: row(0.0)?,
            },
        })
    }

    /// Computes the function of each element.
    pub(super) fn apply<B: Ops<Tensor = T>>(&self, b: &B, x: T) -> Result<T> {
        match self {
            CellFunction::Sigmoid => b.sigmoid(x),
            CellFunction::Tanh => b.tanh(x),
            CellFunction::Relu { zero, two } => select_positive(b, x.clone(), x, zero, two),
            CellFunction::HardSigmoid { alpha, beta_minus_half, half, .. } => {
                let centered = b.clip(b.mul_add(*alpha, &x, None, Some(beta_minus_half))?, 0.5)?;
                b.mul_add(1.0, &centered, None, Some(half))
            }
        }
    }

    /// Computes the function of a gate's pre-activations. All functions but sigmoid are followed by snap: their values
    /// may be so small that a product with another gate would be subnormal.
    pub(super) fn apply_to_gate<B: Ops<Tensor = T>>(&self, b: &B, z: T) -> Result<T> {
        match self {
            CellFunction::Sigmoid => b.sigmoid(z),
            _ => b.snap(self.apply(b, z)?),
        }
    }

    /// Computes the derivative of the function where it has the given values. `ones` is a row of ones.
    pub(super) fn derivative<B: Ops<Tensor = T>>(&self, b: &B, value: &T, ones: &T) -> Result<T> {
        // A matrix of the shape of `value` with this row repeated.
        let repeat = |row: &T| b.mul_add(0.0, value, None, Some(row));
        match self {
            CellFunction::Sigmoid => b.mul_add(-1.0, value, Some(value), Some(value)),
            CellFunction::Tanh => b.mul_add(-1.0, value, Some(value), Some(ones)),
            CellFunction::Relu { zero, two } => select_positive(b, repeat(ones)?, value.clone(), zero, two),
            CellFunction::HardSigmoid { alpha_row, zero, .. } => {
                b.select_between(repeat(alpha_row)?, value, zero, ones)
            }
        }
    }

    /// The values of the function at the bounds `-bound` and `bound`, the smaller one first, each repeated in a row.
    pub(super) fn values_at_bounds<B: Ops<Tensor = T>>(&self, b: &B, bound: f32, hidden: usize) -> Result<[T; 2]> {
        let value_at = |x: f32| self.apply(b, b.upload(MatrixShape::new(1, hidden), &vec![x; hidden])?);
        match self {
            CellFunction::HardSigmoid { alpha, .. } if *alpha < 0.0 => Ok([value_at(bound)?, value_at(-bound)?]),
            _ => Ok([value_at(-bound)?, value_at(bound)?]),
        }
    }
}

/// Selects elementwise: `x` where `by` is positive or NaN, else +0.
fn select_positive<B: Ops>(b: &B, x: B::Tensor, by: B::Tensor, zero: &B::Tensor, two: &B::Tensor) -> Result<B::Tensor> {
    // Clipped to 1, each positive element is between 0 and 2.
    b.select_between(x, &b.clip(by, 1.0)?, zero, two)
}
