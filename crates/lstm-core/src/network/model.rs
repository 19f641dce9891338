//! The model on a device and its forward pass.

use std::{borrow::Cow, fmt, iter::repeat_n, sync::Arc};

use ndarray::{Array3, Axis, IntoDimension, s};

use crate::{
    backend::{
        Backend, ExecutionPath, State,
        shape::{MatrixShape, checked_len},
    },
    error::{Error, Result},
    memory,
    model::{BatchLayout, HostState, Lstm, block_on, load_linear},
    network::{
        input::{ModelInput, ModelOutput, Values, check_token, wrong_kind},
        run::DeviceInput,
        stream::ModelStream,
        weights::{ModelLayer, ModelWeights},
    },
    weights::Weights,
};

/// A whole network on a backend: a chain of an embedding, LSTMs, fully connected layers and activations, as
/// [`ModelWeights`] describes it. `docs/specification.md` defines its results to the bit under "Model".
///
/// A clone is cheap and shares the weights and the workspaces. [`forward`](Self::forward) takes `&self`, so several
/// threads may run one model at the same time.
///
/// ```
/// use lstm_core::{Activation, Backend, Init, LstmConfig, Model, ModelLayer, ModelWeights, Result, Weights, ndarray::Array2};
/// # fn example<B: Backend>(backend: &B) -> Result<()> {
/// let lstm = Weights::init(LstmConfig::new(16, 32), &Init::default(), 1)?;
/// let weights = ModelWeights::new(vec![
///     ModelLayer::Embedding { name: "emb".into(), weight: Array2::zeros((1000, 16)) },
///     ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None },
///     ModelLayer::LastStep,
///     ModelLayer::Linear { name: "out".into(), weight: Array2::zeros((5, 32)), bias: None },
///     ModelLayer::Activation(Activation::Softmax),
/// ])?;
/// let model = Model::new(backend, weights)?;
/// let tokens = Array2::from_elem((4, 10), 7i64); // batch, steps
/// let probabilities = model.forward(&tokens)?.y; // (4, 1, 5)
/// # let _ = probabilities; Ok(()) }
/// ```
pub struct Model<B: Backend> {
    backend: B,
    weights: Arc<ModelWeights>,
    layers: Arc<[DeviceLayer<B>]>,
}

/// A layer on the device.
pub(super) enum DeviceLayer<B: Backend> {
    /// An LSTM.
    Lstm(Lstm<B>),
    /// A fully connected layer.
    Linear(B::Linear),
    /// A layer without weights on the device. The rows of an embedding are looked up on the host.
    Other,
}

impl<B: Backend> Clone for Model<B> {
    fn clone(&self) -> Self {
        Model { backend: self.backend.clone(), weights: self.weights.clone(), layers: self.layers.clone() }
    }
}

impl<B: Backend> fmt::Debug for Model<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.weights.layers().iter().map(ModelLayer::kind).collect();
        write!(f, "Model({} on {})", kinds.join(", "), self.backend.name())
    }
}

impl<B: Backend> Model<B> {
    /// Creates a model and uploads the weights of its layers to the backend's device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, for example for lack of memory.
    pub fn new(backend: &B, weights: impl Into<Arc<ModelWeights>>) -> Result<Self> {
        let weights = weights.into();
        let load = |(k, layer): (usize, &ModelLayer)| {
            Ok(match layer {
                ModelLayer::Lstm { weights, .. } => DeviceLayer::Lstm(Lstm::new(backend, weights.clone())?),
                ModelLayer::Linear { weight, bias, .. } => {
                    DeviceLayer::Linear(load_linear(backend, weight, bias.as_ref(), weights.quantized(k)?)?)
                }
                _ => DeviceLayer::Other,
            })
        };
        let layers = weights.layers().iter().enumerate().map(load).collect::<Result<_>>()?;
        Ok(Model { backend: backend.clone(), weights, layers })
    }

    /// The layers and parameters as they were given, without [`snap`](crate::arithmetic::snap).
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// For each layer and direction of each LSTM, the code that runs it.
    pub fn paths(&self) -> Vec<ExecutionPath> {
        self.lstms().flat_map(Lstm::paths).collect()
    }

    /// Replaces the parameters by those of a model with the same layers. Running streams and tapes keep the old ones.
    ///
    /// # Errors
    /// [`Error::Config`], which names the first layer whose kind, name, sizes or options differ, or what surrounds the
    /// layers; [`Error::Device`] if the device fails. The model is then unchanged.
    pub fn set_weights(&mut self, weights: impl Into<Arc<ModelWeights>>) -> Result<()> {
        let weights = weights.into();
        let (old, new) = (self.weights.describe(), weights.describe());
        if let Some((old, new)) = old.iter().zip(&new).find(|(old, new)| old != new) {
            return Err(Error::config("weights", format!("expected {old}, got {new}")));
        }
        if old.len() != new.len() {
            return Err(Error::config("weights", format!("expected {} layers, got {}", old.len() - 1, new.len() - 1)));
        }
        let reload = |(k, (layer, new)): (usize, (&DeviceLayer<B>, &ModelLayer))| {
            Ok(match (layer, new) {
                (DeviceLayer::Lstm(lstm), ModelLayer::Lstm { weights, .. }) => {
                    let mut lstm = lstm.clone();
                    lstm.set_weights(weights.clone())?;
                    DeviceLayer::Lstm(lstm)
                }
                (DeviceLayer::Linear(_), ModelLayer::Linear { weight, bias, .. }) => {
                    DeviceLayer::Linear(load_linear(&self.backend, weight, bias.as_ref(), weights.quantized(k)?)?)
                }
                _ => DeviceLayer::Other,
            })
        };
        let layers = self.layers.iter().zip(weights.layers()).enumerate().map(reload).collect::<Result<_>>()?;
        (self.layers, self.weights) = (layers, weights);
        Ok(())
    }

