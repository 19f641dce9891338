//! The stand-in's own functions, by which a test tells it what to be and what to refuse, and asks what it saw.

use std::ffi::{CStr, CString, c_char, c_int};

use libloading::Library;
use lstm_cuda::Cuda;

use crate::{Result, ensure};

/// The library that `Cuda` finds as well.
pub(crate) struct SimulatedDriver {
    driver: Library,
    nvrtc: Option<Library>,
}

/// What the stand-in's device has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) architecture: i64,
    pub(crate) multiprocessors: i64,
    pub(crate) cooperative: bool,
    pub(crate) pools: bool,
    pub(crate) host: Host,
}

/// The host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Host {
    /// Copies take it up at once.
    Staged,
    /// The device reads all of it itself, later.
    Pageable,
    /// The device reads what was made known to it, which all is.
    Pinned,
}

impl Setup {
    pub(crate) const PLAIN: Setup =
        Setup { architecture: 80, multiprocessors: 4, cooperative: true, pools: true, host: Host::Staged };
}

/// What must be given back.
const KINDS: [&CStr; 6] = [c"memory", c"modules", c"streams", c"graphs", c"execs", c"contexts"];

impl SimulatedDriver {
    pub(crate) fn load() -> Result<Self> {
        // SAFETY: the library does nothing when it is loaded.
        let open = |name: &str| unsafe { Library::new(name) };
        let driver = open("libcuda.so").map_err(|e| e.to_string())?;
        let standin = SimulatedDriver { driver, nvrtc: open("libnvrtc.so").ok() };
        // A real driver's library does not have them.
        standin.reset();
        let devices = Cuda::devices().map_err(|e| e.to_string())?;
        ensure!(devices.iter().all(|name| name.contains("stand-in")), "a device that is no stand-in: {devices:?}");
        Ok(standin)
    }

    /// What its kernels are, if they are from PTX.
    pub(crate) fn ptx(&self) -> Option<String> {
        // SAFETY: declared as `ptx::write` has it.
        unsafe { self.driver.get::<extern "C" fn()>("sim_ptx") }.is_ok().then(|| self.words("sim_ptx"))
    }

    /// A function of the stand-in's.
    fn get<T: Copy>(&self, name: &str) -> T {
        // SAFETY: each is declared here as `host/driver.cpp` has it.
        *unsafe { self.driver.get::<T>(name) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Counts from 0 again, refuses nothing, has lost nothing.
    pub(crate) fn reset(&self) {
        self.get::<extern "C" fn()>("sim_reset")();
    }

    pub(crate) fn setup(&self, setup: Setup) {
        let Setup { architecture, multiprocessors, cooperative, pools, host } = setup;
        self.attribute("architecture", architecture);
        self.attribute("multiprocessors", multiprocessors);
        self.attribute("cooperative", cooperative.into());
        self.attribute("pools", pools.into());
        self.attribute("pageable", matches!(host, Host::Pageable).into());
        self.attribute("pinned", matches!(host, Host::Pinned).into());
    }

    pub(crate) fn attribute(&self, what: &str, value: i64) {
        let set: extern "C" fn(*const c_char, i64) -> c_int = self.get("sim_attribute");
        let name = CString::new(what).expect("no zero");
        assert_eq!(set(name.as_ptr(), value), 0, "{what}");
    }

    /// How many calls there were.
    pub(crate) fn calls(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("sim_calls")()
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> Vec<String> {
        let name: extern "C" fn(u64) -> *const c_char = self.get("sim_call");
        // SAFETY: it returns words that stay.
        let name = |n| unsafe { CStr::from_ptr(name(n)) }.to_string_lossy().into_owned();
        (0..self.calls()).map(name).collect()
    }

    /// A call is to fail, and if that lasts, all that come after it.
    pub(crate) fn fail(&self, call: u64, code: Code, lasts: bool) {
        let fail: extern "C" fn(u64, c_int, c_int) = self.get("sim_fail");
        fail(call, code.0, lasts.into());
    }

    /// A kernel is to fail as it runs.
    pub(crate) fn fail_launch(&self, launch: u64, code: Code) {
        let fail: extern "C" fn(u64, c_int) = self.get("sim_fail_launch");
        fail(launch, code.0);
    }

    /// How many kernels ran.
    pub(crate) fn launches(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("sim_launches")()
    }

    /// How many there are of what must be given back.
    pub(crate) fn live(&self) -> [u64; 6] {
        let live: extern "C" fn(*const c_char) -> u64 = self.get("sim_live");
        KINDS.map(|kind| live(kind.as_ptr()))
    }

    /// What one of its functions says.
    fn words(&self, name: &str) -> String {
        let words: extern "C" fn() -> *const c_char = self.get(name);
        // SAFETY: it returns words that stay until the next such call.
        unsafe { CStr::from_ptr(words()) }.to_string_lossy().into_owned()
    }

    /// Each kernel ran at least once.
    pub(crate) fn check_ran(&self) -> Result<()> {
        let idle = self.words("sim_idle");
        ensure!(idle.is_empty(), "kernels that never ran: {idle}");
        Ok(())
    }

    /// Nothing that should not have been done was done.
    pub(crate) fn check_use(&self) -> Result<()> {
        let misuse = self.words("sim_misuse");
        ensure!(misuse.is_empty(), "misuse: {}", misuse.trim());
        Ok(())
    }

    /// As above, and nothing is left.
    pub(crate) fn check_end(&self) -> Result<()> {
        self.check_left([0; 6])
    }

    /// As above, and as much is left as there was before.
    pub(crate) fn check_left(&self, before: [u64; 6]) -> Result<()> {
        self.check_use()?;
        let live = self.live();
        ensure!(live == before, "of {KINDS:?} there are {live:?}, not {before:?}");
        Ok(())
    }

    /// The newest architecture that NVRTC knows, and whether it refuses to compile; how many programs it has.
    pub(crate) fn nvrtc(&self, newest: c_int, fails: bool) -> usize {
        let nvrtc = self.nvrtc.as_ref().expect("NVRTC's stand-in");
        // SAFETY: as in `get`.
        let set = unsafe { nvrtc.get::<extern "C" fn(c_int, c_int) -> usize>("sim_nvrtc") };
        set.expect("the stand-in's function")(newest, fails.into())
    }
}

/// The driver's number for an error, and its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Code(pub(crate) c_int, pub(crate) &'static str);

pub(crate) const INVALID_VALUE: Code = Code(1, "CUDA_ERROR_INVALID_VALUE");
pub(crate) const OUT_OF_MEMORY: Code = Code(2, "CUDA_ERROR_OUT_OF_MEMORY");
pub(crate) const ILLEGAL_ADDRESS: Code = Code(700, "CUDA_ERROR_ILLEGAL_ADDRESS");
pub(crate) const OUT_OF_RESOURCES: Code = Code(701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
pub(crate) const LAUNCH_FAILED: Code = Code(719, "CUDA_ERROR_LAUNCH_FAILED");
pub(crate) const INVALIDATED: Code = Code(901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
