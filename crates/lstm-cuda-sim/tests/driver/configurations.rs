//! Devices with various properties. On each, the results are bit-identical to the reference, layers use the expected
//! execution path, and everything is released.

use lstm_cuda::{
    Arithmetic, Backend, Checkpointing, Cuda, Error, Init, KernelLimits, Lstm, LstmConfig, Ops, OutputGradients, Param,
    Reference, Weights, ndarray::Array3,
};

use crate::{
    Result, ensure,
    simulated_driver::{DeviceProperties, HostMemory, INVALID_VALUE, SimulatedDriver},
    workload::{Results, Workload, check, check_all, configs, expected_results, host},
};

const ONE_KERNEL_PER_STEP: &str = "one kernel per step";

pub(crate) fn run() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    let sm_70 = DeviceProperties { architecture: 70, ..DeviceProperties::DEFAULT };
    let sm_80 = DeviceProperties::DEFAULT;
    let sm_86 = DeviceProperties { architecture: 86, multiprocessors: 3, ..DeviceProperties::DEFAULT };
    let sm_90 = DeviceProperties::SM_90;
    let pageable = HostMemory::Pageable;
    // The devices, each with the expected execution path.
    let devices = [
        (sm_70, "persistent"),
        (DeviceProperties { cooperative: false, pools: false, ..sm_70 }, ONE_KERNEL_PER_STEP),
        (sm_80, "persistent"),
        (DeviceProperties { pools: false, host_memory: pageable, ..sm_80 }, "persistent"),
        (DeviceProperties { host_memory: HostMemory::Pinned, ..sm_80 }, "persistent"),
        (DeviceProperties { cooperative: false, ..sm_80 }, ONE_KERNEL_PER_STEP),
        (DeviceProperties { cooperative: false, host_memory: pageable, ..sm_86 }, ONE_KERNEL_PER_STEP),
        (sm_90, "cluster"),
        (DeviceProperties { pools: false, cooperative: false, host_memory: pageable, ..sm_90 }, "cluster"),
    ];
    let models = configs().into_iter().map(|(name, config)| expected_results(&config).map(|want| (name, config, want)));
    let models = models.collect::<Result<Vec<_>>>()?;
    for (properties, path) in devices {
        all_models(&driver, properties, path, &models).map_err(|error| format!("{properties:?}: {error}"))?;
    }
    large_clusters(&driver)?;
    let tile_devices = medium_tiles(&driver)?;
    limited_kernels(&driver)?;
    tf32_mode(&driver)?;
    out_of_memory(&driver)?;
    driver.check_all_kernels_ran()?;
    let count = devices.len() + 5 + tile_devices;
    Ok(format!("{count} devices, {} models on each; every kernel ran", models.len()))
}

/// Runs all models on a device, and checks results, execution paths and which calls were made.
fn all_models(
    driver: &SimulatedDriver,
    properties: DeviceProperties,
    path: &str,
    models: &[(&str, LstmConfig, Results)],
) -> Result<()> {
    driver.reset();
    driver.set_properties(properties);
    let cuda = Cuda::new().map_err(|e| e.to_string())?;
    ensure!(cuda.arithmetic() == Arithmetic::Exact, "{:?}", cuda.arithmetic());
    let device = format!("simulated GPU 0, sm_{}", properties.architecture);
    ensure!(cuda.device_name().contains(&device), "{} does not contain {device}", cuda.device_name());
    for (name, config, want) in models {
        let mut workload = Workload::new(&cuda, config);
        let got = workload.run_all().map_err(|error| format!("{name}: {error}"))?;
        check_all(&got, want).map_err(|error| format!("{name}: {error}"))?;
        // The cluster kernels do not support projections.
        let path = if config.proj_size.is_some() && path == "cluster" {
            if properties.cooperative { "persistent" } else { ONE_KERNEL_PER_STEP }
        } else {
            path
        };
        let paths = workload.paths();
        ensure!(paths.iter().all(|used| *used == format!("fused: {path}")), "{name}: {paths:?}, expected {path}");
    }
    let calls = driver.calls();
    let is_called = |name: &str| calls.iter().any(|call| call == name);
    ensure!(is_called("cuGraphLaunch"), "no graph was launched");
    ensure!(
        is_called("cuMemAllocAsync") == properties.pools && is_called("cuMemAlloc_v2") != properties.pools,
        "memory was allocated by the wrong call"
    );
    ensure!(is_called("cuLaunchKernelEx") == (properties.architecture >= 90), "launches of clusters");
    ensure!(is_called("cuLaunchCooperativeKernel") == properties.cooperative, "cooperative launches");
    drop(cuda);
    driver.check_all_released()
}

