//! The order of a batch's rows in device memory, and conversion from and to the caller's arrays.

use std::borrow::Cow;

use ndarray::{Array3, ArrayView3, Axis, s};
use ndarray_rand::rand::RngCore;
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{Error, Result},
    model::input::Input,
};

/// An empty vector with capacity for `len` elements.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub(crate) fn reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::TooLarge { op: "input", sizes: vec![len] })?;
    Ok(vec)
}

/// The order of a batch's rows in device memory: time-major, the longest sequence first. At every time step the
/// sequences that have not ended are then the first rows.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Number of sequences.
    pub(crate) batch: usize,
    /// Number of time steps of the longest sequence.
    pub(crate) steps: usize,
    /// Number of time steps of each sequence, in descending order.
    pub(crate) lengths: Option<Vec<usize>>,
    /// For each sequence in device order, its index in the caller's array.
    order: Vec<usize>,
    time_major: bool,
}

impl Layout {
    /// The layout of an input that was checked.
    pub(crate) fn new(input: &Input<'_>) -> Result<Self> {
        let (batch, steps) = input.extent();
        // An array without time steps takes no memory, but the order of its sequences does.
        let mut order: Vec<usize> = reserved(batch)?;
        order.extend(0..batch);
        let lengths = input.lengths.map(|lengths| {
            order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
            order.iter().map(|&b| lengths[b]).collect()
        });
        Ok(Layout { batch, steps, lengths, order, time_major: input.time_major })
    }

    /// The shape of the caller's array with `cols` features.
    pub(crate) fn host_shape(&self, cols: usize) -> (usize, usize, usize) {
        if self.time_major { (self.steps, self.batch, cols) } else { (self.batch, self.steps, cols) }
    }

    /// Whether the caller's array already has the order of rows that the device needs.
    fn is_host_layout(&self) -> bool {
        self.order.is_sorted() && (self.time_major || self.batch == 1)
    }

    /// The position of each of the caller's sequences among the rows of a time step.
    fn positions(&self) -> Vec<usize> {
        let mut positions = vec![0; self.batch];
        self.order.iter().enumerate().for_each(|(k, &b)| positions[b] = k);
        positions
    }

    /// The rows of the caller's array in device order. It is copied only if its layout differs.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the copy does not fit in memory: a broadcast view may be larger than its array.
    pub(crate) fn rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        if let Some(rows) = x.to_slice()
            && self.is_host_layout()
        {
            return Ok(rows.into());
        }
        let mut rows = reserved(x.len())?;
        for step in x.axis_iter(Axis(if self.time_major { 0 } else { 1 })) {
            for &b in &self.order {
                // Without the axis of time, the batch is the first of two axes.
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
    /// As for [`rows`](Self::rows).
    pub(crate) fn zero_padded_rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        let mut rows = self.rows(x)?;
        for (b, &len) in self.lengths.iter().flatten().enumerate().filter(|(_, len)| **len < self.steps) {
            let cols = rows.len() / (self.batch * self.steps);
            let rows = rows.to_mut();
            (len..self.steps).for_each(|t| rows[(t * self.batch + b) * cols..][..cols].fill(0.0));
        }
        Ok(rows)
    }

    /// Rows in device order as an array in the caller's layout, the inverse of [`rows`](Self::rows).
    pub(crate) fn to_host(&self, rows: Vec<f32>) -> Array3<f32> {
        let (batch, steps) = (self.batch, self.steps);
        let cols = rows.len() / (batch * steps);
        let out = if self.is_host_layout() {
            rows
        } else {
            let positions = self.positions();
            let row = |t: usize, b: usize| &rows[(t * batch + positions[b]) * cols..][..cols];
            let mut out = Vec::with_capacity(rows.len());
            if self.time_major {
                (0..steps).for_each(|t| (0..batch).for_each(|b| out.extend_from_slice(row(t, b))));
            } else {
                (0..batch).for_each(|b| (0..steps).for_each(|t| out.extend_from_slice(row(t, b))));
            }
            out
        };
        Array3::from_shape_vec(self.host_shape(cols), out).expect("the number of rows matches the shape")
    }

    /// The rows of entry `k` of host states (one entry per layer and direction) in device order; zeros without `states`.
    pub(crate) fn state_rows(&self, states: Option<&Array3<f32>>, k: usize, cols: usize) -> Vec<f32> {
        match states {
            Some(states) => self.order.iter().flat_map(|&b| states.slice(s![k, b, ..]).to_vec()).collect(),
            None => vec![0.0; self.batch * cols],
        }
    }

    /// Copies state rows, concatenated over all layers and directions, into an array in the caller's order.
    pub(crate) fn states_to_host(&self, rows: &[f32], states: &mut Array3<f32>) {
        let cols = states.dim().2;
        for (k, row) in rows.chunks_exact(cols).enumerate() {
            let mut to = states.slice_mut(s![k / self.batch, self.order[k % self.batch], ..]);
            to.iter_mut().zip(row).for_each(|(to, &v)| *to = v);
        }
    }

    /// A dropout mask in device order: 0 with probability `p`, else `1 / (1 - p)`. Random numbers are drawn in the
    /// caller's order: time step, sequence, feature.
    pub(crate) fn dropout_mask(&self, rng: &mut ChaCha8Rng, p: f32, cols: usize) -> Vec<f32> {
        let threshold = (f64::from(p) * 4_294_967_296.0).round() as u64;
        let scale = 1.0 / (1.0 - p);
        let mut mask = vec![0.0; self.steps * self.batch * cols];
        let positions = self.positions();
        for step in mask.chunks_exact_mut(self.batch * cols) {
            for &k in &positions {
                for v in &mut step[k * cols..(k + 1) * cols] {
                    *v = if u64::from(rng.next_u32()) >= threshold { scale } else { 0.0 };
                }
            }
        }
        mask
    }
}
