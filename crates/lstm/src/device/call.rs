//! Converts arguments and results of an operation between a device's values and those of its backend.

use lstm_core::{
    Backend, Error, LayerGradients, LayerOutput, LayerOutputGradients, LinearWeights, MatrixRef, Result, Sequence,
    State, WeightGradients,
};

use super::values::{DeviceTensor, Value};

/// A call of the operation `op` on backend `B`. Its methods convert arguments to the values of `B`, and results back to
/// values of the device. A tensor that they clone shares its memory with the clone.
pub(super) struct Call<'a, B> {
    pub(super) backend: &'a B,
    op: &'static str,
}

impl<'a, B: Backend> Call<'a, B> {
    pub(super) fn new(backend: &'a B, op: &'static str) -> Self {
        Call { backend, op }
    }

    /// Returns the error for an argument that belongs to another backend, `owner`.
    fn foreign_value_error(&self, owner: &str) -> Error {
        let reason = format!(
            "expected a value of this backend, got one of {owner}; tensors are moved by `download` and `upload`, other values \
             must be made again on this device"
        );
        Error::Device { backend: self.backend.name().to_owned(), op: self.op, reason }
    }

    pub(super) fn get<'v, V: Value<B>>(&self, value: &'v V) -> Result<&'v V::Inner> {
        value.get().map_err(|other| self.foreign_value_error(other))
    }

    pub(super) fn get_mut<'v, V: Value<B>>(&self, value: &'v mut V) -> Result<&'v mut V::Inner> {
        value.get_mut().map_err(|other| self.foreign_value_error(other))
    }

    pub(super) fn take<V: Value<B>>(&self, value: V) -> Result<V::Inner> {
        value.into_inner().map_err(|other| self.foreign_value_error(other))
    }

    /// Converts the result of an operation on `B` to a value of the device.
    pub(super) fn wrap<V: Value<B>>(&self, result: Result<V::Inner>) -> Result<V> {
        result.map(V::wrap)
    }

    pub(super) fn clones<V: Value<B, Inner: Clone>>(&self, values: &[V]) -> Result<Vec<V::Inner>> {
        values.iter().map(|value| self.get(value).cloned()).collect()
    }
}

impl<B: Backend> Call<'_, B>
where
    DeviceTensor: Value<B, Inner = B::Tensor>,
{
    pub(super) fn option<'v>(&self, tensor: Option<&'v DeviceTensor>) -> Result<Option<&'v B::Tensor>> {
        tensor.map(|tensor| self.get(tensor)).transpose()
    }

    pub(super) fn matrix<'v>(&self, matrix: MatrixRef<'v, DeviceTensor>) -> Result<MatrixRef<'v, B::Tensor>> {
        Ok(MatrixRef { tensor: self.get(matrix.tensor)?, transposed: matrix.transposed })
    }

    pub(super) fn state(&self, state: &State<DeviceTensor>) -> Result<State<B::Tensor>> {
        Ok(State { h: self.get(&state.h)?.clone(), c: self.get(&state.c)?.clone() })
    }

    /// Converts a sequence to one of `B`. `state` is its initial state, already converted by [`state`](Self::state).
    pub(super) fn sequence<'v>(
        &self,
        sequence: &Sequence<'v, DeviceTensor>,
        state: &'v State<B::Tensor>,
    ) -> Result<Sequence<'v, B::Tensor>> {
        let Sequence { x, steps, batch, lengths, .. } = *sequence;
        Ok(Sequence { x: self.get(x)?, state, steps, batch, lengths })
    }

    /// Converts output gradients to those of `B`. `state` is the gradient of the final state, already converted by
    /// [`state`](Self::state).
    pub(super) fn output_gradients<'v>(
        &self,
        gradients: LayerOutputGradients<'v, DeviceTensor>,
        state: &'v State<B::Tensor>,
    ) -> Result<LayerOutputGradients<'v, B::Tensor>> {
        let LayerOutputGradients { y, accumulate, needs_input_gradient, .. } = gradients;
        let accumulate = accumulate.map(|weights| map_weights(weights, |w| self.take(w))).transpose()?;
        Ok(LayerOutputGradients { y: self.get(y)?, state, accumulate, needs_input_gradient })
    }

    pub(super) fn linear_weights(&self, weights: &LinearWeights<DeviceTensor>) -> Result<LinearWeights<B::Tensor>> {
        let LinearWeights { weight, bias } = weights;
        Ok(LinearWeights { weight: weight.map(|w| self.get(w).cloned())?, bias: self.option(bias.as_ref())?.cloned() })
    }

    // Conversions of results, which can't belong to another backend.

    pub(super) fn wrap_tensor(&self, tensor: B::Tensor) -> DeviceTensor {
        <DeviceTensor as Value<B>>::wrap(tensor)
    }

    pub(super) fn wrap_state(&self, state: State<B::Tensor>) -> State<DeviceTensor> {
        State { h: self.wrap_tensor(state.h), c: self.wrap_tensor(state.c) }
    }

    pub(super) fn wrap_output(&self, output: LayerOutput<B::Tensor>) -> LayerOutput<DeviceTensor> {
        LayerOutput::new(self.wrap_tensor(output.y), self.wrap_state(output.state))
    }

    pub(super) fn wrap_gradients(&self, gradients: LayerGradients<B::Tensor>) -> Result<LayerGradients<DeviceTensor>> {
        let LayerGradients { x, state, weights } = gradients;
        let weights = map_weights(weights, |w| Ok(self.wrap_tensor(w)))?;
        Ok(LayerGradients { x: x.map(|x| self.wrap_tensor(x)), state: self.wrap_state(state), weights })
    }
}

/// Applies a function to each tensor of weight gradients.
fn map_weights<T, U>(gradients: WeightGradients<T>, mut map: impl FnMut(T) -> Result<U>) -> Result<WeightGradients<U>> {
    let WeightGradients { input, recurrent, bias, projection, peephole } = gradients;
    Ok(WeightGradients {
        input: map(input)?,
        recurrent: map(recurrent)?,
        bias: bias.map(&mut map).transpose()?,
        projection: projection.map(&mut map).transpose()?,
        peephole: match peephole {
            Some([i, f, o]) => Some([map(i)?, map(f)?, map(o)?]),
            None => None,
        },
    })
}
