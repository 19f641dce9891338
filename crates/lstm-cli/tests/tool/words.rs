//! What the tool says, and that it ends as it should where it can't be said.

use std::fs;

use lstm_cpu::LstmConfig;
use serde_json::Value;

use super::{Folder, data, json, run, save, tool, x};

#[test]
fn a_blank_line_is_no_step_that_may_be_left_out() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(1, 4));
    let input = folder.path("x.csv");
    fs::write(&input, "1\n2\n\n4\n").unwrap();
    let (code, report) = json(&["run", &model, "-i", &input, "--digest"]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 1 && message.contains("x.csv: line 3: expected a row of numbers, got a blank line"), "{report}");
    fs::write(&input, "1\n2\n4\n\n").unwrap();
    let (code, report) = json(&["run", &model, "-i", &input, "--digest"]);
    assert_eq!((code, &report["steps"]), (0, &3.into()), "{report}");
}

#[cfg(unix)]
#[test]
fn a_path_need_not_be_text() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let input = folder.path("x.npy");
    save(&input, &x(2, 4, 3));
    let odd = |end: &str| Path::new(&folder.path("")).join(OsStr::from_bytes(&[b"\xff", end.as_bytes()].concat()));
    // Not every file system has such names.
    if fs::copy(&model, odd(".safetensors")).and_then(|_| fs::copy(&input, odd(".npy"))).is_err() {
        return;
    }
    let (model, input, output, state) = (odd(".safetensors"), odd(".npy"), odd("y.npy"), odd("h.safetensors"));
    let [model, input, output, state] = [&model, &input, &output, &state].map(|path| path.as_os_str());
    let word = OsStr::new;
    for args in [
        &[word("inspect"), model][..],
        &[word("run"), model, word("-i"), input, word("-o"), output, word("--state-out"), state],
        &[word("compare"), model, word("-i"), input],
        &[word("convert"), model, odd("there.onnx").as_os_str()],
    ] {
        let ended = tool(&["--json"]).args(args).output().unwrap();
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert!(ended.status.success(), "{args:?}: {report}");
        assert!(report["model"].as_str().unwrap().ends_with("\u{fffd}.safetensors"), "{report}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn remarks_and_errors_that_can_t_be_written_change_nothing() {
    let folder = Folder::new();
    let input = folder.path("x.npy");
    save(&input, &x(2, 6, 1));
    let headed = data("rtneural/one.json");
    let run_headed = ["run", &headed, "-i", &input, "--digest"];
    assert!(String::from_utf8(run(&run_headed).stderr).unwrap().starts_with("note: "));
    for (args, code) in [(&run_headed[..], 0), (&["inspect", &folder.path("no.onnx")], 1)] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(tool(args).stderr(full).output().unwrap().status.code(), Some(code), "{args:?}");
        assert_eq!(tool(args).stderr(closed).output().unwrap().status.code(), Some(code), "{args:?}");
    }
}
