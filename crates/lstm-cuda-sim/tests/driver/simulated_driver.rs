//! Control of the simulated driver: the device's properties, injected errors, and what the driver recorded.

use std::ffi::{CStr, CString, c_char, c_int};

use libloading::Library;
use lstm_cuda::Cuda;

use crate::{Result, ensure};

/// The loaded libraries of the simulated driver and the fake NVRTC, which `Cuda` uses as well.
pub(crate) struct SimulatedDriver {
    driver: Library,
    nvrtc: Option<Library>,
}

/// Properties of the simulated device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceProperties {
    /// The compute capability, such as 90 for sm_90.
    pub(crate) architecture: i64,
    pub(crate) multiprocessors: i64,
    /// Whether cooperative launches are supported.
    pub(crate) cooperative: bool,
    /// Whether memory pools are supported.
    pub(crate) pools: bool,
    pub(crate) host_memory: HostMemory,
}

/// How copies from the host read its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostMemory {
    /// The call copies the data to a staging buffer before it returns.
    Staged,
    /// The device reads pageable memory itself, after the call has returned.
    Pageable,
    /// All memory counts as pinned: the device reads it itself, after the call has returned.
    Pinned,
}

impl DeviceProperties {
    /// An sm_80 device with all features.
    pub(crate) const DEFAULT: DeviceProperties = DeviceProperties {
        architecture: 80,
        multiprocessors: 4,
        cooperative: true,
        pools: true,
        host_memory: HostMemory::Staged,
    };
    /// An sm_90 device with all features.
    pub(crate) const SM_90: DeviceProperties =
        DeviceProperties { architecture: 90, multiprocessors: 6, ..DeviceProperties::DEFAULT };
}

/// The kinds of objects that must be released.
const OBJECT_KINDS: [&CStr; 6] = [c"memory", c"modules", c"streams", c"graphs", c"graph_execs", c"contexts"];

/// Number of objects of each kind that have not been released.
pub(crate) type LiveObjects = [u64; 6];

impl SimulatedDriver {
    pub(crate) fn load() -> Result<Self> {
        // SAFETY: the libraries have no initialization code.
        let open = |name: &str| unsafe { Library::new(name) };
        let library = open("libcuda.so").map_err(|e| e.to_string())?;
        let driver = SimulatedDriver { driver: library, nvrtc: open("libnvrtc.so").ok() };
        // Panics if this is NVIDIA's driver.
        driver.reset();
        let devices = Cuda::devices().map_err(|e| e.to_string())?;
        ensure!(devices.iter().all(|name| name.contains("simulated")), "not a simulated device: {devices:?}");
        Ok(driver)
    }

    /// A description of the PTX from which the kernels were translated; `None` if they were compiled from their
    /// sources.
    pub(crate) fn ptx_description(&self) -> Option<String> {
        // SAFETY: the type is that of the definition in `ptx::compile`.
        let is_defined = unsafe { self.driver.get::<extern "C" fn()>("sim_ptx_description") }.is_ok();
        is_defined.then(|| self.text("sim_ptx_description"))
    }

    /// A function of the simulated driver.
    fn get<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the callers use the types of the definitions in `cpp/driver/control.cpp`.
        *unsafe { self.driver.get::<T>(name) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Counts calls and launches from 0 again, and clears injected errors, misuse and sticky errors.
    pub(crate) fn reset(&self) {
        self.get::<extern "C" fn()>("sim_reset")();
    }

    pub(crate) fn set_properties(&self, properties: DeviceProperties) {
        let DeviceProperties { architecture, multiprocessors, cooperative, pools, host_memory } = properties;
        self.set_attribute("architecture", architecture);
        self.set_attribute("multiprocessors", multiprocessors);
        self.set_attribute("cooperative", cooperative.into());
        self.set_attribute("pools", pools.into());
        self.set_attribute("pageable", matches!(host_memory, HostMemory::Pageable).into());
        self.set_attribute("pinned", matches!(host_memory, HostMemory::Pinned).into());
    }

    /// Sets one of the attributes that `cpp/driver/driver.h` lists.
    pub(crate) fn set_attribute(&self, attribute: &str, value: i64) {
        let set: extern "C" fn(*const c_char, i64) -> c_int = self.get("sim_attribute");
        let name = CString::new(attribute).expect("no zero byte");
        assert_eq!(set(name.as_ptr(), value), 0, "{attribute}");
    }

    /// Number of calls since the last reset.
    pub(crate) fn call_count(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("sim_call_count")()
    }

    /// The names of all calls since the last reset, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        let name: extern "C" fn(u64) -> *const c_char = self.get("sim_call_name");
        // SAFETY: the function returns a string literal.
        let name = |n| unsafe { CStr::from_ptr(name(n)) }.to_string_lossy().into_owned();
        (0..self.call_count()).map(name).collect()
    }

