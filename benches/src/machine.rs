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
    /// Instruction sets that the CPU supports and that the CPU backend can use.
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
    /// Reads the properties of this machine, the compiler and the current commit.
    pub fn current() -> Self {
        Machine {
            cpu: cpu_name().unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
            features: instruction_sets(),
            caches: data_cache_sizes(),
            load: read_text("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            rustc: command_output("rustc", &["--version"]).unwrap_or_else(|| "unknown rustc".to_owned()),
            commit: commit_hash().unwrap_or_else(|| "unknown commit".to_owned()),
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
fn read_text(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Standard output of a program, trimmed; `None` if it fails.
fn command_output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Model name of the CPU.
fn cpu_name() -> Option<String> {
    let value_of_line = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let find_value = |text: &str, key: &str| text.lines().find(|line| line.starts_with(key)).and_then(value_of_line);
    if let Some(text) = read_text("/proc/cpuinfo") {
        let name = find_value(&text, "model name").or_else(|| find_value(&text, "CPU part"))?;
        // Virtual machines often hide the model name, but not the family and model numbers.
        let find_named_number = |key| find_value(&text, key).map(|value| format!("{} {value}", key.trim_end()));
        let model_numbers: Vec<String> = ["cpu family", "model\t"].into_iter().filter_map(find_named_number).collect();
        return Some(if model_numbers.is_empty() { name } else { format!("{name} ({})", model_numbers.join(", ")) });
    }
    command_output("sysctl", &["-n", "machdep.cpu.brand_string"]).or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
}

/// Instruction sets that the CPU supports and that the CPU backend can use.
fn instruction_sets() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let supported_sets = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
    ];
    #[cfg(target_arch = "aarch64")]
    let supported_sets = [("neon", true)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let supported_sets: [(&str, bool); 0] = [];
    supported_sets.into_iter().filter(|(_, is_supported)| *is_supported).map(|(name, _)| name.to_owned()).collect()
}

/// Sizes of the data caches of core 0 in bytes, starting with L1, from Linux's sysfs.
fn data_cache_sizes() -> Vec<u64> {
    let data_cache_level = |index: usize| {
        let read_file = |name: &str| read_text(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
        let (level, cache_kind, size) = (read_file("level")?, read_file("type")?, read_file("size")?);
        let size_in_kib: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
        (cache_kind.trim() != "Instruction").then_some((level.trim().parse::<u8>().ok()?, size_in_kib * 1024))
    };
    let mut sizes_by_level: Vec<(u8, u64)> = (0..8).filter_map(data_cache_level).collect();
    sizes_by_level.sort_unstable();
    sizes_by_level.into_iter().map(|(_, size)| size).collect()
}

/// Hash of the current commit, followed by `+` if the working tree has changes.
fn commit_hash() -> Option<String> {
    let hash = command_output("git", &["rev-parse", "--short=12", "HEAD"])?;
    let is_clean = command_output("git", &["status", "--porcelain"])?.is_empty();
    Some(if is_clean { hash } else { format!("{hash}+") })
}
