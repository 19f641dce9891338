//! A whole sequence, forward and backward, and a stream out of primitives: the definition that every fused kernel is
//! tested against.

mod backward;

pub use backward::backward;

use std::{future::Future, ops::Range};

use crate::{
    backend::{Arithmetic, Backend, ExecutionPath, LayerGradients, LayerOutputGradients, Output, Sequence, State},
    cell::{Cell, Gates},
    config::LayerSpec,
    error::{Error, Result},
    shape::{ConcatAxis, MatrixRef, MatrixShape, zeros},
    weights::LayerWeights,
};

/// A layer for the reference path.
pub type Layer<T> = Cell<T>;

/// A stream for the reference path: the layers and the state of each.
#[derive(Clone, Debug)]
pub struct Stream<T> {
    layers: Vec<Layer<T>>,
    state: Vec<State<T>>,
    batch: usize,
}

/// What a forward pass on the reference path keeps.
#[derive(Clone, Debug)]
pub struct Trace<T> {
    /// The layer's.
    spec: LayerSpec,
    /// Snapped, `[steps * batch, input]`.
    x: T,
    /// The state around each step, `[batch, state]` and `[batch, hidden]`, in the sequence's order whichever way it is
    /// walked: a forward layer's step t leads from place t to t + 1, a reverse layer's from t + 1 to t. Sequences that
    /// have no such step keep the state they had.
    states: Vec<State<T>>,
    /// Of each step, `[active, hidden]` each; none where no sequence has the step.
    gates: Vec<Option<Gates<T>>>,
    batch: usize,
}

/// [`Backend::forward`] out of primitives.
pub fn forward<B: Backend>(
    b: &B,
    layer: &Layer<B::Tensor>,
    sequence: Sequence<'_, B::Tensor>,
) -> Result<Output<B::Tensor>> {
    walk(b, layer, sequence, |_, _| ()).map(|(output, _)| output)
}

/// [`Backend::forward_train`] out of primitives.
pub fn forward_train<T: Clone, B: Backend<Tensor = T>>(
    b: &B,
    layer: &Layer<T>,
    sequence: Sequence<'_, T>,
) -> Result<(Output<T>, Trace<T>)> {
    let batch = sequence.batch;
    let (mut states, mut gates) = (Vec::new(), Vec::new());
    let keep = |state: &State<T>, step: Option<Option<Gates<T>>>| {
        states.push(state.clone());
        gates.extend(step);
    };
    let (output, x) = walk(b, layer, sequence, keep)?;
    if layer.spec().reverse {
        states.reverse();
        gates.reverse();
    }
    Ok((output, Trace { spec: *layer.spec(), x, states, gates, batch }))
}

/// Walks a sequence and shows `keep` the initial state, then each step's gates and the state after it; also returns the
/// snapped input.
fn walk<B: Backend>(
    b: &B,
    layer: &Layer<B::Tensor>,
    sequence: Sequence<'_, B::Tensor>,
    mut keep: impl FnMut(&State<B::Tensor>, Option<Option<Gates<B::Tensor>>>),
) -> Result<(Output<B::Tensor>, B::Tensor)> {
    let spec = layer.spec();
    sequence.check(spec, |t| b.shape(t))?;
    let (steps, batch) = (sequence.steps, sequence.batch);
    let rows = |t: &B::Tensor, rows: Range<usize>| b.slice(t, rows, 0..b.shape(t).cols);
    let below = |top: B::Tensor, rest: B::Tensor| b.concat(ConcatAxis::Rows, &[top, rest]);

    let x = b.snap(sequence.x.clone())?;
    let input = layer.input(b, &x)?;
    let mut state = snap_state(b, sequence.state)?;
    let blank = MatrixShape::new(batch, spec.state_size());
    let blank = b.upload(blank, &zeros("forward", &[blank.rows, blank.cols])?)?;
    let mut y = vec![blank.clone(); steps];
    keep(&state, None);
    for k in 0..steps {
        let t = if spec.reverse { steps - 1 - k } else { k };
        let gates = match sequence.active(t) {
            0 => None,
            n if n == batch => {
                let gates;
                (state, gates) = layer.step_with_gates(b, input.rows(b, t * batch..(t + 1) * batch)?, &state)?;
                y[t] = state.h.clone();
                Some(gates)
            }
            // Lengths descend: the sequences that have this step are the first n rows.
            n => {
                let now = State { h: rows(&state.h, 0..n)?, c: rows(&state.c, 0..n)? };
                let (next, gates) = layer.step_with_gates(b, input.rows(b, t * batch..t * batch + n)?, &now)?;
                y[t] = below(next.h.clone(), rows(&blank, n..batch)?)?;
                state.h = below(next.h, rows(&state.h, n..batch)?)?;
                state.c = below(next.c, rows(&state.c, n..batch)?)?;
                Some(gates)
            }
        };
        keep(&state, Some(gates));
    }
    Ok((Output::new(b.concat(ConcatAxis::Rows, &y)?, state), x))
}

