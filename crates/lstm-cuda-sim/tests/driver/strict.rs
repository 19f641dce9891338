//! The stand-in itself: what is done wrong on purpose, by the driver's calls without the crate, is refused or noted. A test
//! that passes on a stand-in which forgives would show nothing.

use std::{ffi::c_void, ptr, thread};

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUresult as R},
};

use crate::{
    Result, ensure,
    simulated_driver::{Setup, SimulatedDriver},
};

/// A context with a stream and the kernel `map`, which snaps some values where they are.
#[derive(Clone, Copy)]
struct Raw {
    stream: sys::CUstream,
    module: sys::CUmodule,
    map: sys::CUfunction,
}

type Done<T = ()> = Result<T, DriverError>;

// SAFETY: for all functions of this, the handles are the stand-in's own, which looks them up: a wrong one is an error.
impl Raw {
    fn open() -> Done<Self> {
        result::init()?;
        let image = "stand-in cubin sm_90\nmap\npersistent\nend\n";
        // SAFETY: as above; the image ends as the stand-in wants it to.
        unsafe {
            result::ctx::set_current(result::primary_ctx::retain(result::device::get(0)?)?)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            let module = result::module::load_data(image.as_ptr().cast())?;
            Ok(Raw { stream, module, map: result::module::get_function(module, c"map".into())? })
        }
    }

    fn close(self) -> Done {
        self.wait()?;
        // SAFETY: as above.
        unsafe {
            result::module::unload(self.module)?;
            result::stream::destroy(self.stream)?;
            result::primary_ctx::release(0)
        }
    }

    fn alloc(&self) -> Done<u64> {
        // SAFETY: as above.
        unsafe { result::malloc_async(self.stream, 256) }
    }

    fn free(&self, at: u64) -> Done {
        // SAFETY: as above.
        unsafe { result::free_async(at, self.stream) }
    }

    fn launch(&self, function: sys::CUfunction, at: u64, len: u64, shared: u32) -> Done {
        let mut args = [at, at, len, 0];
        let mut params = [(&raw mut args).cast::<c_void>()];
        // SAFETY: as above; `map` takes these.
        unsafe { result::launch_kernel(function, (1, 1, 1), (64, 1, 1), shared, self.stream, &mut params) }
    }

    fn snap(&self, at: u64) -> Done {
        self.launch(self.map, at, 64, 0)
    }

    fn wait(&self) -> Done {
        // SAFETY: as above.
        unsafe { result::stream::synchronize(self.stream) }
    }

    fn begin(&self) -> Done {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: as above.
        unsafe { result::stream::begin_capture(self.stream, mode) }
    }

    fn end(&self) -> Done<sys::CUgraph> {
        // SAFETY: as above.
        unsafe { result::stream::end_capture(self.stream) }
    }
}

fn refused<T>(what: &str, done: Done<T>, code: R) -> Result<()> {
    let got = done.err().map_or(R::CUDA_SUCCESS, |e| e.0);
    ensure!(got == code, "{what}: {got:?}, not {code:?}");
    Ok(())
}

/// Whether the stand-in noted some words; they are forgotten.
fn noted(standin: &SimulatedDriver, words: &str) -> Result<()> {
    let said = standin.check_use().err().unwrap_or_default();
    standin.reset();
    ensure!(said.contains(words), "`{words}` is not in `{said}`");
    Ok(())
}

pub(crate) fn run() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    standin.setup(Setup { architecture: 90, multiprocessors: 4, ..Setup::PLAIN });
    for part in [memory, contexts, launches, capture, ends] {
        let raw = Raw::open().map_err(|e| format!("{:?}", e.0))?;
        part(&standin, raw)?;
    }
    standin.check_end()?;
    Ok("wrong calls are refused".into())
}

fn well<T>(done: Done<T>) -> Result<T> {
    done.map_err(|e| format!("refused what is right: {:?}", e.0))
}

