//! What a forward pass of training keeps.

use std::fmt;

use lstm_core::{LayerSpec, Result, Sequence, shape::checked_len};

use crate::{backend::CudaBackend, driver::Driver, tensor::Tensor};

/// The input, the state around each step and the gates of each, of one layer over one batch of sequences.
pub struct Trace<D: Driver> {
    pub(crate) spec: LayerSpec,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    lengths: Option<Vec<usize>>,
    /// How many sequences have each step, where lengths were given.
    pub(crate) active: Option<D::Memory>,
    /// Not snapped: that is done where it is read.
    pub(crate) x: Tensor<D>,
    /// `[steps + 1][batch][state]`, in the sequence's order: a forward layer's step t leads from place t to t + 1, a
    /// reverse layer's from t + 1 to t.
    pub(crate) h: D::Memory,
    /// `[steps + 1][batch][hidden]`
    pub(crate) c: D::Memory,
    /// `[steps * batch][4 * hidden]`; rows of sequences without the step are not defined.
    pub(crate) gates: D::Memory,
}

impl<D: Driver> fmt::Debug for Trace<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} steps, batch {})", self.steps, self.batch)
    }
}

impl<D: Driver> Trace<D> {
    /// Memory for a checked sequence.
    pub(crate) fn new(b: &CudaBackend<D>, spec: &LayerSpec, sequence: &Sequence<'_, Tensor<D>>) -> Result<Self> {
        let (op, steps, batch) = ("forward_train", sequence.steps, sequence.batch);
        let alloc = |sizes: &[usize]| b.driver.alloc(op, checked_len(op, sizes)?);
        Ok(Trace {
            spec: *spec,
            steps,
            batch,
            lengths: sequence.lengths.map(<[_]>::to_vec),
            active: sequence.lengths.map(|_| b.active(op, steps, |t| sequence.active(t))).transpose()?,
            x: sequence.x.clone(),
            h: alloc(&[steps + 1, batch, spec.state_size()])?,
            c: alloc(&[steps + 1, batch, spec.hidden_size])?,
            gates: alloc(&[steps, batch, 4, spec.hidden_size])?,
        })
    }

    /// How many sequences have a step `t`; they are the first rows.
    pub(crate) fn active(&self, t: usize) -> usize {
        self.lengths.as_ref().map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }
}
