//! Memory stays flat whatever a file's length, and an interrupted run leaves nothing behind.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs::{self, File},
    io::Write,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{Folder, npy_head, tool};
use lstm_cpu::LstmConfig;

const STEPS: usize = 1 << 19;
const FEATURES: usize = 64;

/// The file's size in KiB: 128 MiB.
const FILE: u64 = (STEPS * FEATURES * 4) as u64 / 1024;

/// A file of zeros that takes no room on a disk.
fn large(folder: &Folder) -> String {
    let path = folder.path("x.npy");
    let mut file = File::create(&path).unwrap();
    let head = npy_head("<f4", &[STEPS, FEATURES]);
    file.write_all(&head).unwrap();
    file.set_len((head.len() + STEPS * FEATURES * 4) as u64).unwrap();
    path
}

/// The most memory that a run had, in KiB.
fn peak(args: &[&str]) -> u64 {
    let mut child = tool(args).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let end = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(peak);
        match child.try_wait().unwrap() {
            Some(end) => break end,
            None => sleep(Duration::from_millis(1)),
        }
    };
    assert!(end.success() && peak > 0, "{args:?}: {end}, {peak} KiB");
    peak
}

#[test]
fn a_large_file_takes_little_memory() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(FEATURES, 4));
    let (x, y) = (large(&folder), folder.path("y.npy"));
    let args = ["run", &model, "--input", &x, "--output", &y, "--digest", "--threads", "1"];
    let flat = peak(&args);
    assert!(flat < FILE / 2, "{flat} KiB for a file of {FILE}");
    // What is seen here would be seen above.
    let steps = STEPS.to_string();
    let whole = peak(&[&args[..], &["--chunk", &steps]].concat());
    assert!(whole > FILE, "{whole} KiB for all of a file of {FILE}");
}

/// A run that has begun to write, started by way of `sh` as this says.
fn begun(folder: &Folder, start: &str) -> Child {
    let (_, model) = folder.model(LstmConfig::new(FEATURES, 4));
    let (x, y) = (large(folder), folder.path("y.npy"));
    let run = tool(&["run", &model, "--input", &x, "--output", &y, "--chunk", "1"]);
    let mut sh = Command::new("sh");
    sh.args(["-c", start, "sh"]).arg(run.get_program()).args(run.get_args());
    let mut child = sh.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while folder.names().len() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        sleep(Duration::from_millis(1));
    }
    child
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn an_interrupted_run_leaves_no_file() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let folder = Folder::new();
        let mut child = begun(&folder, "exec \"$@\"");
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_eq!(folder.names(), ["model.safetensors", "x.npy"], "{name}");
    }
}

/// As `nohup` does.
#[test]
fn a_signal_that_is_ignored_stays_so() {
    let folder = Folder::new();
    let mut child = begun(&folder, "trap '' HUP; exec \"$@\"");
    signal(&child, "-HUP");
    sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    signal(&child, "-KILL");
    child.wait().unwrap();
}
