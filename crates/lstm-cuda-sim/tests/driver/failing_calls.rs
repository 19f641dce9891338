//! Driver calls that fail. The error names the call, the failed operation succeeds when it is repeated, and nothing
//! leaks.

use std::collections::{HashMap, HashSet};

use lstm_cuda::{Arithmetic, Cuda, Error, LstmConfig, Ops};

use crate::{
    Result, ensure,
    simulated_driver::{
        CAPTURE_INVALIDATED, Code, DeviceProperties, HostMemory, ILLEGAL_ADDRESS, INVALID_VALUE, LAUNCH_FAILED,
        OUT_OF_MEMORY, OUT_OF_RESOURCES, SimulatedDriver,
    },
    workload::{Results, STEPS, Workload, check, check_all, configs, expected_results},
};

/// An error that the driver may return for a call.
fn error_for(call: &str) -> Code {
    match call {
        _ if call.starts_with("cuMemAlloc") => OUT_OF_MEMORY,
        _ if call.starts_with("cuLaunch") => OUT_OF_RESOURCES,
        "cuModuleLoadData" | "cuStreamCreate" | "cuDevicePrimaryCtxRetain" | "cuGraphInstantiateWithFlags" => {
            OUT_OF_MEMORY
        }
        "cuStreamSynchronize" | "cuMemcpyDtoHAsync_v2" | "cuPointerGetAttribute" => LAUNCH_FAILED,
        "cuStreamEndCapture" => CAPTURE_INVALIDATED,
        _ => INVALID_VALUE,
    }
}

/// The text by which an error message must name a failed call.
fn expected_text(call: &str) -> &str {
    match call {
        "cuMemAllocAsync" | "cuMemAlloc_v2" => "allocation of",
        "cuMemcpyHtoDAsync_v2" => "copy to the device",
        "cuMemcpyDtoHAsync_v2" => "copy to the host",
        "cuLaunchKernel" | "cuLaunchCooperativeKernel" | "cuLaunchKernelEx" => "launch of",
        "cuModuleGetFunction" | "cuFuncSetAttribute" => "kernel",
        "cuGraphInstantiateWithFlags" => "cuGraphInstantiate",
        "cuModuleLoadData" => "cuModuleLoadData, with a driver for CUDA 13.0 and NVRTC 13.0",
        _ => call.trim_end_matches("_v2"),
    }
}

/// Whether a call releases something. `Drop` makes such calls, which can't return errors.
fn is_release(call: &str) -> bool {
    [
        "cuMemFree",
        "cuGraphDestroy",
        "cuGraphExecDestroy",
        "cuModuleUnload",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]
    .iter()
    .any(|release| call.starts_with(release))
}

/// Whether `Drop` makes this call before it releases something.
fn is_before_release(call: &str) -> bool {
    ["cuCtxSetCurrent", "cuStreamSynchronize"].contains(&call)
}

/// Checks that an error names the failed call and the driver's error.
fn check_error(call: &str, code: Code, error: &Error) -> Result<()> {
    let Error::Device { backend, op, reason } = error else { return Err(format!("{call}: another error: {error}")) };
    let is_named = reason.contains(expected_text(call)) && reason.contains(code.1);
    ensure!(backend == "cuda" && !op.is_empty() && is_named, "{call}: the error does not name the call: {error}");
    Ok(())
}

/// Selects the calls to fail. `calls` are the names of all calls, and `step_ends` the number of calls made by the end
/// of each step. In each step, of all calls of a name, selects the first, every `stride`-th and the last.
fn select_calls(calls: &[String], step_ends: &[u64], stride: usize) -> Vec<u64> {
    let mut by_name: HashMap<(usize, &str), Vec<u64>> = HashMap::new();
    for (k, name) in calls.iter().enumerate() {
        let step = step_ends.partition_point(|&end| end <= k as u64);
        by_name.entry((step, name)).or_default().push(k as u64);
    }
    let select = |group: Vec<u64>| {
        let n = group.len();
        group.into_iter().enumerate().filter(move |(i, _)| i + 1 == n || i % stride == 0).map(|(_, k)| k)
    };
    let mut selected: Vec<u64> = by_name.into_values().flat_map(select).collect();
    selected.sort_unstable();
    selected
}

