//! One JSON line per trial in the file that the environment variable `LSTM_RESULTS` names; `cargo xtask test-all` reads it.

use std::{fs::OpenOptions, io::Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// All bits as they should be; for golden data, within the limit.
    #[serde(rename = "identical")]
    Identical,
    /// Not so.
    #[serde(rename = "failed")]
    Failed,
    /// Nothing was computed.
    #[serde(rename = "not run")]
    NotRun,
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// The group of cases; empty where it is about all of them.
    pub group: &'a str,
    /// The case's name.
    pub case: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, or why it did not run.
    pub detail: &'a str,
}

/// Appends `line` if a file was asked for.
///
/// # Errors
/// What the file system refuses.
pub fn record(line: &Line<'_>) -> Result<()> {
    let Some(path) = std::env::var_os("LSTM_RESULTS") else { return Ok(()) };
    let text = serde_json::to_string(line)? + "\n";
    let file = OpenOptions::new().create(true).append(true).open(&path);
    // A single write: trials run side by side.
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("{}", path.display()))
}
