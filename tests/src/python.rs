//! Peers that are asked through Python, where one has them.

use std::process::Command;

/// The interpreter: `python3`, or what the environment variable `LSTM_PYTHON` names.
pub fn interpreter() -> String {
    std::env::var("LSTM_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Why it can't import `modules`, if so.
pub fn missing(modules: &str) -> Option<String> {
    let python = interpreter();
    let output = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    let why = match output {
        Ok(output) if output.status.success() => return None,
        Ok(_) => format!("{python} can't import {modules}"),
        Err(error) => format!("{python}: {error}"),
    };
    Some(format!("{why}; LSTM_PYTHON=... names another Python"))
}
