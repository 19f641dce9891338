//! Whole models in f64, written independently of the library, and finite differences of their outputs.

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Activation, ModelGradients, ModelLayer, ModelWeights, Param,
    ndarray::{Array2, Array3},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// The largest allowed error, `|value - expected| / (1 + |expected|)`, of results in f32.
const TOLERANCE: f64 = 2e-5;

/// Largest number of elements of an array for which a finite difference is computed.
const SAMPLE: usize = 12;

/// A model with its input, in f64.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    weights: &'a ModelWeights,
    /// All arrays that have a gradient: `x` if the input is features, then the parameters in the order of [`arrays`].
    values: Vec<Vec<f64>>,
    tokens: Option<Array2<i64>>,
    batch: usize,
    steps: usize,
    lengths: Option<Vec<usize>>,
    dropout_seed: Option<u64>,
    /// The weights of the outputs in the loss, which is their weighted sum.
    loss_weights: &'a Array3<f32>,
}

/// The elements of each array of parameters, layer by layer: the weight of an embedding; the parameters of each layer
/// and direction of an LSTM, then `h` and `c` of its own initial state; the weight and the bias of a linear layer.
pub fn arrays(weights: &ModelWeights) -> Vec<(String, Vec<f32>)> {
    let mut arrays = Vec::new();
    for layer in weights.layers() {
        match layer {
            ModelLayer::Embedding { name, weight } => {
                arrays.push((format!("{name}.weight"), weight.iter().copied().collect()));
            }
            ModelLayer::Lstm { name, weights, initial_state } => {
                for (k, layer) in weights.layers().iter().enumerate() {
                    let values = |(param, value): (Param, &lstm_core::ndarray::ArrayD<f32>)| {
                        (format!("{name}.{param:?} of layer direction {k}"), value.iter().copied().collect())
                    };
                    arrays.extend(layer.iter().map(values));
                }
                if let Some(state) = initial_state {
                    arrays.push((format!("{name}.initial_h"), state.h.iter().copied().collect()));
                    arrays.push((format!("{name}.initial_c"), state.c.iter().copied().collect()));
                }
            }
            ModelLayer::Linear { name, weight, bias } => {
                arrays.push((format!("{name}.weight"), weight.iter().copied().collect()));
                arrays.extend(bias.iter().map(|bias| (format!("{name}.bias"), bias.to_vec())));
            }
            _ => {}
        }
    }
    arrays
}

/// Features by time step of one sequence.
type Rows = Vec<Vec<f64>>;

impl<'a> Problem<'a> {
    /// Creates a problem. `x` is the input, unless the model reads `tokens`.
    pub fn new(
        weights: &'a ModelWeights,
        x: Option<&Array3<f32>>,
        tokens: Option<&Array2<i64>>,
        lengths: Option<&[usize]>,
        dropout_seed: Option<u64>,
        loss_weights: &'a Array3<f32>,
    ) -> Result<Self> {
        let (batch, steps) = match (x, tokens) {
            (Some(x), _) => (x.dim().0, x.dim().1),
            (None, Some(tokens)) => tokens.dim(),
            (None, None) => bail!("no input"),
        };
        let values = x.map(|x| x.iter().map(|v| f64::from(*v)).collect());
        let parameters = arrays(weights).into_iter().map(|(_, values)| values.into_iter().map(f64::from).collect());
        Ok(Problem {
            weights,
            values: values.into_iter().chain(parameters).collect(),
            tokens: tokens.cloned(),
            batch,
            steps,
            lengths: lengths.map(<[usize]>::to_vec),
            dropout_seed,
            loss_weights,
        })
    }

    /// Compares the outputs and the gradients of a training pass with this model and its finite differences.
    ///
    /// # Errors
    /// An element differs.
    pub fn check(&self, y: &Array3<f32>, gradients: &ModelGradients) -> Result<()> {
        for ((b, rows), sequence) in self.outputs()?.into_iter().enumerate().zip(y.outer_iter()) {
            for (t, row) in sequence.outer_iter().enumerate() {
                for (k, got) in row.iter().enumerate() {
                    let want = rows.get(t).map_or(0.0, |row| row[k]);
                    check_close(&format!("y[{b}, {t}, {k}]"), want, *got)?;
                }
            }
        }
        let x = gradients.x.as_ref().map(|x| ("x".to_owned(), x.iter().copied().collect::<Vec<_>>()));
        let gradients: Vec<_> = x.into_iter().chain(arrays(&gradients.weights)).collect();
        ensure!(gradients.len() == self.values.len(), "expected gradients of {} arrays", self.values.len());
        let (mut rng, mut compared, mut problem) = (ChaCha8Rng::seed_from_u64(1), 0, self.clone());
        for (array, (name, gradient)) in gradients.iter().enumerate() {
            ensure!(gradient.len() == self.values[array].len(), "{name}: {} elements", gradient.len());
            for k in 0..gradient.len().min(SAMPLE) {
                let k = if gradient.len() <= SAMPLE { k } else { rng.next_u32() as usize % gradient.len() };
                let [want, half] = [1e-5, 5e-6].map(|step| problem.difference(array, k, step));
                let (want, half) = (want?, half?);
                // Where they differ, a relu or hard sigmoid has its kink within a step.
                if (want - half).abs() < 1e-6 * (1.0 + want.abs()) {
                    check_close(&format!("gradient of {name}, element {k}"), want, gradient[k])?;
                    compared += 1;
                }
            }
        }
        ensure!(compared > 10, "only {compared} elements were compared");
        Ok(())
    }

