//! Training.

use std::{ptr::null_mut, slice};

use lstm::{
    Cpu, Error, Result,
    ndarray::{ArrayView3, Axis},
    train::{LossGradient, ModelTrainer, OptimizerConfig, Schedule, TrainerConfig, mean_squared_error},
};
use serde::Deserialize;

use crate::{
    model::{WebModel, check_steps},
    result::ok_or_set_message,
};

/// The options of a trainer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TrainerOptions {
    optimizer: String,
    learning_rate: f32,
    weight_decay: Option<f32>,
    cosine_steps: Option<u64>,
    seed: u64,
}

impl TrainerOptions {
    fn config(&self) -> Result<TrainerConfig> {
        let optimizer = match self.optimizer.as_str() {
            "adam" => OptimizerConfig::adam(),
            "adamw" => OptimizerConfig::adamw(),
            "sgd" => OptimizerConfig::sgd(),
            other => return Err(Error::config("optimizer", format!("expected adam, adamw or sgd, got `{other}`"))),
        };
        let optimizer = self.weight_decay.into_iter().fold(optimizer, OptimizerConfig::weight_decay);
        let schedule = match self.cosine_steps {
            Some(steps) => Schedule::cosine(self.learning_rate, steps, 0.0),
            None => Schedule::constant(self.learning_rate),
        };
        Ok(TrainerConfig::new(optimizer, schedule).seed(self.seed))
    }
}

/// Trains a model that reads features.
pub(crate) struct WebTrainer {
    trainer: ModelTrainer<Cpu>,
    /// The number of time steps of each sequence, if the model fixes it.
    steps: Option<usize>,
}

impl WebTrainer {
    fn new(model: &WebModel, options: &[u8]) -> Result<Self> {
        let options: TrainerOptions =
            serde_json::from_slice(options).map_err(|error| Error::config("options", error.to_string()))?;
        if model.weights().reads_tokens() {
            return Err(Error::config("model", "the model reads tokens; expected one that reads features"));
        }
        Ok(WebTrainer { trainer: ModelTrainer::new(model.model.clone(), options.config()?)?, steps: model.steps })
    }

    fn step(&mut self, x: ArrayView3<'_, f32>, target: ArrayView3<'_, f32>) -> Result<f64> {
        check_steps("step", self.steps, x.dim().1)?;
        let returns_last_step = self.trainer.model().weights().returns_last_step();
        let report = self.trainer.step(x, |outputs, _| {
            if returns_last_step {
                let (loss, gradient) = mean_squared_error(outputs.last()?, target.index_axis(Axis(1), 0))?;
                Ok::<_, Error>((loss, LossGradient::from(gradient)))
            } else {
                let (loss, gradient) = mean_squared_error(outputs.y()?, target)?;
                Ok((loss, gradient.into()))
            }
        })?;
        Ok(report.loss)
    }
}

/// Creates a trainer for a copy of the model. The options are JSON. Returns 0 after an error.
///
/// # Safety
/// `model` is valid; `options` has `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn trainer_new(
    model: *const WebModel,
    options: *const u8,
    size: usize,
) -> *mut WebTrainer {
    // SAFETY: guaranteed by the caller.
    let trainer = ok_or_set_message(unsafe { WebTrainer::new(&*model, slice::from_raw_parts(options, size)) });
    trainer.map_or(null_mut(), |trainer| Box::into_raw(Box::new(trainer)))
}

/// Frees a trainer.
///
/// # Safety
/// `trainer` was returned by this module and not freed.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn trainer_free(trainer: *mut WebTrainer) {
    // SAFETY: guaranteed by the caller.
    drop(unsafe { Box::from_raw(trainer) });
}

/// Runs one training step with the mean squared error, and returns the loss before it; NaN after an error, which leaves
/// the trainer unchanged. `x` has the shape `(batch, steps, input size)`, and `target` that of the outputs.
///
/// # Safety
/// `trainer` is valid; the addresses have the described number of elements.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn trainer_step(
    trainer: *mut WebTrainer,
    x: *const f32,
    target: *const f32,
    batch: usize,
    steps: usize,
) -> f64 {
    // SAFETY: guaranteed by the caller.
    let trainer = unsafe { &mut *trainer };
    let weights = trainer.trainer.model().weights();
    let target_steps = if weights.returns_last_step() { 1 } else { steps };
    let (x_shape, target_shape) = ((batch, steps, weights.input_size()), (batch, target_steps, weights.output_size()));
    let view = |p: *const f32, shape: (usize, usize, usize)| {
        let too_large = || Error::shape("step", "sequences that fit in memory", format!("{shape:?}"));
        let len = shape.0.checked_mul(shape.1).and_then(|len| len.checked_mul(shape.2)).ok_or_else(too_large)?;
        // SAFETY: guaranteed by the caller.
        let values = unsafe { slice::from_raw_parts(p, len) };
        ArrayView3::from_shape(shape, values).map_err(|error| Error::shape("step", format!("{shape:?}"), error))
    };
    let step = view(x, x_shape).and_then(|x| trainer.step(x, view(target, target_shape)?));
    ok_or_set_message(step).unwrap_or(f64::NAN)
}

/// The model with its current parameters.
///
/// # Safety
/// `trainer` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn trainer_model(trainer: *const WebTrainer) -> *mut WebModel {
    // SAFETY: guaranteed by the caller.
    let trainer = unsafe { &*trainer };
    Box::into_raw(Box::new(WebModel { model: trainer.trainer.model().clone(), steps: trainer.steps }))
}
