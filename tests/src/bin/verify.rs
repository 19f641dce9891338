//! `verify DIR`: how far each backend is from golden cases, one line per case, backend and array.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use lstm_core::Backend;
use lstm_tests::{
    backends::{self, Visit},
    golden::{self, Golden},
};

/// Runs every golden case in a directory (format: tests/data/golden/make.py) and fails where an error exceeds
/// 4 x the file's float32_error + 1e-7.
#[derive(Parser)]
struct Args {
    /// Directory of *.safetensors files
    dir: PathBuf,
    /// Backends to run, each of which must; by default all in this build
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
}

/// Runs all cases on each backend it visits.
struct Verify {
    cases: Vec<Golden>,
    failures: usize,
    backends: usize,
    worst: Vec<String>,
}

impl Visit for Verify {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        self.backends += 1;
        for case in &self.cases {
            let name = format!("{:<24} {backend:<6}", case.name);
            match case.score(&b) {
                Ok(scores) => {
                    scores.iter().for_each(|score| println!("{name} {score}"));
                    self.failures += scores.iter().filter(|score| !score.passes()).count();
                    let worst = scores.iter().fold(0.0, |worst: f64, score| worst.max(score.ratio()));
                    self.worst.push(format!("{name} worst error / limit {worst:.3}"));
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

/// Whether all is within its limits.
fn run(args: &Args) -> Result<bool> {
    let mut verify = Verify { cases: Vec::new(), failures: 0, backends: 0, worst: Vec::new() };
    for path in golden::files(&args.dir)? {
        match Golden::open(&path) {
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
    verify.worst.iter().for_each(|line| println!("{line}"));
    println!("{} cases, {} backends, {} failures", verify.cases.len(), verify.backends, verify.failures);
    Ok(verify.failures == 0)
}
