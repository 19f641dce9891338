//! A GPU by NVIDIA, through the driver's API, which is looked for when a device is opened.

mod context;
mod open;

pub(crate) use open::devices;

use std::{
    collections::HashMap,
    ffi::c_void,
    fmt, ptr,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use lstm_core::{Error, Result};

use self::context::{Context, Stream};
use crate::{
    args::Address,
    driver::{Driver, Launch},
};

/// A device with a stream on which everything happens in order, and the kernels.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    context: Arc<Context>,
    stream: Stream,
    /// Launches are recorded here, away from what other threads start meanwhile; one at a time.
    recording: Mutex<Stream>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
    /// The device's name, for reports.
    label: String,
    multiprocessors: usize,
    cooperative: bool,
    max_shared: u32,
    /// Whether products go to tensor cores.
    fast: bool,
    /// Whether memory is given and taken back in the stream's order.
    ordered_memory: bool,
    /// Whether the device can read any of the host's memory, so that copies from there may outlive the call.
    reads_host: bool,
}

// SAFETY: the driver's objects may be used from any thread whose context is theirs, which `bind` sees to.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({}{})", self.0.label, if self.0.fast { ", tf32" } else { "" })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // There is nobody left to tell of an error: what is lost with the device is lost.
        let _ = self.context.bind();
        let _ = self.stream.synchronize();
        // SAFETY: it was loaded in `open`, and nothing runs any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Some values in the device's memory.
pub struct DeviceMemory {
    device: Arc<Inner>,
    address: sys::CUdeviceptr,
    len: usize,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.device.context.bind();
        // SAFETY: allocated in `alloc` and freed once, after all that was asked for before.
        let _ = unsafe {
            if self.device.ordered_memory {
                result::free_async(self.address, self.device.stream.raw())
            } else {
                let _ = self.device.stream.synchronize();
                result::free_sync(self.address)
            }
        };
    }
}

/// Launches that start together.
pub struct DeviceGraph {
    device: Arc<Inner>,
    exec: sys::CUgraphExec,
}

// SAFETY: as for `Inner`.
unsafe impl Send for DeviceGraph {}
// SAFETY: as above; replays are ordered by the stream.
unsafe impl Sync for DeviceGraph {}

impl Drop for DeviceGraph {
    fn drop(&mut self) {
        let _ = self.device.context.bind();
        // SAFETY: made in `graph` and destroyed once; the driver waits for a replay that runs.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

/// An error in the driver's own name for it. Its words are not asked for: that is another call.
fn failed(backend: &str, op: &'static str, what: &str, error: DriverError) -> Error {
    refused(backend, op, format!("{what}: {:?}", error.0))
}

fn refused(backend: &str, op: &'static str, why: impl ToString) -> Error {
    Error::Device { backend: backend.to_owned(), op, reason: why.to_string() }
}

/// Blocks form clusters of `size`.
fn cluster_of(size: u32) -> sys::CUlaunchAttribute {
    let value = sys::CUlaunchAttributeValue {
        clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: size, y: 1, z: 1 },
    };
    sys::CUlaunchAttribute { id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, pad: [0; 4], value }
}

/// A launch; the attributes must outlive its use.
fn config(
    grid: u32,
    threads: u32,
    shared: u32,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute; 1],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: 1,
    }
}

