//! Truncated backpropagation through a text, step by step, and how well it works.

use std::{f64::consts::LN_2, fs, path::Path};

use lstm_core::{
    Backend, HostState, Input,
    train::{Trainer, cross_entropy},
};

use crate::{
    End, Error, Result,
    batches::{Batches, Chunk},
    checkpoint::Run,
    options::Options,
    progress::Progress,
    text::Text,
};

/// Takes the steps that are left, saving now and then and at the end. `stop` is asked after each step.
pub(crate) fn train<B: Backend>(
    run: &mut Run<B>,
    text: &Text,
    options: &Options,
    path: &Path,
    stop: impl Fn(u64) -> bool,
) -> Result<End> {
    let batches = Batches::new(&text.training, text.vocabulary.len(), options.batch, options.steps);
    let (total, epoch) = (options.train_steps, batches.len() as u64);
    let every = |interval, step: u64| interval > 0 && step.is_multiple_of(interval);
    // Before the work, not after it.
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut done = run.trainer.steps();
    let mut saved = done;
    println!("Training: {total} steps, {epoch} of which read the text once; {done} are done.");
    let mut progress = Progress::new(done, total);
    while done < total {
        // The place in the text follows from the step, so that a run that was stopped finds it again.
        let place = done % epoch;
        let chunk = batches.chunk(place as usize);
        let state = run.state.take().filter(|_| place > 0);
        let step = run.trainer.step(input(&chunk, state.as_ref()), |y| cross_entropy(y, &chunk.targets));
        let step = step.map_err(|source| match source {
            lstm_core::Error::NotFinite { .. } => Error::Diverged { source, path: path.into(), saved },
            other => other.into(),
        })?;
        done = step.step;
        progress.step(done, step.loss / LN_2, step.learning_rate, chunk.count());
        run.state = Some(step.state);

        let stopped = stop(done) && done < total;
        if stopped || done == total || every(options.save_every, done) {
            run.save(path)?;
            saved = done;
        }
        if stopped {
            progress.finish();
            return Ok(End::Interrupted);
        }
        if every(options.validate_every, done) && done < total {
            let bits = validate(&run.trainer, text, options)?;
            progress.note(&format!("step {done}: validation {bits:.3} bits per character"));
        }
    }
    progress.finish();
    Ok(End::Finished)
}

/// Bits that the model needs per character of the text that it did not learn from.
pub(crate) fn validate<B: Backend>(trainer: &Trainer<B>, text: &Text, options: &Options) -> Result<f64> {
    let batches = Batches::new(&text.validation, text.vocabulary.len(), options.batch, options.steps);
    let (mut nats, mut count, mut state) = (0.0, 0, None);
    for chunk in (0..batches.len()).map(|k| batches.chunk(k)) {
        let (y, after) = trainer.predict(input(&chunk, state.as_ref()))?;
        let (loss, _) = cross_entropy(y.view(), &chunk.targets)?;
        nats += loss * chunk.count() as f64;
        count += chunk.count();
        state = Some(after);
    }
    Ok(nats / LN_2 / count as f64)
}

fn input<'a>(chunk: &'a Chunk, state: Option<&'a HostState>) -> Input<'a> {
    let input = Input::from(&chunk.x).time_major();
    state.map_or(input, |state| input.state(state))
}
