//! [`CudaDriver`], an NVIDIA GPU that is used through the CUDA driver API. The driver's library is loaded when a device
//! is opened.

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
use crate::driver::{Address, Driver, Launch};

/// A GPU with its loaded kernels, and a CUDA stream on which all work runs in order. Clones share the same GPU and
/// stream.
#[derive(Clone)]
pub struct CudaDriver(Arc<DeviceInner>);

struct DeviceInner {
    context: Arc<Context>,
    stream: Stream,
    /// A separate stream on which graphs are captured, so that a capture does not record the work that other threads
    /// enqueue. One thread captures at a time.
    capture_stream: Mutex<Stream>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
    /// The device's name and architecture.
    label: String,
    multiprocessors: usize,
    /// Whether the device supports cooperative launches and the layers may use them.
    cooperative_launches: bool,
    /// Limit of shared memory per block, in bytes.
    max_shared_bytes: u32,
    /// Whether matrix products may run on tensor cores, in TF32.
    allow_tf32: bool,
    /// Whether memory can be allocated and freed in stream order, from a pool.
    has_memory_pools: bool,
    /// Whether the device can read pageable host memory. A copy from such memory may then be unfinished when the
    /// driver's function returns.
    reads_pageable_memory: bool,
}

// SAFETY: the driver's objects may be used from any thread in which their context is current; `bind` makes it so.
unsafe impl Send for DeviceInner {}
// SAFETY: as above.
unsafe impl Sync for DeviceInner {}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({}{})", self.0.label, if self.0.allow_tf32 { ", tf32" } else { "" })
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // Errors here can't be reported. They mean that the device is lost, and these objects with it.
        let _ = self.context.bind();
        let _ = self.stream.synchronize();
        // SAFETY: the module was loaded in `open`, and no kernel is running.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Device memory, freed on drop.
pub struct DeviceMemory {
    device: Arc<DeviceInner>,
    address: sys::CUdeviceptr,
    len: usize,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.device.context.bind();
        // SAFETY: the memory was allocated in `alloc`, and is freed once, after all work enqueued before.
        let _ = unsafe {
            if self.device.has_memory_pools {
                result::free_async(self.address, self.device.stream.raw())
            } else {
                let _ = self.device.stream.synchronize();
                result::free_sync(self.address)
            }
        };
    }
}

/// A graph of kernel launches, destroyed on drop.
pub struct DeviceGraph {
    device: Arc<DeviceInner>,
    exec: sys::CUgraphExec,
}

// SAFETY: as for `DeviceInner`.
unsafe impl Send for DeviceGraph {}
// SAFETY: as above; launches of the graph are ordered by the stream.
unsafe impl Sync for DeviceGraph {}

impl Drop for DeviceGraph {
    fn drop(&mut self) {
        let _ = self.device.context.bind();
        // SAFETY: the graph was made in `graph` and is destroyed once; the driver defers this while the graph runs.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

/// Returns the error for an action of the driver that failed. The message contains the name of the error code but not
/// its description, which would need another call of the driver.
fn driver_error(backend: &str, op: &'static str, action: &str, error: DriverError) -> Error {
    device_error(backend, op, format!("{action}: {:?}", error.0))
}

fn device_error(backend: &str, op: &'static str, reason: impl ToString) -> Error {
    Error::Device { backend: backend.to_owned(), op, reason: reason.to_string() }
}

/// Returns the launch attribute for clusters of `size` blocks.
fn cluster_attribute(size: u32) -> sys::CUlaunchAttribute {
    let value = sys::CUlaunchAttributeValue {
        clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: size, y: 1, z: 1 },
    };
    sys::CUlaunchAttribute { id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, pad: [0; 4], value }
}

/// Returns a launch configuration. The configuration points to `attributes`, which must outlive it.
fn launch_config(
    grid: u32,
    threads: u32,
    shared_bytes: u32,
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
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: 1,
    }
}

