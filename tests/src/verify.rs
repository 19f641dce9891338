//! What the programs `verify` and `verify_onnx` share: every case of a directory on every backend, one line per array.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use lstm_core::Backend;

use crate::backends::{self, Visit};

/// A kind of cases.
pub trait Compared: Sized {
    /// How far one array is from what it should be; its text is one line.
    type Score: Display;

    /// What its file ends in.
    const EXTENSION: &str;

    /// The cases in a directory, by name.
    ///
    /// # Errors
    /// A directory that can't be read or holds none.
    fn files(dir: &Path) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == Self::EXTENSION));
        ensure!(!files.is_empty(), "{}: no cases (*.{})", dir.display(), Self::EXTENSION);
        files.sort();
        Ok(files)
    }

    /// Reads a case.
    ///
    /// # Errors
    /// What a file lacks, or has too much.
    fn open(path: &Path) -> Result<Self>;

    /// Its name.
    fn name(&self) -> &str;

    /// Runs it on a backend.
    ///
    /// # Errors
    /// What the backend refuses.
    fn score<B: Backend>(&self, b: &B) -> Result<Vec<Self::Score>>;

    /// The error as a part of what passes: at most 1 is good, NaN never.
    fn ratio(score: &Self::Score) -> f64;
}

/// Runs all cases on each backend it visits.
struct Verify<C> {
    cases: Vec<C>,
    failures: usize,
    backends: usize,
    worst: Vec<String>,
}

impl<C: Compared> Visit for Verify<C> {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        self.backends += 1;
        let width = self.cases.iter().map(|case| case.name().len()).max().unwrap_or(0);
        for case in &self.cases {
            let name = format!("{:<width$} {backend:<6}", case.name());
            match case.score(&b) {
                Ok(scores) => {
                    scores.iter().for_each(|score| println!("{name} {score}"));
                    let ratios = || scores.iter().map(C::ratio);
                    self.failures += ratios().filter(|ratio| ratio.is_nan() || *ratio > 1.0).count();
                    self.worst.push(format!("{name} worst error / limit {:.3}", ratios().fold(0.0, f64::max)));
                }
                Err(error) => {
                    println!("{name} FAIL: {error:#}");
                    self.failures += 1;
                }
            }
        }
    }
}

/// Runs every case in `dir` on the backends that are named, each of which must run, or on all in this build.
pub fn main<C: Compared>(dir: &Path, backends: Option<&[String]>) -> ExitCode {
    match run::<C>(dir, backends) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is within its limits.
fn run<C: Compared>(dir: &Path, backends: Option<&[String]>) -> Result<bool> {
    let mut verify = Verify { cases: Vec::new(), failures: 0, backends: 0, worst: Vec::new() };
    for path in C::files(dir)? {
        match C::open(&path) {
            Ok(case) => verify.cases.push(case),
            Err(error) => {
                println!("FAIL: {error:#}");
                verify.failures += 1;
            }
        }
    }
    for missed in backends::for_each(backends, &mut verify) {
        println!("{missed}");
        // Asked for by name, it must run.
        verify.failures += usize::from(backends.is_some());
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
