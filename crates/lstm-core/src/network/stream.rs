//! Streams of whole models: each call runs one time step or several, and the states are kept between calls.

use ndarray::Array3;

use crate::{
    backend::Backend,
    error::{Error, Result},
    model::{BatchLayout, HostState, Stream, block_on},
    network::{
        input::{ModelInput, check_states, check_token, wrong_kind},
        model::{DeviceLayer, Model},
        run::DeviceInput,
        weights::ModelLayer,
    },
    reference::check_distinct,
    shape::zeros,
};

/// Runs a whole model on sequences whose samples arrive over time: `batch` sequences at once. The states of the LSTMs
/// are kept between calls. All results are bit-identical to those of [`Model::forward`] over the whole sequences.
///
/// In a model that [returns the last step](crate::ModelWeights::returns_last_step), each call returns what the model
/// returns if the sequences end there.
///
/// After an [`Error::Shape`] or an [`Error::Config`], which are about arguments, the states are unchanged. After any other
/// error of a call that changes them, such as [`Error::Device`] or [`Error::TooLarge`], some layers may have new states
/// and others not. So it is if the future of such a call is dropped before its end. **The states are then lost**: every
/// call fails until [`reset`](Self::reset) or [`set_states`](Self::set_states) succeeds.
///
/// ```
/// # use lstm_core::{Backend, Model, Result};
/// # fn example<B: Backend>(model: &Model<B>, microphone: impl Iterator<Item = [f32; 1]>) -> Result<()> {
/// let mut stream = model.stream(1)?;
/// let mut y = vec![0.0; model.weights().output_size()];
/// for sample in microphone {
///     stream.step(&sample, &mut y)?;
/// }
/// # Ok(()) }
/// ```
pub struct ModelStream<B: Backend> {
    model: Model<B>,
    /// One stream for each LSTM, in order.
    streams: Vec<Stream<B>>,
    batch: usize,
    /// The rows between two layers, and space for the output of the next layer.
    rows: [Vec<f32>; 2],
    /// Whether a call failed, or its future was dropped, after some layers had run.
    is_broken: bool,
}

impl<B: Backend> std::fmt::Debug for ModelStream<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelStream({:?}, batch {})", self.model, self.batch)
    }
}