impl CudaDriver {
    /// The backend's name, which tells whether TF32 is allowed.
    fn backend_name(allow_tf32: bool) -> &'static str {
        if allow_tf32 { "cuda-tf32" } else { "cuda" }
    }

    fn driver_error(&self, op: &'static str, action: &str, error: DriverError) -> Error {
        driver_error(self.name(), op, action, error)
    }

    /// Makes the device's context current in this thread.
    fn bind(&self, op: &'static str) -> Result<()> {
        self.0.context.bind().map_err(|e| self.driver_error(op, "cuCtxSetCurrent", e))
    }

    fn function(&self, op: &'static str, kernel: &str) -> Result<sys::CUfunction> {
        self.0
            .functions
            .get(kernel)
            .copied()
            .ok_or_else(|| device_error(self.name(), op, format!("there is no kernel {kernel}")))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind("synchronize")?;
        self.wait("synchronize")
    }

    /// Waits for all enqueued work.
    fn wait(&self, op: &'static str) -> Result<()> {
        self.0.stream.synchronize().map_err(|e| self.driver_error(op, "cuStreamSynchronize", e))
    }

    /// Whether an asynchronous copy of `data` to the device is staged, so that the driver has read all of `data` when
    /// its copy function returns. A copy is not staged if the device reads the host memory directly: some devices can
    /// read all host memory, and all devices can read memory that is registered with CUDA.
    fn is_copy_staged(&self, op: &'static str, data: &[f32]) -> Result<bool> {
        if self.0.reads_pageable_memory {
            return Ok(false);
        }
        let (mut memory_type, host_address) = (0u32, data.as_ptr() as sys::CUdeviceptr);
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        // SAFETY: the attribute is a 32-bit number; the address is only looked up, not accessed.
        match unsafe { sys::cuPointerGetAttribute((&raw mut memory_type).cast(), attribute, host_address) } {
            // The memory is not registered with CUDA.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => Ok(true),
            status => status.result().map(|()| false).map_err(|e| self.driver_error(op, "cuPointerGetAttribute", e)),
        }
    }

    fn launch_on_stream(&self, op: &'static str, launch: &Launch, stream: &Stream) -> Result<()> {
        let function = self.function(op, launch.kernel)?;
        let mut params = [launch.args.as_ptr().cast::<c_void>().cast_mut()];
        if launch.cluster_size > 0 {
            let mut attributes = [cluster_attribute(launch.cluster_size)];
            let config = launch_config(launch.grid, launch.threads, launch.shared_bytes, stream.raw(), &mut attributes);
            // SAFETY: as below; the attributes live until the call returns.
            let launch_result =
                unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), ptr::null_mut()) };
            return launch_result
                .result()
                .map_err(|e| self.driver_error(op, &format!("launch of {} in clusters", launch.kernel), e));
        }
        let (grid, threads) = ((launch.grid, 1, 1), (launch.threads, 1, 1));
        // SAFETY: a kernel takes one struct, which is copied before the call returns; for the addresses in it see
        // `Driver`.
        let launch_result = unsafe {
            let launch_kernel =
                if launch.cooperative { result::launch_cooperative_kernel } else { result::launch_kernel };
            launch_kernel(function, grid, threads, launch.shared_bytes, stream.raw(), &mut params)
        };
        launch_result.map_err(|e| self.driver_error(op, &format!("launch of {}", launch.kernel), e))
    }
}

impl Driver for CudaDriver {
    type Memory = DeviceMemory;
    type Graph = DeviceGraph;

    fn name(&self) -> &str {
        CudaDriver::backend_name(self.0.allow_tf32)
    }

    fn allows_tf32(&self) -> bool {
        self.0.allow_tf32
    }

