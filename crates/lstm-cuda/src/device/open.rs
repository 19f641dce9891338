//! Opening a device: loading the driver, checking the device and loading the kernels.

use std::{collections::HashMap, ffi::CString, path::PathBuf, sync::Mutex};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use lstm_core::{Error, Result};

use super::{
    CudaDriver, DeviceInner,
    context::{Context, Stream},
    device_error, driver_error,
};
use crate::{
    KernelLimits,
    kernels::{self, OLDEST_TF32_ARCHITECTURE, cache},
};

const OP: &str = "open";

/// The oldest architecture with the memory model that the kernels need.
const OLDEST_ARCHITECTURE: u32 = 70;

/// Loads and initializes the driver.
///
/// # Errors
/// [`Error::Device`] if there is no driver, or if the driver can't be initialized.
fn load_driver(backend: &str) -> Result<()> {
    // SAFETY: this only opens the library. It is checked first because cudarc panics if the library is missing.
    if !unsafe { sys::is_culib_present() } {
        return Err(device_error(
            backend,
            OP,
            "no NVIDIA driver: the dynamic loader does not find libcuda.so (nvcuda.dll)",
        ));
    }
    result::init().map_err(|e| driver_error(backend, OP, "the driver can't be initialized (cuInit)", e))
}

/// Returns the names of all devices. Errors name `backend` as the backend.
pub(crate) fn devices(backend: &str) -> Result<Vec<String>> {
    load_driver(backend)?;
    let call_error = |call: &'static str| move |e| driver_error(backend, OP, call, e);
    let count = result::device::get_count().map_err(call_error("cuDeviceGetCount"))?;
    let device_name = |index| {
        let device = result::device::get(index).map_err(call_error("cuDeviceGet"))?;
        result::device::get_name(device).map_err(call_error("cuDeviceGetName"))
    };
    (0..count).map(device_name).collect()
}

