//! Trials of the simulated CUDA device with various schedules of its threads, and with various numbers of resident
//! blocks, which select the execution path.

use lstm_core::Precision;
use lstm_cuda_sim::{CudaHost, Host, Schedule};

use super::*;

pub(super) fn trials(trials: &mut Trials) -> lstm_core::Result<()> {
    // If the device can't be opened, the backend's own trials report it.
    let Ok(kernel_per_step) = Host::builder().resident_blocks(0).build() else { return Ok(()) };
    let clusters = Host::builder().cluster_size(2).build()?;
    // The backend's own trials run all cases on persistent kernels.
    let persistent = Host::builder().build()?;
    for (path, path_with_projection, host) in [
        ("one kernel per step", "one kernel per step", &kernel_per_step),
        ("persistent", "persistent", &persistent),
        ("cluster", "persistent", &clusters),
    ] {
        let host = host.clone();
        trials.add("cuda-host", "paths", path, move || uses_path(&host, path, path_with_projection));
    }
    for (group, host) in [("kernel-per-step", &kernel_per_step), ("cluster", &clusters)] {
        if trials.exhaustive {
            trials.cases_and_training("cuda-host", group, host);
            continue;
        }
        for case in small_cases().filter(has_kernels) {
            let (host, name) = (host.clone(), case.name.clone());
            trials.add("cuda-host", group, &name, move || matches_snapshot(&host, &case));
        }
    }
    let of_clusters = [
        (Schedule::Random(1), 16, 8),
        (Schedule::Descending, 4, 1),
        (Schedule::Random(0), 9, 4),
        (Schedule::Random(2), 16, 16),
    ];
    // Few blocks with many units each, and many blocks with few units each.
    let of_blocks =
        [(Schedule::Random(0), 8), (Schedule::Descending, 3), (Schedule::Random(1), 64), (Schedule::Random(2), 0)];
    let schedule_count = if trials.exhaustive { usize::MAX } else { 1 };
    for (schedule, resident_blocks, cluster_size) in of_clusters.into_iter().take(schedule_count) {
        let options = Host::builder().schedule(schedule).resident_blocks(resident_blocks).cluster_size(cluster_size);
        let host = options.build()?;
        for case in small_cases().filter(|case| has_kernels(case) && case.config.proj_size.is_none()) {
            let name = format!("{}-{}-clusters-of-{cluster_size}", case.name, schedule_name(schedule));
            let host = host.clone();
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    // With so many blocks, the persistent kernels support the largest cases. Their backward pass then loads rows in several
    // rounds. Quantized layers have no kernels of their own.
    let many_blocks = Host::builder().resident_blocks(64).build()?;
    let exhaustive = trials.exhaustive;
    let is_large = |case: &Case| exhaustive && case.config.hidden_size > 256 && case.config.precision == Precision::F32;
    for case in cases::all_cases().into_iter().filter(is_large) {
        let (host, name) = (many_blocks.clone(), case.name.clone());
        trials.add("cuda-host", "many-blocks", &name, move || {
            let paths = Lstm::new(&host, case.weights()?)?.paths();
            ensure!(paths[0].to_string().ends_with("persistent"), "{paths:?}");
            matches_snapshot(&host, &case)
        });
    }
    for (schedule, resident_blocks) in of_blocks.into_iter().take(schedule_count) {
        let host = Host::builder().schedule(schedule).resident_blocks(resident_blocks).build()?;
        for case in small_cases().filter(has_kernels) {
            let (host, name) = (host.clone(), format!("{}-{}", case.name, schedule_name(schedule)));
            trials.add("cuda-host", "schedules", &name, move || matches_snapshot(&host, &case));
        }
    }
    Ok(())
}

/// Whether a case runs by kernels whose schedule matters. Sizes are tested with one schedule.
fn has_kernels(case: &Case) -> bool {
    case.group != "sizes" && case.config.layer_specs()[0].has_default_kernels()
}

/// The schedule as a part of a trial's name.
fn schedule_name(schedule: Schedule) -> String {
    match schedule {
        Schedule::Ascending => "ascending".to_owned(),
        Schedule::Descending => "descending".to_owned(),
        Schedule::Random(seed) => format!("random-{seed}"),
    }
}

/// Checks the execution path of a layer of each cell kind, and of a layer with a projection.
fn uses_path(host: &CudaHost, path: &str, path_with_projection: &str) -> Result<String> {
    let cells = CELLS.map(|(name, cell)| (Case::new("", name, cell), path));
    let projection = Case::new("", "projection", CELLS[0].1).map_config(|c| c.proj_size(3));
    for (case, want) in cells.into_iter().chain([(projection, path_with_projection)]) {
        let paths = Lstm::new(host, case.weights()?)?.paths();
        ensure!(
            paths == [lstm_core::ExecutionPath::Fused(want.to_owned().into())],
            "{}: {paths:?}, expected {want}",
            case.name
        );
    }
    Ok(String::new())
}
