//! A typical use of a backend, in steps that can be repeated after an error, and its expected results.

use lstm_cuda::{
    Backend, CellKind, Checkpointing, Error, HostState, Input, Lstm, LstmConfig, OutputGradients, Reference, Stream,
    ndarray::{Array3, s},
};
use lstm_cuda_sim::{CudaHost, Host};

use crate::{Result, ensure};

/// The steps, in order.
pub(crate) const STEPS: [&str; 14] = [
    "load", "forward", "forward", "forward", "lengths", "train", "stream", "step", "step", "chunk", "state", "some",
    "step", "some",
];

const BATCH: usize = 3;
const LENGTH: usize = 5;

/// The values that each step returns.
pub(crate) type Results = Vec<Vec<f32>>;

/// A model and a stream on a backend, on which the steps run.
pub(crate) struct Workload<'a, B: Backend> {
    backend: &'a B,
    config: LstmConfig,
    lstm: Option<Lstm<B>>,
    stream: Option<Stream<B>>,
}

impl<'a, B: Backend> Workload<'a, B> {
    pub(crate) fn new(backend: &'a B, config: &LstmConfig) -> Self {
        Workload { backend, config: config.clone(), lstm: None, stream: None }
    }

    /// Runs step `n` and returns its values.
    pub(crate) fn run_step(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let x = Array3::from_shape_fn((BATCH, LENGTH, self.config.input_size), |(a, t, i)| {
            (a as f32 - 1.0) * 0.5 + t as f32 * 0.25 - i as f32 * 0.375 + n as f32 * 0.125
        });
        if STEPS[n] == "load" {
            self.lstm = Some(Lstm::random(self.backend, self.config.clone(), 7)?);
            return Ok(Vec::new());
        }
        let lstm = self.lstm.as_ref().expect("the step `load` has run");
        let concat = |y: Array3<f32>, state: HostState| y.into_iter().chain(state.h).chain(state.c).collect();
        match (STEPS[n], &mut self.stream) {
            ("forward", _) => lstm.forward(&x).map(|(y, state)| concat(y, state)),
            ("lengths", _) => lstm.forward(Input::from(&x).lengths(&[2, 5, 1])).map(|(y, state)| concat(y, state)),
            ("train", _) => {
                let output = lstm.forward_train(&x, Checkpointing::SaveEverything)?;
                let gradients = output.tape.backward(OutputGradients::from(&output.y).with_input_gradient())?;
                let layers = gradients.weights.layers().iter();
                let weights = layers.flat_map(|layer| layer.iter().flat_map(|(_, values)| values.iter().copied()));
                let mut values: Vec<f32> = weights.chain(gradients.x.into_iter().flatten()).collect();
                values.extend(concat(output.y, output.state));
                Ok(values)
            }
            ("stream", stream) => {
                *stream = Some(lstm.stream(BATCH)?);
                Ok(Vec::new())
            }
            ("step", Some(stream)) => {
                let mut y = vec![0.0; BATCH * self.config.output_size()];
                let x: Vec<f32> = x.slice(s![.., n % LENGTH, ..]).iter().copied().collect();
                stream.step(&x, &mut y)?;
                Ok(y)
            }
            ("some", Some(stream)) => {
                let sequences = [2, 0];
                let mut y = vec![0.0; sequences.len() * self.config.output_size()];
                let x: Vec<f32> = x.slice(s![..sequences.len(), n % LENGTH, ..]).iter().copied().collect();
                stream.step_some(&sequences, &x, &mut y)?;
                Ok(y)
            }
            ("chunk", Some(stream)) => Ok(stream.chunk(x.view())?.into_iter().collect()),
            ("state", Some(stream)) => {
                let state = stream.state()?;
                stream.set_state(&state)?;
                let sequence = |array: &Array3<f32>| array.slice(s![.., 1..2, ..]).to_owned();
                stream.put_state(1, &HostState { h: sequence(&state.h), c: sequence(&state.c) })?;
                Ok(state.h.into_iter().chain(state.c).collect())
            }
            (step, _) => panic!("unknown step {step}, or the step `stream` has not run"),
        }
    }

    /// Runs all steps; none may fail.
    pub(crate) fn run_all(&mut self) -> Result<Results> {
        (0..STEPS.len()).map(|n| self.run_step(n).map_err(|e| format!("{}: {e}", STEPS[n]))).collect()
    }

    /// The execution paths of the model's layers.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.lstm.iter().flat_map(|lstm| lstm.paths()).map(|path| path.to_string()).collect()
    }
}

/// The expected results of all steps: those of the reference path, with kernels that run without a driver.
pub(crate) fn expected_results(config: &LstmConfig) -> Result<Results> {
    let host = host().map_err(|e| e.to_string())?;
    Workload::new(&Reference(host), config).run_all()
}

/// A backend whose kernels run on the CPU without a driver.
pub(crate) fn host() -> Result<CudaHost, Error> {
    Host::builder().build()
}

/// Checks that the results of one step are bit-identical to the expected ones.
pub(crate) fn check(step: &str, got: &[f32], want: &[f32]) -> Result<()> {
    ensure!(got.len() == want.len(), "{step}: {} values, expected {}", got.len(), want.len());
    let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    ensure!(differs.is_none(), "{step}: value {differs:?} of {} differs", got.len());
    Ok(())
}

/// Checks that the results of all steps are bit-identical to the expected ones.
pub(crate) fn check_all(got: &[Vec<f32>], want: &[Vec<f32>]) -> Result<()> {
    got.iter().zip(want).zip(STEPS).try_for_each(|((got, want), step)| check(step, got, want))
}

/// Small models, which together use all kinds of persistent kernels.
pub(crate) fn configs() -> [(&'static str, LstmConfig); 3] {
    let standard = LstmConfig::new(3, 20);
    let peephole = LstmConfig::new(2, 9).layers(2).cell(CellKind::PeepholeDense);
    [("standard", standard.clone()), ("two layers with peepholes", peephole), ("projected", standard.proj_size(11))]
}
