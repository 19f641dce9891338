//! Training's two passes over a whole model: a forward pass that is recorded on a tape, and the way back.

use ndarray::{Array3, ArrayD, IxDyn};

use crate::{
    arithmetic::Scale,
    backend::{Backend, LayerGradients, LayerOutput, LayerOutputGradients, Sequence, State},
    config::LayerSpec,
    error::{Error, Result},
    model::gradients::{Checkpointing, Gradients, OutputGradients},
    model::input::{HostState, Input, Layout},
    model::lstm::{Lstm, Plans, wait},
    shape::{ConcatAxis, MatrixShape, zeros},
    weights::{LayerWeights, Weights},
};

/// What [`Lstm::forward_train`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct TrainOutput<B: Backend> {
    /// The last layer's outputs, as [`Lstm::forward`] gives them.
    pub y: Array3<f32>,
    /// The final states of all layers.
    pub state: HostState,
    /// What the backward pass needs.
    pub tape: Tape<B>,
}

/// A recorded forward pass, with the weights that it used: later changes of the model do not matter to it.
pub struct Tape<B: Backend> {
    lstm: Lstm<B>,
    layout: Layout,
    /// One for each layer-direction; none where there were no steps.
    records: Vec<Record<B>>,
    /// The dropout masks between layers.
    masks: Vec<B::Tensor>,
}

impl<B: Backend> std::fmt::Debug for Tape<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape({} steps of {:?})", self.layout.steps, self.lstm)
    }
}

/// What is kept of a layer-direction.
enum Record<B: Backend> {
    Whole(B::Trace),
    /// The input and the state before each segment in the order of the walk.
    Segments {
        x: B::Tensor,
        states: Vec<State<B::Tensor>>,
        segments: Vec<std::ops::Range<usize>>,
    },
}

impl<B: Backend> Lstm<B> {
    /// [`forward`](Self::forward), the same bits, recorded for [`Tape::backward`]. Dropout acts only if the input says so
    /// with [`Input::training`].
    ///
    /// ```
    /// # use lstm_core::{Backend, Gradients, Input, Checkpointing, Lstm, Result, ndarray::Array3};
    /// # fn gradients<B: Backend>(lstm: &Lstm<B>, x: &Array3<f32>) -> Result<Gradients> {
    /// let pass = lstm.forward_train(Input::from(x).training(1), Checkpointing::Everything)?;
    /// let dy = pass.y.mapv(|y| 2.0 * y / pass.y.len() as f32); // the loss is the mean of squares
    /// let gradients = pass.tape.backward(&dy)?;
    /// # Ok(gradients) }
    /// ```
    ///
    /// # Errors
    /// As for `forward`; [`Error::Config`] for segments that are not a positive multiple of 32.
    pub fn forward_train<'a>(&self, input: impl Into<Input<'a>>, keep: Checkpointing) -> Result<TrainOutput<B>> {
        wait(self.forward_train_async(input, keep))
    }

    /// [`forward_train`](Self::forward_train) without blocking the thread.
    ///
    /// # Errors
    /// As for `forward_train`.
    pub async fn forward_train_async<'a>(
        &self,
        input: impl Into<Input<'a>>,
        keep: Checkpointing,
    ) -> Result<TrainOutput<B>> {
        let input = input.into();
        input.check(self.config())?;
        let layout = Layout::new(&input)?;
        let segment = keep.segment(layout.steps)?;
        let mut tape = Tape { lstm: self.clone(), layout, records: Vec::new(), masks: Vec::new() };
        if tape.is_empty() {
            let (y, state) = self.empty(&input)?;
            return Ok(TrainOutput { y, state, tape });
        }
        let x = self.upload_rows(tape.layout.running_rows(input.x)?, self.config().input_size)?;
        let specs = self.config().layer_specs();
        let mut records = Vec::new();
        let mut plans = self.check_out(tape.layout.batch, tape.layout.steps)?;
        let forward = |first, layers: &[B::Layer], plans: &mut [B::Plan], sequences: Vec<Sequence<'_, B::Tensor>>| {
            let (mut y, mut states) = (Vec::new(), Vec::new());
            for (d, (sequence, (layer, plan))) in sequences.into_iter().zip(layers.iter().zip(plans)).enumerate() {
                let (output, record) = match segment {
                    None => {
                        let (output, trace) = self.backend().forward_train(layer, plan, sequence)?;
                        (output, Record::Whole(trace))
                    }
                    Some(length) => self.forward_segments(&specs[first + d], layer, plan, sequence, length)?,
                };
                records.push(record);
                y.push(output.y);
                states.push(output.state);
            }
            let y = if y.len() == 1 { y.swap_remove(0) } else { self.backend().concat(ConcatAxis::Cols, &y)? };
            Ok(LayerOutput::new(y, states))
        };
        let result = self.run(&input, &tape.layout, x, &mut plans, forward);
        self.check_in(plans);
        let mut run = result?;
        (tape.records, tape.masks) = (records, std::mem::take(&mut run.masks));
        let (y, state) = self.download_outputs(&tape.layout, run).await?;
        Ok(TrainOutput { y, state, tape })
    }

    fn forward_segments(
        &self,
        spec: &LayerSpec,
        layer: &B::Layer,
        plan: &mut B::Plan,
        sequence: Sequence<'_, B::Tensor>,
        length: usize,
    ) -> Result<(LayerOutput<B::Tensor>, Record<B>)> {
        let b = self.backend();
        let starts = (0..sequence.steps).step_by(length);
        let mut segments: Vec<_> = starts.map(|t| t..sequence.steps.min(t + length)).collect();
        if spec.reverse {
            segments.reverse();
        }
        let (mut y, mut states) = (Vec::new(), vec![sequence.state.clone()]);
        for segment in &segments {
            let part = Segment::new(b, sequence.x, sequence.batch, sequence.lengths, segment)?;
            let out = b.forward(layer, plan, part.sequence(&states[states.len() - 1]))?;
            y.push(out.y);
            states.push(out.state);
        }
        if spec.reverse {
            y.reverse();
        }
        let last = states.pop().expect("it starts with one");
        let record = Record::Segments { x: sequence.x.clone(), states, segments };
        Ok((LayerOutput::new(b.concat(ConcatAxis::Rows, &y)?, last), record))
    }
}

