//! The model that users run: stacked layers over host arrays.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use ndarray::{Array3, s};
use ndarray_rand::rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    backend::{Backend, Path, Sequence, State},
    config::LstmConfig,
    error::{Error, Result},
    input::{HostState, Input, to_host, to_rows},
    shape::{Axis, Shape, checked_len},
    stream::Stream,
    weights::{Weights, init::Init},
};

/// A stack of LSTM layers on a backend. Cloning is cheap and shares the weights.
///
/// `forward` takes `&self`: several threads may run one model at a time.
pub struct Lstm<B: Backend> {
    backend: B,
    weights: Arc<Weights>,
    layers: Vec<B::Layer>,
    plans: Mutex<Vec<Plans<B>>>,
}

/// Plans of all layers for one batch size; checked out by one call at a time.
struct Plans<B: Backend> {
    batch: usize,
    steps: usize,
    plans: Vec<B::Plan>,
}

/// How many sets of plans a model keeps.
const KEPT_PLANS: usize = 4;

impl<B: Backend> Clone for Lstm<B> {
    fn clone(&self) -> Self {
        Lstm {
            backend: self.backend.clone(),
            weights: self.weights.clone(),
            layers: self.layers.clone(),
            plans: Mutex::default(),
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
        Ok(Lstm { backend: backend.clone(), weights, layers, plans: Mutex::default() })
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
    pub fn paths(&self) -> Vec<Path> {
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
        self.plans = Mutex::default();
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
            let (a, b, _) = input.x.dim();
            let state = input.state.map_or_else(|| HostState::zeros(config, batch), |state| Ok(state.clone()))?;
            checked_len("forward", &[a, b, config.output_size()])?;
            return Ok((Array3::zeros((a, b, config.output_size())), state));
        }

        // Longest first, so that at any step the sequences that are still running are the first rows.
        let mut order: Vec<usize> = (0..batch).collect();
        let lengths = input.lengths.map(|lengths| {
            order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
            order.iter().map(|&b| lengths[b]).collect::<Vec<_>>()
        });

        let mut plans = self.check_out(batch, steps)?;
        let result = self.run(&input, &order, lengths.as_deref(), &mut plans);
        self.check_in(plans);
        let (y, states) = result?;

        let y = self.download(&y).await?;
        let y = to_host(y, batch, steps, &order, input.time_major);
        let mut state = HostState::zeros(config, batch)?;
        for (array, tensor) in [(&mut state.h, states.h), (&mut state.c, states.c)] {
            let rows = self.download(&tensor).await?;
            let cols = array.dim().2;
            for (k, row) in rows.chunks_exact(cols).enumerate() {
                let mut to = array.slice_mut(s![k / batch, order[k % batch], ..]);
                to.iter_mut().zip(row).for_each(|(to, &v)| *to = v);
            }
        }
        Ok((y, state))
    }

    /// Enqueues everything; returns `y: [steps * batch, output]` and the states of all layers below one another.
    fn run(
        &self,
        input: &Input<'_>,
        order: &[usize],
        lengths: Option<&[usize]>,
        plans: &mut Plans<B>,
    ) -> Result<(B::Tensor, State<B::Tensor>)> {
        let (b, config) = (&self.backend, self.config());
        let (batch, steps) = input.extent();
        let mut mask = input.dropout_seed.filter(|_| config.dropout > 0.0).map(ChaCha8Rng::seed_from_u64);
        let mut x = b.upload(Shape::new(steps * batch, config.input_size), &to_rows(input, order))?;
        let (mut h_n, mut c_n) = (Vec::new(), Vec::new());
        let directions = config.num_directions();
        for (k, (layers, plans)) in self.layers.chunks(directions).zip(plans.plans.chunks_mut(directions)).enumerate() {
            if let (Some(rng), true) = (&mut mask, k > 0) {
                let cols = config.output_size();
                let mask =
                    b.upload(Shape::new(steps * batch, cols), &dropout_mask(rng, config.dropout, steps, order, cols))?;
                x = b.mul_add(1.0, &x, Some(&mask), None)?;
            }
            let mut outputs = Vec::with_capacity(directions);
            for (d, (layer, plan)) in layers.iter().zip(plans).enumerate() {
                let state = initial_state(b, config, input.state, k * directions + d, order)?;
                let out = b.forward(layer, plan, Sequence { x: &x, state: &state, steps, batch, lengths })?;
                outputs.push(out.y);
                h_n.push(out.state.h);
                c_n.push(out.state.c);
            }
            x = match <[_; 1]>::try_from(outputs) {
                Ok([only]) => only,
                Err(both) => b.concat(Axis::Cols, &both)?,
            };
        }
        Ok((x, State { h: b.concat(Axis::Rows, &h_n)?, c: b.concat(Axis::Rows, &c_n)? }))
    }

    pub(crate) async fn download(&self, tensor: &B::Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.backend.shape(tensor).len()];
        self.backend.download(tensor, &mut out).await?;
        Ok(out)
    }

    fn check_out(&self, batch: usize, steps: usize) -> Result<Plans<B>> {
        let mut kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.iter().position(|p| p.batch == batch && p.steps >= steps) {
            return Ok(kept.remove(k));
        }
        drop(kept);
        let plans = self.layers.iter().map(|layer| self.backend.plan(layer, batch, steps)).collect::<Result<_>>()?;
        Ok(Plans { batch, steps, plans })
    }

    fn check_in(&self, plans: Plans<B>) {
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

fn initial_state<B: Backend>(
    b: &B,
    config: &LstmConfig,
    state: Option<&HostState>,
    k: usize,
    order: &[usize],
) -> Result<State<B::Tensor>> {
    let upload = |array: Option<&Array3<f32>>, cols: usize| {
        let rows: Vec<f32> = match array {
            Some(array) => order.iter().flat_map(|&b| array.slice(s![k, b, ..]).to_vec()).collect(),
            None => vec![0.0; order.len() * cols],
        };
        b.upload(Shape::new(order.len(), cols), &rows)
    };
    Ok(State {
        h: upload(state.map(|s| &s.h), config.state_size())?,
        c: upload(state.map(|s| &s.c), config.hidden_size)?,
    })
}

/// 0 or `1 / (1 - p)` for each element, drawn in the caller's order: step, sequence, feature.
fn dropout_mask(rng: &mut ChaCha8Rng, p: f32, steps: usize, order: &[usize], cols: usize) -> Vec<f32> {
    let threshold = (f64::from(p) * 4_294_967_296.0).round() as u64;
    let scale = 1.0 / (1.0 - p);
    let mut mask = vec![0.0; steps * order.len() * cols];
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(k, &b)| place[b] = k);
    for step in mask.chunks_exact_mut(order.len() * cols) {
        for &k in &place {
            for v in &mut step[k * cols..(k + 1) * cols] {
                *v = if u64::from(rng.next_u32()) >= threshold { scale } else { 0.0 };
            }
        }
    }
    mask
}