/// Clusters of 16 blocks, which a kernel must be given permission for, with the largest amount of shared memory. The
/// backward kernel keeps some weights in shared memory, which layers accept only where there are no persistent kernels.
fn large_clusters(driver: &SimulatedDriver) -> Result<()> {
    driver.reset();
    driver.set_properties(DeviceProperties { multiprocessors: 16, cooperative: false, ..DeviceProperties::SM_90 });
    let config = LstmConfig::new(2, 340);
    let x = Array3::from_shape_fn((2, 2, 2), |(a, t, i)| (a + 2 * t) as f32 * 0.25 - i as f32);
    let cuda = Cuda::new().map_err(|e| e.to_string())?;
    let cluster_launches = || driver.calls().into_iter().filter(|call| call == "cuLaunchKernelEx").count();
    let before = cluster_launches();
    let lstm = Lstm::random(&cuda, config.clone(), 3).map_err(|e| e.to_string())?;
    assert_eq!(lstm.paths()[0].to_string(), "fused: cluster");
    let got = both_passes(&lstm, &x).map_err(|e| e.to_string())?;
    let reference = Reference(cuda.clone());
    let want = Lstm::random(&reference, config.clone(), 3)
        .and_then(|lstm| both_passes(&lstm, &x))
        .map_err(|e| e.to_string())?;
    ensure!(got == want && !got.iter().any(|v| v.is_nan()), "results with large clusters differ");
    let launches = cluster_launches() - before;
    ensure!(launches == 2, "{launches} launches of clusters, expected 2: forward and backward");
    drop((lstm, reference, cuda));
    driver.check_all_released()?;
    // A device without clusters of 16 blocks, on which the driver returns an error for them. Layers then use smaller
    // clusters, with more of the weights in shared memory, for the forward pass.
    driver.set_attribute("largest_cluster", 8);
    let cuda = Cuda::new().map_err(|e| e.to_string())?;
    let before = cluster_launches();
    let lstm = Lstm::random(&cuda, config, 3).map_err(|e| e.to_string())?;
    let layer = Weights::init(LstmConfig::new(2, 340), &Init::default(), 3);
    let layer = layer.and_then(|weights| cuda.load(&weights.layers()[0])).map_err(|e| e.to_string())?;
    for (batch, paths) in [(2, ["cluster", ONE_KERNEL_PER_STEP]), (usize::MAX, [ONE_KERNEL_PER_STEP; 2])] {
        ensure!(layer.paths(batch) == paths, "batch {batch}: {:?}", layer.paths(batch));
    }
    drop(layer);
    let got = both_passes(&lstm, &x).map_err(|e| e.to_string())?;
    let launches = cluster_launches() - before;
    ensure!(got == want && launches == 1, "{launches} launches of clusters, expected 1: forward only");
    drop((lstm, cuda));
    driver.set_attribute("largest_cluster", 16);
    driver.check_all_released()
}

/// A batch for which layers use medium tiles, or in the backward pass one tile per gate, depending on the number of
/// multiprocessors. The reference path, whose primitives are kernels, must give the same results. Returns the number of
/// devices.
fn medium_tiles(driver: &SimulatedDriver) -> Result<usize> {
    let config = LstmConfig::new(5, 40).clip(0.75);
    let x = Array3::from_shape_fn((64, 3, 5), |(a, t, i)| (a % 7) as f32 * 0.25 - (t * i) as f32 * 0.125);
    let devices = [2, 4];
    for multiprocessors in devices {
        driver.reset();
        driver.set_properties(DeviceProperties { multiprocessors, cooperative: false, ..DeviceProperties::DEFAULT });
        let cuda = Cuda::new().map_err(|e| e.to_string())?;
        for config in [config.clone(), config.clone().proj_size(33)] {
            let run = || {
                let fused = both_passes(&Lstm::random(&cuda, config.clone(), 3)?, &x)?;
                let primitives = both_passes(&Lstm::random(&Reference(cuda.clone()), config.clone(), 3)?, &x)?;
                let want = both_passes(&Lstm::random(&Reference(host()?), config.clone(), 3)?, &x)?;
                Ok([fused, primitives, want])
            };
            let [fused, primitives, want] = run().map_err(|e: Error| e.to_string())?;
            check("fused", &fused, &want)?;
            check("primitives", &primitives, &want)?;
        }
        drop(cuda);
        driver.check_all_released()?;
    }
    Ok(devices.len())
}

