//! `verify_onnx DIR`: how far each backend is from ONNX cases, one line per case, backend and output.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use lstm_core::Backend;
use lstm_tests::{
    backends::{self, Visit},
    onnx::{self, OnnxCase},
};

/// Runs every NAME.onnx in a directory on the inputs in NAME.safetensors (format: tests/data/onnx/make_onnx.py) and
/// fails where |got - want| > 1e-5 + 1e-5 |want|.
#[derive(Parser)]
struct Args {
    /// Directory of *.onnx and *.safetensors files
    dir: PathBuf,
    /// Backends to run, each of which must; by default all in this build
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

/// Runs all cases on each backend it visits.
struct Verify {
    cases: Vec<OnnxCase>,
    failures: usize,
    backends: usize,
    worst: f64,
}

impl Visit for Verify {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        self.backends += 1;
        for case in &self.cases {
            let name = format!("{:<40} {backend:<6}", case.name);
            match case.score(&b) {
                Ok(scores) => {
                    scores.iter().for_each(|score| println!("{name} {score}"));
                    self.failures += scores.iter().filter(|score| !score.passes()).count();
                    self.worst = scores.iter().fold(self.worst, |worst, score| worst.max(score.error));
                }
                Err(error) => {
                    println!("{name} FAIL: {error:#}");
                    self.failures += 1;
                }
            }
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is within the tolerance.
fn run(args: &Args) -> Result<bool> {
    let mut verify = Verify { cases: Vec::new(), failures: 0, backends: 0, worst: 0.0 };
    for path in onnx::files(&args.dir)? {
        match OnnxCase::open(&path) {
            Ok(case) => verify.cases.push(case),
            Err(error) => {
                println!("FAIL: {error:#}");
                verify.failures += 1;
            }
        }
    }
    for missed in backends::for_each(args.backends.as_deref(), &mut verify) {
        println!("{missed}");
        // Asked for by name, it must run.
        verify.failures += usize::from(args.backends.is_some());
    }
    if verify.backends == 0 {
        println!("FAIL: no backend ran");
        verify.failures += 1;
    }
    println!();
    let Verify { cases, failures, backends, worst } = &verify;
    println!("{} cases, {backends} backends, worst error {worst:.2e}, {failures} failures", cases.len());
    Ok(*failures == 0)
}