    /// Makes a call, counted from 0, fail. If the error is sticky, later calls fail too.
    pub(crate) fn fail_call(&self, call: u64, code: Code, is_sticky: bool) {
        let fail: extern "C" fn(u64, c_int, c_int) = self.get("sim_fail_call");
        fail(call, code.0, is_sticky.into());
    }

    /// Makes a kernel launch, counted from 0, fail while it runs. Such an error is sticky.
    pub(crate) fn fail_launch(&self, launch: u64, code: Code) {
        let fail: extern "C" fn(u64, c_int) = self.get("sim_fail_launch");
        fail(launch, code.0);
    }

    /// Number of kernels that have run since the last reset.
    pub(crate) fn launch_count(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("sim_launch_count")()
    }

    pub(crate) fn live_objects(&self) -> LiveObjects {
        let count: extern "C" fn(*const c_char) -> u64 = self.get("sim_live_count");
        OBJECT_KINDS.map(|kind| count(kind.as_ptr()))
    }

    /// Calls a function that returns a text.
    fn text(&self, function: &str) -> String {
        let function: extern "C" fn() -> *const c_char = self.get(function);
        // SAFETY: the returned text is valid until the function's next call.
        unsafe { CStr::from_ptr(function()) }.to_string_lossy().into_owned()
    }

    /// Checks that each kernel has run at least once in this process.
    pub(crate) fn check_all_kernels_ran(&self) -> Result<()> {
        let kernels = self.text("sim_kernels_not_run");
        ensure!(kernels.is_empty(), "kernels that did not run: {kernels}");
        Ok(())
    }

    /// Checks that there was no misuse since the last reset.
    pub(crate) fn check_no_misuse(&self) -> Result<()> {
        let misuse = self.text("sim_misuse");
        ensure!(misuse.is_empty(), "misuse: {}", misuse.trim());
        Ok(())
    }

    /// Checks that there was no misuse and that all objects were released.
    pub(crate) fn check_all_released(&self) -> Result<()> {
        self.check_live_objects([0; 6])
    }

    /// Checks that there was no misuse and that there are as many objects as expected.
    pub(crate) fn check_live_objects(&self, expected: LiveObjects) -> Result<()> {
        self.check_no_misuse()?;
        let live = self.live_objects();
        ensure!(live == expected, "live objects of kinds {OBJECT_KINDS:?}: {live:?}, expected {expected:?}");
        Ok(())
    }

    /// Sets the newest architecture that the fake NVRTC supports, and whether compilation fails. Returns the number of
    /// NVRTC programs that have not been destroyed.
    pub(crate) fn set_up_nvrtc(&self, newest: c_int, fails: bool) -> usize {
        let nvrtc = self.nvrtc.as_ref().expect("the fake NVRTC is in the library path");
        // SAFETY: the type is that of the definition in `cpp/nvrtc.cpp`.
        let set_up = unsafe { nvrtc.get::<extern "C" fn(c_int, c_int) -> usize>("sim_nvrtc_setup") };
        set_up.expect("the library is the fake NVRTC")(newest, fails.into())
    }
}

/// An error of the driver: its number and its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Code(pub(crate) c_int, pub(crate) &'static str);

pub(crate) const INVALID_VALUE: Code = Code(1, "CUDA_ERROR_INVALID_VALUE");
pub(crate) const OUT_OF_MEMORY: Code = Code(2, "CUDA_ERROR_OUT_OF_MEMORY");
pub(crate) const ILLEGAL_ADDRESS: Code = Code(700, "CUDA_ERROR_ILLEGAL_ADDRESS");
pub(crate) const OUT_OF_RESOURCES: Code = Code(701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
pub(crate) const LAUNCH_FAILED: Code = Code(719, "CUDA_ERROR_LAUNCH_FAILED");
pub(crate) const CAPTURE_INVALIDATED: Code = Code(901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
