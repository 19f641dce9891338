//! Comparison of gradients with central finite differences of the loss, in f64.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Checkpointing, HostState, Lstm, OutputGradients, State, Tape, Weights, arithmetic::GradientScale, ndarray::Array3,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    cases::{Case, CaseData},
    f64_backend::F64Backend,
};

/// The larger of the two step sizes. Each finite difference is extrapolated from both.
const STEP_SIZE: f32 = 1.0 / 2048.0;

/// Every input and parameter of a problem is a multiple of this value, so that `f32` represents the value plus or minus a step
/// exactly.
const GRID_SPACING: f32 = 1.0 / 1_048_576.0;

/// The largest allowed error, `|gradient - difference| / (1 + |difference|)`.
///
/// The differences themselves are accurate to about 1e-10: a loss near 100 is accurate to 1e-14, the steps are 2^-11 and
/// 2^-12, and the error of the extrapolation is of fourth order in the step.
pub const TOLERANCE: f64 = 1e-9;

/// A model, its inputs, and a loss: the weighted sum of all outputs and final states.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Parameters of the model.
    pub weights: Weights,
    /// Inputs, initial state and lengths.
    pub data: CaseData,
    /// Weights of the outputs in the loss, shape `(batch, steps, output)`. `None` leaves the outputs out.
    pub output_loss_weights: Option<Array3<f32>>,
    /// Weights of the final states in the loss. `None` leaves the states out.
    pub state_loss_weights: Option<HostState>,
    seed: u64,
}

/// Gradients of the loss: one list for each array in the order of [`Problem::names`].
pub type Gradients = Vec<Vec<f64>>;

/// Finite differences of the loss for some elements of each array.
#[derive(Clone, Debug)]
pub struct Differences {
    /// Index of the array, index of the element in the array, and the finite difference.
    values: Vec<(usize, usize, f64)>,
    /// Number of elements without a difference, as in [`Report::skipped_count`].
    skipped_count: usize,
}

/// Statistics of one or more comparisons of gradients with finite differences.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Number of elements compared.
    pub compared_count: usize,
    /// Number of elements skipped because some gate reaches a clip bound or a kink of its function within a step, where the
    /// loss is not smooth.
    pub skipped_count: usize,
    /// The largest error, as defined for [`TOLERANCE`].
    pub max_error: f64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.compared_count += other.compared_count;
        self.skipped_count += other.skipped_count;
        self.max_error = self.max_error.max(other.max_error);
    }
}

/// Rounds `v` to the nearest multiple of 2^-20.
pub fn round_to_grid(v: f32) -> f32 {
    (v / GRID_SPACING).round() * GRID_SPACING
}

