//! The program behind `cargo xtask bench`: times the cases and writes `report.html`, `report.md` and `results.json`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lstm_benches::{
    backends::{backends, uses_threads},
    case::{self, Case},
    compare,
    machine::Machine,
    report::{self, format_time, html, readme},
    results::{CaseRoofline, F32, FORMAT_VERSION, Results, Times},
    roofline::{self, MachineLimits, phases},
    runner::{self, Program, Timing},
};
use lstm_core::Precision;

/// Time the cases on all backends and in other libraries, and compare them with the limits of the machine
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Backends to time [default: all in this build]
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// Precisions of the weights that backends are timed with: f32, int8 and int12; training is timed in f32 only
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    precision: Vec<Precision>,
    /// Other libraries to time: torch, torch-int8, torch-bf16, onnxruntime, onnxruntime-int8, openvino and openvino-bf16
    /// (which need --python), candle, burn, burn-wgpu, rten and tract (built from benches/peers, which takes minutes), or
    /// all
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Python interpreter with the Python libraries, numpy and safetensors installed
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Table of cases, in the format of benches/cases.json [default: the built-in table]
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Time only cases whose name contains this text
    #[arg(long, default_value = "")]
    only: String,
    /// Numbers of threads [default: 1 and the number of cores]
    #[arg(long, value_delimiter = ',')]
    threads: Option<Vec<usize>>,
    /// Number of rounds per case; in a round, all backends and libraries run one after another [default: 7]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds that a backend or library runs in one round [default: 0.2]
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds to wait for a reply of a backend or library, in addition to --seconds, before it is stopped and reported as
    /// not run
    #[arg(long = "patience", value_name = "SECONDS", default_value_t = 120)]
    timeout_seconds: u64,
    /// Quick check that everything works: 2 rounds of 0.01 s by default
    #[arg(long)]
    quick: bool,
    /// Directory for the three files
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Print one JSON line for each case, backend or library, and number of threads
    #[arg(long)]
    json: bool,
    /// Compare with the results.json of an earlier run on this machine; fail if a backend became slower by more than noise
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Do not time anything; write the reports again from an earlier results.json, restricted to the --threads if given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["backends", "peers", "cases", "only", "rounds", "seconds", "quick"])]
    from: Option<PathBuf>,
    /// Also write the reports to reports/NAME, and update the table in README.md
    #[arg(long, value_name = "NAME")]
    publish: Option<String>,
    /// Only update the table in README.md from the latest report in reports/
    #[arg(long, conflicts_with = "publish")]
    readme: bool,
}

/// Libraries that `peers.py` runs.
const PYTHON_PEERS: [&str; 7] =
    ["torch", "torch-int8", "torch-bf16", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16"];
/// Libraries that the program in `benches/peers` runs.
const RUST_PEERS: [&str; 5] = ["candle", "burn", "burn-wgpu", "rten", "tract"];

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the benchmark. Returns false if nothing was timed or a comparison found a regression.
fn run(args: Args) -> Result<bool> {
    if args.readme {
        return write_readme().map(|()| true);
    }
    // Check all arguments before spending minutes on measurements.
    let earlier_results = args.compare.as_deref().map(Results::read).transpose()?;
    if let Some(name) = &args.publish {
        let is_valid_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(is_valid_name, "--publish: expected letters, digits and dashes, got `{name}`");
    }
    let timing = Timing {
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 7 }),
        seconds: args.seconds.unwrap_or(if args.quick { 0.01 } else { 0.2 }),
        timeout: Duration::from_secs(args.timeout_seconds),
    };
    ensure!((1..=1000).contains(&timing.rounds), "--rounds: expected 1 to 1000, got {}", timing.rounds);
    ensure!(
        (1..=86_400).contains(&args.timeout_seconds),
        "--patience: expected 1 to 86400, got {}",
        args.timeout_seconds
    );
    ensure!((0.0..=600.0).contains(&timing.seconds), "--seconds: expected 0 to 600, got {}", timing.seconds);
    let mut cases = case::load(args.cases.as_deref())?;
    cases.retain(|case| case.name.contains(&args.only));
    ensure!(!cases.is_empty(), "--only: no case has a name that contains `{}`", args.only);
    ensure!(
        args.precision.first() == Some(&Precision::F32),
        "--precision: expected f32 first, with which the others are compared"
    );
    let threads = thread_counts(&args)?;
    let programs = if args.from.is_none() { programs(&args)? } else { Vec::new() };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;

    let results = match &args.from {
        Some(path) if args.threads.is_some() => Results::read(path)?.with_threads(&threads)?,
        Some(path) => Results::read(path)?,
        None => measure(&args, cases, &threads, &programs, timing)?,
    };
    let (json, markdown, html) = (results.to_json()?, report::markdown(&results), html::format_page(&results)?);
    let write_reports = |dir: &Path| {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for (name, text) in [("results.json", &json), ("report.md", &markdown), ("report.html", &html)] {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        eprintln!("wrote {}/report.html, report.md and results.json", dir.display());
        Ok::<_, anyhow::Error>(())
    };
    write_reports(&args.out)?;
    if args.json {
        results.json_lines().iter().for_each(|line| println!("{line}"));
    }
    let mut success = !results.times.is_empty();
    if let Some(earlier_results) = earlier_results {
        let (table, regressions) = compare::compare(&earlier_results, &results)?;
        eprintln!("\n{}\n{regressions} regressions larger than noise", table.to_markdown());
        success &= regressions == 0;
    }
    if let Some(name) = &args.publish {
        write_reports(&repository_root().join("reports").join(name))?;
        write_readme()?;
    }
    Ok(success)
}

