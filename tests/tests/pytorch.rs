//! A trained model in PyTorch: its own `load_state_dict` takes what was saved, and it gives the same outputs.
//!
//! Needs a Python with torch and safetensors: `python3`, or what the environment variable `LSTM_PYTHON` names. Without
//! one the test says that it did not run, and so does the table of `cargo xtask test-all`.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use lstm_core::{Backend, StateDictWriter};
use lstm_tests::{
    backends::{self, Visit},
    python,
    results::{Line, Outcome, record},
    training::{self, Run, Temporary},
};

/// The greatest relative difference that passes: some roundings of binary32.
const TOLERANCE: f64 = 2e-6;

/// Trains `run` on each backend it visits, and compares.
struct Compare<'a> {
    run: &'a Run,
    results: Vec<Result<String>>,
}

impl Visit for Compare<'_> {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        self.results.push(compare(&b, self.run).map(|difference| format!("{name}: {difference:.1e}")));
    }
}

fn compare<B: Backend>(b: &B, run: &Run) -> Result<f64> {
    let mut trainer = run.start(b)?;
    run.train(&mut trainer, 50)?;
    let (model, data) = (Temporary::new(), Temporary::new());
    trainer.save_model(&model.0, &BTreeMap::new())?;
    let x = run.inputs(0);
    let (y, _) = trainer.predict(&x)?;
    StateDictWriter::new().tensor("x", &x)?.tensor("y", &y)?.save(&data.0)?;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/train/load.py");
    let output = Command::new(python::interpreter()).args([&script, &model.0, &data.0]).output()?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    let difference: f64 = String::from_utf8(output.stdout)?.trim().parse().context("the script prints a number")?;
    // So that NaN fails too.
    ensure!(difference <= TOLERANCE, "PyTorch's outputs differ by {difference:e}, more than {TOLERANCE:e}");
    Ok(difference)
}

fn main() {
    let args = Arguments::from_args();
    let report = |case: &str, outcome, detail: &str| {
        record(&Line {
            backend: "pytorch",
            group: if case.is_empty() { "" } else { "trained weights" },
            case,
            outcome,
            detail,
        })
    };
    let mut trials = Vec::new();
    match python::missing("torch, safetensors.torch") {
        Some(_) if args.list => {}
        Some(why) => {
            eprintln!("pytorch: not run: {why}");
            if let Err(error) = report("", Outcome::NotRun, &why) {
                eprintln!("{error:#}");
            }
        }
        None => {
            // PyTorch has the other cells not.
            for run in training::runs().into_iter().filter(Run::is_pytorchs) {
                trials.push(Trial::test(format!("pytorch::{}", run.name), move || {
                    let mut compare = Compare { run: &run, results: Vec::new() };
                    backends::for_each(backends::wanted().as_deref(), &mut compare);
                    let found = compare.results.into_iter().collect::<Result<Vec<_>>>();
                    let (outcome, detail) = match &found {
                        Ok(found) if found.is_empty() => (Outcome::NotRun, "no backend ran".to_owned()),
                        Ok(found) => (Outcome::Identical, found.join(", ")),
                        Err(error) => (Outcome::Failed, format!("{error:#}")),
                    };
                    println!("{}: {detail}", run.name);
                    report(run.name, outcome, &detail).map_err(|e| format!("{e:#}"))?;
                    found.map(drop).map_err(|error| format!("{error:#}").into())
                }));
            }
        }
    }
    libtest_mimic::run(&args, trials).exit();
}
