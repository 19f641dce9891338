//! Results of trials as JSON lines, in the file named by the environment variable `LSTM_RESULTS`. `cargo xtask test-all`
//! reads the file.

use std::{fs::OpenOptions, io::Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Outcome of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The results are bit-identical to the expected ones or, for golden data, within their error limits.
    #[serde(rename = "identical")]
    Identical,
    /// The trial failed.
    #[serde(rename = "failed")]
    Failed,
    /// The trial was not run.
    #[serde(rename = "not run")]
    NotRun,
}

/// The result of one trial, written as one JSON line.
#[derive(Debug, Serialize)]
pub struct ResultLine<'a> {
    /// Name of the backend.
    pub backend: &'a str,
    /// Group of the case. Empty if the line is about the whole backend.
    pub group: &'a str,
    /// Name of the case.
    pub case: &'a str,
    /// Outcome of the trial.
    pub outcome: Outcome,
    /// Details of the result, the error message, or the reason why the trial did not run.
    pub detail: &'a str,
}

/// Appends a line to the results file. Does nothing if `LSTM_RESULTS` is not set.
///
/// # Errors
/// The file can't be written.
pub fn record_result(line: &ResultLine<'_>) -> Result<()> {
    let Some(path) = std::env::var_os("LSTM_RESULTS") else { return Ok(()) };
    let text = serde_json::to_string(line)? + "\n";
    let file = OpenOptions::new().create(true).append(true).open(&path);
    // A single write for each line, because trials run in parallel.
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("{}", path.display()))
}
