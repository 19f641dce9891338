//! Training by truncated backpropagation through time, and validation.

use std::{f64::consts::LN_2, fs, path::Path};

use lstm::{
    Backend, HostState, Input,
    train::{LossInput, Trainer, cross_entropy},
};

use crate::{
    Error, Outcome, Result,
    batches::{Batches, Chunk},
    checkpoint::Run,
    curve::point,
    options::Options,
    progress::Progress,
    text::Text,
};

/// Runs the remaining training steps, saving checkpoints regularly and at the end. Stops when `should_stop`, called with
/// the number of finished steps after each step, returns true.
pub(crate) fn train<B: Backend>(
    run: &mut Run<B>,
    text: &Text,
    options: &Options,
    path: &Path,
    should_stop: impl Fn(u64) -> bool,
) -> Result<Outcome> {
    let batches = Batches::new(&text.training, text.vocabulary.len(), options.batch, options.steps);
    let (total_steps, steps_per_epoch) = (options.train_steps, batches.len() as u64);
    let is_due = |interval, step: u64| interval > 0 && step.is_multiple_of(interval);
    // Create the directory before training, so that a failure does not lose work.
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    let mut finished_steps = run.trainer.steps();
    let mut saved_step = finished_steps;
    println!("Training: {total_steps} steps ({steps_per_epoch} steps per epoch), {finished_steps} finished.");
    let mut progress = Progress::new(finished_steps, total_steps);
    while finished_steps < total_steps {
        // The position in the text depends only on the step, so a resumed run continues at the right chunk.
        let chunk_index = finished_steps % steps_per_epoch;
        let chunk = batches.chunk(chunk_index as usize);
        let state = run.state.take().filter(|_| chunk_index > 0);
        let input = chunk_input(&chunk, state.as_ref());
        let step = run.trainer.step(input, LossInput::Outputs, |out, _| cross_entropy(out.y()?, &chunk.targets));
        let step = step.map_err(|source| match source {
            lstm::Error::NotFinite { .. } => Error::Diverged { source, path: path.into(), saved_step },
            other => other.into(),
        })?;
        finished_steps = step.step;
        progress.record_step(finished_steps, step.loss / LN_2, step.learning_rate, chunk.target_count());
        run.losses.training.push(point(finished_steps, step.loss / LN_2));
        run.state = Some(step.state);

        // Before saving, so that a resumed run has the same losses.
        if is_due(options.validate_every, finished_steps) && finished_steps < total_steps {
            let validation_bits = validate(&run.trainer, text, options)?;
            run.losses.validation.push(point(finished_steps, validation_bits));
            progress.print_line(&format!("step {finished_steps}: validation {validation_bits:.3} bits per character"));
        }

        let is_interrupted = should_stop(finished_steps) && finished_steps < total_steps;
        if is_interrupted || finished_steps == total_steps || is_due(options.save_every, finished_steps) {
            run.save(path)?;
            saved_step = finished_steps;
        }
        if is_interrupted {
            progress.finish();
            return Ok(Outcome::Interrupted);
        }
    }
    progress.finish();
    Ok(Outcome::Finished)
}

/// Returns the validation loss in bits per character.
pub(crate) fn validate<B: Backend>(trainer: &Trainer<B>, text: &Text, options: &Options) -> Result<f64> {
    let batches = Batches::new(&text.validation, text.vocabulary.len(), options.batch, options.steps);
    let (mut total_nats, mut target_count, mut state) = (0.0, 0, None);
    for chunk in (0..batches.len()).map(|k| batches.chunk(k)) {
        let (y, next_state) = trainer.predict(chunk_input(&chunk, state.as_ref()))?;
        let (loss, _) = cross_entropy(y.view(), &chunk.targets)?;
        total_nats += loss * chunk.target_count() as f64;
        target_count += chunk.target_count();
        state = Some(next_state);
    }
    Ok(total_nats / LN_2 / target_count as f64)
}

/// Converts a chunk and the LSTM state before it to an input of the model.
fn chunk_input<'a>(chunk: &'a Chunk, state: Option<&'a HostState>) -> Input<'a> {
    let input = Input::from(&chunk.x).time_major();
    state.map_or(input, |state| input.state(state))
}
