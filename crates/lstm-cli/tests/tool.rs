//! Runs the tool as a process: compares its outputs with the library, and checks exit codes, JSON and error messages.

mod common;
// In a subdirectory, because Cargo builds every file in `tests/` as a separate test.
#[path = "tool/audio.rs"]
mod audio;
#[path = "tool/command_line.rs"]
mod command_line;
#[path = "tool/files.rs"]
mod files;
#[path = "tool/messages.rs"]
mod messages;
#[path = "tool/models.rs"]
mod models;
#[path = "tool/outputs.rs"]
mod outputs;
#[path = "tool/precision.rs"]
mod precision;
#[path = "tool/tf32.rs"]
mod tf32;
#[path = "tool/whole_models.rs"]
mod whole_models;

use std::{fs, path::Path, process::Output};

use common::{TempDir, npy_header, tool};
use lstm::{
    BackendInfo, Cpu, Direction, Input, Lstm, LstmConfig, Model, OnnxModel, StateDict, Weights,
    arithmetic::Digest,
    formats::OpenOptions,
    ndarray::{Array3, Axis},
};
use serde_json::Value;

/// Path of a file in `tests/data` of the repository.
fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name).display().to_string()
}

/// Runs the tool and returns its output.
fn run(args: &[&str]) -> Output {
    tool(args).output().unwrap()
}

/// Runs the tool with `--json` and returns the exit code and the report.
fn run_json(args: &[&str]) -> (i32, Value) {
    let output = run(&[args, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text:?}"));
    (output.status.code().unwrap(), value)
}

/// Little-endian bytes of f32 values.
fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Input sequences, shape `(batch, steps, features)`, of multiples of 1/4, which are exact in f16.
fn sequences(batch: usize, steps: usize, features: usize) -> Array3<f32> {
    Array3::from_shape_fn((batch, steps, features), |(b, t, f)| ((b * 31 + t * 7 + f * 3) % 17) as f32 * 0.25 - 2.0)
}

/// Writes sequences, shape `(batch, steps, features)`, to an .npy file.
fn save_npy(path: &str, x: &Array3<f32>) {
    fs::write(path, [npy_header("<f4", x.shape()), f32_bytes(x.iter().copied())].concat()).unwrap();
}

/// Reads the elements of an .npy file and checks its shape.
fn read_npy(path: &str, shape: &[usize]) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes[..128]), String::from_utf8_lossy(&npy_header("<f4", shape)));
    bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Bit patterns of f32 values, which compare NaNs and signed zeros exactly.
fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

#[test]
fn outputs_match_the_library_for_all_chunks_and_layouts() {
    let dir = TempDir::new();
    for direction in [Direction::Forward, Direction::Bidirectional] {
        let config = LstmConfig::new(3, 5).layers(2).direction(direction);
        let (weights, model) = dir.model(config.clone());
        let (x, outputs) = (sequences(2, 23, 3), config.output_size());
        let (y, state) = Lstm::new(&Cpu::new(), weights).unwrap().forward(&x).unwrap();
        let by_step = y.view().permuted_axes([1, 0, 2]);
        let digest = Digest::of(by_step.iter()).to_string();
        let (input, output, state_path) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("last.safetensors"));
        save_npy(&input, &x);
        for more in [&[][..], &["--chunk", "1"], &["--chunk", "7", "--threads", "2"], &["--chunk", "23"]] {
            let args = ["run", &model, "-i", &input, "-o", &output, "--digest", "--state-out", &state_path];
            let (code, report) = run_json(&[&args, more].concat());
            assert_eq!((code, report["digest"].as_str()), (0, Some(&*digest)), "{more:?}: {report}");
            assert_eq!(bits(&read_npy(&output, &[2, 23, outputs])), bits(&y), "{more:?}");
            let mut file = StateDict::open(&state_path).unwrap();
            assert_eq!(
                (file.take_any("h").unwrap(), file.take_any("c").unwrap()),
                (state.h.clone().into_dyn(), state.c.clone().into_dyn())
            );
        }
        // Time-major files.
        save_npy(&input, &x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned());
        let (code, report) =
            run_json(&["run", &model, "-i", &input, "-o", &output, "--digest", "--time-major", "--chunk", "5"]);
        assert_eq!((code, report["digest"].as_str()), (0, Some(&*digest)), "{report}");
        assert_eq!(bits(&read_npy(&output, &[23, 2, outputs])), bits(by_step.iter()));
    }
}