impl Device {
    /// The backend's name, in the fast mode or not.
    fn name_of(fast: bool) -> &'static str {
        if fast { "cuda-tf32" } else { "cuda" }
    }

    fn failed(&self, op: &'static str, what: &str, error: DriverError) -> Error {
        failed(self.name(), op, what, error)
    }

    fn bind(&self, op: &'static str) -> Result<()> {
        self.0.context.bind().map_err(|e| self.failed(op, "cuCtxSetCurrent", e))
    }

    fn function(&self, op: &'static str, kernel: &str) -> Result<sys::CUfunction> {
        self.0
            .functions
            .get(kernel)
            .copied()
            .ok_or_else(|| refused(self.name(), op, format!("no kernel is called {kernel}")))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind("synchronize")?;
        self.wait("synchronize")
    }

    fn wait(&self, op: &'static str) -> Result<()> {
        self.0.stream.synchronize().map_err(|e| self.failed(op, "cuStreamSynchronize", e))
    }

    /// Whether a copy from the host's memory takes it up before it returns, as it does unless the device reads it itself:
    /// some devices read all memory, all of them what somebody made known to CUDA.
    fn is_staged(&self, op: &'static str, data: &[f32]) -> Result<bool> {
        if self.0.reads_host {
            return Ok(false);
        }
        let (mut kind, at) = (0u32, data.as_ptr() as sys::CUdeviceptr);
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        // SAFETY: the attribute is a number of 32 bits; the address is only looked up.
        match unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, at) } {
            // CUDA does not know the address.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => Ok(true),
            asked => asked.result().map(|()| false).map_err(|e| self.failed(op, "cuPointerGetAttribute", e)),
        }
    }

    fn launch_in(&self, op: &'static str, launch: &Launch, stream: &Stream) -> Result<()> {
        let function = self.function(op, launch.kernel)?;
        let mut params = [launch.args.as_ptr().cast::<c_void>().cast_mut()];
        if launch.cluster > 0 {
            let mut attributes = [cluster_of(launch.cluster)];
            let config = config(launch.grid, launch.threads, launch.shared, stream.raw(), &mut attributes);
            // SAFETY: as below; the attributes live until it returns.
            let launched = unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), ptr::null_mut()) };
            return launched
                .result()
                .map_err(|e| self.failed(op, &format!("launch of {} in clusters", launch.kernel), e));
        }
        let (grid, threads) = ((launch.grid, 1, 1), (launch.threads, 1, 1));
        // SAFETY: a kernel takes one struct, which is copied before this returns; the addresses in it are as `Driver` says.
        let launched = unsafe {
            let start = if launch.resident { result::launch_cooperative_kernel } else { result::launch_kernel };
            start(function, grid, threads, launch.shared, stream.raw(), &mut params)
        };
        launched.map_err(|e| self.failed(op, &format!("launch of {}", launch.kernel), e))
    }
}

impl Driver for Device {
    type Memory = DeviceMemory;
    type Graph = DeviceGraph;

    fn name(&self) -> &str {
        Device::name_of(self.0.fast)
    }

    fn fast(&self) -> bool {
        self.0.fast
    }

    fn alloc(&self, op: &'static str, len: usize) -> Result<DeviceMemory> {
        self.bind(op)?;
        let bytes = len.max(1).checked_mul(4).ok_or(Error::TooLarge { op, sizes: vec![len] })?;
        // SAFETY: the stream lives as long as the memory does.
        let address = unsafe {
            if self.0.ordered_memory {
                result::malloc_async(self.0.stream.raw(), bytes)
            } else {
                result::malloc_sync(bytes)
            }
        };
        let address = address.map_err(|e| {
            let full = if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY { ", which do not fit in memory" } else { "" };
            self.failed(op, &format!("allocation of {bytes} bytes{full}"), e)
        })?;
        Ok(DeviceMemory { device: self.0.clone(), address, len })
    }

    fn address(&self, memory: &DeviceMemory) -> Address {
        memory.address
    }

    fn upload(&self, op: &'static str, memory: &DeviceMemory, data: &[f32]) -> Result<()> {
        self.bind(op)?;
        if data.len() > memory.len {
            return Err(Error::shape(op, format!("at most {} values", memory.len), data.len()));
        }
        let staged = self.is_staged(op, data)?;
        // SAFETY: as much memory was allocated. The host's is read before this returns: it is staged, or we wait.
        let copied = unsafe { result::memcpy_htod_async(memory.address, data, self.0.stream.raw()) };
        copied.map_err(|e| self.failed(op, "copy to the device", e))?;
        if staged { Ok(()) } else { self.wait(op) }
    }

