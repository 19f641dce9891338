//! The code that talks to NVIDIA's driver, run on a stand-in for it: `host/driver.cpp`, which runs the kernels on the host
//! and refuses what the driver's documentation does not allow.
//! The last parts have the kernels as NVIDIA's compiler made them, where there is one.
//!
//! The test builds the stand-in and starts itself again for each part.

mod configurations;
mod faults;
mod nvrtc;
mod ptx;
mod sharing;
mod simulated_driver;
mod strict;
mod work;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

type Result<T, E = String> = std::result::Result<T, E>;

/// Names the part to run, in a process that has the stand-in.
const PART: &str = "LSTM_DRIVER_TEST";
/// The dynamic loader reads this when a process starts.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// `Err` with the words, unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}
pub(crate) use ensure;

type Part = fn() -> Result<String>;

/// Each is a process of its own.
const PARTS: [(&str, Part); 12] = [
    ("strictness", strict::run),
    ("configurations", configurations::run),
    ("faults", faults::run),
    ("opening", faults::opening),
    ("lost", faults::lost),
    ("sharing", sharing::run),
    ("compiling", nvrtc::run),
    ("cache", nvrtc::cache),
    ("prebuilt", nvrtc::prebuilt),
    (WITHOUT_NVRTC, nvrtc::absent),
    (TO_PTX, ptx::write),
    (PTX, ptx::run),
];
const WITHOUT_NVRTC: &str = "without NVRTC";
/// Has NVIDIA's NVRTC, and writes what the last part is built of.
const TO_PTX: &str = "to PTX";
const PTX: &str = "kernels from PTX";

