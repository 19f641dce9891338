//! `cargo xtask soak`: a list of parts, each a command that runs for its share of the time.

use std::{
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// Search for errors that show only after a long time, or only to a sanitizer
///
/// Builds take their own time. What is missing on this machine is reported as not run, with the reason. With
/// `LSTM_REQUIRE` set, that is a failure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Minutes for the parts with a time limit, all together
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Run only the parts whose name starts with one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// List the parts and end
    #[arg(long)]
    list: bool,
}

/// The target of builds with a sanitizer. With it, the flags do not apply to build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The oldest supported Rust, as in `Cargo.toml`.
const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The file formats with a fuzz target.
const FUZZ_TARGETS: [&str; 5] = ["safetensors", "onnx", "input", "audio", "open"];

/// What a part needs besides cargo.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    /// The source of the standard library, for the toolchain in use, on x86-64 Linux.
    RustSource,
    /// A nightly Rust with this component.
    Nightly(&'static str),
    /// Another version of Rust.
    Rust(&'static str),
    /// x86-64 Linux.
    Sanitizer,
}

/// One thing to run.
struct Part {
    name: String,
    needs: Needs,
    /// Share of the time. With 0 the part runs once, as long as it takes.
    share: f64,
    /// Arguments of cargo; `SECONDS` stands for the part's time.
    args: Vec<String>,
    /// Environment variables.
    env: Vec<(&'static str, String)>,
    /// Folder of the workspace in which cargo starts.
    dir: &'static str,
}

impl Part {
    fn new(name: impl Into<String>, needs: Needs, share: f64, args: &str) -> Self {
        let args = args.split(' ').map(str::to_owned).collect();
        Part { name: name.into(), needs, share, args, env: Vec::new(), dir: "." }
    }

    fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    fn dir(self, dir: &'static str) -> Self {
        Part { dir, ..self }
    }

    /// Sets the flags of a build with a sanitizer. They need an unstable option, which `RUSTC_BOOTSTRAP` permits.
    fn sanitizer(self, sanitizer: &str, more_flags: &str) -> Self {
        let flags = format!("-Zsanitizer={sanitizer} {more_flags}");
        // Unoptimized: the build takes longer than the tests.
        self.env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", flags.trim_end())
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            // The frames of unoptimized code with a sanitizer are large.
            .env("RUST_MIN_STACK", "67108864")
    }
}

/// All parts, in the order in which they run.
fn parts() -> Vec<Part> {
    // Only what the tests need: everything is built again for each sanitizer.
    let test =
        |tests: &str| format!("test -p lstm-cpu --no-default-features --features train --target {TARGET} {tests}");
    let instrumented_std = |tests: &str| test(tests).replacen("test", "test -Zbuild-std", 1);
    let stress = "--test soak threads_share";
    let mut parts = vec![
        Part::new("barrier", Needs::Nothing, 1.0, "test -p lstm-cpu --test barrier"),
        Part::new("stress-address", Needs::Sanitizer, 1.0, &test(stress)).sanitizer("address", ""),
        // Without an instrumented standard library, ThreadSanitizer does not see what its locks order.
        Part::new("stress-thread", Needs::RustSource, 1.0, &instrumented_std(stress)).sanitizer("thread", ""),
    ];
    parts.extend(FUZZ_TARGETS.map(|target| {
        let args = format!(
            "run --target {TARGET} --bin {target} -- -max_total_time=SECONDS -max_len=8192 -timeout=20 -rss_limit_mb=4096 \
             -artifact_prefix=../target/soak/ ../target/soak/corpus/{target} corpus/{target}"
        );
        // The flags of cargo-fuzz.
        let coverage = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
        Part::new(format!("fuzz-{target}"), Needs::Sanitizer, 1.0, &args)
            .sanitizer("address", coverage)
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .dir("fuzz")
    }));
    parts.extend([
        Part::new("tests-address", Needs::Sanitizer, 0.0, &test("--lib --tests")).sanitizer("address", ""),
        Part::new("tests-thread", Needs::RustSource, 0.0, &instrumented_std("--lib --test soak --test concurrency"))
            .sanitizer("thread", ""),
        // Sigmoid and tanh on all 2^32 inputs.
        Part::new(
            "all-inputs",
            Needs::Nothing,
            0.0,
            "test --release -p lstm-tests --features wgpu,cuda --test conformance -- --ignored",
        ),
        Part::new("kill", Needs::Nothing, 2.0, "test --release -p lstm-cpu --test soak killed_save -- --nocapture"),
        Part::new("memory", Needs::Nothing, 0.0, "test --release -p lstm-cpu --test soak memory_stays -- --nocapture")
            .env("LSTM_SOAK_STEPS", "100000000"),
        Part::new(
            "miri-pool",
            Needs::Nightly("miri"),
            0.0,
            "+nightly miri test -p lstm-cpu --lib pool::tests::each_rank",
        )
        .env("MIRIFLAGS", "-Zmiri-disable-isolation"),
        // For a processor for which libm has no assembly, which Miri does not run.
        Part::new(
            "miri-plain",
            Needs::Nightly("miri"),
            0.0,
            &format!("+nightly miri {}", test(stress).replace(TARGET, "riscv64gc-unknown-linux-gnu")),
        )
        .env("MIRIFLAGS", "-Zmiri-disable-isolation"),
    ]);
    // The snapshots have the digests of all results.
    let digests = |name: &str, needs, toolchain: &str, config: &str| {
        let args = format!("{toolchain}test --release -p lstm-tests --test conformance {config}");
        Part::new(format!("digests-{name}"), needs, 0.0, args.trim_end()).env("LSTM_BACKENDS", "cpu")
    };
    parts.extend([
        digests("opt-1", Needs::Nothing, "", "--config profile.release.opt-level=1"),
        digests("opt-2", Needs::Nothing, "", "--config profile.release.opt-level=2"),
        digests("opt-3", Needs::Nothing, "", ""),
        digests("fat-lto", Needs::Nothing, "", "--config profile.release.lto=\"fat\""),
        digests("native", Needs::Nothing, "", "").env("RUSTFLAGS", "-Ctarget-cpu=native"),
        digests("oldest-rust", Needs::Rust(OLDEST_RUST), &format!("+{OLDEST_RUST} "), ""),
    ]);
    parts
}

/// The reason why a part can't run here; `None` if it can.
fn reason_not_run(needs: Needs) -> Option<String> {
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let is_linux = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    match needs {
        Needs::Nothing => None,
        Needs::Sanitizer | Needs::RustSource if !is_linux => Some("it needs x86-64 Linux".into()),
        Needs::Sanitizer => None,
        Needs::RustSource => {
            let root = output("rustc", &["--print", "sysroot"]).unwrap_or_default();
            let source = std::path::Path::new(&root).join("lib/rustlib/src/rust/library");
            (!source.exists()).then(|| "no source of the standard library; rustup component add rust-src".into())
        }
        Needs::Nightly(component) => {
            match output("rustup", &["component", "list", "--toolchain", "nightly", "--installed"]) {
                Some(installed) if installed.contains(component) => None,
                _ => Some(format!("no nightly Rust with {component}; rustup toolchain install nightly -c {component}")),
            }
        }
        Needs::Rust(version) => match output("rustc", &[&format!("+{version}"), "--version"]) {
            Some(_) => None,
            None => Some(format!("no Rust {version}; rustup toolchain install {version} --profile minimal")),
        },
    }
}

/// How a part ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Passed,
    Failed(String),
    NotRun(String),
}

impl Outcome {
    /// The outcome if every part must run: `LSTM_REQUIRE` is set, as for tests.
    fn required(self) -> Self {
        match self {
            Outcome::NotRun(reason) => Outcome::Failed(format!("not run: {reason}")),
            outcome => outcome,
        }
    }
}

/// Runs a part for `seconds`, with its output on the terminal.
fn run_part(part: &Part, seconds: f64) -> Result<Outcome> {
    if let Some(reason) = reason_not_run(part.needs) {
        return Ok(Outcome::NotRun(reason));
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    // The first corpus of a fuzz target, which gets the inputs that it finds.
    for target in FUZZ_TARGETS {
        std::fs::create_dir_all(format!("{root}/target/soak/corpus/{target}"))?;
    }
    // Cargo itself starts another cargo only through rustup, if a version is asked for.
    let has_version = part.args[0].starts_with('+');
    let mut command = if has_version { Command::new("cargo") } else { cargo::cargo_command() };
    if has_version {
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"].iter().for_each(|name| {
            command.env_remove(name);
        });
    }
    let args = part.args.iter().map(|arg| arg.replace("SECONDS", &format!("{}", seconds.ceil().max(1.0))));
    command.current_dir(format!("{root}/{}", part.dir)).args(args).envs(part.env.iter().cloned());
    // A folder for each kind of build, so that one does not rebuild what another has built.
    let kind = if part.dir == "fuzz" { "fuzz" } else { &part.name };
    command.env("CARGO_TARGET_DIR", format!("{root}/target/soak/{kind}"));
    command.env("LSTM_SOAK_SECONDS", format!("{seconds}"));
    let status = command.status().with_context(|| format!("{command:?}"))?;
    Ok(if status.success() { Outcome::Passed } else { Outcome::Failed(status.to_string()) })
}