/// Devices, each with a model and the expected results of its workload.
fn cases() -> Result<Vec<(DeviceProperties, LstmConfig, Results)>> {
    let [(_, standard), (_, peephole), (_, projected)] = configs();
    let default = DeviceProperties::DEFAULT;
    let cases = [
        (DeviceProperties { cooperative: false, ..default }, &standard),
        (DeviceProperties { pools: false, host_memory: HostMemory::Pageable, ..default }, &peephole),
        (DeviceProperties { cooperative: false, pools: false, ..default }, &projected),
        (DeviceProperties::SM_90, &standard),
    ];
    cases.into_iter().map(|(properties, config)| Ok((properties, config.clone(), expected_results(config)?))).collect()
}

/// Calls fail while a model runs on an open device.
pub(crate) fn run() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    let (mut failed_calls, mut reported) = (0, 0);
    for (properties, config, want) in cases()? {
        driver.set_properties(properties);
        let cuda = Cuda::new().map_err(|e| e.to_string())?;
        let before = driver.live_objects();
        driver.reset();
        let mut workload = Workload::new(&cuda, &config);
        let mut step_ends = Vec::new();
        for (n, want) in want.iter().enumerate() {
            check(STEPS[n], &workload.run_step(n).map_err(|e| e.to_string())?, want)?;
            step_ends.push(driver.call_count());
        }
        drop(workload);
        let calls = driver.calls();
        driver.check_live_objects(before)?;
        for k in select_calls(&calls, &step_ends, 6) {
            let call = &calls[k as usize];
            // Calls after the last step are made when the workload is dropped.
            let step = step_ends.partition_point(|&end| end <= k);
            let context = format!("{properties:?}: call {k}, {call} in step {:?}", STEPS.get(step));
            let failed_step = run_with_failing_call(&driver, &cuda, &config, &want, (k, call))
                .map_err(|error| format!("{context}: {error}"))?;
            ensure!(failed_step.is_none_or(|failed| failed == step), "{context}: another step failed");
            let is_in_drop = step == STEPS.len() || is_before_release(call);
            ensure!(failed_step.is_some() || is_release(call) || is_in_drop, "{context}: no step failed");
            driver.check_live_objects(before).map_err(|error| format!("{context}: {error}"))?;
            failed_calls += 1;
            reported += usize::from(failed_step.is_some());
        }
        drop(cuda);
        driver.check_all_released()?;
    }
    Ok(format!("{failed_calls} failed calls, {reported} of which caused an error"))
}

/// Runs a workload in which one call fails once, and repeats the step that fails. Returns this step, if there is one.
fn run_with_failing_call(
    driver: &SimulatedDriver,
    cuda: &Cuda,
    config: &LstmConfig,
    want: &[Vec<f32>],
    (k, call): (u64, &str),
) -> Result<Option<usize>> {
    let code = error_for(call);
    driver.reset();
    driver.fail_call(k, code, false);
    let (mut workload, mut failed_step) = (Workload::new(cuda, config), None);
    for (n, want) in want.iter().enumerate() {
        let got = match workload.run_step(n) {
            Err(error) if failed_step.is_none() => {
                check_error(call, code, &error)?;
                failed_step = Some(n);
                workload.run_step(n).map_err(|e| format!("{}, repeated: {e}", STEPS[n]))?
            }
            result => result.map_err(|e| format!("{}, after an error: {e}", STEPS[n]))?,
        };
        check(STEPS[n], &got, want)?;
    }
    Ok(failed_step)
}