/// The input of one time step: one row or one token for each sequence.
#[derive(Clone, Copy)]
enum StepInput<'a> {
    Features(&'a [f32]),
    Tokens(&'a [i64]),
}

impl<B: Backend> ModelStream<B> {
    pub(super) fn new(model: &Model<B>, batch: usize) -> Result<Self> {
        for (k, layer) in model.weights().layers().iter().enumerate() {
            if let ModelLayer::Lstm { name, weights, .. } = layer
                && weights.config().layer_specs().iter().any(|spec| spec.reverse)
            {
                let reason = format!(
                    "layer {k} (lstm `{name}`) has a reverse direction, which starts at the end of the sequence and can't \
                     be streamed; use Model::forward"
                );
                return Err(Error::config("direction", reason));
            }
        }
        if batch == 0 {
            return Err(Error::shape("stream: batch", "at least 1", 0));
        }
        let streams = model.lstms().map(|lstm| lstm.stream(batch)).collect::<Result<_>>()?;
        let sizes = model.weights().layers().iter().filter_map(ModelLayer::output_size);
        let size = sizes.max().unwrap_or_default().max(model.weights().input_size());
        let rows = [zeros("stream", &[batch, size])?, zeros("stream", &[batch, size])?];
        let mut stream = ModelStream { model: model.clone(), streams, batch, rows, is_broken: false };
        stream.reset()?;
        Ok(stream)
    }

    /// Number of sequences that the stream processes at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The model that the stream runs.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// Runs one time step: reads `x: [batch, input_size]` and writes `y: [batch, output_size]`, both row-major. The CPU
    /// backend does not allocate here, unless a layer runs by the [reference path](crate::ExecutionPath::Reference).
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has the wrong length or the model reads tokens; the states are then unchanged.
    /// [`Error::Device`] if the device fails, and [`Error::TooLarge`] if memory is missing; the states may then be
    /// [lost](Self), and later calls fail with [`Error::Device`].
    pub fn step(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        block_on(self.step_async(x, y))
    }

    /// [`step`](Self::step) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async(&mut self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.run_step(None, StepInput::Features(x), y).await
    }

    /// Runs one time step of a model with an embedding: reads one token for each sequence and writes
    /// `y: [batch, output_size]`, row-major. On the CPU this allocates as
    /// [`step`](Self::step) does.
    ///
    /// # Errors
    /// As for [`step`](Self::step), and [`Error::Shape`] for a token that the embedding does not have.
    pub fn step_tokens(&mut self, tokens: &[i64], y: &mut [f32]) -> Result<()> {
        block_on(self.step_tokens_async(tokens, y))
    }

    /// [`step_tokens`](Self::step_tokens) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step_tokens`](Self::step_tokens).
    pub async fn step_tokens_async(&mut self, tokens: &[i64], y: &mut [f32]) -> Result<()> {
        self.run_step(None, StepInput::Tokens(tokens), y).await
    }

    /// Runs one time step of the given sequences only. Row `k` of `x` and `y` belongs to sequence `sequences[k]`; see
    /// [`Stream::step_some`]. The states of the other sequences do not change.
    ///
    /// # Errors
    /// As for [`step`](Self::step), and [`Error::Shape`] if a number is not less than [`batch`](Self::batch) or occurs
    /// twice.
    pub fn step_some(&mut self, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        block_on(self.step_some_async(sequences, x, y))
    }

    /// [`step_some`](Self::step_some) without blocking the thread.
    ///
    /// # Errors
    /// As for [`step_some`](Self::step_some).
    pub async fn step_some_async(&mut self, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        self.run_step(Some(sequences), StepInput::Features(x), y).await
    }

    /// Runs any number of time steps with the kernels for whole sequences. The input has the shape
    /// `(batch, steps, input_size)`, or `(batch, steps)` for tokens. The output is that of [`Model::forward`]. The
    /// states stay on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch or the number of features differs, or without time steps if the model returns the
    /// last one; [`Error::Config`] if the input has lengths, states or dropout; [`Error::Device`] if the device fails;
    /// [`Error::TooLarge`] if memory is missing. The layers get their new states at the end. The states are
    /// [lost](Self) only if that fails; after other errors they are unchanged.
    pub fn chunk<'a>(&mut self, input: impl Into<ModelInput<'a>>) -> Result<Array3<f32>> {
        block_on(self.chunk_async(input))
    }

    /// [`chunk`](Self::chunk) without blocking the thread.
    ///
    /// # Errors
    /// As for [`chunk`](Self::chunk).
    pub async fn chunk_async<'a>(&mut self, input: impl Into<ModelInput<'a>>) -> Result<Array3<f32>> {
        self.check_usable()?;
        let (model, input) = (&self.model, input.into());
        input.check("chunk", model.weights())?;
        if input.lengths.is_some() || input.states.is_some() || input.dropout.is_some() {
            let reason = "a chunk runs all sequences for the same number of steps from the stream's states: expected an \
                          input without lengths, states and dropout";
            return Err(Error::config("input", reason));
        }
        let (batch, steps) = input.batch_and_steps();
        if batch != self.batch {
            return Err(Error::shape("chunk: batch", self.batch, batch));
        }
        if steps == 0 && model.weights().returns_last_step() {
            return Err(Error::shape("chunk: steps", "at least 1, as the model returns the last step", 0));
        }
        if let Some(y) = model.empty_output(batch, steps)? {
            return Ok(y);
        }
        let layout = BatchLayout::from_sizes((batch, steps), None, false)?;
        let x = model.upload_input(&input, &layout, false)?;
        let initial_states = self.streams.iter().map(Stream::device_state).collect::<Result<_>>()?;
        let output = model.run(DeviceInput { layout: &layout, x, initial_states, dropout: None }, None)?;
        let y = model.download_output(&input, &layout, output.y, true).await?;
        self.is_broken = true;
        for (stream, states) in self.streams.iter_mut().zip(&output.states) {
            stream.set_device_state(states)?;
        }
        self.is_broken = false;
        Ok(y)
    }

    /// A copy of the current states of the LSTMs, in order.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, or if the states are [lost](Self); [`Error::TooLarge`] if memory is
    /// missing.
    pub fn states(&self) -> Result<Vec<HostState>> {
        block_on(self.states_async())
    }

    /// [`states`](Self::states) without blocking the thread.
    ///
    /// # Errors
    /// As for [`states`](Self::states).
    pub async fn states_async(&self) -> Result<Vec<HostState>> {
        self.check_usable()?;
        let mut states = Vec::with_capacity(self.streams.len());
        for stream in &self.streams {
            states.push(stream.state_async().await?);
        }
        Ok(states)
    }

    /// Replaces the states of the LSTMs: one state for each, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of states or a shape differs; the states are then unchanged. [`Error::Device`] and
    /// [`Error::TooLarge`] as for [`step`](Self::step).
    pub fn set_states(&mut self, states: &[HostState]) -> Result<()> {
        check_states("set_states", self.model.weights(), states, self.batch)?;
        // The uploads come first: if one fails, the stream is unchanged.
        let uploads = self.streams.iter().zip(states).map(|(stream, state)| stream.upload_state(state));
        let states: Vec<_> = uploads.collect::<Result<_>>()?;
        self.is_broken = true;
        self.streams.iter_mut().zip(&states).try_for_each(|(stream, state)| stream.set_device_state(state))?;
        self.is_broken = false;
        Ok(())
    }

    /// Sets the states of all sequences to the model's initial states, which are zero by default.
    ///
    /// # Errors
    /// [`Error::Device`] and [`Error::TooLarge`] as for [`step`](Self::step).
    pub fn reset(&mut self) -> Result<()> {
        let states = self.model.host_states(self.batch, None)?;
        self.set_states(&states)
    }

    /// Fails if an earlier call failed after some layers had run.
    fn check_usable(&self) -> Result<()> {
        if !self.is_broken {
            return Ok(());
        }
        let reason =
            "an earlier call failed after some layers had run, so the states are lost; call reset or set_states";
        Err(Error::Device { backend: self.model.backend().name().into(), op: "stream", reason: reason.into() })
    }

    /// Runs one time step of the given sequences, or of all.
    async fn run_step(&mut self, sequences: Option<&[usize]>, input: StepInput<'_>, y: &mut [f32]) -> Result<()> {
        self.check_usable()?;
        self.load_rows(sequences, input, y)?;
        let num_rows = sequences.map_or(self.batch, <[usize]>::len);
        if num_rows == 0 {
            return Ok(());
        }
        self.is_broken = !self.streams.is_empty();
        let (model, weights) = (&self.model, self.model.weights());
        let mut size = weights.input_size();
        let [mut rows, mut next_rows] = self.rows.each_mut();
        let mut streams = self.streams.iter_mut();
        for (layer, device_layer) in weights.layers().iter().zip(model.device_layers()) {
            let next_size = layer.output_size().unwrap_or(size);
            let (x, next) = (&mut rows[..num_rows * size], &mut next_rows[..num_rows * next_size]);
            match (layer, device_layer) {
                // `load_rows` looked up the rows of the embedding.
                (ModelLayer::Embedding { .. }, _) => {}
                (ModelLayer::Lstm { .. }, _) => {
                    if let Some(stream) = streams.next() {
                        match sequences {
                            Some(sequences) => stream.step_some_async(sequences, x, next).await?,
                            None => stream.step_async(x, next).await?,
                        }
                    }
                    std::mem::swap(&mut rows, &mut next_rows);
                }
                (ModelLayer::Linear { .. }, DeviceLayer::Linear(linear)) => {
                    model.backend().linear_step(linear, x, next).await?;
                    std::mem::swap(&mut rows, &mut next_rows);
                }
                (ModelLayer::Activation(activation), _) => activation.apply_on_host(x),
                _ => {}
            }
            size = next_size;
        }
        y.copy_from_slice(&rows[..num_rows * size]);
        for (k, y) in y.chunks_exact_mut(size).enumerate() {
            if let Some(softmax) = weights.softmax() {
                softmax.apply_softmax(y);
            }
            let x = match input {
                StepInput::Features(x) => &x[k * weights.input_size()..(k + 1) * weights.input_size()],
                StepInput::Tokens(_) => &[],
            };
            weights.add_skip_and_gain(y, x);
        }
        self.is_broken = false;
        Ok(())
    }

    /// Checks the arguments of a step, and copies the features, times the input gain, or the rows of the embedding to
    /// `rows`.
    fn load_rows(&mut self, sequences: Option<&[usize]>, input: StepInput<'_>, y: &[f32]) -> Result<()> {
        let op = if sequences.is_some() { "step_some" } else { "step" };
        let weights = self.model.weights();
        if let Some(sequences) = sequences {
            check_distinct(sequences, self.batch)?;
        }
        let num_rows = sequences.map_or(self.batch, <[usize]>::len);
        let check_len = |argument: &str, size: usize, len: usize| {
            if num_rows.checked_mul(size) == Some(len) {
                return Ok(());
            }
            let expected = format!("{} values ({num_rows} x {size})", num_rows.saturating_mul(size));
            Err(Error::shape(format!("{op}: {argument}"), expected, format!("{len} values")))
        };
        check_len("y", weights.output_size(), y.len())?;
        match (input, weights.layers().first()) {
            (StepInput::Tokens(tokens), Some(ModelLayer::Embedding { weight, .. })) => {
                check_len("tokens", 1, tokens.len())?;
                for (k, (&token, row)) in tokens.iter().zip(self.rows[0].chunks_exact_mut(weight.ncols())).enumerate() {
                    let index = check_token(weights, token, || format!("step: tokens[{k}]"))?;
                    row.iter_mut().zip(weight.row(index)).for_each(|(to, v)| *to = *v);
                }
            }
            (StepInput::Features(_), Some(ModelLayer::Embedding { .. })) => {
                return Err(wrong_kind(&format!("{op}: x"), true));
            }
            (StepInput::Features(x), _) => {
                check_len("x", weights.input_size(), x.len())?;
                let gain = weights.input_gain();
                self.rows[0].iter_mut().zip(x).for_each(|(to, x)| *to = gain * x);
            }
            (StepInput::Tokens(_), _) => return Err(wrong_kind("step_tokens", false)),
        }
        Ok(())
    }
}
