//! What a command says: a report as text or JSON on stdout, remarks and errors on stderr.

use std::{fmt::Display, io::Write, path::Path, process::ExitCode};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};

/// How to say it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// Writes a report, the whole of stdout.
    pub(crate) fn report(self, report: &(impl Serialize + Display)) -> Result<()> {
        let text = match self.json {
            true => serde_json::to_string_pretty(report).expect("reports are plain data"),
            false => report.to_string(),
        };
        print(text.trim_end())
    }

    /// A remark about what might be a surprise.
    pub(crate) fn remark(self, text: impl Display) {
        if !self.quiet {
            say(&format!("note: {text}"));
        }
    }

    /// Tells what went wrong, in words and as the exit code.
    pub(crate) fn fail(self, error: &Error) -> ExitCode {
        say(&format!("error: {error}"));
        if self.json {
            let report = json!({ "error": { "kind": error.kind(), "message": error.to_string() } });
            // There is nobody left to tell.
            let _ = print(&format!("{report:#}"));
        }
        ExitCode::from(error.code())
    }
}

/// A path as reports have it. One that is not UTF-8 has no exact text.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Writes to stderr. Where nobody can be told, what is done and its exit code are the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes to stdout. Who reads may have gone, as `head` does: that is no failure.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::file("stdout".as_ref(), e)),
        _ => Ok(()),
    }
}
