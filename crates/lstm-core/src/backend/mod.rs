//! The traits that a device implements: [`Ops`] for the primitive operations and [`Backend`] for whole layers.
//!
//! A new device implements [`Ops`] and the marker trait [`ReferencePath`]; it is then a [`Backend`] that runs every
//! cell by the [reference path](crate::reference). A device with kernels of its own implements [`Backend`] instead of
//! the marker trait.

mod gradients;
mod info;
mod linear;
mod matrix;
mod ops;
mod quantized;
mod send;
mod sequence;
pub mod shape;

use std::{future::Future, ops::Range};

pub use gradients::{LayerGradients, LayerOutputGradients, WeightGradients};
pub use info::{Arithmetic, ExecutionPath};
pub use linear::LinearWeights;
pub use matrix::DeviceMatrix;
pub use ops::Ops;
pub use quantized::QuantizedMatrix;
pub use send::{MaybeSend, MaybeSync};
pub use sequence::{BidirectionalOutput, LayerOutput, Sequence, State};

use crate::{backend::shape::ConcatAxis, config::LayerSpec, error::Result, weights::LayerWeights};

/// A device that runs whole LSTM layers.
///
/// Operations only *enqueue* work; [`download`](Ops::download), [`step`](Self::step),
/// [`step_some`](Self::step_some) and [`linear_step`](Self::linear_step) wait for it. Results are
/// bit-identical to those of the [reference path](crate::reference), whatever kernels compute them, unless
/// [`arithmetic`](Ops::arithmetic) reports [`Arithmetic::Inexact`].
///
/// Implement [`ReferencePath`] instead for a device that has only the primitive operations of [`Ops`].
pub trait Backend: Ops {
    /// The weights of one layer in one direction on the device, in the form that its kernels read. A clone shares the
    /// memory.
    type Layer: Clone + MaybeSend + MaybeSync;
    /// The workspace of [`forward`](Self::forward) and [`backward`](Self::backward) for one layer and batch size, such
    /// as scratch memory, bind groups or a captured CUDA graph. One call at a time uses it. It stays valid when
    /// [`reload`](Self::reload) replaces the layer's weights.
    type Plan: MaybeSend;
    /// What a forward pass saves for the backward pass: the input, and the states and gates of every time step.
    type Trace: MaybeSend + MaybeSync;
    /// A stack of layers with its current state, which runs one time step per call.
    type Stream: MaybeSend + MaybeSync;

    /// The weights of a fully connected layer on the device, ready for [`linear_step`](Self::linear_step). A clone
    /// shares the memory.
    type Linear: Clone + AsRef<LinearWeights<Self::Tensor>> + MaybeSend + MaybeSync;

    /// Uploads the weights of a layer. If the layer has two biases, their sum is uploaded. All values are
    /// [snapped](crate::arithmetic::snap) and stored in the order in which the kernels read them.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the kernels do not compute the layer, see
    /// [`has_kernels`](Self::has_kernels). [`Error::Device`](crate::Error::Device) if the device fails.
    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer>;

    /// Whether [`load`](Self::load) accepts a layer of this spec. [`Lstm`](crate::Lstm) runs other layers by the
    /// [reference path](crate::reference). By default, layers with f32 weights and the default activation functions.
    fn has_kernels(&self, spec: &LayerSpec) -> bool {
        spec.has_default_kernels()
    }

    /// Replaces the weights of a layer, for example after an optimizer step. The new weights must have the same
    /// [`LayerSpec`](crate::LayerSpec). Clones of the layer, such as those in running streams, keep the old weights.
    fn reload(&self, layer: &mut Self::Layer, weights: &LayerWeights) -> Result<()> {
        *layer = self.load(weights)?;
        Ok(())
    }

    /// Allocates the workspace of [`forward`](Self::forward) for `batch` sequences of at most `steps` time steps.
    fn plan(&self, layer: &Self::Layer, batch: usize, steps: usize) -> Result<Self::Plan>;

    /// The code that [`forward`](Self::forward) runs for `layer`.
    fn path(&self, layer: &Self::Layer) -> ExecutionPath;

    /// Runs a layer over a batch of sequences. Input and initial state are snapped first. The result is defined by
    /// [`reference::forward`](crate::reference::forward).
    fn forward(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        sequence: Sequence<'_, Self::Tensor>,
    ) -> Result<LayerOutput<Self::Tensor>>;

