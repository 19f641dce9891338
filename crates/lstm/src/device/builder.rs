//! Choosing and opening a device.

use lstm_core::{Arithmetic, Error, Ops, Result};

use super::{Device, Skipped};
use crate::backends::{BACKENDS, BackendInfo};

/// The backend name that stands for an automatic choice, which prefers a GPU.
const AUTO: &str = "auto";

/// Chooses and opens a device; made by [`Device::builder`].
///
/// Without [`backend`](Self::backend) the choice is automatic. It takes the first backend in this build that opens: of
/// `cpu`, `cuda`, `wgpu`, or with [`prefer_gpu`](Self::prefer_gpu) of `cuda`, `wgpu`, `cpu`. It never takes a device
/// that is not bit-exact. It takes a wgpu adapter that computes on the CPU only if this is
/// [allowed](Self::allow_software). An [adapter name](Self::adapter_name) or an [ordinal](Self::ordinal) names a device, so
/// that the choice is among the backends that have this option. [`Device::skipped`] lists the backends that were tried
/// and not taken. An option applies to the backends that have it; it is an error to name a backend and set an option that
/// the backend does not have.
///
/// ```
/// use lstm::Device;
/// match Device::builder().backend("cuda").ordinal(1).open() {
///     Ok(device) => println!("{device:?}"),
///     Err(error) => println!("{error}"), // for example that the build has no CUDA, or the machine no driver
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct DeviceBuilder {
    backend: Option<String>,
    prefer_gpu: bool,
    allow_software: Option<bool>,
    threads: Option<usize>,
    adapter_name: Option<String>,
    ordinal: Option<usize>,
    allow_tf32: Option<bool>,
}

impl Device {
    /// Opens a device by the name of its backend: `cpu`, `wgpu`, `cuda`, `cuda-tf32`, which is not bit-exact, or
    /// `auto`, an automatic choice that prefers a GPU. The same as `Device::builder().backend(name).open()`.
    /// [`BACKENDS`] lists the names.
    ///
    /// # Errors
    /// As for [`DeviceBuilder::open_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(name: &str) -> Result<Device> {
        Device::builder().backend(name).open()
    }

    /// Returns a builder that chooses a device and sets options.
    pub fn builder() -> DeviceBuilder {
        DeviceBuilder::default()
    }
}

