//! What only the host's stand-in for CUDA has: orders in which threads take their turns, and how many blocks can be
//! there at the same time, which decides on a layer's path.

use lstm_cuda::CudaHost;

use super::*;

pub(super) fn trials(trials: &mut Trials) -> lstm_cuda::Result<()> {
    // Where it does not open, that was reported with the backend.
    let Ok(steps) = CudaHost::with(0, 0, 0) else { return Ok(()) };
    let clusters = CudaHost::with(0, 8, 2)?;
    // The backend's own trials are those of persistent kernels.
    let persistent = CudaHost::new()?;
    for (path, projected, host) in [
        ("a kernel a step", "a kernel a step", &steps),
        ("persistent", "persistent", &persistent),
        ("cluster", "persistent", &clusters),
    ] {
        let host = host.clone();
        trials.add("cuda-host", "paths", path, move || takes(&host, path, projected));
    }
    for (group, host) in [("kernel-a-step", &steps), ("cluster", &clusters)] {
        trials.cases_and_training("cuda-host", group, host);
    }
    for (schedule, resident, cluster) in [(1, 4, 1), (2, 9, 4), (3, 16, 8), (4, 16, 16)] {
        let host = CudaHost::with(schedule, resident, cluster)?;
        for case in small_cases().filter(|case| case.group != "sizes" && case.config.proj_size.is_none()) {
            let (host, name) = (host.clone(), format!("{}-{schedule}-of-{cluster}", case.name));
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    // So many blocks that they have all weights of the largest, whose rows on the way back are brought in several turns.
    let large = CudaHost::with(0, 64, 0)?;
    for case in cases::table().into_iter().filter(|case| case.config.hidden_size > 256) {
        let (host, name) = (large.clone(), case.name.clone());
        trials.add("cuda-host", "many-blocks", &name, move || {
            let paths = Lstm::new(&host, case.weights()?)?.paths();
            ensure!(paths[0].to_string().ends_with("persistent"), "{paths:?}");
            matches_snapshot(&host, &case)
        });
    }
    // Backwards, and drawn at random; with few blocks of many units and with many of few.
    for (schedule, resident) in [(1, 3), (2, 8), (3, 64), (4, 0)] {
        let host = CudaHost::with(schedule, resident, 0)?;
        for case in small_cases().filter(|case| case.group != "sizes") {
            let (host, name) = (host.clone(), format!("{}-{schedule}", case.name));
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    Ok(())
}

/// Every cell's layer names the path, and so does one with a projection.
fn takes(host: &CudaHost, want: &str, projected: &str) -> Result<String> {
    let cells = CELLS.map(|(name, cell)| (Case::new("", name, cell), want));
    let projection = Case::new("", "projection", CELLS[0].1).with(|c| c.proj_size(3));
    for (case, want) in cells.into_iter().chain([(projection, projected)]) {
        let paths = Lstm::new(host, case.weights()?)?.paths();
        ensure!(
            paths == [lstm_core::ExecutionPath::Fused(want.to_owned().into())],
            "{}: {paths:?}, not {want}",
            case.name
        );
    }
    Ok(String::new())
}