#[test]
fn reads_all_element_types_and_csv() {
    let dir = TempDir::new();
    let (weights, model) = dir.model(LstmConfig::new(2, 4));
    let x = sequences(1, 9, 2);
    let y = Lstm::new(&Cpu::new(), weights).unwrap().forward(&x).unwrap().0;
    let (input, output) = (dir.path("x.npy"), dir.path("y.npy"));
    // The inputs are exact in all element types.
    let half = |v: &f32| half::f16::from_f32(*v);
    let files: [(&str, Vec<u8>); 5] = [
        ("<f4", x.iter().flat_map(|v| v.to_le_bytes()).collect()),
        (">f4", x.iter().flat_map(|v| v.to_be_bytes()).collect()),
        ("<f8", x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        ("<f2", x.iter().flat_map(|v| half(v).to_le_bytes()).collect()),
        (">f2", x.iter().flat_map(|v| half(v).to_be_bytes()).collect()),
    ];
    for (descr, values) in files {
        fs::write(&input, [npy_header(descr, &[9, 2]), values].concat()).unwrap();
        assert_eq!(run_json(&["run", &model, "-i", &input, "-o", &output]).0, 0);
        assert_eq!(bits(&read_npy(&output, &[9, 4])), bits(&y), "{descr}");
    }
    let (text, table) = (dir.path("x.csv"), dir.path("y.csv"));
    let rows: Vec<String> = x.rows().into_iter().map(|row| format!("{}, {}\n", row[0], row[1])).collect();
    fs::write(&text, format!("first,second\n{}", rows.concat())).unwrap();
    assert_eq!(run_json(&["run", &model, "-i", &text, "-o", &table, "--header", "--chunk", "2"]).0, 0);
    let got: Vec<f32> = fs::read_to_string(&table).unwrap().split([',', '\n']).filter_map(|v| v.parse().ok()).collect();
    assert_eq!(bits(&got), bits(&y));
    // Without --header, the header is an error.
    let (code, report) = run_json(&["run", &model, "-i", &text, "-o", &table]);
    assert_eq!((code, report["error"]["kind"].as_str()), (1, Some("file")));
    assert!(report["error"]["message"].as_str().unwrap().contains("--header"), "{report}");
}

#[test]
fn states_continue_a_run_and_lengths_end_sequences() {
    let dir = TempDir::new();
    let (weights, model) = dir.model(LstmConfig::new(3, 5).layers(2));
    let lstm = Lstm::new(&Cpu::new(), weights).unwrap();
    let x = sequences(2, 12, 3);
    let y = lstm.forward(&x).unwrap().0;
    let (first, second) = x.view().split_at(Axis(1), 5);
    let (a, b, state) = (dir.path("a.npy"), dir.path("b.npy"), dir.path("state.safetensors"));
    save_npy(&a, &first.to_owned());
    save_npy(&b, &second.to_owned());
    let output = dir.path("y.npy");
    assert_eq!(run_json(&["run", &model, "-i", &a, "--state-out", &state]).0, 0);
    assert_eq!(run_json(&["run", &model, "-i", &b, "-o", &output, "--state-in", &state]).0, 0);
    let want = y.view().split_at(Axis(1), 5).1;
    assert_eq!(bits(&read_npy(&output, &[2, 7, 5])), bits(want.iter()));

    let want = lstm.forward(Input::from(first).lengths(&[5, 2])).unwrap().0;
    assert_eq!(run_json(&["run", &model, "-i", &a, "-o", &output, "--lengths", "5,2"]).0, 0);
    assert_eq!(bits(&read_npy(&output, &[2, 5, 5])), bits(want.iter()));
    for lengths in ["5", "5,6"] {
        let (code, report) = run_json(&["run", &model, "-i", &a, "-o", &output, "--lengths", lengths]);
        assert_eq!(code, 1, "{report}");
    }
    // A state with another batch size.
    save_npy(&b, &x.slice(lstm::ndarray::s![..1, .., ..]).to_owned());
    let (code, report) = run_json(&["run", &model, "-i", &b, "-o", &output, "--state-in", &state]);
    assert_eq!((code, report["error"]["kind"].as_str()), (1, Some("model")), "{report}");
}

/// The one LSTM of an ONNX file.
fn onnx_lstm(path: &str) -> Weights {
    let graph = OnnxModel::open(path).unwrap().graph(&OpenOptions::default()).unwrap();
    let lstms: Vec<_> = graph.weights().lstms().collect();
    assert_eq!(lstms.len(), 1, "{path}");
    Weights::clone(lstms[0])
}

#[test]
fn onnx_models_run_and_convert() {
    let dir = TempDir::new();
    let model = data("onnx/input-forget-peephole-reverse-clip.onnx");
    let want = onnx_lstm(&model);
    let (converted, converted_back) = (dir.path("there.safetensors"), dir.path("back.onnx"));
    assert_eq!(run_json(&["convert", &model, &converted, "--prefix", "lstm.", "--name", "0"]).0, 0);
    let (code, report) = run_json(&["inspect", &converted]);
    let config = &report["layers"][0]["lstm"]["config"];
    assert_eq!((code, &config["clip"], &config["coupled"]), (0, &1.5.into(), &true.into()), "{report}");
    assert_eq!(run_json(&["convert", &converted, &converted_back, "--inputs"]).0, 0);
    assert_eq!(onnx_lstm(&converted_back), want);
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 6, 4));
    let digests = [&model, &converted, &converted_back]
        .map(|m| run_json(&["run", m, "-i", &input, "--digest"]).1["digest"].clone());
    assert!(digests[0].is_string() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // Models that the other format can't hold.
    let passengers = data("passengers/model.safetensors");
    let constants = data("onnx/constants.onnx");
    for (args, word) in [
        (&["convert", &data("models/guitarml.json"), &converted_back][..], "skip connection"),
        (&["convert", &constants, &converted], "constant initial states"),
        (&["convert", &data("golden/no-bias.safetensors"), &converted_back], ""),
    ] {
        let (code, report) = run_json(args);
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(word), "{args:?}: {report}");
    }
    assert_eq!(onnx_lstm(&converted_back), want);
    assert_eq!(run_json(&["convert", &passengers, &converted_back, "--name", "lstm"]).0, 0);
    // `run` uses the constant states and lengths in the file.
    let two = sequences(2, 5, 4);
    save_npy(&input, &two);
    let graph = OnnxModel::open(&constants).unwrap().graph(&OpenOptions::default()).unwrap();
    let time_major = two.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned().into_dyn();
    let inputs = [(graph.inputs()[0].name.clone(), time_major.into())].into();
    let outputs = graph.run(&Model::new(&Cpu::new(), graph.weights().clone()).unwrap(), inputs).unwrap();
    let digest = Digest::of(outputs[0].1.iter()).to_string();
    assert_eq!(run_json(&["run", &constants, "-i", &input, "--digest"]).1["digest"], digest);
}

