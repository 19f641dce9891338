//! [`Host`], a simulated CUDA device.

#[cfg(kernels_compiled)]
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::{
    alloc::{Layout, alloc, dealloc},
    ptr::NonNull,
};

use lstm_core::{Error, Result};
use lstm_cuda::{Address, Driver, Launch};

use crate::HostBuilder;

/// A simulated CUDA device that runs kernels on the CPU. A kernel has finished when `launch` returns.
#[derive(Clone, Debug)]
pub struct Host {
    options: HostBuilder,
}

/// Device memory, which is heap memory aligned to 64 bytes.
#[derive(Debug)]
pub struct HostMemory {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: this owns heap memory as a `Vec` does. As on a GPU, the caller orders launches that access it.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Returns the layout of memory for `len` values; `None` if it is too large.
    fn layout(len: usize) -> Option<Layout> {
        Layout::array::<f32>(len.max(1)).ok()?.align_to(64).ok()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let layout = HostMemory::layout(self.len).expect("this layout was valid in `alloc`");
        // SAFETY: `alloc` allocated the memory with this layout.
        unsafe { dealloc(self.data.as_ptr().cast(), layout) }
    }
}

#[cfg(kernels_compiled)]
unsafe extern "C" {
    /// Runs a kernel; defined in `executor.cpp`. Returns 0 on success. Otherwise the function writes the reason to
    /// `error`, a buffer of `error_size` bytes.
    fn lstm_cuda_sim_launch(
        kernel: *const c_char,
        grid: c_uint,
        threads: c_uint,
        shared_bytes: usize,
        cooperative: c_int,
        cluster_size: c_uint,
        schedule: c_uint,
        args: *const c_void,
        args_size: usize,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
}

/// The backend's name, which tells whether TF32 is allowed.
fn backend_name(allow_tf32: bool) -> &'static str {
    if allow_tf32 { "cuda-host-tf32" } else { "cuda-host" }
}

impl Host {
    /// Returns the default options for opening a simulated device.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Opens a simulated device with these options.
    ///
    /// # Errors
    /// [`Error::Device`] if the kernels can't run on this machine.
    pub(crate) fn new(options: HostBuilder) -> Result<Self> {
        let host = Host { options };
        #[cfg(kernels_compiled)]
        let unavailable_reason =
            match std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
                true => None,
                false => Some("the kernels were compiled for AVX2 and FMA, which this CPU does not have"),
            };
        #[cfg(not(kernels_compiled))]
        let unavailable_reason = Some(env!("LSTM_CUDA_SIM_UNAVAILABLE"));
        match unavailable_reason {
            None => Ok(host),
            Some(reason) => Err(host.error("open", reason)),
        }
    }

    /// Returns an error of the operation `op` on this device.
    fn error(&self, op: &'static str, reason: impl ToString) -> Error {
        let backend = backend_name(self.options.allow_tf32).to_owned();
        Error::Device { backend, op, reason: reason.to_string() }
    }
}

impl Driver for Host {
    type Memory = HostMemory;
    type Graph = Vec<Launch>;

    fn name(&self) -> &str {
        backend_name(self.options.allow_tf32)
    }

    fn allows_tf32(&self) -> bool {
        self.options.allow_tf32
    }

    fn alloc(&self, op: &'static str, len: usize) -> Result<HostMemory> {
        let too_large_error = || Error::TooLarge { op, sizes: vec![len] };
        let layout = HostMemory::layout(len).ok_or_else(too_large_error)?;
        // SAFETY: the layout's size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) }.cast::<f32>()).ok_or_else(too_large_error)?;
        // Fill with NaN, so that reads of uninitialized memory change results.
        // SAFETY: `len` values were allocated.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr().cast::<u32>(), len) }.fill(0x7fc0_dead);
        Ok(HostMemory { data, len })
    }

    fn address(&self, memory: &HostMemory) -> Address {
        memory.data.as_ptr() as Address
    }

    fn upload(&self, op: &'static str, memory: &HostMemory, data: &[f32]) -> Result<()> {
        if data.len() > memory.len {
            return Err(Error::shape(op, format!("at most {} values", memory.len), data.len()));
        }
        // SAFETY: the memory has at least as many values. No kernel runs: launches finish before they return.
        unsafe { data.as_ptr().copy_to_nonoverlapping(memory.data.as_ptr(), data.len()) };
        Ok(())
    }

    fn download(&self, op: &'static str, memory: &HostMemory, offset: usize, out: &mut [f32]) -> Result<()> {
        if offset.checked_add(out.len()).is_none_or(|end| end > memory.len) {
            return Err(Error::shape(
                op,
                format!("at most {} values", memory.len),
                format!("{} from {offset}", out.len()),
            ));
        }
        // SAFETY: the memory has these values. No kernel runs: launches finish before they return.
        unsafe { memory.data.as_ptr().add(offset).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    #[cfg(not(kernels_compiled))]
    fn launch(&self, op: &'static str, _: &Launch) -> Result<()> {
        Err(self.error(op, env!("LSTM_CUDA_SIM_UNAVAILABLE")))
    }

    #[cfg(kernels_compiled)]
    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()> {
        let kernel = CString::new(launch.kernel).map_err(|e| self.error(op, e))?;
        let mut reason = [0u8; 512];
        // SAFETY: the function checks the kernel's name and the size of the arguments. As `Driver` requires, the
        // addresses in the arguments are of memory as large as the kernel assumes.
        let status = unsafe {
            lstm_cuda_sim_launch(
                kernel.as_ptr(),
                launch.grid,
                launch.threads,
                launch.shared_bytes as usize,
                launch.cooperative.into(),
                launch.cluster_size,
                self.options.schedule.executor_code(),
                launch.args.as_ptr().cast(),
                size_of_val(&*launch.args),
                reason.as_mut_ptr().cast(),
                reason.len(),
            )
        };
        if status == 0 {
            return Ok(());
        }
        let reason = CStr::from_bytes_until_nul(&reason).unwrap_or_default().to_string_lossy();
        Err(self.error(op, format!("kernel {}: {reason}", launch.kernel)))
    }

    fn record_graph(&self, _: &'static str, launches: Vec<Launch>) -> Result<Vec<Launch>> {
        Ok(launches)
    }

    fn launch_graph(&self, op: &'static str, graph: &Vec<Launch>) -> Result<()> {
        graph.iter().try_for_each(|launch| self.launch(op, launch))
    }

    /// Returns a small number, so that small tests use the kernels for large problems, too.
    fn multiprocessors(&self) -> usize {
        4
    }

    fn resident_blocks(&self, _: &'static str, _: &'static str, _: u32, _: u32) -> Result<usize> {
        Ok(self.options.resident_blocks)
    }

    fn resident_clusters(&self, _: &'static str, _: &'static str, size: u32, _: u32, _: u32) -> Result<usize> {
        let HostBuilder { resident_blocks, cluster_size, .. } = self.options;
        Ok(if size == cluster_size { resident_blocks.div_ceil(size as usize) } else { 0 })
    }

    fn max_shared_bytes(&self) -> u32 {
        48 << 10
    }
}
