//! Listing and selecting adapters.

use lstm_core::Result;

use super::device_error;

/// Error message if there is no adapter at all.
const NO_ADAPTER: &str = "found no adapter; on Debian, install one with: apt-get install mesa-vulkan-drivers";

/// Lists the adapters of this machine that the given graphics APIs provide.
#[cfg(not(target_arch = "wasm32"))]
pub async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::AdapterInfo> {
    create_instance(backends).enumerate_adapters(backends).await.iter().map(wgpu::Adapter::get_info).collect()
}

/// Creates a wgpu instance for the given graphics APIs.
pub(super) fn create_instance(backends: wgpu::Backends) -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() })
}

/// Selects the first adapter whose name contains `name`, ignoring case; without a name, the default adapter.
#[cfg(not(target_arch = "wasm32"))]
pub(super) async fn select_adapter(
    instance: &wgpu::Instance,
    backends: wgpu::Backends,
    name: Option<&str>,
    power: wgpu::PowerPreference,
) -> Result<wgpu::Adapter> {
    let Some(name) = name else { return default_adapter(instance, power).await };
    let adapters = instance.enumerate_adapters(backends).await;
    let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let lowercase_name = name.to_lowercase();
    let adapter = adapters.into_iter().find(|adapter| adapter.get_info().name.to_lowercase().contains(&lowercase_name));
    adapter.ok_or_else(|| match names.is_empty() {
        true => device_error("open", NO_ADAPTER),
        false => {
            device_error("open", format!("no adapter name contains `{name}`; available adapters: {}", names.join(", ")))
        }
    })
}

/// Selects the default adapter. Browsers do not name adapters, so a name is an error.
#[cfg(target_arch = "wasm32")]
pub(super) async fn select_adapter(
    instance: &wgpu::Instance,
    _: wgpu::Backends,
    name: Option<&str>,
    power: wgpu::PowerPreference,
) -> Result<wgpu::Adapter> {
    match name {
        Some(_) => Err(device_error("open", "in a browser, an adapter cannot be selected by name")),
        None => default_adapter(instance, power).await,
    }
}

/// Selects the adapter that the platform prefers.
async fn default_adapter(instance: &wgpu::Instance, power: wgpu::PowerPreference) -> Result<wgpu::Adapter> {
    let options = wgpu::RequestAdapterOptions { power_preference: power, ..Default::default() };
    instance.request_adapter(&options).await.map_err(|_| device_error("open", NO_ADAPTER))
}