fn main() -> ExitCode {
    if let Some(part) = env::var_os(PART) {
        let part = PARTS.iter().find(|(name, _)| part == *name).expect("a part that there is");
        return match part.1() {
            Ok(done) => {
                println!("{done}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                println!("FAILED: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let archive = match archive() {
        Ok(archive) => archive,
        Err(why) => {
            println!("driver: not run: {why}");
            return if env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if let Err(why) = build(archive) {
        println!("driver: FAILED: {why}");
        return ExitCode::FAILURE;
    }
    let outcomes = PARTS.map(|(name, _)| (name, start(name)));
    let all =
        |outcome| outcomes.iter().filter(|(_, there)| *there == outcome).map(|(name, _)| *name).collect::<Vec<_>>();
    let [passed, failed, not_run] = [Outcome::Passed, Outcome::Failed, Outcome::NotRun].map(all);
    println!("driver: {} parts passed on the stand-in", passed.len());
    for (what, parts) in [("not run", &not_run), ("FAILED", &failed)] {
        if !parts.is_empty() {
            println!("driver: {what}: {}", parts.join(", "));
        }
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Passed,
    Failed,
    NotRun,
}

/// Directories with the driver's stand-in alone, with NVRTC's as well, and with both where kernels are from PTX. Whoever
/// runs programs on a stand-in finds it there.
const ALONE: &str = "driver";
const BOTH: &str = "driver-nvrtc";
const FROM_PTX: &str = "driver-ptx";

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Where the kernels lie, built for the host, if the stand-in can be built for them and run.
fn archive() -> Result<PathBuf> {
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")) {
        return Err("this CPU has no AVX2 and FMA".into());
    }
    let dir = option_env!("LSTM_CUDA_SIM_LIBRARY_DIR").ok_or("the kernels were not built for the host")?;
    Command::new(compiler()).arg("--version").output().map_err(|e| format!("{}: {e}", compiler()))?;
    Ok(Path::new(dir).join("liblstm_cuda_sim.a"))
}

const CPP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cpp");

/// Builds both libraries.
fn build(archive: PathBuf) -> Result<()> {
    for name in [ALONE, BOTH, FROM_PTX] {
        std::fs::create_dir_all(dir(name)).map_err(|e| e.to_string())?;
    }
    // The names that are looked for first.
    let nvrtc = dir(BOTH).join("libnvrtc.so");
    compile(&SHARED, &[Path::new(CPP).join("nvrtc.cpp")], &nvrtc)?;
    driver(ALONE, archive)?;
    for (from, to) in [(dir(ALONE).join("libcuda.so"), BOTH), (nvrtc, FROM_PTX)] {
        std::fs::copy(&from, dir(to).join(from.file_name().expect("a library"))).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Builds the driver's stand-in, of its sources and the kernels.
fn driver(name: &str, kernels: PathBuf) -> Result<()> {
    let sources = ["driver/driver.cpp", "driver/memory.cpp", "driver/launch.cpp"].map(|name| Path::new(CPP).join(name));
    compile(&SHARED, &[&sources[..], &[kernels]].concat(), &dir(name).join("libcuda.so"))
}

/// The same with the kernels that `ptx::write` wrote.
fn driver_from_ptx() -> Result<()> {
    let kernels = dir(FROM_PTX).join("executor.o");
    // As the kernels are built for the host, though less optimised; a variable for each register makes many warnings.
    let flags = ["-c", "-O1", "-mavx2", "-mfma", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-w"];
    let include = format!("-I{}", dir(FROM_PTX).display());
    compile(
        &[&flags[..], &["-DLSTM_PTX", &include]].concat(),
        &[Path::new(CPP).join("executor/executor.cpp")],
        &kernels,
    )?;
    driver(FROM_PTX, kernels)
}

fn compiler() -> String {
    env::var("CXX").unwrap_or_else(|_| "c++".into())
}

const SHARED: [&str; 7] = ["-O2", "-shared", "-Wall", "-Wextra", "-Werror", "-Wl,-Bsymbolic", "-Wl,-z,defs"];

fn compile(flags: &[&str], inputs: &[PathBuf], out: &Path) -> Result<()> {
    let compiler = compiler();
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-fPIC", "-fno-exceptions"]).args(flags).args(inputs).arg("-o").arg(out);
    let output = command.output().map_err(|e| format!("{compiler}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    // An instruction that is not known gives many lines.
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{compiler}: {}", said.lines().take(20).collect::<Vec<_>>().join("\n")))
}

/// Runs a part, and says how it went.
fn start(part: &str) -> Outcome {
    let clock = Instant::now();
    let [cache, kernels] = ["driver-cache", "driver-kernels"].map(dir);
    let written = dir(FROM_PTX).join(ptx::SOURCE);
    // They may not be there.
    let _ = (std::fs::remove_dir_all(&cache), std::fs::remove_dir_all(&kernels));
    if part == TO_PTX {
        let library = dir(FROM_PTX).join("libcuda.so");
        let _ = (std::fs::remove_file(&written), std::fs::remove_file(library));
    }
    let run = || {
        let mut command = Command::new(env::current_exe().map_err(|e| e.to_string())?);
        command.env(PART, part).env("LSTM_CUDA_CACHE", if part == "cache" { cache.as_os_str() } else { "".as_ref() });
        command.env_remove("LSTM_CUDA_KERNELS");
        match part {
            TO_PTX => drop(env::var_os("LSTM_NVRTC").map(|nvrtc| command.env(LIBRARIES, nvrtc))),
            PTX => {
                driver_from_ptx()?;
                command.env(LIBRARIES, dir(FROM_PTX));
            }
            "prebuilt" => drop(command.env(LIBRARIES, dir(BOTH)).env("LSTM_CUDA_KERNELS", &kernels)),
            _ => drop(command.env(LIBRARIES, dir(if part == WITHOUT_NVRTC { ALONE } else { BOTH }))),
        }
        command.output().map_err(|e| e.to_string())
    };
    if part == PTX && !written.exists() {
        return Outcome::NotRun;
    }
    let (passed, said) = match run() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (output.status.success(), text.concat())
        }
        Err(error) => (false, error),
    };
    println!("driver: {part}, {:.1} s: {}", clock.elapsed().as_secs_f32(), said.trim());
    match passed {
        false => Outcome::Failed,
        true if part == TO_PTX && !written.exists() => Outcome::NotRun,
        true => Outcome::Passed,
    }
}
