//! Streams computed by the primitive operations of [`Ops`], and the checks of stream arguments that all backends share.

use std::ops::Range;

use super::{Layer, snap_state};
use crate::{
    backend::{
        Ops, State,
        shape::{ConcatAxis, MatrixShape, zeros},
    },
    config::LayerSpec,
    error::{Error, Result},
    memory,
};

/// A stream of the reference path: a stack of layers and the current state of each.
#[derive(Clone, Debug)]
pub struct Stream<T> {
    layers: Vec<Layer<T>>,
    state: Vec<State<T>>,
    batch: usize,
}

/// Implements [`Backend::stream`](crate::Backend::stream) with the primitive operations of [`Ops`].
pub fn stream<B: Ops>(b: &B, layers: &[Layer<B::Tensor>], batch: usize) -> Result<Stream<B::Tensor>> {
    let zeros = |cols| b.upload(MatrixShape::new(batch, cols), &zeros("stream", &[batch, cols])?);
    check_stack(layers.iter().map(|layer| layer.spec()))?;
    let state = layers.iter().map(|layer| {
        let spec = layer.spec();
        Ok(State { h: zeros(spec.state_size())?, c: zeros(spec.hidden_size)? })
    });
    Ok(Stream { state: state.collect::<Result<_>>()?, layers: layers.to_vec(), batch })
}

/// Implements [`Backend::step`](crate::Backend::step) with the primitive operations of [`Ops`].
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

/// Implements [`Backend::step_some`](crate::Backend::step_some) with the primitive operations of [`Ops`]: gathers the
/// states of the given sequences, runs the layers on these, and writes the new states back.
pub async fn step_some<B: Ops>(
    b: &B,
    stream: &mut Stream<B::Tensor>,
    sequences: &[usize],
    x: &[f32],
    y: &mut [f32],
) -> Result<()> {
    let (first_layer, last_layer) = (stream.layers[0].spec(), stream.layers[stream.layers.len() - 1].spec());
    check_step_some(stream.batch, sequences, first_layer, last_layer, x, y)?;
    if sequences.is_empty() {
        return Ok(());
    }
    let row = |t: &B::Tensor, k: usize| b.slice(t, k..k + 1, 0..b.shape(t).cols);
    let gather = |t: &B::Tensor| {
        let rows = memory::try_collect("step_some", sequences.len(), sequences.iter().map(|&k| row(t, k)))?;
        b.concat(ConcatAxis::Rows, &rows)
    };
    let scatter = |new: &B::Tensor, old: &B::Tensor| {
        let rows = (0..stream.batch).map(|k| match sequences.iter().position(|&sequence| sequence == k) {
            Some(k) => row(new, k),
            None => row(old, k),
        });
        b.concat(ConcatAxis::Rows, &memory::try_collect("step_some", stream.batch, rows)?)
    };
    let mut next_states = Vec::with_capacity(stream.layers.len());
    let mut x = b.upload(MatrixShape::new(sequences.len(), x.len() / sequences.len()), x)?;
    for (layer, state) in stream.layers.iter().zip(&stream.state) {
        let gathered_state = State { h: gather(&state.h)?, c: gather(&state.c)? };
        let next_state = layer.step(b, layer.input_term(b, &b.snap(x)?)?, &gathered_state)?;
        next_states.push(State { h: scatter(&next_state.h, &state.h)?, c: scatter(&next_state.c, &state.c)? });
        x = next_state.h;
    }
    b.download(&x, y).await?;
    stream.state = next_states;
    Ok(())
}

/// Implements [`Backend::stream_state`](crate::Backend::stream_state) with the primitive operations of [`Ops`].
pub fn stream_state<B: Ops>(
    b: &B,
    stream: &Stream<B::Tensor>,
    sequences: Range<usize>,
) -> Result<Vec<State<B::Tensor>>> {
    check_sequences(stream.batch, &sequences)?;
    let rows = |t: &B::Tensor| b.slice(t, sequences.clone(), 0..b.shape(t).cols);
    stream.state.iter().map(|state| Ok(State { h: rows(&state.h)?, c: rows(&state.c)? })).collect()
}

