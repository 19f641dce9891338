//! Training passes over a whole model: a forward pass that records a [`ModelTape`], and the backward pass over it.

use std::{borrow::Cow, sync::Arc};

use ndarray::{Array1, Array2, Array3, Ix3, s};

use crate::{
    activation::constant_row,
    arithmetic::GradientScale,
    backend::{
        Backend, LayerGradients, State,
        shape::{MatrixRef, MatrixShape},
    },
    error::{Error, Result},
    memory,
    model::{BatchLayout, Checkpointing, HostState, OutputGradients, block_on},
    network::{
        input::{ModelInput, Values},
        model::{DeviceLayer, Model},
        run::{DeviceInput, LayerRecord, Recorder, last_rows_gradient, zero_rows},
        weights::{ModelLayer, ModelWeights},
    },
};

/// The result of [`Model::forward_train`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelTrainOutput<B: Backend> {
    /// The outputs, as from [`Model::forward`], but without a softmax at the end.
    pub y: Array3<f32>,
    /// The final states of each LSTM, in order.
    pub states: Vec<HostState>,
    /// The recording of the forward pass, from which [`ModelTape::backward`] computes gradients.
    pub tape: ModelTape<B>,
}

/// The recording of a forward pass of a model, from which [`backward`](Self::backward) computes gradients. It holds the
/// weights that the pass used, so later changes of the model do not affect it.
pub struct ModelTape<B: Backend> {
    model: Model<B>,
    layout: BatchLayout,
    /// What the forward pass saved of each layer.
    records: Vec<LayerRecord<B>>,
    /// For each row in device order, the row of the embedding; `None` beyond the end of a sequence. Empty for features.
    embedding_rows: Vec<Option<usize>>,
    /// Whether the LSTMs started from the states of the caller instead of their own.
    has_given_states: bool,
}

impl<B: Backend> std::fmt::Debug for ModelTape<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelTape({} steps of {:?})", self.layout.steps, self.model)
    }
}

/// The result of [`ModelTape::backward`]: gradients of the loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelGradients {
    /// Gradient with respect to the input, `(batch, steps, input_size)`. It is +0 beyond the end of a sequence. `None`
    /// unless [requested](OutputGradients::with_input_gradient).
    pub x: Option<Array3<f32>>,
    /// Gradients with respect to the initial states of each sequence, for each LSTM.
    pub states: Vec<HostState>,
    /// Gradients with respect to all parameters, in the place of the parameters. That of an LSTM's own initial state is
    /// the sum over the sequences; it is zero if the input had [states](ModelInput::states).
    pub weights: ModelWeights,
}

/// Gradients of the parameters of a layer on the device.
enum DeviceGradient<T> {
    /// Of the rows that were looked up in the embedding.
    Embedding(T),
    /// Of each layer and direction of an LSTM.
    Lstm(Vec<LayerGradients<T>>),
    /// Of the weight and the bias of a fully connected layer.
    Linear(T, Option<T>),
    /// A layer without parameters.
    Nothing,
}

/// The gradient with respect to the model's input, and the gradients of the parameters of each layer.
type DeviceGradients<T> = (Option<T>, Vec<DeviceGradient<T>>);

