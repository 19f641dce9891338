//! Implements [`Backend`] for [`Device`]: each method calls that of the backend inside.

use std::ops::Range;

use lstm_core::{
    Backend, BidirectionalOutput, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LayerSpec,
    LayerWeights, LinearWeights, Result, Sequence, State,
};

use super::{
    Device, on_backend,
    values::{DeviceLayer, DeviceLinear, DevicePlan, DeviceStream, DeviceTensor, DeviceTrace},
};

impl Backend for Device {
    type Layer = DeviceLayer;
    type Plan = DevicePlan;
    type Trace = DeviceTrace;
    type Stream = DeviceStream;
    type Linear = DeviceLinear;

    fn load(&self, weights: &LayerWeights) -> Result<DeviceLayer> {
        on_backend!(self, "load", call => call.wrap(call.backend.load(weights)))
    }

    fn has_kernels(&self, spec: &LayerSpec) -> bool {
        on_backend!(self, backend => backend.has_kernels(spec))
    }

    fn reload(&self, layer: &mut DeviceLayer, weights: &LayerWeights) -> Result<()> {
        on_backend!(self, "reload", call => call.backend.reload(call.get_mut(layer)?, weights))
    }

    fn plan(&self, layer: &DeviceLayer, batch: usize, steps: usize) -> Result<DevicePlan> {
        on_backend!(self, "plan", call => call.wrap(call.backend.plan(call.get(layer)?, batch, steps)))
    }

    /// Returns how the layer runs. If another backend made the layer, it can't run here, and the returned path says so.
    fn path(&self, layer: &DeviceLayer) -> ExecutionPath {
        on_backend!(self, "path", call => match call.get(layer) {
            Ok(layer) => call.backend.path(layer),
            Err(error) => ExecutionPath::Fused(format!("none: {error}").into()),
        })
    }

    fn forward(
        &self,
        layer: &DeviceLayer,
        plan: &mut DevicePlan,
        sequence: Sequence<'_, DeviceTensor>,
    ) -> Result<LayerOutput<DeviceTensor>> {
        on_backend!(self, "forward", call => {
            let state = call.state(sequence.state)?;
            let sequence = call.sequence(&sequence, &state)?;
            Ok(call.wrap_output(call.backend.forward(call.get(layer)?, call.get_mut(plan)?, sequence)?))
        })
    }

    fn forward_bidirectional(
        &self,
        [layer, reverse_layer]: [&DeviceLayer; 2],
        [plan, reverse_plan]: [&mut DevicePlan; 2],
        sequence: Sequence<'_, DeviceTensor>,
        reverse_state: &State<DeviceTensor>,
    ) -> Result<BidirectionalOutput<DeviceTensor>> {
        on_backend!(self, "forward", call => {
            let (state, reverse_state) = (call.state(sequence.state)?, call.state(reverse_state)?);
            let sequence = call.sequence(&sequence, &state)?;
            let layers = [call.get(layer)?, call.get(reverse_layer)?];
            let plans = [call.get_mut(plan)?, call.get_mut(reverse_plan)?];
            let output = call.backend.forward_bidirectional(layers, plans, sequence, &reverse_state)?;
            let states = output.state.map(|state| call.wrap_state(state));
            Ok(BidirectionalOutput::new(call.wrap_tensor(output.y), states))
        })
    }

    fn forward_train(
        &self,
        layer: &DeviceLayer,
        plan: &mut DevicePlan,
        sequence: Sequence<'_, DeviceTensor>,
    ) -> Result<(LayerOutput<DeviceTensor>, DeviceTrace)> {
        on_backend!(self, "forward_train", call => {
            let state = call.state(sequence.state)?;
            let sequence = call.sequence(&sequence, &state)?;
            let (output, trace) = call.backend.forward_train(call.get(layer)?, call.get_mut(plan)?, sequence)?;
            Ok((call.wrap_output(output), call.wrap(Ok(trace))?))
        })
    }

    fn backward(
        &self,
        layer: &DeviceLayer,
        plan: &mut DevicePlan,
        trace: &DeviceTrace,
        upstream: LayerOutputGradients<'_, DeviceTensor>,
    ) -> Result<LayerGradients<DeviceTensor>> {
        on_backend!(self, "backward", call => {
            let state = call.state(upstream.state)?;
            let upstream = call.output_gradients(upstream, &state)?;
            let (layer, plan, trace) = (call.get(layer)?, call.get_mut(plan)?, call.get(trace)?);
            call.wrap_gradients(call.backend.backward(layer, plan, trace, upstream)?)
        })
    }

    fn stream(&self, layers: &[DeviceLayer], batch: usize) -> Result<DeviceStream> {
        on_backend!(self, "stream", call => call.wrap(call.backend.stream(&call.clones(layers)?, batch)))
    }

    async fn step(&self, stream: &mut DeviceStream, x: &[f32], y: &mut [f32]) -> Result<()> {
        on_backend!(self, "step", call => call.backend.step(call.get_mut(stream)?, x, y).await)
    }

    async fn step_some(&self, stream: &mut DeviceStream, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        on_backend!(self, "step_some", call => {
            call.backend.step_some(call.get_mut(stream)?, sequences, x, y).await
        })
    }

    fn stream_state(&self, stream: &DeviceStream, sequences: Range<usize>) -> Result<Vec<State<DeviceTensor>>> {
        on_backend!(self, "stream_state", call => {
            let states = call.backend.stream_state(call.get(stream)?, sequences)?;
            Ok(states.into_iter().map(|state| call.wrap_state(state)).collect())
        })
    }

    fn set_stream_state(&self, stream: &mut DeviceStream, first: usize, state: &[State<DeviceTensor>]) -> Result<()> {
        on_backend!(self, "set_stream_state", call => {
            let state: Vec<_> = state.iter().map(|state| call.state(state)).collect::<Result<_>>()?;
            call.backend.set_stream_state(call.get_mut(stream)?, first, &state)
        })
    }

    fn load_linear(&self, weights: LinearWeights<DeviceTensor>) -> Result<DeviceLinear> {
        on_backend!(self, "load_linear", call => {
            let inner = call.linear_weights(&weights)?;
            Ok(DeviceLinear::new(weights, call.wrap(call.backend.load_linear(inner))?))
        })
    }

    async fn linear_step(&self, linear: &DeviceLinear, x: &[f32], y: &mut [f32]) -> Result<()> {
        on_backend!(self, "linear_step", call => call.backend.linear_step(call.get(&linear.linear)?, x, y).await)
    }
}