fn memory(standin: &SimulatedDriver, raw: Raw) -> Result<()> {
    let memory = well(raw.alloc())?;
    well(raw.snap(memory))?;
    well(raw.free(memory))?;
    refused("freed twice", raw.free(memory), R::CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: the stand-in refuses it.
    let copied = unsafe { result::memcpy_htod_async(memory, &[1.0f32], raw.stream) };
    refused("a copy to what is freed", copied, R::CUDA_ERROR_INVALID_VALUE)?;
    well(raw.wait())?;

    // SAFETY: as for `Raw`.
    let plain = well(unsafe { result::malloc_sync(256) })?;
    refused("freed in a stream's order", raw.free(plain), R::CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: 4 bytes before it are the stand-in's guard.
    unsafe { (plain as *mut u32).sub(1).write(0) };
    // SAFETY: as for `Raw`.
    well(unsafe { result::free_sync(plain) })?;
    noted(standin, "something was written beside memory")?;
    // SAFETY: as for `Raw`.
    refused("freed twice", unsafe { result::free_sync(plain) }, R::CUDA_ERROR_INVALID_VALUE)?;

    let memory = well(raw.alloc())?;
    well(raw.free(memory))?;
    well(raw.snap(memory))?;
    refused("freed before a kernel ran", raw.wait(), R::CUDA_ERROR_ILLEGAL_ADDRESS)?;
    refused("after that", raw.alloc(), R::CUDA_ERROR_ILLEGAL_ADDRESS)?;
    // Which is as good as a new process.
    noted(standin, "kernel map ran on memory that was freed")?;
    well(raw.close())
}

fn contexts(standin: &SimulatedDriver, raw: Raw) -> Result<()> {
    // SAFETY: as for `Raw`.
    let elsewhere = || thread::spawn(|| unsafe { result::malloc_sync(4) }).join().expect("no panic");
    refused("another thread", elsewhere(), R::CUDA_ERROR_INVALID_CONTEXT)?;
    well(raw.alloc())?;
    well(raw.close())?;
    noted(standin, "a context ended with memory that was not freed")?;
    refused("a context that ended", raw.alloc(), R::CUDA_ERROR_CONTEXT_IS_DESTROYED)
}

fn launches(_: &SimulatedDriver, raw: Raw) -> Result<()> {
    let memory = well(raw.alloc())?;
    let large = || raw.launch(raw.map, memory, 64, 64 << 10);
    refused("64 KiB of shared memory", large(), R::CUDA_ERROR_INVALID_VALUE)?;
    let allow = |bytes| {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as for `Raw`.
        unsafe { result::function::set_function_attribute(raw.map, attribute, bytes) }
    };
    refused("more than there is", allow(228 << 10), R::CUDA_ERROR_INVALID_VALUE)?;
    well(allow(64 << 10))?;
    well(large())?;
    let mut params = [ptr::null_mut()];
    // SAFETY: as for `Raw`.
    let threads = unsafe { result::launch_kernel(raw.map, (1, 1, 1), (257, 1, 1), 0, raw.stream, &mut params) };
    refused("too many threads", threads, R::CUDA_ERROR_INVALID_VALUE)?;
    let mut args = [0u64; 64];
    let mut params = [(&raw mut args).cast::<c_void>()];
    // SAFETY: as for `Raw`; nothing runs.
    let grid =
        unsafe { result::launch_cooperative_kernel(raw.map, (999, 1, 1), (256, 1, 1), 0, raw.stream, &mut params) };
    refused("a grid that is not there at once", grid, R::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE)?;
    // SAFETY: as for `Raw`.
    let absent = unsafe { result::module::get_function(raw.module, c"copy".into()) };
    refused("a kernel that the image lacks", absent, R::CUDA_ERROR_NOT_FOUND)?;
    // SAFETY: as for `Raw`; the image is for another generation.
    let other = unsafe { result::module::load_data(c"stand-in cubin sm_80\nmap\nend\n".as_ptr().cast()) };
    refused("another architecture's image", other, R::CUDA_ERROR_NO_BINARY_FOR_GPU)?;
    well(raw.free(memory))?;
    well(raw.close())
}

fn capture(_: &SimulatedDriver, raw: Raw) -> Result<()> {
    let memory = well(raw.alloc())?;
    well(raw.begin())?;
    refused("begun twice", raw.begin(), R::CUDA_ERROR_ILLEGAL_STATE)?;
    refused("a wait", raw.wait(), R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
    refused("a launch after that", raw.snap(memory), R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;
    refused("its end", raw.end(), R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;
    well(raw.begin())?;
    // SAFETY: as for `Raw`.
    let unsafe_call = unsafe { result::malloc_sync(4) };
    refused("an allocation", unsafe_call, R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
    refused("its end", raw.end(), R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;

    // A replay that waits is done, though the executable is gone. 1.1 has more bits than are kept.
    let value = [f32::from_bits(0x3f8c_cccd); 64];
    // SAFETY: as for `Raw`; the copy is staged.
    well(unsafe { result::memcpy_htod_async(memory, &value, raw.stream) })?;
    well(raw.wait())?;
    well(raw.begin())?;
    well(raw.snap(memory))?;
    let graph = well(raw.end())?;
    let mut out = [0.0f32; 64];
    // SAFETY: as for `Raw`; `out` is there until the wait.
    let replayed = unsafe {
        let exec = well(result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)))?;
        well(result::graph::destroy(graph))?;
        well(result::graph::launch(exec, raw.stream))?;
        well(result::memcpy_dtoh_async(&mut out, memory, raw.stream))?;
        well(result::graph::exec_destroy(exec))?;
        ensure!(out == [0.0; 64], "it was done before anybody waited");
        well(raw.wait())?;
        result::graph::launch(exec, raw.stream)
    };
    ensure!(out == [lstm_cuda::arithmetic::snap(value[0]); 64], "a replay was not done: {}", out[0]);
    refused("a replay of what is gone", replayed, R::CUDA_ERROR_INVALID_HANDLE)?;
    well(raw.free(memory))?;
    well(raw.close())
}

fn ends(standin: &SimulatedDriver, raw: Raw) -> Result<()> {
    let memory = well(raw.alloc())?;
    well(raw.snap(memory))?;
    // SAFETY: as for `Raw`.
    well(unsafe { result::module::unload(raw.module) })?;
    refused("a kernel whose module is gone", raw.snap(memory), R::CUDA_ERROR_INVALID_HANDLE)?;
    refused("a module that is gone too early", raw.wait(), R::CUDA_ERROR_LAUNCH_FAILED)?;
    noted(standin, "a kernel's module was unloaded before it ran")?;
    well(raw.free(memory))?;
    // SAFETY: as for `Raw`.
    well(unsafe { result::stream::destroy(raw.stream) })?;
    refused("a stream that is gone", raw.wait(), R::CUDA_ERROR_INVALID_HANDLE)?;
    // SAFETY: as for `Raw`.
    well(unsafe { result::primary_ctx::release(0) })?;
    // SAFETY: as for `Raw`.
    refused("released twice", unsafe { result::primary_ctx::release(0) }, R::CUDA_ERROR_INVALID_CONTEXT)
}
