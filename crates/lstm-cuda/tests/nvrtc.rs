//! Every kernel compiled by NVRTC for every architecture from sm_70 on, which needs no GPU: none may spill registers.
//!
//! `LSTM_NVRTC` names a directory with NVRTC's library, such as the `nvidia/cuda_nvrtc/lib` of a PyPI wheel.

use std::{
    env,
    process::{Command, ExitCode},
};

use lstm_cuda::kernels;

/// The dynamic loader reads this when a process starts.
const PATH: &str = "LD_LIBRARY_PATH";

fn main() -> ExitCode {
    if let Some(dir) = env::var_os("LSTM_NVRTC").filter(|dir| env::var_os(PATH).as_ref() != Some(dir)) {
        let again =
            env::current_exe().and_then(|exe| Command::new(exe).args(env::args_os().skip(1)).env(PATH, dir).status());
        return match again {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => fail(error),
        };
    }
    let ((major, minor), known) = match kernels::nvrtc() {
        Ok(found) => found,
        // Whoever names a directory, or asks for it, wants it to be there.
        Err(error) if env::var_os("LSTM_NVRTC").or_else(|| env::var_os("LSTM_REQUIRE")).is_some() => {
            return fail(error);
        }
        Err(error) => {
            println!("nvrtc: not run: {error}; LSTM_NVRTC=... names a directory that has it");
            return ExitCode::SUCCESS;
        }
    };
    let architectures: Vec<u32> = known.into_iter().filter(|&architecture| architecture >= 70).collect();
    println!("NVRTC {major}.{minor}");
    let mut spilled = 0;
    for &architecture in &architectures {
        let compiled = match kernels::compile(architecture) {
            Ok(compiled) => compiled,
            Err(error) => return fail(error),
        };
        if compiled.usage.is_empty() {
            return fail(format!("sm_{architecture}: no report of registers in the compiler's log"));
        }
        // Clusters came with sm_90.
        let clusters = compiled.usage.iter().any(|usage| usage.kernel == "cluster");
        if clusters != (architecture >= 90) {
            return fail(format!("sm_{architecture}: a kernel for clusters: {clusters}"));
        }
        // So did TF32 with sm_80.
        let fast = compiled.usage.iter().filter(|usage| usage.kernel.starts_with("fast")).count();
        if fast != if architecture >= 80 { 7 } else { 0 } {
            return fail(format!("sm_{architecture}: {fast} kernels of the fast mode"));
        }
        let most = compiled.usage.iter().max_by_key(|usage| usage.registers).expect("it is not empty");
        let (kernels, bytes) = (compiled.usage.len(), compiled.image.len());
        println!(
            "sm_{architecture}: {kernels} kernels, {bytes} bytes; most registers: {} in {}",
            most.registers, most.kernel
        );
        for usage in compiled.usage.iter().filter(|usage| usage.spilled > 0) {
            println!("  {} spills {} bytes with {} registers", usage.kernel, usage.spilled, usage.registers);
            spilled += 1;
        }
    }
    if architectures.is_empty() || spilled > 0 {
        return fail(format!("{} architectures, {spilled} kernels that spill", architectures.len()));
    }
    println!("nvrtc: {} architectures, no spills", architectures.len());
    ExitCode::SUCCESS
}

fn fail(why: impl std::fmt::Display) -> ExitCode {
    println!("nvrtc: FAILED: {why}");
    ExitCode::FAILURE
}
