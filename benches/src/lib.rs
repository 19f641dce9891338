//! The table of timed cases, `cases.json`, and what one run of a case is.

use lstm_core::{Backend, HostState, Input, Keep, Lstm, LstmConfig, Result, Stream, ndarray::Array3};
use serde::Deserialize;

/// One line of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name in reports.
    pub name: String,
    /// What is timed.
    pub kind: Kind,
    /// Features of an input step.
    pub input: usize,
    /// Features of the cell state.
    pub hidden: usize,
    /// Sequences side by side.
    pub batch: usize,
    /// Steps.
    pub seq: usize,
    /// Stacked layers.
    pub layers: usize,
    /// Whether both directions are walked.
    pub bidir: bool,
}

/// What a case times.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One step of a stream.
    Step,
    /// Whole sequences, time-major, from zero state.
    Forward,
    /// Forward, the mean of squares, and the weights' gradients.
    Train,
}

/// All cases.
///
/// # Panics
/// If the table that is compiled in is malformed.
pub fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../cases.json")).expect("a well-formed table")
}

impl Case {
    /// The model's configuration.
    pub fn config(&self) -> LstmConfig {
        let config = LstmConfig::new(self.input, self.hidden).layers(self.layers);
        if self.bidir { config.bidirectional() } else { config }
    }

    /// Brings the case's model to `backend`.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn prepare<B: Backend>(&self, backend: &B) -> Result<Job<B>> {
        let lstm = Lstm::random(backend, self.config(), 1)?;
        let mut seed = 1u32;
        let x = Array3::from_shape_simple_fn((self.seq, self.batch, self.input), || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / 8_388_608.0 - 1.0
        });
        match self.kind {
            Kind::Forward => Ok(Job::Forward { lstm, x }),
            Kind::Step => Ok(Job::Step {
                stream: lstm.stream(self.batch)?,
                y: vec![0.0; self.batch * self.config().output_size()],
                x: x.into_raw_vec_and_offset().0,
            }),
            Kind::Train => Ok(Job::Train { lstm, x }),
        }
    }
}

/// A case that is ready to run.
#[derive(Debug)]
pub enum Job<B: Backend> {
    /// See [`Kind::Forward`].
    Forward {
        /// The model.
        lstm: Lstm<B>,
        /// `(steps, batch, input)`
        x: Array3<f32>,
    },
    /// See [`Kind::Train`].
    Train {
        /// The model.
        lstm: Lstm<B>,
        /// `(steps, batch, input)`
        x: Array3<f32>,
    },
    /// See [`Kind::Step`].
    Step {
        /// The running model.
        stream: Stream<B>,
        /// One step's input.
        x: Vec<f32>,
        /// One step's output.
        y: Vec<f32>,
    },
}

impl<B: Backend> Job<B> {
    /// Runs it once and waits for the device.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn run(&mut self) -> Result<Option<(Array3<f32>, HostState)>> {
        match self {
            Job::Forward { lstm, x } => lstm.forward(Input::from(&*x).time_major()).map(Some),
            Job::Train { lstm, x } => {
                let pass = lstm.forward_train(Input::from(&*x).time_major(), Keep::Everything)?;
                let (loss, dy) = mean_of_squares(&pass.y);
                std::hint::black_box((loss, pass.tape.backward(&dy)?));
                Ok(Some((pass.y, pass.state)))
            }
            Job::Step { stream, x, y } => stream.step(x, y).map(|()| None),
        }
    }
}

/// The mean of squares and its gradient, `2 y / n`.
fn mean_of_squares(y: &Array3<f32>) -> (f32, Array3<f32>) {
    let n = y.len() as f32;
    let loss = y.iter().map(|v| v * v).sum::<f32>() / n;
    (loss, y.mapv(|v| 2.0 / n * v))
}