    fn alloc(&self, op: &'static str, len: usize) -> Result<DeviceMemory> {
        self.bind(op)?;
        let bytes = len.max(1).checked_mul(4).ok_or(Error::TooLarge { op, sizes: vec![len] })?;
        // SAFETY: the memory keeps the device alive, and thereby the stream.
        let address = unsafe {
            if self.0.has_memory_pools {
                result::malloc_async(self.0.stream.raw(), bytes)
            } else {
                result::malloc_sync(bytes)
            }
        };
        let address = address.map_err(|e| {
            let out_of_memory_note =
                if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY { ", which do not fit in memory" } else { "" };
            self.driver_error(op, &format!("allocation of {bytes} bytes{out_of_memory_note}"), e)
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
        let is_staged = self.is_copy_staged(op, data)?;
        // SAFETY: the device memory is large enough. The host memory has been read when this function returns: either
        // the copy is staged, or we wait.
        let copy_result = unsafe { result::memcpy_htod_async(memory.address, data, self.0.stream.raw()) };
        copy_result.map_err(|e| self.driver_error(op, "copy to the device", e))?;
        if is_staged { Ok(()) } else { self.wait(op) }
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
        let src = memory.address + 4 * offset as Address;
        // SAFETY: the range is inside the device memory; we wait until it is copied.
        let copy_result = unsafe { result::memcpy_dtoh_async(out, src, self.0.stream.raw()) };
        // Wait even after an error, so that nothing writes to `out` later.
        let wait_result = self.wait(op);
        copy_result.map_err(|e| self.driver_error(op, "copy to the host", e))?;
        wait_result
    }

    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()> {
        self.bind(op)?;
        self.launch_on_stream(op, launch, &self.0.stream)
    }

    fn record_graph(&self, op: &'static str, launches: Vec<Launch>) -> Result<DeviceGraph> {
        self.bind(op)?;
        let stream = self.0.capture_stream.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = stream.raw();
        let capture_mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: this stream is only used for capturing, and by one thread at a time.
        unsafe { result::stream::begin_capture(raw, capture_mode) }
            .map_err(|e| self.driver_error(op, "cuStreamBeginCapture", e))?;
        let record_result = launches.iter().try_for_each(|launch| self.launch_on_stream(op, launch, &stream));
        // SAFETY: the capture was begun above. It must be ended even if a launch failed.
        let graph = unsafe { result::stream::end_capture(raw) };
        // After a failed launch the capture may still give a graph, which is incomplete.
        let exec = record_result.and_then(|()| {
            let graph = graph.map_err(|e| self.driver_error(op, "cuStreamEndCapture", e))?;
            // SAFETY: the graph was just captured.
            let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
            exec.map_err(|e| self.driver_error(op, "cuGraphInstantiate", e))
        });
        if let Ok(graph) = graph {
            // SAFETY: as above; the executable graph does not depend on it.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        Ok(DeviceGraph { device: self.0.clone(), exec: exec? })
    }

    fn launch_graph(&self, op: &'static str, graph: &DeviceGraph) -> Result<()> {
        self.bind(op)?;
        // SAFETY: the graph and the stream exist; for the addresses in the launches see `Driver`.
        let launch_result = unsafe { result::graph::launch(graph.exec, self.0.stream.raw()) };
        launch_result.map_err(|e| self.driver_error(op, "cuGraphLaunch", e))
    }

    fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    fn resident_blocks(
        &self,
        op: &'static str,
        kernel: &'static str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<usize> {
        self.bind(op)?;
        if !self.0.cooperative_launches {
            return Ok(0);
        }
        let function = self.function(op, kernel)?;
        // SAFETY: the function's module is loaded.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(function, threads as i32, shared_bytes as usize)
        };
        let blocks = blocks.map_err(|e| self.driver_error(op, "cuOccupancyMaxActiveBlocksPerMultiprocessor", e))?;
        Ok(usize::try_from(blocks).unwrap_or(0) * self.0.multiprocessors)
    }

    fn resident_clusters(
        &self,
        op: &'static str,
        kernel: &'static str,
        cluster_size: u32,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<usize> {
        // Kernels with clusters do not exist before sm_90.
        let Some(&function) = self.0.functions.get(kernel) else { return Ok(0) };
        self.bind(op)?;
        let mut attributes = [cluster_attribute(cluster_size)];
        let config = launch_config(cluster_size, threads, shared_bytes, self.0.stream.raw(), &mut attributes);
        let mut cluster_count = 0;
        // SAFETY: the function's module is loaded; the pointers are to these variables.
        match unsafe { sys::cuOccupancyMaxActiveClusters(&mut cluster_count, function, &config) } {
            // The device has no clusters of this size. Which error code this gives is not documented. Invalid arguments
            // of ours would give errors for smaller clusters, too.
            sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(0),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE | sys::CUresult::CUDA_ERROR_NOT_SUPPORTED if cluster_size > 8 => {
                Ok(0)
            }
            status => {
                status.result().map_err(|e| self.driver_error(op, "cuOccupancyMaxActiveClusters", e))?;
                Ok(usize::try_from(cluster_count).unwrap_or(0))
            }
        }
    }

    fn max_shared_bytes(&self) -> u32 {
        self.0.max_shared_bytes
    }
}
