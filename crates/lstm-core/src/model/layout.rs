//! The order of a batch's rows in device memory, and conversion from and to the caller's arrays.

use std::{borrow::Cow, ops::Range};

use ndarray::{Array3, ArrayView3, Axis, s};
use rand_chacha::{ChaCha8Rng, rand_core::RngCore};

use crate::{error::Result, memory, model::input::Input, shape::zeros};

/// The order of a batch's rows in device memory: time-major, the longest sequence first. At every time step the
/// sequences that have not ended are then the first rows.
#[derive(Debug)]
pub(crate) struct BatchLayout {
    /// Number of sequences.
    pub(crate) batch: usize,
    /// Number of time steps of the longest sequence.
    pub(crate) steps: usize,
    /// Number of time steps of each sequence, in descending order.
    pub(crate) lengths: Option<Vec<usize>>,
    /// For each sequence in device order, its index in the caller's array.
    host_indices: Vec<usize>,
    time_major: bool,
}

impl BatchLayout {
    /// Creates the layout of an input. The caller has checked the input.
    pub(crate) fn new(input: &Input<'_>) -> Result<Self> {
        Self::from_sizes(input.batch_and_steps(), input.lengths, input.time_major)
    }

    /// Creates the layout of a batch from `(batch, steps)` and the length of each sequence. The caller has checked the
    /// lengths.
    pub(crate) fn from_sizes(
        (batch, steps): (usize, usize),
        lengths: Option<&[usize]>,
        time_major: bool,
    ) -> Result<Self> {
        // An array without time steps takes no memory, but the order of its sequences does.
        let mut host_indices = memory::collect("input", batch, 0..batch)?;
        let lengths = match lengths {
            Some(lengths) => {
                // The index makes the order the same as that of a stable sort, which would allocate memory.
                host_indices.sort_unstable_by_key(|&b| (std::cmp::Reverse(lengths[b]), b));
                Some(memory::collect("input", batch, host_indices.iter().map(|&b| lengths[b]))?)
            }
            None => None,
        };
        Ok(BatchLayout { batch, steps, lengths, host_indices, time_major })
    }

    /// The layout of one row for each sequence, in the same order.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if the order of the sequences does not fit in memory.
    pub(crate) fn single_step(&self) -> Result<Self> {
        let host_indices = memory::copy("input", &self.host_indices)?;
        Ok(BatchLayout { steps: 1, lengths: None, host_indices, ..*self })
    }

