//! Every backend against the table of cases: trials named `backend::group::case`.
//!
//! `LSTM_BACKENDS=a,b` selects backends; `LSTM_RESULTS=FILE` collects one JSON line per trial; `--ignored` runs the
//! activations over all 2^32 inputs; `LSTM_RUN_INEXACT=1` runs all groups of a backend that says its bits are not exact.
//! Snapshots in `tests/snapshots` are shared by all backends.

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
    backends::{self, Visit},
    cases::{self, CELLS, Case},
    check, compare,
    golden::Golden,
    primitives, refusals,
    results::{Line, Outcome, record},
    specification, training,
    verify::Compared,
};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda-host")]
mod cuda_host;
#[cfg(feature = "wgpu")]
mod wgpu;

fn main() {
    let args = Arguments::from_args();
    let mut trials = Trials { trials: Vec::new(), list: args.list };
    let wanted = backends::wanted();
    for missed in backends::for_each(wanted.as_deref(), &mut trials) {
        trials.not_run(&missed.name, "", &missed.why);
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
    /// Whether they are only to be listed.
    list: bool,
}

impl Trials {
    /// A trial of `check`, which returns what it found, in words.
    fn add(&mut self, backend: &str, group: &str, case: &str, check: impl FnOnce() -> Result<String> + Send + 'static) {
        let at = [backend, group, case].map(str::to_owned);
        let trial = Trial::test(at.join("::"), move || {
            let caught = catch_unwind(AssertUnwindSafe(check));
            let result = caught.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(&*panic))));
            let (outcome, detail) = match &result {
                Ok(found) => (Outcome::Identical, found.clone()),
                Err(error) => (Outcome::Failed, format!("{error:#}")),
            };
            let [backend, group, case] = &at;
            record(&Line { backend, group, case, outcome, detail: &detail }).map_err(|e| format!("{e:#}"))?;
            result.map(drop).map_err(|error| format!("{error:#}").into())
        });
        self.trials.push(trial.with_ignored_flag(group == "exhaustive"));
    }

    /// All cases and training runs against their snapshots, on a backend that takes one of its paths.
    #[cfg(any(feature = "cuda", feature = "cuda-host"))]
    fn cases_and_training<B: Backend + Send + 'static>(&mut self, backend: &str, group: &str, b: &B) {
        for case in cases::table() {
            let (b, name) = (b.clone(), case.name.clone());
            self.add(backend, group, &name, move || matches_snapshot(&b, &case));
        }
        for run in training::runs() {
            let (b, name) = (b.clone(), format!("training-{}", run.name));
            self.add(backend, group, &name.clone(), move || {
                snapshot(&name, &training::check(&b, &run)?).map(|()| String::new())
            });
        }
    }

    /// Says that nothing of a backend, or of one of its groups, was run.
    fn not_run(&self, backend: &str, group: &str, why: &str) {
        if self.list {
            return;
        }
        eprintln!("{backend}: {group} not run: {why}");
        if let Err(error) = record(&Line { backend, group, case: "", outcome: Outcome::NotRun, detail: why }) {
            eprintln!("{error:#}");
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
}

impl Visit for Trials {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        // A trial owns its handle of the backend.
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
        for (case, check) in refusals::checks::<B>() {
            add!("refusals", case, move |b: &B| check(b).map(|()| String::new()));
        }
        for (case, cell) in CELLS {
            add!("empty", case, move |b: &B| check::empty(b, cell).map(|()| String::new()));
        }
        if let Arithmetic::Inexact(why) = b.arithmetic() {
            let why = format!("the arithmetic is not exact: {why}");
            if env::var_os("LSTM_RUN_INEXACT").is_none() {
                for group in ["specification", "primitives", "cells", "options", "sizes", "training"] {
                    self.not_run(name, group, &why);
                }
                return;
            }
            // Who looks for what is wrong with a device wants to see all that is, of which this is the first.
            self.add(name, "specification", "exact", move || Err(anyhow!(why)));
        }
        add!("specification", "cells", |b: &B| specification::cells(b).map(|()| String::new()));
        add!("specification", "generator", |b: &B| specification::generator(b).map(|()| String::new()));
        for (case, check) in primitives::checks::<B>() {
            add!("primitives", case, move |b: &B| check(b).map(|()| String::new()));
        }
        for case in cases::table() {
            let (group, name) = (case.group, case.name.clone());
            add!(group, &name, move |b: &B| {
                let text = compare::render(&check::check_case(b, &case)?);
                snapshot(&case.name, &text).map(|()| String::new())
            });
        }
        for run in training::runs() {
            let name = run.name;
            add!("training", name, move |b: &B| {
                snapshot(&format!("training-{name}"), &training::check(b, &run)?).map(|()| String::new())
            });
        }
        for activation in Activation::ALL {
            add!("exhaustive", activation.name(), move |b: &B| activations::check_all(b, activation, true));
        }
    }
}

/// Where the data are. A binary that was brought to another machine is told when it is started, as cargo does.
fn package() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    &PACKAGE
}

fn golden_cases() -> Vec<PathBuf> {
    let dir = package().join("data/golden");
    // Without the data there is one trial, which says so.
    Golden::files(&dir).unwrap_or_else(|_| vec![dir.join("missing.safetensors")])
}

