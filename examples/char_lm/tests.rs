//! Tests of whole runs with small models.

use std::{fs, path::PathBuf, process};

use clap::Parser;
use lstm::{CellKind, Cpu};

use crate::{Error, Outcome, Result, checkpoint::Run, options::Options, run, text::Text, training};

/// A temporary directory, removed on drop.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("char_lm-{}-{name}", process::id()));
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        TempDir(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.clone() } else { self.0.join(name) }
    }

    pub(crate) fn write(&self, name: &str, text: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("the path has a parent")).expect("the directory can be created");
        fs::write(path, text).expect("the file can be written");
    }

    /// Options of a small run on the file `text` in this directory, with the checkpoint file `name`, and `more_options`
    /// appended.
    fn options(&self, name: &str, more_options: &str) -> Options {
        let small_options = "char_lm --hidden 8 --batch 4 --steps 8 --train-steps 12 --warmup 2 --min-count 1 --save-every 0 \
                     --validate-every 5 --sample-chars 20";
        let mut options = Options::parse_from(small_options.split(' ').chain(more_options.split_whitespace()));
        options.checkpoint = Some(self.path(name));
        if !options.sample_only {
            options.paths = vec![self.path("text")];
        }
        options
    }

    /// Contents of the file `name` in this directory.
    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the checkpoint exists")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A stop condition that lets the run continue to its end.
fn never_stop(_: u64) -> bool {
    false
}

/// Error message of a failed run.
fn error_message(result: Result<Outcome>) -> String {
    result.expect_err("the run fails").to_string()
}

#[test]
fn learns_repeating_text() -> Result<()> {
    let dir = TempDir::new("abc");
    let text = Text::new(&"abc".repeat(1000), 1)?;
    let options = dir.options("run", "--hidden 16 --layers 1 --train-steps 150 --rate 0.02");
    let mut run = Run::start(&Cpu::new(), &options, &text)?;
    let bits_before_training = training::validate(&run.trainer, &text, &options)?;
    training::train(&mut run, &text, &options, &dir.path("run"), never_stop)?;
    let bits_after_training = training::validate(&run.trainer, &text, &options)?;
    assert!(
        bits_after_training < 0.1 && bits_before_training > 1.5,
        "{bits_before_training} bits per character became {bits_after_training}"
    );
    Ok(())
}

/// A run that is interrupted and resumed ends with the same checkpoint as an uninterrupted run. The checkpoint contains the
/// weights and the states of the optimizer and of the text streams.
#[test]
fn interrupted_run_resumes_bit_identically() -> Result<()> {
    let (dir, cpu) = (TempDir::new("stop"), Cpu::new());
    dir.write("text", "The quick brown fox jumps over the lazy dog. ".repeat(5).as_bytes());
    assert_eq!(run(&cpu, &dir.options("whole", ""), never_stop)?, Outcome::Finished);

    // An epoch has six steps. Interrupt within an epoch, at its end, and before the last step.
    let options = dir.options("stopped", "");
    for stop in [3, 6, 11] {
        assert_eq!(run(&cpu, &options, |step| step == stop)?, Outcome::Interrupted);
        assert_eq!(Run::open(&cpu, &dir.path("stopped"))?.trainer.steps(), stop);
        assert_ne!(dir.bytes("stopped"), dir.bytes("whole"));
    }
    assert_eq!(run(&cpu, &options, never_stop)?, Outcome::Finished);
    assert!(dir.bytes("stopped") == dir.bytes("whole"));

    // Finished runs and --sample-only do not change the checkpoint.
    assert_eq!(run(&cpu, &options, never_stop)?, Outcome::Finished);
    let sample_only_options = dir.options("stopped", "--sample-only --hidden 99 --seed 5");
    assert_eq!(run(&cpu, &sample_only_options, never_stop)?, Outcome::Finished);
    assert!(dir.bytes("stopped") == dir.bytes("whole"));

    // Saving and validating more or less often does not change the result, but another seed does.
    run(&cpu, &dir.options("stopped", "--fresh --save-every 4"), never_stop)?;
    assert!(dir.bytes("stopped") == dir.bytes("whole"));
    run(&cpu, &dir.options("stopped", "--fresh --validate-every 0"), never_stop)?;
    let [stopped, whole] = ["stopped", "whole"].map(|name| Run::open(&cpu, &dir.path(name)));
    let (stopped, whole) = (stopped?, whole?);
    assert_eq!(stopped.trainer.lstm().weights(), whole.trainer.lstm().weights());
    // The checkpoint has the losses of the validations at steps 5 and 10.
    assert_eq!(stopped.losses.training, whole.losses.training);
    assert_eq!((stopped.losses.validation.len(), whole.losses.validation.len()), (0, 2));
    let chart = dir.path("new/curve.svg");
    whole.losses.draw(&chart).expect("the chart can be drawn");
    assert!(fs::read_to_string(chart).is_ok_and(|svg| svg.contains("bits per character")));
    run(&cpu, &dir.options("stopped", "--fresh --seed 2"), never_stop)?;
    assert!(dir.bytes("stopped") != dir.bytes("whole"));
    Ok(())
}

