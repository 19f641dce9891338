//! Compiles every kernel with NVRTC for every architecture from sm_70 on, and checks that none spills registers. This
//! needs no GPU.
//!
//! The environment variable `LSTM_NVRTC` names a directory with NVRTC's library, such as `nvidia/cuda_nvrtc/lib` of a
//! PyPI wheel.

use std::{
    env,
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
};

use lstm_cuda::kernels;

/// The variable from which the dynamic loader takes its search path when a process starts.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

fn main() -> ExitCode {
    if let Some(dir) = env::var_os("LSTM_NVRTC").filter(|dir| env::var_os(LIBRARY_PATH).as_ref() != Some(dir)) {
        let status = env::current_exe()
            .and_then(|exe| Command::new(exe).args(env::args_os().skip(1)).env(LIBRARY_PATH, dir).status());
        return match status {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => fail(error),
        };
    }
    let ((major, minor), supported) = match kernels::nvrtc_capabilities() {
        Ok(found) => found,
        // If a directory is named, or tests are required to run, a missing library is a failure.
        Err(error) if env::var_os("LSTM_NVRTC").or_else(|| env::var_os("LSTM_REQUIRE")).is_some() => {
            return fail(error);
        }
        Err(error) => {
            println!("nvrtc: not run: {error}; set LSTM_NVRTC to a directory that has it");
            return ExitCode::SUCCESS;
        }
    };
    let architectures: Vec<u32> = supported.into_iter().filter(|&architecture| architecture >= 70).collect();
    println!("NVRTC {major}.{minor}");
    // Two at a time. The newest, which take the longest, come first.
    let waiting = Mutex::new(architectures.clone());
    let next = || waiting.lock().expect("no thread panics").pop();
    let compile_all = || std::iter::from_fn(next).map(spilling_kernels).sum::<Result<usize, String>>();
    let results = thread::scope(|scope| {
        let others = scope.spawn(compile_all);
        [compile_all(), others.join().expect("the thread does not panic")]
    });
    let spilled: usize = match results.into_iter().sum() {
        Ok(spilled) => spilled,
        Err(reason) => return fail(reason),
    };
    if architectures.is_empty() || spilled > 0 {
        return fail(format!("{} architectures, {spilled} kernels that spill", architectures.len()));
    }
    println!("nvrtc: {} architectures, no spills", architectures.len());
    ExitCode::SUCCESS
}

/// Compiles the kernels for an architecture. Returns how many of them spill registers.
fn spilling_kernels(architecture: u32) -> Result<usize, String> {
    let compiled = kernels::compile(architecture).map_err(|error| error.to_string())?;
    if compiled.usage.is_empty() {
        return Err(format!("sm_{architecture}: the compiler's log has no resource usage"));
    }
    // Clusters exist from sm_90 on.
    let clusters = compiled.usage.iter().filter(|usage| usage.kernel.starts_with("cluster_")).count();
    if clusters != if architecture >= 90 { 2 } else { 0 } {
        return Err(format!("sm_{architecture}: {clusters} kernels with clusters"));
    }
    // TF32 exists from sm_80 on.
    let tf32 = compiled.usage.iter().filter(|usage| usage.kernel.starts_with("tf32_")).count();
    if tf32 != if architecture >= 80 { 7 } else { 0 } {
        return Err(format!("sm_{architecture}: {tf32} kernels of TF32 mode"));
    }
    let largest = compiled.usage.iter().max_by_key(|usage| usage.registers).expect("there are kernels");
    let (kernels, bytes) = (compiled.usage.len(), compiled.image.len());
    println!(
        "sm_{architecture}: {kernels} kernels, {bytes} bytes; most registers: {} in {}",
        largest.registers, largest.kernel
    );
    let spilling = compiled.usage.iter().filter(|usage| usage.spill_bytes > 0);
    Ok(spilling
        .inspect(|u| {
            println!("  sm_{architecture}: {} spills {} bytes with {} registers", u.kernel, u.spill_bytes, u.registers)
        })
        .count())
}

fn fail(reason: impl std::fmt::Display) -> ExitCode {
    println!("nvrtc: FAILED: {reason}");
    ExitCode::FAILURE
}