/// [`Backend::stream`] for the reference path.
pub fn stream<B: Backend>(b: &B, layers: &[Layer<B::Tensor>], batch: usize) -> Result<Stream<B::Tensor>> {
    let zeros = |cols| b.upload(MatrixShape::new(batch, cols), &zeros("stream", &[batch, cols])?);
    check_stack(layers.iter().map(|layer| layer.spec()))?;
    let state = layers.iter().map(|layer| {
        let spec = layer.spec();
        Ok(State { h: zeros(spec.state_size())?, c: zeros(spec.hidden_size)? })
    });
    Ok(Stream { state: state.collect::<Result<_>>()?, layers: layers.to_vec(), batch })
}

/// [`Backend::step`] out of primitives.
pub async fn step<B: Backend>(b: &B, stream: &mut Stream<B::Tensor>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let (first, last) = (stream.layers[0].spec(), stream.layers[stream.layers.len() - 1].spec());
    check_step(stream.batch, first, last, x, y)?;
    let mut next = Vec::with_capacity(stream.layers.len());
    let mut x = b.upload(MatrixShape::new(stream.batch, x.len() / stream.batch), x)?;
    for (layer, state) in stream.layers.iter().zip(&stream.state) {
        let state = layer.step(b, layer.input(b, &b.snap(x)?)?, state)?;
        x = state.h.clone();
        next.push(state);
    }
    b.download(&x, y).await?;
    stream.state = next;
    Ok(())
}

/// [`Backend::set_stream_state`] for the reference path.
pub fn set_stream_state<B: Backend>(b: &B, stream: &mut Stream<B::Tensor>, state: &[State<B::Tensor>]) -> Result<()> {
    let specs: Vec<_> = stream.layers.iter().map(|layer| *layer.spec()).collect();
    check_state(&specs, stream.batch, state.iter().map(|s| State { h: b.shape(&s.h), c: b.shape(&s.c) }))?;
    stream.state = state.iter().map(|s| snap_state(b, s)).collect::<Result<_>>()?;
    Ok(())
}

fn snap_state<B: Backend>(b: &B, state: &State<B::Tensor>) -> Result<State<B::Tensor>> {
    Ok(State { h: b.snap(state.h.clone())?, c: b.snap(state.c.clone())? })
}

/// Checks that layers can be stepped one on top of another: at least one, all forward, sizes that fit.
pub fn check_stack<'a>(specs: impl Iterator<Item = &'a LayerSpec>) -> Result<()> {
    let specs: Vec<_> = specs.collect();
    if specs.is_empty() {
        return Err(Error::shape("stream", "at least one layer", "none"));
    }
    if specs.iter().any(|spec| spec.reverse) {
        return Err(Error::config(
            "direction",
            "a stream has no end to start from: only forward layers can be streamed",
        ));
    }
    match specs.windows(2).find(|pair| pair[0].state_size() != pair[1].input_size) {
        Some(pair) => Err(Error::shape("stream: layer input", pair[0].state_size(), pair[1].input_size)),
        None => Ok(()),
    }
}