/// Root directory of the repository.
fn repository_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("benches/ is in the repository")
}

/// Updates the table in README.md from the latest report.
fn write_readme() -> Result<()> {
    let path = repository_root().join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let updated = readme::update_table(&text, &readme::read_reports(&repository_root().join("reports"))?)?;
    std::fs::write(&path, updated).with_context(|| path.display().to_string())
}

/// Numbers of threads with which the cases are timed, ascending.
fn thread_counts(args: &Args) -> Result<Vec<usize>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = args.threads.clone().unwrap_or_else(|| vec![1, cores]);
    ensure!(
        !threads.is_empty() && threads.iter().all(|n| (1..=1024).contains(n)),
        "--threads: expected 1 to 1024, got {threads:?}"
    );
    threads.sort_unstable();
    threads.dedup();
    Ok(threads)
}

/// Returns the programs that time the cases: one worker for each requested backend, followed by one for each other
/// library.
fn programs(args: &Args) -> Result<Vec<Program>> {
    let names: Vec<&str> = backends().map(|info| info.name).collect();
    let wanted_backends = args.backends.clone().unwrap_or_else(|| names.iter().map(|&name| name.to_owned()).collect());
    ensure!(!wanted_backends.is_empty(), "--backends: expected at least one backend");
    let worker_path = std::env::current_exe()?.with_file_name(format!("worker{}", std::env::consts::EXE_SUFFIX));
    ensure!(worker_path.exists(), "{} does not exist; build it with `cargo xtask bench`", worker_path.display());
    let mut programs = Vec::new();
    for name in &wanted_backends {
        let info = backends().find(|info| info.name == name);
        let info =
            info.with_context(|| format!("no backend `{name}` in this build; expected one of {}", names.join(", ")))?;
        for precision in &args.precision {
            let command = vec![worker_path.clone().into(), name.into(), precision.name().into()];
            let suffix = if *precision == Precision::F32 { String::new() } else { format!("-{precision}") };
            let (name, on_cpu) = (format!("lstm-{name}{suffix}"), uses_threads(info));
            programs.push(Program { name, ours: true, on_cpu, precision: precision.to_string(), command });
        }
    }
    let all_peers = PYTHON_PEERS.iter().chain(&RUST_PEERS).copied();
    let peers: Vec<&str> =
        if args.peers == ["all"] { all_peers.collect() } else { args.peers.iter().map(String::as_str).collect() };
    let mut rust_peers_program: Option<OsString> = None;
    for name in peers {
        // `ort` is a short name of onnxruntime.
        let name = if name == "ort" { "onnxruntime" } else { name };
        let command = if PYTHON_PEERS.contains(&name) {
            vec![args.python.clone().into(), repository_root().join("benches/peers.py").into(), name.into()]
        } else if RUST_PEERS.contains(&name) {
            let program = match &rust_peers_program {
                Some(program) => program.clone(),
                None => rust_peers_program.insert(build_peers()?).clone(),
            };
            vec![program, name.into()]
        } else {
            bail!("no peer `{name}`; expected one of {}, {}", PYTHON_PEERS.join(", "), RUST_PEERS.join(", "));
        };
        // The part after the dash is a precision, or a device.
        let precision = name.rsplit('-').next().filter(|suffix| ["int8", "bf16"].contains(suffix)).unwrap_or(F32);
        let on_cpu = !name.ends_with("wgpu");
        programs.push(Program { name: name.to_owned(), ours: false, on_cpu, precision: precision.to_owned(), command });
    }
    Ok(programs)
}