#[test]
fn every_cell_resumes_bit_identically() -> Result<()> {
    let (dir, cpu) = (TempDir::new("cells"), Cpu::new());
    dir.write("text", "to be or not to be, ".repeat(5).as_bytes());
    for cell in CellKind::ALL {
        let options = |name| dir.options(name, &format!("--cell {cell} --train-steps 4 --fresh"));
        run(&cpu, &options("whole"), never_stop)?;
        run(&cpu, &options("stopped"), |step| step == 2)?;
        run(&cpu, &Options { fresh: false, ..options("stopped") }, never_stop)?;
        assert!(dir.bytes("stopped") == dir.bytes("whole"), "{cell}");
    }
    Ok(())
}

#[test]
fn rejects_checkpoints_of_different_runs() -> Result<()> {
    let (dir, cpu) = (TempDir::new("other"), Cpu::new());
    dir.write("text", "to be or not to be, ".repeat(5).as_bytes());
    run(&cpu, &dir.options("run", ""), |step| step == 3)?;
    let bytes = dir.bytes("run");

    let error = error_message(run(&cpu, &dir.options("run", "--hidden 9 --rate 0.1"), never_stop));
    let want = "run is a checkpoint of a different run: --hidden was 8, now is 9, --rate was 0.01, now is 0.1. Use";
    assert!(error.contains(want), "{error}");
    dir.write("text", "to be or not to bE, ".repeat(5).as_bytes());
    let error = error_message(run(&cpu, &dir.options("run", ""), never_stop));
    assert!(
        error.contains("run is a checkpoint of a different run: the text was 100 characters of digest "),
        "{error}"
    );
    assert_eq!(dir.bytes("run"), bytes);

    dir.write("run", b"something else");
    let error = error_message(run(&cpu, &dir.options("run", ""), never_stop));
    assert!(error.starts_with(&dir.path("run").display().to_string()), "{error}");
    Run::start(&cpu, &dir.options("run", ""), &Text::new(&"ab".repeat(10), 1)?)?.trainer.save(dir.path("run"))?;
    let error = error_message(run(&cpu, &dir.options("run", "--sample-only"), never_stop));
    assert!(error.ends_with("run: the file has no vocabulary, so it is not a checkpoint of this program"), "{error}");
    let error = error_message(run(&cpu, &dir.options("no-such-run", "--sample-only"), never_stop));
    assert!(error.starts_with(&dir.path("no-such-run").display().to_string()), "{error}");
    Ok(())
}

#[test]
fn diverging_run_stops_and_keeps_the_checkpoint() -> Result<()> {
    let (dir, cpu) = (TempDir::new("nan"), Cpu::new());
    dir.write("text", "to be or not to be, ".repeat(5).as_bytes());
    let diverging_options =
        |more_options: &str| dir.options("run", &format!("--rate 1e30 --warmup 12 --min-rate 0 {more_options}"));
    let error = run(&cpu, &diverging_options(""), never_stop).expect_err("the loss diverges");
    assert!(matches!(error, Error::Diverged { saved_step: 0, .. }) && !dir.path("run").exists(), "{error}");
    assert!(error.to_string().contains("no checkpoint was saved yet"), "{error}");

    assert_eq!(run(&cpu, &diverging_options(""), |step| step == 1)?, Outcome::Interrupted);
    let bytes = dir.bytes("run");
    let error = run(&cpu, &diverging_options(""), never_stop).expect_err("the loss diverges").to_string();
    assert!(error.contains("step 2") && error.contains("run still contains the checkpoint of step 1"), "{error}");
    assert_eq!(dir.bytes("run"), bytes);
    Ok(())
}