    /// Runs the two directions of a bidirectional layer, given as two layers, over the same sequences. `sequence` holds
    /// the input, and the initial state for `layers[0]`; `reverse_state` is the initial state for `layers[1]`. Returns
    /// the outputs of both layers side by side, `layers[0]` first, and both final states. Any two layers with the same
    /// input size are allowed. Errors are those of [`forward`](Self::forward).
    fn forward_bidirectional(
        &self,
        layers: [&Self::Layer; 2],
        plans: [&mut Self::Plan; 2],
        sequence: Sequence<'_, Self::Tensor>,
        reverse_state: &State<Self::Tensor>,
    ) -> Result<BidirectionalOutput<Self::Tensor>> {
        let Sequence { x, steps, batch, lengths, .. } = sequence;
        let [plan, reverse_plan] = plans;
        let a = self.forward(layers[0], plan, sequence)?;
        let b = self.forward(layers[1], reverse_plan, Sequence { x, state: reverse_state, steps, batch, lengths })?;
        Ok(LayerOutput { y: self.concat(ConcatAxis::Cols, &[a.y, b.y])?, state: [a.state, b.state] })
    }

    /// Runs a layer like [`forward`](Self::forward), with bit-identical results, and also saves what
    /// [`backward`](Self::backward) needs. Inputs beyond a sequence's length must be finite, because the weight
    /// gradients multiply them by zero.
    fn forward_train(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        sequence: Sequence<'_, Self::Tensor>,
    ) -> Result<(LayerOutput<Self::Tensor>, Self::Trace)>;

    /// Computes the gradients of a layer from `upstream`, the gradients with respect to the layer's outputs. The values
    /// of `upstream` are snapped first. `layer` must hold the weights with which `trace` was recorded: different
    /// weights are not detected, but a different [`LayerSpec`](crate::LayerSpec) is an error. The result is defined by
    /// [`reference::backward`](crate::reference::backward()).
    fn backward(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        trace: &Self::Trace,
        upstream: LayerOutputGradients<'_, Self::Tensor>,
    ) -> Result<LayerGradients<Self::Tensor>>;

    /// Creates a stream: a stack of layers in the forward direction that runs `batch` sequences one time step per call,
    /// from zero state.
    fn stream(&self, layers: &[Self::Layer], batch: usize) -> Result<Self::Stream>;

    /// Runs the whole stack for one time step: reads `x: [batch, input_size]`, waits for the device, and writes the
    /// hidden state of the last layer to `y: [batch, state_size]`. The results are bit-identical to those of
    /// [`forward`](Self::forward) over sequences of one time step.
    fn step(&self, stream: &mut Self::Stream, x: &[f32], y: &mut [f32])
    -> impl Future<Output = Result<()>> + MaybeSend;

    /// Runs one time step of some sequences: row `k` of `x` and `y` belongs to sequence `sequences[k]` of the stream.
    /// The other sequences keep their state. For the sequences that run, the results are bit-identical to those of
    /// [`step`](Self::step). [`reference::check_step_some`](crate::reference::check_step_some) defines the errors.
    fn step_some(
        &self,
        stream: &mut Self::Stream,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend;

    /// Returns a copy of the state of each layer of a stream, for a range of its sequences.
    fn stream_state(&self, stream: &Self::Stream, sequences: Range<usize>) -> Result<Vec<State<Self::Tensor>>>;

    /// Replaces the state of some sequences in each layer of a stream. `state` has one entry per layer; row `k` of an
    /// entry is the new state of sequence `first + k`. The new state is snapped. The other sequences keep their state.
    fn set_stream_state(&self, stream: &mut Self::Stream, first: usize, state: &[State<Self::Tensor>]) -> Result<()>;

    /// Prepares a fully connected layer for [`linear_step`](Self::linear_step), for example by packing its weights for
    /// a kernel. The given weights are already on the device and snapped.
    fn load_linear(&self, weights: LinearWeights<Self::Tensor>) -> Result<Self::Linear>;

    /// Computes `y = snap(x) W^T + b` of a fully connected layer, for any number of rows: `x: [rows, in]` and
    /// `y: [rows, out]`. The results are bit-identical to those of [`snap`](Ops::snap) and [`gemm`](Ops::gemm), which
    /// the default implementation calls. A backend on the host can avoid the allocations of these calls.
    fn linear_step(
        &self,
        linear: &Self::Linear,
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        async move { linear::step(self, linear.as_ref(), x, y).await }
    }
}

/// A marker trait for a device without kernels for whole layers. A device that implements it in addition to [`Ops`] is
/// a [`Backend`], whose methods call the functions of [`reference`](crate::reference).
///
/// ```
/// # use lstm_core::{Ops, ReferencePath};
/// # fn example<Device: ReferencePath>(device: Device) -> impl lstm_core::Backend { device }
/// // impl Ops for Device { ... }
/// // impl ReferencePath for Device {}
/// ```
pub trait ReferencePath: Ops {}
