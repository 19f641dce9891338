//! The kernels' sources, and compiling them by NVRTC, which needs neither a GPU nor a driver.

use std::{
    ffi::{CStr, CString, c_char},
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};
use lstm_core::{Error, Result};

use crate::cache;

/// The sources in the order in which they make one text; the same files are built for the host in this order.
const SOURCES: [(&str, &str); 14] = [
    ("device.cuh", include_str!("../kernels/device.cuh")),
    ("constants.cuh", include_str!("../kernels/constants.cuh")),
    ("args.cuh", include_str!("../kernels/args.cuh")),
    ("arithmetic.cuh", include_str!("../kernels/arithmetic.cuh")),
    ("tile.cuh", include_str!("../kernels/tile.cuh")),
    ("primitives.cu", include_str!("../kernels/primitives.cu")),
    ("forward.cu", include_str!("../kernels/forward.cu")),
    ("backward.cu", include_str!("../kernels/backward.cu")),
    ("fast.cu", include_str!("../kernels/fast.cu")),
    ("shares.cuh", include_str!("../kernels/shares.cuh")),
    ("persistent.cu", include_str!("../kernels/persistent.cu")),
    ("persistent_back.cu", include_str!("../kernels/persistent_back.cu")),
    ("projected.cu", include_str!("../kernels/projected.cu")),
    ("cluster.cu", include_str!("../kernels/cluster.cu")),
];

/// What the compiler is told besides the architecture. Nothing is contracted and nothing flushed to zero.
const OPTIONS: [&str; 5] = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--ptxas-options=-v"];

/// All kernels, in no order.
pub(crate) const NAMES: [&str; 34] = [
    "map",
    "mul_add",
    "within",
    "copy",
    "gemm_small",
    "gemm_medium",
    "gemm_large",
    "sum",
    "step_small",
    "step_medium",
    "project_small",
    "project_medium",
    "back_gates",
    "back_joined",
    "back_small",
    "back_medium",
    "back_state_joined",
    "back_state_small",
    "back_state_medium",
    "back_units_small",
    "back_units_medium",
    "fast_gemm_narrow",
    "fast_gemm_wide",
    "fast_step",
    "fast_project",
    "fast_back",
    "fast_back_state",
    "fast_back_units",
    "persistent",
    "persistent_back",
    "projected",
    "projected_back",
    "cluster",
    "cluster_back",
];

/// Whether a kernel is one for clusters, which only builds for sm_90 and later hold.
pub(crate) fn is_for_clusters(kernel: &str) -> bool {
    kernel.starts_with("cluster")
}

/// Oldest architecture with the kernels of the fast mode, whose names start with `fast`.
pub(crate) const OLDEST_FAST: u32 = 80;

/// Whether builds for some architectures do without a kernel.
pub(crate) fn is_optional(kernel: &str) -> bool {
    is_for_clusters(kernel) || kernel.starts_with("fast")
}

/// Kernels for one architecture.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What a driver loads: a cubin, or where NVRTC does not know the architecture, PTX for an older one.
    pub image: Vec<u8>,
    /// What each kernel takes; none for PTX.
    pub usage: Vec<Usage>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread writes to memory because it has too few registers.
    pub spilled: u32,
}

