//! The program `verify`: runs every golden and ONNX case of a directory on every backend.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lstm_core::Backend;

use crate::{
    backends::{self, BackendVisitor},
    golden::GoldenCase,
    onnx::OnnxCase,
    score::Score,
};

/// A golden case or an ONNX case.
enum VerifyCase {
    Golden(Box<GoldenCase>),
    Onnx(Box<OnnxCase>),
}

impl VerifyCase {
    /// Reads a case. A file with the extension `.onnx` is an ONNX case, any other file is a golden case.
    fn open(path: &Path) -> Result<Self> {
        match is_onnx(path) {
            true => OnnxCase::open(path).map(|case| VerifyCase::Onnx(Box::new(case))),
            false => GoldenCase::open(path).map(|case| VerifyCase::Golden(Box::new(case))),
        }
    }

    fn name(&self) -> &str {
        match self {
            VerifyCase::Golden(case) => &case.name,
            VerifyCase::Onnx(case) => &case.name,
        }
    }

    fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        match self {
            VerifyCase::Golden(case) => case.score(b),
            VerifyCase::Onnx(case) => case.score(b),
        }
    }
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "onnx")
}

/// Returns the files of all cases in a directory, sorted by name: every `NAME.onnx`, and every `NAME.safetensors` without
/// a `NAME.onnx` beside it.
///
/// # Errors
/// The directory can't be read or contains no cases.
pub fn case_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| {
        let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        is_onnx(path) || (is_safetensors && !path.with_extension("onnx").is_file())
    });
    ensure!(!files.is_empty(), "{}: no cases (*.onnx or *.safetensors)", dir.display());
    files.sort();
    Ok(files)
}

/// Visitor that runs all cases on each backend and counts the failures.
struct Verification {
    cases: Vec<VerifyCase>,
    failure_count: usize,
    backend_count: usize,
    summary_lines: Vec<String>,
}

impl BackendVisitor for Verification {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        self.backend_count += 1;
        let width = self.cases.iter().map(|case| case.name().len()).max().unwrap_or(0);
        for case in &self.cases {
            let name = format!("{:<width$} {backend:<6}", case.name());
            match case.score(&b) {
                Ok(scores) => {
                    scores.iter().for_each(|score| println!("{name} {score}"));
                    self.failure_count += scores.iter().filter(|score| !score.passes()).count();
                    let max_ratio = scores.iter().map(Score::ratio).fold(0.0, f64::max);
                    self.summary_lines.push(format!("{name} worst error / limit {max_ratio:.3}"));
                }
                Err(error) => {
                    println!("{name} FAIL: {error:#}");
                    self.failure_count += 1;
                }
            }
        }
    }
}

/// Runs every case in `dir` on the named backends, or on all backends of this build if `None`. Prints the errors and
/// returns whether all of them are within their limits. A named backend that can't run is a failure.
///
/// # Errors
/// The directory can't be read or contains no cases.
pub fn run(dir: &Path, backends: Option<&[String]>) -> Result<bool> {
    let mut verification =
        Verification { cases: Vec::new(), failure_count: 0, backend_count: 0, summary_lines: Vec::new() };
    for path in case_files(dir)? {
        match VerifyCase::open(&path) {
            Ok(case) => verification.cases.push(case),
            Err(error) => {
                println!("FAIL: {error:#}");
                verification.failure_count += 1;
            }
        }
    }
    for not_run in backends::for_each_backend(backends, &mut verification) {
        println!("{not_run}");
        verification.failure_count += usize::from(backends.is_some());
    }
    if verification.backend_count == 0 {
        println!("FAIL: no backend ran");
        verification.failure_count += 1;
    }
    println!();
    verification.summary_lines.iter().for_each(|line| println!("{line}"));
    println!(
        "{} cases, {} backends, {} failures",
        verification.cases.len(),
        verification.backend_count,
        verification.failure_count
    );
    Ok(verification.failure_count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_the_kind_of_each_case() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
        for (folder, onnx) in [("golden", false), ("onnx", true)] {
            let files = case_files(&data.join(folder)).unwrap();
            assert!(files.iter().all(|path| is_onnx(path) == onnx), "{files:?}");
            let case = VerifyCase::open(&files[0]).unwrap();
            assert_eq!(matches!(case, VerifyCase::Onnx(_)), onnx);
        }
    }

    #[test]
    fn directories_without_cases_and_unreadable_files_are_errors() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(case_files(&dir.join("no-such-directory")).is_err());
        assert!(case_files(&dir.join("src")).expect_err("no cases").to_string().contains("no cases"));
        let error = GoldenCase::open(&dir.join("Cargo.toml")).expect_err("not safetensors");
        assert!(format!("{error:#}").contains("Cargo.toml"));
    }
}
