//! The Python interpreter for tests that compare with Python packages.

use std::process::Command;

/// Path of the interpreter: the environment variable `LSTM_PYTHON`, or `python3` if it is not set.
pub fn interpreter() -> String {
    std::env::var("LSTM_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Tries to import Python modules. Returns the reason if that fails, or `None` if it succeeds.
pub fn import_error(modules: &str) -> Option<String> {
    let python = interpreter();
    let output = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    let reason = match output {
        Ok(output) if output.status.success() => return None,
        Ok(_) => format!("{python} can't import {modules}"),
        Err(error) => format!("{python}: {error}"),
    };
    Some(format!("{reason}; set LSTM_PYTHON to use a different Python"))
}