/// Some steps of a sequence.
struct Segment<T> {
    x: T,
    steps: usize,
    batch: usize,
    lengths: Option<Vec<usize>>,
}

impl<T> Segment<T> {
    fn new<B: Backend<Tensor = T>>(
        b: &B,
        x: &T,
        batch: usize,
        lengths: Option<&[usize]>,
        steps: &std::ops::Range<usize>,
    ) -> Result<Self> {
        let inside = |len: &usize| len.saturating_sub(steps.start).min(steps.len());
        Ok(Segment {
            x: rows(b, x, batch, steps)?,
            steps: steps.len(),
            batch,
            lengths: lengths.map(|lengths| lengths.iter().map(inside).collect()),
        })
    }

    fn sequence<'a>(&'a self, state: &'a State<T>) -> Sequence<'a, T> {
        Sequence { x: &self.x, state, steps: self.steps, batch: self.batch, lengths: self.lengths.as_deref() }
    }
}

/// The rows of some steps.
fn rows<B: Backend>(b: &B, x: &B::Tensor, batch: usize, steps: &std::ops::Range<usize>) -> Result<B::Tensor> {
    b.slice(x, steps.start * batch..steps.end * batch, 0..b.shape(x).cols)
}

impl<B: Backend> Tape<B> {
    fn is_empty(&self) -> bool {
        self.layout.batch == 0 || self.layout.steps == 0
    }

    /// The gradients of every weight, of the initial states and, if asked for, of the input, from those of the outputs.
    /// May be called again, with other gradients.
    ///
    /// Gradients pass `snap` and the clamp to [-bound, bound] of a clipped gate as torch's straight-through rule and
    /// `torch.clamp` do: unchanged, and where the gate is at its bound not at all. One scale for the whole model, a power
    /// of two, keeps small gradients from being snapped; what is smaller than 2^-100 at either end becomes 0.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, what was expected and what came; what the device refuses.
    pub fn backward<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<Gradients> {
        wait(self.backward_async(upstream))
    }

