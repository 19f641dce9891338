//! The model that users run: stacked layers over host arrays.

use std::{
    borrow::Cow,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use ndarray::Array3;
use ndarray_rand::rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    backend::{Backend, ExecutionPath, LayerOutput, Sequence, State},
    config::LstmConfig,
    error::{Error, Result},
    model::input::{HostState, Input, Layout},
    model::stream::Stream,
    shape::{ConcatAxis, MatrixShape, checked_len},
    weights::{Weights, init::Init},
};

/// A stack of LSTM layers on a backend. Cloning is cheap and shares the weights and the plans.
///
/// `forward` takes `&self`: several threads may run one model at a time.
pub struct Lstm<B: Backend> {
    backend: B,
    weights: Arc<Weights>,
    layers: Vec<B::Layer>,
    plans: Arc<Mutex<Vec<Plans<B>>>>,
}

/// What [`Lstm::run`] enqueued.
pub(crate) struct Run<T> {
    /// The last layer's outputs, `[steps * batch, output]`.
    pub(crate) y: T,
    /// The final state of each layer-direction.
    pub(crate) states: Vec<State<T>>,
    /// The dropout masks between layers.
    pub(crate) masks: Vec<T>,
}

/// Plans of all layers for one batch size; checked out by one call at a time.
pub(crate) struct Plans<B: Backend> {
    batch: usize,
    steps: usize,
    pub(crate) plans: Vec<B::Plan>,
}

/// How many sets of plans a model keeps.
const KEPT_PLANS: usize = 4;

impl<B: Backend> Clone for Lstm<B> {
    fn clone(&self) -> Self {
        Lstm {
            backend: self.backend.clone(),
            weights: self.weights.clone(),
            layers: self.layers.clone(),
            plans: self.plans.clone(),
        }
    }
}

impl<B: Backend> std::fmt::Debug for Lstm<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lstm({:?} on {})", self.config(), self.backend.name())
    }
}

