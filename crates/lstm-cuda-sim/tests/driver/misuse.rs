//! Tests of the simulated driver itself. They call it directly and make mistakes, each of which it must reject or
//! record. Otherwise tests that pass on it would prove nothing.

use std::{ffi::c_void, ptr, thread};

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUresult as R},
};

use crate::{
    Result, ensure,
    simulated_driver::{DeviceProperties, SimulatedDriver},
};

/// A context with a stream and the kernel `map`, which is used to snap values in place.
#[derive(Clone, Copy)]
struct Context {
    stream: sys::CUstream,
    module: sys::CUmodule,
    map: sys::CUfunction,
}

type DriverResult<T = ()> = Result<T, DriverError>;

// SAFETY: for all calls in this file, the simulated driver looks up every handle and every device address, and returns
// an error if it is invalid.
impl Context {
    fn open() -> DriverResult<Self> {
        result::init()?;
        let image = "simulated cubin sm_90\nmap\npersistent_forward\nend\n";
        // SAFETY: as above; the image has the simulated driver's format.
        unsafe {
            result::ctx::set_current(result::primary_ctx::retain(result::device::get(0)?)?)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            let module = result::module::load_data(image.as_ptr().cast())?;
            Ok(Context { stream, module, map: result::module::get_function(module, c"map".into())? })
        }
    }

    fn close(self) -> DriverResult {
        self.synchronize()?;
        // SAFETY: as above.
        unsafe {
            result::module::unload(self.module)?;
            result::stream::destroy(self.stream)?;
            result::primary_ctx::release(0)
        }
    }

    /// Allocates 256 bytes, in the stream's order.
    fn alloc(&self) -> DriverResult<u64> {
        // SAFETY: as above.
        unsafe { result::malloc_async(self.stream, 256) }
    }

    /// Frees memory, in the stream's order.
    fn free(&self, address: u64) -> DriverResult {
        // SAFETY: as above.
        unsafe { result::free_async(address, self.stream) }
    }

    /// Launches `map` on `len` values in place.
    fn launch_map(&self, address: u64, len: u64, shared_bytes: u32) -> DriverResult {
        let mut args = [address, address, len, 0];
        let mut params = [(&raw mut args).cast::<c_void>()];
        // SAFETY: as above; these are the arguments of `map`.
        unsafe { result::launch_kernel(self.map, (1, 1, 1), (64, 1, 1), shared_bytes, self.stream, &mut params) }
    }

    /// Launches a kernel that snaps the values of memory from `alloc`.
    fn snap(&self, address: u64) -> DriverResult {
        self.launch_map(address, 64, 0)
    }

    fn synchronize(&self) -> DriverResult {
        // SAFETY: as above.
        unsafe { result::stream::synchronize(self.stream) }
    }

    fn begin_capture(&self) -> DriverResult {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: as above.
        unsafe { result::stream::begin_capture(self.stream, mode) }
    }

    fn end_capture(&self) -> DriverResult<sys::CUgraph> {
        // SAFETY: as above.
        unsafe { result::stream::end_capture(self.stream) }
    }
}

/// Checks that a call failed with this code.
fn expect_error<T>(what: &str, result: DriverResult<T>, code: R) -> Result<()> {
    let got = result.err().map_or(R::CUDA_SUCCESS, |e| e.0);
    ensure!(got == code, "{what}: {got:?}, expected {code:?}");
    Ok(())
}

fn expect_ok<T>(result: DriverResult<T>) -> Result<T> {
    result.map_err(|e| format!("a correct call failed: {:?}", e.0))
}

/// Checks that the simulated driver recorded a misuse with this text, and clears it.
fn expect_misuse(driver: &SimulatedDriver, text: &str) -> Result<()> {
    let recorded = driver.check_no_misuse().err().unwrap_or_default();
    driver.reset();
    ensure!(recorded.contains(text), "expected misuse `{text}`, found `{recorded}`");
    Ok(())
}