/// Builds `benches/peers` and returns the path of the program.
fn build_peers() -> Result<OsString> {
    let target_dir = std::env::current_exe()?.with_file_name("peers");
    eprintln!("building benches/peers, which takes minutes the first time");
    let mut build_command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build_command
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(repository_root().join("benches/peers/Cargo.toml"));
    let status = build_command.arg("--target-dir").arg(&target_dir).stdout(Stdio::null()).status().context("cargo")?;
    ensure!(status.success(), "benches/peers did not build; see the compiler output above");
    Ok(target_dir.join("release").join(format!("lstm-peers{}", std::env::consts::EXE_SUFFIX)).into())
}

/// Measures the limits of the machine and times all cases.
fn measure(args: &Args, cases: Vec<Case>, threads: &[usize], programs: &[Program], timing: Timing) -> Result<Results> {
    let machine = Machine::current();
    let (samples, max_working_set) = if args.quick { (1, 1 << 22) } else { (20, roofline::MAX_WORKING_SET) };
    let measure_limits = || {
        threads
            .iter()
            .map(|&n| roofline::measure_limits(n, samples, max_working_set))
            .collect::<Result<Vec<MachineLimits>>>()
    };
    eprintln!("measuring the machine");
    let limits_before = measure_limits()?;
    let mut results = Results {
        version: FORMAT_VERSION,
        machine,
        rounds: timing.rounds,
        seconds: timing.seconds,
        limits: Vec::new(),
        cases,
        subjects: Vec::new(),
        times: Vec::new(),
        rooflines: Vec::new(),
        not_run: Vec::new(),
    };
    for (k, &n) in threads.iter().enumerate() {
        // Other devices do not depend on the number of threads, so they are timed only with the largest one.
        let is_last = k + 1 == threads.len();
        let group_programs: Vec<Program> =
            programs.iter().filter(|program| program.on_cpu || is_last).cloned().collect();
        if group_programs.is_empty() {
            continue;
        }
        let group_results =
            runner::time_cases(&group_programs, n, &results.cases, timing, &args.out.join("cases"), |case, times| {
                let describe_time = |t: &Times| format!("{} {}", t.subject, format_time(t.median_s()));
                eprintln!(
                    "{}, {}: {}",
                    case.name,
                    report::format_thread_count(n),
                    times.iter().map(describe_time).collect::<Vec<_>>().join(", ")
                );
            })?;
        for subject in group_results.subjects {
            if results.subjects.iter().all(|known| known.name != subject.name) {
                results.subjects.push(subject);
            }
        }
        results.times.extend(group_results.times);
        group_results
            .not_run
            .iter()
            .filter(|n| n.case.is_none())
            .for_each(|n| eprintln!("not run: {}: {}", n.subject, n.why));
        results.not_run.extend(group_results.not_run);
    }
    results.subjects.sort_by_key(|subject| programs.iter().position(|program| program.name == subject.name));
    // Other load only makes measurements worse, so the better of both is closer to the limits of the machine.
    results.limits =
        limits_before.into_iter().zip(&measure_limits()?).map(|(before, after)| before.merge_best(after)).collect();
    for limits in &results.limits {
        for (case, &precision) in results.cases.iter().flat_map(|case| args.precision.iter().map(move |p| (case, p))) {
            let (case_name, threads) = (case.name.clone(), limits.threads);
            let roofline = phases::roofline(case, precision, limits);
            results.rooflines.extend(roofline.map(|roofline| CaseRoofline {
                case: case_name,
                threads,
                precision: precision.to_string(),
                roofline,
            }));
        }
    }
    Ok(results)
}
