//! Fault injection: a backend with one deliberate error, to test that the conformance checks detect it.

use std::{future::Future, ops::Range};

use lstm_core::{
    Arithmetic, Backend, ConcatAxis, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LayerSpec,
    LayerWeights, LinearWeights, MatrixRef, MatrixShape, MaybeSend, Ops, QuantizedMatrix, Result, Sequence, State,
    arithmetic::dot,
    cell::Cell,
    quantized::{Format, OperandRange},
    reference,
};

/// A small error that a kernel could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No fault: the checks must pass.
    None,
    /// Matrix products sum all terms of a dot product in one chain instead of in blocks of 32.
    UnblockedSum,
    /// Matrix products sum each dot product in blocks of 16 instead of 32.
    SmallBlocks,
    /// `snap` does nothing: tiny values and negative zeros are kept.
    NoSnap,
    /// `mul_add` rounds after the multiplication and again after the addition, instead of once.
    UnfusedMulAdd,
    /// `tanh(x)` is computed as `2 sigmoid(2x) - 1`.
    TanhFromSigmoid,
    /// Sequence lengths are ignored: the padding is computed like valid steps.
    IgnoredLengths,
    /// The initial state is ignored: every sequence starts from zeros.
    IgnoredState,
    /// The clip bound on the gates is ignored.
    IgnoredClip,
    /// The backward pass sums dot products in blocks of 16 instead of 32.
    BackwardSmallBlocks,
    /// The backward pass does not snap: tiny values and negative zeros are kept.
    BackwardNoSnap,
    /// The derivatives of activations and the gradient of coupled gates are computed as a product and a difference that
    /// are rounded separately, instead of one fused operation.
    UnfusedDerivative,
    /// Clipped gates get a gradient as if they were not clipped.
    IgnoredClipBounds,
    /// The gradient with respect to the final state is treated as zero.
    IgnoredFinalStateGradient,
    /// The backward pass of a layer does not add its weight gradients to those of the time segments that were processed
    /// before.
    IgnoredAccumulation,
    /// Quantized hidden states have the scale of their largest magnitude instead of that of 1.
    OperandRange,
    /// Quantized products start at +0, and the bias is added last.
    QuantizedBiasLast,
    /// Quantized products are summed in blocks of 128 instead of 1024 or 512.
    QuantizedBlocks,
}

impl Fault {
    /// All faults, without [`Fault::None`].
    pub const ALL: [Fault; 17] = [
        Fault::UnblockedSum,
        Fault::SmallBlocks,
        Fault::NoSnap,
        Fault::UnfusedMulAdd,
        Fault::TanhFromSigmoid,
        Fault::IgnoredLengths,
        Fault::IgnoredState,
        Fault::IgnoredClip,
        Fault::BackwardSmallBlocks,
        Fault::BackwardNoSnap,
        Fault::UnfusedDerivative,
        Fault::IgnoredClipBounds,
        Fault::IgnoredFinalStateGradient,
        Fault::IgnoredAccumulation,
        Fault::OperandRange,
        Fault::QuantizedBiasLast,
        Fault::QuantizedBlocks,
    ];

    fn is_backward(self) -> bool {
        use Fault::*;
        matches!(
            self,
            BackwardSmallBlocks
                | BackwardNoSnap
                | UnfusedDerivative
                | IgnoredClipBounds
                | IgnoredFinalStateGradient
                | IgnoredAccumulation
        )
    }
}

/// Backend `B` with one fault in the path that runs whole sequences. Direct calls of its primitives are correct.
#[derive(Clone, Debug)]
pub struct FaultyBackend<B> {
    inner: B,
    fault: Fault,
    /// Whether the primitives of this instance contain the fault. This is true only for the instances that run the
    /// passes of the whole-sequence path.
    is_active: bool,
}

impl<B: Backend> FaultyBackend<B> {
    /// Creates a backend that computes as `inner` does, except for `fault`.
    pub fn new(inner: B, fault: Fault) -> Self {
        FaultyBackend { inner, fault, is_active: false }
    }

    /// Returns the backend for the forward or the backward pass. Its primitives contain the fault if the fault belongs to that
    /// pass.
    fn for_pass(&self, backward: bool) -> Self {
        FaultyBackend { is_active: self.fault.is_backward() == backward, ..self.clone() }
    }

    fn has_fault(&self, fault: Fault) -> bool {
        self.is_active && self.fault == fault
    }

