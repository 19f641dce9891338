//! Whole runs of the program, small ones.

use std::{fs, path::PathBuf, process};

use clap::Parser;
use lstm_cpu::Cpu;

use crate::{End, Error, Result, checkpoint::Run, options::Options, run, text::Text, training};

/// A folder of a test's own, which goes when the test ends.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("char_lm-{}-{name}", process::id()));
        fs::create_dir_all(&folder).expect("a folder for temporary files");
        Folder(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.clone() } else { self.0.join(name) }
    }

    pub(crate) fn write(&self, name: &str, text: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// A small run over the folder's `text`, saved in the folder's file `name`.
    fn options(&self, name: &str, more: &str) -> Options {
        let small = "char_lm --hidden 8 --batch 4 --steps 8 --train-steps 12 --warmup 2 --min-count 1 --save-every 0 \
                     --validate-every 5 --sample-chars 20";
        let mut options = Options::parse_from(small.split(' ').chain(more.split_whitespace()));
        options.checkpoint = Some(self.path(name));
        if !options.sample_only {
            options.paths = vec![self.path("text")];
        }
        options
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a checkpoint")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn never(_: u64) -> bool {
    false
}

fn message(result: Result<End>) -> String {
    result.expect_err("an error").to_string()
}

#[test]
fn what_repeats_is_soon_known() -> Result<()> {
    let folder = Folder::new("abc");
    let text = Text::new(&"abc".repeat(1000), 1)?;
    let options = folder.options("run", "--hidden 16 --layers 1 --train-steps 150 --rate 0.02");
    let mut run = Run::start(&Cpu::new(), &options, &text)?;
    let before = training::validate(&run.trainer, &text, &options)?;
    training::train(&mut run, &text, &options, &folder.path("run"), never)?;
    let bits = training::validate(&run.trainer, &text, &options)?;
    assert!(bits < 0.1 && before > 1.5, "{before} bits per character became {bits}");
    Ok(())
}

/// Both the weights and what the optimizer and the streams keep are in the file.
#[test]
fn a_run_that_was_stopped_ends_with_the_same_bits() -> Result<()> {
    let (folder, cpu) = (Folder::new("stop"), Cpu::new());
    folder.write("text", "The quick brown fox jumps over the lazy dog. ".repeat(5).as_bytes());
    assert_eq!(run(&cpu, &folder.options("whole", ""), never)?, End::Finished);

    // An epoch is six steps: stopped within one, at its end and just before the last step.
    let options = folder.options("stopped", "");
    for stop in [3, 6, 11] {
        assert_eq!(run(&cpu, &options, |step| step == stop)?, End::Interrupted);
        assert_eq!(Run::open(&cpu, &folder.path("stopped"))?.trainer.steps(), stop);
        assert_ne!(folder.bytes("stopped"), folder.bytes("whole"));
    }
    assert_eq!(run(&cpu, &options, never)?, End::Finished);
    assert!(folder.bytes("stopped") == folder.bytes("whole"));

    // A finished run is left as it is, and so is one that only writes.
    assert_eq!(run(&cpu, &options, never)?, End::Finished);
    let only = folder.options("stopped", "--sample-only --hidden 99 --seed 5");
    assert_eq!(run(&cpu, &only, never)?, End::Finished);
    assert!(folder.bytes("stopped") == folder.bytes("whole"));

    // Saving now and then changes nothing; starting over gives the same, another seed something else.
    run(&cpu, &folder.options("stopped", "--fresh --save-every 4 --validate-every 0"), never)?;
    assert!(folder.bytes("stopped") == folder.bytes("whole"));
    run(&cpu, &folder.options("stopped", "--fresh --seed 2"), never)?;
    assert!(folder.bytes("stopped") != folder.bytes("whole"));
    Ok(())
}

#[test]
fn every_cell_trains_and_goes_on() -> Result<()> {
    let (folder, cpu) = (Folder::new("cells"), Cpu::new());
    folder.write("text", "to be or not to be, ".repeat(5).as_bytes());
    for cell in ["fused", "unfused", "peephole-dense", "peephole-diagonal"] {
        let options = |name| folder.options(name, &format!("--cell {cell} --train-steps 4 --fresh"));
        run(&cpu, &options("whole"), never)?;
        run(&cpu, &options("stopped"), |step| step == 2)?;
        run(&cpu, &Options { fresh: false, ..options("stopped") }, never)?;
        assert!(folder.bytes("stopped") == folder.bytes("whole"), "{cell}");
    }
    Ok(())
}

#[test]
fn another_run_is_not_gone_on_with() -> Result<()> {
    let (folder, cpu) = (Folder::new("other"), Cpu::new());
    folder.write("text", "to be or not to be, ".repeat(5).as_bytes());
    run(&cpu, &folder.options("run", ""), |step| step == 3)?;
    let bytes = folder.bytes("run");

    let error = message(run(&cpu, &folder.options("run", "--hidden 9 --rate 0.1"), never));
    let want = "run is of another run: --hidden was 8, now is 9, --rate was 0.01, now is 0.1. Give";
    assert!(error.contains(want), "{error}");
    folder.write("text", "to be or not to bE, ".repeat(5).as_bytes());
    let error = message(run(&cpu, &folder.options("run", ""), never));
    assert!(error.contains("run is of another run: the text was 100 characters of digest "), "{error}");
    assert_eq!(folder.bytes("run"), bytes);

    folder.write("run", b"something else");
    let error = message(run(&cpu, &folder.options("run", ""), never));
    assert!(error.starts_with(&folder.path("run").display().to_string()), "{error}");
    Run::start(&cpu, &folder.options("run", ""), &Text::new(&"ab".repeat(10), 1)?)?.trainer.save(folder.path("run"))?;
    let error = message(run(&cpu, &folder.options("run", "--sample-only"), never));
    assert!(error.ends_with("run: it has no vocabulary: not a run of this program"), "{error}");
    let error = message(run(&cpu, &folder.options("no-such-run", "--sample-only"), never));
    assert!(error.starts_with(&folder.path("no-such-run").display().to_string()), "{error}");
    Ok(())
}

#[test]
fn numbers_that_run_away_stop_the_run_and_keep_the_checkpoint() -> Result<()> {
    let (folder, cpu) = (Folder::new("nan"), Cpu::new());
    folder.write("text", "to be or not to be, ".repeat(5).as_bytes());
    let absurd = |more: &str| folder.options("run", &format!("--rate 1e30 --warmup 12 --min-rate 0 {more}"));
    let error = run(&cpu, &absurd(""), never).expect_err("absurd");
    assert!(matches!(error, Error::Diverged { saved: 0, .. }) && !folder.path("run").exists(), "{error}");
    assert!(error.to_string().contains("nothing had been saved yet"), "{error}");

    assert_eq!(run(&cpu, &absurd(""), |step| step == 1)?, End::Interrupted);
    let bytes = folder.bytes("run");
    let error = run(&cpu, &absurd(""), never).expect_err("absurd").to_string();
    assert!(error.contains("step 2") && error.contains("run is still as it was after step 1"), "{error}");
    assert_eq!(folder.bytes("run"), bytes);
    Ok(())
}
