//! The forward pass of a layer over a batch of sequences, computed by the primitive operations of [`Ops`].

use std::ops::Range;

use super::{Layer, snap_state};
use crate::{
    backend::{
        LayerOutput, Ops, Sequence, State,
        shape::{ConcatAxis, MatrixShape, zeros},
    },
    cell::Gates,
    config::LayerSpec,
    error::Result,
    memory,
};

/// What [`forward_train`] saves for the backward pass.
#[derive(Clone, Debug)]
pub struct Trace<T> {
    /// The spec of the layer that made this trace.
    pub(super) spec: LayerSpec,
    /// The snapped input, `[steps * batch, input_size]`.
    pub(super) x: T,
    /// The states before and after each time step: `steps + 1` entries in the order of time, for both directions. At
    /// time step `t`, a forward layer reads entry `t` and writes entry `t + 1`; a reverse layer reads entry `t + 1` and
    /// writes entry `t`. The state of a sequence without this time step does not change.
    pub(super) states: Vec<State<T>>,
    /// The gates of each time step, with one row for each sequence that has this time step; `None` if no sequence has
    /// it.
    pub(super) gates: Vec<Option<Gates<T>>>,
    /// Number of sequences.
    pub(super) batch: usize,
}

/// Implements [`Backend::forward`](crate::Backend::forward) with the primitive operations of [`Ops`].
pub fn forward<B: Ops>(
    b: &B,
    layer: &Layer<B::Tensor>,
    sequence: Sequence<'_, B::Tensor>,
) -> Result<LayerOutput<B::Tensor>> {
    run(b, layer, sequence, |_, _| ()).map(|(output, _)| output)
}

/// Implements [`Backend::forward_train`](crate::Backend::forward_train) with the primitive operations of [`Ops`].
pub fn forward_train<T: Clone, B: Ops<Tensor = T>>(
    b: &B,
    layer: &Layer<T>,
    sequence: Sequence<'_, T>,
) -> Result<(LayerOutput<T>, Trace<T>)> {
    layer.spec().check_trainable()?;
    let batch = sequence.batch;
    let mut states = memory::with_capacity("forward_train", &[sequence.steps.saturating_add(1)])?;
    let mut gates = memory::with_capacity("forward_train", &[sequence.steps])?;
    let record = |state: &State<T>, step: Option<Option<Gates<T>>>| {
        states.push(state.clone());
        gates.extend(step);
    };
    let (output, x) = run(b, layer, sequence, record)?;
    if layer.spec().reverse {
        states.reverse();
        gates.reverse();
    }
    Ok((output, Trace { spec: *layer.spec(), x, states, gates, batch }))
}

/// Runs the layer and returns its output and the snapped input. Calls `record` with the initial state and `None`, then
/// after every time step with the new state and `Some(gates)`. These are the gates of the sequences that have this time
/// step, or `None` if there is no such sequence.
fn run<B: Ops>(
    b: &B,
    layer: &Layer<B::Tensor>,
    sequence: Sequence<'_, B::Tensor>,
    mut record: impl FnMut(&State<B::Tensor>, Option<Option<Gates<B::Tensor>>>),
) -> Result<(LayerOutput<B::Tensor>, B::Tensor)> {
    let spec = layer.spec();
    sequence.check(spec, |t| b.shape(t))?;
    let (steps, batch) = (sequence.steps, sequence.batch);
    let rows = |t: &B::Tensor, rows: Range<usize>| b.slice(t, rows, 0..b.shape(t).cols);
    let stack_rows = |top: B::Tensor, bottom: B::Tensor| b.concat(ConcatAxis::Rows, &[top, bottom]);

    let x = b.snap(sequence.x.clone())?;
    let input_term = layer.input_term(b, &x)?;
    let mut state = snap_state(b, sequence.state)?;
    let zero_rows = MatrixShape::new(batch, spec.state_size());
    let zero_rows = b.upload(zero_rows, &zeros("forward", &[zero_rows.rows, zero_rows.cols])?)?;
    let mut y = memory::filled("forward", &[steps], zero_rows.clone())?;
    record(&state, None);
    for k in 0..steps {
        let t = if spec.reverse { steps - 1 - k } else { k };
        let gates = match sequence.num_active(t) {
            0 => None,
            n if n == batch => {
                let gates;
                (state, gates) = layer.step_with_gates(b, input_term.rows(b, t * batch..(t + 1) * batch)?, &state)?;
                y[t] = state.h.clone();
                Some(gates)
            }
            // Lengths descend: the active sequences are the first n rows.
            n => {
                let active_state = State { h: rows(&state.h, 0..n)?, c: rows(&state.c, 0..n)? };
                let (next_state, gates) =
                    layer.step_with_gates(b, input_term.rows(b, t * batch..t * batch + n)?, &active_state)?;
                y[t] = stack_rows(next_state.h.clone(), rows(&zero_rows, n..batch)?)?;
                state.h = stack_rows(next_state.h, rows(&state.h, n..batch)?)?;
                state.c = stack_rows(next_state.c, rows(&state.c, n..batch)?)?;
                Some(gates)
            }
        };
        record(&state, Some(gates));
    }
    Ok((LayerOutput::new(b.concat(ConcatAxis::Rows, &y)?, state), x))
}