    fn download(&self, op: &'static str, memory: &DeviceMemory, offset: usize, out: &mut [f32]) -> Result<()> {
        self.bind(op)?;
        if offset.checked_add(out.len()).is_none_or(|end| end > memory.len) {
            return Err(Error::shape(
                op,
                format!("at most {} values", memory.len),
                format!("{} from {offset}", out.len()),
            ));
        }
        let from = memory.address + 4 * offset as Address;
        // SAFETY: as much memory was allocated; we wait until it is copied.
        let copied = unsafe { result::memcpy_dtoh_async(out, from, self.0.stream.raw()) };
        // Even after an error nothing may still be writing to `out`.
        let waited = self.wait(op);
        copied.map_err(|e| self.failed(op, "copy to the host", e))?;
        waited
    }

    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()> {
        self.bind(op)?;
        self.launch_in(op, launch, &self.0.stream)
    }

    fn graph(&self, op: &'static str, launches: Vec<Launch>) -> Result<DeviceGraph> {
        self.bind(op)?;
        let stream = self.0.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = stream.raw();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is used for nothing else, and by one thread at a time.
        unsafe { result::stream::begin_capture(raw, mode) }.map_err(|e| self.failed(op, "cuStreamBeginCapture", e))?;
        let recorded = launches.iter().try_for_each(|launch| self.launch_in(op, launch, &stream));
        // SAFETY: begun above; it must end whatever came between.
        let graph = unsafe { result::stream::end_capture(raw) };
        // A capture that lacks a launch ends in a graph as well.
        let exec = recorded.and_then(|()| {
            let graph = graph.map_err(|e| self.failed(op, "cuStreamEndCapture", e))?;
            // SAFETY: the graph was just recorded.
            let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
            exec.map_err(|e| self.failed(op, "cuGraphInstantiate", e))
        });
        if let Ok(graph) = graph {
            // SAFETY: as above; what is made of it does not need it.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        Ok(DeviceGraph { device: self.0.clone(), exec: exec? })
    }

    fn replay(&self, op: &'static str, graph: &DeviceGraph) -> Result<()> {
        self.bind(op)?;
        // SAFETY: both live; the addresses in its launches are as `Driver` says.
        let launched = unsafe { result::graph::launch(graph.exec, self.0.stream.raw()) };
        launched.map_err(|e| self.failed(op, "cuGraphLaunch", e))
    }

    fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    fn resident_blocks(&self, op: &'static str, kernel: &'static str, threads: u32, shared: u32) -> Result<usize> {
        self.bind(op)?;
        if !self.0.cooperative {
            return Ok(0);
        }
        let function = self.function(op, kernel)?;
        // SAFETY: a function of a module that is loaded.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(function, threads as i32, shared as usize)
        };
        let blocks = blocks.map_err(|e| self.failed(op, "cuOccupancyMaxActiveBlocksPerMultiprocessor", e))?;
        Ok(usize::try_from(blocks).unwrap_or(0) * self.0.multiprocessors)
    }

    fn resident_clusters(
        &self,
        op: &'static str,
        kernel: &'static str,
        size: u32,
        threads: u32,
        shared: u32,
    ) -> Result<usize> {
        // Absent before sm_90.
        let Some(&function) = self.0.functions.get(kernel) else { return Ok(0) };
        self.bind(op)?;
        let mut attributes = [cluster_of(size)];
        let config = config(size, threads, shared, self.0.stream.raw(), &mut attributes);
        let mut count = 0;
        // SAFETY: a function of a module that is loaded; the pointers are of these variables.
        match unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config) } {
            // The device has none of that size. Which error says so is not written down; what is wrong with the question
            // itself would be told of smaller ones, too.
            sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(0),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE | sys::CUresult::CUDA_ERROR_NOT_SUPPORTED if size > 8 => Ok(0),
            asked => {
                asked.result().map_err(|e| self.failed(op, "cuOccupancyMaxActiveClusters", e))?;
                Ok(usize::try_from(count).unwrap_or(0))
            }
        }
    }

    fn max_shared(&self) -> u32 {
        self.0.max_shared
    }
}
