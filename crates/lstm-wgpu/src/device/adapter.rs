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

/// Parts of the names of adapters and drivers that compute on the CPU. They are needed because the type of an adapter
/// does not always tell, for example that of SwiftShader.
const SOFTWARE_NAMES: [&str; 5] = ["llvmpipe", "lavapipe", "softpipe", "swiftshader", "microsoft basic render"];

/// Whether an adapter computes on the CPU instead of a GPU, as llvmpipe, SwiftShader and WARP do. This is decided by
/// the type of the adapter, its name and the name of its driver.
pub fn is_software(info: &wgpu::AdapterInfo) -> bool {
    let names = [&info.name, &info.driver, &info.driver_info].map(|name| name.to_lowercase());
    let has_software_name = || SOFTWARE_NAMES.iter().any(|software| names.iter().any(|name| name.contains(software)));
    info.device_type == wgpu::DeviceType::Cpu || has_software_name()
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

#[cfg(test)]
mod tests {
    use wgpu::{AdapterInfo, Backend, DeviceType};

    use super::*;

    #[test]
    fn software_adapters_are_known_by_type_or_name() {
        let info = |device_type, name: &str, driver: &str| AdapterInfo {
            name: name.into(),
            driver: driver.into(),
            ..AdapterInfo::new(device_type, Backend::Vulkan)
        };
        for (device_type, name, driver) in [
            (DeviceType::Cpu, "llvmpipe (LLVM 19.1.7, 256 bits)", "llvmpipe"),
            (DeviceType::Cpu, "a name that nobody knows", ""),
            (DeviceType::Other, "Google SwiftShader", ""),
            (DeviceType::VirtualGpu, "SwiftShader Device (Subzero)", "SwiftShader driver"),
            (DeviceType::Other, "Microsoft Basic Render Driver", ""),
            (DeviceType::Other, "", "Lavapipe"),
        ] {
            assert!(is_software(&info(device_type, name, driver)), "{name}");
        }
        for (device_type, name, driver) in [
            (DeviceType::DiscreteGpu, "NVIDIA GeForce RTX 4090", "NVIDIA"),
            (DeviceType::IntegratedGpu, "Intel(R) UHD Graphics 620 (KBL GT2)", "Intel open-source Mesa driver"),
            (DeviceType::Other, "", ""),
        ] {
            assert!(!is_software(&info(device_type, name, driver)), "{name}");
        }
    }
}
