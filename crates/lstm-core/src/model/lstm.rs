//! The model [`Lstm`]: a stack of layers that maps host arrays to host arrays.

use std::{borrow::Cow, sync::Arc};

use ndarray::{Array3, Ix3};

use crate::{
    backend::{
        Backend, ExecutionPath, State,
        shape::{ConcatAxis, MatrixShape},
    },
    config::LstmConfig,
    error::{Error, Result},
    memory,
    model::{
        block_on::block_on,
        device_layer::DeviceLayer,
        input::{HostState, Input},
        layout::BatchLayout,
        run::{DeviceBatch, PlanCache, Plans, StackOutput},
        stream::Stream,
    },
    weights::{Weights, init::Init},
};

/// A stack of LSTM layers on a backend.
///
/// A clone is cheap and shares the weights and the workspaces. [`forward`](Self::forward) takes `&self`, so several
/// threads may run one model at the same time.
pub struct Lstm<B: Backend> {
    backend: B,
    weights: Arc<Weights>,
    layers: Vec<DeviceLayer<B>>,
    plan_cache: Arc<PlanCache<B>>,
}

impl<B: Backend> Clone for Lstm<B> {
    fn clone(&self) -> Self {
        Lstm {
            backend: self.backend.clone(),
            weights: self.weights.clone(),
            layers: self.layers.clone(),
            plan_cache: self.plan_cache.clone(),
        }
    }
}

impl<B: Backend> std::fmt::Debug for Lstm<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lstm({:?} on {})", self.config(), self.backend.name())
    }
}

impl<B: Backend> Lstm<B> {
    /// Creates a model and uploads `weights` to the backend's device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, for example for lack of memory.
    pub fn new(backend: &B, weights: impl Into<Arc<Weights>>) -> Result<Self> {
        let weights = weights.into();
        let layers = weights.layers().iter().map(|layer| DeviceLayer::load(backend, layer)).collect::<Result<_>>()?;
        Ok(Lstm { backend: backend.clone(), weights, layers, plan_cache: Arc::default() })
    }

    /// Creates a model with random weights, drawn from the uniform distribution
    /// `U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))` as PyTorch does. The same seed always gives the same weights, in
    /// every version. Use [`Weights::init`] for other distributions.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is not [valid](LstmConfig::validate); [`Error::Device`] if the device
    /// fails.
    pub fn random(backend: &B, config: LstmConfig, seed: u64) -> Result<Self> {
        Lstm::new(backend, Weights::init(config, &Init::default(), seed)?)
    }

    /// The configuration.
    pub fn config(&self) -> &LstmConfig {
        self.weights.config()
    }

    /// The weights as they were given, without [`snap`](crate::arithmetic::snap).
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// For each layer and direction, the code that runs it, in the order of [`LstmConfig::layer_specs`]. A model with
    /// other [activation functions](LstmConfig::activations) than the default ones runs by the reference path.
    pub fn paths(&self) -> Vec<ExecutionPath> {
        self.layers.iter().map(|layer| layer.path(&self.backend)).collect()
    }

    /// Replaces the weights by others of the same configuration. Running streams keep the old weights.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration differs; [`Error::Device`] if the device fails. The model is then
    /// unchanged.
    pub fn set_weights(&mut self, weights: impl Into<Arc<Weights>>) -> Result<()> {
        let weights = weights.into();
        if weights.config() != self.config() {
            let reason = format!("expected weights of {:?}, got {:?}", self.config(), weights.config());
            return Err(Error::config("weights", reason));
        }
        let mut layers = self.layers.clone();
        for (layer, weights) in layers.iter_mut().zip(weights.layers()) {
            layer.reload(&self.backend, weights)?;
        }
        (self.layers, self.weights) = (layers, weights);
        Ok(())
    }

    /// Creates a stream that runs `batch` sequences from zero state. Each call runs the next time step, or a chunk of
    /// time steps.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has a reverse direction; [`Error::Shape`] for a batch of 0.
    pub fn stream(&self, batch: usize) -> Result<Stream<B>> {
        Stream::new(self, batch)
    }

    /// The layers on the device, one for each layer and direction.
    pub(crate) fn device_layers(&self) -> &[DeviceLayer<B>] {
        &self.layers
    }

