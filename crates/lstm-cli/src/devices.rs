//! `lstm devices`: lists the backends and their devices.

use std::{fmt, process::ExitCode};

use lstm::{BACKENDS, BackendInfo, Ops};
use serde::Serialize;

use crate::{backends, error::Result, report::OutputSettings};

/// List the backends: the device of each, and whether its results are bit-exact, or why the backend is not available
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Report {
    backends: Vec<DeviceRow>,
}

#[derive(Serialize)]
struct DeviceRow {
    name: String,
    /// Whether this build contains the backend.
    compiled: bool,
    available: bool,
    device: Option<String>,
    arithmetic: Option<String>,
    /// Whether the backend's results are bit-identical to those of other exact backends; `None` if it can't be used.
    exact: Option<bool>,
    why: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = backends::max_name_len();
        for DeviceRow { name, device, arithmetic, why, .. } in &self.backends {
            match (device, arithmetic) {
                (Some(device), Some(arithmetic)) => writeln!(f, "{name:<width$} {device}, arithmetic {arithmetic}")?,
                _ => writeln!(f, "{name:<width$} not available: {}", why.as_deref().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

pub(crate) fn run(_: &Args, output: OutputSettings) -> Result<ExitCode> {
    let row = |info: &BackendInfo| {
        let open_result = backends::open_device(info, backends::BackendOptions::default());
        let device = open_result.as_ref().ok();
        DeviceRow {
            name: info.name.to_owned(),
            compiled: info.is_compiled,
            available: device.is_some(),
            device: device.map(|device| format!("{device:?}")),
            arithmetic: device.map(|device| device.arithmetic().to_string()),
            exact: device.map(|device| device.arithmetic().is_exact()),
            why: open_result.as_ref().err().map(ToString::to_string),
        }
    };
    output.report(&Report { backends: BACKENDS.iter().map(row).collect() })?;
    Ok(ExitCode::SUCCESS)
}
