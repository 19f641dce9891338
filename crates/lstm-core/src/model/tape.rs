//! Training passes over a whole model: a forward pass that records a [`Tape`], and the backward pass over it.

use std::{borrow::Cow, ops::Range};

use ndarray::{Array3, ArrayD, IntoDimension, Ix3, IxDyn};

use crate::{
    arithmetic::GradientScale,
    backend::{
        Backend, LayerGradients, LayerOutput, LayerOutputGradients, Ops, Sequence, State,
        shape::{ConcatAxis, MatrixShape, zeros},
    },
    config::LayerSpec,
    error::{Error, Result},
    memory,
    model::{
        block_on::block_on,
        device_layer::{DeviceLayer, DevicePlan, DeviceTrace},
        gradients::{Checkpointing, Gradients, OutputGradients},
        input::{HostState, Input},
        layout::BatchLayout,
        lstm::Lstm,
        run::{DeviceBatch, DirectionsOutput, Plans, StackOutput},
    },
    weights::{LayerWeights, Weights},
};

/// The result of [`Lstm::forward_train`].
#[derive(Debug)]
#[non_exhaustive]
pub struct TrainOutput<B: Backend> {
    /// Outputs of the last layer, as from [`Lstm::forward`].
    pub y: Array3<f32>,
    /// Final states of all layers.
    pub state: HostState,
    /// The recording of the forward pass, from which [`Tape::backward`] computes gradients.
    pub tape: Tape<B>,
}

/// The recording of a forward pass, from which [`backward`](Self::backward) computes gradients. It holds the weights
/// that the pass used, so later changes of the model do not affect it.
pub struct Tape<B: Backend> {
    lstm: Lstm<B>,
    layout: BatchLayout,
    /// What the forward pass saved of each layer and direction; empty for an empty input.
    records: Vec<LayerRecord<B>>,
    /// The dropout mask of the outputs of each layer but the last; empty without dropout.
    dropout_masks: Vec<B::Tensor>,
}

impl<B: Backend> std::fmt::Debug for Tape<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape({} steps of {:?})", self.layout.steps, self.lstm)
    }
}

/// What a forward pass saves for the backward pass of one layer in one direction.
enum LayerRecord<B: Backend> {
    /// Everything that the backward pass needs.
    Full(DeviceTrace<B>),
    /// The layer's input, and the state before each segment of consecutive time steps. The backward pass first computes
    /// the rest again, segment by segment.
    Checkpoints {
        x: B::Tensor,
        /// The state before each segment, in the order in which the layer runs the segments.
        states: Vec<State<B::Tensor>>,
        /// The time steps of each segment, in the order in which the layer runs the segments.
        segments: Vec<Range<usize>>,
    },
}

/// Saves what the backward pass needs while [`Lstm::run`] runs the layers.
pub(crate) struct Recorder<B: Backend> {
    specs: Vec<LayerSpec>,
    /// Number of time steps per segment if only the states between segments are saved; `None` if everything is saved.
    segment_len: Option<usize>,
    records: Vec<LayerRecord<B>>,
}

impl<B: Backend> Recorder<B> {
    /// Runs one layer in its one or two directions, and saves what the backward pass needs.
    pub(crate) fn run_layer<'a>(
        &mut self,
        b: &B,
        layers: &[DeviceLayer<B>],
        plans: &mut [DevicePlan<B>],
        sequences: impl Iterator<Item = Sequence<'a, B::Tensor>>,
    ) -> Result<DirectionsOutput<B::Tensor>>
    where
        B::Tensor: 'a,
    {
        let (mut y, mut states) = (Vec::new(), Vec::new());
        for ((layer, plan), sequence) in layers.iter().zip(plans).zip(sequences) {
            let (output, record) = match self.segment_len {
                None => {
                    let (output, trace) = layer.forward_train(b, plan, sequence)?;
                    (output, LayerRecord::Full(trace))
                }
                Some(steps) => {
                    let reverse = self.specs[self.records.len()].reverse;
                    forward_segments(b, reverse, layer, plan, sequence, steps)?
                }
            };
            self.records.push(record);
            y.push(output.y);
            states.push(output.state);
        }
        let y = if y.len() == 1 { y.swap_remove(0) } else { b.concat(ConcatAxis::Cols, &y)? };
        Ok(LayerOutput::new(y, states))
    }
}

