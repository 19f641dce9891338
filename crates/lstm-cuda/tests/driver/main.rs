//! The code that talks to NVIDIA's driver, run on a stand-in for it: `host/driver.cpp`, which runs the kernels on the host
//! and refuses what the driver's documentation does not allow.
//!
//! The dynamic loader reads its path when a process starts, so the test builds the stand-in and starts itself again.

mod configurations;
mod faults;
mod nvrtc;
mod sharing;
mod standin;
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

/// Each is a process of its own; the last has no NVRTC.
const PARTS: [(&str, Part); 10] = [
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
];
const WITHOUT_NVRTC: &str = "without NVRTC";

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
    let built = match build(archive) {
        Ok(dirs) => dirs,
        Err(why) => {
            println!("driver: FAILED: {why}");
            return ExitCode::FAILURE;
        }
    };
    let failed: Vec<_> = PARTS.iter().filter(|(name, _)| !start(name, &built)).map(|(name, _)| *name).collect();
    if failed.is_empty() {
        println!("driver: {} parts passed on the stand-in", PARTS.len());
        return ExitCode::SUCCESS;
    }
    println!("driver: FAILED: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Where the kernels lie, built for the host, if the stand-in can be built for them and run.
fn archive() -> Result<PathBuf> {
    if !cfg!(feature = "host") {
        return Err("built without the feature `host`".into());
    }
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")) {
        return Err("this CPU has no AVX2 and FMA".into());
    }
    let dir = option_env!("LSTM_CUDA_HOST_ARCHIVE").ok_or("the kernels were not built for the host")?;
    Command::new(compiler()).arg("--version").output().map_err(|e| format!("{}: {e}", compiler()))?;
    Ok(Path::new(dir).join("liblstm_cuda_host.a"))
}

/// Builds both libraries, into a directory that has the driver's alone and one that has both.
fn build(archive: PathBuf) -> Result<[PathBuf; 2]> {
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("host");
    let dirs = ["driver", "driver-nvrtc"].map(|name| Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    let io = |e: std::io::Error| e.to_string();
    for dir in &dirs {
        std::fs::create_dir_all(dir).map_err(io)?;
    }
    // The names that are looked for first.
    let [alone, both] = &dirs;
    let sources = ["driver.cpp", "driver_work.cpp", "driver_launch.cpp"].map(|name| host.join(name));
    compile(&[&sources[..], &[archive]].concat(), &alone.join("libcuda.so"))?;
    compile(&[host.join("driver_nvrtc.cpp")], &both.join("libnvrtc.so"))?;
    std::fs::copy(alone.join("libcuda.so"), both.join("libcuda.so")).map_err(io)?;
    Ok(dirs)
}

fn compiler() -> String {
    env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn compile(inputs: &[PathBuf], out: &Path) -> Result<()> {
    let compiler = compiler();
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fno-exceptions"]);
    command.args(["-Wl,-Bsymbolic", "-Wl,-z,defs"]).args(inputs).arg("-o").arg(out);
    let output = command.output().map_err(|e| format!("{compiler}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{compiler}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Runs a part, and says how it went.
fn start(part: &str, [alone, both]: &[PathBuf; 2]) -> bool {
    let clock = Instant::now();
    let [cache, kernels] =
        ["driver-cache", "driver-kernels"].map(|dir| Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir));
    // They may not be there.
    let _ = (std::fs::remove_dir_all(&cache), std::fs::remove_dir_all(&kernels));
    let run = || {
        let mut command = Command::new(env::current_exe()?);
        command.env(PART, part).env("LD_LIBRARY_PATH", if part == WITHOUT_NVRTC { alone } else { both });
        command.env("LSTM_CUDA_CACHE", if part == "cache" { cache.as_os_str() } else { "".as_ref() });
        command.env_remove("LSTM_CUDA_KERNELS");
        if part == "prebuilt" {
            command.env("LSTM_CUDA_KERNELS", &kernels);
        }
        command.output()
    };
    let (passed, said) = match run() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (output.status.success(), text.concat())
        }
        Err(error) => (false, error.to_string()),
    };
    println!("driver: {part}, {:.1} s: {}", clock.elapsed().as_secs_f32(), said.trim());
    passed
}
