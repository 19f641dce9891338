//! Output files: all or none are written, and no input file is overwritten.

use std::fs;

use lstm::{LstmConfig, ndarray::s};

use super::{TempDir, run, run_json, save_npy, sequences, tool};

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

#[test]
fn dash_writes_outputs_to_stdout_in_the_format_of_the_input() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let x = sequences(2, 23, 3);
    let (one, two, by_step, table) = (dir.path("1.npy"), dir.path("2.npy"), dir.path("t.npy"), dir.path("x.csv"));
    save_npy(&one, &x.slice(s![..1, .., ..]).to_owned());
    save_npy(&two, &x);
    save_npy(&by_step, &x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned());
    let rows = x.slice(s![0, .., ..]);
    let rows: Vec<String> = rows.rows().into_iter().map(|v| format!("{},{},{}\n", v[0], v[1], v[2])).collect();
    fs::write(&table, rows.concat()).unwrap();
    for (input, more) in [
        (&one, &["--chunk", "4"][..]),
        (&two, &["--chunk", "23"]),
        (&two, &[]),
        (&by_step, &["--time-major", "--chunk", "4"]),
        (&table, &["--chunk", "4"]),
    ] {
        let file = dir.path(if input == &table { "y.csv" } else { "y.npy" });
        let args = ["run", &model, "-i", input];
        assert_eq!(run_json(&[&args, more, &["-o", &file]].concat()).0, 0);
        let output = run(&[&args, more, &["-o", "-", "--quiet"]].concat());
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout == fs::read(&file).unwrap(), "{input} {more:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("steps of 5 outputs"), "{output:?}");
    }
    // Two sequences in several chunks are not computed in the order of the file. The error's way out is tested above.
    let output = run(&["run", &model, "-i", &two, "-o", "-", "--chunk", "4"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(error.contains("--chunk 23"), "{error}");
}

#[test]
fn audio_is_not_written_to_stdout() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(1, 1));
    let input = dir.path("x.wav");
    let spec =
        hound::WavSpec { channels: 1, sample_rate: 8000, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut writer = hound::WavWriter::create(&input, spec).unwrap();
    (0..9).for_each(|sample| writer.write_sample(sample as i16).unwrap());
    writer.finalize().unwrap();
    let output = run(&["run", &model, "-i", &input, "-o", "-"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("to a file"), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_stdout_cannot_take_is_an_error() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (input, state) = (dir.path("x.npy"), dir.path("s.safetensors"));
    save_npy(&input, &sequences(1, 9, 3));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let args = ["run", &model, "-i", &input, "-o", "-", "--state-out", &state];
    let output = tool(&args).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("stdout: No space left"), "{output:?}");
    assert!(!fs::exists(&state).unwrap(), "the states of outputs that nobody has");
}
