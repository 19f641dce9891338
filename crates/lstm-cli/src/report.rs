//! Output of a command: a report as text or JSON on stdout, notes and errors on stderr.

use std::{
    fmt::Display,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};

/// Output settings of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputSettings {
    /// Whether to write JSON instead of text to stdout.
    pub(crate) json: bool,
    /// Whether to suppress progress and notes.
    pub(crate) quiet: bool,
}

impl OutputSettings {
    /// Writes the report of a command that wrote `files` to stdout. An error says that the files are in place.
    pub(crate) fn report_with_files(self, report: &(impl Serialize + Display), files: &[PathBuf]) -> Result<()> {
        self.report(report).map_err(|error| error.with_files_in_place(files))
    }

    /// Writes a command's report to stdout.
    pub(crate) fn report(self, report: &(impl Serialize + Display)) -> Result<()> {
        write_stdout(self.format(report).trim_end())
    }

    /// Writes the report of a command whose stdout has the outputs to stderr.
    pub(crate) fn report_to_stderr(self, report: &(impl Serialize + Display)) {
        write_stderr(self.format(report).trim_end());
    }

    fn format(self, report: &(impl Serialize + Display)) -> String {
        match self.json {
            true => serde_json::to_string_pretty(report).expect("reports serialize to JSON"),
            false => report.to_string(),
        }
    }

    /// Writes a note to stderr, unless output is quiet.
    pub(crate) fn note(self, text: impl Display) {
        if !self.quiet {
            write_stderr(&format!("note: {text}"));
        }
    }

    /// Reports an error and returns its exit code.
    pub(crate) fn report_error(self, error: &Error) -> ExitCode {
        write_stderr(&format!("error: {error}"));
        if self.json {
            let report = json!({ "error": { "kind": error.kind(), "message": error.to_string() } });
            // A failure to write the error can't be reported.
            let _ = write_stdout(&format!("{report:#}"));
        }
        ExitCode::from(error.exit_code())
    }
}

/// Text of a path for reports. Parts that are not UTF-8 are replaced by a placeholder character.
pub(crate) fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// Writes a line to stderr. A failure to write is ignored: it does not change the result of the command.
fn write_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes a line to stdout. It is not an error if the reader has closed the pipe, as `head` does.
fn write_stdout(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::file("stdout".as_ref(), e)),
        _ => Ok(()),
    }
}
