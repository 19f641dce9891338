//! The model that users run: stacked layers over host arrays.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use ndarray::{Array3, ArrayView3, Axis as Dim, s};
use ndarray_rand::rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    backend::{Backend, Path, Sequence, State},
    config::LstmConfig,
    error::{Error, Result},
    shape::{Axis, Shape},
    stream::Stream,
    weights::{Weights, init::Init},
};

/// States of all layers on the host: `h: [layers * directions, batch, state]`, `c: [layers * directions, batch, hidden]`,
/// in PyTorch's order (layer 0 forward, layer 0 reverse, layer 1 forward, ...).
pub type HostState = State<Array3<f32>>;

impl HostState {
    /// Zero states for `batch` sequences; what a model starts from unless told otherwise.
    pub fn zeros(config: &LstmConfig, batch: usize) -> Self {
        let n = config.num_layers * config.num_directions();
        State { h: Array3::zeros((n, batch, config.state_size())), c: Array3::zeros((n, batch, config.hidden_size)) }
    }

    pub(crate) fn check(&self, op: &str, config: &LstmConfig, batch: usize) -> Result<()> {
        let n = config.num_layers * config.num_directions();
        for (name, array, cols) in [("h", &self.h, config.state_size()), ("c", &self.c, config.hidden_size)] {
            let want = [n, batch, cols];
            if array.shape() != want {
                return Err(Error::shape(
                    format!("{op}: state.{name}"),
                    format!("{want:?}"),
                    format!("{:?}", array.shape()),
                ));
            }
        }
        Ok(())
    }
}

/// What a model runs over. An array alone is enough; the methods add the rest.
///
/// ```
/// use lstm_core::{Input, ndarray::Array3};
/// let x = Array3::<f32>::zeros((2, 7, 3)); // batch, steps, features
/// let input = Input::from(&x).lengths(&[7, 4]);
/// # let _ = input;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    x: ArrayView3<'a, f32>,
    state: Option<&'a HostState>,
    lengths: Option<&'a [usize]>,
    time_major: bool,
    dropout_seed: Option<u64>,
}

impl<'a> From<ArrayView3<'a, f32>> for Input<'a> {
    fn from(x: ArrayView3<'a, f32>) -> Self {
        Input { x, state: None, lengths: None, time_major: false, dropout_seed: None }
    }
}

impl<'a> From<&'a Array3<f32>> for Input<'a> {
    fn from(x: &'a Array3<f32>) -> Self {
        x.view().into()
    }
}

impl<'a> Input<'a> {
    /// Starts from `state` instead of zeros.
    pub fn state(self, state: &'a HostState) -> Self {
        Input { state: Some(state), ..self }
    }

    /// Gives each sequence its own number of steps, in any order, 0 to all: what PyTorch does with packed sequences.
    /// Outputs beyond a length are 0, the final state is taken at each length, and the reverse direction starts there.
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        Input { lengths: Some(lengths), ..self }
    }

    /// `x` and the output are `(steps, batch, features)` instead of `(batch, steps, features)`.
    pub fn time_major(self) -> Self {
        Input { time_major: true, ..self }
    }

    /// Runs as in training: outputs between layers are dropped with the configuration's probability by a mask that
    /// `seed` determines. Without it there is no dropout.
    pub fn training(self, seed: u64) -> Self {
        Input { dropout_seed: Some(seed), ..self }
    }

    /// `(batch, steps)`
    fn extent(&self) -> (usize, usize) {
        let (a, b, _) = self.x.dim();
        if self.time_major { (b, a) } else { (a, b) }
    }

    fn check(&self, config: &LstmConfig) -> Result<()> {
        let (batch, steps) = self.extent();
        let features = self.x.dim().2;
        if features != config.input_size {
            let (a, b, _) = self.x.dim();
            let want = [a, b, config.input_size];
            return Err(Error::shape("forward: x", format!("{want:?}"), format!("{:?}", self.x.shape())));
        }
        if let Some(state) = self.state {
            state.check("forward", config, batch)?;
        }
        if let Some(lengths) = self.lengths
            && (lengths.len() != batch || lengths.iter().any(|&len| len > steps))
        {
            let want = format!("{batch} lengths of at most {steps}");
            return Err(Error::shape("forward: lengths", want, format!("{lengths:?}")));
        }
        Ok(())
    }
}

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
            let state = input.state.cloned().unwrap_or_else(|| HostState::zeros(config, batch));
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
        let y = to_host(&y, batch, steps, &order, input.time_major);
        let mut state = HostState::zeros(config, batch);
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

/// The host's array as time-major rows, sequences in `order`.
fn to_rows(input: &Input<'_>, order: &[usize]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(input.x.len());
    for step in input.x.axis_iter(Dim(if input.time_major { 0 } else { 1 })) {
        for &b in order {
            // With the steps' axis gone, the batch's is the first of two.
            let row = step.index_axis(Dim(0), b);
            match row.as_slice() {
                Some(row) => rows.extend_from_slice(row),
                None => rows.extend(row.iter()),
            }
        }
    }
    rows
}

/// The inverse of [`to_rows`].
fn to_host(rows: &[f32], batch: usize, steps: usize, order: &[usize], time_major: bool) -> Array3<f32> {
    let cols = rows.len() / (batch * steps);
    let mut place = vec![0; batch];
    order.iter().enumerate().for_each(|(k, &b)| place[b] = k);
    let row = |t: usize, b: usize| &rows[(t * batch + place[b]) * cols..][..cols];
    let mut out = Vec::with_capacity(rows.len());
    let shape = if time_major {
        (0..steps).for_each(|t| (0..batch).for_each(|b| out.extend_from_slice(row(t, b))));
        (steps, batch, cols)
    } else {
        (0..batch).for_each(|b| (0..steps).for_each(|t| out.extend_from_slice(row(t, b))));
        (batch, steps, cols)
    };
    Array3::from_shape_vec(shape, out).expect("as many rows as the shape says")
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