    /// Creates a stream that runs `batch` sequences from the model's initial states. Each call runs the next time step,
    /// or a chunk of time steps. In a model that returns the last step, each call returns what the model returns if the
    /// sequences end there.
    ///
    /// # Errors
    /// [`Error::Config`], which names the layer, if an LSTM has a reverse direction;
    /// [`Error::Shape`] for a batch of 0.
    pub fn stream(&self, batch: usize) -> Result<ModelStream<B>> {
        ModelStream::new(self, batch)
    }

    /// Runs the model over a batch of sequences: an array of features `(batch, steps, input_size)`, or an array of
    /// tokens `(batch, steps)` for a model with an embedding. Returns the outputs and the final states of the LSTMs.
    ///
    /// This waits for the device. Where a thread must not block, as in a browser, use
    /// [`forward_async`](Self::forward_async).
    ///
    /// A sequence without time steps, by its length or because the array has none, ends in its initial state. Then
    /// [`ModelLayer::LastStep`] gives zeros and [`ModelLayer::FinalState`] the initial hidden state.
    ///
    /// # Errors
    /// [`Error::Shape`] names the argument, the expected and the given shape, or the place of a
    /// token that the embedding does not have; [`Error::Device`] if the device fails.
    pub fn forward<'a>(&self, input: impl Into<ModelInput<'a>>) -> Result<ModelOutput> {
        block_on(self.forward_async(input))
    }

    /// Asynchronous [`forward`](Self::forward), which does not block the thread.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub async fn forward_async<'a>(&self, input: impl Into<ModelInput<'a>>) -> Result<ModelOutput> {
        let input = input.into();
        input.check("forward", &self.weights)?;
        let (batch, steps) = input.batch_and_steps();
        if let Some(y) = self.empty_output(batch, steps)? {
            return Ok(ModelOutput { y, states: self.host_states(batch, input.states)? });
        }
        let layout = BatchLayout::from_sizes((batch, steps), input.lengths, false)?;
        let initial_states = self.upload_states(&layout, input.states)?;
        let x = self.upload_input(&input, &layout, false)?;
        let output = self.run(DeviceInput { layout: &layout, x, initial_states, dropout: input.dropout }, None)?;
        let y = self.download_output(&input, &layout, output.y, true).await?;
        // Without time steps, the states do not change, not even by snap.
        let states = match steps {
            0 => self.host_states(batch, input.states)?,
            _ => self.download_states(&layout, &output.states).await?,
        };
        Ok(ModelOutput { y, states })
    }

    /// The layers on the device, in the order of [`ModelWeights::layers`].
    pub(super) fn device_layers(&self) -> &[DeviceLayer<B>] {
        &self.layers
    }

    /// The LSTMs, in order.
    pub(super) fn lstms(&self) -> impl Iterator<Item = &Lstm<B>> {
        self.layers.iter().filter_map(|layer| match layer {
            DeviceLayer::Lstm(lstm) => Some(lstm),
            _ => None,
        })
    }

    /// The output for a batch that needs no computation; `None` for any other.
    pub(super) fn empty_output(&self, batch: usize, steps: usize) -> Result<Option<Array3<f32>>> {
        let rows = if self.weights.returns_last_step() { 1 } else { steps };
        let shape = (batch, rows, self.weights.output_size());
        checked_len("forward", &[shape.0, shape.1, shape.2])?;
        (batch == 0 || rows == 0).then(|| memory::zero_array("forward", shape.into_dimension())).transpose()
    }

    /// The initial states for `batch` sequences: those of the caller, else those of the model, else zero.
    pub(super) fn host_states(&self, batch: usize, states: Option<&[HostState]>) -> Result<Vec<HostState>> {
        if let Some(states) = states {
            return states.iter().map(HostState::try_clone).collect();
        }
        let layers = self.weights.layers().iter().filter_map(|layer| match layer {
            ModelLayer::Lstm { weights, initial_state, .. } => Some((weights, initial_state)),
            _ => None,
        });
        let repeat = |to: &mut Array3<f32>, from: &Array3<f32>| {
            to.axis_iter_mut(Axis(1)).for_each(|mut to| to.assign(&from.index_axis(Axis(1), 0)));
        };
        let expand = |(weights, own): (&Arc<Weights>, &Option<HostState>)| {
            let mut state = HostState::zeros(weights.config(), batch)?;
            if let Some(own) = own {
                repeat(&mut state.h, &own.h);
                repeat(&mut state.c, &own.c);
            }
            Ok(state)
        };
        layers.map(expand).collect()
    }

    /// Uploads the initial states of each layer and direction of each LSTM.
    pub(super) fn upload_states(
        &self,
        layout: &BatchLayout,
        states: Option<&[HostState]>,
    ) -> Result<Vec<Vec<State<B::Tensor>>>> {
        let own_states;
        let states = match states {
            Some(states) => states,
            None => {
                own_states = self.host_states(layout.batch, None)?;
                &own_states
            }
        };
        self.lstms().zip(states).map(|(lstm, state)| lstm.upload_states(layout, Some(state))).collect()
    }

    /// Uploads the input in device order: the features times the input gain, or the rows of the embedding. `None`
    /// without time steps. Features beyond a sequence's length are uploaded as they are, or as +0 if `pad` is set.
    pub(super) fn upload_input(
        &self,
        input: &ModelInput<'_>,
        layout: &BatchLayout,
        pad: bool,
    ) -> Result<Option<B::Tensor>> {
        if layout.steps == 0 {
            return Ok(None);
        }
        let num_rows = checked_len("forward", &[layout.steps, layout.batch])?;
        let tensor = match (input.values, self.weights.layers().first()) {
            (Values::Tokens(tokens), Some(ModelLayer::Embedding { weight, .. })) => {
                let cols = weight.ncols();
                let mut rows: Vec<f32> = memory::with_capacity("forward", &[num_rows, cols])?;
                for row in layout.rows() {
                    match row {
                        Some((b, t)) => {
                            let index = check_token(&self.weights, tokens[[b, t]], || format!("tokens[{b}, {t}]"))?;
                            rows.extend(weight.row(index));
                        }
                        None => rows.extend(repeat_n(0.0, cols)),
                    }
                }
                self.backend.upload_vec(MatrixShape::new(num_rows, cols), rows)?
            }
            (Values::Features(x), _) => {
                let shape = MatrixShape::new(num_rows, self.weights.input_size());
                let mut rows = if pad { layout.zero_padded_rows(x)? } else { layout.to_device_rows(x)? };
                let gain = self.weights.input_gain();
                if gain != 1.0 {
                    let scaled = match rows {
                        Cow::Owned(mut rows) => {
                            rows.iter_mut().for_each(|v| *v *= gain);
                            rows
                        }
                        Cow::Borrowed(rows) => memory::collect("forward", rows.len(), rows.iter().map(|v| v * gain))?,
                    };
                    rows = scaled.into();
                }
                match rows {
                    Cow::Owned(rows) => self.backend.upload_vec(shape, rows)?,
                    Cow::Borrowed(rows) => self.backend.upload(shape, rows)?,
                }
            }
            (Values::Tokens(_), _) => return Err(wrong_kind("forward", false)),
        };
        Ok(Some(tensor))
    }

    /// Downloads the output of the layers, arranges it in the caller's order, and computes what the host adds: the
    /// softmax if `softmax` is set, the skip connection and the gain. Outputs beyond a sequence's length are +0.
    pub(super) async fn download_output(
        &self,
        input: &ModelInput<'_>,
        layout: &BatchLayout,
        y: Option<B::Tensor>,
        softmax: bool,
    ) -> Result<Array3<f32>> {
        let Some(y) = y else { return Ok(Array3::zeros((layout.batch, 0, self.weights.output_size()))) };
        let rows = self.backend.download_vec(y).await?;
        let is_last_step = self.weights.returns_last_step();
        let mut y = if is_last_step { layout.single_step()?.to_host(rows)? } else { layout.to_host(rows)? };
        let (softmax, x) = (self.weights.softmax().filter(|_| softmax), input.features());
        for (b, mut sequence) in y.outer_iter_mut().enumerate() {
            for (t, mut row) in sequence.outer_iter_mut().enumerate() {
                let row = row.as_slice_mut().expect("the array was made row-major");
                if let Some(softmax) = softmax {
                    softmax.apply_softmax(row);
                }
                let x = x.as_ref().filter(|_| !is_last_step).map(|x| x.slice_move(s![b, t, ..]));
                self.weights.add_skip_and_gain(row, x.iter().flat_map(|x| x.iter()));
            }
        }
        if !is_last_step {
            for (b, &length) in input.lengths.into_iter().flatten().enumerate() {
                y.slice_mut(s![b, length.., ..]).fill(0.0);
            }
        }
        Ok(y)
    }

    /// Downloads the states of each LSTM and arranges the sequences in the caller's order.
    pub(super) async fn download_states(
        &self,
        layout: &BatchLayout,
        states: &[Vec<State<B::Tensor>>],
    ) -> Result<Vec<HostState>> {
        let mut host_states = Vec::with_capacity(states.len());
        for (lstm, states) in self.lstms().zip(states) {
            host_states.push(lstm.download_states(layout, states).await?);
        }
        Ok(host_states)
    }
}