/// Implements [`Backend::set_stream_state`](crate::Backend::set_stream_state) with the primitive operations of [`Ops`].
pub fn set_stream_state<B: Ops>(
    b: &B,
    stream: &mut Stream<B::Tensor>,
    first: usize,
    state: &[State<B::Tensor>],
) -> Result<()> {
    let (specs, batch): (Vec<_>, _) = (stream.layers.iter().map(|layer| *layer.spec()).collect(), stream.batch);
    let shapes = state.iter().map(|s| State { h: b.shape(&s.h), c: b.shape(&s.c) });
    let replaced_rows = check_state(&specs, batch, first, shapes)?;
    let replace_rows = |new: B::Tensor, old: &B::Tensor| {
        let cols = b.shape(old).cols;
        let old_rows = |rows: Range<usize>| (!rows.is_empty()).then(|| b.slice(old, rows, 0..cols));
        let parts = [old_rows(0..replaced_rows.start), Some(Ok(new)), old_rows(replaced_rows.end..batch)];
        b.concat(ConcatAxis::Rows, &parts.into_iter().flatten().collect::<Result<Vec<_>>>()?)
    };
    let states = state.iter().zip(&stream.state).map(|(new, old)| {
        let new = snap_state(b, new)?;
        if replaced_rows.len() == batch {
            return Ok(new);
        }
        Ok(State { h: replace_rows(new.h, &old.h)?, c: replace_rows(new.c, &old.c)? })
    });
    stream.state = states.collect::<Result<_>>()?;
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
    check_rows("step", batch, first_layer, last_layer, x, y)
}

/// Checks the arguments of [`Backend::step_some`](crate::Backend::step_some): the sequences are distinct and exist, and
/// `x` and `y` have one row for each. Allocates nothing; sequences in ascending order are checked fastest.
///
/// # Errors
/// [`Error::Shape`] names the first argument that does not match.
pub fn check_step_some(
    batch: usize,
    sequences: &[usize],
    first_layer: &LayerSpec,
    last_layer: &LayerSpec,
    x: &[f32],
    y: &[f32],
) -> Result<()> {
    check_distinct(sequences, batch)?;
    check_rows("step_some", sequences.len(), first_layer, last_layer, x, y)
}

/// Checks that the sequences of a step are distinct and exist. Allocates nothing; sequences in ascending order are
/// checked fastest.
pub(crate) fn check_distinct(sequences: &[usize], batch: usize) -> Result<()> {
    if let Some(k) = sequences.iter().find(|&&k| k >= batch) {
        return Err(Error::shape("step_some: sequences", format!("numbers below the batch size {batch}"), k));
    }
    if !sequences.is_sorted_by(|a, b| a < b) {
        let repeated = (1..sequences.len()).find(|&k| sequences[..k].contains(&sequences[k]));
        if let Some(k) = repeated {
            let got = format!("{} twice", sequences[k]);
            return Err(Error::shape("step_some: sequences", "distinct numbers", got));
        }
    }
    Ok(())
}

/// Checks that `x` has the length of `rows` inputs of the first layer, and `y` that of `rows` outputs of the last
/// layer.
fn check_rows(
    op: &str,
    rows: usize,
    first_layer: &LayerSpec,
    last_layer: &LayerSpec,
    x: &[f32],
    y: &[f32],
) -> Result<()> {
    let check_len = |argument: &str, size: usize, len: usize| {
        if rows.checked_mul(size) == Some(len) {
            return Ok(());
        }
        let expected = format!("{} values ({rows} x {size})", rows.saturating_mul(size));
        Err(Error::shape(format!("{op}: {argument}"), expected, format!("{len} values")))
    };
    check_len("x", first_layer.input_size, x.len())?;
    check_len("y", last_layer.state_size(), y.len())
}

/// Checks that a range of sequences is not empty and within the batch.
///
/// # Errors
/// [`Error::Shape`] gives the range and the batch size.
pub fn check_sequences(batch: usize, sequences: &Range<usize>) -> Result<()> {
    if sequences.start < sequences.end && sequences.end <= batch {
        return Ok(());
    }
    Err(Error::shape("stream state", format!("a range of the {batch} sequences"), format!("{sequences:?}")))
}

/// Checks the shapes of new states for the sequences of a stream from number `first` on. `state` must have one entry
/// per layer, with one row per sequence, and the stream must have that many sequences from `first` on. Returns the
/// range of these sequences.
///
/// # Errors
/// [`Error::Shape`] names the first layer whose state does not match.
pub fn check_state(
    specs: &[LayerSpec],
    batch: usize,
    first: usize,
    state: impl ExactSizeIterator<Item = State<MatrixShape>>,
) -> Result<Range<usize>> {
    if state.len() != specs.len() {
        return Err(Error::shape("stream state", format!("{} layers", specs.len()), state.len()));
    }
    let mut state = state.peekable();
    // If the state has more sequences than the stream, the error must give the shape that fits.
    let rows = state.peek().map_or(1, |s| s.h.rows).min(batch.saturating_sub(first));
    let sequences = first..first.saturating_add(rows);
    check_sequences(batch, &sequences)?;
    for (k, (spec, got)) in specs.iter().zip(state).enumerate() {
        let expected =
            State { h: MatrixShape::new(rows, spec.state_size()), c: MatrixShape::new(rows, spec.hidden_size) };
        if got != expected {
            let describe = |s: &State<MatrixShape>| format!("h {}, c {}", s.h, s.c);
            return Err(Error::shape(format!("stream state of layer {k}"), describe(&expected), describe(&got)));
        }
    }
    Ok(sequences)
}