impl<B: Backend> Model<B> {
    /// Runs the model like [`forward`](Self::forward) and records the pass for [`ModelTape::backward`]. The outputs are
    /// bit-identical, except that a softmax at the end is left off: losses such as
    /// [`cross_entropy`](crate::train::cross_entropy) read logits. For a model with dropout, the input says whether to
    /// apply it: [`ModelInput::dropout`].
    ///
    /// ```
    /// # use lstm_core::{Backend, Checkpointing, Model, ModelGradients, Result, ndarray::Array3};
    /// # fn gradients<B: Backend>(model: &Model<B>, x: &Array3<f32>) -> Result<ModelGradients> {
    /// let pass = model.forward_train(x, Checkpointing::SaveEverything)?;
    /// let dy = pass.y.mapv(|y| 2.0 * y / pass.y.len() as f32); // the loss is the mean of the squared outputs
    /// let gradients = pass.tape.backward(&dy)?;
    /// # Ok(gradients) }
    /// ```
    ///
    /// # Errors
    /// As for [`forward`](Self::forward); [`Error::Shape`] without sequences or without time steps; [`Error::Config`]
    /// for segments whose length is not a positive multiple of 32, or if the model has dropout and the input does not
    /// say whether to apply it.
    pub fn forward_train<'a>(
        &self,
        input: impl Into<ModelInput<'a>>,
        checkpointing: Checkpointing,
    ) -> Result<ModelTrainOutput<B>> {
        block_on(self.forward_train_async(input, checkpointing))
    }

    /// [`forward_train`](Self::forward_train) without blocking the thread.
    ///
    /// # Errors
    /// As for [`forward_train`](Self::forward_train).
    pub async fn forward_train_async<'a>(
        &self,
        input: impl Into<ModelInput<'a>>,
        checkpointing: Checkpointing,
    ) -> Result<ModelTrainOutput<B>> {
        let input = input.into();
        self.weights().check_trainable()?;
        input.check("forward_train", self.weights())?;
        if input.dropout.is_none() && self.weights().has_dropout() {
            let reason = "this model has dropout; call ModelInput::dropout with Dropout::Seed(..) to apply it, or \
                          Dropout::Off";
            return Err(Error::config("dropout", reason));
        }
        let (batch, steps) = input.batch_and_steps();
        if batch == 0 || steps == 0 {
            let got = format!("{batch} sequences of {steps} time steps");
            return Err(Error::shape("forward_train", "at least one time step of one sequence", got));
        }
        let layout = BatchLayout::from_sizes((batch, steps), input.lengths, false)?;
        let records = memory::with_capacity("forward_train", &[self.weights().layers().len()])?;
        let mut recorder = Recorder { segment_len: checkpointing.segment_len(steps)?, records };
        let initial_states = self.upload_states(&layout, input.states)?;
        let x = self.upload_input(&input, &layout, true)?;
        let device_input = DeviceInput { layout: &layout, x, initial_states, dropout: input.dropout };
        let output = self.run(device_input, Some(&mut recorder))?;
        let y = self.download_output(&input, &layout, output.y, false).await?;
        let states = self.download_states(&layout, &output.states).await?;
        let embedding_rows = match input.values {
            // The tokens were checked.
            Values::Tokens(tokens) => {
                let indices = layout.rows().map(|row| row.and_then(|(b, t)| usize::try_from(tokens[[b, t]]).ok()));
                memory::collect("forward_train", layout.steps * layout.batch, indices)?
            }
            Values::Features(_) => Vec::new(),
        };
        let (model, has_given_states) = (self.clone(), input.states.is_some());
        let tape = ModelTape { model, layout, records: recorder.records, embedding_rows, has_given_states };
        Ok(ModelTrainOutput { y, states, tape })
    }
}

impl<B: Backend> ModelTape<B> {
    /// Computes the gradients of the loss with respect to all parameters, the initial states and, if
    /// [requested](OutputGradients::with_input_gradient), the input. `upstream` is the gradient of the loss with
    /// respect to the outputs of the pass, an array of their shape. This method may be called several times.
    ///
    /// The gradients are scaled during the pass, and small ones become 0, as in [`Tape::backward`](crate::Tape::backward).
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape differs; [`Error::Config`] if a gradient of the final states is given, or the
    /// gradient of the input is requested of a model that reads tokens; [`Error::Device`] if the device fails.
    pub fn backward<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<ModelGradients> {
        block_on(self.backward_async(upstream))
    }