    /// Returns a state of zeros if this backend has `fault`, and `state` otherwise.
    fn zero_state_if(&self, fault: Fault, state: &State<B::Tensor>) -> Result<State<B::Tensor>> {
        let zeros_like = |x: &B::Tensor| self.upload(self.shape(x), &vec![0.0; self.shape(x).len()]);
        match self.fault == fault {
            true => Ok(State { h: zeros_like(&state.h)?, c: zeros_like(&state.c)? }),
            false => Ok(state.clone()),
        }
    }

    fn download_all(&self, x: &B::Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.shape(x).len()];
        pollster::block_on(self.download(x, &mut out))?;
        Ok(out)
    }

    /// Computes `acc + a b` on the host, summing each dot product in blocks of `block_len` terms.
    fn product_in_blocks(
        &self,
        a: MatrixRef<'_, B::Tensor>,
        b: MatrixRef<'_, B::Tensor>,
        acc: Option<&B::Tensor>,
        block_len: usize,
    ) -> Result<B::Tensor> {
        let exact_product = self.inner.gemm(a, b, None)?;
        let (shape, k) = (self.shape(&exact_product), a.shape(self.shape(a.tensor)).cols);
        let (shape_a, shape_b) = (self.shape(a.tensor), self.shape(b.tensor));
        let (host_a, host_b) = (self.download_all(a.tensor)?, self.download_all(b.tensor)?);
        let element_at = |data: &[f32], shape: MatrixShape, transposed: bool, i, j| {
            data[if transposed { j * shape.cols + i } else { i * shape.cols + j }]
        };
        let product_element = |i: usize, j: usize| {
            let factors = |p| {
                (element_at(&host_a, shape_a, a.transposed, i, p), element_at(&host_b, shape_b, b.transposed, p, j))
            };
            let block_sum = |start: usize| {
                (start..k.min(start + block_len)).fold(0.0f32, |sum, p| factors(p).0.mul_add(factors(p).1, sum))
            };
            // `dot` adds up to 32 terms from left to right; here the terms are the sums of the blocks.
            let block_sums: Vec<f32> = (0..k).step_by(block_len).map(block_sum).collect();
            dot(block_sums.len(), |p| block_sums[p], |_| 1.0)
        };
        let product: Vec<f32> =
            (0..shape.len()).map(|index| product_element(index / shape.cols, index % shape.cols)).collect();
        let product = self.upload(shape, &product)?;
        match acc {
            Some(acc) => self.inner.mul_add(1.0, &product, None, Some(acc)),
            None => Ok(product),
        }
    }
}

impl<B: Backend> Ops for FaultyBackend<B> {
    type Tensor = B::Tensor;

