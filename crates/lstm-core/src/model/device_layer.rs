//! The layers of a model on a device. Layers that the backend's kernels do not compute run by the reference path.

use std::ops::Range;

use crate::{
    backend::{
        Backend, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, Sequence, State, shape::ConcatAxis,
    },
    error::{Error, Result},
    float_environment::FloatEnvironment,
    model::{
        block_on::{block_on, block_on_inlined},
        run::DirectionsOutput,
    },
    reference,
    weights::LayerWeights,
};

/// One layer in one direction.
pub(crate) enum DeviceLayer<B: Backend> {
    /// A layer of the backend.
    Backend(B::Layer),
    /// A layer that the backend's kernels do not compute.
    Reference(Box<reference::Layer<B::Tensor>>),
}

/// The workspace of a layer; `None` for the reference path, which needs none.
pub(crate) type DevicePlan<B> = Option<<B as Backend>::Plan>;

/// What the forward pass of a layer saves for the backward pass.
pub(crate) enum DeviceTrace<B: Backend> {
    Backend(B::Trace),
    Reference(reference::Trace<B::Tensor>),
}

/// A stack of layers that runs one time step per call, with its state.
pub(crate) enum DeviceStream<B: Backend> {
    Backend(B::Stream),
    Reference(reference::Stream<B::Tensor>),
}

impl<B: Backend> Clone for DeviceLayer<B> {
    fn clone(&self) -> Self {
        match self {
            DeviceLayer::Backend(layer) => DeviceLayer::Backend(layer.clone()),
            DeviceLayer::Reference(layer) => DeviceLayer::Reference(layer.clone()),
        }
    }
}

/// The error for a value that belongs to a layer of the other path. A model never has both kinds of layers, because all
/// its layers have the same activation functions and precision.
fn other_path_error(op: &str) -> Error {
    Error::shape(op, "a value made for this layer", "one made for a layer of another execution path")
}

impl<B: Backend> DeviceLayer<B> {
    /// Uploads the weights of a layer.
    pub(crate) fn load(b: &B, weights: &LayerWeights) -> Result<Self> {
        let _environment = FloatEnvironment::set_default();
        if b.has_kernels(weights.spec()) {
            return b.load(weights).map(DeviceLayer::Backend);
        }
        reference::Layer::load(b, weights).map(Box::new).map(DeviceLayer::Reference)
    }

    /// Replaces the weights by others of the same spec.
    pub(crate) fn reload(&mut self, b: &B, weights: &LayerWeights) -> Result<()> {
        let _environment = FloatEnvironment::set_default();
        match self {
            DeviceLayer::Backend(layer) => b.reload(layer, weights)?,
            DeviceLayer::Reference(layer) => **layer = reference::Layer::load(b, weights)?,
        }
        Ok(())
    }

    /// The code that runs the layer.
    pub(crate) fn path(&self, b: &B) -> ExecutionPath {
        match self {
            DeviceLayer::Backend(layer) => b.path(layer),
            DeviceLayer::Reference(_) => ExecutionPath::Reference,
        }
    }

    /// Allocates the workspace for `batch` sequences of at most `steps` time steps.
    pub(crate) fn plan(&self, b: &B, batch: usize, steps: usize) -> Result<DevicePlan<B>> {
        match self {
            DeviceLayer::Backend(layer) => b.plan(layer, batch, steps).map(Some),
            DeviceLayer::Reference(_) => Ok(None),
        }
    }

    /// Runs the layer over a batch of sequences.
    pub(crate) fn forward(
        &self,
        b: &B,
        plan: &mut DevicePlan<B>,
        sequence: Sequence<'_, B::Tensor>,
    ) -> Result<LayerOutput<B::Tensor>> {
        match (self, plan) {
            (DeviceLayer::Backend(layer), Some(plan)) => b.forward(layer, plan, sequence),
            (DeviceLayer::Reference(layer), None) => reference::forward(b, layer, sequence),
            _ => Err(other_path_error("forward: plan")),
        }
    }

    /// Runs the forward and the reverse direction of a bidirectional layer over the same sequences. Returns the outputs
    /// side by side.
    pub(crate) fn forward_bidirectional(
        layers: [&Self; 2],
        b: &B,
        plans: [&mut DevicePlan<B>; 2],
        sequence: Sequence<'_, B::Tensor>,
        reverse_state: &State<B::Tensor>,
    ) -> Result<DirectionsOutput<B::Tensor>> {
        match (layers, plans) {
            ([DeviceLayer::Backend(layer), DeviceLayer::Backend(reverse_layer)], [Some(plan), Some(reverse_plan)]) => {
                let (layers, plans) = ([layer, reverse_layer], [plan, reverse_plan]);
                let out = b.forward_bidirectional(layers, plans, sequence, reverse_state)?;
                Ok(LayerOutput::new(out.y, out.state.into()))
            }
            ([layer, reverse_layer], [plan, reverse_plan]) => {
                let Sequence { x, steps, batch, lengths, .. } = sequence;
                let out = layer.forward(b, plan, sequence)?;
                let reverse_sequence = Sequence { x, state: reverse_state, steps, batch, lengths };
                let reverse_out = reverse_layer.forward(b, reverse_plan, reverse_sequence)?;
                let y = b.concat(ConcatAxis::Cols, &[out.y, reverse_out.y])?;
                Ok(LayerOutput::new(y, vec![out.state, reverse_out.state]))
            }
        }
    }

