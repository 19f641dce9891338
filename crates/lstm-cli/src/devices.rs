//! `lstm devices`: which backends there are, and why one can't run.

use std::{fmt, process::ExitCode};

use serde::Serialize;

use crate::{
    backends::{self, KNOWN, Known, describe},
    error::Result,
    report::Output,
};

/// List the backends: which device each found and what it promises about its bits, or why it can't run here
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Report {
    backends: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// Whether this build holds it.
    compiled: bool,
    available: bool,
    device: Option<String>,
    arithmetic: Option<String>,
    /// Whether it gives the bits that all exact backends give.
    exact: Option<bool>,
    why: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = backends::width();
        for Row { name, device, arithmetic, why, .. } in &self.backends {
            match (device, arithmetic) {
                (Some(device), Some(arithmetic)) => writeln!(f, "{name:<width$} {device}, arithmetic {arithmetic}")?,
                _ => writeln!(f, "{name:<width$} can't run: {}", why.as_deref().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

pub(crate) fn run(_: &Args, output: Output) -> Result<ExitCode> {
    let row = |&known: &Known| {
        let Known { name, compiled, .. } = known;
        let opened = backends::open(known, backends::Options::default());
        let device = opened.as_ref().ok();
        Row {
            name: name.to_owned(),
            compiled,
            available: device.is_some(),
            device: device.map(|device| device.about()),
            arithmetic: device.map(|device| describe(&device.arithmetic())),
            exact: device.map(|device| device.arithmetic().is_exact()),
            why: opened.as_ref().err().map(ToString::to_string),
        }
    };
    output.report(&Report { backends: KNOWN.iter().map(row).collect() })?;
    Ok(ExitCode::SUCCESS)
}
