//! The trainer of an LSTM with a head, or of a whole model, and the batches that they take.

use std::path::Path;

use lstm::{
    Device, HostState, Input, LstmConfig, ModelInput, ModelWeights, StateDict,
    ndarray::{Array3, Ix2},
    train::{CheckpointExtras, LossGradient, LossInput, ModelOutputs, ModelTrainer, Shard, Trainer, TrainerConfig},
};
use numpy::PyReadonlyArray2;
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    arrays::{Features, read, read_lengths, read_state},
    loss::LossError,
    stream::read_states,
};

/// The trainer of an LSTM or of a whole model.
#[derive(Clone)]
pub(crate) enum AnyTrainer {
    /// An LSTM with a head or without.
    Lstm(Box<Trainer<Device>>),
    /// A whole model.
    Model(Box<ModelTrainer<Device>>),
}

/// The numbers of the report of a step: the step, the loss, the norm of the gradients and the learning rate.
pub(crate) type Numbers = (u64, f64, f64, f32);

/// The loss of a pass: from the outputs to the loss and its gradient.
pub(crate) type LossFunction<'a> =
    &'a mut (dyn FnMut(ModelOutputs<'_>) -> Result<(f64, LossGradient), LossError> + Send);

impl AnyTrainer {
    /// Resumes a saved run of either kind.
    pub(crate) fn resume(device: &Device, path: &Path) -> lstm::Result<(Self, CheckpointExtras)> {
        if StateDict::open(path)?.metadata().contains_key(ModelWeights::METADATA_KEY) {
            ModelTrainer::resume(device, path).map(|(trainer, extras)| (AnyTrainer::Model(Box::new(trainer)), extras))
        } else {
            Trainer::resume(device, path).map(|(trainer, extras)| (AnyTrainer::Lstm(Box::new(trainer)), extras))
        }
    }

    pub(crate) fn save_with(&self, path: &Path, extras: &CheckpointExtras) -> lstm::Result<()> {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.save_with(path, extras),
            AnyTrainer::Model(trainer) => trainer.save_with(path, extras),
        }
    }

    pub(crate) fn config(&self) -> &TrainerConfig {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.config(),
            AnyTrainer::Model(trainer) => trainer.config(),
        }
    }

    pub(crate) fn set_config(&mut self, config: TrainerConfig) -> lstm::Result<()> {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.set_config(config),
            AnyTrainer::Model(trainer) => trainer.set_config(config),
        }
    }

    pub(crate) fn steps(&self) -> u64 {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.steps(),
            AnyTrainer::Model(trainer) => trainer.steps(),
        }
    }

    pub(crate) fn learning_rate(&self) -> f32 {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.learning_rate(),
            AnyTrainer::Model(trainer) => trainer.learning_rate(),
        }
    }

    pub(crate) fn discard_accumulated(&mut self) {
        match self {
            AnyTrainer::Lstm(trainer) => trainer.discard_accumulated(),
            AnyTrainer::Model(trainer) => trainer.discard_accumulated(),
        }
    }

    /// Whether there is one output for each sequence, rather than one for each time step.
    pub(crate) fn returns_last_step(&self) -> bool {
        matches!(self, AnyTrainer::Model(trainer) if trainer.model().weights().returns_last_step())
    }

    /// Updates the parameters by the accumulated gradients, with the learning rate `rate` or that of the schedule.
    pub(crate) fn apply(&mut self, rate: Option<f32>) -> lstm::Result<Numbers> {
        let rate = rate.unwrap_or_else(|| self.learning_rate());
        match self {
            AnyTrainer::Lstm(trainer) => {
                trainer.apply_at(rate).map(|r| (r.step, r.loss, r.gradient_norm, r.learning_rate))
            }
            AnyTrainer::Model(trainer) => {
                trainer.apply_at(rate).map(|r| (r.step, r.loss, r.gradient_norm, r.learning_rate))
            }
        }
    }

    /// The trainer with the input of a pass.
    pub(crate) fn with_input<'a>(&'a mut self, batch: &'a Batch<'_>) -> PyResult<Pass<'a>> {
        Ok(match self {
            AnyTrainer::Lstm(trainer) => Pass::Lstm(trainer, batch.lstm_input()?),
            AnyTrainer::Model(trainer) => Pass::Model(trainer, batch.model_input()),
        })
    }

    /// The outputs of a batch without dropout.
    pub(crate) fn predict(&self, py: Python<'_>, batch: &Batch<'_>) -> PyResult<lstm::Result<Array3<f32>>> {
        Ok(match self {
            AnyTrainer::Lstm(trainer) => {
                let input = batch.lstm_input()?;
                py.detach(|| trainer.predict(input).map(|(y, _)| y))
            }
            AnyTrainer::Model(trainer) => {
                let input = batch.model_input();
                py.detach(|| trainer.predict(input).map(|output| output.y))
            }
        })
    }
}

