//! Calls that fail, one at a time: the error names the call, what failed works when it is asked for again, and nothing is
//! left behind.

use std::collections::{HashMap, HashSet};

use lstm_cuda::{Arithmetic, Cuda, Error, LstmConfig, Ops};

use crate::{
    Result, ensure,
    simulated_driver::{
        Code, Host, ILLEGAL_ADDRESS, INVALID_VALUE, INVALIDATED, LAUNCH_FAILED, OUT_OF_MEMORY, OUT_OF_RESOURCES, Setup,
        SimulatedDriver,
    },
    work::{Bits, STEPS, Work, check, check_all, configs, expected},
};

/// An error that a call may give.
fn code_for(call: &str) -> Code {
    match call {
        _ if call.starts_with("cuMemAlloc") => OUT_OF_MEMORY,
        _ if call.starts_with("cuLaunch") => OUT_OF_RESOURCES,
        "cuModuleLoadData" | "cuStreamCreate" | "cuDevicePrimaryCtxRetain" | "cuGraphInstantiateWithFlags" => {
            OUT_OF_MEMORY
        }
        "cuStreamSynchronize" | "cuMemcpyDtoHAsync_v2" | "cuPointerGetAttribute" => LAUNCH_FAILED,
        "cuStreamEndCapture" => INVALIDATED,
        _ => INVALID_VALUE,
    }
}

/// Words of which an error must have one.
fn words(call: &str) -> &str {
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

/// Whether nobody can be told that a call failed: it gives something back.
fn is_end(call: &str) -> bool {
    [
        "cuMemFree",
        "cuGraphDestroy",
        "cuGraphExecDestroy",
        "cuModuleUnload",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]
    .iter()
    .any(|end| call.starts_with(end))
}

fn check_error(call: &str, code: Code, error: &Error) -> Result<()> {
    let Error::Device { backend, op, reason: why } = error else {
        return Err(format!("{call}: another error: {error}"));
    };
    let named = why.contains(words(call)) && why.contains(code.1);
    ensure!(backend == "cuda" && !op.is_empty() && named, "{call}: the error does not say so: {error}");
    Ok(())
}

/// Which calls are to fail: the first, the last and some of those between, of each name in each step.
fn chosen(names: &[String], steps: &[u64], every: usize) -> Vec<u64> {
    let mut by_name: HashMap<(usize, &str), Vec<u64>> = HashMap::new();
    for (k, name) in names.iter().enumerate() {
        let step = steps.partition_point(|&end| end <= k as u64);
        by_name.entry((step, name)).or_default().push(k as u64);
    }
    let pick = |all: Vec<u64>| {
        let n = all.len();
        all.into_iter().enumerate().filter(move |(i, _)| i + 1 == n || i % every == 0).map(|(_, k)| k)
    };
    let mut all: Vec<u64> = by_name.into_values().flat_map(pick).collect();
    all.sort_unstable();
    all
}

/// A device, and a model on it.
fn cases() -> Result<Vec<(Setup, LstmConfig, Bits)>> {
    let [(_, plain), (_, peephole), (_, projected)] = configs();
    let sm_90 = Setup { architecture: 90, multiprocessors: 6, ..Setup::PLAIN };
    let cases = [
        (Setup { cooperative: false, ..Setup::PLAIN }, &plain),
        (Setup { pools: false, host: Host::Pageable, ..Setup::PLAIN }, &peephole),
        (Setup { cooperative: false, pools: false, ..Setup::PLAIN }, &projected),
        (sm_90, &plain),
    ];
    cases.into_iter().map(|(setup, config)| Ok((setup, config.clone(), expected(config)?))).collect()
}

/// While a device is open.
pub(crate) fn run() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let (mut count, mut told) = (0, 0);
    for (setup, config, want) in cases()? {
        standin.setup(setup);
        let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
        let before = standin.live();
        // Where each step ends, and the end of all.
        standin.reset();
        let mut work = Work::new(&cuda, &config);
        let mut ends = Vec::new();
        for (n, want) in want.iter().enumerate() {
            check(STEPS[n], &work.step(n).map_err(|e| e.to_string())?, want)?;
            ends.push(standin.calls());
        }
        drop(work);
        let names = standin.names();
        standin.check_left(before)?;
        for k in chosen(&names, &ends, 6) {
            let call = &names[k as usize];
            let step = ends.partition_point(|&end| end <= k);
            let at = format!("{setup:?}: call {k}, {call} in step {:?}", STEPS.get(step));
            let failed = fault(&standin, &cuda, &config, &want, (k, call)).map_err(|why| format!("{at}: {why}"))?;
            ensure!(failed.is_none_or(|failed| failed == step), "{at}: failed in another step");
            // Nobody is told of what goes wrong on the way to giving something back.
            let in_end = step == STEPS.len() || ["cuCtxSetCurrent", "cuStreamSynchronize"].contains(&&**call);
            ensure!(failed.is_some() || is_end(call) || in_end, "{at}: nobody was told");
            standin.check_left(before).map_err(|why| format!("{at}: {why}"))?;
            count += 1;
            told += usize::from(failed.is_some());
        }
        drop(cuda);
        standin.check_end()?;
    }
    Ok(format!("{count} calls failed, {told} of which were told"))
}

