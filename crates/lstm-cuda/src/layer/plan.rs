//! Scratch memory for running a layer.

use std::fmt;

use lstm_core::{Error, LayerSpec, Result, shape::checked_len};

use super::{DeviceWeights, Pass};
use crate::driver::{Address, Driver, checked_u32};

/// Scratch memory for running a layer over one batch of sequences, and a CUDA graph of the last run's launches, for use
/// in the next run.
pub struct Plan<D: Driver> {
    pub(crate) spec: LayerSpec,
    pub(crate) batch: usize,
    /// The largest number of steps for which there is memory.
    pub(crate) steps: usize,
    /// `bias + W x` of all steps, `[steps * batch, 4 * hidden]`.
    pub(crate) z: D::Memory,
    /// A double buffer for h, `[2, batch, state]`: a step reads one half and writes the other.
    pub(crate) h: D::Memory,
    /// A double buffer for c, `[2, batch, hidden]`, used like that for h.
    pub(crate) c: D::Memory,
    /// The projection's input of one step, `[batch, hidden]`; `None` without a projection.
    pub(crate) projection_input: Option<D::Memory>,
    /// A buffer for the outputs, `[steps * batch, state]`. Every inference run writes to this buffer, so that the graph
    /// of one run's launches can be used for the next. `None` if a single launch runs all steps.
    pub(crate) y: Option<D::Memory>,
    /// The key of the last run, and the CUDA graph of its launches. The graph is recorded when two runs in a row have
    /// the same key; until then it is `None`. The whole field is `None` before the first run.
    pub(crate) graph: Option<(GraphKey, Option<D::Graph>)>,
}

/// The values on which the launches of a forward pass depend: two passes with the same key have the same launches.
#[derive(Debug, PartialEq)]
pub(crate) struct GraphKey {
    pub(crate) steps: usize,
    pub(crate) lengths: Option<Vec<usize>>,
    /// Addresses of the recurrent weights, the projection and the peepholes.
    pub(crate) weights: [Address; 3],
}

impl<D: Driver> fmt::Debug for Plan<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({:?}, batch {}, at most {} steps)", self.spec, self.batch, self.steps)
    }
}

impl<D: Driver> Plan<D> {
    pub(crate) fn new(driver: &D, layer: &DeviceWeights<D>, batch: usize, steps: usize) -> Result<Self> {
        let spec = &layer.spec;
        let alloc = |sizes: &[usize]| driver.alloc("plan", checked_len("plan", sizes)?);
        checked_u32("plan", checked_len("plan", &[steps, batch])?)?;
        Ok(Plan {
            spec: *spec,
            batch,
            steps,
            z: alloc(&[steps, batch, 4, spec.hidden_size])?,
            h: alloc(&[2, batch, spec.state_size()])?,
            c: alloc(&[2, batch, spec.hidden_size])?,
            projection_input: spec.proj_size.map(|_| alloc(&[batch, spec.hidden_size])).transpose()?,
            y: match layer.choose_single_launch(Pass::Forward, batch) {
                Some(_) => None,
                None => Some(alloc(&[steps, batch, spec.state_size()])?),
            },
            graph: None,
        })
    }

    /// Checks that this plan is for layers with this `spec`, this batch size and at least `steps` steps.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not.
    pub(crate) fn check(&self, op: &'static str, spec: &LayerSpec, batch: usize, steps: usize) -> Result<()> {
        if self.spec == *spec && self.batch == batch && self.steps >= steps {
            return Ok(());
        }
        let want = format!("one for {spec:?}, batch {batch} and {steps} steps");
        Err(Error::shape(format!("{op}: plan"), want, format!("{self:?}")))
    }
}
