//! Streams composed of primitives, and the checks of stream arguments that all backends share.

use super::{Layer, snap_state};
use crate::{
    backend::{
        Ops, State,
        shape::{MatrixShape, zeros},
    },
    config::LayerSpec,
    error::{Error, Result},
};

/// A stream on the reference path: a stack of layers and the state of each.
#[derive(Clone, Debug)]
pub struct Stream<T> {
    layers: Vec<Layer<T>>,
    state: Vec<State<T>>,
    batch: usize,
}

impl<T> Stream<T> {
    /// The state of each layer.
    pub(super) fn state(&self) -> &[State<T>] {
        &self.state
    }
}

/// [`Backend::stream`](crate::Backend::stream) on the reference path.
pub fn stream<B: Ops>(b: &B, layers: &[Layer<B::Tensor>], batch: usize) -> Result<Stream<B::Tensor>> {
    let zeros = |cols| b.upload(MatrixShape::new(batch, cols), &zeros("stream", &[batch, cols])?);
    check_stack(layers.iter().map(|layer| layer.spec()))?;
    let state = layers.iter().map(|layer| {
        let spec = layer.spec();
        Ok(State { h: zeros(spec.state_size())?, c: zeros(spec.hidden_size)? })
    });
    Ok(Stream { state: state.collect::<Result<_>>()?, layers: layers.to_vec(), batch })
}

/// [`Backend::step`](crate::Backend::step) on the reference path.
pub async fn step<B: Ops>(b: &B, stream: &mut Stream<B::Tensor>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let (first_layer, last_layer) = (stream.layers[0].spec(), stream.layers[stream.layers.len() - 1].spec());
    check_step(stream.batch, first_layer, last_layer, x, y)?;
    let mut next_states = Vec::with_capacity(stream.layers.len());
    let mut x = b.upload(MatrixShape::new(stream.batch, x.len() / stream.batch), x)?;
    for (layer, state) in stream.layers.iter().zip(&stream.state) {
        let state = layer.step(b, layer.input_term(b, &b.snap(x)?)?, state)?;
        x = state.h.clone();
        next_states.push(state);
    }
    b.download(&x, y).await?;
    stream.state = next_states;
    Ok(())
}

/// [`Backend::set_stream_state`](crate::Backend::set_stream_state) on the reference path.
pub fn set_stream_state<B: Ops>(b: &B, stream: &mut Stream<B::Tensor>, state: &[State<B::Tensor>]) -> Result<()> {
    let specs: Vec<_> = stream.layers.iter().map(|layer| *layer.spec()).collect();
    check_state(&specs, stream.batch, state.iter().map(|s| State { h: b.shape(&s.h), c: b.shape(&s.c) }))?;
    stream.state = state.iter().map(|s| snap_state(b, s)).collect::<Result<_>>()?;
    Ok(())
}

/// Checks that layers can run as a stream: there is at least one, none is reverse, and each takes the output of the one
/// before it.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Config`] says which condition fails.
pub fn check_stack<'a>(specs: impl Iterator<Item = &'a LayerSpec>) -> Result<()> {
    let specs: Vec<_> = specs.collect();
    if specs.is_empty() {
        return Err(Error::shape("stream", "at least one layer", "none"));
    }
    if specs.iter().any(|spec| spec.reverse) {
        return Err(Error::config(
            "direction",
            "only forward layers can be streamed: a reverse layer starts at the end of the sequence",
        ));
    }
    match specs.windows(2).find(|pair| pair[0].state_size() != pair[1].input_size) {
        Some(pair) => Err(Error::shape("stream: layer input", pair[0].state_size(), pair[1].input_size)),
        None => Ok(()),
    }
}

/// Checks the arguments of a stream's step: `x` holds `batch` inputs of the first layer, and `y` has the length of
/// `batch` outputs of the last layer.
///
/// # Errors
/// [`Error::Shape`] if a length differs.
pub fn check_step(batch: usize, first_layer: &LayerSpec, last_layer: &LayerSpec, x: &[f32], y: &[f32]) -> Result<()> {
    let check_len = |op: &str, size: usize, len: usize| {
        if batch.checked_mul(size) == Some(len) {
            return Ok(());
        }
        let expected = format!("{} values ({batch} x {size})", batch.saturating_mul(size));
        Err(Error::shape(op, expected, format!("{len} values")))
    };
    check_len("step: x", first_layer.input_size, x.len())?;
    check_len("step: y", last_layer.state_size(), y.len())
}

/// Checks that `state` holds the shapes of one state for each layer of a stream.
///
/// # Errors
/// [`Error::Shape`] names the first layer whose state does not match.
pub fn check_state(
    specs: &[LayerSpec],
    batch: usize,
    state: impl ExactSizeIterator<Item = State<MatrixShape>>,
) -> Result<()> {
    if state.len() != specs.len() {
        return Err(Error::shape("stream state", format!("{} layers", specs.len()), state.len()));
    }
    for (k, (spec, got)) in specs.iter().zip(state).enumerate() {
        let expected =
            State { h: MatrixShape::new(batch, spec.state_size()), c: MatrixShape::new(batch, spec.hidden_size) };
        if got != expected {
            let describe = |s: &State<MatrixShape>| format!("h {}, c {}", s.h, s.c);
            return Err(Error::shape(format!("stream state of layer {k}"), describe(&expected), describe(&got)));
        }
    }
    Ok(())
}
