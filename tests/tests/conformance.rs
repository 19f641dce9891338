//! Conformance tests: every backend runs the table of cases in trials named `backend::group::case`.
//!
//! - `LSTM_BACKENDS=a,b` selects backends.
//! - `LSTM_RESULTS=FILE` appends one JSON line for each trial to a file.
//! - `LSTM_RUN_INEXACT=1` runs all groups on backends whose arithmetic is not exact, too.
//! - `LSTM_EXHAUSTIVE=1` also runs variants of a backend that share nearly all of their code with those that run anyway:
//!   more schedules of threads, large cases on every execution path.
//! - `--ignored` runs the activations on all 2^32 inputs.
//!
//! All backends share the snapshots in `tests/snapshots`.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Trial};
use lstm_core::{Arithmetic, Backend, Lstm};
use lstm_tests::{
    activations::{self, Activation},
    backends::{self, BackendVisitor},
    cases::{self, CELLS, Case},
    check, compare,
    golden::GoldenCase,
    invalid_input, models, primitives,
    results::{Outcome, ResultLine, record_result},
    score::Score,
    specification, streams, training,
    verify::case_files,
};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda-host")]
mod cuda_host;
#[cfg(feature = "wgpu")]
mod wgpu;

fn main() {
    let args = Arguments::from_args();
    let exhaustive = env::var_os("LSTM_EXHAUSTIVE").is_some();
    let mut trials = Trials { trials: Vec::new(), list: args.list, exhaustive };
    let wanted = backends::wanted_backends();
    for not_run in backends::for_each_backend(wanted.as_deref(), &mut trials) {
        trials.not_run(&not_run.name, "", &not_run.reason);
    }
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
    #[cfg(feature = "cpu")]
    if is_wanted("cpu")
        && let Err(error) = cpu::trials(&mut trials)
    {
        trials.add("cpu", "threads", "open", move || Err(error.into()));
    }
    #[cfg(feature = "wgpu")]
    if is_wanted("wgpu") {
        wgpu::trials(&mut trials);
    }
    #[cfg(feature = "cuda")]
    if is_wanted("cuda") {
        cuda::trials(&mut trials);
    }
    #[cfg(feature = "cuda-host")]
    if is_wanted("cuda-host")
        && let Err(error) = cuda_host::trials(&mut trials)
    {
        trials.add("cuda-host", "schedules", "open", move || Err(error.into()));
    }
    libtest_mimic::run(&args, trials.trials).exit();
}

/// The trials of all backends.
struct Trials {
    trials: Vec<Trial>,
    /// Whether the trials are only listed, not run.
    list: bool,
    /// Whether to add trials of variants that share nearly all of their code with others.
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda-host")),
        expect(dead_code, reason = "no backend has variants")
    )]
    exhaustive: bool,
}

impl Trials {
    /// Adds a trial that runs `check`. The string that `check` returns is the detail in the results file.
    fn add(&mut self, backend: &str, group: &str, case: &str, check: impl FnOnce() -> Result<String> + Send + 'static) {
        let at = [backend, group, case].map(str::to_owned);
        let trial = Trial::test(at.join("::"), move || {
            let caught = catch_unwind(AssertUnwindSafe(check));
            let result = caught.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(&*panic))));
            let (outcome, detail) = match &result {
                Ok(detail) => (Outcome::Identical, detail.clone()),
                Err(error) => (Outcome::Failed, format!("{error:#}")),
            };
            let [backend, group, case] = &at;
            record_result(&ResultLine { backend, group, case, outcome, detail: &detail })
                .map_err(|e| format!("{e:#}"))?;
            result.map(drop).map_err(|error| format!("{error:#}").into())
        });
        self.trials.push(trial.with_ignored_flag(group == "all-inputs"));
    }

    /// Adds all cases and training runs for a backend that is limited to one of its execution paths.
    #[cfg(any(feature = "cuda", feature = "cuda-host"))]
    fn cases_and_training<B: Backend + Send + 'static>(&mut self, backend: &str, group: &str, b: &B) {
        // Quantized layers have no kernels of their own there, so that every path runs the same code.
        for case in cases::all_cases().into_iter().filter(|case| case.group != "precision") {
            let (b, name) = (b.clone(), case.name.clone());
            self.add(backend, group, &name, move || matches_snapshot(&b, &case));
        }
        for run in training::runs() {
            let (b, name) = (b.clone(), format!("training-{}", run.name));
            self.add(backend, group, &name.clone(), move || {
                snapshot(&name, &training::check_run(&b, &run)?).map(|()| String::new())
            });
        }
    }

    /// Records that a backend, or one of its groups, was not run. An empty group means the whole backend.
    fn not_run(&self, backend: &str, group: &str, reason: &str) {
        if self.list {
            return;
        }
        eprintln!("{backend}: {group} not run: {reason}");
        if let Err(error) =
            record_result(&ResultLine { backend, group, case: "", outcome: Outcome::NotRun, detail: reason })
        {
            eprintln!("{error:#}");
        }
    }
}

/// The message of a panic.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
}