/// Runs a layer in segments of `steps` time steps. Saves the layer's input and the state before each segment.
fn forward_segments<B: Backend>(
    b: &B,
    reverse: bool,
    layer: &DeviceLayer<B>,
    plan: &mut DevicePlan<B>,
    sequence: Sequence<'_, B::Tensor>,
    steps: usize,
) -> Result<(LayerOutput<B::Tensor>, LayerRecord<B>)> {
    let segment_starts = (0..sequence.steps).step_by(steps);
    let num_segments = segment_starts.len();
    let segments = segment_starts.map(|t| t..sequence.steps.min(t + steps));
    let mut segments = memory::collect("forward_train", num_segments, segments)?;
    if reverse {
        segments.reverse();
    }
    let mut y = memory::with_capacity("forward_train", &[num_segments])?;
    let mut states = memory::with_capacity("forward_train", &[num_segments])?;
    let mut state = sequence.state.clone();
    for steps in &segments {
        let segment = Segment::new(b, sequence.x, sequence.batch, sequence.lengths, steps)?;
        let out = layer.forward(b, plan, segment.sequence(&state))?;
        states.push(std::mem::replace(&mut state, out.state));
        y.push(out.y);
    }
    if reverse {
        y.reverse();
    }
    let record = LayerRecord::Checkpoints { x: sequence.x.clone(), states, segments };
    Ok((LayerOutput::new(b.concat(ConcatAxis::Rows, &y)?, state), record))
}

impl<B: Backend> Lstm<B> {
    /// Runs the model like [`forward`](Self::forward), with bit-identical results, and records the pass for
    /// [`Tape::backward`]. For a model with dropout, the input says whether to apply it: [`Input::dropout`].
    ///
    /// ```
    /// # use lstm_core::{Backend, Dropout, Gradients, Input, Checkpointing, Lstm, Result, ndarray::Array3};
    /// # fn gradients<B: Backend>(lstm: &Lstm<B>, x: &Array3<f32>) -> Result<Gradients> {
    /// let pass = lstm.forward_train(Input::from(x).dropout(Dropout::Seed(1)), Checkpointing::SaveEverything)?;
    /// let dy = pass.y.mapv(|y| 2.0 * y / pass.y.len() as f32); // the loss is the mean of the squared outputs
    /// let gradients = pass.tape.backward(&dy)?;
    /// # Ok(gradients) }
    /// ```
    ///
    /// # Errors
    /// As for [`forward`](Self::forward); [`Error::Config`] for segments whose length is not a positive multiple of
    /// 32, if the model has dropout and the input does not say whether to apply it, or if the weights are quantized.
    pub fn forward_train<'a>(
        &self,
        input: impl Into<Input<'a>>,
        checkpointing: Checkpointing,
    ) -> Result<TrainOutput<B>> {
        block_on(self.forward_train_async(input, checkpointing))
    }

    /// [`forward_train`](Self::forward_train) without blocking the thread.
    ///
    /// # Errors
    /// As for [`forward_train`](Self::forward_train).
    pub async fn forward_train_async<'a>(
        &self,
        input: impl Into<Input<'a>>,
        checkpointing: Checkpointing,
    ) -> Result<TrainOutput<B>> {
        let input = input.into();
        self.weights().check_trainable()?;
        input.check(self.config())?;
        if input.dropout.is_none() && self.config().dropout > 0.0 {
            let reason = format!(
                "this model has dropout {}; call Input::dropout with Dropout::Seed(..) to apply it, or Dropout::Off",
                self.config().dropout
            );
            return Err(Error::config("dropout", reason));
        }
        let layout = BatchLayout::new(&input)?;
        let segment_len = checkpointing.segment_len(layout.steps)?;
        if layout.batch == 0 || layout.steps == 0 {
            let (y, state) = self.empty_output(&input)?;
            let tape = Tape { lstm: self.clone(), layout, records: Vec::new(), dropout_masks: Vec::new() };
            return Ok(TrainOutput { y, state, tape });
        }
        let x = self.upload_rows(layout.zero_padded_rows(input.x)?, self.config().input_size)?;
        let initial_states = self.upload_states(&layout, input.state)?;
        let batch = DeviceBatch { layout: &layout, x, initial_states, dropout: input.dropout };
        let (output, tape) = self.record(batch, segment_len)?;
        let (y, state) = self.download_outputs(&layout, output).await?;
        Ok(TrainOutput { y, state, tape })
    }

    /// Enqueues the forward pass of all layers on the device and records it. With `segment_len`, only the states
    /// between segments of this many time steps are saved.
    pub(crate) fn record(
        &self,
        batch: DeviceBatch<'_, B::Tensor>,
        segment_len: Option<usize>,
    ) -> Result<(StackOutput<B::Tensor>, Tape<B>)> {
        let layout = batch.layout.try_clone()?;
        let mut plans = self.take_plans(&layout)?;
        let records = memory::with_capacity("forward_train", &[self.device_layers().len()])?;
        let mut recorder = Recorder { specs: self.config().layer_specs(), segment_len, records };
        let result = self.run(batch, &mut plans, Some(&mut recorder));
        self.put_back_plans(plans);
        let mut output = result?;
        let dropout_masks = std::mem::take(&mut output.dropout_masks);
        Ok((output, Tape { lstm: self.clone(), layout, records: recorder.records, dropout_masks }))
    }
}

