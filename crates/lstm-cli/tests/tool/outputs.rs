//! Output files: all or none are written, and no input file is overwritten.

use std::fs;

use lstm::LstmConfig;

use super::{TempDir, run_json, save_npy, sequences};

#[test]
fn failed_run_writes_no_files() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, good, last) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("h.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    let (y, state) = (dir.path("folder.npy"), dir.path("folder.safetensors"));
    fs::create_dir(&y).unwrap();
    fs::create_dir(&state).unwrap();
    let long = format!("{}.npy", "y".repeat(300));
    let nowhere = dir.path("nowhere/h.safetensors");
    for (output, state, word) in [
        (&good, &nowhere, "nowhere/h.safetensors"),
        (&good, &state, "folder.safetensors: expected the path of a file, got a folder"),
        (&good, &format!("{last}/"), "h.safetensors/: expected the path of a file"),
        (&y, &last, "folder.npy: expected the path of a file, got a folder"),
        (&format!("{good}/"), &last, "y.npy/: expected the path of a file"),
        (&dir.path(&long), &last, "yyy.npy"),
    ] {
        let (code, report) = run_json(&["run", &model, "-i", &input, "-o", output, "--state-out", state]);
        let error = &report["error"];
        assert_eq!((code, error["kind"].as_str()), (1, Some("file")), "{report}");
        assert!(error["message"].as_str().unwrap().contains(word), "{word}: {report}");
        assert_eq!(dir.names(), ["folder.npy", "folder.safetensors", "model.safetensors", "x.npy"], "{word}");
    }
    // An error in the last step, after other steps were written.
    let (table, rows) = (dir.path("x.csv"), "1,2,3\n4,5,6\n7,8,z\n");
    fs::write(&table, rows).unwrap();
    let (code, report) = run_json(&["run", &model, "-i", &table, "-o", &good, "--state-out", &last, "--chunk", "1"]);
    assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains("line 3, column 3"), "{report}");
    assert_eq!(dir.names(), ["folder.npy", "folder.safetensors", "model.safetensors", "x.csv", "x.npy"]);
}

#[test]
fn rejects_outputs_that_overwrite_inputs() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, y, last) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("h.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    fs::create_dir(dir.path("sub")).unwrap();
    let (model_again, input_again) = (dir.path("sub/../model.safetensors"), dir.path("sub/../x.npy"));
    let before = [&model, &input].map(|path| fs::read(path).unwrap());
    let run = ["run", &model, "-i", &input];
    for (start, more, words) in [
        (&run[..], &["-o", &input][..], ["--output: expected another file than --input, ", "x.npy"]),
        (&run, &["-o", &input_again], ["--output: expected another file than --input, ", "x.npy"]),
        (&run, &["--state-out", &model], ["--state-out: expected another file than MODEL, ", "model.safetensors"]),
        (
            &run,
            &["--state-out", &model_again],
            ["--state-out: expected another file than MODEL, ", "model.safetensors"],
        ),
        (&["convert"], &[&model, &model], ["OUT: expected another file than MODEL, ", "model.safetensors"]),
        (&["convert"], &[&model, &model_again], ["OUT: expected another file than MODEL, ", "model.safetensors"]),
    ] {
        let args = [start, more].concat();
        let (code, report) = run_json(&args);
        assert_eq!((code, report["error"]["kind"].as_str()), (2, Some("option")), "{args:?}: {report}");
        let message = report["error"]["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{args:?}: {report}");
        assert!(before == [&model, &input].map(|path| fs::read(path).unwrap()), "{args:?}");
        assert_eq!(dir.names(), ["model.safetensors", "sub", "x.npy"], "{args:?}");
    }
    // The final state may overwrite the initial state.
    for more in [&[][..], &["--state-in", &last]] {
        let (code, report) = run_json(&[&run[..], &["-o", &y, "--state-out", &last], more].concat());
        assert_eq!(code, 0, "{report}");
    }
}

#[cfg(unix)]
#[test]
fn rejects_two_outputs_that_are_the_same_file() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, y, last) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("h.safetensors"));
    save_npy(&input, &sequences(2, 4, 3));
    save_npy(&y, &sequences(1, 1, 1));
    std::os::unix::fs::symlink(&y, &last).unwrap();
    let (code, report) = run_json(&["run", &model, "-i", &input, "-o", &y, "--state-out", &last]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 2 && message.starts_with("--state-out: expected another file than --output, "), "{report}");
}