    /// The central finite difference of the loss for one element.
    fn difference(&mut self, array: usize, element: usize, step: f64) -> Result<f64> {
        let value = self.values[array][element];
        let mut loss_at = |v| {
            self.values[array][element] = v;
            self.loss()
        };
        let difference = (loss_at(value + step)? - loss_at(value - step)?) / (2.0 * step);
        self.values[array][element] = value;
        Ok(difference)
    }

    fn loss(&self) -> Result<f64> {
        let mut loss = 0.0;
        for (rows, weights) in self.outputs()?.iter().zip(self.loss_weights.outer_iter()) {
            for (row, weights) in rows.iter().zip(weights.outer_iter()) {
                loss += row.iter().zip(&weights).map(|(v, weight)| v * f64::from(*weight)).sum::<f64>();
            }
        }
        Ok(loss)
    }

    /// The outputs of each sequence, without a softmax at the end.
    fn outputs(&self) -> Result<Vec<Rows>> {
        (0..self.batch).map(|b| self.sequence(b)).collect()
    }

    /// Runs one sequence.
    fn sequence(&self, b: usize) -> Result<Rows> {
        let length = self.lengths.as_ref().map_or(self.steps, |lengths| lengths[b]);
        let mut values = self.values.iter();
        let gain = f64::from(self.weights.input_gain());
        let input: Rows = match &self.tokens {
            Some(_) => vec![vec![0.0]; length],
            None => {
                let (x, size) = (values.next().context("x")?, self.weights.input_size());
                let row = |t| x[(b * self.steps + t) * size..][..size].iter().map(|v| gain * v).collect();
                (0..length).map(row).collect()
            }
        };
        let (mut rows, mut final_state, mut is_single) = (input.clone(), Vec::new(), false);
        for (k, layer) in self.weights.layers().iter().enumerate() {
            match layer {
                ModelLayer::Embedding { weight, .. } => {
                    let (table, tokens) = (values.next().context("weight")?, self.tokens.as_ref().context("tokens")?);
                    let size = weight.ncols();
                    rows = (0..length).map(|t| table[tokens[[b, t]] as usize * size..][..size].to_vec()).collect();
                }
                ModelLayer::Lstm { weights, initial_state, .. } => {
                    let config = weights.config();
                    let parameters: Vec<_> = weights
                        .layers()
                        .iter()
                        .map(|layer| {
                            layer
                                .iter()
                                .map(|(param, _)| Ok((param, values.next().context("a parameter")?)))
                                .collect::<Result<Vec<_>>>()
                        })
                        .collect::<Result<_>>()?;
                    let zeros = vec![0.0; parameters.len() * config.hidden_size];
                    let (h, c) = match initial_state {
                        Some(_) => (values.next().context("h")?, values.next().context("c")?),
                        None => (&zeros, &zeros),
                    };
                    let size = config.hidden_size;
                    let mut masks = self
                        .dropout_seed
                        .filter(|_| config.dropout > 0.0)
                        .map(|seed| ChaCha8Rng::seed_from_u64(nth_seed(seed, k as u64 + 1)));
                    for layer in 0..config.num_layers {
                        if let (Some(rng), true) = (&mut masks, layer > 0) {
                            self.drop(&mut rows, b, rng, config.dropout, self.steps);
                        }
                        let directions = config.num_directions();
                        let mut outputs: Rows = vec![Vec::new(); rows.len()];
                        final_state.clear();
                        for d in 0..directions {
                            let n = layer * directions + d;
                            let mut state = (h[n * size..][..size].to_vec(), c[n * size..][..size].to_vec());
                            for k in 0..rows.len() {
                                let t = if weights.layers()[n].spec().reverse { rows.len() - 1 - k } else { k };
                                state = step(&parameters[n], &rows[t], state)?;
                                outputs[t].extend(&state.0);
                            }
                            final_state.extend(state.0);
                        }
                        rows = outputs;
                    }
                }
                ModelLayer::Linear { weight, bias, .. } => {
                    let weights = values.next().context("weight")?;
                    let bias = match bias {
                        Some(_) => values.next().context("bias")?,
                        None => &vec![0.0; weight.nrows()],
                    };
                    rows = rows.iter().map(|x| affine(weights, bias, x)).collect();
                }
                ModelLayer::Activation(activation) => {
                    rows.iter_mut().flatten().for_each(|v| *v = activate(*activation, *v));
                }
                ModelLayer::LastStep => {
                    let size = rows.first().map_or_else(|| size_before(self.weights, k), Vec::len);
                    rows = vec![rows.pop().unwrap_or_else(|| vec![0.0; size])];
                    is_single = true;
                }
                ModelLayer::FinalState => {
                    rows = vec![final_state.clone()];
                    is_single = true;
                }
                ModelLayer::Dropout(p) => {
                    if let Some(seed) = self.dropout_seed {
                        let mut rng = ChaCha8Rng::seed_from_u64(nth_seed(seed, k as u64 + 1));
                        self.drop(&mut rows, b, &mut rng, *p, if is_single { 1 } else { self.steps });
                    }
                }
                other => bail!("unknown layer {other:?}"),
            }
        }
        for (row, input) in rows.iter_mut().zip(&input) {
            for (k, v) in row.iter_mut().enumerate() {
                let skipped = if self.weights.skip() { input[k] } else { 0.0 };
                *v = f64::from(self.weights.output_gain()) * (*v + skipped);
            }
        }
        Ok(rows)
    }