    /// Runs the layer and saves what the backward pass needs.
    pub(crate) fn forward_train(
        &self,
        b: &B,
        plan: &mut DevicePlan<B>,
        sequence: Sequence<'_, B::Tensor>,
    ) -> Result<(LayerOutput<B::Tensor>, DeviceTrace<B>)> {
        match (self, plan) {
            (DeviceLayer::Backend(layer), Some(plan)) => {
                let (output, trace) = b.forward_train(layer, plan, sequence)?;
                Ok((output, DeviceTrace::Backend(trace)))
            }
            (DeviceLayer::Reference(layer), None) => {
                let (output, trace) = reference::forward_train(b, layer, sequence)?;
                Ok((output, DeviceTrace::Reference(trace)))
            }
            _ => Err(other_path_error("forward_train: plan")),
        }
    }

    /// Computes the gradients of the layer.
    pub(crate) fn backward(
        &self,
        b: &B,
        plan: &mut DevicePlan<B>,
        trace: &DeviceTrace<B>,
        upstream: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        match (self, plan, trace) {
            (DeviceLayer::Backend(layer), Some(plan), DeviceTrace::Backend(trace)) => {
                b.backward(layer, plan, trace, upstream)
            }
            (DeviceLayer::Reference(layer), None, DeviceTrace::Reference(trace)) => {
                reference::backward(b, layer, trace, upstream)
            }
            _ => Err(other_path_error("backward: plan and trace")),
        }
    }
}

impl<B: Backend> DeviceStream<B> {
    /// Creates a stream of `batch` sequences with zero states.
    pub(crate) fn new(b: &B, layers: &[DeviceLayer<B>], batch: usize) -> Result<Self> {
        let (mut backend_layers, mut reference_layers) = (Vec::new(), Vec::new());
        for layer in layers {
            match layer {
                DeviceLayer::Backend(layer) => backend_layers.push(layer.clone()),
                DeviceLayer::Reference(layer) => reference_layers.push((**layer).clone()),
            }
        }
        match (&backend_layers[..], &reference_layers[..]) {
            (layers, []) => b.stream(layers, batch).map(DeviceStream::Backend),
            ([], layers) => reference::stream(b, layers, batch).map(DeviceStream::Reference),
            _ => Err(other_path_error("stream: layers")),
        }
    }

    /// Runs one time step of all sequences and blocks the thread until it is done.
    pub(crate) fn step_blocking(&mut self, b: &B, x: &[f32], y: &mut [f32]) -> Result<()> {
        match self {
            DeviceStream::Backend(stream) => block_on_inlined(b.step(stream, x, y)),
            DeviceStream::Reference(stream) => block_on(reference::step(b, stream, x, y)),
        }
    }

    /// Runs one time step of all sequences.
    pub(crate) async fn step(&mut self, b: &B, x: &[f32], y: &mut [f32]) -> Result<()> {
        match self {
            DeviceStream::Backend(stream) => b.step(stream, x, y).await,
            // Boxed, so that the future of the other path, which runs in less than a microsecond, stays small.
            DeviceStream::Reference(stream) => Box::pin(reference::step(b, stream, x, y)).await,
        }
    }

    /// Runs one time step of some sequences.
    pub(crate) async fn step_some(&mut self, b: &B, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        match self {
            DeviceStream::Backend(stream) => b.step_some(stream, sequences, x, y).await,
            DeviceStream::Reference(stream) => Box::pin(reference::step_some(b, stream, sequences, x, y)).await,
        }
    }

    /// Returns a copy of the state of each layer, for a range of sequences.
    pub(crate) fn state(&self, b: &B, sequences: Range<usize>) -> Result<Vec<State<B::Tensor>>> {
        match self {
            DeviceStream::Backend(stream) => b.stream_state(stream, sequences),
            DeviceStream::Reference(stream) => reference::stream_state(b, stream, sequences),
        }
    }

    /// Replaces the state of the sequences from number `first` on.
    pub(crate) fn set_state(&mut self, b: &B, first: usize, state: &[State<B::Tensor>]) -> Result<()> {
        match self {
            DeviceStream::Backend(stream) => b.set_stream_state(stream, first, state),
            DeviceStream::Reference(stream) => reference::set_stream_state(b, stream, first, state),
        }
    }
}
