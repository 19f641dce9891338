//! The values of a forward pass that the backward pass needs.

use std::fmt;

use lstm_core::{LayerSpec, Result, Sequence, shape::checked_len};

use crate::{backend::CudaBackend, driver::Driver, tensor::Tensor};

/// The values of a layer's forward pass that its backward pass needs: the input, and for each step the states before
/// and after it and the gate activations.
pub struct Trace<D: Driver> {
    pub(crate) spec: LayerSpec,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    /// Lengths of the sequences, longest first; `None` if all have all steps.
    lengths: Option<Vec<usize>>,
    /// The number of sequences that are long enough to have each step, as `u32`; `None` if all sequences have all
    /// steps.
    pub(crate) active_counts: Option<D::Memory>,
    /// The input, `[steps * batch, input]`, as the caller gave it, not snapped.
    pub(crate) x: Tensor<D>,
    /// h before and after each step, `[steps + 1, batch, state]`, in the sequence's order: step t of a forward layer
    /// leads from index t to t + 1, that of a reverse layer from t + 1 to t.
    pub(crate) h: D::Memory,
    /// c before and after each step, `[steps + 1, batch, hidden]`, in the same order as `h`.
    pub(crate) c: D::Memory,
    /// The gates' activations, `[steps * batch, 4 * hidden]`. Rows of sequences that do not have the step are
    /// uninitialized.
    pub(crate) gates: D::Memory,
}

impl<D: Driver> fmt::Debug for Trace<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} steps, batch {})", self.steps, self.batch)
    }
}

impl<D: Driver> Trace<D> {
    /// Allocates a trace for a sequence, whose shapes must have been checked.
    pub(crate) fn new(backend: &CudaBackend<D>, spec: &LayerSpec, sequence: &Sequence<'_, Tensor<D>>) -> Result<Self> {
        let (op, steps, batch) = ("forward_train", sequence.steps, sequence.batch);
        let alloc = |sizes: &[usize]| backend.driver.alloc(op, checked_len(op, sizes)?);
        let upload_counts = |_| backend.upload_active_counts(op, steps, |t| sequence.num_active(t));
        Ok(Trace {
            spec: *spec,
            steps,
            batch,
            lengths: sequence.lengths.map(<[_]>::to_vec),
            active_counts: sequence.lengths.map(upload_counts).transpose()?,
            x: sequence.x.clone(),
            h: alloc(&[steps + 1, batch, spec.state_size()])?,
            c: alloc(&[steps + 1, batch, spec.hidden_size])?,
            gates: alloc(&[steps, batch, 4, spec.hidden_size])?,
        })
    }

    /// Returns the number of sequences that are long enough to have step `t`. They are the first rows of the batch.
    pub(crate) fn num_active(&self, t: usize) -> usize {
        self.lengths.as_ref().map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }
}
