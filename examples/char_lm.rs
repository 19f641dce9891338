//! Trains a character-level language model on any text and lets it write.
//!
//! `cargo run --release --example char_lm` learns from this repository's own Rust sources; `-- PATH ...` from others. It
//! may be stopped at any time: the same command goes on where it stopped, with the same bits as a run that was not.

mod backend;
#[path = "char_lm/batches.rs"]
mod batches;
#[path = "char_lm/checkpoint.rs"]
mod checkpoint;
#[path = "char_lm/corpus.rs"]
mod corpus;
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
use lstm_core::{Backend, train::Trainer};

use crate::{
    backend::on,
    checkpoint::Run,
    corpus::Corpus,
    options::Options,
    sample::{Sample, Taste},
    text::{Text, Vocabulary},
};

/// What a shell makes of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Everything that can go wrong, with the place where it did.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },

    #[error("there is no text in {places}{}", match skipped {
        0 => String::new(),
        1 => "; 1 file skipped as not being UTF-8 text".into(),
        n => format!("; {n} files skipped as not being UTF-8 text"),
    })]
    EmptyCorpus { places: String, skipped: usize },

    #[error("the text has {count} characters; at least {least} are needed")]
    ShortCorpus { count: usize, least: usize },

    #[error("no character occurs {min_count} times in the text; see --min-count")]
    RareCharacters { min_count: usize },

    #[error(
        "{} is of another run: {}. Give the options it was begun with, or another --checkpoint, or --fresh to start \
         over; --sample-only writes with it as it is",
        path.display(), differences.join(", ")
    )]
    OtherRun { path: PathBuf, differences: Vec<String> },

    #[error("{source}; {}. A lower --rate may help (with --fresh)", match saved {
        0 => "nothing had been saved yet".into(),
        step => format!("{} is still as it was after step {step}", path.display()),
    })]
    Diverged { source: lstm_core::Error, path: PathBuf, saved: u64 },

    #[error("Ctrl-C can't be caught: {0}")]
    Signal(#[from] ctrlc::Error),

    #[error(transparent)]
    Lstm(#[from] lstm_core::Error),
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { path: path.into(), source }
    }

    fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.into(), why: why.to_string() }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Interrupted,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = stop_at_ctrl_c()
        .and_then(|stop| on!(options.backend, backend => run(&backend, &options, |_| stop.load(Ordering::Relaxed))));
    match result {
        Ok(End::Finished) => ExitCode::SUCCESS,
        Ok(End::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that the first Ctrl-C sets; the second one ends the program on the spot.
fn stop_at_ctrl_c() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(&STOP)
}

/// Trains and writes, or only the one or the other. `stop` is asked after each step whether to stop there.
fn run<B: Backend>(backend: &B, options: &Options, stop: impl Fn(u64) -> bool) -> Result<End> {
    let path = options.checkpoint.clone().unwrap_or_else(|| workspace().join("target/char_lm.safetensors"));
    if options.sample_only {
        let Run { trainer, vocabulary, .. } = Run::open(backend, &path)?;
        return write(&trainer, &vocabulary, options, &stop);
    }

    let (paths, extensions) = match &options.paths[..] {
        [] => (vec![workspace()], vec!["rs".into()]),
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
    if training::train(&mut run, &text, options, &path, &stop)? == End::Interrupted {
        let (done, path) = (run.trainer.steps(), shortened(&path));
        println!("Stopped after step {done}; {path} holds it. The same command, without --fresh, goes on from there.");
        return Ok(End::Interrupted);
    }
    let bits = training::validate(&run.trainer, &text, options)?;
    println!("Validation: {bits:.3} bits per character, where their frequencies alone need {:.3}.\n", text.order0());
    write(&run.trainer, &run.vocabulary, options, &stop)
}

/// Lets the model write.
fn write<B: Backend>(
    trainer: &Trainer<B>,
    vocabulary: &Vocabulary,
    options: &Options,
    stop: impl Fn(u64) -> bool,
) -> Result<End> {
    let taste = Taste { temperature: options.temperature, seed: options.seed };
    let head = trainer.head().expect("a run has a head");
    let sample = Sample::new(trainer.lstm(), head, vocabulary, &options.prompt, taste)?;
    println!("It writes, at temperature {}:\n", options.temperature);
    let mut out = io::stdout().lock();
    let mut put = |c: char| {
        // What would move a terminal's cursor is not text.
        let c = if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        write!(out, "{c}").map_err(Error::io(Path::new("standard output")))
    };
    options.prompt.chars().try_for_each(&mut put)?;
    for c in sample.take(options.sample_chars) {
        put(c?)?;
        if stop(trainer.steps()) {
            break;
        }
    }
    put('\n')?;
    Ok(if stop(trainer.steps()) { End::Interrupted } else { End::Finished })
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).into()
}

/// `path` as seen from the current folder, if it lies below.
fn shortened(path: &Path) -> std::path::Display<'_> {
    env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display()
}
