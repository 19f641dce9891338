//! Devices of several kinds: each gives the exact bits by the path that it should take, and gives back all that it took.

use lstm_cuda::{
    Arithmetic, Backend, Checkpointing, Cuda, Error, Init, KernelLimits, Lstm, LstmConfig, Ops, OutputGradients, Param,
    Reference, Weights, ndarray::Array3,
};

use crate::{
    Result, ensure,
    simulated_driver::{Host, Setup, SimulatedDriver},
    work::{Bits, Work, check, check_all, configs, expected, host},
};

pub(crate) fn run() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let plain = Setup::PLAIN;
    let sm_90 = Setup { architecture: 90, multiprocessors: 6, ..plain };
    let setups = [
        // sm_70 has no kernels for clusters, nor those of the fast mode.
        (Setup { architecture: 70, ..plain }, "persistent"),
        (Setup { architecture: 70, cooperative: false, pools: false, ..plain }, "one kernel per step"),
        (plain, "persistent"),
        (Setup { pools: false, host: Host::Pageable, ..plain }, "persistent"),
        (Setup { host: Host::Pinned, ..plain }, "persistent"),
        (Setup { cooperative: false, ..plain }, "one kernel per step"),
        (
            Setup { architecture: 86, multiprocessors: 3, cooperative: false, host: Host::Pageable, ..plain },
            "one kernel per step",
        ),
        (sm_90, "cluster"),
        (Setup { pools: false, cooperative: false, host: Host::Pageable, ..sm_90 }, "cluster"),
    ];
    let all = configs().into_iter().map(|(name, config)| expected(&config).map(|want| (name, config, want)));
    let all = all.collect::<Result<Vec<_>>>()?;
    for (setup, path) in setups {
        one(&standin, setup, path, &all).map_err(|why| format!("{setup:?}: {why}"))?;
    }
    large_clusters(&standin)?;
    let tiles = tiles(&standin)?;
    within(&standin, sm_90)?;
    fast(&standin)?;
    full(&standin)?;
    standin.check_ran()?;
    Ok(format!("{} devices, {} models on each; every kernel ran", setups.len() + 5 + tiles, all.len()))
}

fn one(standin: &SimulatedDriver, setup: Setup, path: &str, all: &[(&str, LstmConfig, Bits)]) -> Result<()> {
    standin.reset();
    standin.setup(setup);
    let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{:?}", cuda.arithmetic());
    ensure!(
        cuda.device().contains(&format!("stand-in for a driver, not a GPU (0), sm_{}", setup.architecture)),
        "{}",
        cuda.device()
    );
    for (name, config, want) in all {
        let mut work = Work::new(&cuda, config);
        let got = work.all().map_err(|why| format!("{name}: {why}"))?;
        check_all(&got, want).map_err(|why| format!("{name}: {why}"))?;
        // Clusters do without projections.
        let path = if config.proj_size.is_some() && path == "cluster" {
            if setup.cooperative { "persistent" } else { "one kernel per step" }
        } else {
            path
        };
        let paths = work.paths();
        ensure!(paths.iter().all(|there| *there == format!("fused: {path}")), "{name}: {paths:?}, not {path}");
    }
    let names = standin.names();
    let ran = |name: &str| names.iter().any(|there| there == name);
    ensure!(ran("cuGraphLaunch"), "nothing was replayed");
    ensure!(ran("cuMemAllocAsync") == setup.pools && ran("cuMemAlloc_v2") != setup.pools, "allocated otherwise");
    ensure!(ran("cuLaunchKernelEx") == (setup.architecture >= 90), "clusters");
    ensure!(ran("cuLaunchCooperativeKernel") == setup.cooperative, "cooperative launches");
    drop(cuda);
    standin.check_end()
}