/// A trainer with the input of a pass.
pub(crate) enum Pass<'a> {
    Lstm(&'a mut Trainer<Device>, Input<'a>),
    Model(&'a mut ModelTrainer<Device>, ModelInput<'a>),
}

/// What the loss of an LSTM reads.
fn loss_input(last: bool) -> LossInput {
    if last { LossInput::LastState } else { LossInput::Outputs }
}

impl Pass<'_> {
    /// Runs a training step with the learning rate `rate`, or that of the schedule. Returns the numbers of the report and the
    /// final states of each LSTM.
    pub(crate) fn step(
        self,
        rate: Option<f32>,
        last: bool,
        loss: LossFunction<'_>,
    ) -> Result<(Numbers, Vec<HostState>), LossError> {
        let loss = |out: ModelOutputs<'_>, _: &Shard| loss(out);
        Ok(match self {
            Pass::Lstm(trainer, input) => {
                let rate = rate.unwrap_or_else(|| trainer.learning_rate());
                let report = trainer.step_at(rate, input, loss_input(last), loss)?;
                ((report.step, report.loss, report.gradient_norm, report.learning_rate), vec![report.state])
            }
            Pass::Model(trainer, input) => {
                let rate = rate.unwrap_or_else(|| trainer.learning_rate());
                let report = trainer.step_at(rate, input, loss)?;
                ((report.step, report.loss, report.gradient_norm, report.learning_rate), report.states)
            }
        })
    }

    /// Accumulates the gradients of a part of a batch. Returns the loss and the final states of each LSTM.
    pub(crate) fn accumulate(self, last: bool, loss: LossFunction<'_>) -> Result<(f64, Vec<HostState>), LossError> {
        let loss = |out: ModelOutputs<'_>, _: &Shard| loss(out);
        match self {
            Pass::Lstm(trainer, input) => {
                trainer.accumulate(input, loss_input(last), loss).map(|(loss, state)| (loss, vec![state]))
            }
            Pass::Model(trainer, input) => trainer.accumulate(input, loss),
        }
    }
}

/// A batch as Python code gives it.
pub(crate) struct BatchArguments<'a, 'py> {
    pub(crate) x: &'a Bound<'py, PyAny>,
    pub(crate) hx: Option<&'a Bound<'py, PyAny>>,
    pub(crate) lengths: Option<&'a Bound<'py, PyAny>>,
}

/// The values of a batch, borrowed.
enum Values<'py> {
    Features(Features<'py>),
    Tokens(PyReadonlyArray2<'py, i64>),
}

/// A batch, whose values are borrowed.
pub(crate) struct Batch<'py> {
    values: Values<'py>,
    /// The initial states of each LSTM.
    states: Option<Vec<HostState>>,
    pub(crate) lengths: Option<Vec<usize>>,
    batch_first: bool,
}

