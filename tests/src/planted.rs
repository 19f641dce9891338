//! A backend with a planted error, to see that the checks find it.

use std::{future::Future, ops::Range};

use lstm_core::{
    Arithmetic, Backend, ConcatAxis, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LayerWeights,
    MatrixRef, MatrixShape, Ops, Result, Sequence, State, arithmetic::dot, cell::Cell, reference,
};

/// A slight error of the kind that a kernel might have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: the checks must pass.
    None,
    /// Products sum in one chain instead of blocks.
    OneChain,
    /// Products sum in blocks of 16.
    SmallBlocks,
    /// Tiny values and negative zeros are let through.
    NoSnap,
    /// A multiplication and an addition, each rounded, instead of one fused operation.
    NotFused,
    /// tanh by way of sigmoid, `2 sigmoid(2x) - 1`.
    OtherTanh,
    /// Steps beyond a sequence's length are computed like others.
    IgnoredLengths,
    /// Every sequence starts from zeros.
    IgnoredState,
    /// A bound on the gates is forgotten.
    IgnoredClip,
    /// In the backward pass, products sum in blocks of 16.
    BackwardSmallBlocks,
    /// In the backward pass, tiny values are let through.
    BackwardNoSnap,
    /// Slopes, and the gradient of coupled gates, are a product and a difference, each rounded.
    SlopeNotFused,
    /// Clipped gates pass their gradient on.
    IgnoredBounds,
    /// The gradient of the final state is taken for zero.
    IgnoredFinalState,
    /// The weights' gradients of later segments are forgotten.
    IgnoredOnto,
}

impl Fault {
    /// All that are errors.
    pub const ALL: [Fault; 14] = [
        Fault::OneChain,
        Fault::SmallBlocks,
        Fault::NoSnap,
        Fault::NotFused,
        Fault::OtherTanh,
        Fault::IgnoredLengths,
        Fault::IgnoredState,
        Fault::IgnoredClip,
        Fault::BackwardSmallBlocks,
        Fault::BackwardNoSnap,
        Fault::SlopeNotFused,
        Fault::IgnoredBounds,
        Fault::IgnoredFinalState,
        Fault::IgnoredOnto,
    ];

    fn is_backward(self) -> bool {
        use Fault::*;
        matches!(
            self,
            BackwardSmallBlocks | BackwardNoSnap | SlopeNotFused | IgnoredBounds | IgnoredFinalState | IgnoredOnto
        )
    }
}

/// `B` with right primitives and a whole-sequence path that is wrong in one thing.
#[derive(Clone, Debug)]
pub struct Planted<B> {
    inner: B,
    fault: Fault,
    /// Whether the primitives are wrong too; so only inside of the whole-sequence path.
    active: bool,
}

impl<B: Backend> Planted<B> {
    /// Plants `fault`.
    pub fn new(inner: B, fault: Fault) -> Self {
        Planted { inner, fault, active: false }
    }

    /// As it computes in the forward or the backward pass.
    fn in_pass(&self, backward: bool) -> Self {
        Planted { active: self.fault.is_backward() == backward, ..self.clone() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.active && self.fault == fault
    }

    /// The state, or zeros where `fault` was planted.
    fn unless(&self, fault: Fault, state: &State<B::Tensor>) -> Result<State<B::Tensor>> {
        let zeros = |x: &B::Tensor| self.upload(self.shape(x), &vec![0.0; self.shape(x).len()]);
        match self.fault == fault {
            true => Ok(State { h: zeros(&state.h)?, c: zeros(&state.c)? }),
            false => Ok(state.clone()),
        }
    }

    fn host(&self, x: &B::Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.shape(x).len()];
        pollster::block_on(self.download(x, &mut out))?;
        Ok(out)
    }

    /// `acc + a . b` on the host with blocks of another size; whole blocks of `dot` are chains.
    fn product(
        &self,
        a: MatrixRef<'_, B::Tensor>,
        b: MatrixRef<'_, B::Tensor>,
        acc: Option<&B::Tensor>,
        block: usize,
    ) -> Result<B::Tensor> {
        let exact = self.inner.gemm(a, b, None)?;
        let (shape, k) = (self.shape(&exact), a.shape(self.shape(a.tensor)).cols);
        let (own_a, own_b) = (self.shape(a.tensor), self.shape(b.tensor));
        let (host_a, host_b) = (self.host(a.tensor)?, self.host(b.tensor)?);
        let at = |data: &[f32], own: MatrixShape, turned: bool, i, j| {
            data[if turned { j * own.cols + i } else { i * own.cols + j }]
        };
        let element = |i: usize, j: usize| {
            let term = |p| (at(&host_a, own_a, a.transposed, i, p), at(&host_b, own_b, b.transposed, p, j));
            let chain =
                |start: usize| (start..k.min(start + block)).fold(0.0f32, |sum, p| term(p).0.mul_add(term(p).1, sum));
            // Sums of no more than 32 blocks are added from the left, as by `dot`.
            let sums: Vec<f32> = (0..k).step_by(block).map(chain).collect();
            dot(sums.len(), |p| sums[p], |_| 1.0)
        };
        let product: Vec<f32> = (0..shape.len()).map(|at| element(at / shape.cols, at % shape.cols)).collect();
        let product = self.upload(shape, &product)?;
        match acc {
            Some(acc) => self.inner.mul_add(1.0, &product, None, Some(acc)),
            None => Ok(product),
        }
    }
}

