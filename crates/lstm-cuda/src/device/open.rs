//! Opening a device: loading the driver, checking the device and loading the kernels.

use std::{collections::HashMap, ffi::CString, path::PathBuf, sync::Mutex};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use lstm_core::{Error, Result};

use super::{
    Device, Inner,
    context::{Context, Stream},
    device_error, driver_error,
};
use crate::{
    KernelLimits,
    kernels::{self, OLDEST_TF32, cache},
};

const OP: &str = "open";

/// The oldest architecture with the memory model that the kernels need.
const OLDEST: u32 = 70;

/// Loads and initializes the driver.
///
/// # Errors
/// [`Error::Device`] if there is no driver, or it can't be initialized.
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

/// The names of all devices. Errors name the backend `backend`.
pub(crate) fn devices(backend: &str) -> Result<Vec<String>> {
    load_driver(backend)?;
    let failed = |what: &'static str| move |e| driver_error(backend, OP, what, e);
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    let name = |n| {
        let device = result::device::get(n).map_err(failed("cuDeviceGet"))?;
        result::device::get_name(device).map_err(failed("cuDeviceGetName"))
    };
    (0..count).map(name).collect()
}

impl Device {
    /// Opens a device by its number. With `allow_tf32`, it must have tensor cores that support TF32.
    pub(crate) fn open(ordinal: usize, allow_tf32: bool, limits: KernelLimits) -> Result<Self> {
        let backend = Device::backend_name(allow_tf32);
        if limits.multiprocessors == Some(0) {
            return Err(device_error(backend, OP, "expected a limit of at least 1 multiprocessor, got 0"));
        }
        let failed = |what: &str, e| driver_error(backend, OP, what, e);
        let devices = devices(backend)?;
        let Some(name) = devices.get(ordinal) else {
            let names = if devices.is_empty() { "none".to_owned() } else { devices.join(", ") };
            let reason = format!("there is no device {ordinal}; found {}: {names}", devices.len());
            return Err(device_error(backend, OP, reason));
        };
        let device = result::device::get(ordinal as i32).map_err(|e| failed("cuDeviceGet", e))?;
        let get = |attribute| {
            // SAFETY: the device handle comes from the driver.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(|e| failed("cuDeviceGetAttribute", e))
        };
        let get_u32 = |attribute| Ok::<_, Error>(u32::try_from(get(attribute)?).unwrap_or(0));
        use sys::CUdevice_attribute as A;
        let architecture = 10 * get_u32(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + get_u32(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if architecture < OLDEST {
            let reason = format!("{name} is sm_{architecture}; the kernels need sm_{OLDEST} or later");
            return Err(device_error(backend, OP, reason));
        }
        if allow_tf32 && architecture < OLDEST_TF32 {
            let reason = format!("{name} is sm_{architecture}; tensor cores support TF32 from sm_{OLDEST_TF32} on");
            return Err(device_error(backend, OP, reason));
        }
        let max_shared_bytes = get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = get_u32(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let multiprocessors = limits.multiprocessors.map_or(multiprocessors, |limit| multiprocessors.min(limit));
        let cooperative = get(A::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0 && limits.persistent;
        let reads_pageable_memory = get(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)? != 0;
        let has_memory_pools = get(A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        let context = Context::new(device).map_err(|e| failed("cuDevicePrimaryCtxRetain", e))?;
        context.bind().map_err(|e| failed("cuCtxSetCurrent", e))?;
        if has_memory_pools {
            retain_freed_memory(&context).map_err(|(what, e)| failed(what, e))?;
        }
        let stream = Stream::new(&context).map_err(|e| failed("cuStreamCreate", e))?;
        let capture_stream = Stream::new(&context).map_err(|e| failed("cuStreamCreate", e))?;

        let module = load_module(backend, architecture)?;
        // From here on, dropping `inner` unloads the module.
        let mut inner = Inner {
            label: format!("{name}, sm_{architecture}"),
            context,
            stream,
            capture_stream: Mutex::new(capture_stream),
            module,
            functions: HashMap::new(),
            multiprocessors,
            cooperative,
            max_shared_bytes: u32::try_from(max_shared_bytes).unwrap_or(0),
            allow_tf32,
            has_memory_pools,
            reads_pageable_memory,
        };
        for name in kernels::NAMES {
            let clusters = kernels::uses_clusters(name);
            if clusters && !limits.clusters {
                continue;
            }
            let symbol = CString::new(name).map_err(|e| device_error(backend, OP, e))?;
            // SAFETY: the module is loaded.
            let function = match unsafe { result::module::get_function(module, symbol) } {
                // `resident_clusters` returns 0 for a missing kernel, and TF32 mode was rejected above.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) if kernels::is_optional(name) => continue,
                found => found.map_err(|e| failed(&format!("kernel {name}"), e))?,
            };
            use sys::CUfunction_attribute as F;
            let set = |attribute, value| {
                // SAFETY: the function's module is loaded.
                let set = unsafe { result::function::set_function_attribute(function, attribute, value) };
                set.map_err(|e| failed(&format!("{attribute:?} of kernel {name}"), e))
            };
            // Launches with more than 48 KiB of shared memory must be allowed.
            if kernels::is_persistent(name) || clusters {
                set(F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, max_shared_bytes)?;
            }
            if clusters {
                // Clusters of more than 8 blocks, which some devices support, must be allowed.
                set(F::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
            }
            inner.functions.insert(name, function);
        }
        Ok(Device(inner.into()))
    }

    /// The device's name and architecture.
    pub(crate) fn label(&self) -> &str {
        &self.0.label
    }
}

/// Keeps freed memory in the device's pool for later allocations of this process. By default each wait for the device
/// would unmap it, and each training step would map it again. An error comes with the name of the call that failed.
fn retain_freed_memory(context: &Context) -> Result<(), (&'static str, DriverError)> {
    let mut bytes = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device handle is valid; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.device());
        let pool = pool.map_err(|e| ("cuDeviceGetDefaultMemPool", e))?;
        let set = result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast());
        set.map_err(|e| ("cuMemPoolSetAttribute", e))
    }
}

/// Loads the kernels for an architecture: prebuilt ones, or cached ones, or else compiles them.
fn load_module(backend: &str, architecture: u32) -> Result<sys::CUmodule> {
    let mut version = 0;
    // SAFETY: the pointer is to this variable.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    status.map_err(|e| driver_error(backend, OP, "cuDriverGetVersion", e))?;
    let load = |image: &[u8]| {
        // SAFETY: the image is a cubin, or PTX that ends in a zero byte.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| {
            // A driver need not accept the output of a newer compiler, so the error names both versions.
            let driver = format!("cuModuleLoadData, with a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
            let compiler = kernels::nvrtc().map(|((major, minor), _)| format!(" and NVRTC {major}.{minor}"));
            driver_error(backend, OP, &(driver + &compiler.unwrap_or_default()), e)
        })
    };
    let key = kernels::image_key(architecture);
    if let Some(dir) = std::env::var_os("LSTM_CUDA_KERNELS") {
        let path = kernels::prebuilt_path(&PathBuf::from(dir), architecture);
        if path.exists() {
            let invalid = || {
                let reason = format!("{} is damaged, or was built from other sources or options", path.display());
                device_error(backend, OP, reason)
            };
            return load(&cache::read(&path, &key).ok_or_else(invalid)?);
        }
    }
    let key = format!("driver {version}; {key}");
    cache::load_or_compile(cache::dir().as_deref(), &key, load, || match kernels::compile(architecture) {
        // Errors name the backend that is opened, which may be `cuda-tf32`.
        Err(Error::Device { op, reason, .. }) => Err(device_error(backend, op, reason)),
        compiled => Ok(compiled?.image),
    })
}
