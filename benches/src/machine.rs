//! Describes the machine, compiler and commit of a run.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// Machine, compiler and commit of a run.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Machine {
    /// Model name of the CPU.
    pub cpu: String,
    /// Number of cores available to the process.
    pub cores: usize,
    /// Architecture and operating system.
    pub system: String,
    /// Supported instruction sets, of those that the CPU backend can use.
    pub features: Vec<String>,
    /// Sizes of the data caches of one core in bytes, starting with L1; empty if unknown.
    pub caches: Vec<u64>,
    /// Load average of the minute before the run; `None` if unknown.
    pub load: Option<f64>,
    /// Output of `rustc --version`.
    pub rustc: String,
    /// Hash of the commit, followed by `+` if the working tree has changes.
    pub commit: String,
    /// Date and time of the run in UTC, RFC 3339.
    pub date: String,
}

impl Machine {
    /// Describes this machine now.
    pub fn current() -> Self {
        Machine {
            cpu: cpu().unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
            features: features(),
            caches: caches(),
            load: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            rustc: output("rustc", &["--version"]).unwrap_or_else(|| "unknown rustc".to_owned()),
            commit: commit().unwrap_or_else(|| "unknown commit".to_owned()),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        }
    }

    /// Name of the smallest cache level that can hold `bytes / threads` bytes, or `memory` if no cache can.
    pub fn memory_level(&self, bytes: f64, threads: usize) -> String {
        let bytes_per_thread = bytes / threads as f64;
        match self.caches.iter().position(|&size| bytes_per_thread <= size as f64) {
            Some(k) => format!("L{}", k + 1),
            None => "memory".to_owned(),
        }
    }
}

/// Contents of a text file, if it can be read.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Standard output of a program, trimmed; `None` if it fails.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Model name of the CPU.
fn cpu() -> Option<String> {
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let field = |text: &str, key: &str| text.lines().find(|line| line.starts_with(key)).and_then(value);
    if let Some(text) = read("/proc/cpuinfo") {
        let name = field(&text, "model name").or_else(|| field(&text, "CPU part"))?;
        // Virtual machines often hide the model name, but not the family and model numbers.
        let number = |key| field(&text, key).map(|value| format!("{} {value}", key.trim_end()));
        let numbers: Vec<String> = ["cpu family", "model\t"].into_iter().filter_map(number).collect();
        return Some(if numbers.is_empty() { name } else { format!("{name} ({})", numbers.join(", ")) });
    }
    output("sysctl", &["-n", "machdep.cpu.brand_string"]).or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
}

/// Supported instruction sets, of those that the CPU backend can use.
fn features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [("neon", true)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
}

/// Sizes of the data caches of core 0 in bytes, starting with L1, from Linux's sysfs.
fn caches() -> Vec<u64> {
    let of = |index: usize| {
        let file = |name: &str| read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
        let (level, kind, size) = (file("level")?, file("type")?, file("size")?);
        let kib: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
        (kind.trim() != "Instruction").then_some((level.trim().parse::<u8>().ok()?, kib * 1024))
    };
    let mut levels: Vec<(u8, u64)> = (0..8).filter_map(of).collect();
    levels.sort_unstable();
    levels.into_iter().map(|(_, size)| size).collect()
}

/// Hash of the current commit, followed by `+` if the working tree has changes.
fn commit() -> Option<String> {
    let hash = output("git", &["rev-parse", "--short=12", "HEAD"])?;
    let clean = output("git", &["status", "--porcelain"])?.is_empty();
    Some(if clean { hash } else { format!("{hash}+") })
}
