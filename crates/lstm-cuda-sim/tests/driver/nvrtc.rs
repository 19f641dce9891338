//! NVRTC: what it refuses, what it does not know, what is kept of it, and that it may be missing.

use std::path::PathBuf;

use lstm_cuda::{Arithmetic, Cuda, LstmConfig, Ops, kernels};

use crate::{
    Result, ensure,
    simulated_driver::{Setup, SimulatedDriver},
    work::{Work, check_all, expected},
};

fn refusal(what: &str, words: &str) -> Result<()> {
    let error = Cuda::new(0).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains(words), "{what}: `{error}` does not say `{words}`");
    Ok(())
}

pub(crate) fn run() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let sm_90 = Setup { architecture: 90, multiprocessors: 6, ..Setup::PLAIN };
    standin.setup(sm_90);
    standin.nvrtc(100, true);
    refusal("a source that does not compile", "error: the stand-in was told to refuse this")?;
    refusal("a source that does not compile", "NVRTC_ERROR_COMPILATION")?;
    let fast = Cuda::builder().allow_tf32(true).build().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(fast.starts_with("cuda-tf32: compile: "), "another backend's error: {fast}");
    ensure!(standin.nvrtc(60, false) == 0, "a program is left after it did not compile");
    refusal("NVRTC knows nothing so old", "NVRTC does not support sm_90, only []")?;
    standin.check_end()?;

    // The driver compiles what is for an older architecture, and has no clusters then.
    standin.nvrtc(80, false);
    let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{:?}", cuda.arithmetic());
    let config = LstmConfig::new(3, 20);
    let mut work = Work::new(&cuda, &config);
    check_all(&work.all()?, &expected(&config)?)?;
    ensure!(work.paths() == ["fused: persistent"], "{:?}", work.paths());
    drop(work);
    drop(cuda);
    ensure!(standin.nvrtc(100, false) == 0, "a program is left");

    standin.setup(Setup { architecture: 61, ..Setup::PLAIN });
    refusal("an old device", "is sm_61; the kernels need sm_70 or later")?;
    standin.attribute("devices", 0);
    refusal("no device", "no device 0; found 0: none")?;
    standin.check_end()?;
    Ok("refusals, and an architecture that NVRTC does not know".into())
}

/// In a process that keeps what was compiled.
pub(crate) fn cache() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    standin.setup(Setup::PLAIN);
    drop(Cuda::new(0).map_err(|e| e.to_string())?);
    standin.nvrtc(100, true);
    drop(Cuda::new(0).map_err(|e| format!("what was kept is compiled again: {e}"))?);
    // Another architecture is not what was kept.
    standin.setup(Setup { architecture: 86, ..Setup::PLAIN });
    refusal("nothing was kept", "NVRTC_ERROR_COMPILATION")?;
    standin.check_end()?;
    Ok("a device opened without compiling".into())
}

/// In a process that is told where kernels are that were built before.
pub(crate) fn prebuilt() -> Result<String> {
    let dir = PathBuf::from(std::env::var_os("LSTM_CUDA_KERNELS").ok_or("the variable is not set")?);
    let standin = SimulatedDriver::load()?;
    standin.setup(Setup::PLAIN);
    let files = kernels::prebuild(&dir, &[80]).map_err(|e| e.to_string())?;
    standin.nvrtc(100, true);
    drop(Cuda::new(0).map_err(|e| format!("what was built before is compiled again: {e}"))?);
    // None for this one.
    standin.setup(Setup { architecture: 86, ..Setup::PLAIN });
    refusal("nothing was built", "NVRTC_ERROR_COMPILATION")?;

    standin.setup(Setup::PLAIN);
    let whole = std::fs::read(&files[0]).map_err(|e| e.to_string())?;
    std::fs::write(&files[0], &whole[..whole.len() - 1]).map_err(|e| e.to_string())?;
    refusal("a damaged file", "is damaged, or was built from other sources or options")?;
    ensure!(kernels::prebuild(&dir, &[60]).is_err(), "NVRTC knows nothing so old");
    standin.check_end()?;
    Ok("a device opened without compiling; a damaged file refused".into())
}

/// In a process that finds no NVRTC.
pub(crate) fn absent() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    if let Ok((version, _)) = kernels::nvrtc() {
        return Ok(format!("not run: this machine has NVRTC {version:?}"));
    }
    standin.setup(Setup::PLAIN);
    refusal("no NVRTC", "no NVRTC: the dynamic loader does not find libnvrtc.so.12")?;
    standin.check_end()?;
    Ok("said to be missing".into())
}
