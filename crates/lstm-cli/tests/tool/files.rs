//! What is not a regular file: pipes as inputs, devices, full disks.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    process::{Command, Stdio},
};

use hound::{SampleFormat, WavSpec, WavWriter};
use lstm::LstmConfig;

use super::{TempDir, save_npy, sequences, tool};

/// Makes a pipe with a name.
fn named_pipe(path: &str) {
    assert!(Command::new("mknod").args([path, "p"]).status().unwrap().success());
}

/// Runs the tool with this file as stdin, through a pipe. Returns the exit code and what it wrote.
fn run_with_pipe(file: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut cat = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().unwrap();
    let output = tool(args).stdin(cat.stdout.take().unwrap()).output().unwrap();
    cat.wait().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn sequences_may_come_from_pipes() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(1, 5));
    let (npy, csv, wav) = (dir.path("x.npy"), dir.path("x.csv"), dir.path("x.wav"));
    save_npy(&npy, &sequences(3, 700, 1));
    fs::write(&csv, "0.5\n-0.25\n1e-3\n".repeat(1000)).unwrap();
    let spec = WavSpec { channels: 2, sample_rate: 8000, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut writer = WavWriter::create(&wav, spec).unwrap();
    (0..4000).for_each(|k| writer.write_sample((k * 37 % 2000) as i16).unwrap());
    writer.finalize().unwrap();
    let digest = |text: &str| text.lines().find(|line| line.starts_with("digest ")).map(str::to_owned);
    for file in [&npy, &csv, &wav] {
        let (code, from_file) = run_with_pipe("/dev/null", &["run", &model, "-i", file, "--digest"]);
        assert_eq!(code, Some(0), "{from_file}");
        let (code, from_pipe) = run_with_pipe(file, &["run", &model, "-i", "/dev/stdin", "--digest"]);
        assert_eq!(code, Some(0), "{from_pipe}");
        assert!(digest(&from_file).is_some() && digest(&from_file) == digest(&from_pipe), "{from_file}{from_pipe}");
        // A shell's `< file` makes the file itself stdin.
        let args = ["run", &model, "-i", "/dev/stdin", "--digest"];
        let output = tool(&args).stdin(File::open(file).unwrap()).output().unwrap();
        let from_stdin = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(digest(&from_file), digest(&from_stdin), "{from_stdin}");
    }
    // The extension of a named pipe is its format.
    let pipe = dir.path("pipe.npy");
    named_pipe(&pipe);
    let mut cat = Command::new("sh").args(["-c", "cat \"$0\" > \"$1\"", &csv, &pipe]).spawn().unwrap();
    let output = tool(&["run", &model, "-i", &pipe, "--digest"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("pipe.npy: not an .npy file"), "{error}");
    cat.wait().unwrap();
    // An empty one, and devices.
    let (code, error) = run_with_pipe("/dev/null", &["run", &model, "-i", "/dev/stdin", "--digest"]);
    assert!(code == Some(1) && error.contains("expected rows of numbers, found none"), "{error}");
    let (code, error) = run_with_pipe("/dev/null", &["run", &model, "-i", "/dev/zero", "--digest"]);
    assert!(code == Some(1) && error.contains("/dev/zero: expected a regular file or a pipe, got a device"), "{error}");
}

/// Opening a pipe without a writer would wait for ever.
#[test]
fn models_and_outputs_must_be_regular_files() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, pipe, state) = (dir.path("x.npy"), dir.path("pipe.npy"), dir.path("pipe.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    named_pipe(&pipe);
    named_pipe(&state);
    for args in [
        &["inspect", &state][..],
        &["run", &state, "-i", &input, "--digest"],
        &["run", &model, "-i", &input, "--digest", "--state-in", &state],
        &["run", &model, "-i", &input, "-o", &pipe],
        &["run", &model, "-i", &input, "--state-out", &state],
        &["convert", &model, &state],
    ] {
        let output = tool(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let named = error.contains("pipe.npy: ") || error.contains("pipe.safetensors: ");
        assert!(output.status.code() == Some(1) && named && error.contains("regular file"), "{args:?}: {error}");
        assert_eq!(dir.names(), ["model.safetensors", "pipe.npy", "pipe.safetensors", "x.npy"], "{args:?}");
    }
    assert!([&pipe, &state].iter().all(|path| fs::metadata(path).unwrap().file_type().is_fifo()));
}

#[test]
fn outputs_keep_links_and_permissions() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, y, link) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("link.npy"));
    save_npy(&input, &sequences(2, 4, 3));
    fs::write(&y, "old").unwrap();
    fs::set_permissions(&y, PermissionsExt::from_mode(0o600)).unwrap();
    symlink("y.npy", &link).unwrap();
    assert!(tool(&["run", &model, "-i", &input, "-o", &link]).output().unwrap().status.success());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&y).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read(&y).unwrap().starts_with(b"\x93NUMPY"));
    assert_eq!(dir.names().len(), 4);
}

#[test]
fn a_lost_report_does_not_hide_that_the_files_are_in_place() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, y, state, copy) =
        (dir.path("x.npy"), dir.path("y.npy"), dir.path("h.safetensors"), dir.path("copy.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    for (args, files) in [
        (&["run", &model, "-i", &input, "-o", &y, "--state-out", &state][..], format!("{y}, {state}")),
        (&["convert", &model, &copy], copy.clone()),
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = tool(args).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("stdout: No space left on device (os error 28); in place all the same: {files}");
        assert!(output.status.code() == Some(1) && error.contains(&expected), "{error}");
    }
    assert_eq!(dir.names(), ["copy.safetensors", "h.safetensors", "model.safetensors", "x.npy", "y.npy"]);
}
