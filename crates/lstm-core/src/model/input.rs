//! The input and the state of a model, as host arrays.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis, Ix2, Ix3, s};

use crate::{
    backend::State,
    config::LstmConfig,
    error::{Error, Result},
    memory,
    model::broadcast::check_repeated,
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
        let zero_array = |cols| memory::zero_array("state", Ix3(n, batch, cols));
        Ok(State { h: zero_array(config.state_size())?, c: zero_array(config.hidden_size)? })
    }

    /// The hidden state of the last layer for each sequence, `(batch, output_size)`: what a classifier reads. In a
    /// bidirectional model, the state of the forward direction comes first. This is PyTorch's `h_n[-1]`, or
    /// `torch.cat((h_n[-2], h_n[-1]), 1)`.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](LstmConfig::validate); [`Error::Shape`] if this is not a
    /// state of a model with this configuration.
    pub fn last(&self, config: &LstmConfig) -> Result<Array2<f32>> {
        config.validate()?;
        self.check("HostState::last", config, self.h.dim().1)?;
        let (num_entries, directions) = (self.h.dim().0, config.num_directions());
        let (batch, size) = (self.h.dim().1, config.state_size());
        let mut last = memory::zero_array("HostState::last", Ix2(batch, directions * size))?;
        for direction in 0..directions {
            let h = self.h.index_axis(Axis(0), num_entries - directions + direction);
            last.slice_mut(s![.., direction * size..(direction + 1) * size]).assign(&h);
        }
        Ok(last)
    }

    /// A state that is zero except for the hidden state of the last layer, which is `last`, `(batch, output_size)`. If
    /// `last` is the gradient of a loss with respect to the result of the method [`last`](Self::last), the returned
    /// value is the gradient with respect to the state.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](LstmConfig::validate); [`Error::Shape`] if `last` does not
    /// have `output_size` columns; [`Error::TooLarge`] if the state does not fit in memory.
    pub fn from_last<'a>(config: &LstmConfig, last: impl Into<ArrayView2<'a, f32>>) -> Result<Self> {
        config.validate()?;
        let last = last.into();
        if last.ncols() != config.output_size() {
            let expected = format!("[batch, {}]", config.output_size());
            return Err(Error::shape("HostState::from_last", expected, format!("{:?}", last.shape())));
        }
        let mut state = HostState::zeros(config, last.nrows())?;
        let (num_entries, directions, size) = (state.h.dim().0, config.num_directions(), config.state_size());
        for direction in 0..directions {
            let columns = last.slice(s![.., direction * size..(direction + 1) * size]);
            state.h.index_axis_mut(Axis(0), num_entries - directions + direction).assign(&columns);
        }
        Ok(state)
    }

    /// A copy of the state.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let copy = |array: &Array3<f32>| memory::copy_array("state", array.view());
        Ok(State { h: copy(&self.h)?, c: copy(&self.c)? })
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

/// Whether a forward pass applies dropout between layers; see [`Input::dropout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dropout {
    /// No dropout, as in inference.
    Off,
    /// Dropout with masks that the seed determines. Use another seed for each training step.
    Seed(u64),
}

/// Seed number `n`, counted from 1, of those that follow from one seed: output number `n` of the SplitMix64 generator
/// (Steele et al. 2014) that starts from `seed`.
pub(crate) fn nth_seed(seed: u64, n: u64) -> u64 {
    let z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
#[must_use]
pub struct Input<'a> {
    pub(crate) x: ArrayView3<'a, f32>,
    pub(crate) state: Option<&'a HostState>,
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) time_major: bool,
    pub(crate) dropout: Option<Dropout>,
}

impl<'a> From<ArrayView3<'a, f32>> for Input<'a> {
    fn from(x: ArrayView3<'a, f32>) -> Self {
        Input { x, state: None, lengths: None, time_major: false, dropout: None }
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

    /// Sets whether dropout is applied between layers, with the probability of the configuration.
    /// [`Lstm::forward`](crate::Lstm::forward) applies none by default; for a model with dropout,
    /// [`Lstm::forward_train`](crate::Lstm::forward_train) requires this setting.
    pub fn dropout(self, dropout: Dropout) -> Self {
        Input { dropout: Some(dropout), ..self }
    }

    /// Batch size and number of time steps of the input, as `(batch, steps)`.
    pub(crate) fn batch_and_steps(&self) -> (usize, usize) {
        let (a, b, _) = self.x.dim();
        if self.time_major { (b, a) } else { (a, b) }
    }

    /// Checks the shapes of the arrays and the sequence lengths.
    pub(crate) fn check(&self, config: &LstmConfig) -> Result<()> {
        check_repeated("forward: x", &self.x)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_match_splitmix64() {
        // The first outputs of the authors' reference implementation for seed 0.
        let seeds = [1, 2, 3].map(|n| nth_seed(0, n));
        assert_eq!(seeds, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        nth_seed(u64::MAX, u64::MAX);
    }
}