pub(crate) fn run() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    driver.set_properties(DeviceProperties { architecture: 90, ..DeviceProperties::DEFAULT });
    for test in [memory, contexts, launches, capture, release_order] {
        let context = Context::open().map_err(|e| format!("{:?}", e.0))?;
        test(&driver, context)?;
    }
    driver.check_all_released()?;
    Ok("wrong calls are rejected".into())
}

fn memory(driver: &SimulatedDriver, context: Context) -> Result<()> {
    let memory = expect_ok(context.alloc())?;
    expect_ok(context.snap(memory))?;
    expect_ok(context.free(memory))?;
    expect_error("double free", context.free(memory), R::CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: the simulated driver rejects it.
    let copied = unsafe { result::memcpy_htod_async(memory, &[1.0f32], context.stream) };
    expect_error("copy to freed memory", copied, R::CUDA_ERROR_INVALID_VALUE)?;
    expect_ok(context.synchronize())?;

    // SAFETY: as for `Context`.
    let memory = expect_ok(unsafe { result::malloc_sync(256) })?;
    expect_error("stream-ordered free of other memory", context.free(memory), R::CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: the 4 bytes before the memory belong to the simulated driver's guard.
    unsafe { (memory as *mut u32).sub(1).write(0) };
    // SAFETY: as for `Context`.
    expect_ok(unsafe { result::free_sync(memory) })?;
    expect_misuse(driver, "a write before or after memory")?;
    // SAFETY: as for `Context`.
    expect_error("double free", unsafe { result::free_sync(memory) }, R::CUDA_ERROR_INVALID_VALUE)?;

    let memory = expect_ok(context.alloc())?;
    expect_ok(context.free(memory))?;
    expect_ok(context.snap(memory))?;
    expect_error("kernel on freed memory", context.synchronize(), R::CUDA_ERROR_ILLEGAL_ADDRESS)?;
    expect_error("call after a sticky error", context.alloc(), R::CUDA_ERROR_ILLEGAL_ADDRESS)?;
    // This also clears the sticky error.
    expect_misuse(driver, "kernel map ran on freed memory")?;
    expect_ok(context.close())
}

fn contexts(driver: &SimulatedDriver, context: Context) -> Result<()> {
    // SAFETY: as for `Context`.
    let on_another_thread = || thread::spawn(|| unsafe { result::malloc_sync(4) }).join().expect("no panic");
    expect_error("thread without a context", on_another_thread(), R::CUDA_ERROR_INVALID_CONTEXT)?;
    expect_ok(context.alloc())?;
    expect_ok(context.close())?;
    expect_misuse(driver, "a context was destroyed before its memory was freed")?;
    expect_error("destroyed context", context.alloc(), R::CUDA_ERROR_CONTEXT_IS_DESTROYED)
}

fn launches(_: &SimulatedDriver, context: Context) -> Result<()> {
    let memory = expect_ok(context.alloc())?;
    let with_64_kib = || context.launch_map(memory, 64, 64 << 10);
    expect_error("64 KiB of shared memory without permission", with_64_kib(), R::CUDA_ERROR_INVALID_VALUE)?;
    let allow_shared_bytes = |bytes| {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as for `Context`.
        unsafe { result::function::set_function_attribute(context.map, attribute, bytes) }
    };
    expect_error("too much shared memory", allow_shared_bytes(228 << 10), R::CUDA_ERROR_INVALID_VALUE)?;
    expect_ok(allow_shared_bytes(64 << 10))?;
    expect_ok(with_64_kib())?;
    let mut params = [ptr::null_mut()];
    // SAFETY: as for `Context`.
    let launched =
        unsafe { result::launch_kernel(context.map, (1, 1, 1), (257, 1, 1), 0, context.stream, &mut params) };
    expect_error("too many threads in a block", launched, R::CUDA_ERROR_INVALID_VALUE)?;
    let mut args = [0u64; 64];
    let mut params = [(&raw mut args).cast::<c_void>()];
    let (grid, block) = ((999, 1, 1), (256, 1, 1));
    // SAFETY: as for `Context`; the launch is rejected.
    let launched =
        unsafe { result::launch_cooperative_kernel(context.map, grid, block, 0, context.stream, &mut params) };
    expect_error("cooperative grid that is too large", launched, R::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE)?;
    // SAFETY: as for `Context`.
    let absent = unsafe { result::module::get_function(context.module, c"copy".into()) };
    expect_error("kernel that the image lacks", absent, R::CUDA_ERROR_NOT_FOUND)?;
    // SAFETY: as for `Context`.
    let other = unsafe { result::module::load_data(c"simulated cubin sm_80\nmap\nend\n".as_ptr().cast()) };
    expect_error("image for another architecture", other, R::CUDA_ERROR_NO_BINARY_FOR_GPU)?;
    expect_ok(context.free(memory))?;
    expect_ok(context.close())
}

fn capture(_: &SimulatedDriver, context: Context) -> Result<()> {
    let memory = expect_ok(context.alloc())?;
    expect_ok(context.begin_capture())?;
    expect_error("second begin of a capture", context.begin_capture(), R::CUDA_ERROR_ILLEGAL_STATE)?;
    let synchronized = context.synchronize();
    expect_error("synchronization during capture", synchronized, R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
    let launched = context.snap(memory);
    expect_error("launch in an invalidated capture", launched, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;
    let ended = context.end_capture();
    expect_error("end of an invalidated capture", ended, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;
    expect_ok(context.begin_capture())?;
    // SAFETY: as for `Context`.
    let allocated = unsafe { result::malloc_sync(4) };
    expect_error("allocation during capture", allocated, R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
    let ended = context.end_capture();
    expect_error("end of an invalidated capture", ended, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)?;

    // An enqueued graph launch runs, although the executable graph is destroyed before.
    let value = [f32::from_bits(0x3f8c_cccd); 64]; // 1.1, which snapping changes
    // SAFETY: as for `Context`; the copy is staged.
    expect_ok(unsafe { result::memcpy_htod_async(memory, &value, context.stream) })?;
    expect_ok(context.synchronize())?;
    expect_ok(context.begin_capture())?;
    expect_ok(context.snap(memory))?;
    let graph = expect_ok(context.end_capture())?;
    let mut out = [0.0f32; 64];
    // SAFETY: as for `Context`; `out` lives until the synchronization.
    let launched_again = unsafe {
        let exec = expect_ok(result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)))?;
        expect_ok(result::graph::destroy(graph))?;
        expect_ok(result::graph::launch(exec, context.stream))?;
        expect_ok(result::memcpy_dtoh_async(&mut out, memory, context.stream))?;
        expect_ok(result::graph::exec_destroy(exec))?;
        ensure!(out == [0.0; 64], "work ran before the synchronization");
        expect_ok(context.synchronize())?;
        result::graph::launch(exec, context.stream)
    };
    ensure!(out == [lstm_cuda::arithmetic::snap(value[0]); 64], "the graph launch did not run: {}", out[0]);
    expect_error("launch of a destroyed executable graph", launched_again, R::CUDA_ERROR_INVALID_HANDLE)?;
    expect_ok(context.free(memory))?;
    expect_ok(context.close())
}

fn release_order(driver: &SimulatedDriver, context: Context) -> Result<()> {
    let memory = expect_ok(context.alloc())?;
    expect_ok(context.snap(memory))?;
    // SAFETY: as for `Context`.
    expect_ok(unsafe { result::module::unload(context.module) })?;
    expect_error("launch of an unloaded kernel", context.snap(memory), R::CUDA_ERROR_INVALID_HANDLE)?;
    expect_error("module unloaded before its kernel ran", context.synchronize(), R::CUDA_ERROR_LAUNCH_FAILED)?;
    expect_misuse(driver, "a kernel's module was unloaded before the kernel ran")?;
    expect_ok(context.free(memory))?;
    // SAFETY: as for `Context`.
    expect_ok(unsafe { result::stream::destroy(context.stream) })?;
    expect_error("destroyed stream", context.synchronize(), R::CUDA_ERROR_INVALID_HANDLE)?;
    // SAFETY: as for `Context`.
    expect_ok(unsafe { result::primary_ctx::release(0) })?;
    // SAFETY: as for `Context`.
    expect_error("double release", unsafe { result::primary_ctx::release(0) }, R::CUDA_ERROR_INVALID_CONTEXT)
}
