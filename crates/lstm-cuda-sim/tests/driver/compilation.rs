//! Compilation of the kernels with the fake NVRTC: errors, unsupported architectures, cached and prebuilt kernels, and
//! no NVRTC.

use std::path::PathBuf;

use lstm_cuda::{Arithmetic, Cuda, LstmConfig, Ops, kernels};

use crate::{
    Result, ensure,
    simulated_driver::{DeviceProperties, SimulatedDriver},
    workload::{Workload, check_all, expected_results},
};

/// Checks that opening a device fails with an error that contains this text.
fn expect_error(what: &str, text: &str) -> Result<()> {
    let error = Cuda::new().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains(text), "{what}: `{error}` does not contain `{text}`");
    Ok(())
}

pub(crate) fn run() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    driver.set_properties(DeviceProperties::SM_90);
    driver.set_up_nvrtc(100, true);
    expect_error("compilation error", "error: injected compilation error")?;
    expect_error("compilation error", "NVRTC_ERROR_COMPILATION")?;
    let tf32 = Cuda::builder().allow_tf32(true).build().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(tf32.starts_with("cuda-tf32: compile: "), "the error names another backend: {tf32}");
    ensure!(driver.set_up_nvrtc(60, false) == 0, "an NVRTC program was not destroyed after a compilation error");
    expect_error("no supported architecture", "NVRTC does not support sm_90, only []")?;
    driver.check_all_released()?;

    // The device is newer than NVRTC: the driver compiles PTX of an older architecture, which has no clusters.
    driver.set_up_nvrtc(80, false);
    let cuda = Cuda::new().map_err(|e| e.to_string())?;
    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{:?}", cuda.arithmetic());
    let config = LstmConfig::new(3, 20);
    let mut workload = Workload::new(&cuda, &config);
    check_all(&workload.run_all()?, &expected_results(&config)?)?;
    ensure!(workload.paths() == ["fused: persistent"], "{:?}", workload.paths());
    drop(workload);
    drop(cuda);
    ensure!(driver.set_up_nvrtc(100, false) == 0, "an NVRTC program was not destroyed");

    driver.set_properties(DeviceProperties { architecture: 61, ..DeviceProperties::DEFAULT });
    expect_error("old device", "is sm_61; the kernels need sm_70 or later")?;
    driver.set_attribute("devices", 0);
    expect_error("no device", "no device 0; found 0: none")?;
    driver.check_all_released()?;
    Ok("compilation errors, and an architecture that NVRTC does not support".into())
}

/// A device opens with cached kernels. This part has a cache directory.
pub(crate) fn cache() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    driver.set_properties(DeviceProperties::DEFAULT);
    drop(Cuda::new().map_err(|e| e.to_string())?);
    driver.set_up_nvrtc(100, true);
    drop(Cuda::new().map_err(|e| format!("cached kernels are compiled again: {e}"))?);
    // Nothing is cached for another architecture.
    driver.set_properties(DeviceProperties { architecture: 86, ..DeviceProperties::DEFAULT });
    expect_error("architecture that is not cached", "NVRTC_ERROR_COMPILATION")?;
    driver.check_all_released()?;
    Ok("a device opened with cached kernels".into())
}

/// A device opens with prebuilt kernels. This part has `LSTM_CUDA_KERNELS`, a directory for prebuilt kernels.
pub(crate) fn prebuilt() -> Result<String> {
    let dir = PathBuf::from(std::env::var_os("LSTM_CUDA_KERNELS").ok_or("LSTM_CUDA_KERNELS is not set")?);
    let driver = SimulatedDriver::load()?;
    driver.set_properties(DeviceProperties::DEFAULT);
    let files = kernels::prebuild(&dir, &[80]).map_err(|e| e.to_string())?;
    driver.set_up_nvrtc(100, true);
    drop(Cuda::new().map_err(|e| format!("prebuilt kernels are compiled again: {e}"))?);
    driver.set_properties(DeviceProperties { architecture: 86, ..DeviceProperties::DEFAULT });
    expect_error("architecture that is not prebuilt", "NVRTC_ERROR_COMPILATION")?;

    driver.set_properties(DeviceProperties::DEFAULT);
    let content = std::fs::read(&files[0]).map_err(|e| e.to_string())?;
    std::fs::write(&files[0], &content[..content.len() - 1]).map_err(|e| e.to_string())?;
    expect_error("truncated file", "is damaged, or was built from other sources or options")?;
    ensure!(kernels::prebuild(&dir, &[60]).is_err(), "prebuilt for an architecture that NVRTC does not support");
    driver.check_all_released()?;
    Ok("a device opened with prebuilt kernels; a truncated file was rejected".into())
}

/// The error if there is no NVRTC. The library path of this part has none.
pub(crate) fn without_nvrtc() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    if let Ok((version, _)) = kernels::nvrtc_capabilities() {
        return Ok(format!("not run: NVRTC {version:?} is installed on this machine"));
    }
    driver.set_properties(DeviceProperties::DEFAULT);
    expect_error("no NVRTC", "no NVRTC: the dynamic loader does not find libnvrtc.so.12")?;
    driver.check_all_released()?;
    Ok("the error names the missing library".into())
}
