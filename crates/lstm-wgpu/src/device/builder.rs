//! Options for opening an adapter.

use std::sync::{Arc, Mutex};

use lstm_core::Result;

use super::{
    adapter::{create_instance, is_software, select_adapter},
    device_error,
    mode::Mode,
    probe,
};
use crate::{backend::Wgpu, memory::lock};

/// Selects an adapter and how to compute on it. Created by [`Wgpu::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct WgpuBuilder {
    adapter_name: Option<String>,
    power_preference: wgpu::PowerPreference,
    backends: wgpu::Backends,
    limits: Option<wgpu::Limits>,
    allow_software: bool,
    compute: ComputeOptions,
}

/// Options for how to compute. They also apply to a device that the caller opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ComputeOptions {
    pub(crate) mode: Option<Mode>,
    pub(crate) allow_inexact: bool,
    pub(crate) treat_as_cpu: Option<bool>,
    pub(crate) guards: bool,
}

impl Default for WgpuBuilder {
    fn default() -> Self {
        WgpuBuilder {
            adapter_name: None,
            power_preference: wgpu::PowerPreference::HighPerformance,
            backends: wgpu::Backends::PRIMARY,
            limits: None,
            allow_software: true,
            compute: ComputeOptions::default(),
        }
    }
}

impl WgpuBuilder {
    /// Selects the first adapter whose name contains `name`, ignoring case. Default: the adapter that the platform
    /// prefers. Not available in browsers.
    pub fn adapter_name(mut self, name: impl Into<String>) -> Self {
        self.adapter_name = Some(name.into());
        self
    }

    /// Sets whether the platform prefers a fast or a low-power adapter. Default: `HighPerformance`.
    pub fn power_preference(mut self, power: wgpu::PowerPreference) -> Self {
        self.power_preference = power;
        self
    }

    /// Sets the graphics APIs to search for adapters. Default: Vulkan, Metal, DirectX 12 and, in a browser, WebGPU.
    pub fn backends(mut self, backends: wgpu::Backends) -> Self {
        self.backends = backends;
        self
    }

    /// Sets the limits to request for the device. Default: the limits of the adapter.
    pub fn limits(mut self, limits: wgpu::Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Sets whether an adapter may be one that computes on the CPU; see [`is_software`]. If not, opening such an adapter is
    /// an error, before the tests of its arithmetic, which take seconds there. Default: `true`.
    pub fn allow_software(mut self, allow: bool) -> Self {
        self.allow_software = allow;
        self
    }

    /// Sets how to compute. Opening the adapter then tests this mode alone, and fails if it is not bit-exact. Default:
    /// the fastest mode that is bit-exact in the tests.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.compute.mode = Some(mode);
        self
    }

    /// Sets whether an adapter is accepted if no mode is bit-exact on it. Then
    /// [`arithmetic`](lstm_core::Ops::arithmetic) returns `Inexact`. Default: `false`.
    pub fn allow_inexact(mut self, allow: bool) -> Self {
        self.compute.allow_inexact = allow;
        self
    }

    /// Sets which kernels to use: if `cpu`, the kernels for adapters that run on a CPU, which use no workgroup memory
    /// and few barriers, else the kernels for GPUs. Both give bit-identical results. Default: determined by the type of
    /// the adapter.
    pub fn treat_as_cpu(mut self, cpu: bool) -> Self {
        self.compute.treat_as_cpu = Some(cpu);
        self
    }

    /// Sets whether guard words follow every tensor in memory. No kernel may write them, and they read as NaN, so
    /// [`Wgpu::check_guards`] detects kernels that access memory out of bounds. This is for tests: it is slow, and the
    /// memory of dropped tensors is not reused until it was checked. Default: `false`.
    pub fn guards(mut self, guards: bool) -> Self {
        self.compute.guards = guards;
        self
    }

