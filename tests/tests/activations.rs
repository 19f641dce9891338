//! Compares cells with every choice of activation functions with the equations of the specification, computed in f64.

use anyhow::{Context, Result, ensure};
use lstm_core::{
    Backend, CellKind, ExecutionPath, GateActivation, GateActivations, HostState, LayerWeights, Lstm, LstmConfig,
    Param,
    ndarray::{Array3, ArrayView1, Axis, s},
};
use lstm_tests::{
    backends::{self, BackendVisitor},
    cases::{CELLS, Case, HARD_SIGMOID},
};

/// The functions under test. The last one falls, and is 0 at 0.
const FUNCTIONS: [GateActivation; 5] = [
    GateActivation::Sigmoid,
    GateActivation::Tanh,
    GateActivation::Relu,
    HARD_SIGMOID,
    GateActivation::HardSigmoid { alpha: -1.5, beta: -0.25 },
];

/// The function in f64, written as ONNX defines it.
fn apply(function: GateActivation, x: f64) -> f64 {
    match function {
        GateActivation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        GateActivation::Tanh => x.tanh(),
        GateActivation::Relu => x.max(0.0),
        GateActivation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
    }
}

/// A layer in f64 that runs one sequence.
struct Layer<'a> {
    weights: &'a LayerWeights,
    h: Vec<f64>,
    c: Vec<f64>,
}

impl Layer<'_> {
    fn row_product(&self, param: Param, row: usize, x: &[f64]) -> f64 {
        let weight = self.weights.get(param).expect("the layer has this parameter");
        weight.index_axis(Axis(0), row).iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
    }

    fn element(&self, param: Param, k: usize) -> f64 {
        self.weights.get(param).map_or(0.0, |v| f64::from(v[[k]]))
    }

    /// Runs one time step.
    fn step(&mut self, x: &[f64]) {
        let spec = *self.weights.spec();
        let (hidden, functions) = (spec.hidden_size, spec.activations);
        let is_dense = spec.cell == CellKind::PeepholeDense;
        let clip = |z: f64| spec.clip.map_or(z, |bound| z.clamp(-f64::from(bound), f64::from(bound)));
        let z = |gate: usize, unit: usize| {
            let row = gate * hidden + unit;
            let bias = [Param::Bias, Param::BiasIh, Param::BiasHh].map(|bias| self.element(bias, row));
            let recurrent = match (is_dense, gate) {
                (true, 2) => 0.0,
                (true, _) => self.row_product(Param::WeightHh, row, &self.c),
                (false, _) => self.row_product(Param::WeightHh, row, &self.h),
            };
            bias.iter().sum::<f64>() + self.row_product(Param::WeightIh, row, x) + recurrent
        };
        let (mut h_new, mut c_new) = (Vec::new(), Vec::new());
        for unit in 0..hidden {
            let c = self.c[unit];
            let peephole = |param, c: f64| self.element(param, unit) * c;
            let i = apply(functions.gate, clip(z(0, unit) + peephole(Param::PeepholeI, c)));
            let f = match spec.coupled {
                true => 1.0 - i,
                false => apply(functions.gate, clip(z(1, unit) + peephole(Param::PeepholeF, c))),
            };
            let g = apply(if is_dense { functions.gate } else { functions.candidate }, clip(z(2, unit)));
            let c = f * c + i * g;
            let o = apply(functions.gate, clip(z(3, unit) + peephole(Param::PeepholeO, c)));
            h_new.push(if is_dense { apply(functions.output, o * c) } else { o * apply(functions.output, c) });
            c_new.push(c);
        }
        if let Some(size) = spec.proj_size {
            h_new = (0..size).map(|row| self.row_product(Param::WeightHr, row, &h_new)).collect();
        }
        (self.h, self.c) = (h_new, c_new);
    }
}

/// Compares the outputs and final states of a case with one layer.
fn compare<B: Backend>(b: &B, case: &Case) -> Result<()> {
    let (weights, data) = (case.weights()?, case.data());
    let model = Lstm::new(b, weights.clone())?;
    if !case.config.activations.is_default() {
        ensure!(model.paths() == [ExecutionPath::Reference], "{:?}", model.paths());
    }
    let (y, HostState { h, c }) = model.forward(data.input())?;
    let state = data.state.as_ref().context("the case has no initial state")?;
    let to_f64 = |values: ArrayView1<'_, f32>| values.iter().map(|&v| v.into()).collect();
    let compare = |what: &str, got: ArrayView1<'_, f32>, want: &[f64]| -> Result<()> {
        for (got, want) in got.iter().zip(want) {
            let is_right = (f64::from(*got) - want).abs() <= 1e-5 + 1e-5 * want.abs();
            ensure!(is_right, "{what}: expected {want}, got {got}");
        }
        Ok(())
    };
    for k in 0..case.batch {
        let row = |states: &Array3<f32>| to_f64(states.slice(s![0, k, ..]));
        let mut layer = Layer { weights: &weights.layers()[0], h: row(&state.h), c: row(&state.c) };
        for t in 0..case.steps {
            layer.step(&to_f64(data.x.slice(s![k, t, ..])));
            compare("y", y.slice(s![k, t, ..]), &layer.h)?;
        }
        compare("h", h.slice(s![0, k, ..]), &layer.h)?;
        compare("c", c.slice(s![0, k, ..]), &layer.c)?;
    }
    Ok(())
}

struct Equations(Result<usize>);

impl BackendVisitor for Equations {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        let run = || -> Result<usize> {
            let mut count = 0;
            for (cell_name, cell) in CELLS {
                for choice in 0..FUNCTIONS.len().pow(3) {
                    let function = |k: u32| FUNCTIONS[choice / FUNCTIONS.len().pow(k) % FUNCTIONS.len()];
                    let candidate = if cell == CellKind::PeepholeDense { GateActivation::Tanh } else { function(1) };
                    let activations = GateActivations { gate: function(0), candidate, output: function(2) };
                    let projected = |c: LstmConfig| if cell == CellKind::PeepholeDense { c } else { c.proj_size(4) };
                    let change: fn(LstmConfig) -> LstmConfig = match choice % 3 {
                        0 => |c| c,
                        1 => |c| c.coupled().clip(0.5),
                        _ => |c| c.clip(1.5),
                    };
                    let case =
                        Case::new("", cell_name, cell).map_config(|c| change(projected(c)).activations(activations));
                    compare(&b, &case).with_context(|| format!("{name}: {}", case.config))?;
                    count += 1;
                }
            }
            Ok(count)
        };
        if self.0.is_ok() {
            self.0 = run();
        }
    }
}

#[test]
fn cells_match_the_equations_in_f64() -> Result<()> {
    let mut equations = Equations(Ok(0));
    let wanted = backends::wanted_backends();
    for not_run in backends::for_each_backend(wanted.as_deref(), &mut equations) {
        eprintln!("{not_run}");
    }
    let count = equations.0?;
    ensure!(count == CELLS.len() * FUNCTIONS.len().pow(3), "{count} cases ran");
    Ok(())
}
