//! Runs a model in f64 on one sequence, without a backend: to check a file that carries its own test, and in tests.

use ndarray::{Array1, Array2, Axis, s};

use lstm_core::{
    Activation, CellKind, GateActivation, GateActivations, LayerWeights, ModelLayer, ModelWeights, Param, Weights,
};

/// The input of a model: features, shape `(steps, input_size)`, or tokens.
pub(crate) enum Sequence<'a> {
    Features(Array2<f64>),
    #[cfg_attr(not(test), allow(dead_code, reason = "files that carry their own test read features"))]
    Tokens(&'a [i64]),
}

/// The output of a model, shape `(steps, output_size)`, or `(1, output_size)` if it returns one step.
///
/// # Errors
/// A text, for a token that is out of range and for cells and options that the files of other programs do not use.
pub(crate) fn evaluate(model: &ModelWeights, input: Sequence<'_>) -> Result<Array2<f64>, String> {
    let input_gain = f64::from(model.input_gain());
    let mut skipped = None;
    let mut y = match input {
        Sequence::Features(x) => {
            let x = x * input_gain;
            skipped = Some(x.clone());
            x
        }
        Sequence::Tokens(tokens) => Array2::from_shape_fn((tokens.len(), 1), |(t, _)| tokens[t] as f64),
    };
    let mut final_state = Array1::zeros(0);
    for layer in model.layers() {
        y = match layer {
            ModelLayer::Embedding { weight, .. } => {
                let rows: Vec<usize> = y.iter().map(|&token| token as usize).collect();
                if let Some(row) = rows.iter().find(|&&row| row >= weight.nrows()) {
                    return Err(format!("expected tokens below {}, got {row}", weight.nrows()));
                }
                weight.select(Axis(0), &rows).mapv(f64::from)
            }
            ModelLayer::Lstm { weights, initial_state, .. } => {
                let zeros = Array2::zeros((weights.layers().len(), weights.config().hidden_size));
                let start = |state: Option<&ndarray::Array3<f32>>| {
                    state.map_or_else(|| zeros.clone(), |state| state.index_axis(Axis(1), 0).mapv(f64::from))
                };
                let initial_state = initial_state.as_ref();
                let (h, c) = (start(initial_state.map(|state| &state.h)), start(initial_state.map(|state| &state.c)));
                let (output, last) = lstm(weights, y, &h, &c)?;
                final_state = last;
                output
            }
            ModelLayer::Linear { weight, bias, .. } => {
                let y = y.dot(&weight.mapv(f64::from).t());
                bias.as_ref().map_or(y.clone(), |bias| y + bias.mapv(f64::from))
            }
            ModelLayer::Activation(activation) => activate(*activation, y)?,
            ModelLayer::LastStep => y.slice(s![-1.., ..]).to_owned(),
            ModelLayer::FinalState => final_state.clone().insert_axis(Axis(0)),
            ModelLayer::Dropout(_) => y,
            other => return Err(format!("a layer of the kind {}", other.kind())),
        };
    }
    if let Some(x) = skipped.filter(|_| model.skip()) {
        y += &x.slice(s![.., ..model.output_size()]);
    }
    Ok(y * f64::from(model.output_gain()))
}

/// Runs a stack of LSTM layers. `h` and `c` have a row for each layer and direction. Returns the output and the final
/// hidden states of the last layer.
fn lstm(
    weights: &Weights,
    mut x: Array2<f64>,
    h: &Array2<f64>,
    c: &Array2<f64>,
) -> Result<(Array2<f64>, Array1<f64>), String> {
    let config = weights.config();
    if config.cell != CellKind::Fused || config.proj_size.is_some() || config.coupled || config.clip.is_some() {
        return Err(format!("expected a plain LSTM, got {config}"));
    }
    let directions = config.direction.reverse_flags();
    let mut last = Array1::zeros(0);
    for (first, layer) in weights.layers().chunks(directions.len()).enumerate() {
        let mut y = Array2::zeros((x.nrows(), config.output_size()));
        last = Array1::zeros(config.output_size());
        for (k, (weights, reverse)) in layer.iter().zip(directions).enumerate() {
            let row = first * directions.len() + k;
            let columns = s![k * config.hidden_size..(k + 1) * config.hidden_size];
            let mut state = (h.row(row).to_owned(), c.row(row).to_owned());
            let parameters = Parameters::new(weights)?;
            let mut step = |t: usize| {
                parameters.step(&config.activations, &x.row(t).to_owned(), &mut state);
                y.row_mut(t).slice_mut(columns).assign(&state.0);
            };
            match reverse {
                true => (0..x.nrows()).rev().for_each(&mut step),
                false => (0..x.nrows()).for_each(&mut step),
            }
            last.slice_mut(columns).assign(&state.0);
        }
        x = y;
    }
    Ok((x, last))
}

/// The parameters of one layer and direction in f64.
struct Parameters {
    weight_ih: Array2<f64>,
    weight_hh: Array2<f64>,
    bias: Array1<f64>,
}

impl Parameters {
    fn new(layer: &LayerWeights) -> Result<Self, String> {
        let matrix = |param| {
            let array = layer.get(param).ok_or_else(|| format!("{param:?} is missing"))?.mapv(f64::from);
            array.into_dimensionality().map_err(|error| error.to_string())
        };
        let (weight_ih, weight_hh): (Array2<f64>, Array2<f64>) = (matrix(Param::WeightIh)?, matrix(Param::WeightHh)?);
        let bias = layer.bias().map_err(|error| error.to_string())?;
        let bias = bias.map_or(Array1::zeros(weight_ih.nrows()), |bias| bias.into_iter().map(f64::from).collect());
        Ok(Parameters { weight_ih, weight_hh, bias })
    }

    /// One time step.
    fn step(&self, functions: &GateActivations, x: &Array1<f64>, (h, c): &mut (Array1<f64>, Array1<f64>)) {
        let gates = self.weight_ih.dot(x) + self.weight_hh.dot(h) + &self.bias;
        let size = h.len();
        for n in 0..size {
            let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * size + n]);
            let gate = |x| gate_activation(functions.gate, x);
            c[n] = gate(f) * c[n] + gate(i) * gate_activation(functions.candidate, g);
            h[n] = gate(o) * gate_activation(functions.output, c[n]);
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gate_activation(function: GateActivation, x: f64) -> f64 {
    match function {
        GateActivation::Sigmoid => sigmoid(x),
        GateActivation::Tanh => x.tanh(),
        GateActivation::Relu => x.max(0.0),
        GateActivation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
    }
}

fn activate(activation: Activation, mut y: Array2<f64>) -> Result<Array2<f64>, String> {
    match activation {
        Activation::Relu => y.mapv_inplace(|v| v.max(0.0)),
        Activation::Sigmoid => y.mapv_inplace(sigmoid),
        Activation::Tanh => y.mapv_inplace(f64::tanh),
        Activation::HardSigmoid { alpha, beta } => {
            y.mapv_inplace(|v| (f64::from(alpha) * v + f64::from(beta)).clamp(0.0, 1.0));
        }
        Activation::Softmax | Activation::LogSoftmax => {
            for mut row in y.rows_mut() {
                let max = row.fold(f64::NEG_INFINITY, |max, &v| max.max(v));
                let log_sum = max + row.mapv(|v| (v - max).exp()).sum().ln();
                row.mapv_inplace(|v| v - log_sum);
                if activation == Activation::Softmax {
                    row.mapv_inplace(f64::exp);
                }
            }
        }
        other => return Err(format!("the activation {other}")),
    }
    Ok(y)
}
