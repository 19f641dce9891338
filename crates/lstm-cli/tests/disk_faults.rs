//! A disk that fails or is full: each call that changes a file is made to fail, one after the other. The old or the new
//! file is whole, no temporary file stays, and the error names the file.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "each test uses a part")]
mod common;

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use common::{TempDir, npy_header, tool};
use hound::{SampleFormat, WavSpec, WavWriter};
use lstm::LstmConfig;

/// Compiles `disk_faults.c`. `None` without a C compiler.
fn library(dir: &TempDir) -> Option<String> {
    let (source, library) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk_faults.c"), dir.path("faults.so"));
    let mut cc = Command::new("cc");
    let output =
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", &library]).arg(source).arg("-ldl").output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(library)
        }
        Err(error) => {
            eprintln!("not run: cc: {error}");
            assert!(std::env::var_os("LSTM_REQUIRE").is_none());
            None
        }
    }
}

/// Name and content of all files in a folder.
fn files(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// Runs a command that writes `outputs` with each of its calls failing. Returns the number of calls.
fn check(dir: &TempDir, library: &str, args: &[&str], outputs: &[&str]) -> usize {
    let (folder, log) = (dir.path("out"), dir.path("log"));
    let clear = || {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
    };
    clear();
    let output = tool(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let new = files(&folder);
    assert_eq!(new.keys().collect::<Vec<_>>(), outputs);
    let mut calls = 0;
    for (kind, has_old) in [("EIO", true), ("EIO", false), ("ENOSPC", true), ("short", true)] {
        for number in 1.. {
            clear();
            if has_old {
                outputs.iter().for_each(|name| fs::write(format!("{folder}/{name}"), "old").unwrap());
            }
            let _ = fs::remove_file(&log);
            let faults =
                [("FAULT_FOLDER", &*folder), ("FAULT_KIND", kind), ("FAULT_LOG", &log), ("LD_PRELOAD", library)];
            let mut command = tool(args);
            command.envs(faults).env("FAULT_NUMBER", number.to_string());
            let output = command.output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            let place = format!("{kind} at call {number} of {args:?}: {error}");
            if !Path::new(&log).exists() {
                assert!(output.status.success(), "{place}");
                calls = number - 1;
                break;
            }
            let fails = kind != "short";
            assert_eq!(output.status.code(), Some(if fails { 1 } else { 0 }), "{place}");
            let names_a_file = outputs.iter().any(|name| error.contains(&format!("{folder}/{name}: ")));
            assert!(!fails || names_a_file, "{place}");
            let found = files(&folder);
            assert!(found.keys().all(|name| outputs.contains(&&**name)), "{place}: {:?}", found.keys());
            for &name in outputs {
                let content = found.get(name);
                let is_old = if has_old { content.is_some_and(|bytes| bytes == b"old") } else { content.is_none() };
                let is_new = content == new.get(name);
                assert!(is_new || fails && is_old, "{name}: {place}");
                // What is in place although the command failed is in the error.
                let is_said = error.contains("in place") || error.contains(&format!("{folder}/{name}: "));
                assert!(!fails || is_old || is_said, "{name}: {place}");
            }
        }
    }
    calls
}

#[test]
fn every_failing_call_leaves_whole_files() {
    let dir = TempDir::new();
    let Some(library) = library(&dir) else { return };
    let (_, path) = dir.model(LstmConfig::new(1, 1));
    let audio_model = dir.path("audio.safetensors");
    fs::rename(path, &audio_model).unwrap();
    let (_, model) = dir.model(LstmConfig::new(1, 5));
    let (npy, wav) = (dir.path("x.npy"), dir.path("x.wav"));
    let values: Vec<u8> = (0..1500u32).flat_map(|k| ((k % 17) as f32 * 0.25 - 2.0).to_le_bytes()).collect();
    fs::write(&npy, [npy_header("<f4", &[1500, 1]), values].concat()).unwrap();
    let spec = WavSpec { channels: 1, sample_rate: 8000, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut writer = WavWriter::create(&wav, spec).unwrap();
    (0..6000).for_each(|k| writer.write_sample((k * 37 % 2000) as i16).unwrap());
    writer.finalize().unwrap();
    let out = |name: &str| dir.path(&format!("out/{name}"));
    let run = ["run", &model, "-i", &npy, "-o"];
    let (y, csv, h) = (out("y.npy"), out("y.csv"), out("h.safetensors"));
    for (args, outputs, min_calls) in [
        (&[&run[..], &[&y, "--state-out", &h]].concat()[..], &["h.safetensors", "y.npy"][..], 10),
        (&[&run[..], &[&csv]].concat(), &["y.csv"], 6),
        (&["run", &audio_model, "-i", &wav, "-o", &out("y.wav")], &["y.wav"], 5),
        (&["convert", &model, &out("copy.safetensors")], &["copy.safetensors"], 4),
        (&["convert", &model, &out("copy.onnx")], &["copy.onnx"], 4),
    ] {
        let calls = check(&dir, &library, args, outputs);
        // With fewer, the test would not see the calls.
        assert!(calls >= min_calls, "{calls} calls of {args:?}");
    }
}