#[test]
fn every_command_reports_json_and_text() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 4, 3));
    let (code, devices) = run_json(&["devices"]);
    assert_eq!((code, &devices["backends"][0]["name"]), (0, &"cpu".into()));
    assert_eq!(devices["backends"][0]["exact"], true);
    assert!(devices["backends"].as_array().unwrap().iter().any(|row| row["name"] == "cuda-tf32"), "{devices}");
    let (code, report) = run_json(&["inspect", &model]);
    assert_eq!((code, &report["input_size"], &report["parameters"]), (0, &3.into(), &200.into()));
    assert_eq!(report["backends"][0]["arithmetic"], "exact");
    let (code, report) = run_json(&["compare", &model, "-i", &input, "--references"]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((code, report["exact_runs_identical"].as_bool()), (0, Some(true)));
    // Inexact backends are not used by default, and not reported as unavailable either.
    assert!(!report.to_string().contains("tf32"), "{report}");
    assert!(runs.len() >= 2 && runs.iter().any(|run| run["path"] == "reference"), "{report}");
    assert!(runs.iter().all(|run| run["digest"] == runs[0]["digest"] || run["exact"] == false), "{report}");
    for args in [
        &["devices"][..],
        &["inspect", &model],
        &["compare", &model, "-i", &input],
        &["run", &model, "-i", &input, "--digest"],
    ] {
        let output = run(args);
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn automatic_choice_runs_on_an_exact_device() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 4, 3));
    let args = |backend| ["run", &model, "-i", &input, "--digest", "--backend", backend];
    let (cpu, (code, automatic)) = (run_json(&args("cpu")).1, run_json(&args("auto")));
    assert_eq!((code, &automatic["exact"]), (0, &true.into()), "{automatic}");
    assert_eq!(automatic["digest"], cpu["digest"], "{automatic}");
    // Notes say why the CPU was taken: one for each GPU backend in this build.
    let notes = String::from_utf8(run(&args("auto")).stderr).unwrap();
    for info in ["cuda", "wgpu"].map(|name| BackendInfo::find(name).unwrap()) {
        let is_noted = notes.contains(&format!("note: not used: {}: ", info.name));
        assert!(is_noted == info.is_compiled || automatic["backend"] != "cpu", "{notes}");
        // The way out that a note suggests works.
        if notes.contains(&format!("run with --backend {}", info.name)) {
            assert_eq!(run_json(&args(info.name)).0, 0, "{notes}");
        }
    }
    // `compare` runs several backends, so there is nothing to choose.
    let compare = run(&["compare", &model, "-i", &input, "--backend", "auto"]);
    assert_eq!(compare.status.code(), Some(2));
    assert!(String::from_utf8(compare.stderr).unwrap().contains("expected one of cpu, "));
}