/// Clusters of 16 blocks, which a kernel must be allowed to have, with as much shared memory as a block can have. On the way
/// back some weights lie there, which layers take only where no other kernel does all steps.
fn large_clusters(standin: &SimulatedDriver) -> Result<()> {
    standin.reset();
    standin.setup(Setup { architecture: 90, multiprocessors: 16, cooperative: false, ..Setup::PLAIN });
    let config = LstmConfig::new(2, 340);
    let x = Array3::from_shape_fn((2, 2, 2), |(a, t, i)| (a + 2 * t) as f32 * 0.25 - i as f32);
    let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
    let launched = || standin.names().into_iter().filter(|name| name == "cuLaunchKernelEx").count();
    let before = launched();
    let lstm = Lstm::random(&cuda, config.clone(), 3).map_err(|e| e.to_string())?;
    assert_eq!(lstm.paths()[0].to_string(), "fused: cluster");
    let got = both_ways(&lstm, &x).map_err(|e| e.to_string())?;
    let reference = Reference(cuda.clone());
    let want =
        Lstm::random(&reference, config.clone(), 3).and_then(|lstm| both_ways(&lstm, &x)).map_err(|e| e.to_string())?;
    ensure!(got == want && !got.iter().any(|v| v.is_nan()), "large clusters differ");
    ensure!(launched() == before + 2, "{} launches of clusters, not both ways", launched() - before);
    drop((lstm, reference, cuda));
    standin.check_end()?;
    // A device that has none of that size, whatever it calls that: smaller ones do, with more of the weights in shared memory.
    standin.attribute("largest_cluster", 8);
    let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
    let before = launched();
    let lstm = Lstm::random(&cuda, config, 3).map_err(|e| e.to_string())?;
    let loaded = Weights::init(LstmConfig::new(2, 340), &Init::default(), 3);
    let loaded = loaded.and_then(|weights| cuda.load(&weights.layers()[0])).map_err(|e| e.to_string())?;
    for (batch, paths) in [(2, ["cluster", "one kernel per step"]), (usize::MAX, ["one kernel per step"; 2])] {
        ensure!(loaded.paths(batch) == paths, "batch {batch}: {:?}", loaded.paths(batch));
    }
    drop(loaded);
    let got = both_ways(&lstm, &x).map_err(|e| e.to_string())?;
    ensure!(got == want && launched() == before + 1, "clusters of 8, forward only: {} launches", launched() - before);
    drop((lstm, cuda));
    standin.attribute("largest_cluster", 16);
    standin.check_end()
}

/// Batches that get medium tiles, or on the way back four of them for each, depending on how large the device is. Also by the
/// reference, whose primitives are kernels too. How many devices there were.
fn tiles(standin: &SimulatedDriver) -> Result<usize> {
    let config = LstmConfig::new(5, 40).clip(0.75);
    let x = Array3::from_shape_fn((64, 3, 5), |(a, t, i)| (a % 7) as f32 * 0.25 - (t * i) as f32 * 0.125);
    let devices = [2, 4];
    for multiprocessors in devices {
        standin.reset();
        standin.setup(Setup { multiprocessors, cooperative: false, ..Setup::PLAIN });
        let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
        for config in [config.clone(), config.clone().proj_size(33)] {
            let run = || {
                let kernels = both_ways(&Lstm::random(&cuda, config.clone(), 3)?, &x)?;
                let primitives = both_ways(&Lstm::random(&Reference(cuda.clone()), config.clone(), 3)?, &x)?;
                let want = both_ways(&Lstm::random(&Reference(host()?), config.clone(), 3)?, &x)?;
                Ok([kernels, primitives, want])
            };
            let [kernels, primitives, want] = run().map_err(|e: Error| e.to_string())?;
            check("tiles", &kernels, &want)?;
            check("primitives", &primitives, &want)?;
        }
        drop(cuda);
        standin.check_end()?;
    }
    Ok(devices.len())
}