impl CudaDriver {
    /// Opens a device by its number. With `allow_tf32`, the device must have tensor cores that support TF32.
    pub(crate) fn open(ordinal: usize, allow_tf32: bool, limits: KernelLimits) -> Result<Self> {
        let backend = CudaDriver::backend_name(allow_tf32);
        if limits.max_multiprocessors == Some(0) {
            return Err(device_error(backend, OP, "expected a limit of at least 1 multiprocessor, got 0"));
        }
        let call_error = |call: &str, e| driver_error(backend, OP, call, e);
        let devices = devices(backend)?;
        let Some(name) = devices.get(ordinal) else {
            let names = if devices.is_empty() { "none".to_owned() } else { devices.join(", ") };
            let reason = format!("there is no device {ordinal}; found {}: {names}", devices.len());
            return Err(device_error(backend, OP, reason));
        };
        let device = result::device::get(ordinal as i32).map_err(|e| call_error("cuDeviceGet", e))?;
        let get_attribute = |attribute| {
            // SAFETY: the device handle comes from the driver.
            unsafe { result::device::get_attribute(device, attribute) }
                .map_err(|e| call_error("cuDeviceGetAttribute", e))
        };
        let get_u32_attribute = |attribute| Ok::<_, Error>(u32::try_from(get_attribute(attribute)?).unwrap_or(0));
        use sys::CUdevice_attribute as A;
        let architecture = 10 * get_u32_attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + get_u32_attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if architecture < OLDEST_ARCHITECTURE {
            let reason = format!("{name} is sm_{architecture}; the kernels need sm_{OLDEST_ARCHITECTURE} or later");
            return Err(device_error(backend, OP, reason));
        }
        if allow_tf32 && architecture < OLDEST_TF32_ARCHITECTURE {
            let reason =
                format!("{name} is sm_{architecture}; tensor cores support TF32 from sm_{OLDEST_TF32_ARCHITECTURE} on");
            return Err(device_error(backend, OP, reason));
        }
        let max_shared_bytes = get_attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = get_u32_attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let multiprocessors = limits.max_multiprocessors.map_or(multiprocessors, |limit| multiprocessors.min(limit));
        let cooperative_launches =
            get_attribute(A::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0 && limits.allow_persistent;
        let reads_pageable_memory = get_attribute(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)? != 0;
        let has_memory_pools = get_attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        let context = Context::new(device).map_err(|e| call_error("cuDevicePrimaryCtxRetain", e))?;
        context.bind().map_err(|e| call_error("cuCtxSetCurrent", e))?;
        if has_memory_pools {
            retain_freed_memory(&context).map_err(|(call, e)| call_error(call, e))?;
        }
        let stream = Stream::new(&context).map_err(|e| call_error("cuStreamCreate", e))?;
        let capture_stream = Stream::new(&context).map_err(|e| call_error("cuStreamCreate", e))?;

        let module = load_module(backend, architecture)?;
        // From here on, dropping `inner` unloads the module.
        let mut inner = DeviceInner {
            label: format!("{name}, sm_{architecture}"),
            context,
            stream,
            capture_stream: Mutex::new(capture_stream),
            module,
            functions: HashMap::new(),
            multiprocessors,
            cooperative_launches,
            max_shared_bytes: u32::try_from(max_shared_bytes).unwrap_or(0),
            allow_tf32,
            has_memory_pools,
            reads_pageable_memory,
        };
        for name in kernels::KERNEL_NAMES {
            let uses_clusters = kernels::uses_clusters(name);
            if uses_clusters && !limits.allow_clusters {
                continue;
            }
            let symbol = CString::new(name).map_err(|e| device_error(backend, OP, e))?;
            // SAFETY: the module is loaded.
            let function = match unsafe { result::module::get_function(module, symbol) } {
                // `resident_clusters` returns 0 for a missing kernel, and TF32 mode was rejected above.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) if kernels::is_optional(name) => continue,
                found => found.map_err(|e| call_error(&format!("kernel {name}"), e))?,
            };
            use sys::CUfunction_attribute as F;
            let set_attribute = |attribute, value| {
                // SAFETY: the function's module is loaded.
                let set_result = unsafe { result::function::set_function_attribute(function, attribute, value) };
                set_result.map_err(|e| call_error(&format!("{attribute:?} of kernel {name}"), e))
            };
            // Launches with more than 48 KiB of shared memory must be allowed.
            if kernels::is_persistent(name) || uses_clusters {
                set_attribute(F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, max_shared_bytes)?;
            }
            if uses_clusters {
                // Clusters of more than 8 blocks, which some devices support, must be allowed.
                set_attribute(F::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
            }
            inner.functions.insert(name, function);
        }
        Ok(CudaDriver(inner.into()))
    }

    /// The device's name and architecture.
    pub(crate) fn label(&self) -> &str {
        &self.0.label
    }
}

/// Makes the device's memory pool keep freed memory for later allocations of this process. By default the driver unmaps
/// freed memory whenever the process waits for the device, and each training step would map memory again. An error is
/// paired with the name of the driver function that failed.
fn retain_freed_memory(context: &Context) -> Result<(), (&'static str, DriverError)> {
    let mut bytes = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device handle is valid; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.device());
        let pool = pool.map_err(|e| ("cuDeviceGetDefaultMemPool", e))?;
        let set_result = result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast());
        set_result.map_err(|e| ("cuMemPoolSetAttribute", e))
    }
}

/// Loads the kernels for an architecture: prebuilt kernels if there are any, else cached kernels, else newly compiled
/// kernels.
fn load_module(backend: &str, architecture: u32) -> Result<sys::CUmodule> {
    let mut version = 0;
    // SAFETY: the pointer is to this variable.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    status.map_err(|e| driver_error(backend, OP, "cuDriverGetVersion", e))?;
    let load = |image: &[u8]| {
        // SAFETY: the image is a cubin, or PTX that ends in a zero byte.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| {
            // A driver need not accept the output of a newer compiler, so the error names both versions.
            let call_and_driver_version =
                format!("cuModuleLoadData, with a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
            let nvrtc_version =
                kernels::nvrtc_capabilities().map(|((major, minor), _)| format!(" and NVRTC {major}.{minor}"));
            driver_error(backend, OP, &(call_and_driver_version + &nvrtc_version.unwrap_or_default()), e)
        })
    };
    let key = kernels::image_key(architecture);
    if let Some(dir) = std::env::var_os("LSTM_CUDA_KERNELS") {
        let path = kernels::prebuilt_path(&PathBuf::from(dir), architecture);
        if path.exists() {
            let invalid_image_error = || {
                let reason = format!("{} is damaged, or was built from other sources or options", path.display());
                device_error(backend, OP, reason)
            };
            return load(&cache::read(&path, &key).ok_or_else(invalid_image_error)?);
        }
    }
    let key = format!("driver {version}; {key}");
    cache::load_or_compile(cache::dir().as_deref(), &key, load, || match kernels::compile(architecture) {
        // Errors name the backend that is opened, which may be `cuda-tf32`.
        Err(Error::Device { op, reason, .. }) => Err(device_error(backend, op, reason)),
        compiled => Ok(compiled?.image),
    })
}
