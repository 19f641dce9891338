//! The reference path: layers and streams computed by the primitive operations of [`Ops`] alone.
//!
//! It defines the result of every method of [`Backend`]. Each fused kernel is tested against it on the same device. A
//! device without fused kernels runs its layers by this path: see [`ReferencePath`].

mod backward;
mod forward;
mod stream;

use std::{future::Future, ops::Range};

pub use backward::backward;
pub use forward::{Trace, forward, forward_train};
pub(crate) use stream::check_distinct;
pub use stream::{
    Stream, check_sequences, check_stack, check_state, check_step, check_step_some, set_stream_state, step, step_some,
    stream, stream_state,
};

use crate::{
    backend::{
        Arithmetic, Backend, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LinearWeights,
        MaybeSend, Ops, QuantizedMatrix, ReferencePath, Sequence, State,
        shape::{ConcatAxis, MatrixRef, MatrixShape},
    },
    cell::Cell,
    config::LayerSpec,
    error::Result,
    quantized::OperandRange,
    weights::LayerWeights,
};

/// A layer of a backend that runs layers by the reference path, with the primitive operations of [`Ops`].
pub type Layer<T> = Cell<T>;

/// A copy of `state` in which [`snap`](Ops::snap) has set tiny values of `h` and `c` to zero.
fn snap_state<B: Ops>(b: &B, state: &State<B::Tensor>) -> Result<State<B::Tensor>> {
    Ok(State { h: b.snap(state.h.clone())?, c: b.snap(state.c.clone())? })
}

impl<B: ReferencePath> Backend for B {
    type Layer = Layer<B::Tensor>;
    type Plan = ();
    type Trace = Trace<B::Tensor>;
    type Stream = Stream<B::Tensor>;
    type Linear = LinearWeights<B::Tensor>;

    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer> {
        Cell::load(self, weights)
    }
    fn plan(&self, _: &Self::Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn path(&self, _: &Self::Layer) -> ExecutionPath {
        ExecutionPath::Reference
    }
    fn forward(&self, layer: &Self::Layer, _: &mut (), s: Sequence<'_, B::Tensor>) -> Result<LayerOutput<B::Tensor>> {
        forward(self, layer, s)
    }
    fn forward_train(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        s: Sequence<'_, B::Tensor>,
    ) -> Result<(LayerOutput<B::Tensor>, Self::Trace)> {
        forward_train(self, layer, s)
    }
    fn backward(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        trace: &Self::Trace,
        upstream: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        backward(self, layer, trace, upstream)
    }
    fn stream(&self, layers: &[Self::Layer], batch: usize) -> Result<Self::Stream> {
        stream(self, layers, batch)
    }
    fn step(&self, s: &mut Self::Stream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        step(self, s, x, y)
    }
    fn step_some(
        &self,
        s: &mut Self::Stream,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        step_some(self, s, sequences, x, y)
    }
    fn stream_state(&self, stream: &Self::Stream, sequences: Range<usize>) -> Result<Vec<State<B::Tensor>>> {
        stream_state(self, stream, sequences)
    }
    fn set_stream_state(&self, stream: &mut Self::Stream, first: usize, state: &[State<B::Tensor>]) -> Result<()> {
        set_stream_state(self, stream, first, state)
    }
    fn load_linear(&self, weights: LinearWeights<B::Tensor>) -> Result<Self::Linear> {
        weights.check(|x| self.shape(x))?;
        Ok(weights)
    }
    fn has_kernels(&self, _: &LayerSpec) -> bool {
        // The reference path computes every layer.
        true
    }
}

/// A backend that runs every layer with the primitive operations of `B` alone, without its fused kernels. Tests compare
/// the kernels of `B` with it.
#[derive(Clone, Debug)]
pub struct Reference<B>(pub B);

impl<B: Ops> ReferencePath for Reference<B> {}

impl<B: Ops> Ops for Reference<B> {
    type Tensor = B::Tensor;

    fn name(&self) -> &str {
        self.0.name()
    }
    fn arithmetic(&self) -> Arithmetic {
        self.0.arithmetic()
    }
    fn shape(&self, x: &B::Tensor) -> MatrixShape {
        self.0.shape(x)
    }
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<B::Tensor> {
        self.0.upload(shape, data)
    }
    fn download(&self, x: &B::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        self.0.download(x, out)
    }
    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<B::Tensor> {
        self.0.upload_vec(shape, data)
    }
    fn download_vec(&self, x: B::Tensor) -> impl Future<Output = Result<Vec<f32>>> + MaybeSend {
        self.0.download_vec(x)
    }
    fn snap(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.0.snap(x)
    }
    fn gemm(
        &self,
        a: MatrixRef<'_, B::Tensor>,
        b: MatrixRef<'_, B::Tensor>,
        acc: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        self.0.gemm(a, b, acc)
    }
    fn gemm_quantized(
        &self,
        a: &B::Tensor,
        w: &QuantizedMatrix<B::Tensor>,
        range: OperandRange,
        acc: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        self.0.gemm_quantized(a, w, range, acc)
    }
    fn mul_add(&self, alpha: f32, a: &B::Tensor, b: Option<&B::Tensor>, c: Option<&B::Tensor>) -> Result<B::Tensor> {
        self.0.mul_add(alpha, a, b, c)
    }
    fn sigmoid(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.0.sigmoid(x)
    }
    fn tanh(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.0.tanh(x)
    }
    fn clip(&self, x: B::Tensor, bound: f32) -> Result<B::Tensor> {
        self.0.clip(x, bound)
    }
    fn select_between(&self, x: B::Tensor, by: &B::Tensor, low: &B::Tensor, high: &B::Tensor) -> Result<B::Tensor> {
        self.0.select_between(x, by, low, high)
    }
    fn slice(&self, x: &B::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<B::Tensor> {
        self.0.slice(x, rows, cols)
    }
    fn concat(&self, axis: ConcatAxis, parts: &[B::Tensor]) -> Result<B::Tensor> {
        self.0.concat(axis, parts)
    }
}