impl BackendVisitor for Trials {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        // Each trial owns a clone of the backend.
        macro_rules! add {
            ($group:expr, $case:expr, $check:expr) => {{
                let (b, check) = (b.clone(), $check);
                self.add(name, $group, $case, move || check(&b));
            }};
        }
        golden_cases().into_iter().for_each(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            add!("golden", &stem, move |b: &B| within_limits(b, &path));
        });
        for (case, check) in invalid_input::checks::<B>() {
            add!("invalid-input", case, move |b: &B| check(b).map(|()| String::new()));
        }
        for (case, cell) in CELLS {
            add!("empty", case, move |b: &B| check::check_empty_inputs(b, cell).map(|()| String::new()));
        }
        if let Arithmetic::Inexact(why) = b.arithmetic() {
            let reason = format!("the arithmetic is not exact: {why}");
            if env::var_os("LSTM_RUN_INEXACT").is_none() {
                for group in [
                    "specification",
                    "primitives",
                    "streams",
                    "cells",
                    "options",
                    "sizes",
                    "activations",
                    "precision",
                    "models",
                    "training",
                ] {
                    self.not_run(name, group, &reason);
                }
                return;
            }
            // With LSTM_RUN_INEXACT, the reason is reported as the first failure.
            self.add(name, "specification", "exact", move || Err(anyhow!(reason)));
        }
        add!("specification", "cells", |b: &B| specification::check_cells(b).map(|()| String::new()));
        add!("specification", "activations", |b: &B| specification::check_activations(b).map(|()| String::new()));
        add!("specification", "quantized", |b: &B| specification::check_quantized(b).map(|()| String::new()));
        add!("specification", "models", |b: &B| specification::check_models(b).map(|()| String::new()));
        add!("specification", "generator", |b: &B| specification::check_generator(b).map(|()| String::new()));
        for (case, check) in primitives::checks::<B>() {
            add!("primitives", case, move |b: &B| check(b).map(|()| String::new()));
        }
        for (case, check) in streams::checks::<B>() {
            add!("streams", case, move |b: &B| check(b).map(|()| String::new()));
        }
        for case in cases::all_cases() {
            let (group, name) = (case.group, case.name.clone());
            add!(group, &name, move |b: &B| {
                let text = compare::snapshot_text(&check::check_case(b, &case)?);
                snapshot(&case.name, &text).map(|()| String::new())
            });
        }
        for (case, check) in models::checks::<B>() {
            add!("models", case, move |b: &B| check(b).map(|()| String::new()));
        }
        add!("models", "training", |b: &B| {
            snapshot("model-training", &models::check_training(b)?).map(|()| String::new())
        });
        match models::all_cases() {
            Ok(cases) => cases.into_iter().for_each(|case| {
                let name = case.name;
                add!("models", name, move |b: &B| {
                    let text = models::snapshot_text(&models::check_case(b, &case)?);
                    snapshot(&format!("model-{name}"), &text).map(|()| String::new())
                });
            }),
            Err(error) => self.add(name, "models", "cases", move || Err(error)),
        }
        for run in training::runs() {
            let name = run.name;
            add!("training", name, move |b: &B| {
                snapshot(&format!("training-{name}"), &training::check_run(b, &run)?).map(|()| String::new())
            });
        }
        for activation in Activation::ALL {
            add!("all-inputs", activation.name(), move |b: &B| activations::check_all(b, activation, true));
        }
    }
}

/// The folder of this package, which contains the data. The environment variable `CARGO_MANIFEST_DIR`, which cargo sets,
/// takes precedence over the folder at build time, so that the binary can run on another machine.
fn package() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    &PACKAGE
}

/// The files of the golden cases.
fn golden_cases() -> Vec<PathBuf> {
    let dir = package().join("data/golden");
    // Without the data, one trial fails with the name of a missing file.
    case_files(&dir).unwrap_or_else(|_| vec![dir.join("missing.safetensors")])
}

/// Runs a golden case and checks all errors against their limits.
fn within_limits<B: Backend>(b: &B, path: &Path) -> Result<String> {
    let scores = GoldenCase::open(path)?.score(b)?;
    for score in &scores {
        ensure!(score.passes(), "{score}");
    }
    Ok(format!("worst error / limit {:.3}", scores.iter().map(Score::ratio).fold(0.0, f64::max)))
}

/// Compares a text with a snapshot, which all backends share. If they differ, insta prints both; `cargo insta review` or
/// `INSTA_UPDATE=always` accepts the new text.
fn snapshot(name: &str, text: &str) -> Result<()> {
    let dir = package().join("snapshots");
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(&dir);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let result = catch_unwind(AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!(name, text))));
    if result.is_ok() {
        return Ok(());
    }
    let stored = std::fs::read_to_string(dir.join(format!("{name}.snap"))).context("no snapshot yet")?;
    // The snapshot file starts with a header of three lines.
    let first = text.lines().zip(stored.lines().skip(3)).find(|(got, want)| got != want);
    let (got, want) = first.unwrap_or(("a different number of lines", ""));
    Err(anyhow!("differs from the snapshot:\n  want {}\n  got  {}", want.trim(), got.trim()))
}

