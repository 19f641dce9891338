//! Training by truncated backpropagation through time, and validation.

use std::{f64::consts::LN_2, fs, path::Path};

use lstm_core::{
    Backend, HostState, Input,
    train::{Trainer, cross_entropy},
};

use crate::{
    Error, Outcome, Result,
    batches::{Batches, Chunk},
    checkpoint::Run,
    options::Options,
    progress::Progress,
    text::Text,
};

/// Runs the remaining training steps, saving checkpoints regularly and at the end. Stops when `stop`, called with the number
/// of finished steps after each step, returns true.
pub(crate) fn train<B: Backend>(
    run: &mut Run<B>,
    text: &Text,
    options: &Options,
    path: &Path,
    stop: impl Fn(u64) -> bool,
) -> Result<Outcome> {
    let batches = Batches::new(&text.training, text.vocabulary.len(), options.batch, options.steps);
    let (total, epoch) = (options.train_steps, batches.len() as u64);
    let is_due = |interval, step: u64| interval > 0 && step.is_multiple_of(interval);
    // Create the directory before training, so that a failure does not lose work.
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    let mut done = run.trainer.steps();
    let mut saved = done;
    println!("Training: {total} steps ({epoch} steps per epoch), {done} finished.");
    let mut progress = Progress::new(done, total);
    while done < total {
        // The position in the text depends only on the step, so a resumed run continues at the right chunk.
        let position = done % epoch;
        let chunk = batches.chunk(position as usize);
        let state = run.state.take().filter(|_| position > 0);
        let step = run.trainer.step(input(&chunk, state.as_ref()), |y| cross_entropy(y, &chunk.targets));
        let step = step.map_err(|source| match source {
            lstm_core::Error::NotFinite { .. } => Error::Diverged { source, path: path.into(), saved },
            other => other.into(),
        })?;
        done = step.step;
        progress.step(done, step.loss / LN_2, step.learning_rate, chunk.count());
        run.state = Some(step.state);

        let stopped = stop(done) && done < total;
        if stopped || done == total || is_due(options.save_every, done) {
            run.save(path)?;
            saved = done;
        }
        if stopped {
            progress.finish();
            return Ok(Outcome::Interrupted);
        }
        if is_due(options.validate_every, done) && done < total {
            let bits = validate(&run.trainer, text, options)?;
            progress.print_line(&format!("step {done}: validation {bits:.3} bits per character"));
        }
    }
    progress.finish();
    Ok(Outcome::Finished)
}

/// Returns the validation loss in bits per character.
pub(crate) fn validate<B: Backend>(trainer: &Trainer<B>, text: &Text, options: &Options) -> Result<f64> {
    let batches = Batches::new(&text.validation, text.vocabulary.len(), options.batch, options.steps);
    let (mut nats, mut count, mut state) = (0.0, 0, None);
    for chunk in (0..batches.len()).map(|k| batches.chunk(k)) {
        let (y, next_state) = trainer.predict(input(&chunk, state.as_ref()))?;
        let (loss, _) = cross_entropy(y.view(), &chunk.targets)?;
        nats += loss * chunk.count() as f64;
        count += chunk.count();
        state = Some(next_state);
    }
    Ok(nats / LN_2 / count as f64)
}

/// Input of the model for a chunk.
fn input<'a>(chunk: &'a Chunk, state: Option<&'a HostState>) -> Input<'a> {
    let input = Input::from(&chunk.x).time_major();
    state.map_or(input, |state| input.state(state))
}