impl<B: Backend> Lstm<B> {
    /// Brings `weights` to the backend's device.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn new(backend: &B, weights: impl Into<Arc<Weights>>) -> Result<Self> {
        let weights = weights.into();
        let layers = weights.layers().iter().map(|layer| backend.load(layer)).collect::<Result<_>>()?;
        Ok(Lstm { backend: backend.clone(), weights, layers, plans: Arc::default() })
    }

    /// A model with weights drawn from `U(-1/sqrt(hidden), 1/sqrt(hidden))`, PyTorch's default; the same seed means the
    /// same weights for ever. For other initialisations see [`Weights::init`].
    ///
    /// # Errors
    /// A configuration that is not [valid](LstmConfig::validate); what the device refuses.
    pub fn random(backend: &B, config: LstmConfig, seed: u64) -> Result<Self> {
        Lstm::new(backend, Weights::init(config, &Init::default(), seed)?)
    }

    /// The configuration.
    pub fn config(&self) -> &LstmConfig {
        self.weights.config()
    }

    /// The weights as they were given, unsnapped.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Which code runs each layer-direction, in the order of [`LstmConfig::layer_specs`].
    pub fn paths(&self) -> Vec<ExecutionPath> {
        self.layers.iter().map(|layer| self.backend.path(layer)).collect()
    }

    /// Replaces the weights by others of the same configuration.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration differs; what the device refuses. The model is then unchanged.
    pub fn set_weights(&mut self, weights: impl Into<Arc<Weights>>) -> Result<()> {
        let weights = weights.into();
        if weights.config() != self.config() {
            let why = format!("expected weights of {:?}, got {:?}", self.config(), weights.config());
            return Err(Error::config("weights", why));
        }
        let mut layers = self.layers.clone();
        for (layer, weights) in layers.iter_mut().zip(weights.layers()) {
            self.backend.reload(layer, weights)?;
        }
        (self.layers, self.weights) = (layers, weights);
        Ok(())
    }

    /// A stream of this model for `batch` sequences side by side, with zero state.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has a reverse direction; [`Error::Shape`] for a batch of 0.
    pub fn stream(&self, batch: usize) -> Result<Stream<B>> {
        Stream::new(self, batch)
    }

    pub(crate) fn device_layers(&self) -> &[B::Layer] {
        &self.layers
    }

    /// Runs the model over a batch of sequences and returns the last layer's outputs, `(batch, steps, output)`, and the
    /// final states of all layers. Waits for the device; where a thread can't wait (a browser), use
    /// [`forward_async`](Self::forward_async).
    ///
    /// With a batch of 0 or no steps the output is empty and the state is what it was before.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, what was expected and what came; what the device refuses.
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        wait(self.forward_async(input))
    }

    /// [`forward`](Self::forward) without blocking the thread.
    ///
    /// # Errors
    /// As for `forward`.
    pub async fn forward_async<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        let input = input.into();
        let config = self.config();
        input.check(config)?;
        let (batch, steps) = input.extent();
        if batch == 0 || steps == 0 {
            return self.empty(&input);
        }

        let layout = Layout::new(&input)?;
        let x = self.upload_rows(layout.rows(input.x)?, config.input_size)?;
        let mut plans = self.check_out(batch, steps)?;
        let forward = |_, layers: &[B::Layer], plans: &mut [B::Plan], mut sequences: Vec<Sequence<'_, B::Tensor>>| {
            let sequence = sequences.swap_remove(0);
            if let ([first, second], [plan, other]) = (layers, &mut *plans) {
                let out =
                    self.backend.forward_bidirectional([first, second], [plan, other], sequence, sequences[0].state)?;
                return Ok(LayerOutput::new(out.y, out.state.into()));
            }
            let out = self.backend.forward(&layers[0], &mut plans[0], sequence)?;
            Ok(LayerOutput::new(out.y, vec![out.state]))
        };
        let result = self.run(&input, &layout, x, &mut plans, forward);
        self.check_in(plans);
        let run = result?;
        self.download_outputs(&layout, run).await
    }

    /// What a model gives for no sequences or no steps.
    pub(crate) fn empty(&self, input: &Input<'_>) -> Result<(Array3<f32>, HostState)> {
        let (config, (a, b, _)) = (self.config(), input.x.dim());
        let zeros = || HostState::zeros(config, input.extent().0);
        let state = input.state.map_or_else(zeros, |state| Ok(state.clone()))?;
        checked_len("forward", &[a, b, config.output_size()])?;
        Ok((Array3::zeros((a, b, config.output_size())), state))
    }

    /// Outputs and states in the caller's order.
    pub(crate) async fn download_outputs(
        &self,
        layout: &Layout,
        run: Run<B::Tensor>,
    ) -> Result<(Array3<f32>, HostState)> {
        let y = layout.host(self.backend.download_vec(run.y).await?);
        Ok((y, self.download_states(layout, &run.states).await?))
    }

    /// One state per layer-direction, in the caller's order.
    pub(crate) async fn download_states(&self, layout: &Layout, states: &[State<B::Tensor>]) -> Result<HostState> {
        let mut out = HostState::zeros(self.config(), layout.batch)?;
        for (array, pick) in [(&mut out.h, (|s| &s.h) as fn(&State<B::Tensor>) -> &B::Tensor), (&mut out.c, |s| &s.c)] {
            let parts: Vec<_> = states.iter().map(|state| pick(state).clone()).collect();
            let rows = self.backend.download_vec(self.backend.concat(ConcatAxis::Rows, &parts)?).await?;
            layout.put_states(&rows, array);
        }
        Ok(out)
    }

    pub(crate) fn upload_rows(&self, rows: Cow<'_, [f32]>, cols: usize) -> Result<B::Tensor> {
        let shape = MatrixShape::new(rows.len() / cols, cols);
        match rows {
            Cow::Owned(rows) => self.backend.upload_vec(shape, rows),
            Cow::Borrowed(rows) => self.backend.upload(shape, rows),
        }
    }

    /// Enqueues everything; `forward` runs a layer's directions, given the number of the first, and joins their outputs.
    pub(crate) fn run(
        &self,
        input: &Input<'_>,
        layout: &Layout,
        mut x: B::Tensor,
        plans: &mut Plans<B>,
        mut forward: impl FnMut(
            usize,
            &[B::Layer],
            &mut [B::Plan],
            Vec<Sequence<'_, B::Tensor>>,
        ) -> Result<LayerOutput<B::Tensor, Vec<State<B::Tensor>>>>,
    ) -> Result<Run<B::Tensor>> {
        let (b, config) = (&self.backend, self.config());
        let (batch, steps, lengths) = (layout.batch, layout.steps, layout.lengths.as_deref());
        let mut dropout = input.dropout_seed.filter(|_| config.dropout > 0.0).map(ChaCha8Rng::seed_from_u64);
        let (mut states, mut masks) = (Vec::new(), Vec::new());
        let directions = config.num_directions();
        for (k, (layers, plans)) in self.layers.chunks(directions).zip(plans.plans.chunks_mut(directions)).enumerate() {
            if let (Some(rng), true) = (&mut dropout, k > 0) {
                let cols = config.output_size();
                let mask = layout.dropout_mask(rng, config.dropout, cols);
                let mask = b.upload_vec(MatrixShape::new(steps * batch, cols), mask)?;
                x = b.mul_add(1.0, &x, Some(&mask), None)?;
                masks.push(mask);
            }
            let first = k * directions;
            let initial = (first..first + directions).map(|k| self.upload_state(layout, input.state, k, |v| v));
            let initial = initial.collect::<Result<Vec<_>>>()?;
            let sequences = initial.iter().map(|state| Sequence { x: &x, state, steps, batch, lengths }).collect();
            let out = forward(first, layers, plans, sequences)?;
            states.extend(out.state);
            x = out.y;
        }
        Ok(Run { y: x, states, masks })
    }

    /// The state of layer-direction `k`, each value changed by `map`; zeros where none is given.
    pub(crate) fn upload_state(
        &self,
        layout: &Layout,
        states: Option<&HostState>,
        k: usize,
        map: impl Fn(f32) -> f32,
    ) -> Result<State<B::Tensor>> {
        let upload = |states: Option<&Array3<f32>>, cols: usize| {
            let mut rows = layout.state_rows(states, k, cols);
            rows.iter_mut().for_each(|v| *v = map(*v));
            self.backend.upload_vec(MatrixShape::new(layout.batch, cols), rows)
        };
        Ok(State {
            h: upload(states.map(|s| &s.h), self.config().state_size())?,
            c: upload(states.map(|s| &s.c), self.config().hidden_size)?,
        })
    }

    pub(crate) fn check_out(&self, batch: usize, steps: usize) -> Result<Plans<B>> {
        let mut kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.iter().position(|p| p.batch == batch && p.steps >= steps) {
            return Ok(kept.remove(k));
        }
        drop(kept);
        let plans = self.layers.iter().map(|layer| self.backend.plan(layer, batch, steps)).collect::<Result<_>>()?;
        Ok(Plans { batch, steps, plans })
    }

    pub(crate) fn check_in(&self, plans: Plans<B>) {
        let mut kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_PLANS {
            kept.remove(0);
        }
        kept.push(plans);
    }
}

/// Blocks until `future` is done. What is ready at once, as everything on a CPU is, costs no allocation.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => pollster::block_on(future),
    }
}