/// The small cases of the table, for variants of a backend and for slow backends.
#[cfg(any(feature = "cpu", feature = "cuda-host", feature = "wgpu"))]
fn small_cases() -> impl Iterator<Item = Case> {
    cases::all_cases().into_iter().filter(|case| case.batch * case.steps * case.config.hidden_size < 5000)
}

/// Runs all checks of a case and compares the results with the snapshot.
#[cfg(any(feature = "cuda", feature = "cuda-host", feature = "wgpu"))]
fn matches_snapshot<B: Backend>(b: &B, case: &Case) -> Result<String> {
    snapshot(&case.name, &compare::snapshot_text(&check::check_case(b, case)?)).map(|()| String::new())
}

#[cfg(feature = "cpu")]
mod cpu {
    //! Trials of the CPU backend only: every number of threads and every instruction set is bit-identical to plain code, and
    //! the conformance checks detect injected faults.

    use lstm::Device;
    use lstm_core::Checkpointing;
    use lstm_cpu::{Cpu, Isa};
    use lstm_tests::faults::{Fault, FaultyBackend};

    use super::*;

    pub(super) fn trials(trials: &mut Trials) -> lstm_cpu::Result<()> {
        // Devices, for which the checks are compiled anyway.
        let plain = Device::from(Cpu::builder().threads(1).isa(Isa::Plain).build()?);
        let threads = |n: usize| {
            let cpu = Cpu::builder().threads(n).always_all_threads().build()?;
            Ok((format!("{n}-threads"), Device::from(cpu)))
        };
        let isa = |isa: Isa| Ok((isa.to_string(), Device::from(Cpu::builder().threads(1).isa(isa).build()?)));
        // WebAssembly has one thread.
        let numbers: &[usize] = if cfg!(target_family = "wasm") { &[1] } else { &[1, 2, 4] };
        let threads = numbers.iter().copied().map(threads).collect::<lstm_cpu::Result<Vec<_>>>()?;
        let isas = Isa::available().into_iter().map(isa).collect::<lstm_cpu::Result<Vec<_>>>()?;
        // The first instruction set is the default, whose results are compared with the snapshots.
        for (group, variants) in [("threads", threads), ("isa", isas[1..].to_vec())] {
            for (label, cpu) in variants.clone() {
                for (name, check) in primitives::checks::<Device>() {
                    let cpu = cpu.clone();
                    trials.add("cpu", group, &format!("{name}-{label}"), move || check(&cpu).map(|()| String::new()));
                }
            }
            for case in cases::all_cases() {
                let (plain, variants) = (plain.clone(), variants.clone());
                trials.add("cpu", group, &case.name.clone(), move || variants_match(&plain, &variants, &case));
            }
            for run in training::runs() {
                let (plain, variants) = (plain.clone(), variants.clone());
                trials.add("cpu", group, &format!("training-{}", run.name), move || {
                    let want = run.report(&plain)?;
                    for (label, cpu) in &variants {
                        ensure!(run.report(cpu)? == want, "{label} differs from plain");
                    }
                    Ok(String::new())
                });
            }
        }
        for fault in Fault::ALL {
            let cpu = plain.clone();
            trials.add("cpu", "faults", &format!("{fault:?}"), move || detects_fault(&cpu, fault));
        }
        trials.add("cpu", "faults", "None", move || passes_without_fault(&plain));
        // The first instruction set is the default; `visit` adds its trials.
        for (label, cpu) in isas.into_iter().skip(1) {
            for activation in Activation::ALL {
                let cpu = cpu.clone();
                let check = move || activations::check_all(&cpu, activation, false);
                trials.add("cpu", "all-inputs", &format!("{}-{label}", activation.name()), check);
            }
        }
        Ok(())
    }

    /// At least one case must detect the fault.
    fn detects_fault(cpu: &Device, fault: Fault) -> Result<String> {
        let detected = small_cases().find_map(|case| {
            let error = check::check_case(&FaultyBackend::new(cpu.clone(), fault), &case).err()?;
            Some((case.name, format!("{error:#}")))
        });
        let (name, error) = detected.ok_or_else(|| anyhow!("no case detects the fault {fault:?}"))?;
        ensure!(error.contains("elements differ"), "{name} fails for a different reason: {error}");
        Ok(format!("detected by {name}: {error}"))
    }

    /// Without a fault, all cases must pass; otherwise detecting faults would prove nothing.
    fn passes_without_fault(cpu: &Device) -> Result<String> {
        for case in small_cases() {
            check::check_case(&FaultyBackend::new(cpu.clone(), Fault::None), &case)?;
        }
        Ok(String::new())
    }

    /// Every variant of the backend must be bit-identical to plain code.
    fn variants_match(plain: &Device, variants: &[(String, Device)], case: &Case) -> Result<String> {
        let want = check::run_passes(&Lstm::new(plain, case.weights()?)?, &case.data(), Checkpointing::SaveEverything)?;
        for (label, cpu) in variants {
            let got = check::check_case(cpu, case).with_context(|| label.clone())?;
            compare::check_same_passes(&format!("{label} against plain"), &want, &got)?;
        }
        Ok(String::new())
    }
}