    /// A copy of the layout.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let lengths = self.lengths.as_deref().map(|lengths| memory::copy("input", lengths)).transpose()?;
        Ok(BatchLayout { steps: self.steps, lengths, ..self.single_step()? })
    }

    /// The number of time steps of the sequence at position `k` in device order.
    pub(crate) fn length(&self, k: usize) -> usize {
        self.lengths.as_ref().map_or(self.steps, |lengths| lengths[k])
    }

    /// The sequences in device order in groups of equal length: the length and the positions of the sequences.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if they do not fit in memory.
    pub(crate) fn groups_of_equal_length(&self) -> Result<Vec<(usize, Range<usize>)>> {
        let max_groups = if self.lengths.is_some() { self.batch } else { 1 };
        let mut groups: Vec<(usize, Range<usize>)> = memory::with_capacity("lengths", &[max_groups])?;
        for k in 0..self.batch {
            match groups.last_mut() {
                Some((length, sequences)) if *length == self.length(k) => sequences.end = k + 1,
                _ => groups.push((self.length(k), k..k + 1)),
            }
        }
        Ok(groups)
    }

    /// For each row in device order, the index of its sequence in the caller's array and its time step; `None` beyond
    /// the end of the sequence.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Option<(usize, usize)>> {
        (0..self.steps).flat_map(move |t| {
            self.host_indices.iter().enumerate().map(move |(k, &b)| (t < self.length(k)).then_some((b, t)))
        })
    }

    /// The shape of the caller's array with `cols` features.
    pub(crate) fn host_shape(&self, cols: usize) -> (usize, usize, usize) {
        if self.time_major { (self.steps, self.batch, cols) } else { (self.batch, self.steps, cols) }
    }

    /// Whether the caller's array already has the order of rows that the device needs.
    fn is_host_layout(&self) -> bool {
        self.host_indices.is_sorted() && (self.time_major || self.batch == 1)
    }

    /// The position of each of the caller's sequences among the rows of a time step.
    fn device_positions(&self) -> Result<Vec<usize>> {
        let mut device_positions = memory::filled("input", &[self.batch], 0)?;
        self.host_indices.iter().enumerate().for_each(|(k, &b)| device_positions[b] = k);
        Ok(device_positions)
    }

    /// The rows of the caller's array in device order. The array is copied only if its layout differs.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if the copy does not fit in memory: a broadcast view may have more elements
    /// than the array that it views.
    pub(crate) fn to_device_rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        if let Some(rows) = x.to_slice()
            && self.is_host_layout()
        {
            return Ok(rows.into());
        }
        let mut rows = memory::with_capacity("input", &[x.len()])?;
        for step in x.axis_iter(Axis(if self.time_major { 0 } else { 1 })) {
            for &b in &self.host_indices {
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

    /// Like [`to_device_rows`](Self::to_device_rows), but the rows beyond the end of a sequence are +0.
    ///
    /// # Errors
    /// As for [`to_device_rows`](Self::to_device_rows).
    pub(crate) fn zero_padded_rows<'a>(&self, x: ArrayView3<'a, f32>) -> Result<Cow<'a, [f32]>> {
        let mut rows = self.to_device_rows(x)?;
        if let (Cow::Borrowed(borrowed), Some(lengths)) = (&rows, &self.lengths)
            && lengths.iter().any(|&len| len < self.steps)
        {
            rows = memory::copy("input", borrowed)?.into();
        }
        for (b, &len) in self.lengths.iter().flatten().enumerate().filter(|(_, len)| **len < self.steps) {
            let cols = rows.len() / (self.batch * self.steps);
            let rows = rows.to_mut();
            (len..self.steps).for_each(|t| rows[(t * self.batch + b) * cols..][..cols].fill(0.0));
        }
        Ok(rows)
    }

    /// Converts rows in device order to an array in the caller's layout, the inverse of
    /// [`to_device_rows`](Self::to_device_rows).
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if the array does not fit in memory.
    pub(crate) fn to_host(&self, rows: Vec<f32>) -> Result<Array3<f32>> {
        let (batch, steps) = (self.batch, self.steps);
        let cols = rows.len() / (batch * steps);
        let out = if self.is_host_layout() {
            rows
        } else {
            let device_positions = self.device_positions()?;
            let row = |t: usize, b: usize| &rows[(t * batch + device_positions[b]) * cols..][..cols];
            let mut out = memory::with_capacity("output", &[rows.len()])?;
            if self.time_major {
                (0..steps).for_each(|t| (0..batch).for_each(|b| out.extend_from_slice(row(t, b))));
            } else {
                (0..batch).for_each(|b| (0..steps).for_each(|t| out.extend_from_slice(row(t, b))));
            }
            out
        };
        Ok(Array3::from_shape_vec(self.host_shape(cols), out).expect("the number of rows matches the shape"))
    }

    /// The states of one layer and direction, one row for each sequence in device order. `k` is the index of the layer
    /// and direction in `states`. Without `states` the rows are zero.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if they do not fit in memory.
    pub(crate) fn state_rows(&self, states: Option<&Array3<f32>>, k: usize, cols: usize) -> Result<Vec<f32>> {
        let Some(states) = states else { return zeros("state", &[self.batch, cols]) };
        let mut rows = memory::with_capacity("state", &[self.batch, cols])?;
        for &b in &self.host_indices {
            let row = states.slice(s![k, b, ..]);
            match row.as_slice() {
                Some(row) => rows.extend_from_slice(row),
                None => rows.extend(row.iter()),
            }
        }
        Ok(rows)
    }

    /// Copies the states of all layers and directions, one row for each sequence in device order, to `states`, in the
    /// caller's order of sequences.
    pub(crate) fn states_to_host(&self, rows: &[f32], states: &mut Array3<f32>) {
        let cols = states.dim().2;
        for (k, row) in rows.chunks_exact(cols).enumerate() {
            let mut to = states.slice_mut(s![k / self.batch, self.host_indices[k % self.batch], ..]);
            to.iter_mut().zip(row).for_each(|(to, &v)| *to = v);
        }
    }

    /// A dropout mask in device order: 0 with probability `p`, else `1 / (1 - p)`. Random numbers are drawn in the
    /// caller's order: time step, sequence, feature.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) if it does not fit in memory.
    pub(crate) fn dropout_mask(&self, rng: &mut ChaCha8Rng, p: f32, cols: usize) -> Result<Vec<f32>> {
        let threshold = (f64::from(p) * 4_294_967_296.0).round() as u64;
        let scale = 1.0 / (1.0 - p);
        let mut mask = zeros("dropout", &[self.steps, self.batch, cols])?;
        let device_positions = self.device_positions()?;
        for step in mask.chunks_exact_mut(self.batch * cols) {
            for &k in &device_positions {
                for v in &mut step[k * cols..(k + 1) * cols] {
                    *v = if u64::from(rng.next_u32()) >= threshold { scale } else { 0.0 };
                }
            }
        }
        Ok(mask)
    }
}
