//! Compilation of the kernels by NVRTC. This needs neither a GPU nor a driver.

use std::{
    ffi::{CStr, CString, c_char},
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};
use lstm_core::{Error, Result};

use super::{cache, source};

/// Compiler options besides the architecture. They turn off contraction to fma and flushing of subnormals, which would
/// change results.
const COMPILER_OPTIONS: [&str; 5] =
    ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--ptxas-options=-v"];

/// The kernels, compiled for one architecture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CompiledKernels {
    /// The compiled code, which the CUDA driver loads as a module: a cubin, or PTX for an older architecture if NVRTC
    /// does not support the requested one.
    pub image: Vec<u8>,
    /// Resource usage of each kernel; empty for PTX.
    pub usage: Vec<ResourceUsage>,
}

/// The multiprocessor resources that a kernel uses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// The kernel's name.
    pub kernel: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes per thread that spill from registers to memory.
    pub spill_bytes: u32,
}

/// Returns the key that identifies a compiled image. It consists of the architecture, the compiler options and a digest
/// of the sources.
pub(crate) fn image_key(architecture: u32) -> String {
    format!("sm_{architecture} {} {:016x}", COMPILER_OPTIONS.join(" "), cache::digest(source().as_bytes()))
}

fn nvrtc_error(op: &'static str, reason: impl ToString) -> Error {
    Error::Device { backend: "cuda".to_owned(), op, reason: reason.to_string() }
}

/// Returns NVRTC's version, as major and minor, and the architectures that it can compile for, such as 90 for `sm_90`.
///
/// # Errors
/// [`Error::Device`] if there is no NVRTC.
pub fn nvrtc_capabilities() -> Result<((i32, i32), Vec<u32>)> {
    let op = "nvrtc";
    // SAFETY: this only opens the library. It is checked first because cudarc panics if the library is missing.
    if !unsafe { sys::is_culib_present() } {
        let reason = "no NVRTC: the dynamic loader does not find libnvrtc.so.12, libnvrtc.so.13 or nvrtc64_*.dll; install \
                      the CUDA toolkit, or the PyPI package nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc";
        return Err(nvrtc_error(op, reason));
    }
    let (mut major, mut minor, mut architecture_count) = (0, 0, 0);
    let to_error = |e| nvrtc_error(op, format!("{e:?}"));
    // SAFETY: the library is present; the pointers are to these variables, and the list has the length that NVRTC
    // reported.
    unsafe {
        sys::nvrtcVersion(&mut major, &mut minor).result().map_err(to_error)?;
        sys::nvrtcGetNumSupportedArchs(&mut architecture_count).result().map_err(to_error)?;
        let mut architectures = vec![0; usize::try_from(architecture_count).unwrap_or(0)];
        sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()).result().map_err(to_error)?;
        Ok(((major, minor), architectures.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect()))
    }
}

fn unsupported_error(op: &'static str, architecture: u32, supported_architectures: &[u32]) -> Error {
    nvrtc_error(op, format!("NVRTC does not support sm_{architecture}, only {supported_architectures:?}"))
}

/// Compiles the kernels for an architecture, such as 90 for `sm_90`.
///
/// # Errors
/// [`Error::Device`] if there is no NVRTC, if NVRTC supports neither this architecture nor an older one, or if the
/// compilation fails.
pub fn compile(architecture: u32) -> Result<CompiledKernels> {
    let (_, supported_architectures) = nvrtc_capabilities()?;
    if supported_architectures.contains(&architecture) {
        let (image, log) = compile_source(&format!("sm_{architecture}"), true)?;
        return Ok(CompiledKernels { image, usage: parse_usage(&log) });
    }
    // A driver can compile PTX of an older architecture for a newer one.
    let older_architecture =
        supported_architectures.iter().filter(|&&older_architecture| older_architecture < architecture).max();
    let older_architecture =
        older_architecture.ok_or_else(|| unsupported_error("compile", architecture, &supported_architectures))?;
    let (image, _) = compile_source(&format!("compute_{older_architecture}"), false)?;
    Ok(CompiledKernels { image, usage: Vec::new() })
}

