//! The contract between an LSTM and a device.

use std::{borrow::Cow, fmt, future::Future, ops::Range};

use crate::{
    config::{Bias, CellKind, LayerSpec, Param},
    error::{Error, Result},
    shape::{ConcatAxis, MatrixRef, MatrixShape, checked_len},
    weights::LayerWeights,
};

/// The state of an LSTM, or anything else that comes as `h` and `c`: device matrices, host arrays.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// The output state.
    pub h: T,
    /// The cell state.
    pub c: T,
}

/// What a backend promises about its bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// The bits of [`arithmetic`](crate::arithmetic), by the device's own fused multiply-add.
    Exact,
    /// The same bits, by a slower emulation, for the reason given.
    Emulated(String),
    /// Other bits; what differs.
    Inexact(String),
}

impl Arithmetic {
    /// Whether results must equal those of every other exact backend.
    pub fn is_exact(&self) -> bool {
        !matches!(self, Arithmetic::Inexact(_))
    }
}

/// Which code runs a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutionPath {
    /// [`reference`](crate::reference), out of primitives.
    Reference,
    /// The backend's own whole-sequence kernel, by name.
    Fused(Cow<'static, str>),
}

impl fmt::Display for ExecutionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecutionPath::Reference => f.write_str("reference"),
            ExecutionPath::Fused(kernel) => write!(f, "fused: {kernel}"),
        }
    }
}

/// What [`Backend::forward`] runs over: a batch of sequences, time-major.
#[derive(Debug)]
pub struct Sequence<'a, T> {
    /// Inputs `[steps * batch, input]`; row `t * batch + b`.
    pub x: &'a T,
    /// Initial `h: [batch, state]` and `c: [batch, hidden]`.
    pub state: &'a State<T>,
    /// Steps in the longest sequence.
    pub steps: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Each sequence's own number of steps, in **descending** order; `None`: all of them have `steps`.
    pub lengths: Option<&'a [usize]>,
}

impl<T> Sequence<'_, T> {
    /// How many sequences have a step `t`; they are the first rows.
    pub fn active(&self, t: usize) -> usize {
        self.lengths.map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }

    /// Checks shapes against `spec`, and the lengths' number, order and size; every backend calls it first.
    pub fn check(&self, spec: &LayerSpec, shape: impl Fn(&T) -> MatrixShape) -> Result<()> {
        let rows = checked_len("forward", &[self.steps, self.batch])?;
        let expect = |op: &str, got, rows, cols| {
            let want = MatrixShape::new(rows, cols);
            if got == want { Ok(()) } else { Err(Error::shape(format!("forward: {op}"), want, got)) }
        };
        expect("x", shape(self.x), rows, spec.input_size)?;
        expect("state.h", shape(&self.state.h), self.batch, spec.state_size())?;
        expect("state.c", shape(&self.state.c), self.batch, spec.hidden_size)?;
        if let Some(lengths) = self.lengths
            && !(lengths.len() == self.batch
                && lengths.is_sorted_by(|a, b| a >= b)
                && lengths.iter().all(|&len| len <= self.steps))
        {
            let want = format!("{} descending lengths of at most {}", self.batch, self.steps);
            return Err(Error::shape("forward: lengths", want, format!("{lengths:?}")));
        }
        Ok(())
    }
}

/// What [`Backend::forward`] returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output<T, S = State<T>> {
    /// `h` after every step, `[steps * batch, state]`; +0 beyond a sequence's length.
    pub y: T,
    /// The state after each sequence's last step (in reverse: its first).
    pub state: S,
}

/// What [`Backend::forward_bidirectional`] returns: the outputs side by side, and each direction's final state.
pub type BidirectionalOutput<T> = Output<T, [State<T>; 2]>;

impl<T, S> Output<T, S> {
    /// Puts the two together.
    pub fn new(y: T, state: S) -> Self {
        Output { y, state }
    }
}

