//! What only wgpu has: kernels for GPUs, which an adapter that is a CPU does not choose by itself; guards around tensors;
//! ways to compute; and low limits, for which work is cut to pieces.

use lstm_wgpu::{Fma, Wgpu, WgpuBuilder, wgpu::Limits};

use super::*;

/// Cases that go with guards: sizes that fill no workgroup, one sequence and several, and all that has kernels or
/// indices of its own. A driver takes long to compile them once more.
const GUARDED: [&str; 9] = [
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
    // Where it does not open, that was reported with the backend.
    let Ok(default) = Wgpu::blocking() else { return };
    guarded(trials, "guards", Wgpu::builder());
    if default.adapter().device_type == lstm_wgpu::wgpu::DeviceType::Cpu {
        guarded(trials, "guards-for-gpus", Wgpu::builder().treat_as_cpu(false));
        match Wgpu::builder().treat_as_cpu(false).blocking() {
            Ok(wgpu) => {
                // Sizes decide how these kernels share work; projections have kernels of their own, and lengths make
                // invocations differ.
                let cases = cases::table()
                    .into_iter()
                    .filter(|case| case.group == "sizes" || case.config.proj_size.is_some() || case.lengths.is_some());
                add(trials, "for-gpus", &wgpu, cases);
                for run in training::runs() {
                    let (wgpu, name) = (wgpu.clone(), format!("training-{}", run.name));
                    trials.add("wgpu", "for-gpus", &name.clone(), move || {
                        snapshot(&name, &run.report(&wgpu)?).map(|()| String::new())
                    });
                }
            }
            Err(error) => trials.add("wgpu", "for-gpus", "open", || Err(error.into())),
        }
    }
    let mut modes: Vec<_> = default.probe().tried.iter().map(|(mode, _)| *mode).collect();
    modes.iter_mut().for_each(|mode| mode.fma = Fma::Integer);
    modes.dedup();
    let Some(mode) = modes.pop() else { return };
    match Wgpu::builder().mode(mode).blocking() {
        // A few: a driver takes seconds to compile each of these kernels.
        Ok(wgpu) => {
            add(trials, "in-integers", &wgpu, cases::table().into_iter().filter(|case| case.name == "diagonal"))
        }
        // These need nothing that an adapter may lack.
        Err(error) => trials.add("wgpu", "in-integers", "open", || Err(error.into())),
    }
    // Few workgroups in a row, and buffers for little more than the largest tensor of the probe.
    let limits = Limits {
        max_compute_workgroups_per_dimension: 64,
        max_storage_buffer_binding_size: 512 << 10,
        ..Limits::default()
    };
    match Wgpu::builder().limits(limits).blocking() {
        Ok(wgpu) => add(trials, "low-limits", &wgpu, small_cases().filter(|case| case.group != "sizes")),
        Err(error) => trials.add("wgpu", "low-limits", "open", || Err(error.into())),
    }
}

/// No kernel works outside of its tensors. What several trials do at a time is looked at by any of them.
fn guarded(trials: &mut Trials, group: &str, builder: WgpuBuilder) {
    let wgpu = match builder.guards(true).blocking() {
        Ok(wgpu) => wgpu,
        Err(error) => return trials.add("wgpu", group, "open", || Err(error.into())),
    };
    for (name, check) in primitives::checks::<Wgpu>() {
        let wgpu = wgpu.clone();
        trials.add("wgpu", group, name, move || {
            check(&wgpu)?;
            pollster::block_on(wgpu.check_guards())?;
            Ok(String::new())
        });
    }
    for name in GUARDED {
        let (wgpu, case) = (wgpu.clone(), cases::table().into_iter().find(|case| case.name == name));
        trials.add("wgpu", group, name, move || {
            let found = matches_snapshot(&wgpu, &case.context("no such case")?)?;
            pollster::block_on(wgpu.check_guards())?;
            Ok(found)
        });
    }
}

fn add(trials: &mut Trials, group: &str, wgpu: &Wgpu, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        let (wgpu, name) = (wgpu.clone(), case.name.clone());
        trials.add("wgpu", group, &name, move || matches_snapshot(&wgpu, &case));
    }
}