/// A layer's input for a range of time steps.
struct Segment<T> {
    x: T,
    steps: usize,
    batch: usize,
    /// How many time steps of each sequence are in this segment.
    lengths: Option<Vec<usize>>,
}

impl<T> Segment<T> {
    fn new<B: Ops<Tensor = T>>(
        b: &B,
        x: &T,
        batch: usize,
        lengths: Option<&[usize]>,
        steps: &Range<usize>,
    ) -> Result<Self> {
        let length_in_segment = |len: &usize| len.saturating_sub(steps.start).min(steps.len());
        let lengths_in_segment =
            |lengths: &[usize]| memory::collect("forward_train", batch, lengths.iter().map(length_in_segment));
        Ok(Segment {
            x: rows(b, x, batch, steps)?,
            steps: steps.len(),
            batch,
            lengths: lengths.map(lengths_in_segment).transpose()?,
        })
    }

    fn sequence<'a>(&'a self, state: &'a State<T>) -> Sequence<'a, T> {
        Sequence { x: &self.x, state, steps: self.steps, batch: self.batch, lengths: self.lengths.as_deref() }
    }
}

/// The rows of the time steps `steps` in a time-major matrix `x`, which has `batch` rows per time step.
fn rows<B: Ops>(b: &B, x: &B::Tensor, batch: usize, steps: &Range<usize>) -> Result<B::Tensor> {
    b.slice(x, steps.start * batch..steps.end * batch, 0..b.shape(x).cols)
}

/// The gradient with respect to the model's input, and the gradients of each layer and direction.
pub(crate) type DeviceGradients<T> = (Option<T>, Vec<LayerGradients<T>>);

impl<B: Backend> Tape<B> {
    fn is_empty(&self) -> bool {
        self.layout.batch == 0 || self.layout.steps == 0
    }

    /// Computes the gradients of the loss with respect to every weight, the initial states and, if
    /// [requested](OutputGradients::with_input_gradient), the input. `upstream` holds the gradients of the loss with
    /// respect to the outputs. This method may be called several times.
    ///
    /// [`snap`](crate::arithmetic::snap) passes gradients through unchanged (a straight-through estimator). A clipped gate
    /// has gradient 0 where it is at its bound, as with `torch.clamp`. All gradients of the model are scaled by one power
    /// of two during the pass, so that small ones are not snapped to zero; a gradient below 2^-100 in magnitude, given or
    /// returned, becomes 0.
    ///
    /// # Errors
    /// [`Error::Shape`] names the argument, the expected and the given shape; [`Error::Device`] if the device fails.
    pub fn backward<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<Gradients> {
        block_on(self.backward_async(upstream))
    }

