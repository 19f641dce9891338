//! Opening a device: whether a driver and a device are there, and kernels for it.

use std::{collections::HashMap, ffi::CString, path::PathBuf, sync::Mutex};

use cudarc::driver::{
    CudaContext,
    result::{self, DriverError},
    sys,
};
use lstm_core::Result;

use super::{Device, Inner, failed, refused};
use crate::{
    cache,
    kernels::{self, CLUSTER, OLDEST_FAST},
};

const OP: &str = "open";

/// Oldest architecture whose memory model the kernels rely on.
const OLDEST: u32 = 70;

/// Memory that a device keeps for the next allocation when it is given back.
const KEPT_BYTES: u64 = 256 << 20;

/// Loads the driver's library.
///
/// # Errors
/// What is missing.
fn driver() -> Result<()> {
    // SAFETY: opens the library, and nothing else; cudarc panics where it is absent.
    if !unsafe { sys::is_culib_present() } {
        return Err(refused(OP, "no NVIDIA driver: libcuda.so (nvcuda.dll) is not where the dynamic loader looks"));
    }
    result::init().map_err(|e| failed(OP, "the driver does not start (cuInit)", e))
}

/// The names of the devices that there are.
pub(crate) fn devices() -> Result<Vec<String>> {
    driver()?;
    let count = result::device::get_count().map_err(|e| failed(OP, "cuDeviceGetCount", e))?;
    let name =
        |n| result::device::get(n).and_then(result::device::get_name).map_err(|e| failed(OP, "cuDeviceGetName", e));
    (0..count).map(name).collect()
}

impl Device {
    pub(crate) fn open(ordinal: usize, fast: bool) -> Result<Self> {
        let devices = devices()?;
        if ordinal >= devices.len() {
            let there = if devices.is_empty() { "none".to_owned() } else { devices.join(", ") };
            return Err(refused(OP, format!("no device {ordinal}; there are {}: {there}", devices.len())));
        }
        let context = CudaContext::new(ordinal).map_err(|e| failed(OP, "cuDevicePrimaryCtxRetain", e))?;
        // SAFETY: there is one stream, and nothing is shared with cudarc's own tracking of memory.
        unsafe { context.disable_event_tracking() };
        let get = |what| context.attribute(what).map_err(|e| failed(OP, "cuDeviceGetAttribute", e));
        use sys::CUdevice_attribute as A;
        let (major, minor) = context.compute_capability().map_err(|e| failed(OP, "cuDeviceGetAttribute", e))?;
        let architecture = u32::try_from(10 * major + minor).unwrap_or(0);
        if architecture < OLDEST {
            let name = &devices[ordinal];
            return Err(refused(OP, format!("{name} is sm_{architecture}; the kernels need sm_{OLDEST} or newer")));
        }
        if fast && architecture < OLDEST_FAST {
            let why = "the fast mode needs tensor cores that take TF32";
            return Err(refused(
                OP,
                format!("{} is sm_{architecture}; {why}, from sm_{OLDEST_FAST} on", devices[ordinal]),
            ));
        }
        let number = |what| Ok::<_, lstm_core::Error>(usize::try_from(get(what)?).unwrap_or(0));
        let max_shared = get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let (multiprocessors, cooperative) = (
            number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            get(A::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
        );
        let reads_host = get(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)? != 0;
        let ordered_memory = context.has_async_alloc();
        if ordered_memory {
            keep_memory(&context).map_err(|e| failed(OP, "cuMemPoolSetAttribute", e))?;
        }
        let stream = context.new_stream().map_err(|e| failed(OP, "cuStreamCreate", e))?;
        let recording = context.new_stream().map_err(|e| failed(OP, "cuStreamCreate", e))?;

        let image = image(architecture)?;
        // SAFETY: a cubin, or PTX with a zero at its end.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(|e| failed(OP, "cuModuleLoadData", e))?;
        // From here on the module is unloaded with it.
        let mut inner = Inner {
            label: format!("{}, sm_{architecture}", devices[ordinal]),
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
            let symbol = CString::new(name).map_err(|e| refused(OP, e))?;
            // SAFETY: the module is loaded.
            let function = match unsafe { result::module::get_function(module, symbol) } {
                // Then nothing forms clusters (see `resident_clusters`), and the fast mode was refused above.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) if kernels::is_optional(name) => continue,
                found => found.map_err(|e| failed(OP, &format!("kernel {name}"), e))?,
            };
            use sys::CUfunction_attribute as F;
            let set = |attribute, value| {
                // SAFETY: the function was just found.
                let set = unsafe { result::function::set_function_attribute(function, attribute, value) };
                set.map_err(|e| failed(OP, &format!("{attribute:?} of kernel {name}"), e))
            };
            if name.starts_with("persistent") || name == CLUSTER {
                set(F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, max_shared)?;
            }
            if name == CLUSTER {
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

/// Training asks for the same memory again and again.
fn keep_memory(context: &CudaContext) -> Result<(), DriverError> {
    let mut bytes = KEPT_BYTES;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is there; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast())
    }
}

/// Kernels that were built before, or kept, or are compiled now.
fn image(architecture: u32) -> Result<Vec<u8>> {
    let key = kernels::key(architecture);
    if let Some(dir) = std::env::var_os("LSTM_CUDA_KERNELS") {
        let path = kernels::prebuilt(&PathBuf::from(dir), architecture);
        if path.exists() {
            let other = || refused(OP, format!("{} is damaged or of other sources than these", path.display()));
            return cache::read(&path, &key).ok_or_else(other);
        }
    }
    let mut version = 0;
    // SAFETY: the pointer is of this variable.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| failed(OP, "cuDriverGetVersion", e))?;
    let key = format!("driver {version}; {key}");
    cache::or_make(cache::dir().as_deref(), &key, || Ok(kernels::compile(architecture)?.image))
}
