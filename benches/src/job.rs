//! A case on a backend: what one run of it is.

use std::fmt::Debug;

use anyhow::Result;
use lstm_core::{Backend, Checkpointing, Input, Lstm, Param, Stream, ndarray::Array3};

use crate::case::{Case, Kind};

/// A case that is ready to run, whatever runs it.
pub trait Run {
    /// Runs it once and waits until the results are on the host.
    ///
    /// # Errors
    /// What the device refuses.
    fn run(&mut self) -> Result<()>;

    /// What is compared between those who run it. Forward: the outputs, time-major. Train: these, then the gradient of the
    /// first layer's recurrent weights. Step: the output of the third step from zero state, each with the same input.
    ///
    /// # Errors
    /// What the device refuses.
    fn output(&mut self) -> Result<Vec<f32>>;
}

/// Steps of a stream before its output is compared: with one, the state would not matter.
pub const STREAM_STEPS: usize = 3;

/// A device that is open.
pub trait Device {
    /// Which device it is, and how it is used.
    fn about(&self) -> String;

    /// Brings a case's model and input to it.
    ///
    /// # Errors
    /// What the device refuses.
    fn prepare(&self, case: &Case) -> Result<Box<dyn Run>>;
}

impl<B: Backend + Debug + 'static> Device for B {
    fn about(&self) -> String {
        format!("{self:?}")
    }

    fn prepare(&self, case: &Case) -> Result<Box<dyn Run>> {
        let lstm = Lstm::new(self, case.weights()?)?;
        let x = case.x();
        Ok(match case.kind {
            Kind::Forward => Box::new(Forward { lstm, x }),
            Kind::Train => Box::new(Train { lstm, x }),
            Kind::Step => Box::new(Step {
                stream: lstm.stream(case.batch)?,
                y: vec![0.0; case.batch * case.config().output_size()],
                x: x.into_raw_vec_and_offset().0,
            }),
        })
    }
}

struct Forward<B: Backend> {
    lstm: Lstm<B>,
    x: Array3<f32>,
}

impl<B: Backend> Forward<B> {
    fn pass(&self) -> Result<Array3<f32>> {
        Ok(self.lstm.forward(Input::from(&self.x).time_major())?.0)
    }
}

impl<B: Backend> Run for Forward<B> {
    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.pass()?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(self.pass()?.iter().copied().collect())
    }
}

struct Train<B: Backend> {
    lstm: Lstm<B>,
    x: Array3<f32>,
}

impl<B: Backend> Train<B> {
    /// Outputs and gradients of the mean of squares.
    fn pass(&self) -> Result<(Array3<f32>, lstm_core::Gradients)> {
        let pass = self.lstm.forward_train(Input::from(&self.x).time_major(), Checkpointing::Everything)?;
        let n = pass.y.len() as f32;
        std::hint::black_box(pass.y.iter().map(|v| v * v).sum::<f32>() / n);
        let gradients = pass.tape.backward(&pass.y.mapv(|v| 2.0 / n * v))?;
        Ok((pass.y, gradients))
    }
}

impl<B: Backend> Run for Train<B> {
    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.pass()?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let (y, gradients) = self.pass()?;
        let recurrent = gradients.weights.layers()[0].get(Param::WeightHh);
        Ok(y.iter().chain(recurrent.into_iter().flatten()).copied().collect())
    }
}

struct Step<B: Backend> {
    stream: Stream<B>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl<B: Backend> Run for Step<B> {
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