/// All sources as one text.
pub(crate) fn source() -> String {
    SOURCES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// What a compiled image depends on besides the driver.
pub(crate) fn key(architecture: u32) -> String {
    format!("sm_{architecture} {} {:016x}", OPTIONS.join(" "), cache::digest(source().as_bytes()))
}

fn error(op: &'static str, why: impl ToString) -> Error {
    Error::Device { backend: "cuda".to_owned(), op, reason: why.to_string() }
}

/// NVRTC's version and the architectures that it compiles for, such as 90 for `sm_90`.
///
/// # Errors
/// [`Error::Device`] if there is no NVRTC.
pub fn nvrtc() -> Result<((i32, i32), Vec<u32>)> {
    let op = "nvrtc";
    // SAFETY: opens the library, and nothing else; cudarc panics where it is absent.
    if !unsafe { sys::is_culib_present() } {
        let why = "no NVRTC (libnvrtc.so.12 or .13, nvrtc64_*.dll) where the dynamic loader looks; it comes with the CUDA \
                   toolkit and in the PyPI packages nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvrtc";
        return Err(error(op, why));
    }
    let (mut major, mut minor, mut count) = (0, 0, 0);
    let failed = |e| error(op, format!("{e:?}"));
    // SAFETY: the library is there; the pointers are of these variables, the array as long as the library says.
    unsafe {
        sys::nvrtcVersion(&mut major, &mut minor).result().map_err(failed)?;
        sys::nvrtcGetNumSupportedArchs(&mut count).result().map_err(failed)?;
        let mut list = vec![0; usize::try_from(count).unwrap_or(0)];
        sys::nvrtcGetSupportedArchs(list.as_mut_ptr()).result().map_err(failed)?;
        Ok(((major, minor), list.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect()))
    }
}

/// Compiles the kernels for an architecture, such as 90 for `sm_90`.
///
/// # Errors
/// [`Error::Device`] if there is no NVRTC, if it knows neither this architecture nor an older one, or with the compiler's
/// words.
pub fn compile(architecture: u32) -> Result<Compiled> {
    let (_, known) = nvrtc()?;
    if known.contains(&architecture) {
        let (image, log) = build(&format!("sm_{architecture}"), true)?;
        return Ok(Compiled { image, usage: usage(&log) });
    }
    // A driver compiles PTX of an older architecture for a newer one.
    let older = known.iter().filter(|&&known| known < architecture).max();
    let older = older.ok_or_else(|| error("compile", format!("sm_{architecture}: NVRTC knows {known:?}")))?;
    let (image, _) = build(&format!("compute_{older}"), false)?;
    Ok(Compiled { image, usage: Vec::new() })
}

/// Compiles the kernels for some architectures into files of a directory. A machine without NVRTC finds them there if the
/// environment variable `LSTM_CUDA_KERNELS` names it.
///
/// # Errors
/// As for [`compile`]; [`Error::Io`] for the files.
pub fn prebuild(dir: &Path, architectures: &[u32]) -> Result<Vec<PathBuf>> {
    let (_, known) = nvrtc()?;
    let files = architectures.iter().map(|&architecture| {
        if !known.contains(&architecture) {
            return Err(error("prebuild", format!("sm_{architecture}: NVRTC knows {known:?}")));
        }
        let path = prebuilt(dir, architecture);
        cache::write(&path, &key(architecture), &compile(architecture)?.image)?;
        Ok(path)
    });
    files.collect()
}

/// Where [`prebuild`] puts an architecture's kernels.
pub(crate) fn prebuilt(dir: &Path, architecture: u32) -> PathBuf {
    dir.join(format!("lstm-sm_{architecture}.cubin"))
}

/// A program of NVRTC's.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, and dropped once. That it can't fail is all that could be said.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// The image and the log.
fn build(architecture: &str, cubin: bool) -> Result<(Vec<u8>, String)> {
    let op = "compile";
    let failed = |e: result::NvrtcError| error(op, format!("{architecture}: {e:?}"));
    let source = CString::new(source()).map_err(|e| error(op, e))?;
    let program = Program(result::create_program(&source, Some(c"lstm.cu")).map_err(failed)?);
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(OPTIONS.map(str::to_owned));
    // SAFETY: a program that lives, and none of the options has a zero byte; so below.
    let compiled = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map_err(failed)?;
    let log = text(&log);
    compiled.map_err(|e| error(op, format!("{architecture}: {e:?}\n{log}")))?;
    let image = if cubin {
        let mut size = 0;
        // SAFETY: as above; the buffer is as long as it says.
        unsafe {
            sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(failed)?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()).result().map_err(failed)?;
            image
        }
    } else {
        // SAFETY: as above. The driver wants the zero at its end.
        let ptx = unsafe { result::get_ptx(program.0) }.map_err(failed)?;
        ptx.into_iter().map(|c| c as u8).collect()
    };
    Ok((image, log))
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}

/// What ptxas says about each kernel.
fn usage(log: &str) -> Vec<Usage> {
    // The number before some words, such as `8 bytes spill stores`.
    let before = |line: &str, words: &str| -> Option<u32> {
        line[..line.find(words)?].split_whitespace().next_back()?.parse().ok()
    };
    let (mut all, mut spilled) = (Vec::new(), 0);
    let mut kernel = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().map(str::to_owned);
        } else if let Some(bytes) = before(line, " bytes spill stores") {
            spilled = bytes;
        } else if let Some(registers) = before(line, " registers")
            && let Some(kernel) = kernel.take()
        {
            all.push(Usage { kernel, registers, spilled });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_s_report_is_understood() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'copy' for 'sm_90'\n\
                   ptxas info    : Function properties for copy\n\
                   ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 20 registers, used 0 barriers\n";
        assert_eq!(usage(log), [Usage { kernel: "copy".into(), registers: 20, spilled: 8 }]);
    }

    #[test]
    fn every_kernel_of_the_sources_is_in_the_list() {
        let source = source();
        let defined = source.match_indices("\nKERNEL(").map(|(at, found)| {
            let rest = &source[at + found.len()..];
            rest[..rest.find(',').expect("a kernel has arguments")].to_owned()
        });
        let mut defined: Vec<_> = defined.collect();
        let mut listed = NAMES.map(str::to_owned).to_vec();
        defined.sort();
        listed.sort();
        assert_eq!(defined, listed);
    }
}
