//! The forward pass of all layers of a model on the device, and the cache of the workspaces that it needs.

use std::sync::{Mutex, PoisonError};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    backend::{Backend, LayerOutput, Sequence, State, shape::MatrixShape},
    error::Result,
    memory,
    model::{
        device_layer::{DeviceLayer, DevicePlan},
        input::Dropout,
        layout::BatchLayout,
        lstm::Lstm,
        tape::Recorder,
    },
};

/// The input of a forward pass on the device: a batch of sequences and their initial states.
pub(crate) struct DeviceBatch<'a, T> {
    pub(crate) layout: &'a BatchLayout,
    /// The input, `[steps * batch, input_size]`.
    pub(crate) x: T,
    /// The initial state of each layer and direction.
    pub(crate) initial_states: Vec<State<T>>,
    /// Whether to apply dropout, and from which seed. `None` means without dropout.
    pub(crate) dropout: Option<Dropout>,
}

/// The output of one layer, with the final state of each of its one or two directions.
pub(crate) type DirectionsOutput<T> = LayerOutput<T, Vec<State<T>>>;

/// The result of [`Lstm::run`]. The device may still be computing it.
pub(crate) struct StackOutput<T> {
    /// Outputs of the last layer, `[steps * batch, output_size]`.
    pub(crate) y: T,
    /// Final state of each layer and direction.
    pub(crate) states: Vec<State<T>>,
    /// The dropout masks between layers; empty without dropout.
    pub(crate) dropout_masks: Vec<T>,
}

impl<B: Backend> Lstm<B> {
    /// Enqueues the forward pass of all layers on the device. The recorder, if given, saves what the backward pass
    /// needs.
    pub(crate) fn run(
        &self,
        input: DeviceBatch<'_, B::Tensor>,
        plans: &mut Plans<B>,
        mut recorder: Option<&mut Recorder<B>>,
    ) -> Result<StackOutput<B::Tensor>> {
        let DeviceBatch { layout, mut x, initial_states, dropout } = input;
        let (b, config) = (self.backend(), self.config());
        let (batch, steps, lengths) = (layout.batch, layout.steps, layout.lengths.as_deref());
        let mut dropout_rng = match dropout {
            Some(Dropout::Seed(seed)) if config.dropout > 0.0 => Some(ChaCha8Rng::seed_from_u64(seed)),
            _ => None,
        };
        let (mut states, mut dropout_masks) = (Vec::new(), Vec::new());
        let directions = config.num_directions();
        let layers = self.device_layers().chunks(directions);
        let layers = layers.zip(plans.plans.chunks_mut(directions)).zip(initial_states.chunks(directions));
        for (k, ((layers, plans), initial_states)) in layers.enumerate() {
            if let (Some(rng), true) = (&mut dropout_rng, k > 0) {
                let cols = config.output_size();
                let mask = layout.dropout_mask(rng, config.dropout, cols)?;
                let mask = b.upload_vec(MatrixShape::new(steps * batch, cols), mask)?;
                x = b.mul_add(1.0, &x, Some(&mask), None)?;
                dropout_masks.push(mask);
            }
            let sequence = |state| Sequence { x: &x, state, steps, batch, lengths };
            let out = match &mut recorder {
                Some(recorder) => recorder.run_layer(b, layers, plans, initial_states.iter().map(sequence))?,
                None => run_layer(b, layers, plans, initial_states, sequence)?,
            };
            states.extend(out.state);
            x = out.y;
        }
        Ok(StackOutput { y: x, states, dropout_masks })
    }
}

/// Runs one layer in its one or two directions.
fn run_layer<'a, B: Backend>(
    b: &B,
    layers: &[DeviceLayer<B>],
    plans: &mut [DevicePlan<B>],
    initial_states: &'a [State<B::Tensor>],
    sequence: impl Fn(&'a State<B::Tensor>) -> Sequence<'a, B::Tensor>,
) -> Result<DirectionsOutput<B::Tensor>> {
    if let ([forward, reverse], [plan, reverse_plan]) = (layers, &mut *plans) {
        let (forward_sequence, reverse_state) = (sequence(&initial_states[0]), &initial_states[1]);
        let (layers, plans) = ([forward, reverse], [plan, reverse_plan]);
        return DeviceLayer::forward_bidirectional(layers, b, plans, forward_sequence, reverse_state);
    }
    let out = layers[0].forward(b, &mut plans[0], sequence(&initial_states[0]))?;
    Ok(LayerOutput::new(out.y, vec![out.state]))
}

/// The workspaces of a model on the device: one [`DevicePlan`] for each layer and direction, for batches of `batch`
/// sequences with at most `steps` time steps.
pub(crate) struct Plans<B: Backend> {
    batch: usize,
    steps: usize,
    pub(crate) plans: Vec<DevicePlan<B>>,
}

/// A cache of the workspaces of a model. Each call takes one [`Plans`] out and puts it back at its end, so that
/// concurrent calls do not share workspaces.
pub(crate) struct PlanCache<B: Backend>(Mutex<Vec<Plans<B>>>);

/// Maximum number of [`Plans`] in a cache.
const MAX_CACHED_PLANS: usize = 4;

impl<B: Backend> Default for PlanCache<B> {
    fn default() -> Self {
        PlanCache(Mutex::default())
    }
}

impl<B: Backend> PlanCache<B> {
    /// Takes workspaces for this batch size and at least this many time steps from the cache, or makes new ones.
    pub(crate) fn take(&self, b: &B, layers: &[DeviceLayer<B>], batch: usize, steps: usize) -> Result<Plans<B>> {
        let mut cached_plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = cached_plans.iter().position(|p| p.batch == batch && p.steps >= steps) {
            return Ok(cached_plans.remove(k));
        }
        drop(cached_plans);
        let plans = layers.iter().map(|layer| layer.plan(b, batch, steps));
        let plans = memory::try_collect("plan", layers.len(), plans)?;
        Ok(Plans { batch, steps, plans })
    }

    /// Puts workspaces back into the cache, for later calls. A full cache drops its oldest entry.
    pub(crate) fn put_back(&self, plans: Plans<B>) {
        let mut cached_plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached_plans.len() == MAX_CACHED_PLANS {
            cached_plans.remove(0);
        }
        cached_plans.push(plans);
    }
}