/// What a pass gives, and the gradients of the inputs and of the recurrent weights.
fn both_ways<B: Backend>(lstm: &Lstm<B>, x: &Array3<f32>) -> Result<Vec<f32>, Error> {
    let pass = lstm.forward_train(x, Checkpointing::Everything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input())?;
    let recurrent = gradients.weights.layers()[0].get(Param::WeightHh).into_iter().flatten().copied();
    Ok(pass.y.iter().copied().chain(gradients.x.into_iter().flatten()).chain(recurrent).collect())
}

/// Layers take the next path where one is left out.
fn within(standin: &SimulatedDriver, setup: Setup) -> Result<()> {
    let none =
        Cuda::builder().limit_kernels(KernelLimits { multiprocessors: Some(0), ..KernelLimits::default() }).build();
    let error = none.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains("at least 1 multiprocessor, got 0"), "no multiprocessors: `{error}`");
    let no_clusters = KernelLimits { clusters: false, ..KernelLimits::default() };
    let steps = KernelLimits { persistent: false, multiprocessors: Some(2), ..no_clusters };
    for (limits, path) in [(no_clusters, "persistent"), (steps, "one kernel per step")] {
        standin.reset();
        standin.setup(setup);
        let cuda = Cuda::builder().limit_kernels(limits).build().map_err(|e| e.to_string())?;
        let paths = Lstm::random(&cuda, LstmConfig::new(3, 20), 1).map_err(|e| e.to_string())?.paths();
        ensure!(paths[0].to_string() == format!("fused: {path}"), "{limits:?}: {paths:?}");
        drop(cuda);
        standin.check_end()?;
    }
    Ok(())
}

/// The fast mode opens, says what it is, and its errors do.
fn fast(standin: &SimulatedDriver) -> Result<()> {
    standin.reset();
    standin.setup(Setup { architecture: 75, ..Setup::PLAIN });
    let refused = Cuda::builder().allow_tf32(true).build().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("cuda-tf32: open") && refused.contains("from sm_80 on"), "sm_75: {refused}");
    standin.setup(Setup { architecture: 80, ..Setup::PLAIN });
    let cuda = Cuda::builder().allow_tf32(true).build().map_err(|e| e.to_string())?;
    ensure!(cuda.name() == "cuda-tf32" && cuda.arithmetic() != Arithmetic::Exact, "{:?}", cuda.arithmetic());
    let lstm = Lstm::random(&cuda, LstmConfig::new(8, 24), 1).map_err(|e| e.to_string())?;
    let x = Array3::<f32>::ones((17, 3, 8));
    let pass = lstm.forward_train(&x, Checkpointing::Everything).map_err(|e| e.to_string())?;
    pass.tape.backward(OutputGradients::from(&pass.y)).map_err(|e| e.to_string())?;
    standin.reset();
    standin.fail(0, crate::simulated_driver::INVALID_VALUE, true);
    let error = lstm.forward(&x).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.starts_with("cuda-tf32: "), "another backend's error: {error}");
    drop((lstm, pass, cuda));
    standin.check_end()
}

/// Memory runs out for one batch, and is enough for the next.
fn full(standin: &SimulatedDriver) -> Result<()> {
    for pools in [true, false] {
        standin.reset();
        standin.setup(Setup { pools, ..Setup::PLAIN });
        standin.attribute("memory", 4 << 20);
        let cuda = Cuda::new(0).map_err(|e| e.to_string())?;
        let config = LstmConfig::new(3, 20);
        let lstm = Lstm::random(&cuda, config.clone(), 7).map_err(|e| e.to_string())?;
        let before = standin.live();
        let error = lstm.forward(&Array3::<f32>::ones((64, 512, 3))).err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(error.contains("allocation of") && error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "too large: {error}");
        standin.check_left(before)?;
        check_all(&Work::new(&cuda, &config).all()?, &expected(&config)?)?;
        drop((lstm, cuda));
        standin.attribute("memory", 1 << 30);
        standin.check_end()?;
    }
    Ok(())
}
