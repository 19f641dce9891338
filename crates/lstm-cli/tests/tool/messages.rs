//! Messages of the tool, and its exit codes if messages can't be written.

use std::fs;

use lstm::LstmConfig;
use serde_json::Value;

use super::{TempDir, data, onnx_lstm, run, run_json, save_npy, sequences, tool};

#[test]
fn rejects_blank_lines_in_csv() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(1, 4));
    let input = dir.path("x.csv");
    fs::write(&input, "1\n2\n\n4\n").unwrap();
    let (code, report) = run_json(&["run", &model, "-i", &input, "--digest"]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 1 && message.contains("x.csv: line 3: expected a row of numbers, got a blank line"), "{report}");
    fs::write(&input, "1\n2\n4\n\n").unwrap();
    let (code, report) = run_json(&["run", &model, "-i", &input, "--digest"]);
    assert_eq!((code, &report["steps"]), (0, &3.into()), "{report}");
}

#[cfg(unix)]
#[test]
fn accepts_paths_that_are_not_utf8() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 4, 3));
    let non_utf8_path =
        |end: &str| Path::new(&dir.path("")).join(OsStr::from_bytes(&[b"\xff", end.as_bytes()].concat()));
    // Not every file system allows such names.
    if fs::copy(&model, non_utf8_path(".safetensors")).and_then(|_| fs::copy(&input, non_utf8_path(".npy"))).is_err() {
        return;
    }
    let (model, input, output, state) =
        (non_utf8_path(".safetensors"), non_utf8_path(".npy"), non_utf8_path("y.npy"), non_utf8_path("h.safetensors"));
    let [model, input, output, state] = [&model, &input, &output, &state].map(|path| path.as_os_str());
    for args in [
        &[OsStr::new("inspect"), model][..],
        &[
            OsStr::new("run"),
            model,
            OsStr::new("-i"),
            input,
            OsStr::new("-o"),
            output,
            OsStr::new("--state-out"),
            state,
        ],
        &[OsStr::new("compare"), model, OsStr::new("-i"), input],
        &[OsStr::new("convert"), model, non_utf8_path("there.onnx").as_os_str()],
    ] {
        let result = tool(&["--json"]).args(args).output().unwrap();
        let report: Value = serde_json::from_slice(&result.stdout).unwrap();
        assert!(result.status.success(), "{args:?}: {report}");
        assert!(report["model"].as_str().unwrap().ends_with("\u{fffd}.safetensors"), "{report}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn unwritable_notes_and_errors_do_not_change_exit_codes() {
    let dir = TempDir::new();
    let input = dir.path("x.npy");
    let with_states = data("onnx/pytorch-script-static-state-one.onnx");
    let size = onnx_lstm(&with_states).config().input_size;
    save_npy(&input, &sequences(1, 6, size));
    let run_with_states = ["run", &with_states, "-i", &input, "--digest"];
    assert!(String::from_utf8(run(&run_with_states).stderr).unwrap().starts_with("note: "));
    for (args, code) in [(&run_with_states[..], 0), (&["inspect", &dir.path("no.onnx")], 1)] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(tool(args).stderr(full).output().unwrap().status.code(), Some(code), "{args:?}");
        assert_eq!(tool(args).stderr(closed).output().unwrap().status.code(), Some(code), "{args:?}");
    }
}
