//! The input and output of a layer's backward pass.

use crate::{
    backend::{
        sequence::State,
        shape::{MatrixShape, checked_len},
    },
    config::{Bias, CellKind, LayerSpec, Param},
    error::{Error, Result},
};

/// The input of [`Backend::backward`](crate::Backend::backward): gradients of the loss with respect to a layer's
/// outputs.
#[derive(Debug)]
pub struct LayerOutputGradients<'a, T> {
    /// Gradient with respect to the layer's output `y`, shape `[steps * batch, state_size]`. Rows beyond the end of a
    /// sequence are not read.
    pub y: &'a T,
    /// Gradient with respect to the final state.
    pub state: &'a State<T>,
    /// Weight gradients to which the backward pass adds its own. With checkpointing, these are the sums over the later
    /// time steps of the same sequence. `None` means zero.
    pub accumulate: Option<WeightGradients<T>>,
    /// Whether to compute the gradient with respect to the layer's input.
    pub needs_input_gradient: bool,
}

impl<T> LayerOutputGradients<'_, T> {
    /// Checks all shapes against `spec`. Every backend calls this first; `shape` returns the shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] names the gradient that does not match.
    pub fn check(&self, spec: &LayerSpec, steps: usize, batch: usize, shape: impl Fn(&T) -> MatrixShape) -> Result<()> {
        let check_tensor = |op: &str, tensor: &T, expected_shape: MatrixShape| {
            let got = shape(tensor);
            if got == expected_shape {
                Ok(())
            } else {
                Err(Error::shape(format!("backward: {op}"), expected_shape, got))
            }
        };
        check_tensor("y", self.y, MatrixShape::new(checked_len("backward", &[steps, batch])?, spec.state_size()))?;
        check_tensor("state.h", &self.state.h, MatrixShape::new(batch, spec.state_size()))?;
        check_tensor("state.c", &self.state.c, MatrixShape::new(batch, spec.hidden_size))?;
        let Some(weights) = &self.accumulate else { return Ok(()) };
        let expected_presence =
            (spec.bias != Bias::None, spec.proj_size.is_some(), spec.cell == CellKind::PeepholeDiagonal);
        let presence = (weights.bias.is_some(), weights.projection.is_some(), weights.peephole.is_some());
        if presence != expected_presence {
            let describe = |(bias, projection, peephole): (bool, bool, bool)| {
                format!("gradients with bias {bias}, projection {projection}, peephole {peephole}")
            };
            return Err(Error::shape("backward: accumulate", describe(expected_presence), describe(presence)));
        }
        for (param, shape) in spec.params() {
            let gradient = weights.get(param).expect("presence was checked above");
            check_tensor(&format!("accumulate.{param:?}"), gradient, device_shape(&shape))?;
        }
        Ok(())
    }
}

/// The shape of a parameter on a device, where a vector is a matrix of one row.
fn device_shape(shape: &[usize]) -> MatrixShape {
    match *shape {
        [rows, cols] => MatrixShape::new(rows, cols),
        _ => MatrixShape::new(1, shape.iter().product()),
    }
}

/// Gradients of a layer's weights, in the layout of [`Param`]. A vector is a matrix of one row.
#[derive(Clone, Debug)]
pub struct WeightGradients<T> {
    /// Gradient of the input weights `W`, `[4 * hidden_size, input_size]`.
    pub input: T,
    /// Gradient of the recurrent weights `U`, `[4 * hidden_size, state_size]`.
    pub recurrent: T,
    /// Gradient of the bias, `[1, 4 * hidden_size]`. If the layer has two biases, both have this gradient.
    pub bias: Option<T>,
    /// Gradient of the projection `W_hr`, `[proj_size, hidden_size]`.
    pub projection: Option<T>,
    /// Gradients of the diagonal peepholes of the gates i, f and o, `[1, hidden_size]` each.
    pub peephole: Option<[T; 3]>,
}

impl<T> WeightGradients<T> {
    /// The gradient of each of the layer's parameters, in the order of [`LayerSpec::params`].
    pub(crate) fn into_params(self, spec: &LayerSpec) -> Vec<T>
    where
        T: Clone,
    {
        let WeightGradients { input, recurrent, bias, projection, peephole } = self;
        let first_bias = bias.clone().filter(|_| spec.bias == Bias::Two);
        let peephole = peephole.into_iter().flatten();
        [input, recurrent].into_iter().chain(first_bias).chain(bias).chain(projection).chain(peephole).collect()
    }

    /// The gradient of `param`; `None` if the layer has no such parameter.
    pub fn get(&self, param: Param) -> Option<&T> {
        let peephole = |gate: usize| self.peephole.as_ref().map(|p| &p[gate]);
        match param {
            Param::WeightIh => Some(&self.input),
            Param::WeightHh => Some(&self.recurrent),
            Param::Bias | Param::BiasIh | Param::BiasHh => self.bias.as_ref(),
            Param::WeightHr => self.projection.as_ref(),
            Param::PeepholeI => peephole(0),
            Param::PeepholeF => peephole(1),
            Param::PeepholeO => peephole(2),
        }
    }
}

/// The result of [`Backend::backward`](crate::Backend::backward): gradients of the loss with respect to a layer's
/// input, initial state and weights.
#[derive(Clone, Debug)]
pub struct LayerGradients<T> {
    /// Gradient with respect to the input, `[steps * batch, input_size]`. Rows beyond the end of a sequence are +0.
    /// `None` unless [`LayerOutputGradients::needs_input_gradient`] was set.
    pub x: Option<T>,
    /// Gradient with respect to the initial state.
    pub state: State<T>,
    /// Gradients with respect to the weights.
    pub weights: WeightGradients<T>,
}