    /// Applies the dropout mask of the whole batch to the rows of sequence `b`. `steps` is the number of time steps of
    /// the batch at this layer.
    fn drop(&self, rows: &mut Rows, b: usize, rng: &mut ChaCha8Rng, p: f32, steps: usize) {
        let Some(size) = rows.first().map(Vec::len) else { return };
        for t in 0..steps {
            for sequence in 0..self.batch {
                for k in 0..size {
                    let is_kept = f64::from(rng.next_u32()) >= (f64::from(p) * 2f64.powi(32)).round();
                    if let (true, Some(row)) = (sequence == b, rows.get_mut(t)) {
                        row[k] *= if is_kept { 1.0 / (1.0 - f64::from(p)) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Number of features before layer `k`.
fn size_before(weights: &ModelWeights, k: usize) -> usize {
    let size = |layer: &ModelLayer| match layer {
        ModelLayer::Embedding { weight, .. } => Some(weight.ncols()),
        ModelLayer::Lstm { weights, .. } => Some(weights.config().output_size()),
        ModelLayer::Linear { weight, .. } => Some(weight.nrows()),
        _ => None,
    };
    weights.layers()[..k].iter().rev().find_map(size).unwrap_or(weights.input_size())
}

/// Output number `n` of SplitMix64.
fn nth_seed(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `W x + b`.
fn affine(weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    weight.chunks_exact(x.len()).zip(bias).map(|(row, b)| b + dot(row)).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        // A training pass leaves it off.
        _ => x,
    }
}

/// A time step of the standard cell.
fn step(parameters: &[(Param, &Vec<f64>)], x: &[f64], (h, c): (Vec<f64>, Vec<f64>)) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut z = vec![0.0; 4 * h.len()];
    for (param, values) in parameters {
        let term = match param {
            Param::WeightIh => affine(values, &vec![0.0; z.len()], x),
            Param::WeightHh => affine(values, &vec![0.0; z.len()], &h),
            Param::BiasIh | Param::BiasHh => values.to_vec(),
            other => bail!("{other:?} is not a parameter of the standard cell"),
        };
        z.iter_mut().zip(term).for_each(|(z, term)| *z += term);
    }
    let gate = |gate: usize, k: usize| z[gate * h.len() + k];
    let sigmoid = |x: f64| activate(Activation::Sigmoid, x);
    let c: Vec<f64> =
        (0..h.len()).map(|k| sigmoid(gate(1, k)) * c[k] + sigmoid(gate(0, k)) * gate(2, k).tanh()).collect();
    Ok(((0..h.len()).map(|k| sigmoid(gate(3, k)) * c[k].tanh()).collect(), c))
}

fn check_close(what: &str, want: f64, got: f32) -> Result<()> {
    // Written so that NaN fails.
    let is_close = (f64::from(got) - want).abs() <= TOLERANCE * (1.0 + want.abs());
    ensure!(is_close, "{what}: expected {want}, got {got}");
    Ok(())
}
