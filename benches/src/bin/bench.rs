//! `cargo xtask bench`: times the cases and writes `report.html`, `report.md` and `results.json`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lstm_benches::{
    backends::BACKENDS,
    case::{self, Case},
    compare,
    conductor::{self, Program, Turns},
    floor::{self, Floor, work},
    machine::Machine,
    report::{self, html, readme, time},
    results::{CaseRoofline, Results, Times, VERSION},
};

/// Time the cases on the backends that run here, beside other libraries and the machine's own limits
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Backends to time; by default all that were built
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// Other libraries to time beside them: torch, onnxruntime, openvino (by --python), candle, burn, burn-wgpu, rten,
    /// tract (built from benches/peers, which takes minutes), or all
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// A Python that has the Python peers, numpy and safetensors
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// A table of cases in the format of benches/cases.json
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Numbers of threads; by default 1 and all cores
    #[arg(long, value_delimiter = ',')]
    threads: Option<Vec<usize>>,
    /// Turns that each has in every case [default: 7]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of a turn [default: 0.2]
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds to wait for an answer, besides those of a turn; then the program is stopped and reported as not run
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// To see that it works: two turns of 10 ms, unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Where the three files go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Print one JSON line for each case, subject and number of threads
    #[arg(long)]
    json: bool,
    /// Compare with the results.json of an earlier run here; fails if ours became slower than noise explains
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Time nothing, write the reports of an earlier run's results.json again, with --threads of those alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["backends", "peers", "cases", "only", "rounds", "seconds", "quick"])]
    from: Option<PathBuf>,
    /// Also write the reports to reports/NAME, and the README's table from them
    #[arg(long, value_name = "NAME")]
    publish: Option<String>,
    /// Only write the README's table from the latest of reports/
    #[arg(long, conflicts_with = "publish")]
    readme: bool,
}

/// Those that `peers.py` times; all others are in the package `benches/peers`.
const PYTHON: [&str; 3] = ["torch", "onnxruntime", "openvino"];
const RUST: [&str; 5] = ["candle", "burn", "burn-wgpu", "rten", "tract"];

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

fn run(args: Args) -> Result<bool> {
    if args.readme {
        return write_readme().map(|()| true);
    }
    // What can be wrong is looked at before minutes are spent.
    let old = args.compare.as_deref().map(Results::read).transpose()?;
    if let Some(name) = &args.publish {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(plain, "--publish: expected letters, digits and dashes, got `{name}`");
    }
    let turns = Turns {
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 7 }),
        seconds: args.seconds.unwrap_or(if args.quick { 0.01 } else { 0.2 }),
        patience: Duration::from_secs(args.patience),
    };
    ensure!((1..=1000).contains(&turns.rounds), "--rounds: expected 1 to 1000, got {}", turns.rounds);
    ensure!((1..=86_400).contains(&args.patience), "--patience: expected 1 to 86400, got {}", args.patience);
    ensure!((0.0..=600.0).contains(&turns.seconds), "--seconds: expected 0 to 600, got {}", turns.seconds);
    let mut cases = case::load(args.cases.as_deref())?;
    cases.retain(|case| case.name.contains(&args.only));
    ensure!(!cases.is_empty(), "--only: no case's name contains `{}`", args.only);
    let threads = threads(&args)?;
    let programs = if args.from.is_none() { programs(&args)? } else { Vec::new() };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;

    let results = match &args.from {
        Some(path) if args.threads.is_some() => Results::read(path)?.with_threads(&threads)?,
        Some(path) => Results::read(path)?,
        None => measure(&args, cases, &threads, &programs, turns)?,
    };
    let (json, md, html) = (results.to_json()?, report::markdown(&results), html::page(&results)?);
    let write = |dir: &Path| {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for (name, text) in [("results.json", &json), ("report.md", &md), ("report.html", &html)] {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        eprintln!("written: {}/report.html, report.md and results.json", dir.display());
        Ok::<_, anyhow::Error>(())
    };
    write(&args.out)?;
    if args.json {
        results.lines().iter().for_each(|line| println!("{line}"));
    }
    let mut good = !results.times.is_empty();
    if let Some(old) = old {
        let (table, regressions) = compare::compare(&old, &results)?;
        eprintln!("\n{}\n{regressions} of ours became slower than noise explains", table.markdown());
        good &= regressions == 0;
    }
    if let Some(name) = &args.publish {
        write(&root().join("reports").join(name))?;
        write_readme()?;
    }
    Ok(good)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("benches/ lies in the repository")
}

fn write_readme() -> Result<()> {
    let path = root().join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let made = readme::readme(&text, &readme::reports(&root().join("reports"))?)?;
    std::fs::write(&path, made).with_context(|| path.display().to_string())
}

