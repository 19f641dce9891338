//! What goes into a model and comes out of it, on the host, and how it lies in a device's memory.

use std::borrow::Cow;

use ndarray::{Array3, ArrayView3, Axis};

use crate::{
    backend::State,
    config::LstmConfig,
    error::{Error, Result},
    shape::zeros,
};

/// States of all layers on the host: `h: [layers * directions, batch, state]`, `c: [layers * directions, batch, hidden]`,
/// in PyTorch's order (layer 0 forward, layer 0 reverse, layer 1 forward, ...).
pub type HostState = State<Array3<f32>>;

impl HostState {
    /// Zero states for `batch` sequences; what a model starts from unless told otherwise.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there is no memory for them.
    pub fn zeros(config: &LstmConfig, batch: usize) -> Result<Self> {
        let n = config.num_layers.saturating_mul(config.num_directions());
        let array = |cols| {
            let zeros = zeros("state", &[n, batch, cols])?;
            Array3::from_shape_vec((n, batch, cols), zeros).map_err(|e| Error::shape("state", "a shape", e))
        };
        Ok(State { h: array(config.state_size())?, c: array(config.hidden_size)? })
    }

    pub(crate) fn check(&self, op: &str, config: &LstmConfig, batch: usize) -> Result<()> {
        let n = config.num_layers * config.num_directions();
        for (name, array, cols) in [("h", &self.h, config.state_size()), ("c", &self.c, config.hidden_size)] {
            let want = [n, batch, cols];
            if array.shape() != want {
                return Err(Error::shape(
                    format!("{op}: state.{name}"),
                    format!("{want:?}"),
                    format!("{:?}", array.shape()),
                ));
            }
        }
        Ok(())
    }
}

/// What a model runs over. An array alone is enough; the methods add the rest.
///
/// ```
/// use lstm_core::{Input, ndarray::Array3};
/// let x = Array3::<f32>::zeros((2, 7, 3)); // batch, steps, features
/// let input = Input::from(&x).lengths(&[7, 4]);
/// # let _ = input;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub(crate) x: ArrayView3<'a, f32>,
    pub(crate) state: Option<&'a HostState>,
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) time_major: bool,
    pub(crate) dropout_seed: Option<u64>,
}

impl<'a> From<ArrayView3<'a, f32>> for Input<'a> {
    fn from(x: ArrayView3<'a, f32>) -> Self {
        Input { x, state: None, lengths: None, time_major: false, dropout_seed: None }
    }
}

impl<'a> From<&'a Array3<f32>> for Input<'a> {
    fn from(x: &'a Array3<f32>) -> Self {
        x.view().into()
    }
}

impl<'a> Input<'a> {
    /// Starts from `state` instead of zeros.
    pub fn state(self, state: &'a HostState) -> Self {
        Input { state: Some(state), ..self }
    }

    /// Gives each sequence its own number of steps, in any order, 0 to all: what PyTorch does with packed sequences.
    /// Outputs beyond a length are 0, the final state is taken at each length, and the reverse direction starts there.
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        Input { lengths: Some(lengths), ..self }
    }

    /// `x` and the output are `(steps, batch, features)` instead of `(batch, steps, features)`.
    pub fn time_major(self) -> Self {
        Input { time_major: true, ..self }
    }

    /// Runs as in training: outputs between layers are dropped with the configuration's probability by a mask that
    /// `seed` determines. Without it there is no dropout.
    pub fn training(self, seed: u64) -> Self {
        Input { dropout_seed: Some(seed), ..self }
    }

    /// `(batch, steps)`
    pub(crate) fn extent(&self) -> (usize, usize) {
        let (a, b, _) = self.x.dim();
        if self.time_major { (b, a) } else { (a, b) }
    }

    pub(crate) fn check(&self, config: &LstmConfig) -> Result<()> {
        let (batch, steps) = self.extent();
        let features = self.x.dim().2;
        if features != config.input_size {
            let (a, b, _) = self.x.dim();
            let want = [a, b, config.input_size];
            return Err(Error::shape("forward: x", format!("{want:?}"), format!("{:?}", self.x.shape())));
        }
        if let Some(state) = self.state {
            state.check("forward", config, batch)?;
        }
        if let Some(lengths) = self.lengths
            && (lengths.len() != batch || lengths.iter().any(|&len| len > steps))
        {
            let want = format!("{batch} lengths of at most {steps}");
            return Err(Error::shape("forward: lengths", want, format!("{lengths:?}")));
        }
        Ok(())
    }
}

/// Whether the host's array lies as time-major rows of sequences in `order` already.
fn as_rows(order: &[usize], time_major: bool) -> bool {
    order.is_sorted() && (time_major || order.len() == 1)
}

/// The host's array as time-major rows, sequences in `order`; a copy only where it lies otherwise.
pub(crate) fn to_rows<'a>(input: &'a Input<'_>, order: &[usize]) -> Cow<'a, [f32]> {
    if let Some(rows) = input.x.as_slice()
        && as_rows(order, input.time_major)
    {
        return rows.into();
    }
    let mut rows = Vec::with_capacity(input.x.len());
    for step in input.x.axis_iter(Axis(if input.time_major { 0 } else { 1 })) {
        for &b in order {
            // With the steps' axis gone, the batch's is the first of two.
            let row = step.index_axis(Axis(0), b);
            match row.as_slice() {
                Some(row) => rows.extend_from_slice(row),
                None => rows.extend(row.iter()),
            }
        }
    }
    rows.into()
}

/// The inverse of [`to_rows`].
pub(crate) fn to_host(rows: Vec<f32>, batch: usize, steps: usize, order: &[usize], time_major: bool) -> Array3<f32> {
    let cols = rows.len() / (batch * steps);
    let shape = if time_major { (steps, batch, cols) } else { (batch, steps, cols) };
    let out = if as_rows(order, time_major) {
        rows
    } else {
        let mut place = vec![0; batch];
        order.iter().enumerate().for_each(|(k, &b)| place[b] = k);
        let row = |t: usize, b: usize| &rows[(t * batch + place[b]) * cols..][..cols];
        let mut out = Vec::with_capacity(rows.len());
        if time_major {
            (0..steps).for_each(|t| (0..batch).for_each(|b| out.extend_from_slice(row(t, b))));
        } else {
            (0..batch).for_each(|b| (0..steps).for_each(|t| out.extend_from_slice(row(t, b))));
        }
        out
    };
    Array3::from_shape_vec(shape, out).expect("as many rows as the shape says")
}