impl<'py> BatchArguments<'_, 'py> {
    /// Reads and checks a batch for a trainer whose arrays have the batch first or second.
    pub(crate) fn read(&self, trainer: &AnyTrainer, batch_first: bool) -> PyResult<Batch<'py>> {
        match trainer {
            AnyTrainer::Lstm(trainer) => self.read_for_lstm(trainer.lstm().config(), batch_first),
            AnyTrainer::Model(trainer) => self.read_for_model(trainer.model().weights()),
        }
    }

    fn read_for_lstm(&self, config: &LstmConfig, batch_first: bool) -> PyResult<Batch<'py>> {
        let x = self.read_features(config.input_size, batch_first)?;
        let batch = x.batch(!batch_first);
        let lengths = self.lengths.map(|lengths| read_lengths(lengths, batch)).transpose()?;
        let state = self.hx.map(|hx| read_state(hx, "hx", config, Some(batch), false)).transpose()?;
        Ok(Batch { values: Values::Features(x), states: state.map(|state| vec![state]), lengths, batch_first })
    }

    fn read_for_model(&self, weights: &ModelWeights) -> PyResult<Batch<'py>> {
        let (values, batch) = if weights.reads_tokens() {
            let array = self.x.py().import("lstm._interop")?.call_method1("to_tokens", (self.x,))?;
            let tokens = read::<i64, Ix2>(&array, "x", "the shape (batch, steps) of tokens")?;
            let batch = tokens.as_array().nrows();
            (Values::Tokens(tokens), batch)
        } else {
            let x = self.read_features(weights.input_size(), true)?;
            let batch = x.batch(false);
            (Values::Features(x), batch)
        };
        let lengths = self.lengths.map(|lengths| read_lengths(lengths, batch)).transpose()?;
        let states = self.hx.map(|hx| read_states(hx, "hx", weights, Some(batch))).transpose()?;
        Ok(Batch { values, states, lengths, batch_first: true })
    }

    /// Borrows features of several sequences.
    fn read_features(&self, size: usize, batch_first: bool) -> PyResult<Features<'py>> {
        let x = self.x;
        let array = x.py().import("lstm._interop")?.call_method1("import_array", (x, "x"))?.get_item(0)?;
        let order = if batch_first { "batch, steps" } else { "steps, batch" };
        let expected = format!("the shape ({order}, {size})");
        let features = Features::read(&array, "x", size, &expected)?;
        if let Features::One(_) = features {
            let add = if batch_first { "x[None]" } else { "x[:, None]" };
            let text = format!("x: expected {expected}, got 2 dimensions; {add} adds the axis of the batch");
            return Err(PyValueError::new_err(text));
        }
        Ok(features)
    }
}

impl Batch<'_> {
    fn lstm_input(&self) -> PyResult<Input<'_>> {
        let Values::Features(x) = &self.values else {
            return Err(PyValueError::new_err("x: an LSTM reads features, not tokens"));
        };
        let mut input = Input::from(x.view());
        if !self.batch_first {
            input = input.time_major();
        }
        if let Some([state]) = self.states.as_deref() {
            input = input.state(state);
        }
        Ok(self.lengths.as_deref().into_iter().fold(input, Input::lengths))
    }

    fn model_input(&self) -> ModelInput<'_> {
        let mut input = match &self.values {
            Values::Features(x) => ModelInput::from(x.view()),
            Values::Tokens(tokens) => ModelInput::from(tokens.as_array()),
        };
        if let Some(states) = self.states.as_deref() {
            input = input.states(states);
        }
        self.lengths.as_deref().into_iter().fold(input, ModelInput::lengths)
    }
}

/// Checks the learning rate of a step; `None` is that of the schedule.
pub(crate) fn check_rate(given: Option<f32>) -> PyResult<()> {
    match given {
        Some(rate) if !(rate.is_finite() && rate >= 0.0) => {
            Err(PyValueError::new_err(format!("learning_rate: expected a finite number of at least 0, got {rate}")))
        }
        _ => Ok(()),
    }
}