    /// [`backward`](Self::backward) without blocking the thread.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward).
    pub async fn backward_async<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<Gradients> {
        let upstream = upstream.into();
        let (config, layout) = (self.lstm.config(), &self.layout);
        upstream.check(config, layout)?;
        if self.is_empty() {
            return self.empty_gradients(&upstream);
        }
        let y = upstream.y.map(|y| layout.zero_padded_rows(y)).transpose()?;
        let states = upstream.state.into_iter().flat_map(|state| state.h.iter().chain(&state.c));
        let scale = GradientScale::of(y.as_deref().unwrap_or_default().iter().chain(states));
        let shape = MatrixShape::new(layout.steps * layout.batch, config.output_size());
        let rows = match y {
            Some(Cow::Owned(mut rows)) => {
                rows.iter_mut().for_each(|v| *v = scale.scale_value(*v));
                rows
            }
            Some(Cow::Borrowed(rows)) => {
                memory::collect("backward", rows.len(), rows.iter().map(|v| scale.scale_value(*v)))?
            }
            None => zeros("backward", &[shape.rows, shape.cols])?,
        };
        let y = self.lstm.backend().upload_vec(shape, rows)?;

        let states = (0..self.lstm.device_layers().len())
            .map(|k| self.lstm.upload_state(layout, upstream.state, k, |v| scale.scale_value(v)))
            .collect::<Result<_>>()?;
        let (x, layers) = self.backward_on_device(y, states, upstream.needs_input_gradient)?;
        let (weights, state) = self.download_gradients(layers, scale).await?;
        let x = match x {
            Some(x) => Some(layout.to_host(self.download(x, scale).await?)?),
            None => None,
        };
        Ok(Gradients { x, state, weights })
    }

    /// Enqueues the backward pass of all layers on the device. `y` is the scaled gradient of the loss with respect to
    /// the outputs of the last layer, and `states` that with respect to the final state of each layer and direction.
    pub(crate) fn backward_on_device(
        &self,
        y: B::Tensor,
        states: Vec<State<B::Tensor>>,
        needs_input_gradient: bool,
    ) -> Result<DeviceGradients<B::Tensor>> {
        let mut plans = self.lstm.take_plans(&self.layout)?;
        let result = self.run(y, states, needs_input_gradient, &mut plans);
        self.lstm.put_back_plans(plans);
        result
    }

    /// Downloads the gradients of the weights and of the initial states, and removes the scale.
    pub(crate) async fn download_gradients(
        &self,
        layers: Vec<LayerGradients<B::Tensor>>,
        scale: GradientScale,
    ) -> Result<(Weights, HostState)> {
        let (config, layout) = (self.lstm.config(), &self.layout);
        let (mut weights, mut states) = (Vec::new(), Vec::new());
        for (layer, spec) in layers.into_iter().zip(config.layer_specs()) {
            let mut values = Vec::new();
            for (value, (param, shape)) in layer.weights.into_params(&spec).into_iter().zip(spec.params()) {
                let value = ArrayD::from_shape_vec(IxDyn(&shape), self.download(value, scale).await?);
                values.push(value.map_err(|e| Error::shape("backward", format!("{shape:?} for {param:?}"), e))?);
            }
            weights.push(LayerWeights::new(spec, values)?);
            states.push(layer.state);
        }
        let mut state = self.lstm.download_states(layout, &states).await?;
        state.h.iter_mut().chain(&mut state.c).for_each(|v| *v = scale.unscale_value(*v));
        Ok((Weights::new(config.clone(), weights)?, state))
    }

    /// Downloads a scaled gradient and removes the scale from its elements.
    async fn download(&self, x: B::Tensor, scale: GradientScale) -> Result<Vec<f32>> {
        let mut values = self.lstm.backend().download_vec(x).await?;
        values.iter_mut().for_each(|v| *v = scale.unscale_value(*v));
        Ok(values)
    }

