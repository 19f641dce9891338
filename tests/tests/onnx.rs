//! Runs the ONNX cases on every backend. `cargo xtask verify-onnx DIR` does the same for any directory.

use std::path::Path;

use anyhow::{Result, ensure};
use lstm_core::Backend;
use lstm_tests::{
    backends::{self, BackendVisitor},
    onnx::OnnxCase,
    results::{Outcome, ResultLine, record_result},
    verify::case_files,
};

fn cases() -> Result<Vec<OnnxCase>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
    case_files(&dir)?.iter().map(|path| OnnxCase::open(path)).collect()
}

/// Runs all cases on each backend that it visits, and records the results.
struct RunAll {
    cases: Vec<OnnxCase>,
    failures: Vec<String>,
}

impl BackendVisitor for RunAll {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        for case in &self.cases {
            let (passed, detail) = match case.score(&b) {
                Ok(scores) => {
                    let lines: Vec<_> = scores.iter().map(ToString::to_string).collect();
                    (scores.iter().all(|score| score.passes()), lines.join("; "))
                }
                Err(error) => (false, format!("{error:#}")),
            };
            let outcome = if passed { Outcome::Identical } else { Outcome::Failed };
            let recorded =
                record_result(&ResultLine { backend, group: "onnx", case: &case.name, outcome, detail: &detail });
            if !passed || recorded.is_err() {
                self.failures.push(format!("{} on {backend}: {detail} {recorded:?}", case.name));
            }
        }
    }
}

#[test]
fn outputs_match_other_runtimes() -> Result<()> {
    let mut run = RunAll { cases: cases()?, failures: Vec::new() };
    for not_run in backends::for_each_backend(backends::wanted_backends().as_deref(), &mut run) {
        println!("{not_run}");
    }
    ensure!(run.failures.is_empty(), "{}", run.failures.join("\n"));
    Ok(())
}

#[test]
fn models_of_the_field_match_onnx_runtime() -> Result<()> {
    let dir = std::env::var("FIELD")
        .map(std::path::PathBuf::from)
        .unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models"));
    let b = lstm_cpu::Cpu::new();
    for path in case_files(&dir)? {
        if path.extension().is_some_and(|e| e == "onnx") {
            match OnnxCase::open(&path).and_then(|case| case.score(&b)) {
                Ok(scores) => println!(
                    "{} {} {}",
                    if scores.iter().all(|s| s.passes()) { "RIGHT" } else { "WRONG" },
                    path.display(),
                    scores.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                ),
                Err(e) => println!("ERROR {}: {e:#}", path.display()),
            }
        }
    }
    Ok(())
}