    /// [`backward`](Self::backward) without blocking the thread.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward).
    pub async fn backward_async<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<ModelGradients> {
        let upstream = upstream.into();
        let (b, weights, layout) = (self.model.backend(), self.model.weights(), &self.layout);
        let is_last_step = weights.returns_last_step();
        let output_layout = if is_last_step { layout.single_step()? } else { layout.try_clone()? };
        if upstream.state.is_some() {
            let reason = "expected gradients of the outputs only, got some of the final states";
            return Err(Error::config("state", reason));
        }
        if upstream.needs_input_gradient && weights.reads_tokens() {
            return Err(Error::config("input_gradient", "a model that reads tokens has no gradient of its input"));
        }
        let expected = output_layout.host_shape(weights.output_size());
        let Some(dy) = upstream.y.filter(|dy| dy.dim() == expected) else {
            let got = upstream.y.map_or("none".into(), |dy| format!("{:?}", dy.shape()));
            let expected = format!("{:?}", [expected.0, expected.1, expected.2]);
            return Err(Error::shape("backward: y", expected, got));
        };
        // With respect to the sum of the last layer and the skip connection.
        let dz = memory::map_array("backward", dy, |v| weights.output_gain() * v)?;
        let rows = output_layout.zero_padded_rows(dz.view())?;
        let scale = GradientScale::of(rows.iter());
        let scaled_rows = memory::collect("backward", rows.len(), rows.iter().map(|v| scale.scale_value(*v)))?;
        let shape = MatrixShape::new(output_layout.steps * layout.batch, weights.output_size());
        let (x, device_gradients) = self.run(b.upload_vec(shape, scaled_rows)?, upstream.needs_input_gradient)?;

        let mut layers = memory::with_capacity("backward", &[weights.layers().len()])?;
        let mut states = memory::with_capacity("backward", &[weights.layers().len()])?;
        for ((layer, record), gradient) in weights.layers().iter().zip(&self.records).zip(device_gradients) {
            layers.push(match (layer, record, gradient) {
                (ModelLayer::Embedding { name, weight }, _, DeviceGradient::Embedding(rows)) => {
                    let weight = self.embedding_gradient(weight, &b.download_vec(rows).await?, scale)?;
                    ModelLayer::Embedding { name: name.clone(), weight }
                }
                (
                    ModelLayer::Lstm { name, initial_state, .. },
                    LayerRecord::Lstm(tape),
                    DeviceGradient::Lstm(gradients),
                ) => {
                    let (weights, state) = tape.download_gradients(gradients, scale).await?;
                    let initial_state = initial_state.as_ref().map(|_| self.own_state_gradient(&state)).transpose()?;
                    states.push(state);
                    ModelLayer::Lstm { name: name.clone(), weights: Arc::new(weights), initial_state }
                }
                (ModelLayer::Linear { name, weight, bias }, _, DeviceGradient::Linear(dw, db)) => {
                    let shape_error = |e| Error::shape("backward: linear", "the shape of the weight", e);
                    let dw = download(b, dw, scale).await?;
                    let dw = Array2::from_shape_vec(weight.raw_dim(), dw).map_err(shape_error)?;
                    let db = match (bias, db) {
                        (Some(_), Some(db)) => Some(Array1::from(download(b, db, scale).await?)),
                        _ => None,
                    };
                    ModelLayer::Linear { name: name.clone(), weight: dw, bias: db }
                }
                (layer, ..) => layer.clone(),
            });
        }
        let x = match x.filter(|_| upstream.needs_input_gradient) {
            Some(x) => {
                let mut x = layout.to_host(download(b, x, scale).await?)?;
                if weights.skip() {
                    let mut skipped = x.slice_mut(s![.., .., ..weights.output_size()]);
                    skipped += &layout.to_host(into_vec(rows)?)?;
                }
                // The sum makes +0 of -0, for a negative gain.
                x.mapv_inplace(|v| weights.input_gain() * v + 0.0);
                Some(x)
            }
            None => None,
        };
        Ok(ModelGradients { x, states, weights: weights.with_layers(layers) })
    }

