//! What goes into a model and comes out of it, on the host, and how it lies in a device's memory.

use std::borrow::Cow;

use ndarray::{Array3, ArrayView3, Axis, s};
use ndarray_rand::rand::RngCore;
use rand_chacha::ChaCha8Rng;

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
        if let Some(lengths) = self.lengths {
            check_lengths("forward", lengths, [batch, steps])?;
        }
        Ok(())
    }
}

/// That there is a length for each sequence, none of more than all steps. The first that does not fit is named.
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

/// An empty vector with room for `len`, or the error that there is none.
pub(crate) fn reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).map_err(|_| Error::TooLarge { op: "input", sizes: vec![len] })?;
    Ok(room)
}

/// How a call's sequences lie in a device's memory: time-major rows, the longest sequence first, so that at any step those
/// that are still running are the first rows.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) batch: usize,
    pub(crate) steps: usize,
    /// In descending order.
    pub(crate) lengths: Option<Vec<usize>>,
    /// The caller's number of each sequence.
    order: Vec<usize>,
    time_major: bool,
}

impl Layout {
    /// That of a checked input.
    pub(crate) fn new(input: &Input<'_>) -> Result<Self> {
        let (batch, steps) = input.extent();
        // An array of empty sequences takes no memory, their order does.
        let mut order: Vec<usize> = reserved(batch)?;
        order.extend(0..batch);
        let lengths = input.lengths.map(|lengths| {
            order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
            order.iter().map(|&b| lengths[b]).collect()
        });
        Ok(Layout { batch, steps, lengths, order, time_major: input.time_major })
    }

    /// `(batch, steps, cols)`, or as the caller has it.
    pub(crate) fn shape(&self, cols: usize) -> (usize, usize, usize) {
        if self.time_major { (self.steps, self.batch, cols) } else { (self.batch, self.steps, cols) }
    }

    /// Whether the host's array lies as the rows do already.
    fn is_rows(&self) -> bool {
        self.order.is_sorted() && (self.time_major || self.batch == 1)
    }

    /// The host's array as rows; a copy only where it lies otherwise.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there is no memory for it: a view may be larger than what it looks at.
    pub(crate) fn rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        if let Some(rows) = x.to_slice()
            && self.is_rows()
        {
            return Ok(rows.into());
        }
        let mut rows = reserved(x.len())?;
        for step in x.axis_iter(Axis(if self.time_major { 0 } else { 1 })) {
            for &b in &self.order {
                // With the steps' axis gone, the batch's is the first of two.
                let row = step.index_axis(Axis(0), b);
                match row.as_slice() {
                    Some(row) => rows.extend_from_slice(row),
                    None => rows.extend(row.iter()),
                }
            }
        }
        Ok(rows.into())
    }

    /// [`rows`](Self::rows), with +0 beyond each sequence's length.
    ///
    /// # Errors
    /// As for `rows`.
    pub(crate) fn running_rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        let mut rows = self.rows(x)?;
        for (b, &len) in self.lengths.iter().flatten().enumerate().filter(|(_, len)| **len < self.steps) {
            let cols = rows.len() / (self.batch * self.steps);
            let rows = rows.to_mut();
            (len..self.steps).for_each(|t| rows[(t * self.batch + b) * cols..][..cols].fill(0.0));
        }
        Ok(rows)
    }

    /// The inverse of [`rows`](Self::rows).
    pub(crate) fn host(&self, rows: Vec<f32>) -> Array3<f32> {
        let (batch, steps) = (self.batch, self.steps);
        let cols = rows.len() / (batch * steps);
        let out = if self.is_rows() {
            rows
        } else {
            let mut place = vec![0; batch];
            self.order.iter().enumerate().for_each(|(k, &b)| place[b] = k);
            let row = |t: usize, b: usize| &rows[(t * batch + place[b]) * cols..][..cols];
            let mut out = Vec::with_capacity(rows.len());
            if self.time_major {
                (0..steps).for_each(|t| (0..batch).for_each(|b| out.extend_from_slice(row(t, b))));
            } else {
                (0..batch).for_each(|b| (0..steps).for_each(|t| out.extend_from_slice(row(t, b))));
            }
            out
        };
        Array3::from_shape_vec(self.shape(cols), out).expect("as many rows as the shape says")
    }

    /// A layer-direction's part of states on the host as rows; zeros where there are none.
    pub(crate) fn state_rows(&self, states: Option<&Array3<f32>>, k: usize, cols: usize) -> Vec<f32> {
        match states {
            Some(states) => self.order.iter().flat_map(|&b| states.slice(s![k, b, ..]).to_vec()).collect(),
            None => vec![0.0; self.batch * cols],
        }
    }

    /// Puts rows of states, those of all layer-directions below one another, into `states`.
    pub(crate) fn put_states(&self, rows: &[f32], states: &mut Array3<f32>) {
        let cols = states.dim().2;
        for (k, row) in rows.chunks_exact(cols).enumerate() {
            let mut to = states.slice_mut(s![k / self.batch, self.order[k % self.batch], ..]);
            to.iter_mut().zip(row).for_each(|(to, &v)| *to = v);
        }
    }

    /// 0 or `1 / (1 - p)` for each element, drawn in the caller's order: step, sequence, feature.
    pub(crate) fn dropout_mask(&self, rng: &mut ChaCha8Rng, p: f32, cols: usize) -> Vec<f32> {
        let threshold = (f64::from(p) * 4_294_967_296.0).round() as u64;
        let scale = 1.0 / (1.0 - p);
        let mut mask = vec![0.0; self.steps * self.batch * cols];
        let mut place = vec![0; self.batch];
        self.order.iter().enumerate().for_each(|(k, &b)| place[b] = k);
        for step in mask.chunks_exact_mut(self.batch * cols) {
            for &k in &place {
                for v in &mut step[k * cols..(k + 1) * cols] {
                    *v = if u64::from(rng.next_u32()) >= threshold { scale } else { 0.0 };
                }
            }
        }
        mask
    }
}
