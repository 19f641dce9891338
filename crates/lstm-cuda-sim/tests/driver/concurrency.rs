//! Several devices and several threads. A CUDA context is current on one thread at a time.

use std::thread;

use lstm_cuda::{Cuda, Input, Lstm, LstmConfig, ndarray::Array3};

use crate::{
    Result, ensure,
    simulated_driver::{DeviceProperties, HostMemory, OUT_OF_MEMORY, SimulatedDriver},
    workload::{STEPS, Workload, check, check_all, configs, expected_results},
};

pub(crate) fn run() -> Result<String> {
    let driver = SimulatedDriver::load()?;
    let cases = configs().map(|(_, config)| (config.clone(), expected_results(&config)));
    let pageable = DeviceProperties {
        cooperative: false,
        pools: false,
        host_memory: HostMemory::Pageable,
        ..DeviceProperties::DEFAULT
    };
    for properties in [DeviceProperties::DEFAULT, pageable] {
        driver.reset();
        driver.set_properties(properties);
        let open = |ordinal| Cuda::builder().ordinal(ordinal).build().map_err(|e| e.to_string());
        let run_workload = |cuda: &Cuda, case: usize| {
            check_all(&Workload::new(cuda, &cases[case].0).run_all()?, cases[case].1.as_ref()?)
        };

        // Opened on this thread; used and dropped on another one.
        let cuda = open(0)?;
        thread::scope(|scope| scope.spawn(move || run_workload(&cuda, 0)).join().expect("no panic"))?;
        driver.check_all_released().map_err(|error| format!("another thread: {error}"))?;

        // Models on one device, each on a thread of its own; then one model on two threads.
        let cuda = open(0)?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..cases.len())
                .map(|case| {
                    scope.spawn({
                        let cuda = &cuda;
                        move || run_workload(cuda, case)
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        one_model_on_two_threads(&cuda)?;
        let (config, want) = (&cases[0].0, cases[0].1.as_ref()?);
        for call in (0..1200).step_by(97) {
            failing_call_on_two_threads(&driver, &cuda, config, want, call)
                .map_err(|error| format!("call {call}: {error}"))?;
        }
        drop(cuda);
        driver.check_all_released().map_err(|error| format!("threads: {error}"))?;

        // One device opened twice, then two devices: their steps alternate on one thread.
        driver.set_attribute("devices", 2);
        for ordinals in [[0, 0], [0, 1]] {
            let devices = [open(ordinals[0])?, open(ordinals[1])?];
            let mut workloads = devices.each_ref().map(|cuda| Workload::new(cuda, config));
            for (n, want) in want.iter().enumerate() {
                for workload in &mut workloads {
                    check("alternating steps", &workload.run_step(n).map_err(|e| e.to_string())?, want)?;
                }
            }
            drop(workloads);
            // Dropping one must not affect the other.
            let [first, second] = devices;
            drop(first);
            run_workload(&second, 1)?;
            drop(second);
            driver.check_all_released().map_err(|error| format!("devices {ordinals:?}: {error}"))?;
        }
        driver.set_attribute("devices", 1);
    }
    Ok("threads and two devices".into())
}

/// Two threads run a workload, and one call fails. At most one step fails, and it can be repeated.
fn failing_call_on_two_threads(
    driver: &SimulatedDriver,
    cuda: &Cuda,
    config: &LstmConfig,
    want: &[Vec<f32>],
    call: u64,
) -> Result<()> {
    driver.reset();
    driver.fail_call(call, OUT_OF_MEMORY, false);
    let run_workload = || -> Result<usize> {
        let (mut workload, mut errors) = (Workload::new(cuda, config), 0);
        for (n, want) in want.iter().enumerate() {
            let got = workload.run_step(n).or_else(|_| {
                errors += 1;
                workload.run_step(n)
            });
            check(STEPS[n], &got.map_err(|e| e.to_string())?, want)?;
        }
        Ok(errors)
    };
    let errors = thread::scope(|scope| {
        let other = scope.spawn(run_workload);
        Ok::<_, String>(run_workload()? + other.join().expect("no panic")?)
    })?;
    ensure!(errors <= 1, "{errors} steps failed");
    driver.check_no_misuse()
}

/// Two threads run one model at the same time, on batches of equal and of different values.
fn one_model_on_two_threads(cuda: &Cuda) -> Result<()> {
    let lstm = Lstm::random(cuda, LstmConfig::new(3, 12), 5).map_err(|e| e.to_string())?;
    let input = |k: usize| Array3::from_shape_fn((2, 3, 3), |(a, t, i)| (a + t * k) as f32 * 0.25 - i as f32);
    let forward = |k: usize| lstm.forward(Input::from(&input(k))).map(|(y, _)| y).map_err(|e| e.to_string());
    let want = [forward(0)?, forward(1)?];
    let repeat = |k: usize| (0..20).all(|_| forward(k).is_ok_and(|y| y == want[k]));
    let repeat = &repeat;
    thread::scope(|scope| {
        let threads = [0, 1].map(|k| scope.spawn(move || repeat(k)));
        let equal = threads.into_iter().all(|thread| thread.join().expect("no panic"));
        ensure!(equal, "results of one model on two threads differ");
        Ok(())
    })
}