    /// [`backward_on_device`](Self::backward_on_device) with the given workspaces.
    fn run(
        &self,
        y: B::Tensor,
        states: Vec<State<B::Tensor>>,
        needs_input_gradient: bool,
        plans: &mut Plans<B>,
    ) -> Result<DeviceGradients<B::Tensor>> {
        let (b, config) = (self.lstm.backend(), self.lstm.config());
        let mut states = states.into_iter().rev();
        let (directions, state_size) = (config.num_directions(), config.state_size());
        let (mut x, mut gradients) = (Some(y), memory::with_capacity("backward", &[self.records.len()])?);
        for layer in (0..config.num_layers).rev() {
            let y = x.take().ok_or_else(|| Error::shape("backward: y", "a gradient", "none"))?;
            // With dropout there is a mask for each layer but the last.
            let y = match self.dropout_masks.get(layer) {
                Some(mask) => b.mul_add(1.0, &y, Some(mask), None)?,
                None => y,
            };
            let needs_x = layer > 0 || needs_input_gradient;
            for d in (0..directions).rev() {
                let k = layer * directions + d;
                let direction_gradient = match directions {
                    1 => y.clone(),
                    _ => b.slice(&y, 0..b.shape(&y).rows, d * state_size..(d + 1) * state_size)?,
                };
                let missing = || Error::shape("backward: state", "a gradient for each layer and direction", "fewer");
                let upstream = LayerOutputGradients {
                    y: &direction_gradient,
                    state: &states.next().ok_or_else(missing)?,
                    accumulate: None,
                    needs_input_gradient: needs_x,
                };
                let mut layer_gradients = self.backward_layer(k, &mut plans.plans[k], upstream)?;
                x = match (layer_gradients.x.take(), x) {
                    // The sum of both directions, the forward one as the first operand.
                    (Some(forward), Some(reverse)) => Some(b.mul_add(1.0, &forward, None, Some(&reverse))?),
                    (only, None) | (None, only) => only,
                };
                gradients.push(layer_gradients);
            }
        }
        gradients.reverse();
        Ok((x.filter(|_| needs_input_gradient), gradients))
    }

    /// Computes the gradients of layer and direction `k`, counted as in
    /// [`LstmConfig::layer_specs`](crate::LstmConfig::layer_specs). With checkpointing, the forward pass of each
    /// segment runs again first.
    fn backward_layer(
        &self,
        k: usize,
        plan: &mut DevicePlan<B>,
        upstream: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        let (b, layer, layout) = (self.lstm.backend(), &self.lstm.device_layers()[k], &self.layout);
        let (x, states, segments) = match &self.records[k] {
            LayerRecord::Full(trace) => return layer.backward(b, plan, trace, upstream),
            LayerRecord::Checkpoints { x, states, segments } => (x, states, segments),
        };
        let mut x_gradients = memory::with_capacity("backward", &[segments.len()])?;
        let mut later_gradients: Option<LayerGradients<B::Tensor>> = None;
        for (steps, initial_state) in segments.iter().zip(states).rev() {
            let segment = Segment::new(b, x, layout.batch, layout.lengths.as_deref(), steps)?;
            let (_, trace) = layer.forward_train(b, plan, segment.sequence(initial_state))?;
            let y = rows(b, upstream.y, layout.batch, steps)?;
            let (state, accumulate) = match later_gradients {
                Some(later_gradients) => (later_gradients.state, Some(later_gradients.weights)),
                None => (upstream.state.clone(), None),
            };
            let upstream = LayerOutputGradients {
                y: &y,
                state: &state,
                accumulate,
                needs_input_gradient: upstream.needs_input_gradient,
            };
            let mut segment_gradients = layer.backward(b, plan, &trace, upstream)?;
            x_gradients.extend(segment_gradients.x.take().map(|x| (steps.start, x)));
            later_gradients = Some(segment_gradients);
        }
        let mut gradients = later_gradients.ok_or_else(|| Error::shape("backward", "at least one segment", "none"))?;
        // The starts are distinct. A stable sort would allocate memory.
        x_gradients.sort_unstable_by_key(|(start, _)| *start);
        let x_gradients = memory::collect("backward", segments.len(), x_gradients.into_iter().map(|(_, x)| x))?;
        gradients.x =
            if upstream.needs_input_gradient { Some(b.concat(ConcatAxis::Rows, &x_gradients)?) } else { None };
        Ok(gradients)
    }

    /// The gradients for an empty input. The gradients of the weights are zero. The final states are the initial
    /// states, so the gradients of the initial states are the given gradients of the final states.
    fn empty_gradients(&self, upstream: &OutputGradients<'_>) -> Result<Gradients> {
        let config = self.lstm.config();
        let mut weights = self.lstm.weights().try_clone()?;
        weights.iter_mut().for_each(|(_, values)| values.fill(0.0));
        let zeros = || HostState::zeros(config, self.layout.batch);
        let state = upstream.state.map_or_else(zeros, HostState::try_clone)?;
        let x_shape: Ix3 = self.layout.host_shape(config.input_size).into_dimension();
        let x = upstream.needs_input_gradient.then(|| memory::zero_array("backward", x_shape)).transpose()?;
        Ok(Gradients { x, state, weights })
    }
}