/// Runs the forward and backward pass. Returns the outputs and the gradients of the inputs and of the recurrent
/// weights.
fn both_passes<B: Backend>(lstm: &Lstm<B>, x: &Array3<f32>) -> Result<Vec<f32>, Error> {
    let output = lstm.forward_train(x, Checkpointing::SaveEverything)?;
    let gradients = output.tape.backward(OutputGradients::from(&output.y).with_input_gradient())?;
    let recurrent = gradients.weights.layers()[0].get(Param::WeightHh).into_iter().flatten().copied();
    Ok(output.y.iter().copied().chain(gradients.x.into_iter().flatten()).chain(recurrent).collect())
}

/// `KernelLimits` makes layers use another execution path.
fn limited_kernels(driver: &SimulatedDriver) -> Result<()> {
    let invalid = KernelLimits::default().max_multiprocessors(0);
    let error = Cuda::builder().limit_kernels(invalid).build().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains("at least 1 multiprocessor, got 0"), "no multiprocessors: `{error}`");
    let no_clusters = KernelLimits::default().allow_clusters(false);
    let only_steps = no_clusters.allow_persistent(false).max_multiprocessors(2);
    for (limits, path) in [(no_clusters, "persistent"), (only_steps, ONE_KERNEL_PER_STEP)] {
        driver.reset();
        driver.set_properties(DeviceProperties::SM_90);
        let cuda = Cuda::builder().limit_kernels(limits).build().map_err(|e| e.to_string())?;
        let paths = Lstm::random(&cuda, LstmConfig::new(3, 20), 1).map_err(|e| e.to_string())?.paths();
        ensure!(paths[0].to_string() == format!("fused: {path}"), "{limits:?}: {paths:?}");
        drop(cuda);
        driver.check_all_released()?;
    }
    Ok(())
}

/// TF32 mode needs sm_80, reports inexact arithmetic, and has its own backend name in errors.
fn tf32_mode(driver: &SimulatedDriver) -> Result<()> {
    let open = || Cuda::builder().allow_tf32(true).build();
    driver.reset();
    driver.set_properties(DeviceProperties { architecture: 75, ..DeviceProperties::DEFAULT });
    let error = open().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains("cuda-tf32: open") && error.contains("sm_80"), "sm_75: {error}");
    driver.set_properties(DeviceProperties::DEFAULT);
    let cuda = open().map_err(|e| e.to_string())?;
    ensure!(cuda.name() == "cuda-tf32" && cuda.arithmetic() != Arithmetic::Exact, "{:?}", cuda.arithmetic());
    let lstm = Lstm::random(&cuda, LstmConfig::new(8, 24), 1).map_err(|e| e.to_string())?;
    let x = Array3::<f32>::ones((17, 3, 8));
    let output = lstm.forward_train(&x, Checkpointing::SaveEverything).map_err(|e| e.to_string())?;
    output.tape.backward(OutputGradients::from(&output.y)).map_err(|e| e.to_string())?;
    driver.reset();
    driver.fail_call(0, INVALID_VALUE, true);
    let error = lstm.forward(&x).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.starts_with("cuda-tf32: "), "the error names another backend: {error}");
    drop((lstm, output, cuda));
    driver.check_all_released()
}

/// A batch for which there is not enough memory fails; smaller ones work afterwards.
fn out_of_memory(driver: &SimulatedDriver) -> Result<()> {
    for pools in [true, false] {
        driver.reset();
        driver.set_properties(DeviceProperties { pools, ..DeviceProperties::DEFAULT });
        driver.set_attribute("memory", 4 << 20);
        let cuda = Cuda::new().map_err(|e| e.to_string())?;
        let config = LstmConfig::new(3, 20);
        let lstm = Lstm::random(&cuda, config.clone(), 7).map_err(|e| e.to_string())?;
        let before = driver.live_objects();
        let error = lstm.forward(&Array3::<f32>::ones((64, 512, 3))).err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(error.contains("allocation of") && error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "too large: {error}");
        driver.check_live_objects(before)?;
        check_all(&Workload::new(&cuda, &config).run_all()?, &expected_results(&config)?)?;
        drop((lstm, cuda));
        driver.set_attribute("memory", 1 << 30);
        driver.check_all_released()?;
    }
    Ok(())
}
