//! Gradients against central finite differences of the loss, in f64.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Checkpointing, HostState, Lstm, OutputGradients, State, Tape, Weights, arithmetic::GradientScale, ndarray::Array3,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    cases::{Case, Data},
    double::Double,
};

/// The larger of the two steps of a difference.
const STEP: f32 = 1.0 / 2048.0;

/// All numbers of a problem are multiples of this: f32 holds them and their sums with a step exactly.
const GRID: f32 = 1.0 / 1_048_576.0;

/// The largest `|gradient - difference| / (1 + |difference|)`. The differences themselves are good to 1e-10: a loss near
/// 100 is known to 1e-14, a step is 2^-11 or half of it, and what the extrapolation leaves is of the fourth power of that.
pub const TOLERANCE: f64 = 1e-9;

/// A model, what it runs over, and a loss: the sum of the outputs and final states, each times a number.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The parameters.
    pub weights: Weights,
    /// What the model runs over.
    pub data: Data,
    /// What the output is multiplied with, if it counts.
    pub y: Option<Array3<f32>>,
    /// What the final states are multiplied with, if they count.
    pub state: Option<HostState>,
    seed: u64,
}

/// A list for each of the arrays that [`Problem::names`] names.
pub type Gradients = Vec<Vec<f64>>;

/// Differences of some elements of each array.
#[derive(Clone, Debug)]
pub struct Differences {
    /// Array, element, difference.
    known: Vec<(usize, usize, f64)>,
    skipped: usize,
}

/// What comparisons found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Elements compared.
    pub compared: usize,
    /// Elements left out: within a step of them some gate comes to its bound, where the loss has a kink.
    pub skipped: usize,
    /// The largest error, measured as [`TOLERANCE`] is.
    pub worst: f64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.compared += other.compared;
        self.skipped += other.skipped;
        self.worst = self.worst.max(other.worst);
    }
}

/// The nearest number that a problem may have.
pub fn round(v: f32) -> f32 {
    (v / GRID).round() * GRID
}

