//! The input and output of a layer's forward pass.

use crate::{
    backend::shape::{MatrixShape, checked_len},
    config::LayerSpec,
    error::{Error, Result},
};

/// A pair of hidden state `h` and cell state `c`, as device matrices or host arrays.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// The hidden state.
    pub h: T,
    /// The cell state.
    pub c: T,
}

/// The input of [`Backend::forward`](crate::Backend::forward): a time-major batch of sequences.
#[derive(Debug)]
pub struct Sequence<'a, T> {
    /// Input features, `[steps * batch, input_size]`. Row `t * batch + b` is time step `t` of sequence `b`.
    pub x: &'a T,
    /// Initial state, `h: [batch, state_size]` and `c: [batch, hidden_size]`.
    pub state: &'a State<T>,
    /// Number of time steps of the longest sequence.
    pub steps: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Number of time steps of each sequence, in **descending** order. `None`: every sequence has `steps` time steps.
    pub lengths: Option<&'a [usize]>,
}

impl<T> Sequence<'_, T> {
    /// The number of sequences that have a time step `t`. Lengths descend, so these sequences are the first rows of
    /// time step `t`.
    pub fn num_active(&self, t: usize) -> usize {
        self.lengths.map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }

    /// Checks all shapes against `spec`, and that `lengths` descend and are at most `steps`. Every backend calls this
    /// first; `shape` returns the shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] names the argument that does not match.
    pub fn check(&self, spec: &LayerSpec, shape: impl Fn(&T) -> MatrixShape) -> Result<()> {
        let rows = checked_len("forward", &[self.steps, self.batch])?;
        let check_tensor = |op: &str, got, rows, cols| {
            let expected = MatrixShape::new(rows, cols);
            if got == expected { Ok(()) } else { Err(Error::shape(format!("forward: {op}"), expected, got)) }
        };
        check_tensor("x", shape(self.x), rows, spec.input_size)?;
        check_tensor("state.h", shape(&self.state.h), self.batch, spec.state_size())?;
        check_tensor("state.c", shape(&self.state.c), self.batch, spec.hidden_size)?;
        if let Some(lengths) = self.lengths
            && !(lengths.len() == self.batch
                && lengths.is_sorted_by(|a, b| a >= b)
                && lengths.iter().all(|&len| len <= self.steps))
        {
            let expected = format!("{} descending lengths of at most {}", self.batch, self.steps);
            return Err(Error::shape("forward: lengths", expected, format!("{lengths:?}")));
        }
        Ok(())
    }
}

/// The result of [`Backend::forward`](crate::Backend::forward): a layer's output and its final state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOutput<T, S = State<T>> {
    /// The hidden state after every time step, `[steps * batch, state_size]`. Rows beyond the end of a sequence are +0.
    pub y: T,
    /// The final state of each sequence: the state after its last time step or, for a reverse layer, after time step 0.
    pub state: S,
}

/// The result of [`Backend::forward_bidirectional`](crate::Backend::forward_bidirectional): the outputs of both
/// directions side by side, and the final state of each direction.
pub type BidirectionalOutput<T> = LayerOutput<T, [State<T>; 2]>;

impl<T, S> LayerOutput<T, S> {
    /// Creates an output from its parts.
    pub fn new(y: T, state: S) -> Self {
        LayerOutput { y, state }
    }
}
