//! Files that are written: all or none of them, and none in the place of one that is read.

use std::fs;

use lstm_cpu::LstmConfig;

use super::{Folder, json, save, x};

#[test]
fn a_run_that_fails_leaves_neither_file() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let (input, good, last) = (folder.path("x.npy"), folder.path("y.npy"), folder.path("h.safetensors"));
    save(&input, &x(2, 4, 3));
    let (y, state) = (folder.path("folder.npy"), folder.path("folder.safetensors"));
    fs::create_dir(&y).unwrap();
    fs::create_dir(&state).unwrap();
    let long = format!("{}.npy", "y".repeat(300));
    let nowhere = folder.path("nowhere/h.safetensors");
    for (output, state, word) in [
        (&good, &nowhere, "nowhere/h.safetensors"),
        (&good, &state, "folder.safetensors: expected a file's name, got a directory's"),
        (&good, &format!("{last}/"), "h.safetensors/: expected a file's name"),
        (&y, &last, "folder.npy: expected a file's name, got a directory's"),
        (&format!("{good}/"), &last, "y.npy/: expected a file's name"),
        (&folder.path(&long), &last, "yyy.npy"),
    ] {
        let (code, report) = json(&["run", &model, "-i", &input, "-o", output, "--state-out", state]);
        let error = &report["error"];
        assert_eq!((code, error["kind"].as_str()), (1, Some("file")), "{report}");
        assert!(error["message"].as_str().unwrap().contains(word), "{word}: {report}");
        assert_eq!(folder.names(), ["folder.npy", "folder.safetensors", "model.safetensors", "x.npy"], "{word}");
    }
    // Known only when the last step is read.
    let (table, rows) = (folder.path("x.csv"), "1,2,3\n4,5,6\n7,8,z\n");
    fs::write(&table, rows).unwrap();
    let (code, report) = json(&["run", &model, "-i", &table, "-o", &good, "--state-out", &last, "--chunk", "1"]);
    assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains("line 3, column 3"), "{report}");
    assert_eq!(folder.names(), ["folder.npy", "folder.safetensors", "model.safetensors", "x.csv", "x.npy"]);
}

#[test]
fn no_file_that_is_read_is_written() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let (input, y, last) = (folder.path("x.npy"), folder.path("y.npy"), folder.path("h.safetensors"));
    save(&input, &x(2, 4, 3));
    fs::create_dir(folder.path("sub")).unwrap();
    let (model_again, input_again) = (folder.path("sub/../model.safetensors"), folder.path("sub/../x.npy"));
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
        let (code, report) = json(&args);
        assert_eq!((code, report["error"]["kind"].as_str()), (2, Some("option")), "{args:?}: {report}");
        let message = report["error"]["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{args:?}: {report}");
        assert!(before == [&model, &input].map(|path| fs::read(path).unwrap()), "{args:?}");
        assert_eq!(folder.names(), ["model.safetensors", "sub", "x.npy"], "{args:?}");
    }
    // A state may be taken further in its place.
    for more in [&[][..], &["--state-in", &last]] {
        let (code, report) = json(&[&run[..], &["-o", &y, "--state-out", &last], more].concat());
        assert_eq!(code, 0, "{report}");
    }
}

#[cfg(unix)]
#[test]
fn two_names_of_a_file_are_one() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let (input, y, last) = (folder.path("x.npy"), folder.path("y.npy"), folder.path("h.safetensors"));
    save(&input, &x(2, 4, 3));
    save(&y, &x(1, 1, 1));
    std::os::unix::fs::symlink(&y, &last).unwrap();
    let (code, report) = json(&["run", &model, "-i", &input, "-o", &y, "--state-out", &last]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 2 && message.starts_with("--state-out: expected another file than --output, "), "{report}");
}