/// What [`Backend::backward`] starts from: the loss's gradient with respect to a layer's outputs.
#[derive(Debug)]
pub struct LayerOutputGradients<'a, T> {
    /// Of `y`, `[steps * batch, state]`; rows beyond a sequence's length are not read.
    pub y: &'a T,
    /// Of the final state.
    pub state: &'a State<T>,
    /// Weights' gradients of steps that were visited before, to which this pass adds.
    pub onto: Option<WeightGradients<T>>,
    /// Whether the gradient of the input is wanted.
    pub input: bool,
}

impl<T> LayerOutputGradients<'_, T> {
    /// Checks shapes against `spec`; every backend calls it first.
    pub fn check(&self, spec: &LayerSpec, steps: usize, batch: usize, shape: impl Fn(&T) -> MatrixShape) -> Result<()> {
        let expect = |op: &str, tensor: &T, want: MatrixShape| {
            let got = shape(tensor);
            if got == want { Ok(()) } else { Err(Error::shape(format!("backward: {op}"), want, got)) }
        };
        expect("y", self.y, MatrixShape::new(checked_len("backward", &[steps, batch])?, spec.state_size()))?;
        expect("state.h", &self.state.h, MatrixShape::new(batch, spec.state_size()))?;
        expect("state.c", &self.state.c, MatrixShape::new(batch, spec.hidden_size))?;
        let Some(onto) = &self.onto else { return Ok(()) };
        let wanted = |spec: &LayerSpec| {
            (spec.bias != Bias::None, spec.proj_size.is_some(), spec.cell == CellKind::PeepholeDiagonal)
        };
        let there = (onto.bias.is_some(), onto.projection.is_some(), onto.peephole.is_some());
        if there != wanted(spec) {
            let want = format!("bias, projection, peephole as {:?}", wanted(spec));
            return Err(Error::shape("backward: onto", want, format!("{there:?}")));
        }
        for (param, shape) in spec.params() {
            expect(&format!("onto.{param:?}"), onto.get(param).expect("looked at above"), matrix(&shape))?;
        }
        Ok(())
    }
}

/// A parameter's shape on a device: a vector is one row.
fn matrix(shape: &[usize]) -> MatrixShape {
    match *shape {
        [rows, cols] => MatrixShape::new(rows, cols),
        _ => MatrixShape::new(1, shape.iter().product()),
    }
}

/// The gradients of a layer's weights, in the layout of [`Param`]; vectors are one row.
#[derive(Clone, Debug)]
pub struct WeightGradients<T> {
    /// Of the input weights, `[4 * hidden, input]`.
    pub input: T,
    /// Of the recurrent weights, `[4 * hidden, state]`.
    pub recurrent: T,
    /// Of the bias; where there are two, each has it.
    pub bias: Option<T>,
    /// Of the projection, `[proj, hidden]`.
    pub projection: Option<T>,
    /// Of the diagonal peepholes of i, f and o.
    pub peephole: Option<[T; 3]>,
}

impl<T> WeightGradients<T> {
    /// One gradient for each of a layer's parameters, in the order of [`LayerSpec::params`].
    pub(crate) fn into_params(self, spec: &LayerSpec) -> Vec<T>
    where
        T: Clone,
    {
        let WeightGradients { input, recurrent, bias, projection, peephole } = self;
        let first = bias.clone().filter(|_| spec.bias == Bias::Two);
        let peephole = peephole.into_iter().flatten();
        [input, recurrent].into_iter().chain(first).chain(bias).chain(projection).chain(peephole).collect()
    }

