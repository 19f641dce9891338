//! Tests that memory use does not depend on the length of a file or a pipe, and that an interrupted run leaves no files.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs::{self, File},
    io::Write,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{TempDir, npy_header, tool};
use lstm::LstmConfig;

const STEPS: usize = 1 << 19;
const FEATURES: usize = 64;

/// Size of the input file in KiB: 128 MiB.
const FILE_KIB: u64 = (STEPS * FEATURES * 4) as u64 / 1024;

/// Creates a sparse file of zeros.
fn large_input(dir: &TempDir) -> String {
    let path = dir.path("x.npy");
    let mut file = File::create(&path).unwrap();
    let header = npy_header("<f4", &[STEPS, FEATURES]);
    file.write_all(&header).unwrap();
    file.set_len((header.len() + STEPS * FEATURES * 4) as u64).unwrap();
    path
}

/// Runs the tool and returns its peak memory use in KiB.
fn peak_memory(args: &[&str]) -> u64 {
    peak_memory_of(tool(args))
}

/// Runs a command and returns its peak memory use in KiB.
fn peak_memory_of(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let exit = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(peak);
        match child.try_wait().unwrap() {
            Some(exit) => break exit,
            None => sleep(Duration::from_millis(1)),
        }
    };
    assert!(exit.success() && peak > 0, "{command:?}: {exit}, {peak} KiB");
    peak
}

#[test]
fn memory_use_is_independent_of_file_length() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(FEATURES, 4));
    let (x, y) = (large_input(&dir), dir.path("y.npy"));
    let args = ["run", &model, "--input", &x, "--output", &y, "--digest", "--threads", "1"];
    let chunked = peak_memory(&args);
    assert!(chunked < FILE_KIB / 2, "{chunked} KiB for a file of {FILE_KIB}");
    // Check of the measurement itself: one chunk with all steps needs more memory than the file's size.
    let steps = STEPS.to_string();
    let whole = peak_memory(&[&args[..], &["--chunk", &steps]].concat());
    assert!(whole > FILE_KIB, "{whole} KiB for all of a file of {FILE_KIB}");
}

/// What comes from a pipe goes to the disk, not to memory.
#[test]
fn memory_use_is_independent_of_what_comes_from_a_pipe() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(FEATURES, 4));
    let (x, y) = (large_input(&dir), dir.path("y.npy"));
    let mut cat = Command::new("cat").arg(&x).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = tool(&["run", &model, "--input", "/dev/stdin", "--output", &y, "--threads", "1"]);
    command.stdin(cat.stdout.take().unwrap());
    let peak = peak_memory_of(command);
    assert!(cat.wait().unwrap().success());
    assert!(peak < FILE_KIB / 2, "{peak} KiB for {FILE_KIB} from a pipe");
}

/// Starts a run through `sh` with a script that executes `"$@"`, and waits until it has created its output file.
fn start_run(dir: &TempDir, script: &str) -> Child {
    let (_, model) = dir.model(LstmConfig::new(FEATURES, 4));
    let (x, y) = (large_input(dir), dir.path("y.npy"));
    let run = tool(&["run", &model, "--input", &x, "--output", &y, "--chunk", "1"]);
    let mut sh = Command::new("sh");
    sh.args(["-c", script, "sh"]).arg(run.get_program()).args(run.get_args());
    let mut child = sh.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while dir.names().len() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        sleep(Duration::from_millis(1));
    }
    child
}

/// Sends a signal, such as `-INT`.
fn send_signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn interrupted_run_leaves_no_file() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let dir = TempDir::new();
        let mut child = start_run(&dir, "exec \"$@\"");
        send_signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_eq!(dir.names(), ["model.safetensors", "x.npy"], "{name}");
    }
}

/// `nohup` starts programs with an ignored SIGHUP.
#[test]
fn ignored_signal_stays_ignored() {
    let dir = TempDir::new();
    let mut child = start_run(&dir, "trap '' HUP; exec \"$@\"");
    send_signal(&child, "-HUP");
    sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the run ended");
    send_signal(&child, "-KILL");
    child.wait().unwrap();
}
