//! Prepares cases on a backend and runs them.

use std::fmt::Debug;

use anyhow::Result;
use lstm_core::{Backend, Checkpointing, Input, Lstm, Param, Precision, Stream, ndarray::Array3};

use crate::case::{Case, CaseKind};

/// A case whose model is loaded, so that it can be run repeatedly: on a backend or in another library.
pub trait PreparedCase {
    /// Runs the case once and waits until the results are on the host.
    ///
    /// # Errors
    /// If the device or library fails.
    fn run(&mut self) -> Result<()>;

    /// Computes the values that are compared between backends and libraries. [`CaseKind::Forward`]: the outputs,
    /// time-major. [`CaseKind::Train`]: the outputs, followed by the gradient of the first layer's recurrent weights.
    /// [`CaseKind::Step`]: the output after [`STREAM_STEPS`] steps from zero state, all with the same input.
    ///
    /// # Errors
    /// If the device or library fails.
    fn output(&mut self) -> Result<Vec<f32>>;
}

/// Number of steps of a stream before its output is compared. After one step, the output would not depend on the state.
pub const STREAM_STEPS: usize = 3;

/// An open device of any backend, which runs cases.
pub trait Device {
    /// Human-readable description of the device and its settings.
    fn description(&self) -> String;

    /// Loads the model of a case onto the device, with weights in the given precision, and returns the case, ready to run.
    ///
    /// # Errors
    /// If the device fails.
    fn prepare(&self, case: &Case, precision: Precision) -> Result<Box<dyn PreparedCase>>;
}

impl<B: Backend + Debug + 'static> Device for B {
    fn description(&self) -> String {
        format!("{self:?}")
    }

    fn prepare(&self, case: &Case, precision: Precision) -> Result<Box<dyn PreparedCase>> {
        let lstm = Lstm::new(self, case.weights()?.quantize(precision)?)?;
        let x = case.x();
        Ok(match case.kind {
            CaseKind::Forward => Box::new(PreparedForward { lstm, x }),
            CaseKind::Train => Box::new(PreparedTrain { lstm, x }),
            CaseKind::Step => Box::new(PreparedStep {
                stream: lstm.stream(case.batch)?,
                y: vec![0.0; case.batch * case.config().output_size()],
                x: x.into_raw_vec_and_offset().0,
            }),
        })
    }
}

struct PreparedForward<B: Backend> {
    lstm: Lstm<B>,
    x: Array3<f32>,
}

impl<B: Backend> PreparedForward<B> {
    fn forward(&self) -> Result<Array3<f32>> {
        Ok(self.lstm.forward(Input::from(&self.x).time_major())?.0)
    }
}

impl<B: Backend> PreparedCase for PreparedForward<B> {
    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.forward()?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(self.forward()?.iter().copied().collect())
    }
}

struct PreparedTrain<B: Backend> {
    lstm: Lstm<B>,
    x: Array3<f32>,
}

impl<B: Backend> PreparedTrain<B> {
    /// Runs the forward pass, and the backward pass with the mean of the squared outputs as the loss. Returns the outputs
    /// and the gradients.
    fn forward_backward(&self) -> Result<(Array3<f32>, lstm_core::Gradients)> {
        let pass = self.lstm.forward_train(Input::from(&self.x).time_major(), Checkpointing::SaveEverything)?;
        let n = pass.y.len() as f32;
        std::hint::black_box(pass.y.iter().map(|v| v * v).sum::<f32>() / n);
        let gradients = pass.tape.backward(&pass.y.mapv(|v| 2.0 / n * v))?;
        Ok((pass.y, gradients))
    }
}

impl<B: Backend> PreparedCase for PreparedTrain<B> {
    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.forward_backward()?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let (y, gradients) = self.forward_backward()?;
        let recurrent_gradient = gradients.weights.layers()[0].get(Param::WeightHh);
        Ok(y.iter().chain(recurrent_gradient.into_iter().flatten()).copied().collect())
    }
}

struct PreparedStep<B: Backend> {
    stream: Stream<B>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl<B: Backend> PreparedCase for PreparedStep<B> {
    fn run(&mut self) -> Result<()> {
        Ok(self.stream.step(&self.x, &mut self.y)?)
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        self.stream.reset()?;
        for _ in 0..STREAM_STEPS {
            self.run()?;
        }
        Ok(self.y.clone())
    }
}