impl DeviceBuilder {
    /// Sets the backend by its name, as [`Device::open`] takes it. A named wgpu backend may open an adapter that
    /// computes on the CPU. Default: an automatic choice that prefers the CPU.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.backend = Some(name.into());
        self
    }

    /// Makes the automatic choice prefer a GPU. Default: it prefers the CPU, which starts at once and is the fastest
    /// for small models and single sequences.
    pub fn prefer_gpu(mut self) -> Self {
        self.prefer_gpu = true;
        self
    }

    /// Sets whether wgpu's adapter may be one that computes on the CPU, such as llvmpipe. Default: true if the backend
    /// is named, false in an automatic choice.
    pub fn allow_software(mut self, allow: bool) -> Self {
        self.allow_software = Some(allow);
        self
    }

    /// Sets the maximum number of threads of the cpu backend, from 1 to 1024. Default: the number of cores.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Selects wgpu's first adapter whose name contains `name`, ignoring case. Default: the fastest one.
    pub fn adapter_name(mut self, name: impl Into<String>) -> Self {
        self.adapter_name = Some(name.into());
        self
    }

    /// Sets the number of the CUDA device, counted from 0. Default: 0.
    pub fn ordinal(mut self, ordinal: usize) -> Self {
        self.ordinal = Some(ordinal);
        self
    }

    /// Sets whether products of the cuda backend may be computed in TF32, which is faster but not bit-exact. Default:
    /// only if the backend is named `cuda-tf32`.
    pub fn allow_tf32(mut self, allow: bool) -> Self {
        self.allow_tf32 = Some(allow);
        self
    }

    /// Opens the device. Blocks until it is open; in a browser, use [`open_async`](Self::open_async).
    ///
    /// # Errors
    /// As for [`open_async`](Self::open_async).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(self) -> Result<Device> {
        pollster::block_on(self.open_async())
    }

    /// Opens the device without blocking the thread.
    ///
    /// # Errors
    /// - [`Error::Config`] if there is no backend of this name, if an option was set that the named backend does not
    ///   have, or if the value of an option is not valid.
    /// - [`Error::Device`] if the named backend is not in this build or has no usable device, or if the automatic
    ///   choice found no device. The message has the reason for each backend.
    pub async fn open_async(self) -> Result<Device> {
        match self.named_backend()? {
            Some(info) => self.open_backend(info).await,
            None => self.choose_device().await,
        }
    }

    /// The name of the backend that the caller named; `None` for an automatic choice.
    fn backend_name(&self) -> Option<&str> {
        self.backend.as_deref().filter(|&name| name != AUTO)
    }

    /// Returns the backend that the caller named, after a check that it has all options that are set; `None` for an
    /// automatic choice.
    fn named_backend(&self) -> Result<Option<&'static BackendInfo>> {
        let Some(name) = self.backend_name() else {
            if self.allow_tf32 == Some(true) {
                let reason = "an automatic choice takes no device that is not bit-exact; name the backend: cuda-tf32";
                return Err(Error::config("allow_tf32", reason));
            }
            return Ok(None);
        };
        let names = || BACKENDS.iter().map(|info| info.name).chain([AUTO]).collect::<Vec<_>>().join(", ");
        let info = BackendInfo::find(name);
        let info =
            info.ok_or_else(|| Error::config("backend", format!("expected one of {}, got `{name}`", names())))?;
        for (option, is_set) in [
            ("threads", self.threads.is_some()),
            ("adapter_name", self.adapter_name.is_some()),
            ("allow_software", self.allow_software.is_some()),
            ("ordinal", self.ordinal.is_some()),
            ("allow_tf32", self.allow_tf32.is_some()),
        ] {
            if is_set && !info.has_option(option) {
                let names_with_option = BACKENDS.iter().filter(|info| info.has_option(option)).map(|info| info.name);
                let names_with_option = names_with_option.collect::<Vec<_>>().join(" and ");
                return Err(Error::config(option, format!("only {names_with_option} has this option, not {name}")));
            }
        }
        if self.prefer_gpu {
            let reason = format!("the backend {name} is named, so there is nothing to choose; name `{AUTO}` or none");
            return Err(Error::config("prefer_gpu", reason));
        }
        if !info.is_default && self.allow_tf32 == Some(false) {
            let reason = format!("false contradicts the backend {name}; name the backend cuda");
            return Err(Error::config("allow_tf32", reason));
        }
        Ok(Some(info))
    }

    /// Makes the automatic choice: opens the first backend that has a device, and skips devices that are not bit-exact.
    async fn choose_device(self) -> Result<Device> {
        // Where a GPU is taken, nothing else would check the number.
        #[cfg(feature = "cpu")]
        self.threads.map_or(Ok(()), lstm_cpu::CpuBuilder::check_threads)?;
        let backend_order = match self.prefer_gpu || self.backend.is_some() {
            true => ["cuda", "wgpu", "cpu"],
            false => ["cpu", "cuda", "wgpu"],
        };
        let mut skipped = Vec::new();
        // An option that names a device leaves only the backend that has it.
        let has_named_device = |info: &&BackendInfo| {
            (self.adapter_name.is_none() || info.has_option("adapter_name"))
                && (self.ordinal.is_none() || info.has_option("ordinal"))
        };
        let candidates: Vec<_> =
            backend_order.into_iter().filter_map(BackendInfo::find).filter(has_named_device).collect();
        if candidates.is_empty() {
            let reason =
                "an adapter name is for wgpu and an ordinal is for cuda, so no backend has both; set one of them";
            return Err(Error::config("ordinal", reason));
        }
        for info in candidates {
            match self.open_backend(info).await {
                Ok(mut device) => match device.arithmetic() {
                    Arithmetic::Inexact(what) => {
                        let reason = format!("not bit-exact: {what}; to use it, name the backend {}", info.name);
                        skipped.push(Skipped::new(info.name, reason));
                    }
                    _ => {
                        device.set_skipped(skipped);
                        return Ok(device);
                    }
                },
                // Another device would hide that the caller's value is wrong.
                Err(error @ Error::Config { .. }) => return Err(error),
                Err(error) => skipped.push(Skipped::from_error(info.name, error)),
            }
        }
        let reasons = skipped.iter().map(Skipped::to_string).collect::<Vec<_>>().join("; ");
        Err(open_error("any", format!("no device is available: {reasons}")))
    }

    /// Opens the device of one backend.
    async fn open_backend(&self, info: &BackendInfo) -> Result<Device> {
        match info.feature {
            #[cfg(feature = "cpu")]
            "cpu" => match self.threads {
                Some(threads) => Ok(lstm_cpu::Cpu::builder().threads(threads).build()?.into()),
                None => Ok(lstm_cpu::Cpu::new().into()),
            },
            #[cfg(feature = "wgpu")]
            "wgpu" => {
                let allow_software = self.allow_software.unwrap_or(self.backend_name().is_some());
                let mut builder = lstm_wgpu::Wgpu::builder().allow_software(allow_software);
                if let Some(name) = &self.adapter_name {
                    builder = builder.adapter_name(name);
                }
                Ok(builder.build_async().await?.into())
            }
            #[cfg(feature = "cuda")]
            "cuda" => {
                let builder = lstm_cuda::Cuda::builder().ordinal(self.ordinal.unwrap_or(0));
                Ok(builder.allow_tf32(self.allow_tf32.unwrap_or(!info.is_default)).build()?.into())
            }
            feature => {
                let reason = format!("not in this build; build with the feature `{feature}` of the crate `lstm`");
                Err(open_error(info.name, reason))
            }
        }
    }
}

fn open_error(backend: &str, reason: String) -> Error {
    Error::Device { backend: backend.to_owned(), op: "open", reason }
}