#[test]
fn exit_codes_and_errors() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let both = data("golden/basic.safetensors");
    let bidirectional = data("onnx/bidirectional-lens.onnx");
    let (good, five, bad, nowhere) =
        (dir.path("x.npy"), dir.path("5.npy"), dir.path("bad.npy"), dir.path("nowhere.npy"));
    save_npy(&good, &sequences(2, 4, 3));
    save_npy(&five, &sequences(4, 7, 5));
    let out = dir.path("y.npy");
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["run", &model, "-i", &good], 2, "option", "nothing to do"),
        (&["run", &model, "-i", &nowhere, "--digest"], 1, "file", "nowhere.npy"),
        (&["run", &nowhere, "-i", &good, "--digest"], 1, "model", "nowhere.npy: "),
        (&["run", &dir.path("no.onnx"), "-i", &good, "--digest"], 1, "model", "no.onnx"),
        (&["run", &model, "-i", &model, "--digest"], 1, "file", ".npy, .csv or .wav"),
        (&["run", &model, "-i", &five, "--digest"], 1, "file", "expected 3 features, got 5"),
        (&["run", &model, "-i", &good, "-o", &dir.path("y.csv")], 1, "file", "one sequence"),
        (&["run", &model, "-i", &good, "-o", &dir.path("no/y.npy")], 1, "file", "y.npy"),
        (&["run", &model, "-i", &good, "--digest", "--header"], 2, "option", "expected a .csv file"),
        (
            &["run", &model, "-i", &good, "--digest", "--threads", "2", "-b", "cuda-tf32"],
            2,
            "option",
            "only the cpu backend",
        ),
        (&["run", &model, "-i", &good, "--state-out", &out], 2, "option", "expected the extension .safetensors"),
        (&["run", &model, "-i", &good, "-o", &dir.path("y.txt")], 2, "option", "extension .npy or .csv or .wav"),
        (&["convert", &model, &dir.path("x.pt")], 2, "option", "OUT: expected the extension .safetensors or .onnx"),
        (&["run", &model, "-i", &good, "--digest", "--name", "rnn"], 1, "model", "`rnn`"),
        (&["run", &model, "-i", &good, "--digest", "--cell", "peephole-dense"], 1, "model", "peephole-dense"),
        (&["run", &bidirectional, "-i", &five, "--digest", "--clip", "1"], 2, "option", "--clip: only applies to"),
        (&["run", &bidirectional, "-i", &five, "--digest", "--max-memory", "0"], 1, "file", "--max-memory"),
        (
            &["compare", &model, "-i", &good, "--backend", "wgpu,cuda-tf32", "--threads", "2"],
            2,
            "option",
            "wgpu, cuda-tf32",
        ),
        (
            &["compare", &model, "-i", &good, "--backend", "cpu", "--tolerance", "1e-3"],
            2,
            "option",
            "must be bit-identical",
        ),
        (&["inspect", &both, "--name", "a,b"], 1, "model", "`a`"),
    ];
    for (args, code, kind, part) in cases {
        let (got, report) = run_json(args);
        let error = &report["error"];
        assert_eq!((got, error["kind"].as_str()), (*code, Some(*kind)), "{args:?}: {report}");
        assert!(error["message"].as_str().unwrap().contains(part), "{args:?}: {report}");
        let output = run(args);
        assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("error: "), "{args:?}");
    }
    let good = fs::read(&good).unwrap();
    let header = |descr: &str, shape: &[usize]| [npy_header(descr, shape), vec![0; 96]].concat();
    for (bytes, word) in [
        (good[..good.len() - 1].to_vec(), "does not match"),
        ([&good[..], &[0]].concat(), "does not match"),
        (good[..40].to_vec(), "not an .npy file"),
        (b"a,b\n1,2\n".to_vec(), "not an .npy file"),
        (Vec::new(), "not an .npy file"),
        (header("<i4", &[2, 4, 3]), "`i4`"),
        (header("<f4", &[24, 1]), "expected 3 features, got 1"),
        (header("<f4", &[0, 3]), "size 1 or more"),
        (header("<f4", &[2, 2, 2, 3]), "three axes"),
        (header("<f4", &[usize::MAX, 3]), "does not match"),
        (
            header("<f8", &[2, 2, 3])
                .into_iter()
                .take(128)
                .chain([f64::MAX; 12].iter().flat_map(|v| v.to_le_bytes()))
                .collect(),
            "beyond the range of f32",
        ),
    ] {
        fs::write(&bad, bytes).unwrap();
        let (code, report) = run_json(&["run", &model, "-i", &bad, "-o", &out]);
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(word), "{word}: {report}");
    }
    // No files were left behind.
    assert_eq!(dir.names(), ["5.npy", "bad.npy", "model.safetensors", "x.npy"]);
}