impl Problem {
    /// The case's model and data, and a loss of all that comes out.
    ///
    /// # Errors
    /// A configuration that is not valid.
    pub fn new(case: &Case) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0x1055);
        let mut fill = |mut array: Array3<f32>| {
            // Of magnitude 1 to 2: no error may hide behind a factor near zero.
            let number = |bits: u32| (1.0 + (bits >> 12) as f32 * GRID) * if bits & 1 == 0 { 1.0 } else { -1.0 };
            array.iter_mut().for_each(|v| *v = number(rng.next_u32()));
            array
        };
        let y = fill(Array3::zeros((case.batch, case.steps, case.config.output_size())));
        let state = HostState::zeros(&case.config, case.batch)?;
        let state = State { h: fill(state.h), c: fill(state.c) };
        let mut problem =
            Problem { weights: case.weights()?, data: case.data(), y: Some(y), state: Some(state), seed: case.seed };
        problem.arrays().into_iter().flatten().for_each(|v| *v = round(*v));
        Ok(problem)
    }

    /// What has a gradient.
    pub fn names(&self) -> Vec<String> {
        let mut names = ["x", "h0", "c0"].map(str::to_owned).to_vec();
        for (k, layer) in self.weights.layers().iter().enumerate() {
            names.extend(layer.iter().map(|(param, _)| format!("{param:?} of layer direction {k}")));
        }
        names
    }

    /// What has a gradient, given an initial state.
    fn arrays(&mut self) -> Vec<&mut [f32]> {
        let state = self.data.state.iter_mut().flat_map(|state| [&mut state.h, &mut state.c]);
        let inputs = [&mut self.data.x].into_iter().chain(state);
        let inputs = inputs.map(|array| array.as_slice_mut().expect("row-major as it was made"));
        let weights = self.weights.iter_mut().map(|(_, values)| values);
        inputs.chain(weights).collect()
    }

    /// The scale of this problem's backward pass.
    fn scale(&self) -> GradientScale {
        // What stands beyond a sequence's length is no larger than the rest.
        let state = self.state.iter().flat_map(|state| state.h.iter().chain(&state.c));
        GradientScale::of(self.y.iter().flatten().chain(state))
    }

    fn loss(&self, b: &Double) -> Result<f64> {
        b.clear();
        let (y, state) = Lstm::new(b, self.weights.clone())?.forward(self.data.input())?;
        let weighed = |receipts: &Array3<f32>, by: &Array3<f32>| -> f64 {
            receipts.iter().zip(by).map(|(&v, &by)| b.read(v, GradientScale::of(&[])) * f64::from(by)).sum()
        };
        let of_states = |by: &HostState| weighed(&state.h, &by.h) + weighed(&state.c, &by.c);
        Ok(self.y.as_ref().map_or(0.0, |by| weighed(&y, by)) + self.state.as_ref().map_or(0.0, of_states))
    }

    /// The loss's differences for at most `sample` elements of each array.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn differences(&self, sample: usize) -> Result<Differences> {
        let (b, mut moved) = (Double::default(), self.clone());
        let config = self.weights.config();
        moved.data.state = Some(match &self.data.state {
            Some(state) => state.clone(),
            None => HostState::zeros(config, self.data.x.dim().0)?,
        });
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x5a);
        let sizes: Vec<usize> = moved.arrays().iter().map(|values| values.len()).collect();
        let mut found = Differences { known: Vec::new(), skipped: 0 };
        for (array, len) in sizes.into_iter().enumerate() {
            for k in 0..len.min(sample) {
                let element = if len <= sample { k } else { rng.next_u32() as usize % len };
                match moved.slope(&b, array, element)? {
                    Some(slope) => found.known.push((array, element, slope)),
                    None => found.skipped += 1,
                }
            }
        }
        Ok(found)
    }

    /// The loss's difference for one element, from two steps such that the third derivative cancels; none where they
    /// reach over a kink.
    fn slope(&mut self, b: &Double, array: usize, element: usize) -> Result<Option<f64>> {
        let value = self.arrays()[array][element];
        let mut at = |step: f32| {
            self.arrays()[array][element] = value + step;
            ensure!((value + step) - value == step, "a step of {step} from {value} is not exact");
            Ok((self.loss(b)?, b.clipped()))
        };
        let losses = [at(STEP)?, at(STEP / 2.0)?, at(-STEP / 2.0)?, at(-STEP)?];
        self.arrays()[array][element] = value;
        if losses.iter().any(|(_, clipped)| *clipped != losses[0].1) {
            return Ok(None);
        }
        let [far, near, minus_near, minus_far] = losses.map(|(loss, _)| loss);
        let step = f64::from(STEP);
        Ok(Some((4.0 * (near - minus_near) / step - (far - minus_far) / (2.0 * step)) / 3.0))
    }

    /// The forward pass.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn record(&self, b: &Double, keep: Checkpointing) -> Result<Tape<Double>> {
        b.clear();
        Ok(Lstm::new(b, self.weights.clone())?.forward_train(self.data.input(), keep)?.tape)
    }

    /// The final state, as f32.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn final_state(&self, b: &Double) -> Result<HostState> {
        b.clear();
        let (_, state) = Lstm::new(b, self.weights.clone())?.forward(self.data.input())?;
        let read = |receipts: Array3<f32>| receipts.mapv(|v| b.read(v, GradientScale::of(&[])) as f32);
        Ok(State { h: read(state.h), c: read(state.c) })
    }

    /// The backward pass, of which the input's gradient is a part or, if not asked for, empty.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn walk_back(&self, b: &Double, tape: &Tape<Double>, input: bool) -> Result<Gradients> {
        b.clear();
        let upstream = match (&self.y, &self.state) {
            (Some(y), Some(state)) => OutputGradients::from(y).state(state),
            (Some(y), None) => y.into(),
            (None, state) => state.as_ref().context("a loss of nothing")?.into(),
        };
        let found = tape.backward(if input { upstream.with_input() } else { upstream })?;
        let scale = self.scale();
        let read = |receipts: &mut dyn Iterator<Item = &f32>| receipts.map(|&v| b.read(v, scale)).collect();
        let mut gradients = vec![read(&mut found.x.iter().flatten())];
        gradients.extend([&found.state.h, &found.state.c].map(|array| read(&mut array.iter())));
        for layer in found.weights.layers() {
            gradients.extend(layer.iter().map(|(_, values)| read(&mut values.iter())));
        }
        Ok(gradients)
    }

    /// Compares gradients with differences, and those of inputs beyond a sequence's length with zero.
    ///
    /// # Errors
    /// The first element whose error is larger than [`TOLERANCE`].
    pub fn compare(&self, gradients: &Gradients, differences: &Differences) -> Result<Report> {
        let names = self.names();
        ensure!(gradients.len() == names.len(), "{} gradients of {} arrays", gradients.len(), names.len());
        let mut report = Report { compared: differences.known.len(), skipped: differences.skipped, worst: 0.0 };
        for &(array, element, want) in &differences.known {
            let got = gradients[array][element];
            let error = (got - want).abs() / (1.0 + want.abs());
            // Not the other way round, or NaN would pass.
            let near = error <= TOLERANCE;
            ensure!(near, "{}, element {element}: the gradient is {got}, the difference {want}", names[array]);
            report.worst = report.worst.max(error);
        }
        let (_, steps, features) = self.data.x.dim();
        for (sequence, &len) in self.data.lengths.iter().flatten().enumerate() {
            let padding = &gradients[0][(sequence * steps + len) * features..(sequence + 1) * steps * features];
            ensure!(padding.iter().all(|v| v.to_bits() == 0), "x, sequence {sequence}: a gradient beyond {len} steps");
        }
        Ok(report)
    }
}