    /// The gradient of one parameter, if the layer has it.
    pub fn get(&self, param: Param) -> Option<&T> {
        let peephole = |k: usize| self.peephole.as_ref().map(|p| &p[k]);
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

/// What [`Backend::backward`] returns.
#[derive(Clone, Debug)]
pub struct LayerGradients<T> {
    /// Of the input, `[steps * batch, input]`, +0 beyond a sequence's length; if it was asked for.
    pub x: Option<T>,
    /// Of the initial state.
    pub state: State<T>,
    /// Of the weights.
    pub weights: WeightGradients<T>,
}

/// A device that computes `f32` matrices, and LSTM layers out of them or by kernels of its own.
///
/// A value is a handle: cloning it is cheap and shares the device. Operations only *enqueue* work;
/// [`download`](Self::download) and [`step`](Self::step) are the only places that wait. An argument taken by value may be
/// overwritten in place. Tensors are never empty. Every operation gives the bits that
/// [`arithmetic`](crate::arithmetic) specifies, unless [`arithmetic`](Self::arithmetic) says otherwise.
///
/// No operation panics: shapes are checked with [`shape`](crate::shape)'s functions, so that all backends refuse alike,
/// and a device's refusal is an [`Error::Device`].
///
/// A backend without kernels of its own sets `Layer`, `Plan` and `Stream` to those of [`reference`](crate::reference) and
/// forwards to its functions, as [`Reference`](crate::Reference) does.
pub trait Backend: Clone {
    /// A row-major matrix in device memory. Cloning shares the memory.
    type Tensor: Clone;
    /// One layer-direction's weights, snapped and packed for the device. Cloning shares them.
    type Layer: Clone;
    /// What one call of [`forward`](Self::forward) or [`backward`](Self::backward) needs besides: scratch memory, bind
    /// groups, a graph. One call at a time uses it; the caller keeps it for the next, also with a layer that
    /// [`reload`](Self::reload) gave other weights.
    type Plan;
    /// What a forward pass keeps for the backward pass: the input, the states and the gates of every step.
    type Trace;
    /// A stack of layers with its running state, for one step at a time.
    type Stream;

    /// A short name for reports, such as `cpu`.
    fn name(&self) -> &str;

    /// What this instance promises about its bits.
    fn arithmetic(&self) -> Arithmetic;

    /// The shape of a tensor.
    fn shape(&self, x: &Self::Tensor) -> MatrixShape;

    /// Copies row-major `data` to the device, bits unchanged.
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Self::Tensor>;

    /// Waits for `x` and copies it to `out`, bits unchanged.
    fn download(&self, x: &Self::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>>;

    /// [`upload`](Self::upload) of what nobody else needs: where the device is the host, without a copy.
    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<Self::Tensor> {
        self.upload(shape, &data)
    }

    /// [`download`](Self::download) of what nobody else needs, likewise.
    fn download_vec(&self, x: Self::Tensor) -> impl Future<Output = Result<Vec<f32>>> {
        async move {
            let mut out = vec![0.0; self.shape(&x).len()];
            self.download(&x, &mut out).await?;
            Ok(out)
        }
    }

    /// [`snap`](crate::arithmetic::snap) of each element.
    fn snap(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// `acc + a . b`, or `a . b`; sums as [`dot`](crate::arithmetic::dot), then one addition. `acc` has the result's shape,
    /// or one row that is added to every row.
    fn gemm(
        &self,
        a: MatrixRef<'_, Self::Tensor>,
        b: MatrixRef<'_, Self::Tensor>,
        acc: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// `fma(alpha * a, b, c)` of each element; without `b`, `b = 1`; without `c`, the product `(alpha * a) * b`.
    /// `b` and `c` have the shape of `a`, or one row that stands for every row.
    fn mul_add(
        &self,
        alpha: f32,
        a: &Self::Tensor,
        b: Option<&Self::Tensor>,
        c: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// [`sigmoid`](crate::arithmetic::sigmoid) of each element.
    fn sigmoid(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// [`tanh`](crate::arithmetic::tanh) of each element.
    fn tanh(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// [`clip`](crate::arithmetic::clip) of each element to `[-bound, bound]`; the bound is positive and finite.
    fn clip(&self, x: Self::Tensor, bound: f32) -> Result<Self::Tensor>;

    /// `x` where `low < by < high`, and where one of these is NaN; else +0. `by` has the shape of `x`; `low` and `high` are
    /// one row that stands for every row.
    fn within(
        &self,
        x: Self::Tensor,
        by: &Self::Tensor,
        low: &Self::Tensor,
        high: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// A copy of some rows and columns; neither range may be empty.
    fn slice(&self, x: &Self::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Self::Tensor>;

    /// A copy of `parts` joined along `axis`.
    fn concat(&self, axis: ConcatAxis, parts: &[Self::Tensor]) -> Result<Self::Tensor>;

    /// Brings a layer's weights to the device: the biases are added, then all of it is snapped and packed.
    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer>;

    /// Replaces a layer's weights by others of the same spec, after a training step. Clones, such
    /// as those of running streams, keep the old ones.
    fn reload(&self, layer: &mut Self::Layer, weights: &LayerWeights) -> Result<()> {
        *layer = self.load(weights)?;
        Ok(())
    }

    /// Makes what [`forward`](Self::forward) needs for `batch` sequences of at most `steps` steps.
    fn plan(&self, layer: &Self::Layer, batch: usize, steps: usize) -> Result<Self::Plan>;

    /// Which code [`forward`](Self::forward) runs for `layer`.
    fn path(&self, layer: &Self::Layer) -> ExecutionPath;

    /// Runs a layer over a batch of sequences; snaps its inputs and initial state first. The definition is
    /// [`reference::forward`](crate::reference::forward).
    fn forward(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        sequence: Sequence<'_, Self::Tensor>,
    ) -> Result<Output<Self::Tensor>>;

    /// [`forward`](Self::forward) of both directions of a layer over the same sequences: their outputs side by side, the
    /// first layer's first, and their final states. `sequence` has the first one's initial state, `second` is the other's. Any two
    /// layers of the same input size will do; errors are those of `forward`.
    fn forward_bidirectional(
        &self,
        layers: [&Self::Layer; 2],
        plans: [&mut Self::Plan; 2],
        sequence: Sequence<'_, Self::Tensor>,
        second: &State<Self::Tensor>,
    ) -> Result<BidirectionalOutput<Self::Tensor>> {
        let Sequence { x, steps, batch, lengths, .. } = sequence;
        let [plan, other] = plans;
        let a = self.forward(layers[0], plan, sequence)?;
        let b = self.forward(layers[1], other, Sequence { x, state: second, steps, batch, lengths })?;
        Ok(Output { y: self.concat(ConcatAxis::Cols, &[a.y, b.y])?, state: [a.state, b.state] })
    }

    /// [`forward`](Self::forward), the same bits, that keeps what [`backward`](Self::backward) needs. Inputs beyond a
    /// sequence's length must be finite: the weights' gradient takes them times zero.
    fn forward_train(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        sequence: Sequence<'_, Self::Tensor>,
    ) -> Result<(Output<Self::Tensor>, Self::Trace)>;

    /// The gradients of a layer from those of its outputs, which are snapped first. The layer must hold the weights with
    /// which it made the trace: that its spec is the same is checked, the weights are not. The definition is
    /// [`reference::backward`](crate::reference::backward).
    fn backward(
        &self,
        layer: &Self::Layer,
        plan: &mut Self::Plan,
        trace: &Self::Trace,
        upstream: LayerOutputGradients<'_, Self::Tensor>,
    ) -> Result<LayerGradients<Self::Tensor>>;

    /// Makes a stream of a stack of forward layers, with zero state.
    fn stream(&self, layers: &[Self::Layer], batch: usize) -> Result<Self::Stream>;

    /// One step of the whole stack: reads `x: [batch, input]`, waits, writes the last layer's `h` to `y: [batch, state]`.
    /// Same bits as [`forward`](Self::forward) over a sequence of one step.
    fn step(&self, stream: &mut Self::Stream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>>;

    /// A copy of each layer's state.
    fn stream_state(&self, stream: &Self::Stream) -> Result<Vec<State<Self::Tensor>>>;

    /// Replaces each layer's state, snapped.
    fn set_stream_state(&self, stream: &mut Self::Stream, state: &[State<Self::Tensor>]) -> Result<()>;
}
