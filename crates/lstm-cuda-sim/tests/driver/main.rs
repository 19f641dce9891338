//! Tests of the code that calls NVIDIA's driver. They run on the simulated driver in `cpp/driver`, which runs the
//! kernels on the CPU and rejects calls that the driver's documentation does not allow. The last parts run the kernels
//! as NVRTC compiled them.
//!
//! This program builds the simulated driver as `libcuda.so`. Then it starts itself once for each part of the test, with
//! an environment in which the dynamic loader finds this library.

mod compilation;
mod concurrency;
mod configurations;
mod failing_calls;
mod misuse;
mod ptx;
mod simulated_driver;
mod tool;
mod workload;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

/// The result of a check; the error is a message.
type Result<T, E = String> = std::result::Result<T, E>;

/// The environment variable that names the part to run. Without it, all parts are started.
const PART: &str = "LSTM_DRIVER_TEST";
/// The environment variable with the directories in which the dynamic loader looks first.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Returns a formatted error unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
pub(crate) use ensure;

/// A part of the test. It returns a summary, or what failed.
type Part = fn() -> Result<String>;

/// The parts by name. Each runs in a process of its own.
const PARTS: [(&str, Part); 13] = [
    ("misuse", misuse::run),
    ("configurations", configurations::run),
    ("failing calls", failing_calls::run),
    ("failing calls while opening", failing_calls::while_opening),
    ("sticky errors", failing_calls::sticky_errors),
    ("concurrency", concurrency::run),
    ("tool", tool::tf32),
    ("compilation", compilation::run),
    (CACHE, compilation::cache),
    (PREBUILT, compilation::prebuilt),
    (WITHOUT_NVRTC, compilation::without_nvrtc),
    (TO_PTX, ptx::compile),
    (FROM_PTX, ptx::run),
];
const CACHE: &str = "cache";
const PREBUILT: &str = "prebuilt kernels";
const WITHOUT_NVRTC: &str = "without NVRTC";
/// This part uses NVIDIA's NVRTC, and writes the kernels for the next part.
const TO_PTX: &str = "compilation to PTX";
const FROM_PTX: &str = "kernels from PTX";