impl<B: Backend> Ops for Planted<B> {
    type Tensor = B::Tensor;

    fn name(&self) -> &str {
        "planted"
    }
    fn arithmetic(&self) -> Arithmetic {
        self.inner.arithmetic()
    }
    fn shape(&self, x: &B::Tensor) -> MatrixShape {
        self.inner.shape(x)
    }
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<B::Tensor> {
        self.inner.upload(shape, data)
    }
    fn download(&self, x: &B::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> {
        self.inner.download(x, out)
    }
    fn snap(&self, x: B::Tensor) -> Result<B::Tensor> {
        if self.has(Fault::NoSnap) || self.has(Fault::BackwardNoSnap) { Ok(x) } else { self.inner.snap(x) }
    }
    fn gemm(
        &self,
        a: MatrixRef<'_, B::Tensor>,
        b: MatrixRef<'_, B::Tensor>,
        acc: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        match self.fault {
            Fault::OneChain if self.active => self.product(a, b, acc, usize::MAX / 2),
            Fault::SmallBlocks | Fault::BackwardSmallBlocks if self.active => self.product(a, b, acc, 16),
            _ => self.inner.gemm(a, b, acc),
        }
    }
    fn mul_add(&self, alpha: f32, a: &B::Tensor, b: Option<&B::Tensor>, c: Option<&B::Tensor>) -> Result<B::Tensor> {
        // Slopes have this factor on three operands, and where gates are coupled their common gradient.
        let slope = alpha == -1.0 && b.is_some() && self.has(Fault::SlopeNotFused);
        if (slope || self.has(Fault::NotFused)) && c.is_some() {
            let product = self.inner.mul_add(alpha, a, b, None)?;
            return self.inner.mul_add(1.0, &product, None, c);
        }
        self.inner.mul_add(alpha, a, b, c)
    }
    fn sigmoid(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.inner.sigmoid(x)
    }
    fn tanh(&self, x: B::Tensor) -> Result<B::Tensor> {
        if self.has(Fault::OtherTanh) {
            let s = self.inner.sigmoid(self.inner.mul_add(2.0, &x, None, None)?)?;
            let cols = self.shape(&s).cols;
            let ones = self.upload(MatrixShape::new(1, cols), &vec![-1.0; cols])?;
            return self.inner.mul_add(2.0, &s, None, Some(&ones));
        }
        self.inner.tanh(x)
    }
    fn clip(&self, x: B::Tensor, bound: f32) -> Result<B::Tensor> {
        if self.has(Fault::IgnoredClip) { Ok(x) } else { self.inner.clip(x, bound) }
    }
    fn select_between(&self, x: B::Tensor, by: &B::Tensor, low: &B::Tensor, high: &B::Tensor) -> Result<B::Tensor> {
        if self.has(Fault::IgnoredBounds) { Ok(x) } else { self.inner.select_between(x, by, low, high) }
    }
    fn slice(&self, x: &B::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<B::Tensor> {
        self.inner.slice(x, rows, cols)
    }
    fn concat(&self, axis: ConcatAxis, parts: &[B::Tensor]) -> Result<B::Tensor> {
        self.inner.concat(axis, parts)
    }
}

impl<B: Backend> Backend for Planted<B> {
    type Layer = reference::Layer<B::Tensor>;
    type Plan = ();
    type Trace = reference::Trace<B::Tensor>;
    type Stream = reference::Stream<B::Tensor>;

    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer> {
        Cell::load(self, weights)
    }
    fn plan(&self, _: &Self::Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn path(&self, _: &Self::Layer) -> ExecutionPath {
        ExecutionPath::Fused(format!("{:?}", self.fault).into())
    }
    fn forward(&self, layer: &Self::Layer, _: &mut (), s: Sequence<'_, B::Tensor>) -> Result<LayerOutput<B::Tensor>> {
        let state = self.unless(Fault::IgnoredState, s.state)?;
        let lengths = s.lengths.filter(|_| self.fault != Fault::IgnoredLengths);
        reference::forward(&self.in_pass(false), layer, Sequence { state: &state, lengths, ..s })
    }
    fn forward_train(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        s: Sequence<'_, B::Tensor>,
    ) -> Result<(LayerOutput<B::Tensor>, Self::Trace)> {
        reference::forward_train(&self.in_pass(false), layer, s)
    }
    fn backward(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        trace: &Self::Trace,
        upstream: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        let state = self.unless(Fault::IgnoredFinalState, upstream.state)?;
        let onto = upstream.accumulate.filter(|_| self.fault != Fault::IgnoredOnto);
        reference::backward(
            &self.in_pass(true),
            layer,
            trace,
            LayerOutputGradients { state: &state, accumulate: onto, ..upstream },
        )
    }
    fn stream(&self, layers: &[Self::Layer], batch: usize) -> Result<Self::Stream> {
        reference::stream(self, layers, batch)
    }
    fn step(&self, s: &mut Self::Stream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> {
        reference::step(self, s, x, y)
    }
    fn stream_state(&self, stream: &Self::Stream) -> Result<Vec<State<B::Tensor>>> {
        lstm_core::Reference(self.clone()).stream_state(stream)
    }
    fn set_stream_state(&self, stream: &mut Self::Stream, state: &[State<B::Tensor>]) -> Result<()> {
        reference::set_stream_state(self, stream, state)
    }
}