/// Compiles the kernels for some architectures into files in a directory, for machines without NVRTC. On those machines
/// the environment variable `LSTM_CUDA_KERNELS` must name the directory. Returns the paths of the files.
///
/// # Errors
/// [`Error::Device`] if there is no NVRTC, if NVRTC does not support an architecture, or if the compilation fails;
/// [`Error::Io`] if a file can't be written.
pub fn prebuild(dir: &Path, architectures: &[u32]) -> Result<Vec<PathBuf>> {
    let (_, supported_architectures) = nvrtc_capabilities()?;
    let paths = architectures.iter().map(|&architecture| {
        if !supported_architectures.contains(&architecture) {
            return Err(unsupported_error("prebuild", architecture, &supported_architectures));
        }
        let path = prebuilt_path(dir, architecture);
        cache::write(&path, &image_key(architecture), &compile(architecture)?.image)?;
        Ok(path)
    });
    paths.collect()
}

/// The file to which [`prebuild`] writes the kernels for an architecture.
pub(crate) fn prebuilt_path(dir: &Path, architecture: u32) -> PathBuf {
    dir.join(format!("lstm-sm_{architecture}.cubin"))
}

/// An NVRTC program, destroyed on drop.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_program` and is destroyed once. An error here can't be reported.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles the kernels to a cubin if `to_cubin` is true, else to PTX. Returns the image and the compiler's log.
fn compile_source(architecture: &str, to_cubin: bool) -> Result<(Vec<u8>, String)> {
    let op = "compile";
    let to_error = |e: result::NvrtcError| nvrtc_error(op, format!("{architecture}: {e:?}"));
    let source = CString::new(source()).map_err(|e| nvrtc_error(op, e))?;
    let program = Program(result::create_program(&source, Some(c"lstm.cu")).map_err(to_error)?);
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(COMPILER_OPTIONS.map(str::to_owned));
    // SAFETY: the program is alive, here and below, and no option contains a zero byte.
    let compile_result = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map_err(to_error)?;
    let log = log_text(&log);
    compile_result.map_err(|e| nvrtc_error(op, format!("{architecture}: {e:?}\n{log}")))?;
    let image = if to_cubin {
        let mut image_size = 0;
        // SAFETY: as above; the buffer has the size that NVRTC reported.
        unsafe {
            sys::nvrtcGetCUBINSize(program.0, &mut image_size).result().map_err(to_error)?;
            let mut image = vec![0u8; image_size];
            sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()).result().map_err(to_error)?;
            image
        }
    } else {
        // SAFETY: as above. The image keeps the zero at its end, which the driver requires.
        let ptx = unsafe { result::get_ptx(program.0) }.map_err(to_error)?;
        ptx.into_iter().map(|c| c as u8).collect()
    };
    Ok((image, log))
}

fn log_text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads each kernel's resource usage from what ptxas wrote to the compiler's log.
fn parse_usage(log: &str) -> Vec<ResourceUsage> {
    // The number before a phrase such as ` bytes spill stores`.
    let number_before = |line: &str, phrase: &str| -> Option<u32> {
        line[..line.find(phrase)?].split_whitespace().next_back()?.parse().ok()
    };
    let (mut usage, mut spill_bytes) = (Vec::new(), 0);
    let mut kernel = None;
    for line in log.lines() {
        if let Some((_, after_prefix)) = line.split_once("Compiling entry function '") {
            kernel = after_prefix.split('\'').next().map(str::to_owned);
        } else if let Some(bytes) = number_before(line, " bytes spill stores") {
            spill_bytes = bytes;
        } else if let Some(registers) = number_before(line, " registers")
            && let Some(kernel) = kernel.take()
        {
            usage.push(ResourceUsage { kernel, registers, spill_bytes });
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_resource_usage_from_ptxas_log() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'copy' for 'sm_90'\n\
                   ptxas info    : Function properties for copy\n\
                   ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 20 registers, used 0 barriers\n";
        assert_eq!(parse_usage(log), [ResourceUsage { kernel: "copy".into(), registers: 20, spill_bytes: 8 }]);
    }
}
