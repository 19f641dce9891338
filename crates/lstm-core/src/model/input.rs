//! The input of a model and its state, as host arrays.

use ndarray::{Array3, ArrayView3};

use crate::{
    backend::{State, shape::zeros},
    config::LstmConfig,
    error::{Error, Result},
};

/// The states of all layers as host arrays: `h: [layers * directions, batch, state_size]` and
/// `c: [layers * directions, batch, hidden_size]`. Entries are in PyTorch's order: layer 0 forward, layer 0 reverse,
/// layer 1 forward, and so on.
pub type HostState = State<Array3<f32>>;

impl HostState {
    /// Zero states for `batch` sequences, the default initial state of a model.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if they do not fit in memory.
    pub fn zeros(config: &LstmConfig, batch: usize) -> Result<Self> {
        let n = config.num_layers.saturating_mul(config.num_directions());
        let zero_array = |cols| {
            let zeros = zeros("state", &[n, batch, cols])?;
            Array3::from_shape_vec((n, batch, cols), zeros).map_err(|e| Error::shape("state", "a shape", e))
        };
        Ok(State { h: zero_array(config.state_size())?, c: zero_array(config.hidden_size)? })
    }

    /// Checks the shapes of `h` and `c`.
    pub(crate) fn check(&self, op: &str, config: &LstmConfig, batch: usize) -> Result<()> {
        let n = config.num_layers * config.num_directions();
        for (name, array, cols) in [("h", &self.h, config.state_size()), ("c", &self.c, config.hidden_size)] {
            let expected = [n, batch, cols];
            if array.shape() != expected {
                return Err(Error::shape(
                    format!("{op}: state.{name}"),
                    format!("{expected:?}"),
                    format!("{:?}", array.shape()),
                ));
            }
        }
        Ok(())
    }
}

/// The input of [`Lstm::forward`](crate::Lstm::forward): a batch of sequences with its options. An array can be
/// converted into an input without options.
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
    /// Sets the initial state. The default is zero.
    pub fn state(self, state: &'a HostState) -> Self {
        Input { state: Some(state), ..self }
    }

    /// Sets the number of time steps of each sequence, in any order, like PyTorch's packed sequences. By default all
    /// sequences have the full length. Outputs beyond a sequence's length are 0, its final state is the state after its
    /// last time step, and the reverse direction starts at its last time step.
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        Input { lengths: Some(lengths), ..self }
    }

    /// Declares that `x` and the output are `(steps, batch, features)`. The default is `(batch, steps, features)`.
    pub fn time_major(self) -> Self {
        Input { time_major: true, ..self }
    }

    /// Applies dropout between layers, with the probability of the configuration and masks that `seed` determines. By
    /// default there is no dropout.
    pub fn with_dropout(self, seed: u64) -> Self {
        Input { dropout_seed: Some(seed), ..self }
    }

    /// Batch size and number of time steps of the input, as `(batch, steps)`.
    pub(crate) fn batch_and_steps(&self) -> (usize, usize) {
        let (a, b, _) = self.x.dim();
        if self.time_major { (b, a) } else { (a, b) }
    }

    /// Checks the shapes of the arrays and the sequence lengths.
    pub(crate) fn check(&self, config: &LstmConfig) -> Result<()> {
        let (batch, steps) = self.batch_and_steps();
        let features = self.x.dim().2;
        if features != config.input_size {
            let (a, b, _) = self.x.dim();
            let expected = [a, b, config.input_size];
            return Err(Error::shape("forward: x", format!("{expected:?}"), format!("{:?}", self.x.shape())));
        }
        if let Some(state) = self.state {
            state.check("forward", config, batch)?;
        }
        if let Some(lengths) = self.lengths {
            check_lengths("forward", lengths, [batch, steps])?;
        }
        Ok(())
    }
}

/// Checks that there is one length for each sequence and that no length exceeds `steps`. The error names the first
/// sequence whose length is too large.
pub(crate) fn check_lengths(op: &str, lengths: &[usize], [batch, steps]: [usize; 2]) -> Result<()> {
    let op = format!("{op}: lengths");
    if lengths.len() != batch {
        return Err(Error::shape(op, format!("{batch}, one for each sequence"), lengths.len()));
    }
    match lengths.iter().position(|&len| len > steps) {
        Some(b) => Err(Error::shape(format!("{op}[{b}]"), format!("at most {steps} steps"), lengths[b])),
        None => Ok(()),
    }
}
