//! Devices by name. Objects with the same device share it, with its threads.

use std::{collections::HashMap, sync::Mutex};

use lstm::{BACKENDS, Device, Error, Ops};
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyDict};

use crate::{arguments::checked_unsigned, error::to_python};

/// The name of a device, and the number of threads if the user gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DeviceOptions {
    /// The name of the backend, or `auto`.
    pub(crate) name: String,
    /// The number of threads of the CPU.
    pub(crate) threads: Option<usize>,
}

/// The devices that are open. A process has few of them, and keeps them.
static DEVICES: Mutex<Option<HashMap<DeviceOptions, Device>>> = Mutex::new(None);

impl DeviceOptions {
    /// The options as Python code gives them.
    pub(crate) fn new(name: &str, threads: Option<i128>) -> PyResult<Self> {
        let threads = threads.map(|threads| checked_unsigned("threads", threads)).transpose()?;
        Ok(DeviceOptions { name: name.to_owned(), threads })
    }

    /// Opens the device, or takes it if it is open.
    pub(crate) fn open(&self, py: Python<'_>) -> PyResult<Device> {
        // Locked only while the GIL is held, so that a fork by Python code never leaves it locked in the child.
        let lock = || DEVICES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(device) = lock().as_ref().and_then(|devices| devices.get(self)) {
            return Ok(device.clone());
        }
        let mut builder = Device::builder().backend(&*self.name);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        let device = py.detach(|| builder.open()).map_err(|error| match error {
            Error::Device { reason, .. } if reason.starts_with("not in this build") => {
                let how = "`pip install ./crates/lstm-python` in a checkout builds one with all devices";
                let text = format!("device: {} is not in this package, which has other devices; {how}", self.name);
                PyRuntimeError::new_err(text)
            }
            error => to_python(error),
        })?;
        Ok(lock().get_or_insert_default().entry(self.clone()).or_insert(device).clone())
    }
}

#[doc = doc!("devices")]
#[pyfunction]
pub(crate) fn devices(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let row = |info: &lstm::BackendInfo| {
        let options = DeviceOptions { name: info.name.into(), threads: None };
        let device = options.open(py);
        let row = PyDict::new(py);
        row.set_item("name", info.name)?;
        row.set_item("available", device.is_ok())?;
        match device {
            Ok(device) => {
                row.set_item("description", format!("{device:?}"))?;
                row.set_item("exact", device.arithmetic().is_exact())?;
                row.set_item("why_not", py.None())?;
            }
            Err(error) => {
                row.set_item("description", py.None())?;
                row.set_item("exact", py.None())?;
                row.set_item("why_not", error.value(py).to_string())?;
            }
        }
        Ok(row)
    };
    BACKENDS.iter().map(row).collect()
}