/// Checks a stream's step: `x` holds `batch` inputs of the first layer, `y` has room for as many outputs of the last.
pub fn check_step(batch: usize, first: &LayerSpec, last: &LayerSpec, x: &[f32], y: &[f32]) -> Result<()> {
    let expect = |op: &str, size: usize, len: usize| {
        if batch.checked_mul(size) == Some(len) {
            return Ok(());
        }
        let want = format!("{} values ({batch} x {size})", batch.saturating_mul(size));
        Err(Error::shape(op, want, format!("{len} values")))
    };
    expect("step: x", first.input_size, x.len())?;
    expect("step: y", last.state_size(), y.len())
}

/// Checks the shapes of one state per layer.
pub fn check_state(
    specs: &[LayerSpec],
    batch: usize,
    state: impl ExactSizeIterator<Item = State<MatrixShape>>,
) -> Result<()> {
    if state.len() != specs.len() {
        return Err(Error::shape("stream state", format!("{} layers", specs.len()), state.len()));
    }
    for (k, (spec, got)) in specs.iter().zip(state).enumerate() {
        let want =
            State { h: MatrixShape::new(batch, spec.state_size()), c: MatrixShape::new(batch, spec.hidden_size) };
        if got != want {
            let show = |s: &State<MatrixShape>| format!("h {}, c {}", s.h, s.c);
            return Err(Error::shape(format!("stream state of layer {k}"), show(&want), show(&got)));
        }
    }
    Ok(())
}

/// A backend that takes the reference path on `B`'s primitives, whatever kernels `B` has.
#[derive(Clone, Debug)]
pub struct Reference<B>(pub B);

impl<B: Backend> Backend for Reference<B> {
    type Tensor = B::Tensor;
    type Layer = Layer<B::Tensor>;
    type Plan = ();
    type Trace = Trace<B::Tensor>;
    type Stream = Stream<B::Tensor>;

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
    fn download(&self, x: &B::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> {
        self.0.download(x, out)
    }
    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<B::Tensor> {
        self.0.upload_vec(shape, data)
    }
    fn download_vec(&self, x: B::Tensor) -> impl Future<Output = Result<Vec<f32>>> {
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
    fn within(&self, x: B::Tensor, by: &B::Tensor, low: &B::Tensor, high: &B::Tensor) -> Result<B::Tensor> {
        self.0.within(x, by, low, high)
    }
    fn slice(&self, x: &B::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<B::Tensor> {
        self.0.slice(x, rows, cols)
    }
    fn concat(&self, axis: ConcatAxis, parts: &[B::Tensor]) -> Result<B::Tensor> {
        self.0.concat(axis, parts)
    }
    fn load(&self, weights: &LayerWeights) -> Result<Self::Layer> {
        Cell::load(self, weights)
    }
    fn plan(&self, _: &Self::Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn path(&self, _: &Self::Layer) -> ExecutionPath {
        ExecutionPath::Reference
    }
    fn forward(&self, layer: &Self::Layer, _: &mut (), s: Sequence<'_, B::Tensor>) -> Result<Output<B::Tensor>> {
        forward(self, layer, s)
    }
    fn forward_train(
        &self,
        layer: &Self::Layer,
        _: &mut (),
        s: Sequence<'_, B::Tensor>,
    ) -> Result<(Output<B::Tensor>, Self::Trace)> {
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
    fn step(&self, s: &mut Self::Stream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> {
        step(self, s, x, y)
    }
    fn stream_state(&self, stream: &Self::Stream) -> Result<Vec<State<B::Tensor>>> {
        Ok(stream.state.clone())
    }
    fn set_stream_state(&self, stream: &mut Self::Stream, state: &[State<B::Tensor>]) -> Result<()> {
        set_stream_state(self, stream, state)
    }
}
