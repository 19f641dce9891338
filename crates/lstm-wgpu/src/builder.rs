//! Choosing an adapter and opening it.

use std::sync::{Arc, Mutex};

use lstm_core::Result;

use crate::{backend::Wgpu, errors::device_error, pool::lock, probe, shader::Mode};

/// Says what is missing where there is nothing to open.
const NO_ADAPTER: &str = "no adapter; on Debian: apt-get install mesa-vulkan-drivers";

/// Chooses an adapter and what is expected of it; from [`Wgpu::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct WgpuBuilder {
    name: Option<String>,
    power: wgpu::PowerPreference,
    backends: wgpu::Backends,
    limits: Option<wgpu::Limits>,
    wishes: Wishes,
}

/// What holds for any device, whoever opened it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) mode: Option<Mode>,
    pub(crate) allow_inexact: bool,
    pub(crate) treat_as_cpu: Option<bool>,
    pub(crate) guards: bool,
}

impl Default for WgpuBuilder {
    fn default() -> Self {
        WgpuBuilder {
            name: None,
            power: wgpu::PowerPreference::HighPerformance,
            backends: wgpu::Backends::PRIMARY,
            limits: None,
            wishes: Wishes::default(),
        }
    }
}

impl WgpuBuilder {
    /// The first adapter whose name contains this, in any case. Default: the platform's choice by power.
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Which adapter the platform shall choose. Default: `HighPerformance`.
    pub fn power(mut self, power: wgpu::PowerPreference) -> Self {
        self.power = power;
        self
    }

    /// The interfaces to look at. Default: Vulkan, Metal, DirectX 12 and, in a browser, WebGPU.
    pub fn backends(mut self, backends: wgpu::Backends) -> Self {
        self.backends = backends;
        self
    }

    /// Limits to open the device with. Default: all that the adapter has.
    pub fn limits(mut self, limits: wgpu::Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// How to compute, instead of the first way that the probe finds exact. The probe must still find it so.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.wishes.mode = Some(mode);
        self
    }

    /// Takes an adapter also if no way to compute on it gives the specified bits;
    /// [`arithmetic`](lstm_core::Backend::arithmetic) then says so. Default: no.
    pub fn allow_inexact(mut self, allow: bool) -> Self {
        self.wishes.allow_inexact = allow;
        self
    }

    /// Whether to use the kernels for adapters that are a CPU, which wait for no one, or those for GPUs, which share work
    /// and memory in workgroups. The bits are the same. Default: by the adapter's type.
    pub fn treat_as_cpu(mut self, cpu: bool) -> Self {
        self.wishes.treat_as_cpu = Some(cpu);
        self
    }

    /// Whether every tensor gets guards: words beyond it that no kernel may write, and in which what is read is a NaN. For
    /// tests: slower, and memory is not used again before [`Wgpu::check_guards`] has looked at it. Default: no.
    pub fn guards(mut self, guards: bool) -> Self {
        self.wishes.guards = guards;
        self
    }

    /// Opens the adapter and probes it.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device): there is no such adapter, it can't be opened, or its arithmetic is not
    /// the specified one.
    pub async fn build(self) -> Result<Wgpu> {
        let instance = instance(self.backends);
        let adapter = self.choose(&instance).await?;
        let info = adapter.get_info();
        let features = adapter.features() & wanted_features(&info);
        let experimental = match features.contains(wgpu::Features::PASSTHROUGH_SHADERS) {
            // SAFETY: of the experimental features only passthrough is asked for, and it is used in one place, on shaders
            // that naga validated.
            true => unsafe { wgpu::ExperimentalFeatures::enabled() },
            false => wgpu::ExperimentalFeatures::disabled(),
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("lstm"),
                required_features: features,
                required_limits: self.limits.clone().unwrap_or_else(|| adapter.limits()),
                experimental_features: experimental,
                memory_hints: wgpu::MemoryHints::Performance,
                trace: wgpu::Trace::Off,
            })
            .await
            .map_err(|e| device_error("open", format!("{}: {e}", info.name)))?;
        let lost = Arc::new(Mutex::new(None));
        let tell = lost.clone();
        device.set_device_lost_callback(move |reason, why| {
            *lock(&tell) = Some(format!("{reason:?}: {why}"));
        });
        self.finish(info, device, queue, lost).await
    }

    /// [`build`](Self::build), waiting.
    ///
    /// # Errors
    /// As `build`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking(self) -> Result<Wgpu> {
        pollster::block_on(self.build())
    }

    /// Takes a device that the program has, and probes it. Of this builder, `mode`,
    /// `allow_inexact`, `treat_as_cpu` and `guards` count. The device
    /// is used with the features that it has: `SHADER_F64` and `SHADER_INT64` allow one emulation of fma,
    /// `PASSTHROUGH_SHADERS` a way to forbid contraction.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if its arithmetic is not the specified one, or if this builder chooses what
    /// was chosen when the device was opened: an adapter, power, interfaces or limits.
    pub async fn from_device(self, adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Wgpu> {
        let default = WgpuBuilder::default();
        let chosen = (&self.name, self.power, self.backends, &self.limits);
        if chosen != (&default.name, default.power, default.backends, &default.limits) {
            let why = "an adapter, power, interfaces and limits can't be chosen for a device that is open";
            return Err(device_error("open", why));
        }
        self.finish(adapter.get_info(), device, queue, Arc::default()).await
    }

    async fn finish(
        self,
        info: wgpu::AdapterInfo,
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: Arc<Mutex<Option<String>>>,
    ) -> Result<Wgpu> {
        let (gpu, probe) = probe::choose(info, device, queue, lost, self.wishes).await?;
        Ok(Wgpu::from_parts(gpu, probe))
    }

    #[cfg(not(target_arch = "wasm32"))]
    async fn choose(&self, instance: &wgpu::Instance) -> Result<wgpu::Adapter> {
        let Some(name) = &self.name else { return self.platform_s_choice(instance).await };
        let adapters = instance.enumerate_adapters(self.backends).await;
        let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let wanted = name.to_lowercase();
        let found = adapters.into_iter().find(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted));
        found.ok_or_else(|| match names.is_empty() {
            true => device_error("open", NO_ADAPTER),
            false => device_error("open", format!("no adapter is called `{name}`; there are: {}", names.join(", "))),
        })
    }

    /// Browsers name no adapters.
    #[cfg(target_arch = "wasm32")]
    async fn choose(&self, instance: &wgpu::Instance) -> Result<wgpu::Adapter> {
        match &self.name {
            Some(_) => Err(device_error("open", "a browser's adapters can't be chosen by name")),
            None => self.platform_s_choice(instance).await,
        }
    }

    async fn platform_s_choice(&self, instance: &wgpu::Instance) -> Result<wgpu::Adapter> {
        let options = wgpu::RequestAdapterOptions { power_preference: self.power, ..Default::default() };
        instance.request_adapter(&options).await.map_err(|_| device_error("open", NO_ADAPTER))
    }
}

fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() })
}

fn wanted_features(info: &wgpu::AdapterInfo) -> wgpu::Features {
    let emulation = wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64;
    match info.backend {
        wgpu::Backend::Vulkan => emulation | wgpu::Features::PASSTHROUGH_SHADERS,
        _ => emulation,
    }
}

/// The adapters of this machine.
#[cfg(not(target_arch = "wasm32"))]
pub async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::AdapterInfo> {
    instance(backends).enumerate_adapters(backends).await.iter().map(wgpu::Adapter::get_info).collect()
}
