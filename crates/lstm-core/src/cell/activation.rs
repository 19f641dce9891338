//! The activation functions of a cell on a device, and their derivatives.

use crate::{
    activation::{constant_row, hard_sigmoid, hard_sigmoid_gradient, relu, relu_gradient},
    arithmetic::snap,
    backend::Ops,
    config::GateActivation,
    error::Result,
};

/// Computes the function of each element. The slope of a hard sigmoid is snapped, as weights are.
pub(super) fn apply<B: Ops>(b: &B, function: GateActivation, x: B::Tensor) -> Result<B::Tensor> {
    match function {
        GateActivation::Sigmoid => b.sigmoid(x),
        GateActivation::Tanh => b.tanh(x),
        GateActivation::Relu => relu(b, x),
        GateActivation::HardSigmoid { alpha, beta } => hard_sigmoid(b, x, snap(alpha), beta),
    }
}

/// Computes the function of the pre-activations of a gate i, f or o. tanh is snapped, because its values near zero may
/// be so small that their product with the candidate would be subnormal. The other functions have no such values.
pub(super) fn apply_to_gate<B: Ops>(b: &B, function: GateActivation, z: B::Tensor) -> Result<B::Tensor> {
    let gate = apply(b, function, z)?;
    if function == GateActivation::Tanh { b.snap(gate) } else { Ok(gate) }
}

/// Computes the derivative of the function where it has the given values. `ones` is a row of ones.
pub(super) fn derivative<B: Ops>(
    b: &B,
    function: GateActivation,
    value: &B::Tensor,
    ones: &B::Tensor,
) -> Result<B::Tensor> {
    let ones_like_value = || b.mul_add(0.0, value, None, Some(ones));
    match function {
        GateActivation::Sigmoid => b.mul_add(-1.0, value, Some(value), Some(value)),
        GateActivation::Tanh => b.mul_add(-1.0, value, Some(value), Some(ones)),
        GateActivation::Relu => relu_gradient(b, ones_like_value()?, value),
        GateActivation::HardSigmoid { alpha, .. } => hard_sigmoid_gradient(b, &ones_like_value()?, value, snap(alpha)),
    }
}

/// The smallest and the largest value of the function between `-bound` and `bound`, each repeated in a row
/// `[1, hidden]`.
pub(super) fn values_at_bounds<B: Ops>(
    b: &B,
    function: GateActivation,
    bound: f32,
    hidden: usize,
) -> Result<[B::Tensor; 2]> {
    let value_at = |x: f32| apply(b, function, constant_row(b, hidden, x)?);
    match function {
        GateActivation::HardSigmoid { alpha, .. } if alpha < 0.0 => Ok([value_at(bound)?, value_at(-bound)?]),
        _ => Ok([value_at(-bound)?, value_at(bound)?]),
    }
}