/// Calls fail while a device is opened.
pub(crate) fn while_opening() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    let (mut failed_calls, mut reported) = (0, 0);
    for properties in [DeviceProperties::SM_90, DeviceProperties { pools: false, ..DeviceProperties::DEFAULT }] {
        driver.set_properties(properties);
        driver.reset();
        drop(Cuda::new().map_err(|e| e.to_string())?);
        let calls = driver.calls();
        // The test of the arithmetic starts with an upload. Before it every call fails once, from there on selected
        // ones.
        let first_upload = calls.iter().position(|name| name.starts_with("cuMemAlloc")).ok_or("no allocation")? as u64;
        let selected = select_calls(&calls, &[first_upload], 1000);
        for k in selected.into_iter().filter(|&k| k >= first_upload).chain(0..first_upload) {
            let call = &calls[k as usize];
            let context = format!("{properties:?}: call {k}, {call}");
            driver.reset();
            driver.fail_call(k, error_for(call), false);
            match Cuda::new() {
                Err(error) => {
                    check_error(call, error_for(call), &error).map_err(|error| format!("{context}: {error}"))?;
                    reported += 1;
                }
                Ok(cuda) => {
                    let is_in_drop = k > first_upload && is_before_release(call);
                    ensure!(is_release(call) || is_in_drop, "{context}: no error");
                    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{context}: {:?}", cuda.arithmetic());
                }
            }
            driver.check_all_released().map_err(|error| format!("{context}: {error}"))?;
            failed_calls += 1;
        }
    }
    Ok(format!("{failed_calls} failed calls, {reported} of which caused an error"))
}

/// Errors after which all calls fail: of kernels while they run, and of calls that report a lost device.
pub(crate) fn sticky_errors() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    let (mut count, mut seen) = (0, HashSet::new());
    for (properties, config, want) in cases()? {
        driver.set_properties(properties);
        let open = || Cuda::new().map_err(|e| e.to_string());
        let cuda = open()?;
        driver.reset();
        check_all(&Workload::new(&cuda, &config).run_all()?, &want)?;
        let (calls, launches) = (driver.calls(), driver.launch_count());
        drop(cuda);
        // The first call of each name, and four kernels.
        let first_calls = calls.iter().enumerate().filter(|(_, name)| seen.insert((*name).clone()));
        let first_calls = first_calls.map(|(k, _)| (true, k as u64));
        let kernels = (0..4).map(|k| (false, k * (launches - 1) / 3));
        for (is_call, k) in first_calls.chain(kernels) {
            let what = if is_call { calls[k as usize].as_str() } else { "kernel" };
            let cuda = open()?;
            driver.reset();
            if is_call {
                driver.fail_call(k, LAUNCH_FAILED, true);
            } else {
                driver.fail_launch(k, ILLEGAL_ADDRESS);
            }
            run_until_sticky_error(&cuda, &config, &want)
                .map_err(|error| format!("{properties:?}: {what} {k}: {error}"))?;
            drop(cuda);
            driver.check_all_released().map_err(|error| format!("{properties:?}: {what} {k}: {error}"))?;
            driver.reset();
            count += 1;
        }
    }
    Ok(format!("{count} sticky errors"))
}

/// Checks that steps have the expected results up to the error, and that everything fails after it.
fn run_until_sticky_error(cuda: &Cuda, config: &LstmConfig, want: &[Vec<f32>]) -> Result<()> {
    let (mut workload, mut other) = (Workload::new(cuda, config), Workload::new(cuda, config));
    let mut error = None;
    for (n, want) in want.iter().enumerate() {
        match workload.run_step(n) {
            Ok(got) if error.is_none() => check(STEPS[n], &got, want)?,
            Ok(_) => return Err(format!("{} succeeds after {error:?}", STEPS[n])),
            Err(e) => {
                error.get_or_insert(e);
            }
        }
        // Later steps need the model or the stream.
        if error.is_some() && matches!(STEPS[n], "load" | "stream") {
            break;
        }
    }
    // No step fails if the failing call is the last of all, which releases something.
    let Some(error) = error else { return Ok(()) };
    let is_named = error.to_string().contains(LAUNCH_FAILED.1) || error.to_string().contains(ILLEGAL_ADDRESS.1);
    ensure!(is_named, "another error: {error}");
    ensure!(other.run_step(0).is_err() && cuda.synchronize().is_err(), "another model works after {error}");
    ensure!(Cuda::new().is_err(), "a device is opened after {error}");
    Ok(())
}
