//! Streaming: each call runs one time step or several, and the state is kept between calls.

use ndarray::{Array3, ArrayView3, s};

use crate::{
    backend::{Backend, State, shape::MatrixShape},
    error::{Error, Result},
    model::{
        input::{HostState, Input},
        layout::BatchLayout,
        lstm::{Lstm, block_on},
        run::DeviceBatch,
    },
};

/// A running model: it processes `batch` sequences side by side, whose samples are given as they arrive.
///
/// Outputs are bit-identical to [`Lstm::forward`] over the whole sequence, however it is cut into steps and chunks. A
/// stream keeps the weights that the model had when the stream was made.
pub struct Stream<B: Backend> {
    lstm: Lstm<B>,
    device_stream: B::Stream,
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
        let device_stream = lstm.backend().stream(lstm.device_layers(), batch)?;
        Ok(Stream { lstm: lstm.clone(), device_stream, batch })
    }

    /// Number of sequences side by side.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The model.
    pub fn lstm(&self) -> &Lstm<B> {
        &self.lstm
    }

    /// Runs one time step: reads `x: [batch, input_size]` and writes `y: [batch, output_size]`, both row-major. The CPU
    /// backend does not allocate here.
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has the wrong length; [`Error::Device`] if the device fails. The state is then
    /// unchanged.
    pub fn step(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        block_on(self.step_async(x, y))
    }

    /// [`step`](Self::step) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.lstm.backend().step(&mut self.device_stream, x, y).await
    }

    /// Runs any number of time steps, `(batch, steps, input_size)` to `(batch, steps, output_size)`, with the kernels for
    /// whole sequences. The state stays on the device.
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
        let input = Input::from(x);
        if x.dim().1 == 0 {
            return Ok(lstm.empty_output(&input)?.0);
        }
        let layout = BatchLayout::new(&input)?;
        let x = lstm.upload_rows(layout.to_device_rows(input.x)?, config.input_size)?;
        let initial_states = lstm.backend().stream_state(&self.device_stream)?;
        let mut plans = lstm.take_plans(&layout)?;
        let batch = DeviceBatch { layout: &layout, x, initial_states, dropout_seed: None };
        let result = lstm.run(batch, &mut plans, None);
        lstm.put_back_plans(plans);
        let output = result?;
        let y = lstm.backend().download_vec(output.y).await?;
        lstm.backend().set_stream_state(&mut self.device_stream, &output.states)?;
        Ok(layout.to_host(y))
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
        let mut out = HostState::zeros(self.lstm.config(), self.batch)?;
        for (k, state) in self.lstm.backend().stream_state(&self.device_stream)?.iter().enumerate() {
            for (array, tensor) in [(&mut out.h, &state.h), (&mut out.c, &state.c)] {
                let rows = self.lstm.backend().download_vec(tensor.clone()).await?;
                array.slice_mut(s![k, .., ..]).iter_mut().zip(rows).for_each(|(to, v)| *to = v);
            }
        }
        Ok(out)
    }

    /// Replaces the state of all layers.
    ///
    /// # Errors
    /// [`Error::Shape`] if a shape differs; [`Error::Device`] if the device fails. The state is then unchanged.
    pub fn set_state(&mut self, state: &HostState) -> Result<()> {
        let (b, config) = (self.lstm.backend(), self.lstm.config());
        state.check("set_state", config, self.batch)?;
        let upload = |array: &Array3<f32>, k: usize| {
            let layer = array.slice(s![k, .., ..]);
            let rows: Vec<f32> = layer.iter().copied().collect();
            b.upload(MatrixShape::new(layer.nrows(), layer.ncols()), &rows)
        };
        let layers = (0..config.num_layers).map(|k| Ok(State { h: upload(&state.h, k)?, c: upload(&state.c, k)? }));
        let layers: Vec<_> = layers.collect::<Result<_>>()?;
        b.set_stream_state(&mut self.device_stream, &layers)
    }

    /// Sets the state of all sequences to zero.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn reset(&mut self) -> Result<()> {
        self.set_state(&HostState::zeros(self.lstm.config(), self.batch)?)
    }

    /// Sets the state of some sequences to zero, for example where one audio recording ends and another starts in its
    /// place. Sequences are numbered from 0; the state of the others does not change. The whole state is copied to the
    /// host and back, which takes about as long as a step.
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
        if let Some(b) = sequences.iter().find(|&&b| b >= self.batch) {
            return Err(Error::shape("reset_sequences", format!("sequences below {}", self.batch), b));
        }
        let mut state = self.state_async().await?;
        for &b in sequences {
            for array in [&mut state.h, &mut state.c] {
                array.slice_mut(s![.., b, ..]).fill(0.0);
            }
        }
        self.set_state(&state)
    }
}