    /// Enqueues the backward pass of all layers on the device. `dy` is the scaled gradient of the loss with respect to
    /// the output of the last layer. Returns the gradient with respect to the input of the first layer, if that was
    /// requested, and the gradients of the parameters of each layer.
    fn run(&self, dy: B::Tensor, needs_input_gradient: bool) -> Result<DeviceGradients<B::Tensor>> {
        let (b, layout, layers) = (self.model.backend(), &self.layout, self.model.weights().layers());
        let (mut dx, mut final_state_gradient) = (Some(dy), None);
        let mut gradients = memory::with_capacity("backward", &[layers.len()])?;
        let device_layers = layers.iter().zip(self.model.device_layers()).zip(&self.records).enumerate();
        for (k, ((layer, device_layer), record)) in device_layers.rev() {
            let needs_dx = needs_input_gradient || layers[..k].iter().any(|layer| layer.num_params() > 0);
            let missing = || Error::shape("backward", "a gradient of the layer's output", "none");
            gradients.push(match (layer, device_layer, record) {
                (ModelLayer::Embedding { .. }, ..) => DeviceGradient::Embedding(dx.clone().ok_or_else(missing)?),
                (ModelLayer::Lstm { weights, .. }, _, LayerRecord::Lstm(tape)) => {
                    let config = weights.config();
                    let zeros = |cols| zero_rows(b, layout.batch, cols);
                    let directions = config.num_directions();
                    let (num_states, size) = (config.num_layers * directions, config.state_size());
                    let states = (0..num_states).map(|k| {
                        let direction = (k + directions).checked_sub(num_states);
                        let h = match (&final_state_gradient, direction) {
                            (Some(dh), Some(d)) => b.slice(dh, 0..layout.batch, d * size..(d + 1) * size)?,
                            _ => zeros(size)?,
                        };
                        Ok(State { h, c: zeros(config.hidden_size)? })
                    });
                    let states = states.collect::<Result<_>>()?;
                    let dy = match dx.take() {
                        Some(dy) => dy,
                        None => zero_rows(b, layout.steps * layout.batch, config.output_size())?,
                    };
                    final_state_gradient = None;
                    let (x, gradients) = tape.backward_on_device(dy, states, needs_dx)?;
                    dx = x;
                    DeviceGradient::Lstm(gradients)
                }
                (ModelLayer::Linear { bias, .. }, DeviceLayer::Linear(linear), LayerRecord::Linear(x)) => {
                    let dy = b.snap(dx.take().ok_or_else(missing)?)?;
                    let weight_gradient = b.gemm(MatrixRef::from(&dy).t(), x.into(), None)?;
                    let bias_gradient = match bias {
                        Some(_) => {
                            let ones = constant_row(b, b.shape(&dy).rows, 1.0)?;
                            Some(b.gemm((&ones).into(), (&dy).into(), None)?)
                        }
                        None => None,
                    };
                    if needs_dx {
                        dx = Some(b.gemm((&dy).into(), linear.as_ref().weight.as_f32()?.into(), None)?);
                    }
                    DeviceGradient::Linear(weight_gradient, bias_gradient)
                }
                // Below the first layer with parameters, there may be no gradient.
                (ModelLayer::Activation(activation), _, LayerRecord::Activation(y)) => {
                    dx = dx.map(|dy| activation.gradient(b, dy, y)).transpose()?;
                    DeviceGradient::Nothing
                }
                (ModelLayer::LastStep, ..) => {
                    dx = dx.map(|dy| last_rows_gradient(b, layout, &dy)).transpose()?;
                    DeviceGradient::Nothing
                }
                (ModelLayer::FinalState, ..) => {
                    final_state_gradient = dx.take();
                    DeviceGradient::Nothing
                }
                (ModelLayer::Dropout(_), _, LayerRecord::Dropout(mask)) => {
                    dx = dx.map(|dy| b.mul_add(1.0, &dy, Some(mask), None)).transpose()?;
                    DeviceGradient::Nothing
                }
                _ => DeviceGradient::Nothing,
            });
        }
        gradients.reverse();
        Ok((dx, gradients))
    }

    /// The gradient of the embedding: each row is the sum of the gradients of the rows that were looked up in it, in
    /// device order.
    fn embedding_gradient(&self, weight: &Array2<f32>, rows: &[f32], scale: GradientScale) -> Result<Array2<f32>> {
        let mut gradient = memory::zero_array("backward", weight.raw_dim())?;
        for (index, row) in self.embedding_rows.iter().zip(rows.chunks_exact(weight.ncols())) {
            if let Some(index) = index {
                gradient.row_mut(*index).iter_mut().zip(row).for_each(|(sum, v): (&mut f32, _)| *sum += v);
            }
        }
        gradient.mapv_inplace(|v| scale.unscale_value(v));
        Ok(gradient)
    }

    /// The gradient of an LSTM's own initial state: the sum of the gradients of the initial states, in the order of the
    /// caller's sequences.
    fn own_state_gradient(&self, states: &HostState) -> Result<HostState> {
        let sum = |array: &Array3<f32>| {
            let (n, batch, cols) = array.dim();
            let sequences = 0..if self.has_given_states { 0 } else { batch };
            let mut sums = memory::zero_array("backward", Ix3(n, 1, cols))?;
            for ((k, _, col), value) in sums.indexed_iter_mut() {
                *value = sequences.clone().fold(0.0, |sum, b| sum + array[[k, b, col]]);
            }
            Ok(sums)
        };
        Ok(HostState { h: sum(&states.h)?, c: sum(&states.c)? })
    }
}

/// The rows themselves, or a copy of borrowed ones.
fn into_vec(rows: Cow<'_, [f32]>) -> Result<Vec<f32>> {
    match rows {
        Cow::Owned(rows) => Ok(rows),
        Cow::Borrowed(rows) => memory::copy("backward", rows),
    }
}

/// Downloads a gradient and removes the scale.
async fn download<B: Backend>(b: &B, gradient: B::Tensor, scale: GradientScale) -> Result<Vec<f32>> {
    let mut values = b.download_vec(gradient).await?;
    values.iter_mut().for_each(|v| *v = scale.unscale_value(*v));
    Ok(values)
}
