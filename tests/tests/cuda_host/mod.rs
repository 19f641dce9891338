//! What only the host's stand-in for CUDA has: orders in which threads take their turns, and how many blocks can be
//! there at the same time, which decides on a layer's path.

use lstm_cuda_sim::{CudaHost, Host, Schedule};

use super::*;

pub(super) fn trials(trials: &mut Trials) -> lstm_core::Result<()> {
    // Where it does not open, that was reported with the backend.
    let Ok(steps) = Host::builder().resident_blocks(0).build() else { return Ok(()) };
    let clusters = Host::builder().cluster_size(2).build()?;
    // The backend's own trials are those of persistent kernels.
    let persistent = Host::builder().build()?;
    for (path, projected, host) in [
        ("one kernel per step", "one kernel per step", &steps),
        ("persistent", "persistent", &persistent),
        ("cluster", "persistent", &clusters),
    ] {
        let host = host.clone();
        trials.add("cuda-host", "paths", path, move || takes(&host, path, projected));
    }
    for (group, host) in [("kernel-per-step", &steps), ("cluster", &clusters)] {
        trials.cases_and_training("cuda-host", group, host);
    }
    let clusters = [
        (Schedule::Descending, 4, 1),
        (Schedule::Random(0), 9, 4),
        (Schedule::Random(1), 16, 8),
        (Schedule::Random(2), 16, 16),
    ];
    for (schedule, resident, cluster) in clusters {
        let host = Host::builder().schedule(schedule).resident_blocks(resident).cluster_size(cluster).build()?;
        for case in small_cases().filter(|case| case.group != "sizes" && case.config.proj_size.is_none()) {
            let (host, name) = (host.clone(), format!("{}-{}-cluster-{cluster}", case.name, schedule_name(schedule)));
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    // So many blocks that they have all weights of the largest, whose rows on the way back are brought in several turns.
    let large = Host::builder().resident_blocks(64).build()?;
    for case in cases::table().into_iter().filter(|case| case.config.hidden_size > 256) {
        let (host, name) = (large.clone(), case.name.clone());
        trials.add("cuda-host", "many-blocks", &name, move || {
            let paths = Lstm::new(&host, case.weights()?)?.paths();
            ensure!(paths[0].to_string().ends_with("persistent"), "{paths:?}");
            matches_snapshot(&host, &case)
        });
    }
    // Backwards, and drawn at random; with few blocks of many units and with many of few.
    let blocks =
        [(Schedule::Descending, 3), (Schedule::Random(0), 8), (Schedule::Random(1), 64), (Schedule::Random(2), 0)];
    for (schedule, resident) in blocks {
        let host = Host::builder().schedule(schedule).resident_blocks(resident).build()?;
        for case in small_cases().filter(|case| case.group != "sizes") {
            let (host, name) = (host.clone(), format!("{}-{}", case.name, schedule_name(schedule)));
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    Ok(())
}

/// The schedule as a part of a test's name.
fn schedule_name(schedule: Schedule) -> String {
    match schedule {
        Schedule::Ascending => "ascending".to_owned(),
        Schedule::Descending => "descending".to_owned(),
        Schedule::Random(seed) => format!("random-{seed}"),
    }
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
