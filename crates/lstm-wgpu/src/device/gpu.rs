//! An open device with its limits, compiled kernels, memory pool and pending work.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use lstm_core::{Error, Result};

use super::{
    device_error,
    errors::{DeferredError, ErrorScopes},
    limits::check_limits,
    mode::Mode,
    queue::{ParametersBuffer, PendingWork},
};
use crate::{
    memory::{BufferPool, DeviceMemory, lock},
    shader::{Kernel, Pipeline},
};

/// An open device with everything that belongs to it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    /// Whether to use the kernels for adapters that run on a CPU.
    pub(crate) is_cpu: bool,
    pub(crate) mode: Mode,
    /// Size in bytes of the largest buffer that a kernel can access.
    max_buffer_bytes: u64,
    pub(super) max_workgroups_per_dimension: u32,
    pub(crate) pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    pub(super) pending: Mutex<PendingWork>,
    pub(crate) pool: Arc<BufferPool>,
    pub(super) parameters: ParametersBuffer,
    /// Reason for which the device was lost, or `None`.
    loss_reason: Arc<Mutex<Option<String>>>,
    /// The first error because of which recorded work was not executed. The tensors that this work should have computed
    /// have unspecified contents, so every later call fails with this error.
    poison_reason: Mutex<Option<String>>,
    /// Errors that the platform has not reported yet. Browsers report errors after the call that caused them.
    pub(super) deferred_errors: Mutex<Vec<DeferredError>>,
}

impl Gpu {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: wgpu::AdapterInfo,
        is_cpu: bool,
        loss_reason: Arc<Mutex<Option<String>>>,
        guards: bool,
        mode: Mode,
    ) -> Result<Self> {
        let limits = device.limits();
        check_limits(&limits).map_err(|reason| device_error("open", format!("{}: {reason}", info.name)))?;
        let scopes = ErrorScopes::open(&device);
        let parameters = ParametersBuffer::new(&device);
        let deferred_errors = scopes.close("open")?;
        Ok(Gpu {
            // Kernels index elements with 32 bits.
            max_buffer_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32),
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            device,
            queue,
            info,
            is_cpu,
            mode,
            pipelines: Mutex::default(),
            pending: Mutex::default(),
            pool: Arc::new(BufferPool::new(guards)),
            parameters,
            loss_reason,
            poison_reason: Mutex::default(),
            deferred_errors: Mutex::new(deferred_errors),
        })
    }

    /// Layout of the bind group that holds a kernel's parameters.
    pub(crate) fn parameters_layout(&self) -> &wgpu::BindGroupLayout {
        &self.parameters.layout
    }

    /// Size in bytes of the largest buffer that a kernel can access.
    pub(crate) fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }

    /// Runs `work` in error scopes, so that the device errors that it causes are returned from here.
    pub(crate) fn with_error_scopes<T>(&self, op: &'static str, work: impl FnOnce() -> T) -> Result<T> {
        self.check_usable(op)?;
        let scopes = ErrorScopes::open(&self.device);
        let value = work();
        lock(&self.deferred_errors).extend(scopes.close(op)?);
        self.check_usable(op).map(|()| value)
    }

    /// Returns an error if the device is lost, or if an earlier error prevented recorded work from being executed.
    pub(crate) fn check_usable(&self, op: &'static str) -> Result<()> {
        if let Some(reason) = &*lock(&self.loss_reason) {
            return Err(device_error(op, format!("the device was lost: {reason}")));
        }
        match &*lock(&self.poison_reason) {
            Some(reason) => {
                Err(device_error(op, format!("an earlier error lost work, open the device again: {reason}")))
            }
            None => Ok(()),
        }
    }

    /// Makes every later call fail with `error`. Returns `error`.
    pub(crate) fn poison(&self, error: Error) -> Error {
        lock(&self.poison_reason).get_or_insert_with(|| error.to_string());
        error
    }

    /// Checks that `memory` belongs to this device. A buffer of another device would invalidate all work that is
    /// submitted with it.
    pub(crate) fn check_owner(&self, op: &'static str, memory: &DeviceMemory) -> Result<()> {
        match Arc::ptr_eq(&memory.pool, &self.pool) {
            true => Ok(()),
            false => Err(device_error(
                op,
                "the tensor or layer belongs to another `Wgpu`; use it with the `Wgpu` that created it",
            )),
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}, {:?})", self.info.name, self.mode)
    }
}
