//! Streaming: each call runs one time step or several, and the state is kept between calls.

use std::ops::Range;

use ndarray::{Array3, ArrayView3, s};

use crate::{
    backend::{Backend, State, shape::MatrixShape},
    error::{Error, Result},
    memory,
    model::{
        block_on::block_on,
        broadcast::check_repeated,
        device_layer::DeviceStream,
        input::{HostState, Input},
        layout::BatchLayout,
        lstm::Lstm,
        run::DeviceBatch,
    },
};

/// Runs a model on sequences whose samples arrive over time: `batch` sequences at once. The state is kept between
/// calls.
///
/// Outputs are bit-identical to [`Lstm::forward`] over the whole sequence, no matter how many time steps each call
/// runs. A stream keeps the weights that the model had when the stream was made.
pub struct Stream<B: Backend> {
    lstm: Lstm<B>,
    device_stream: DeviceStream<B>,
    batch: usize,
}

impl<B: Backend> std::fmt::Debug for Stream<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({:?}, batch {})", self.lstm, self.batch)
    }
}

impl<B: Backend> Stream<B> {
    pub(crate) fn new(lstm: &Lstm<B>, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::shape("stream: batch", "at least 1", 0));
        }
        let device_stream = DeviceStream::new(lstm.backend(), lstm.device_layers(), batch)?;
        Ok(Stream { lstm: lstm.clone(), device_stream, batch })
    }

    /// Number of sequences that the stream processes at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The model that the stream runs.
    pub fn lstm(&self) -> &Lstm<B> {
        &self.lstm
    }

    /// Runs one time step: reads `x: [batch, input_size]` and writes `y: [batch, output_size]`, both row-major. The CPU
    /// backend does not allocate here, unless a layer runs by the [reference path](crate::ExecutionPath::Reference).
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has the wrong length; [`Error::Device`] if the device fails. The state is then
    /// unchanged.
    pub fn step(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        // Not `step_async`: nested futures would take a tenth of a small step.
        self.device_stream.step_blocking(self.lstm.backend(), x, y)
    }

    /// [`step`](Self::step) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.device_stream.step(self.lstm.backend(), x, y).await
    }

    /// Runs one time step of the given sequences only, for example while the others have no input. Row `k` of `x` and
    /// `y` belongs to sequence `sequences[k]`. Sequences are numbered from 0, in any order; ascending order is fastest.
    /// The states of the other sequences do not change. The outputs are bit-identical to those of [`step`](Self::step).
    /// On the CPU the work is that of a batch of `sequences.len()`, and nothing is allocated, except by the reference path.
    /// The GPU backends run the whole batch.
    ///
    /// ```
    /// # fn example(mut stream: lstm_core::Stream<impl lstm_core::Backend>) -> lstm_core::Result<()> {
    /// // Of 100 clients, numbers 3 and 7 have sent a sample of 2 features.
    /// let (x, mut y) = ([0.1, 0.2, 0.3, 0.4], vec![0.0; 2 * stream.lstm().config().output_size()]);
    /// stream.step_some(&[3, 7], &x, &mut y)
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if a number is not less than [`batch`](Self::batch) or occurs twice, or if a slice has the wrong
    /// length; [`Error::Device`] if the device fails. The state is then unchanged.
    pub fn step_some(&mut self, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        block_on(self.step_some_async(sequences, x, y))
    }

    /// [`step_some`](Self::step_some) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step_some`](Self::step_some).
    pub async fn step_some_async(&mut self, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        self.device_stream.step_some(self.lstm.backend(), sequences, x, y).await
    }

    /// Runs any number of time steps with the kernels for whole sequences. The input has the shape
    /// `(batch, steps, input_size)`, and the output `(batch, steps, output_size)`. The state stays on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch or the number of features differs; [`Error::Device`] if the device fails. The state
    /// is then unchanged.
    pub fn chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        block_on(self.chunk_async(x))
    }

    /// [`chunk`](Self::chunk) without blocking the thread.
    ///
    /// # Errors
    /// As for [`chunk`](Self::chunk).
    pub async fn chunk_async(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        let (lstm, config) = (&self.lstm, self.lstm.config());
        let expected = [self.batch, x.dim().1, config.input_size];
        if x.shape() != expected {
            return Err(Error::shape("chunk: x", format!("{expected:?}"), format!("{:?}", x.shape())));
        }
        check_repeated("chunk: x", &x)?;
        let input = Input::from(x);
        if x.dim().1 == 0 {
            return Ok(lstm.empty_output(&input)?.0);
        }
        let layout = BatchLayout::new(&input)?;
        let x = lstm.upload_rows(layout.to_device_rows(input.x)?, config.input_size)?;
        let initial_states = self.device_state()?;
        let mut plans = lstm.take_plans(&layout)?;
        let batch = DeviceBatch { layout: &layout, x, initial_states, dropout: None };
        let result = lstm.run(batch, &mut plans, None);
        lstm.put_back_plans(plans);
        let output = result?;
        let y = layout.to_host(lstm.backend().download_vec(output.y).await?)?;
        self.set_device_state(&output.states)?;
        Ok(y)
    }

    /// A copy of the current state of all layers.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn state(&self) -> Result<HostState> {
        block_on(self.state_async())
    }

    /// [`state`](Self::state) without blocking the thread.
    ///
    /// # Errors
    /// As for [`state`](Self::state).
    pub async fn state_async(&self) -> Result<HostState> {
        self.download_state(0..self.batch).await
    }

    /// Replaces the state of all layers.
    ///
    /// # Errors
    /// [`Error::Shape`] if a shape differs; [`Error::Device`] if the device fails. The state is then unchanged.
    pub fn set_state(&mut self, state: &HostState) -> Result<()> {
        state.check("set_state", self.lstm.config(), self.batch)?;
        self.set_rows(0, state)
    }

    /// Returns the state of one sequence and sets it to zero in the stream, for example when a client pauses. Sequences
    /// are numbered from 0. The result is a state for a batch of 1. [`put_state`](Self::put_state) puts it back, in
    /// this stream or in another one of the same model, on any backend.
    ///
    /// # Errors
    /// [`Error::Shape`] if `sequence` is not less than [`batch`](Self::batch); [`Error::Device`] if the device fails. The
    /// state is then unchanged.
    pub fn take_state(&mut self, sequence: usize) -> Result<HostState> {
        block_on(self.take_state_async(sequence))
    }

    /// [`take_state`](Self::take_state) without blocking the thread.
    ///
    /// # Errors
    /// As for [`take_state`](Self::take_state).
    pub async fn take_state_async(&mut self, sequence: usize) -> Result<HostState> {
        self.check_sequence("take_state", sequence)?;
        let state = self.download_state(sequence..sequence + 1).await?;
        self.set_rows(sequence, &HostState::zeros(self.lstm.config(), 1)?)?;
        Ok(state)
    }

    /// Replaces the state of one sequence by a state for a batch of 1. The states of the other sequences do not change.
    ///
    /// # Errors
    /// [`Error::Shape`] if `sequence` is not less than [`batch`](Self::batch) or a shape differs; [`Error::Device`] if the
    /// device fails. The state is then unchanged.
    pub fn put_state(&mut self, sequence: usize, state: &HostState) -> Result<()> {
        self.check_sequence("put_state", sequence)?;
        state.check("put_state", self.lstm.config(), 1)?;
        self.set_rows(sequence, state)
    }

    /// Sets the state of all sequences to zero.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn reset(&mut self) -> Result<()> {
        self.set_state(&HostState::zeros(self.lstm.config(), self.batch)?)
    }

    /// Sets the state of some sequences to zero, for example when a new speaker takes the place of one who left.
    /// Sequences are numbered from 0. The states of the other sequences do not change.
    ///
    /// # Errors
    /// [`Error::Shape`] if a number is not less than [`batch`](Self::batch); [`Error::Device`] if the device fails. The
    /// state is then unchanged.
    pub fn reset_sequences(&mut self, sequences: &[usize]) -> Result<()> {
        block_on(self.reset_sequences_async(sequences))
    }

    /// [`reset_sequences`](Self::reset_sequences) without blocking the thread.
    ///
    /// # Errors
    /// As for [`reset_sequences`](Self::reset_sequences).
    pub async fn reset_sequences_async(&mut self, sequences: &[usize]) -> Result<()> {
        sequences.iter().try_for_each(|&b| self.check_sequence("reset_sequences", b))?;
        let (Some(&first), Some(&last)) = (sequences.iter().min(), sequences.iter().max()) else { return Ok(()) };
        // One upload replaces the range from the first to the last sequence, so that an error leaves all as they were.
        let mut state = self.download_state(first..last + 1).await?;
        for &b in sequences {
            for array in [&mut state.h, &mut state.c] {
                array.slice_mut(s![.., b - first, ..]).fill(0.0);
            }
        }
        self.set_rows(first, &state)
    }

    /// The state of each layer on the device.
    pub(crate) fn device_state(&self) -> Result<Vec<State<B::Tensor>>> {
        self.device_stream.state(self.lstm.backend(), 0..self.batch)
    }

    /// Replaces the state of all layers by one on the device.
    pub(crate) fn set_device_state(&mut self, state: &[State<B::Tensor>]) -> Result<()> {
        self.device_stream.set_state(self.lstm.backend(), 0, state)
    }

    /// Checks that the stream has a sequence with this number.
    fn check_sequence(&self, op: &str, sequence: usize) -> Result<()> {
        if sequence < self.batch {
            return Ok(());
        }
        Err(Error::shape(op, format!("sequences below {}", self.batch), sequence))
    }

    /// Downloads the state of a range of sequences.
    async fn download_state(&self, sequences: Range<usize>) -> Result<HostState> {
        let mut out = HostState::zeros(self.lstm.config(), sequences.len())?;
        for (k, state) in self.device_stream.state(self.lstm.backend(), sequences)?.iter().enumerate() {
            for (array, tensor) in [(&mut out.h, &state.h), (&mut out.c, &state.c)] {
                let rows = self.lstm.backend().download_vec(tensor.clone()).await?;
                array.slice_mut(s![k, .., ..]).iter_mut().zip(rows).for_each(|(to, v)| *to = v);
            }
        }
        Ok(out)
    }

    /// Replaces the states of consecutive sequences, from number `first_sequence` on. The caller has checked the shapes
    /// of `state`.
    fn set_rows(&mut self, first_sequence: usize, state: &HostState) -> Result<()> {
        let state = self.upload_state(state)?;
        self.device_stream.set_state(self.lstm.backend(), first_sequence, &state)
    }

    /// Uploads the state of each layer.
    pub(crate) fn upload_state(&self, state: &HostState) -> Result<Vec<State<B::Tensor>>> {
        let b = self.lstm.backend();
        let upload = |array: &Array3<f32>, k: usize| {
            let layer = array.slice(s![k, .., ..]);
            let rows = memory::collect("state", layer.len(), layer.iter().copied())?;
            b.upload_vec(MatrixShape::new(layer.nrows(), layer.ncols()), rows)
        };
        let layers = 0..self.lstm.config().num_layers;
        let layers = layers.map(|k| Ok(State { h: upload(&state.h, k)?, c: upload(&state.c, k)? }));
        layers.collect()
    }
}
