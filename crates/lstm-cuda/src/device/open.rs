//! Opening a device: whether a driver and a device are there, and kernels for it.

use std::{collections::HashMap, ffi::CString, path::PathBuf, sync::Mutex};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use lstm_core::{Error, Result};

use super::{
    Device, Inner,
    context::{Context, Stream},
    failed, refused,
};
use crate::{
    Limits, cache,
    kernels::{self, OLDEST_FAST},
};

const OP: &str = "open";

/// Oldest architecture whose memory model the kernels rely on.
const OLDEST: u32 = 70;

/// Loads the driver's library.
///
/// # Errors
/// What is missing.
fn driver(backend: &str) -> Result<()> {
    // SAFETY: opens the library, and nothing else; cudarc panics where it is absent.
    if !unsafe { sys::is_culib_present() } {
        return Err(refused(
            backend,
            OP,
            "no NVIDIA driver: libcuda.so (nvcuda.dll) is not where the dynamic loader looks",
        ));
    }
    result::init().map_err(|e| failed(backend, OP, "the driver does not start (cuInit)", e))
}

/// The names of the devices that there are; errors are some backend's.
pub(crate) fn devices(backend: &str) -> Result<Vec<String>> {
    driver(backend)?;
    let failed = |what: &'static str| move |e| failed(backend, OP, what, e);
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    let name = |n| {
        let device = result::device::get(n).map_err(failed("cuDeviceGet"))?;
        result::device::get_name(device).map_err(failed("cuDeviceGetName"))
    };
    (0..count).map(name).collect()
}

impl Device {
    pub(crate) fn open(ordinal: usize, fast: bool, limits: Limits) -> Result<Self> {
        let backend = Device::name_of(fast);
        if limits.multiprocessors == Some(0) {
            return Err(refused(backend, OP, "expected a limit of at least 1 multiprocessor, got 0"));
        }
        let failed = |what: &str, e| failed(backend, OP, what, e);
        let devices = devices(backend)?;
        let Some(name) = devices.get(ordinal) else {
            let there = if devices.is_empty() { "none".to_owned() } else { devices.join(", ") };
            let why = format!("no device {ordinal}; there are {}: {there}", devices.len());
            return Err(refused(backend, OP, why));
        };
        let device = result::device::get(ordinal as i32).map_err(|e| failed("cuDeviceGet", e))?;
        let get = |what| {
            // SAFETY: a device that is there.
            unsafe { result::device::get_attribute(device, what) }.map_err(|e| failed("cuDeviceGetAttribute", e))
        };
        let number = |what| Ok::<_, Error>(u32::try_from(get(what)?).unwrap_or(0));
        use sys::CUdevice_attribute as A;
        let architecture = 10 * number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if architecture < OLDEST {
            let why = format!("{name} is sm_{architecture}; the kernels need sm_{OLDEST} or newer");
            return Err(refused(backend, OP, why));
        }
        if fast && architecture < OLDEST_FAST {
            let why = "the fast mode needs tensor cores that take TF32";
            let why = format!("{name} is sm_{architecture}; {why}, from sm_{OLDEST_FAST} on");
            return Err(refused(backend, OP, why));
        }
        let max_shared = get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let multiprocessors = limits.multiprocessors.map_or(multiprocessors, |most| multiprocessors.min(most));
        let cooperative = get(A::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0 && limits.persistent;
        let reads_host = get(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)? != 0;
        let ordered_memory = get(A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        let context = Context::new(device).map_err(|e| failed("cuDevicePrimaryCtxRetain", e))?;
        context.bind().map_err(|e| failed("cuCtxSetCurrent", e))?;
        if ordered_memory {
            keep_memory(&context).map_err(|(what, e)| failed(what, e))?;
        }
        let stream = Stream::new(&context).map_err(|e| failed("cuStreamCreate", e))?;
        let recording = Stream::new(&context).map_err(|e| failed("cuStreamCreate", e))?;

        let module = module(backend, architecture)?;
        // From here on the module is unloaded with it.
        let mut inner = Inner {
            label: format!("{name}, sm_{architecture}"),
            context,
            stream,
            recording: Mutex::new(recording),
            module,
            functions: HashMap::new(),
            multiprocessors,
            cooperative,
            max_shared: u32::try_from(max_shared).unwrap_or(0),
            fast,
            ordered_memory,
            reads_host,
        };
        for name in kernels::NAMES {
            let clusters = kernels::is_for_clusters(name);
            if clusters && !limits.clusters {
                continue;
            }
            let symbol = CString::new(name).map_err(|e| refused(backend, OP, e))?;
            // SAFETY: the module is loaded.
            let function = match unsafe { result::module::get_function(module, symbol) } {
                // Then nothing forms clusters (see `resident_clusters`), and the fast mode was refused above.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) if kernels::is_optional(name) => continue,
                found => found.map_err(|e| failed(&format!("kernel {name}"), e))?,
            };
            use sys::CUfunction_attribute as F;
            let set = |attribute, value| {
                // SAFETY: the function was just found.
                let set = unsafe { result::function::set_function_attribute(function, attribute, value) };
                set.map_err(|e| failed(&format!("{attribute:?} of kernel {name}"), e))
            };
            // Whose launches may ask for more shared memory than 48 KiB.
            if name.starts_with("persistent") || name.starts_with("projected") || clusters {
                set(F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, max_shared)?;
            }
            if clusters {
                // More than 8 blocks, where the device has such clusters.
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

/// Training asks for the same memory again and again, so what is given back stays in the process for what it allocates next:
/// else each wait for the device would unmap it. An error comes with the call that gave it.
fn keep_memory(context: &Context) -> Result<(), (&'static str, DriverError)> {
    let mut bytes = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is there; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.device());
        let pool = pool.map_err(|e| ("cuDeviceGetDefaultMemPool", e))?;
        let set = result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast());
        set.map_err(|e| ("cuMemPoolSetAttribute", e))
    }
}

/// Kernels that were built before, or kept, or are compiled now.
fn module(backend: &str, architecture: u32) -> Result<sys::CUmodule> {
    let mut version = 0;
    // SAFETY: the pointer is of this variable.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| failed(backend, OP, "cuDriverGetVersion", e))?;
    let load = |image: &[u8]| {
        // SAFETY: a cubin, or PTX with a zero at its end.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| {
            // Drivers need not take what a newer compiler made.
            let driver = format!("cuModuleLoadData, by a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
            let compiler = kernels::nvrtc().map(|((major, minor), _)| format!(", here with NVRTC {major}.{minor}"));
            failed(backend, OP, &(driver + &compiler.unwrap_or_default()), e)
        })
    };
    let key = kernels::key(architecture);
    if let Some(dir) = std::env::var_os("LSTM_CUDA_KERNELS") {
        let path = kernels::prebuilt(&PathBuf::from(dir), architecture);
        if path.exists() {
            let other =
                || refused(backend, OP, format!("{} is damaged or of other sources than these", path.display()));
            return load(&cache::read(&path, &key).ok_or_else(other)?);
        }
    }
    let key = format!("driver {version}; {key}");
    cache::or_make(cache::dir().as_deref(), &key, load, || match kernels::compile(architecture) {
        // Whoever opens the fast mode gets its errors.
        Err(Error::Device { op, reason, .. }) => Err(refused(backend, op, reason)),
        compiled => Ok(compiled?.image),
    })
}