/// Runs the parts and prints a table. Returns whether none failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut parts = parts();
    parts.retain(|part| args.only.is_empty() || args.only.iter().any(|name| part.name.starts_with(name.as_str())));
    if parts.is_empty() {
        bail!("--only: expected names of parts, got {}; `cargo xtask soak --list` lists them", args.only.join(","));
    }
    if args.list {
        parts.iter().for_each(|part| println!("{}", part.name));
        return Ok(true);
    }
    let shares: f64 = parts.iter().map(|part| part.share).sum();
    let mut table = String::new();
    let mut has_failed = false;
    let is_required = std::env::var_os("LSTM_REQUIRE").is_some();
    for part in &parts {
        let seconds = if part.share == 0.0 { 5.0 } else { args.minutes * 60.0 * part.share / shares };
        println!("\n== {} ==", part.name);
        let start = Instant::now();
        let outcome = run_part(part, seconds).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let outcome = if is_required { outcome.required() } else { outcome };
        let text = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::NotRun(reason) => format!("not run: {reason}"),
            Outcome::Failed(reason) => {
                has_failed = true;
                format!("FAILED: {reason}")
            }
        };
        println!("{}: {text}", part.name);
        let elapsed = Duration::from_secs(start.elapsed().as_secs());
        writeln!(table, "{:<20}  {:>7}  {text}", part.name, format!("{} s", elapsed.as_secs()))?;
    }
    print!("\n{table}");
    Ok(!has_failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_must_run_and_does_not_fails() {
        assert_eq!(Outcome::NotRun("no Rust".into()).required(), Outcome::Failed("not run: no Rust".into()));
        assert_eq!(Outcome::Passed.required(), Outcome::Passed);
    }

    #[test]
    fn parts_have_distinct_names_and_a_command() {
        let parts = parts();
        for (k, part) in parts.iter().enumerate() {
            assert!(parts[..k].iter().all(|other| other.name != part.name), "{}", part.name);
            let command = part.args.iter().find(|arg| !arg.starts_with('+')).unwrap();
            assert!(["test", "run", "miri"].contains(&command.as_str()), "{}: {command}", part.name);
            assert!(part.args.iter().all(|arg| !arg.is_empty()), "{}: {:?}", part.name, part.args);
        }
        assert!(FUZZ_TARGETS.iter().all(|target| parts.iter().any(|part| part.name == format!("fuzz-{target}"))));
    }
}