    /// [`backward`](Self::backward) without blocking the thread.
    ///
    /// # Errors
    /// As for `backward`.
    pub async fn backward_async<'a>(&self, upstream: impl Into<OutputGradients<'a>>) -> Result<Gradients> {
        let upstream = upstream.into();
        let (config, layout) = (self.lstm.config(), &self.layout);
        upstream.check(config, layout)?;
        if self.is_empty() {
            return self.empty(&upstream);
        }
        let y = upstream.y.map(|y| layout.running_rows(y)).transpose()?;
        let states = upstream.state.into_iter().flat_map(|state| state.h.iter().chain(&state.c));
        let scale = Scale::of(y.as_deref().unwrap_or_default().iter().chain(states));
        let shape = MatrixShape::new(layout.steps * layout.batch, config.output_size());
        let rows = match y {
            Some(rows) => rows.iter().map(|v| scale.apply(*v)).collect(),
            None => zeros("backward", &[shape.rows, shape.cols])?,
        };
        let y = self.lstm.backend().upload_vec(shape, rows)?;

        let mut plans = self.lstm.check_out(layout.batch, layout.steps)?;
        let result = self.run(&upstream, scale, y, &mut plans);
        self.lstm.check_in(plans);
        let (x, layers) = result?;

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
        state.h.iter_mut().chain(&mut state.c).for_each(|v| *v = scale.undo(*v));
        let x = match x {
            Some(x) => Some(layout.host(self.download(x, scale).await?)),
            None => None,
        };
        Ok(Gradients { x, state, weights: Weights::new(config.clone(), weights)? })
    }

    async fn download(&self, x: B::Tensor, scale: Scale) -> Result<Vec<f32>> {
        let mut values = self.lstm.backend().download_vec(x).await?;
        values.iter_mut().for_each(|v| *v = scale.undo(*v));
        Ok(values)
    }

    /// Enqueues everything: the input's gradient, and one set of gradients for each layer-direction.
    #[expect(clippy::type_complexity, reason = "read once")]
    fn run(
        &self,
        upstream: &OutputGradients<'_>,
        scale: Scale,
        y: B::Tensor,
        plans: &mut Plans<B>,
    ) -> Result<(Option<B::Tensor>, Vec<LayerGradients<B::Tensor>>)> {
        let (b, config, layout) = (self.lstm.backend(), self.lstm.config(), &self.layout);
        let (directions, size) = (config.num_directions(), config.state_size());
        let (mut x, mut done) = (Some(y), Vec::new());
        for layer in (0..config.num_layers).rev() {
            let y = x.take().ok_or_else(|| Error::shape("backward: y", "a gradient", "none"))?;
            // A mask for each layer but the last, if there was dropout.
            let y = match self.masks.get(layer) {
                Some(mask) => b.mul_add(1.0, &y, Some(mask), None)?,
                None => y,
            };
            let need_x = layer > 0 || upstream.input;
            for d in (0..directions).rev() {
                let k = layer * directions + d;
                let part = match directions {
                    1 => y.clone(),
                    _ => b.slice(&y, 0..b.shape(&y).rows, d * size..(d + 1) * size)?,
                };
                let state = self.lstm.upload_state(layout, upstream.state, k, |v| scale.apply(v))?;
                let upstream = LayerOutputGradients { y: &part, state: &state, accumulate: None, need_x };
                let mut out = self.layer(k, &mut plans.plans[k], upstream)?;
                x = match (out.x.take(), x) {
                    // Forward first.
                    (Some(forward), Some(reverse)) => Some(b.mul_add(1.0, &forward, None, Some(&reverse))?),
                    (only, None) | (None, only) => only,
                };
                done.push(out);
            }
        }
        done.reverse();
        Ok((x.filter(|_| upstream.input), done))
    }

    /// A layer-direction's gradients, segment by segment where that is what was kept.
    fn layer(
        &self,
        k: usize,
        plan: &mut B::Plan,
        upstream: LayerOutputGradients<'_, B::Tensor>,
    ) -> Result<LayerGradients<B::Tensor>> {
        let (b, layer, layout) = (self.lstm.backend(), &self.lstm.device_layers()[k], &self.layout);
        let (x, states, segments) = match &self.records[k] {
            Record::Whole(trace) => return b.backward(layer, plan, trace, upstream),
            Record::Segments { x, states, segments } => (x, states, segments),
        };
        let mut pieces = Vec::new();
        let mut after: Option<LayerGradients<B::Tensor>> = None;
        for (segment, before) in segments.iter().zip(states).rev() {
            let part = Segment::new(b, x, layout.batch, layout.lengths.as_deref(), segment)?;
            let (_, trace) = b.forward_train(layer, plan, part.sequence(before))?;
            let y = rows(b, upstream.y, layout.batch, segment)?;
            let (state, accumulate) = match after {
                Some(after) => (after.state, Some(after.weights)),
                None => (upstream.state.clone(), None),
            };
            let upstream = LayerOutputGradients { y: &y, state: &state, accumulate, need_x: upstream.need_x };
            let mut out = b.backward(layer, plan, &trace, upstream)?;
            pieces.extend(out.x.take().map(|x| (segment.start, x)));
            after = Some(out);
        }
        let mut out = after.ok_or_else(|| Error::shape("backward", "at least one segment", "none"))?;
        pieces.sort_by_key(|(start, _)| *start);
        let pieces: Vec<_> = pieces.into_iter().map(|(_, x)| x).collect();
        out.x = if upstream.need_x { Some(b.concat(ConcatAxis::Rows, &pieces)?) } else { None };
        Ok(out)
    }

    /// Without steps nothing depends on the weights, and the final states are the initial ones.
    fn empty(&self, upstream: &OutputGradients<'_>) -> Result<Gradients> {
        let config = self.lstm.config();
        let mut weights = self.lstm.weights().clone();
        weights.iter_mut().for_each(|(_, values)| values.fill(0.0));
        let zeros = || HostState::zeros(config, self.layout.batch);
        let state = upstream.state.map_or_else(zeros, |state| Ok(state.clone()))?;
        let x = upstream.input.then(|| Array3::zeros(self.layout.shape(config.input_size)));
        Ok(Gradients { x, state, weights })
    }
}
