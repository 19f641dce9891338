//! Every kernel compiled by NVRTC for every architecture from sm_70 on, which needs no GPU: none may spill registers.
//!
//! `LSTM_NVRTC` names a directory with NVRTC's library, such as the `nvidia/cuda_nvrtc/lib` of a PyPI wheel.

use std::{
    env,
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
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
    // Two at a time; the newest, which take longest, first.
    let waiting = Mutex::new(architectures.clone());
    let next = || waiting.lock().expect("no panic").pop();
    let some = || std::iter::from_fn(next).map(spills).sum::<Result<usize, String>>();
    let results = thread::scope(|scope| {
        let others = scope.spawn(some);
        [some(), others.join().expect("no panic")]
    });
    let spilled: usize = match results.into_iter().sum() {
        Ok(spilled) => spilled,
        Err(why) => return fail(why),
    };
    if architectures.is_empty() || spilled > 0 {
        return fail(format!("{} architectures, {spilled} kernels that spill", architectures.len()));
    }
    println!("nvrtc: {} architectures, no spills", architectures.len());
    ExitCode::SUCCESS
}

/// Compiles for an architecture, and says how many kernels spill registers.
fn spills(architecture: u32) -> Result<usize, String> {
    let compiled = kernels::compile(architecture).map_err(|error| error.to_string())?;
    if compiled.usage.is_empty() {
        return Err(format!("sm_{architecture}: no report of registers in the compiler's log"));
    }
    // Clusters came with sm_90.
    let clusters = compiled.usage.iter().filter(|usage| usage.kernel.starts_with("cluster_")).count();
    if clusters != if architecture >= 90 { 2 } else { 0 } {
        return Err(format!("sm_{architecture}: {clusters} kernels for clusters"));
    }
    // So did TF32 with sm_80.
    let fast = compiled.usage.iter().filter(|usage| usage.kernel.starts_with("tf32_")).count();
    if fast != if architecture >= 80 { 7 } else { 0 } {
        return Err(format!("sm_{architecture}: {fast} kernels of the fast mode"));
    }
    let most = compiled.usage.iter().max_by_key(|usage| usage.registers).expect("it is not empty");
    let (kernels, bytes) = (compiled.usage.len(), compiled.image.len());
    println!(
        "sm_{architecture}: {kernels} kernels, {bytes} bytes; most registers: {} in {}",
        most.registers, most.kernel
    );
    let spilling = compiled.usage.iter().filter(|usage| usage.spill_bytes > 0);
    Ok(spilling
        .inspect(|u| {
            println!("  sm_{architecture}: {} spills {} bytes with {} registers", u.kernel, u.spill_bytes, u.registers)
        })
        .count())
}

fn fail(why: impl std::fmt::Display) -> ExitCode {
    println!("nvrtc: FAILED: {why}");
    ExitCode::FAILURE
}
