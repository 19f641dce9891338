//! Checks that only the wgpu backend needs: guard words after tensors, the kernels for GPUs on an adapter that is a CPU,
//! the emulation of `fma` in integers, and low limits, which make passes run in chunks.

use lstm::Device;
use lstm_wgpu::{Fma, Wgpu, WgpuBuilder, wgpu::Limits};

use super::*;

/// Cases that run with guard words: sizes that do not fill a workgroup, one sequence and several, and every option that
/// has kernels or index computations of its own. Only some of all cases, because compiling the kernels again is slow.
const GUARDED_CASES: [&str; 9] = [
    "hidden-1",
    "hidden-33",
    "hidden-129",
    "batch-3",
    "dense-hidden-33",
    "hidden-33-projected-32",
    "diagonal-all-options-projection",
    "fused-long-lengths",
    "large-stacked-bidirectional",
];

pub(super) fn trials(trials: &mut Trials) {
    // If the backend does not open, `main` has reported it already.
    let Ok(default) = Wgpu::new() else { return };
    let is_cpu = default.adapter().device_type == lstm_wgpu::wgpu::DeviceType::Cpu;
    // The trials of the backend itself use all kernels for CPUs, without guard words.
    if !is_cpu || trials.exhaustive {
        add_guarded(trials, "guards", Wgpu::builder());
    }
    if is_cpu {
        add_guarded(trials, "guards-gpu-kernels", Wgpu::builder().treat_as_cpu(false));
        match Wgpu::builder().treat_as_cpu(false).build() {
            // The cases above use all kernels.
            Ok(_) if !trials.exhaustive => (),
            Ok(wgpu) => {
                // Sizes determine the tiling of these kernels, projections have kernels of their own, and lengths make
                // the invocations of a workgroup diverge.
                let cases = cases::all_cases()
                    .into_iter()
                    .filter(|case| case.group == "sizes" || case.config.proj_size.is_some() || case.lengths.is_some());
                add_cases(trials, "gpu-kernels", &wgpu, cases);
                for (name, check) in streams::checks::<Device>() {
                    let device = Device::from(wgpu.clone());
                    trials.add("wgpu", "gpu-kernels", name, move || check(&device).map(|()| String::new()));
                }
                for run in training::runs() {
                    let (device, name) = (Device::from(wgpu.clone()), format!("training-{}", run.name));
                    trials.add("wgpu", "gpu-kernels", &name.clone(), move || {
                        snapshot(&name, &run.report(&device)?).map(|()| String::new())
                    });
                }
            }
            Err(error) => trials.add("wgpu", "gpu-kernels", "open", || Err(error.into())),
        }
    }
    if !trials.exhaustive {
        return;
    }
    let mut modes: Vec<_> = default.probe().attempts.iter().map(|(mode, _)| *mode).collect();
    modes.iter_mut().for_each(|mode| mode.fma = Fma::EmulatedInIntegers);
    modes.dedup();
    let Some(mode) = modes.pop() else { return };
    // Only one case, and opened in its trial, because compiling these kernels takes a minute on one core. Integer arithmetic
    // needs no optional feature, so it must work on every adapter.
    trials.add("wgpu", "integer-fma", "diagonal", move || {
        let case = cases::all_cases().into_iter().find(|case| case.name == "diagonal");
        let case = case.context("the table of cases has no case of this name")?;
        matches_snapshot(&Device::from(Wgpu::builder().mode(mode).build()?), &case)
    });
    // Buffers are hardly larger than the largest tensor of the probe, and grids of workgroups have two dimensions. The
    // weights of a hidden size above 256 do not fit.
    let limits = Limits {
        max_compute_workgroups_per_dimension: 64,
        max_storage_buffer_binding_size: 512 << 10,
        ..Limits::default()
    };
    match Wgpu::builder().limits(limits).build() {
        Ok(wgpu) => add_cases(
            trials,
            "low-limits",
            &wgpu,
            small_cases().filter(|case| case.group != "sizes" && case.config.hidden_size <= 256),
        ),
        Err(error) => trials.add("wgpu", "low-limits", "open", || Err(error.into())),
    }
}

/// Adds trials that no kernel accesses memory outside of its tensors. Trials run in parallel on one adapter, so an error
/// may show in the trial of another case.
fn add_guarded(trials: &mut Trials, group: &str, builder: WgpuBuilder) {
    let wgpu = match builder.guards(true).build() {
        Ok(wgpu) => wgpu,
        Err(error) => return trials.add("wgpu", group, "open", || Err(error.into())),
    };
    for (name, check) in primitives::checks::<Device>().into_iter().chain(streams::checks()) {
        let (wgpu, device) = (wgpu.clone(), Device::from(wgpu.clone()));
        trials.add("wgpu", group, name, move || {
            check(&device)?;
            pollster::block_on(wgpu.check_guards())?;
            Ok(String::new())
        });
    }
    for name in GUARDED_CASES {
        let (wgpu, case) = (wgpu.clone(), cases::all_cases().into_iter().find(|case| case.name == name));
        trials.add("wgpu", group, name, move || {
            let found = matches_snapshot(
                &Device::from(wgpu.clone()),
                &case.context("the table of cases has no case of this name")?,
            )?;
            pollster::block_on(wgpu.check_guards())?;
            Ok(found)
        });
    }
}

/// Adds trials that compare cases with their snapshots.
fn add_cases(trials: &mut Trials, group: &str, wgpu: &Wgpu, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        let (device, name) = (Device::from(wgpu.clone()), case.name.clone());
        trials.add("wgpu", group, &name, move || matches_snapshot(&device, &case));
    }
}
