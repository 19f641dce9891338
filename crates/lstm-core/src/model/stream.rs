//! Streaming: one step or chunk at a time, with the state carried in between.

use ndarray::{Array3, ArrayView3, s};

use crate::{
    backend::{Backend, State},
    error::{Error, Result},
    model::input::{HostState, Input},
    model::lstm::{Lstm, wait},
    shape::MatrixShape,
};

/// A running model: `batch` sequences side by side that are fed as their samples arrive. Gives the same bits as
/// [`Lstm::forward`] over the whole sequence. It keeps the weights that the model had when the stream was made.
pub struct Stream<B: Backend> {
    lstm: Lstm<B>,
    inner: B::Stream,
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
        let inner = lstm.backend().stream(lstm.device_layers(), batch)?;
        Ok(Stream { lstm: lstm.clone(), inner, batch })
    }

    /// Number of sequences side by side.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The model it runs.
    pub fn lstm(&self) -> &Lstm<B> {
        &self.lstm
    }

    /// One step: reads `x: [batch, input]` and writes the output `y: [batch, output]`, both row-major. The CPU backend
    /// allocates nothing here.
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has the wrong length; what the device refuses. The state is then unchanged.
    pub fn step(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        wait(self.step_async(x, y))
    }

    /// [`step`](Self::step) without blocking the thread.
    ///
    /// # Errors
    /// As for `step`.
    pub async fn step_async(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.lstm.backend().step(&mut self.inner, x, y).await
    }

    /// Any number of steps, `(batch, steps, input)` to `(batch, steps, output)`, by the whole-sequence kernel.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch or the features differ; what the device refuses. The state is then unchanged.
    pub fn chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        wait(self.chunk_async(x))
    }

    /// [`chunk`](Self::chunk) without blocking the thread.
    ///
    /// # Errors
    /// As for `chunk`.
    pub async fn chunk_async(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        let want = [self.batch, x.dim().1, self.lstm.config().input_size];
        if x.shape() != want {
            return Err(Error::shape("chunk: x", format!("{want:?}"), format!("{:?}", x.shape())));
        }
        let state = self.state_async().await?;
        let (y, state) = self.lstm.forward_async(Input::from(x).state(&state)).await?;
        self.set_state(&state)?;
        Ok(y)
    }

    /// The current state of all layers.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn state(&self) -> Result<HostState> {
        wait(self.state_async())
    }

    /// [`state`](Self::state) without blocking the thread.
    ///
    /// # Errors
    /// As for `state`.
    pub async fn state_async(&self) -> Result<HostState> {
        let mut out = HostState::zeros(self.lstm.config(), self.batch)?;
        for (k, state) in self.lstm.backend().stream_state(&self.inner)?.iter().enumerate() {
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
    /// [`Error::Shape`] if it does not fit; what the device refuses. The state is then unchanged.
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
        b.set_stream_state(&mut self.inner, &layers)
    }

    /// Back to zero state.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn reset(&mut self) -> Result<()> {
        self.set_state(&HostState::zeros(self.lstm.config(), self.batch)?)
    }

    /// Back to zero state for some of the sequences, counted from 0, as for a speaker who hung up. The others go on as if
    /// nothing was. All of the state goes through the host once, which takes about as long as a step.
    ///
    /// # Errors
    /// [`Error::Shape`] for a sequence that is not there; what the device refuses. The state is then unchanged.
    pub fn reset_sequences(&mut self, sequences: &[usize]) -> Result<()> {
        wait(self.reset_sequences_async(sequences))
    }

    /// [`reset_sequences`](Self::reset_sequences) without blocking the thread.
    ///
    /// # Errors
    /// As for `reset_sequences`.
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