fn within_limits<B: Backend>(b: &B, path: &Path) -> Result<String> {
    let scores = Golden::open(path)?.score(b)?;
    for score in &scores {
        ensure!(score.passes(), "{score}");
    }
    Ok(format!("worst error / limit {:.3}", scores.iter().fold(0.0, |worst: f64, score| worst.max(score.ratio()))))
}

/// The exact bits, shared by all backends. insta prints both texts where they differ; `cargo insta review`, or
/// `INSTA_UPDATE=always`, accepts the new one.
fn snapshot(name: &str, text: &str) -> Result<()> {
    let dir = package().join("snapshots");
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(&dir);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let compared = catch_unwind(AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!(name, text))));
    if compared.is_ok() {
        return Ok(());
    }
    let stored = std::fs::read_to_string(dir.join(format!("{name}.snap"))).context("no snapshot yet")?;
    // Three lines of header come first.
    let first = text.lines().zip(stored.lines().skip(3)).find(|(got, want)| got != want);
    let (got, want) = first.unwrap_or(("another number of lines", ""));
    Err(anyhow!("differs from the snapshot:\n  want {}\n  got  {}", want.trim(), got.trim()))
}

/// Cases for variants of a backend, and for a backend that computes products on the host.
#[cfg(any(feature = "cpu", feature = "cuda-host", feature = "wgpu"))]
fn small_cases() -> impl Iterator<Item = Case> {
    cases::table().into_iter().filter(|case| case.batch * case.steps * case.config.hidden_size < 5000)
}

/// A case's passes against their snapshot.
#[cfg(any(feature = "cuda", feature = "cuda-host", feature = "wgpu"))]
fn matches_snapshot<B: Backend>(b: &B, case: &Case) -> Result<String> {
    snapshot(&case.name, &compare::render(&check::check_case(b, case)?)).map(|()| String::new())
}

#[cfg(feature = "cpu")]
mod cpu {
    //! What only the CPU has: numbers of threads and instruction sets, which all give the bits of plain code. And the checks
    //! themselves, which need to be looked at once: do they find errors?

    use lstm_core::Checkpointing;
    use lstm_cpu::{Cpu, Isa};
    use lstm_tests::planted::{Fault, Planted};

    use super::*;

    pub(super) fn trials(trials: &mut Trials) -> lstm_cpu::Result<()> {
        let plain = Cpu::builder().threads(1).isa(Isa::Plain).build()?;
        let threads = |n: usize| Ok((format!("{n}-threads"), Cpu::builder().threads(n).build()?));
        let isa = |isa: Isa| Ok((isa.to_string(), Cpu::builder().threads(1).isa(isa).build()?));
        let threads = [1, 2, 4].into_iter().map(threads).collect::<lstm_cpu::Result<Vec<_>>>()?;
        let isas = Isa::available().into_iter().map(isa).collect::<lstm_cpu::Result<Vec<_>>>()?;
        for (group, variants) in [("threads", threads), ("isa", isas.clone())] {
            for (label, cpu) in variants.clone() {
                for (name, check) in primitives::checks::<Cpu>() {
                    let cpu = cpu.clone();
                    trials.add("cpu", group, &format!("{name}-{label}"), move || check(&cpu).map(|()| String::new()));
                }
            }
            for case in cases::table() {
                let (plain, variants) = (plain.clone(), variants.clone());
                trials.add("cpu", group, &case.name.clone(), move || equal(&plain, &variants, &case));
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
            trials.add("cpu", "planted", &format!("{fault:?}"), move || found(&cpu, fault));
        }
        trials.add("cpu", "planted", "None", move || not_found(&plain));
        // The first is the default, whose sweep also looks at errors.
        for (label, cpu) in isas.into_iter().skip(1) {
            for activation in Activation::ALL {
                let cpu = cpu.clone();
                let check = move || activations::check_all(&cpu, activation, false);
                trials.add("cpu", "exhaustive", &format!("{}-{label}", activation.name()), check);
            }
        }
        Ok(())
    }

    /// The checks must find a planted error.
    fn found(cpu: &Cpu, fault: Fault) -> Result<String> {
        let caught = small_cases().filter_map(|case| {
            let error = check::check_case(&Planted::new(cpu.clone(), fault), &case).err()?;
            Some((case.name, format!("{error:#}")))
        });
        let caught: Vec<_> = caught.collect();
        let (name, error) = caught.first().ok_or_else(|| anyhow!("no case finds the planted error {fault:?}"))?;
        ensure!(error.contains("elements differ"), "{name} fails for another reason: {error}");
        Ok(format!("found by {} cases, first by {name}: {error}", caught.len()))
    }

    /// And nothing where nothing is planted, or finding errors would mean little.
    fn not_found(cpu: &Cpu) -> Result<String> {
        for case in small_cases() {
            check::check_case(&Planted::new(cpu.clone(), Fault::None), &case)?;
        }
        Ok(String::new())
    }

    fn equal(plain: &Cpu, variants: &[(String, Cpu)], case: &Case) -> Result<String> {
        let want = check::passes(&Lstm::new(plain, case.weights()?)?, &case.data(), Checkpointing::Everything)?;
        for (label, cpu) in variants {
            let got = check::check_case(cpu, case).with_context(|| label.clone())?;
            compare::same_passes(&format!("{label} against plain"), &want, &got)?;
        }
        Ok(String::new())
    }
}