    /// Runs the model over a batch of sequences. Returns the outputs of the last layer, `(batch, steps, output_size)`,
    /// and the final states of all layers.
    ///
    /// This waits for the device. Where a thread must not block, as in a browser, use
    /// [`forward_async`](Self::forward_async).
    ///
    /// With a batch of 0 or without time steps the output is empty and the final state is the initial state.
    ///
    /// # Errors
    /// [`Error::Shape`] names the argument, the expected and the given shape; [`Error::Device`] if the device fails.
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        block_on(self.forward_async(input))
    }

    /// Asynchronous [`forward`](Self::forward), which does not block the thread.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub async fn forward_async<'a>(&self, input: impl Into<Input<'a>>) -> Result<(Array3<f32>, HostState)> {
        let input = input.into();
        input.check(self.config())?;
        let (batch, steps) = input.batch_and_steps();
        if batch == 0 || steps == 0 {
            return self.empty_output(&input);
        }
        let layout = BatchLayout::new(&input)?;
        let x = self.upload_rows(layout.to_device_rows(input.x)?, self.config().input_size)?;
        let initial_states = self.upload_states(&layout, input.state)?;
        let mut plans = self.take_plans(&layout)?;
        let batch = DeviceBatch { layout: &layout, x, initial_states, dropout: input.dropout };
        let result = self.run(batch, &mut plans, None);
        self.put_back_plans(plans);
        self.download_outputs(&layout, result?).await
    }

    /// The result of a forward pass for an input without sequences or without time steps.
    pub(crate) fn empty_output(&self, input: &Input<'_>) -> Result<(Array3<f32>, HostState)> {
        let (config, (a, b, _)) = (self.config(), input.x.dim());
        let zeros = || HostState::zeros(config, input.batch_and_steps().0);
        let state = input.state.map_or_else(zeros, HostState::try_clone)?;
        Ok((memory::zero_array("forward", Ix3(a, b, config.output_size()))?, state))
    }

    /// Downloads the outputs and the final states, and arranges the sequences in the caller's order.
    pub(crate) async fn download_outputs(
        &self,
        layout: &BatchLayout,
        output: StackOutput<B::Tensor>,
    ) -> Result<(Array3<f32>, HostState)> {
        let y = layout.to_host(self.backend.download_vec(output.y).await?)?;
        Ok((y, self.download_states(layout, &output.states).await?))
    }

    /// Downloads the state of each layer and direction, and arranges the sequences in the caller's order.
    pub(crate) async fn download_states(&self, layout: &BatchLayout, states: &[State<B::Tensor>]) -> Result<HostState> {
        let mut out = HostState::zeros(self.config(), layout.batch)?;
        for (array, pick) in [(&mut out.h, (|s| &s.h) as fn(&State<B::Tensor>) -> &B::Tensor), (&mut out.c, |s| &s.c)] {
            let parts: Vec<_> = states.iter().map(|state| pick(state).clone()).collect();
            let rows = self.backend.download_vec(self.backend.concat(ConcatAxis::Rows, &parts)?).await?;
            layout.states_to_host(&rows, array);
        }
        Ok(out)
    }

    /// Uploads a matrix whose rows have `cols` elements each.
    pub(crate) fn upload_rows(&self, rows: Cow<'_, [f32]>, cols: usize) -> Result<B::Tensor> {
        let shape = MatrixShape::new(rows.len() / cols, cols);
        match rows {
            Cow::Owned(rows) => self.backend.upload_vec(shape, rows),
            Cow::Borrowed(rows) => self.backend.upload(shape, rows),
        }
    }

    /// Uploads the initial state of every layer and direction. Without `states`, the states are zero.
    pub(crate) fn upload_states(
        &self,
        layout: &BatchLayout,
        states: Option<&HostState>,
    ) -> Result<Vec<State<B::Tensor>>> {
        (0..self.layers.len()).map(|k| self.upload_state(layout, states, k, |v| v)).collect()
    }

    /// Uploads the state of layer and direction `k`, counted as in [`LstmConfig::layer_specs`], with `map` applied to
    /// each value. Without `states`, the state is zero.
    pub(crate) fn upload_state(
        &self,
        layout: &BatchLayout,
        states: Option<&HostState>,
        k: usize,
        map: impl Fn(f32) -> f32,
    ) -> Result<State<B::Tensor>> {
        let upload = |states: Option<&Array3<f32>>, cols: usize| {
            let mut rows = layout.state_rows(states, k, cols)?;
            rows.iter_mut().for_each(|v| *v = map(*v));
            self.backend.upload_vec(MatrixShape::new(layout.batch, cols), rows)
        };
        Ok(State {
            h: upload(states.map(|s| &s.h), self.config().state_size())?,
            c: upload(states.map(|s| &s.c), self.config().hidden_size)?,
        })
    }

    /// Takes the workspaces for a batch of this layout from the model's cache, or makes new ones. Give them back with
    /// [`put_back_plans`](Self::put_back_plans).
    pub(crate) fn take_plans(&self, layout: &BatchLayout) -> Result<Plans<B>> {
        self.plan_cache.take(&self.backend, &self.layers, layout.batch, layout.steps)
    }

    /// Puts workspaces back into the model's cache, for later calls.
    pub(crate) fn put_back_plans(&self, plans: Plans<B>) {
        self.plan_cache.put_back(plans);
    }
}