fn threads(args: &Args) -> Result<Vec<usize>> {
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

/// Ours, then others.
fn programs(args: &Args) -> Result<Vec<Program>> {
    let names: Vec<&str> = BACKENDS.iter().map(|entry| entry.name).collect();
    let wanted = args.backends.clone().unwrap_or_else(|| names.iter().map(|&name| name.to_owned()).collect());
    ensure!(!wanted.is_empty(), "--backends: expected at least one");
    let worker = std::env::current_exe()?.with_file_name(format!("worker{}", std::env::consts::EXE_SUFFIX));
    ensure!(worker.exists(), "{}: not built; `cargo xtask bench` builds it", worker.display());
    let mut programs = Vec::new();
    for name in &wanted {
        let entry = BACKENDS.iter().find(|entry| entry.name == name);
        let entry =
            entry.with_context(|| format!("no backend `{name}` in this build, which holds: {}", names.join(", ")))?;
        let command = vec![worker.clone().into(), name.into()];
        programs.push(Program { name: format!("lstm-{name}"), ours: true, cores: entry.threads, command });
    }
    let all = PYTHON.iter().chain(&RUST).copied();
    let peers: Vec<&str> =
        if args.peers == ["all"] { all.collect() } else { args.peers.iter().map(String::as_str).collect() };
    let mut rust: Option<OsString> = None;
    for name in peers {
        // As it is called on PyPI, and for short.
        let name = if name == "ort" { "onnxruntime" } else { name };
        let command = if PYTHON.contains(&name) {
            vec![args.python.clone().into(), root().join("benches/peers.py").into(), name.into()]
        } else if RUST.contains(&name) {
            let program = match &rust {
                Some(program) => program.clone(),
                None => rust.insert(build_peers()?).clone(),
            };
            vec![program, name.into()]
        } else {
            bail!("no peer `{name}`; there are: {}, {}", PYTHON.join(", "), RUST.join(", "));
        };
        programs.push(Program { name: name.to_owned(), ours: false, cores: !name.ends_with("wgpu"), command });
    }
    Ok(programs)
}

/// Builds `benches/peers`; returns the program.
fn build_peers() -> Result<OsString> {
    let target = std::env::current_exe()?.with_file_name("peers");
    eprintln!("building benches/peers: minutes, the first time");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(root().join("benches/peers/Cargo.toml"));
    let status = cargo.arg("--target-dir").arg(&target).stdout(Stdio::null()).status().context("cargo")?;
    ensure!(status.success(), "benches/peers did not build; what the compiler wrote is above");
    Ok(target.join("release").join(format!("lstm-peers{}", std::env::consts::EXE_SUFFIX)).into())
}

fn measure(args: &Args, cases: Vec<Case>, threads: &[usize], programs: &[Program], turns: Turns) -> Result<Results> {
    let machine = Machine::here();
    let (samples, largest) = if args.quick { (1, 1 << 22) } else { (20, floor::LARGEST) };
    let floors = || threads.iter().map(|&n| floor::measure(n, samples, largest)).collect::<Result<Vec<Floor>>>();
    eprintln!("measuring the machine");
    let before = floors()?;
    let mut results = Results {
        version: VERSION,
        machine,
        rounds: turns.rounds,
        seconds: turns.seconds,
        floors: Vec::new(),
        cases,
        subjects: Vec::new(),
        times: Vec::new(),
        rooflines: Vec::new(),
        not_run: Vec::new(),
    };
    for (k, &n) in threads.iter().enumerate() {
        // Devices do not care for the number of threads: they take part once, beside all cores.
        let last = k + 1 == threads.len();
        let here: Vec<Program> = programs.iter().filter(|program| program.cores || last).cloned().collect();
        if here.is_empty() {
            continue;
        }
        let group = conductor::play(&here, n, &results.cases, turns, &args.out.join("cases"), |case, times| {
            let told = |t: &Times| format!("{} {}", t.subject, time(t.median_s()));
            eprintln!(
                "{}, {}: {}",
                case.name,
                report::plural(n),
                times.iter().map(told).collect::<Vec<_>>().join(", ")
            );
        })?;
        for subject in group.subjects {
            if results.subjects.iter().all(|known| known.name != subject.name) {
                results.subjects.push(subject);
            }
        }
        results.times.extend(group.times);
        group.not_run.iter().filter(|n| n.case.is_none()).for_each(|n| eprintln!("not run: {}: {}", n.subject, n.why));
        results.not_run.extend(group.not_run);
    }
    results.subjects.sort_by_key(|subject| programs.iter().position(|program| program.name == subject.name));
    // Whatever disturbs a measurement makes it worse: the better one is nearer to what the machine can do.
    results.floors = before.into_iter().zip(&floors()?).map(|(before, after)| before.best(after)).collect();
    let rooflines = results.floors.iter().flat_map(|floor| {
        results.cases.iter().map(|case| CaseRoofline {
            case: case.name.clone(),
            threads: floor.threads,
            roofline: work::roofline(case, floor),
        })
    });
    results.rooflines = rooflines.collect();
    Ok(results)
}
