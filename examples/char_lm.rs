//! Trains a character-level language model on text, and generates text with it.
//!
//! `cargo run --release --example char_lm` trains on the Rust sources of this repository; `-- PATH ...` on other files.
//! Training can be interrupted at any time. The same command resumes it, with results bit-identical to those of an
//! uninterrupted run.

mod backend;
#[path = "char_lm/batches.rs"]
mod batches;
mod charts;
#[path = "char_lm/checkpoint.rs"]
mod checkpoint;
#[path = "char_lm/corpus.rs"]
mod corpus;
#[path = "char_lm/curve.rs"]
mod curve;
#[path = "char_lm/options.rs"]
mod options;
#[path = "char_lm/progress.rs"]
mod progress;
#[path = "char_lm/sample.rs"]
mod sample;
#[cfg(test)]
#[path = "char_lm/tests.rs"]
mod tests;
#[path = "char_lm/text.rs"]
mod text;
#[path = "char_lm/training.rs"]
mod training;

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Parser;
use lstm::{Backend, Device, train::Trainer};

use crate::{
    checkpoint::Run,
    corpus::Corpus,
    options::Options,
    sample::{Sampling, TextGenerator},
    text::{Text, Vocabulary},
};

/// Exit code after an interrupt by Ctrl-C: 128 + SIGINT, as shells report it.
const INTERRUPTED_EXIT_CODE: u8 = 130;

/// The error type of the program.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },

    #[error("no text in {searched_paths}{}", match skipped_count {
        0 => String::new(),
        1 => "; skipped 1 file that is not UTF-8 text".into(),
        n => format!("; skipped {n} files that are not UTF-8 text"),
    })]
    EmptyCorpus { searched_paths: String, skipped_count: usize },

    #[error("expected a text of at least {min} characters, got {count}")]
    ShortCorpus { count: usize, min: usize },

    #[error("no character occurs {min_count} times in the text; use a lower --min-count")]
    RareCharacters { min_count: usize },

    #[error(
        "{} is a checkpoint of a different run: {}. Use the options of that run, another --checkpoint, or --fresh to start \
         over; --sample-only generates text with the checkpoint as it is",
        path.display(), differences.join(", ")
    )]
    DifferentRun { path: PathBuf, differences: Vec<String> },

    #[error("{source}; {}. Try a lower --rate with --fresh", match saved_step {
        0 => "no checkpoint was saved yet".into(),
        step => format!("{} still contains the checkpoint of step {step}", path.display()),
    })]
    Diverged { source: lstm::Error, path: PathBuf, saved_step: u64 },

    #[error("can't install the Ctrl-C handler: {0}")]
    Signal(#[from] ctrlc::Error),

    #[error(transparent)]
    Lstm(#[from] lstm::Error),
}

impl Error {
    /// Returns a function for `map_err` that converts an I/O error of the file or directory `path`.
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { path: path.into(), source }
    }

    /// Creates an [`Error::File`].
    fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.into(), why: why.to_string() }
    }
}

/// `Result` with this program's [`Error`].
type Result<T, E = Error> = std::result::Result<T, E>;

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Finished,
    Interrupted,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = install_interrupt_flag().and_then(|stop| {
        let device = Device::open(&options.backend)?;
        run(&device, &options, |_| stop.load(Ordering::Relaxed))
    });
    match result {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED_EXIT_CODE),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns a flag that the first Ctrl-C sets. The second Ctrl-C ends the program at once.
fn install_interrupt_flag() -> Result<&'static AtomicBool> {
    static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if STOP_REQUESTED.swap(true, Ordering::Relaxed) {
            process::exit(INTERRUPTED_EXIT_CODE.into());
        }
    })?;
    Ok(&STOP_REQUESTED)
}

/// Trains the model and generates text, or only generates text with `--sample-only`. Stops when `should_stop` returns
/// true; it is called with the number of finished training steps after each step and each generated character.
fn run<B: Backend>(backend: &B, options: &Options, should_stop: impl Fn(u64) -> bool) -> Result<Outcome> {
    let path = options.checkpoint.clone().unwrap_or_else(|| workspace_dir().join("target/char_lm.safetensors"));
    if options.sample_only {
        let Run { trainer, vocabulary, .. } = Run::open(backend, &path)?;
        return generate(&trainer, &vocabulary, options, &should_stop);
    }

    let (paths, extensions) = match &options.paths[..] {
        [] => (vec![workspace_dir()], vec!["rs".into()]),
        paths => (paths.to_vec(), vec![]),
    };
    let corpus = Corpus::read(&paths, options.extensions.as_ref().unwrap_or(&extensions))?;
    corpus.describe();
    let text = Text::new(&corpus.text, options.min_count)?;
    text.describe();

    let mut run = match path.exists() && !options.fresh {
        true => Run::resume(backend, &path, options, &text)?,
        false => Run::start(backend, options, &text)?,
    };
    run.describe();
    let outcome = training::train(&mut run, &text, options, &path, &should_stop)?;
    if outcome == Outcome::Interrupted {
        draw_curve(&run, options)?;
        let (finished_steps, path) = (run.trainer.steps(), relative_path(&path));
        println!(
            "Interrupted after step {finished_steps}, saved in {path}. Run the same command without --fresh to continue."
        );
        return Ok(Outcome::Interrupted);
    }
    let validation_bits = training::validate(&run.trainer, &text, options)?;
    run.losses.validation.push(curve::point(run.trainer.steps(), validation_bits));
    draw_curve(&run, options)?;
    println!(
        "Validation loss: {validation_bits:.3} bits per character (unigram entropy {:.3}).\n",
        text.unigram_entropy()
    );
    generate(&run.trainer, &run.vocabulary, options, &should_stop)
}

/// Draws the losses so far, if the options name a file.
fn draw_curve<B: Backend>(run: &Run<B>, options: &Options) -> Result<()> {
    let Some(path) = &options.curve else { return Ok(()) };
    run.losses.draw(path).map_err(|why| Error::file(path, why))?;
    println!("Chart: {}", relative_path(path));
    Ok(())
}

/// Generates text and prints it.
fn generate<B: Backend>(
    trainer: &Trainer<B>,
    vocabulary: &Vocabulary,
    options: &Options,
    should_stop: impl Fn(u64) -> bool,
) -> Result<Outcome> {
    let sampling = Sampling { temperature: options.temperature, seed: options.seed };
    let head = trainer.head().expect("the trainer of a run has a head");
    let generator = TextGenerator::new(trainer.lstm(), head, vocabulary, &options.prompt, sampling)?;
    println!("Generated text, at temperature {}:\n", options.temperature);
    let mut out = io::stdout().lock();
    let mut print_char = |c: char| {
        // Control characters could change the state of the terminal.
        let c = if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        write!(out, "{c}").map_err(Error::io(Path::new("standard output")))
    };
    options.prompt.chars().try_for_each(&mut print_char)?;
    for c in generator.take(options.sample_chars) {
        print_char(c?)?;
        if should_stop(trainer.steps()) {
            break;
        }
    }
    print_char('\n')?;
    Ok(if should_stop(trainer.steps()) { Outcome::Interrupted } else { Outcome::Finished })
}

/// Root directory of the workspace.
fn workspace_dir() -> PathBuf {
    let package_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    package_dir.parent().unwrap_or(package_dir).into()
}

/// Returns `path` relative to the current directory if it is inside that directory, or `path` itself.
fn relative_path(path: &Path) -> std::path::Display<'_> {
    env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display()
}