    fn name(&self) -> &str {
        "faulty"
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
    fn download(&self, x: &B::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        self.inner.download(x, out)
    }
    fn snap(&self, x: B::Tensor) -> Result<B::Tensor> {
        if self.has_fault(Fault::NoSnap) || self.has_fault(Fault::BackwardNoSnap) { Ok(x) } else { self.inner.snap(x) }
    }
    fn gemm(
        &self,
        a: MatrixRef<'_, B::Tensor>,
        b: MatrixRef<'_, B::Tensor>,
        acc: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        match self.fault {
            Fault::UnblockedSum if self.is_active => self.product_in_blocks(a, b, acc, usize::MAX / 2),
            Fault::SmallBlocks | Fault::BackwardSmallBlocks if self.is_active => self.product_in_blocks(a, b, acc, 16),
            _ => self.inner.gemm(a, b, acc),
        }
    }
    fn gemm_quantized(
        &self,
        a: &B::Tensor,
        w: &QuantizedMatrix<B::Tensor>,
        range: OperandRange,
        acc: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        match self.fault {
            Fault::OperandRange if self.is_active => self.inner.gemm_quantized(a, w, OperandRange::Any, acc),
            Fault::QuantizedBiasLast if self.is_active => {
                let product = self.inner.gemm_quantized(a, w, range, None)?;
                self.inner.mul_add(1.0, &product, None, acc)
            }
            Fault::QuantizedBlocks if self.is_active => {
                let format = Format { block: 128, ..w.format };
                self.inner.gemm_quantized(a, &QuantizedMatrix { format, ..w.clone() }, range, acc)
            }
            _ => self.inner.gemm_quantized(a, w, range, acc),
        }
    }
    fn mul_add(&self, alpha: f32, a: &B::Tensor, b: Option<&B::Tensor>, c: Option<&B::Tensor>) -> Result<B::Tensor> {
        // Calls with `alpha = -1` and three operands compute derivatives, or the common gradient of coupled gates.
        let is_derivative = alpha == -1.0 && b.is_some() && self.has_fault(Fault::UnfusedDerivative);
        if (is_derivative || self.has_fault(Fault::UnfusedMulAdd)) && c.is_some() {
            let product = self.inner.mul_add(alpha, a, b, None)?;
            return self.inner.mul_add(1.0, &product, None, c);
        }
        self.inner.mul_add(alpha, a, b, c)
    }
    fn sigmoid(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.inner.sigmoid(x)
    }
    fn tanh(&self, x: B::Tensor) -> Result<B::Tensor> {
        if self.has_fault(Fault::TanhFromSigmoid) {
            let s = self.inner.sigmoid(self.inner.mul_add(2.0, &x, None, None)?)?;
            let cols = self.shape(&s).cols;
            let minus_ones = self.upload(MatrixShape::new(1, cols), &vec![-1.0; cols])?;
            return self.inner.mul_add(2.0, &s, None, Some(&minus_ones));
        }
        self.inner.tanh(x)
    }
    fn clip(&self, x: B::Tensor, bound: f32) -> Result<B::Tensor> {
        if self.has_fault(Fault::IgnoredClip) { Ok(x) } else { self.inner.clip(x, bound) }
    }
    fn select_between(&self, x: B::Tensor, by: &B::Tensor, low: &B::Tensor, high: &B::Tensor) -> Result<B::Tensor> {
        if self.has_fault(Fault::IgnoredClipBounds) { Ok(x) } else { self.inner.select_between(x, by, low, high) }
    }
    fn slice(&self, x: &B::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<B::Tensor> {
        self.inner.slice(x, rows, cols)
    }
    fn concat(&self, axis: ConcatAxis, parts: &[B::Tensor]) -> Result<B::Tensor> {
        self.inner.concat(axis, parts)
    }
}

impl<B: Backend> Backend for FaultyBackend<B> {
    type Layer = reference::Layer<B::Tensor>;
    type Plan = ();
    type Trace = reference::Trace<B::Tensor>;
    type Stream = reference::Stream<B::Tensor>;
    type Linear = LinearWeights<B::Tensor>;

    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer> {
        Cell::load(self, weights)
    }
    fn has_kernels(&self, _: &LayerSpec) -> bool {
        true
    }
    fn plan(&self, _: &Self::Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn path(&self, _: &Self::Layer) -> ExecutionPath {
        ExecutionPath::Fused(format!("{:?}", self.fault).into())
    }
    fn forward(&self, layer: &Self::Layer, _: &mut (), s: Sequence<'_, B::Tensor>) -> Result<LayerOutput<B::Tensor>> {
        let state = self.zero_state_if(Fault::IgnoredState, s.state)?;
        let lengths = s.lengths.filter(|_| self.fault != Fault::IgnoredLengths);
        reference::forward(&self.for_pass(false), layer, Sequence { state: &state, lengths, ..s })
    }
    fn forward_train(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        s: Sequence<'_, B::Tensor>,
    ) -> Result<(LayerOutput<B::Tensor>, Self::Trace)> {
        reference::forward_train(&self.for_pass(false), layer, s)
    }
    fn backward(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        trace: &Self::Trace,
        output_gradients: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        let state = self.zero_state_if(Fault::IgnoredFinalStateGradient, output_gradients.state)?;
        let accumulate = output_gradients.accumulate.filter(|_| self.fault != Fault::IgnoredAccumulation);
        reference::backward(
            &self.for_pass(true),
            layer,
            trace,
            LayerOutputGradients { state: &state, accumulate, ..output_gradients },
        )
    }
    fn stream(&self, layers: &[Self::Layer], batch: usize) -> Result<Self::Stream> {
        reference::stream(self, layers, batch)
    }
    fn step(&self, s: &mut Self::Stream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        reference::step(self, s, x, y)
    }
    fn step_some(
        &self,
        s: &mut Self::Stream,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        reference::step_some(self, s, sequences, x, y)
    }
    fn stream_state(&self, stream: &Self::Stream, sequences: Range<usize>) -> Result<Vec<State<B::Tensor>>> {
        reference::stream_state(self, stream, sequences)
    }
    fn set_stream_state(&self, stream: &mut Self::Stream, first: usize, state: &[State<B::Tensor>]) -> Result<()> {
        reference::set_stream_state(self, stream, first, state)
    }
    fn load_linear(&self, weights: LinearWeights<B::Tensor>) -> Result<Self::Linear> {
        Ok(weights)
    }
}