/// One of the calls fails once. The step that was told, if one was.
fn fault(
    standin: &SimulatedDriver,
    cuda: &Cuda,
    config: &LstmConfig,
    want: &[Vec<f32>],
    (k, call): (u64, &str),
) -> Result<Option<usize>> {
    let code = code_for(call);
    standin.reset();
    standin.fail(k, code, false);
    let (mut work, mut failed) = (Work::new(cuda, config), None);
    for (n, want) in want.iter().enumerate() {
        let got = match work.step(n) {
            Err(error) if failed.is_none() => {
                check_error(call, code, &error)?;
                failed = Some(n);
                work.step(n).map_err(|e| format!("{} again: {e}", STEPS[n]))?
            }
            result => result.map_err(|e| format!("{}, after it failed: {e}", STEPS[n]))?,
        };
        check(STEPS[n], &got, want)?;
    }
    Ok(failed)
}

/// While a device is opened.
pub(crate) fn opening() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let (mut count, mut told) = (0, 0);
    for setup in
        [Setup { architecture: 90, multiprocessors: 6, ..Setup::PLAIN }, Setup { pools: false, ..Setup::PLAIN }]
    {
        standin.setup(setup);
        standin.reset();
        drop(Cuda::new(0).map_err(|e| e.to_string())?);
        let names = standin.names();
        // What is looked at starts with an upload.
        let first = names.iter().position(|name| name.starts_with("cuMemAlloc")).ok_or("nothing was allocated")? as u64;
        let all = chosen(&names, &[first], 1000).into_iter().filter(|&k| k >= first).chain(0..first);
        for k in all {
            let call = &names[k as usize];
            let at = format!("{setup:?}: call {k}, {call}");
            standin.reset();
            standin.fail(k, code_for(call), false);
            match Cuda::new(0) {
                Err(error) => {
                    check_error(call, code_for(call), &error).map_err(|why| format!("{at}: {why}"))?;
                    told += 1;
                }
                Ok(cuda) => {
                    let in_end = k > first && ["cuCtxSetCurrent", "cuStreamSynchronize"].contains(&&**call);
                    ensure!(is_end(call) || in_end, "{at}: nobody was told");
                    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{at}: {:?}", cuda.arithmetic());
                }
            }
            standin.check_end().map_err(|why| format!("{at}: {why}"))?;
            count += 1;
        }
    }
    Ok(format!("{count} calls failed, {told} of which were told"))
}

/// An error after which nothing works any more: kernels that fail as they run, and calls that say that the device is lost.
pub(crate) fn lost() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let (mut count, mut seen) = (0, HashSet::new());
    for (setup, config, want) in cases()? {
        standin.setup(setup);
        let open = || Cuda::new(0).map_err(|e| e.to_string());
        let cuda = open()?;
        standin.reset();
        check_all(&Work::new(&cuda, &config).all()?, &want)?;
        let (names, launches) = (standin.names(), standin.launches());
        drop(cuda);
        let calls = names.iter().enumerate().filter(|(_, name)| seen.insert((*name).clone()));
        let calls = calls.map(|(k, _)| (true, k as u64));
        let kernels = (0..4).map(|k| (false, k * (launches - 1) / 3));
        for (is_call, k) in calls.chain(kernels) {
            let what = if is_call { names[k as usize].as_str() } else { "a kernel" };
            let cuda = open()?;
            standin.reset();
            if is_call {
                standin.fail(k, LAUNCH_FAILED, true);
            } else {
                standin.fail_launch(k, ILLEGAL_ADDRESS);
            }
            ends_in_errors(&cuda, &config, &want).map_err(|why| format!("{setup:?}: {what} {k}: {why}"))?;
            drop(cuda);
            standin.check_end().map_err(|why| format!("{setup:?}: {what} {k}: {why}"))?;
            standin.reset();
            count += 1;
        }
    }
    Ok(format!("{count} times nothing worked any more"))
}

/// Right bits up to some step, then errors only.
fn ends_in_errors(cuda: &Cuda, config: &LstmConfig, want: &[Vec<f32>]) -> Result<()> {
    let (mut work, mut other) = (Work::new(cuda, config), Work::new(cuda, config));
    let mut error = None;
    for (n, want) in want.iter().enumerate() {
        match work.step(n) {
            Ok(got) if error.is_none() => check(STEPS[n], &got, want)?,
            Ok(_) => return Err(format!("{} works after {error:?}", STEPS[n])),
            Err(e) => {
                error.get_or_insert(e);
            }
        }
        // Where there is no model or no stream, there is nothing to go on with.
        if error.is_some() && matches!(STEPS[n], "load" | "stream") {
            break;
        }
    }
    // It may have been the last call of all, which gives something back.
    let Some(error) = error else { return Ok(()) };
    let named = error.to_string().contains(LAUNCH_FAILED.1) || error.to_string().contains(ILLEGAL_ADDRESS.1);
    ensure!(named, "another error: {error}");
    ensure!(other.step(0).is_err() && cuda.synchronize().is_err(), "another model works after {error}");
    ensure!(Cuda::new(0).is_err(), "a device is opened after {error}");
    Ok(())
}
