//! What a user does with a device, in steps of which each can be done again when it failed, and the bits that it must give.

use lstm_cuda::{
    Backend, CellKind, Checkpointing, Error, Input, Lstm, LstmConfig, OutputGradients, Reference, Stream,
    ndarray::{Array3, s},
};

use lstm_cuda_sim::{CudaHost, Host};

use crate::{Result, ensure};

/// What is done, in this order.
pub(crate) const STEPS: [&str; 12] =
    ["load", "forward", "forward", "forward", "lengths", "train", "stream", "step", "step", "chunk", "state", "step"];

const BATCH: usize = 3;
const LENGTH: usize = 5;

/// What the steps give.
pub(crate) type Bits = Vec<Vec<f32>>;

/// A model, and a stream of it.
pub(crate) struct Work<'a, B: Backend> {
    backend: &'a B,
    config: LstmConfig,
    lstm: Option<Lstm<B>>,
    stream: Option<Stream<B>>,
}

impl<'a, B: Backend> Work<'a, B> {
    pub(crate) fn new(backend: &'a B, config: &LstmConfig) -> Self {
        Work { backend, config: config.clone(), lstm: None, stream: None }
    }

    /// Does step `n`; the values that it gives.
    pub(crate) fn step(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let x = Array3::from_shape_fn((BATCH, LENGTH, self.config.input_size), |(a, t, i)| {
            (a as f32 - 1.0) * 0.5 + t as f32 * 0.25 - i as f32 * 0.375 + n as f32 * 0.125
        });
        if STEPS[n] == "load" {
            self.lstm = Some(Lstm::random(self.backend, self.config.clone(), 7)?);
            return Ok(Vec::new());
        }
        let lstm = self.lstm.as_ref().expect("it was loaded");
        let all = |y: Array3<f32>, state: lstm_cuda::HostState| y.into_iter().chain(state.h).chain(state.c).collect();
        match (STEPS[n], &mut self.stream) {
            ("forward", _) => lstm.forward(&x).map(|(y, state)| all(y, state)),
            ("lengths", _) => lstm.forward(Input::from(&x).lengths(&[2, 5, 1])).map(|(y, state)| all(y, state)),
            ("train", _) => {
                let pass = lstm.forward_train(&x, Checkpointing::Everything)?;
                let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input())?;
                let layers = gradients.weights.layers().iter();
                let weights = layers.flat_map(|layer| layer.iter().flat_map(|(_, values)| values.iter().copied()));
                let mut values: Vec<f32> = weights.chain(gradients.x.into_iter().flatten()).collect();
                values.extend(all(pass.y, pass.state));
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
            ("chunk", Some(stream)) => Ok(stream.chunk(x.view())?.into_iter().collect()),
            ("state", Some(stream)) => {
                let state = stream.state()?;
                stream.set_state(&state)?;
                Ok(state.h.into_iter().chain(state.c).collect())
            }
            (step, _) => panic!("no step is called {step}, or there is no stream"),
        }
    }

    /// All steps, none of which may fail.
    pub(crate) fn all(&mut self) -> Result<Bits> {
        (0..STEPS.len()).map(|n| self.step(n).map_err(|e| format!("{}: {e}", STEPS[n]))).collect()
    }

    /// Which code runs the layers.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.lstm.iter().flat_map(|lstm| lstm.paths()).map(|path| path.to_string()).collect()
    }
}

/// What every exact device must give: the reference's values, out of the same kernels without a driver.
pub(crate) fn expected(config: &LstmConfig) -> Result<Bits> {
    let host = host().map_err(|e| e.to_string())?;
    Work::new(&Reference(host), config).all()
}

/// The simulated device that runs kernels without a driver.
pub(crate) fn host() -> Result<CudaHost, Error> {
    Host::builder().build()
}

/// Every bit is equal.
pub(crate) fn check(step: &str, got: &[f32], want: &[f32]) -> Result<()> {
    ensure!(got.len() == want.len(), "{step}: {} values, not {}", got.len(), want.len());
    let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    ensure!(differs.is_none(), "{step}: value {differs:?} of {} differs", got.len());
    Ok(())
}

/// [`check`] of all steps.
pub(crate) fn check_all(got: &[Vec<f32>], want: &[Vec<f32>]) -> Result<()> {
    got.iter().zip(want).zip(STEPS).try_for_each(|((got, want), step)| check(step, got, want))
}

/// Small layers of each kind that has kernels of its own.
pub(crate) fn configs() -> [(&'static str, LstmConfig); 3] {
    let config = LstmConfig::new(3, 20);
    let peephole = LstmConfig::new(2, 9).layers(2).cell(CellKind::PeepholeDense);
    [("plain", config.clone()), ("two layers with peepholes", peephole), ("projected", config.proj_size(11))]
}