impl Problem {
    /// Creates a problem from a case. The loss depends on all outputs and final states.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn new(case: &Case) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0x1055);
        let mut fill_with_random = |mut array: Array3<f32>| {
            // Magnitudes of 1 to 2, because a factor near zero would hide errors.
            let random_weight =
                |bits: u32| (1.0 + (bits >> 12) as f32 * GRID_SPACING) * if bits & 1 == 0 { 1.0 } else { -1.0 };
            array.iter_mut().for_each(|v| *v = random_weight(rng.next_u32()));
            array
        };
        let y = fill_with_random(Array3::zeros((case.batch, case.steps, case.config.output_size())));
        let state = HostState::zeros(&case.config, case.batch)?;
        let state = State { h: fill_with_random(state.h), c: fill_with_random(state.c) };
        let mut problem = Problem {
            weights: case.weights()?,
            data: case.data(),
            output_loss_weights: Some(y),
            state_loss_weights: Some(state),
            seed: case.seed,
        };
        problem.arrays().into_iter().flatten().for_each(|v| *v = round_to_grid(*v));
        Ok(problem)
    }

    /// Names of the arrays that have a gradient.
    pub fn names(&self) -> Vec<String> {
        let mut names = ["x", "h0", "c0"].map(str::to_owned).to_vec();
        for (k, layer) in self.weights.layers().iter().enumerate() {
            names.extend(layer.iter().map(|(param, _)| format!("{param:?} of layer direction {k}")));
        }
        names
    }

    /// The arrays that have a gradient. Without an initial state, `h0` and `c0` are missing.
    fn arrays(&mut self) -> Vec<&mut [f32]> {
        let state = self.data.state.iter_mut().flat_map(|state| [&mut state.h, &mut state.c]);
        let inputs = [&mut self.data.x].into_iter().chain(state);
        let inputs = inputs.map(|array| array.as_slice_mut().expect("arrays are created row-major"));
        let weights = self.weights.iter_mut().map(|(_, values)| values);
        inputs.chain(weights).collect()
    }

    /// The scale by which the backward pass multiplies its gradients, computed from the weights of the loss.
    fn scale(&self) -> GradientScale {
        // Weights of the padding count too; they are no larger than the others.
        let state = self.state_loss_weights.iter().flat_map(|state| state.h.iter().chain(&state.c));
        GradientScale::of(self.output_loss_weights.iter().flatten().chain(state))
    }

    /// Runs the forward pass and returns the loss.
    fn loss(&self, b: &F64Backend) -> Result<f64> {
        b.clear();
        let (y, state) = Lstm::new(b, self.weights.clone())?.forward(self.data.input())?;
        let weighted_sum = |handles: &Array3<f32>, weights: &Array3<f32>| -> f64 {
            handles.iter().zip(weights).map(|(&v, &weight)| b.read(v, GradientScale::of(&[])) * f64::from(weight)).sum()
        };
        let state_loss = |weights: &HostState| weighted_sum(&state.h, &weights.h) + weighted_sum(&state.c, &weights.c);
        let output_loss = |weights| weighted_sum(&y, weights);
        Ok(self.output_loss_weights.as_ref().map_or(0.0, output_loss)
            + self.state_loss_weights.as_ref().map_or(0.0, state_loss))
    }

    /// Computes finite differences for at most `max_samples` elements of each array.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn differences(&self, max_samples: usize) -> Result<Differences> {
        let (b, mut changed_problem) = (F64Backend::default(), self.clone());
        let config = self.weights.config();
        changed_problem.data.state = Some(match &self.data.state {
            Some(state) => state.clone(),
            None => HostState::zeros(config, self.data.x.dim().0)?,
        });
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x5a);
        let sizes: Vec<usize> = changed_problem.arrays().iter().map(|values| values.len()).collect();
        let mut differences = Differences { values: Vec::new(), skipped_count: 0 };
        for (array, len) in sizes.into_iter().enumerate() {
            for k in 0..len.min(max_samples) {
                let element = if len <= max_samples { k } else { rng.next_u32() as usize % len };
                match changed_problem.difference(&b, array, element)? {
                    Some(difference) => differences.values.push((array, element, difference)),
                    None => differences.skipped_count += 1,
                }
            }
        }
        Ok(differences)
    }

    /// The finite difference for one element, extrapolated from two step sizes such that the third derivative cancels.
    /// Returns `None` if the loss is not smooth within a step.
    fn difference(&mut self, b: &F64Backend, array_index: usize, element_index: usize) -> Result<Option<f64>> {
        let value = self.arrays()[array_index][element_index];
        let mut loss_at = |step: f32| {
            self.arrays()[array_index][element_index] = value + step;
            ensure!((value + step) - value == step, "{value} plus a step of {step} is not exact in f32");
            Ok((self.loss(b)?, b.kink_pattern()))
        };
        let losses = [loss_at(STEP_SIZE)?, loss_at(STEP_SIZE / 2.0)?, loss_at(-STEP_SIZE / 2.0)?, loss_at(-STEP_SIZE)?];
        self.arrays()[array_index][element_index] = value;
        if losses.iter().any(|(_, pattern)| *pattern != losses[0].1) {
            return Ok(None);
        }
        let [loss_plus_step, loss_plus_half_step, loss_minus_half_step, loss_minus_step] = losses.map(|(loss, _)| loss);
        let step = f64::from(STEP_SIZE);
        Ok(Some(
            (4.0 * (loss_plus_half_step - loss_minus_half_step) / step
                - (loss_plus_step - loss_minus_step) / (2.0 * step))
                / 3.0,
        ))
    }

    /// Runs the forward pass and returns its tape.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn forward(&self, b: &F64Backend, checkpointing: Checkpointing) -> Result<Tape<F64Backend>> {
        b.clear();
        Ok(Lstm::new(b, self.weights.clone())?.forward_train(self.data.input(), checkpointing)?.tape)
    }

    /// Runs the forward pass and returns the final state, rounded to `f32`.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn final_state(&self, b: &F64Backend) -> Result<HostState> {
        b.clear();
        let (_, state) = Lstm::new(b, self.weights.clone())?.forward(self.data.input())?;
        let read_values = |handles: Array3<f32>| handles.mapv(|v| b.read(v, GradientScale::of(&[])) as f32);
        Ok(State { h: read_values(state.h), c: read_values(state.c) })
    }

    /// Runs the backward pass. If `with_input_gradient` is false, the list for the gradient of the input is empty.
    ///
    /// # Errors
    /// The backend returns an error.
    pub fn backward(&self, b: &F64Backend, tape: &Tape<F64Backend>, with_input_gradient: bool) -> Result<Gradients> {
        b.clear();
        let output_gradients = match (&self.output_loss_weights, &self.state_loss_weights) {
            (Some(y), Some(state)) => OutputGradients::from(y).state(state),
            (Some(y), None) => y.into(),
            (None, state) => state.as_ref().context("the loss depends on neither outputs nor states")?.into(),
        };
        let tape_gradients =
            tape.backward(if with_input_gradient { output_gradients.with_input_gradient() } else { output_gradients })?;
        let scale = self.scale();
        let read_values = |handles: &mut dyn Iterator<Item = &f32>| handles.map(|&v| b.read(v, scale)).collect();
        let mut gradients = vec![read_values(&mut tape_gradients.x.iter().flatten())];
        gradients
            .extend([&tape_gradients.state.h, &tape_gradients.state.c].map(|array| read_values(&mut array.iter())));
        for layer in tape_gradients.weights.layers() {
            gradients.extend(layer.iter().map(|(_, values)| read_values(&mut values.iter())));
        }
        Ok(gradients)
    }

    /// Compares gradients with finite differences, and the gradients of padding with zero.
    ///
    /// # Errors
    /// Some element has an error larger than [`TOLERANCE`], or some padding has a gradient that is not zero.
    pub fn compare(&self, gradients: &Gradients, differences: &Differences) -> Result<Report> {
        let names = self.names();
        ensure!(
            gradients.len() == names.len(),
            "expected gradients of {1} arrays, got {0}",
            gradients.len(),
            names.len()
        );
        let mut report = Report {
            compared_count: differences.values.len(),
            skipped_count: differences.skipped_count,
            max_error: 0.0,
        };
        for &(array, element, want) in &differences.values {
            let got = gradients[array][element];
            let error = (got - want).abs() / (1.0 + want.abs());
            // With `error > TOLERANCE` instead, NaN would pass.
            let is_within_tolerance = error <= TOLERANCE;
            ensure!(
                is_within_tolerance,
                "{}, element {element}: the gradient is {got}, the finite difference {want}",
                names[array]
            );
            report.max_error = report.max_error.max(error);
        }
        let (_, steps, features) = self.data.x.dim();
        for (sequence, &len) in self.data.lengths.iter().flatten().enumerate() {
            let padding_gradients =
                &gradients[0][(sequence * steps + len) * features..(sequence + 1) * steps * features];
            ensure!(
                padding_gradients.iter().all(|v| v.to_bits() == 0),
                "x, sequence {sequence}: the gradient of the padding after {len} steps is not zero"
            );
        }
        Ok(report)
    }
}