fn main() -> ExitCode {
    if env::var_os(tool::AS_TOOL).is_some() {
        return lstm_cli::main();
    }
    if let Some(part) = env::var_os(PART) {
        let part = PARTS.iter().find(|(name, _)| part == *name).expect("a name in `PARTS`");
        return match part.1() {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("FAILED: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let kernels = match kernel_library() {
        Ok(path) => path,
        Err(reason) => {
            println!("driver: not run: {reason}");
            return if env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = build(kernels) {
        println!("driver: FAILED: {error}");
        return ExitCode::FAILURE;
    }
    let outcomes = PARTS.map(|(name, _)| (name, start(name)));
    let with_outcome =
        |wanted| outcomes.iter().filter(|(_, outcome)| *outcome == wanted).map(|(name, _)| *name).collect::<Vec<_>>();
    let [passed, failed, not_run] = [Outcome::Passed, Outcome::Failed, Outcome::NotRun].map(with_outcome);
    println!("driver: {} parts passed on the simulated driver", passed.len());
    for (what, parts) in [("not run", &not_run), ("FAILED", &failed)] {
        if !parts.is_empty() {
            println!("driver: {what}: {}", parts.join(", "));
        }
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a part of the test ended.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Passed,
    Failed,
    NotRun,
}

// Directories in the target directory, whose libraries stay there for other programs: the simulated driver; the same
// with the fake NVRTC; both, with kernels from PTX.
const DRIVER_DIR: &str = "driver";
const NVRTC_DIR: &str = "driver-nvrtc";
const PTX_DIR: &str = "driver-ptx";

/// A directory for the files of this test.
fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The static library with the kernels for the CPU.
///
/// # Errors
/// The reason why the simulated driver can't be built or can't run.
fn kernel_library() -> Result<PathBuf> {
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")) {
        return Err("this CPU has no AVX2 and FMA".into());
    }
    let dir = option_env!("LSTM_CUDA_SIM_LIBRARY_DIR").ok_or("the kernels were not compiled for the CPU")?;
    Command::new(compiler()).arg("--version").output().map_err(|e| format!("{}: {e}", compiler()))?;
    Ok(Path::new(dir).join("liblstm_cuda_sim.a"))
}

/// A file in the folder of C++ sources.
fn cpp(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cpp")).join(name)
}

/// Builds the simulated driver and the fake NVRTC.
fn build(kernels: PathBuf) -> Result<()> {
    for name in [DRIVER_DIR, NVRTC_DIR, PTX_DIR] {
        std::fs::create_dir_all(dir(name)).map_err(|e| e.to_string())?;
    }
    // cudarc looks for these file names first.
    let nvrtc = dir(NVRTC_DIR).join("libnvrtc.so");
    compile(&SHARED_LIBRARY, &[cpp("nvrtc.cpp")], &nvrtc)?;
    build_driver(DRIVER_DIR, kernels)?;
    for (from, to) in [(dir(DRIVER_DIR).join("libcuda.so"), NVRTC_DIR), (nvrtc, PTX_DIR)] {
        std::fs::copy(&from, dir(to).join(from.file_name().expect("a library"))).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Builds the simulated driver in a directory, with compiled kernels.
fn build_driver(directory: &str, kernels: PathBuf) -> Result<()> {
    let sources = ["device.cpp", "memory.cpp", "kernel.cpp", "stream.cpp", "control.cpp"];
    let sources = sources.map(|name| cpp("driver").join(name));
    compile(&SHARED_LIBRARY, &[&sources[..], &[kernels]].concat(), &dir(directory).join("libcuda.so"))
}

/// Builds the simulated driver with the kernels that `ptx::compile` wrote.
fn build_driver_from_ptx() -> Result<()> {
    let kernels = dir(PTX_DIR).join("executor.o");
    // The options of build.rs, with less optimization, since the translated kernels are large. `-w`: each register is a
    // variable, of which many are unused.
    let flags = ["-c", "-O1", "-mavx2", "-mfma", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-w"];
    let include = format!("-I{}", dir(PTX_DIR).display());
    compile(&[&flags[..], &["-DLSTM_PTX", &include]].concat(), &[cpp("executor/executor.cpp")], &kernels)?;
    build_driver(PTX_DIR, kernels)
}

/// The C++ compiler's command.
fn compiler() -> String {
    env::var("CXX").unwrap_or_else(|_| "c++".into())
}

const SHARED_LIBRARY: [&str; 7] = ["-O2", "-shared", "-Wall", "-Wextra", "-Werror", "-Wl,-Bsymbolic", "-Wl,-z,defs"];

fn compile(flags: &[&str], inputs: &[PathBuf], out: &Path) -> Result<()> {
    let compiler = compiler();
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-fPIC", "-fno-exceptions"]).args(flags).args(inputs).arg("-o").arg(out);
    let output = command.output().map_err(|e| format!("{compiler}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    // A PTX instruction without a definition causes many lines of errors.
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{compiler}: {}", errors.lines().take(20).collect::<Vec<_>>().join("\n")))
}

/// Runs a part in a process of its own, and prints its summary.
fn start(part: &str) -> Outcome {
    let clock = Instant::now();
    let [cache, prebuilt] = ["driver-cache", "driver-kernels"].map(dir);
    let translated = dir(PTX_DIR).join(ptx::TRANSLATED_KERNELS);
    // Removes files of earlier runs, if there are any.
    let _ = (std::fs::remove_dir_all(&cache), std::fs::remove_dir_all(&prebuilt));
    if part == TO_PTX {
        let library = dir(PTX_DIR).join("libcuda.so");
        let _ = (std::fs::remove_file(&translated), std::fs::remove_file(library));
    }
    let run = || {
        let mut command = Command::new(env::current_exe().map_err(|e| e.to_string())?);
        command.env(PART, part).env("LSTM_CUDA_CACHE", if part == CACHE { cache.as_os_str() } else { "".as_ref() });
        command.env_remove("LSTM_CUDA_KERNELS");
        match part {
            TO_PTX => {
                if let Some(nvrtc) = env::var_os("LSTM_NVRTC") {
                    command.env(LIBRARY_PATH, nvrtc);
                }
            }
            FROM_PTX => {
                build_driver_from_ptx()?;
                command.env(LIBRARY_PATH, dir(PTX_DIR));
            }
            PREBUILT => {
                command.env(LIBRARY_PATH, dir(NVRTC_DIR)).env("LSTM_CUDA_KERNELS", &prebuilt);
            }
            WITHOUT_NVRTC => {
                command.env(LIBRARY_PATH, dir(DRIVER_DIR));
            }
            _ => {
                command.env(LIBRARY_PATH, dir(NVRTC_DIR));
            }
        }
        command.output().map_err(|e| e.to_string())
    };
    if part == FROM_PTX && !translated.exists() {
        return Outcome::NotRun;
    }
    let (passed, text) = match run() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (output.status.success(), text.concat())
        }
        Err(error) => (false, error),
    };
    println!("driver: {part}, {:.1} s: {}", clock.elapsed().as_secs_f32(), text.trim());
    match passed {
        false => Outcome::Failed,
        true if part == TO_PTX && !translated.exists() => Outcome::NotRun,
        true => Outcome::Passed,
    }
}