    /// Opens the selected adapter, and tests in which mode its results are bit-exact. Blocks until the adapter is open.
    /// In a browser, use [`build_async`](Self::build_async).
    ///
    /// # Errors
    /// See [`build_async`](Self::build_async).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn build(self) -> Result<Wgpu> {
        pollster::block_on(self.build_async())
    }

    /// Opens the selected adapter, and tests in which mode its results are bit-exact.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if there is no such adapter, if it computes on the CPU and this is not
    /// [allowed](Self::allow_software), if it cannot be opened, or if its arithmetic is not bit-exact.
    pub async fn build_async(self) -> Result<Wgpu> {
        let instance = create_instance(self.backends);
        let adapter =
            select_adapter(&instance, self.backends, self.adapter_name.as_deref(), self.power_preference).await?;
        let info = adapter.get_info();
        if !self.allow_software && is_software(&info) {
            let reason =
                format!("{} computes on the CPU, not on a GPU; to use it, set `allow_software(true)`", info.name);
            return Err(device_error("open", reason));
        }
        let features = adapter.features() & optional_features(&info);
        let experimental_features = match features.contains(wgpu::Features::PASSTHROUGH_SHADERS) {
            // SAFETY: passthrough is the only experimental feature that is requested. It is used in one place, on
            // shaders that naga validated.
            true => unsafe { wgpu::ExperimentalFeatures::enabled() },
            false => wgpu::ExperimentalFeatures::disabled(),
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("lstm"),
                required_features: features,
                required_limits: self.limits.clone().unwrap_or_else(|| adapter.limits()),
                experimental_features,
                memory_hints: wgpu::MemoryHints::Performance,
                trace: wgpu::Trace::Off,
            })
            .await
            .map_err(|e| device_error("open", format!("{}: {e}", info.name)))?;
        let loss_reason = Arc::new(Mutex::new(None));
        let callback_loss_reason = loss_reason.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&callback_loss_reason) = Some(format!("{reason:?}: {message}"));
        });
        self.probe_device(info, device, queue, loss_reason).await
    }

    /// Uses a device that the caller opened, with the features that it was opened with. Tests in which mode its results
    /// are bit-exact.
    ///
    /// The features `SHADER_F64` and `SHADER_INT64` allow emulating `fma` in f64. On Vulkan, `PASSTHROUGH_SHADERS`
    /// allows shaders that forbid contraction. Of this builder, only `mode`, `allow_inexact`, `treat_as_cpu` and
    /// `guards` may be set.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if the device's arithmetic is not bit-exact, or if an adapter name,
    /// power preference, graphics API, limit or `allow_software(false)` was set on this builder.
    pub async fn from_device(self, adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Wgpu> {
        let default_builder = WgpuBuilder::default();
        let adapter_options =
            (&self.adapter_name, self.power_preference, self.backends, &self.limits, self.allow_software);
        if adapter_options
            != (
                &default_builder.adapter_name,
                default_builder.power_preference,
                default_builder.backends,
                &default_builder.limits,
                default_builder.allow_software,
            )
        {
            let reason =
                "adapter name, power preference, backends, limits and software cannot be set for a device that is open";
            return Err(device_error("open", reason));
        }
        self.probe_device(adapter.get_info(), device, queue, Arc::default()).await
    }

    async fn probe_device(
        self,
        info: wgpu::AdapterInfo,
        device: wgpu::Device,
        queue: wgpu::Queue,
        loss_reason: Arc<Mutex<Option<String>>>,
    ) -> Result<Wgpu> {
        let (gpu, probe) = probe::select_mode(info, device, queue, loss_reason, self.compute).await?;
        Ok(Wgpu::from_parts(gpu, probe))
    }
}

/// Optional features, which are requested if the adapter supports them.
fn optional_features(info: &wgpu::AdapterInfo) -> wgpu::Features {
    let emulation_features = wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64;
    match info.backend {
        wgpu::Backend::Vulkan => emulation_features | wgpu::Features::PASSTHROUGH_SHADERS,
        _ => emulation_features,
    }
}
