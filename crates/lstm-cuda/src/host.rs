//! The kernels' own sources on a CPU, each CUDA thread a fiber: for tests on machines without a GPU. See `host/shim.h`.

#[cfg(host_kernels)]
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::{
    alloc::{Layout, alloc, dealloc},
    ptr::NonNull,
};

use lstm_core::{Error, Result};

use crate::{
    args::Address,
    driver::{Driver, Launch},
};

/// Stands in for a device.
#[derive(Clone, Debug)]
pub struct Host {
    /// Which of the orders in which blocks and threads take their turns.
    #[cfg_attr(not(host_kernels), expect(dead_code, reason = "nothing runs"))]
    schedule: u32,
    /// Blocks that can be there at the same time.
    resident: usize,
    /// The one size of clusters that there is, or 0.
    cluster: u32,
    fast: bool,
}

/// Values on the heap.
#[derive(Debug)]
pub struct HostMemory {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: it is memory like a `Vec`'s; what kernels write there is ordered by the caller, as on a device.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn layout(len: usize) -> Option<Layout> {
        Layout::array::<f32>(len.max(1)).ok()?.align_to(64).ok()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let layout = HostMemory::layout(self.len).expect("it was allocated with it");
        // SAFETY: allocated in `alloc` with this layout.
        unsafe { dealloc(self.data.as_ptr().cast(), layout) }
    }
}

#[cfg(host_kernels)]
unsafe extern "C" {
    /// Zero if it went well, else why not.
    fn lstm_cuda_host_launch(
        kernel: *const c_char,
        grid: c_uint,
        threads: c_uint,
        shared: usize,
        resident: c_int,
        cluster: c_uint,
        seed: c_uint,
        args: *const c_void,
        args_size: usize,
        why: *mut c_char,
        why_size: usize,
    ) -> c_int;
}

impl Host {
    /// The backend's name, in the fast mode or not.
    fn name_of(fast: bool) -> &'static str {
        if fast { "cuda-host-tf32" } else { "cuda-host" }
    }

    pub(crate) fn new(schedule: u32, resident: usize, cluster: u32, fast: bool) -> Result<Self> {
        #[cfg(host_kernels)]
        let why = match std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
            true => None,
            false => Some("the kernels were built for AVX2 and FMA, which this CPU does not have"),
        };
        #[cfg(not(host_kernels))]
        let why = Some(env!("LSTM_CUDA_NO_HOST"));
        match why {
            None => Ok(Host { schedule, resident, cluster, fast }),
            Some(why) => Err(Host::error(fast, "open", why)),
        }
    }

    fn error(fast: bool, op: &'static str, why: impl ToString) -> Error {
        Error::Device { backend: Host::name_of(fast).to_owned(), op, why: why.to_string() }
    }
}

impl Driver for Host {
    type Memory = HostMemory;
    type Graph = Vec<Launch>;

    fn name(&self) -> &str {
        Host::name_of(self.fast)
    }

    fn fast(&self) -> bool {
        self.fast
    }

    fn alloc(&self, op: &'static str, len: usize) -> Result<HostMemory> {
        let too_large = || Error::TooLarge { op, sizes: vec![len] };
        let layout = HostMemory::layout(len).ok_or_else(too_large)?;
        // SAFETY: the layout is not of size zero.
        let data = NonNull::new(unsafe { alloc(layout) }.cast::<f32>()).ok_or_else(too_large)?;
        // A value that nobody wrote shows.
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
        // SAFETY: as many values were allocated; no kernel runs, since launches are done when they return.
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
        // SAFETY: as above.
        unsafe { memory.data.as_ptr().add(offset).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    #[cfg(not(host_kernels))]
    fn launch(&self, op: &'static str, _: &Launch) -> Result<()> {
        Err(Host::error(self.fast, op, env!("LSTM_CUDA_NO_HOST")))
    }

    #[cfg(host_kernels)]
    fn launch(&self, op: &'static str, launch: &Launch) -> Result<()> {
        let kernel = CString::new(launch.kernel).map_err(|e| Host::error(self.fast, op, e))?;
        let mut why = [0u8; 512];
        // SAFETY: the kernel's name and arguments are checked there; the addresses are as `Driver` says.
        let failed = unsafe {
            lstm_cuda_host_launch(
                kernel.as_ptr(),
                launch.grid,
                launch.threads,
                launch.shared as usize,
                launch.resident.into(),
                launch.cluster,
                self.schedule,
                launch.args.as_ptr().cast(),
                size_of_val(&*launch.args),
                why.as_mut_ptr().cast(),
                why.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let why = CStr::from_bytes_until_nul(&why).unwrap_or_default().to_string_lossy();
        Err(Host::error(self.fast, op, format!("kernel {}: {why}", launch.kernel)))
    }

    fn graph(&self, _: &'static str, launches: Vec<Launch>) -> Result<Vec<Launch>> {
        Ok(launches)
    }

    fn replay(&self, op: &'static str, graph: &Vec<Launch>) -> Result<()> {
        graph.iter().try_for_each(|launch| self.launch(op, launch))
    }

    /// Few, so that the choices of a large device come up in small tests.
    fn multiprocessors(&self) -> usize {
        4
    }

    fn resident_blocks(&self, _: &'static str, _: &'static str, _: u32, _: u32) -> Result<usize> {
        Ok(self.resident)
    }

    fn resident_clusters(&self, _: &'static str, _: &'static str, size: u32, _: u32, _: u32) -> Result<usize> {
        Ok(if size == self.cluster { self.resident.div_ceil(size as usize) } else { 0 })
    }

    fn max_shared(&self) -> u32 {
        48 << 10
    }
}
