//! The tool from outside: outputs against the library's, exit codes, JSON, files that are not what they should be.

mod common;
// Its file lies where it is no test of its own.
#[path = "tool/fast.rs"]
mod fast;
#[path = "tool/line.rs"]
mod line;
#[path = "tool/models.rs"]
mod models;
#[path = "tool/outputs.rs"]
mod outputs;
#[path = "tool/words.rs"]
mod words;

use std::{fs, path::Path, process::Output};

use common::{Folder, npy_head, tool};
use lstm_cpu::{
    Cpu, Direction, Input, Lstm, LstmConfig, OnnxModel, StateDict,
    arithmetic::Digest,
    ndarray::{Array3, Axis},
};
use serde_json::Value;

/// A file of the repository's tests.
fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name).display().to_string()
}

fn run(args: &[&str]) -> Output {
    tool(args).output().unwrap()
}

/// Runs with `--json`: the exit code and the object.
fn json(args: &[&str]) -> (i32, Value) {
    let output = run(&[args, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text:?}"));
    (output.status.code().unwrap(), value)
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn x(batch: usize, steps: usize, features: usize) -> Array3<f32> {
    Array3::from_shape_fn((batch, steps, features), |(b, t, f)| ((b * 31 + t * 7 + f * 3) % 17) as f32 * 0.25 - 2.0)
}

/// An .npy file of sequences, (batch, steps, features).
fn save(path: &str, x: &Array3<f32>) {
    fs::write(path, [npy_head("<f4", x.shape()), floats(x.iter().copied())].concat()).unwrap();
}

/// The elements of an .npy file, which must have this shape.
fn elements(path: &str, shape: &[usize]) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes[..128]), String::from_utf8_lossy(&npy_head("<f4", shape)));
    bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

#[test]
fn outputs_are_the_library_s_in_any_chunks_and_layout() {
    let folder = Folder::new();
    for direction in [Direction::Forward, Direction::Bidirectional] {
        let config = LstmConfig::new(3, 5).layers(2).direction(direction);
        let (weights, model) = folder.model(config.clone());
        let (x, outputs) = (x(2, 23, 3), config.output_size());
        let (y, state) = Lstm::new(&Cpu::new(), weights).unwrap().forward(&x).unwrap();
        let by_step = y.view().permuted_axes([1, 0, 2]);
        let digest = Digest::of(by_step.iter()).to_string();
        let (input, output, last) = (folder.path("x.npy"), folder.path("y.npy"), folder.path("last.safetensors"));
        save(&input, &x);
        for more in [&[][..], &["--chunk", "1"], &["--chunk", "7", "--threads", "2"], &["--chunk", "23"]] {
            let args = ["run", &model, "-i", &input, "-o", &output, "--digest", "--state-out", &last];
            let (code, report) = json(&[&args, more].concat());
            assert_eq!((code, report["digest"].as_str()), (0, Some(&*digest)), "{more:?}: {report}");
            assert_eq!(bits(&elements(&output, &[2, 23, outputs])), bits(&y), "{more:?}");
            let mut file = StateDict::open(&last).unwrap();
            assert_eq!(
                (file.take_any("h").unwrap(), file.take_any("c").unwrap()),
                (state.h.clone().into_dyn(), state.c.clone().into_dyn())
            );
        }
        // The steps' axis first.
        save(&input, &x.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned());
        let (code, report) =
            json(&["run", &model, "-i", &input, "-o", &output, "--digest", "--time-major", "--chunk", "5"]);
        assert_eq!((code, report["digest"].as_str()), (0, Some(&*digest)), "{report}");
        assert_eq!(bits(&elements(&output, &[23, 2, outputs])), bits(by_step.iter()));
    }
}

#[test]
fn other_elements_and_text_are_the_same_sequence() {
    let folder = Folder::new();
    let (weights, model) = folder.model(LstmConfig::new(2, 4));
    let x = x(1, 9, 2);
    let y = Lstm::new(&Cpu::new(), weights).unwrap().forward(&x).unwrap().0;
    let (input, output) = (folder.path("x.npy"), folder.path("y.npy"));
    // All of them are multiples of 1/4, exact in any type.
    let half = |v: &f32| half::f16::from_f32(*v);
    let files: [(&str, Vec<u8>); 5] = [
        ("<f4", x.iter().flat_map(|v| v.to_le_bytes()).collect()),
        (">f4", x.iter().flat_map(|v| v.to_be_bytes()).collect()),
        ("<f8", x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        ("<f2", x.iter().flat_map(|v| half(v).to_le_bytes()).collect()),
        (">f2", x.iter().flat_map(|v| half(v).to_be_bytes()).collect()),
    ];
    for (descr, values) in files {
        fs::write(&input, [npy_head(descr, &[9, 2]), values].concat()).unwrap();
        assert_eq!(json(&["run", &model, "-i", &input, "-o", &output]).0, 0);
        assert_eq!(bits(&elements(&output, &[9, 4])), bits(&y), "{descr}");
    }
    let (text, table) = (folder.path("x.csv"), folder.path("y.csv"));
    let rows: Vec<String> = x.rows().into_iter().map(|row| format!("{}, {}\n", row[0], row[1])).collect();
    fs::write(&text, format!("first,second\n{}", rows.concat())).unwrap();
    assert_eq!(json(&["run", &model, "-i", &text, "-o", &table, "--header", "--chunk", "2"]).0, 0);
    let got: Vec<f32> = fs::read_to_string(&table).unwrap().split([',', '\n']).filter_map(|v| v.parse().ok()).collect();
    assert_eq!(bits(&got), bits(&y));
    // A text file read by its own tool again.
    let (code, report) = json(&["run", &model, "-i", &text, "-o", &table]);
    assert_eq!((code, report["error"]["kind"].as_str()), (1, Some("file")));
    assert!(report["error"]["message"].as_str().unwrap().contains("--header"), "{report}");
}

#[test]
fn a_state_carries_over_and_lengths_end_sequences() {
    let folder = Folder::new();
    let (weights, model) = folder.model(LstmConfig::new(3, 5).layers(2));
    let lstm = Lstm::new(&Cpu::new(), weights).unwrap();
    let x = x(2, 12, 3);
    let y = lstm.forward(&x).unwrap().0;
    let (first, second) = x.view().split_at(Axis(1), 5);
    let (a, b, state) = (folder.path("a.npy"), folder.path("b.npy"), folder.path("state.safetensors"));
    save(&a, &first.to_owned());
    save(&b, &second.to_owned());
    let output = folder.path("y.npy");
    assert_eq!(json(&["run", &model, "-i", &a, "--state-out", &state]).0, 0);
    assert_eq!(json(&["run", &model, "-i", &b, "-o", &output, "--state-in", &state]).0, 0);
    let want = y.view().split_at(Axis(1), 5).1;
    assert_eq!(bits(&elements(&output, &[2, 7, 5])), bits(want.iter()));

    let want = lstm.forward(Input::from(first).lengths(&[5, 2])).unwrap().0;
    assert_eq!(json(&["run", &model, "-i", &a, "-o", &output, "--lengths", "5,2"]).0, 0);
    assert_eq!(bits(&elements(&output, &[2, 5, 5])), bits(want.iter()));
    for lengths in ["5", "5,6"] {
        let (code, report) = json(&["run", &model, "-i", &a, "-o", &output, "--lengths", lengths]);
        assert_eq!(code, 1, "{report}");
    }
    // A state of another batch.
    save(&b, &x.slice(lstm_cpu::ndarray::s![..1, .., ..]).to_owned());
    let (code, report) = json(&["run", &model, "-i", &b, "-o", &output, "--state-in", &state]);
    assert_eq!((code, report["error"]["kind"].as_str()), (1, Some("model")), "{report}");
}

#[test]
fn onnx_models_run_and_convert() {
    let folder = Folder::new();
    let model = data("onnx/input-forget-peephole-reverse-clip.onnx");
    let want = OnnxModel::open(&model).unwrap().lstm().unwrap().weights;
    let (there, back) = (folder.path("there.safetensors"), folder.path("back.onnx"));
    assert_eq!(json(&["convert", &model, &there, "--prefix", "lstm."]).0, 0);
    let (code, report) = json(&["inspect", &there]);
    assert_eq!((code, &report["config"]["clip"], &report["config"]["coupled"]), (0, &1.5.into(), &true.into()));
    assert_eq!(json(&["convert", &there, &back, "--inputs"]).0, 0);
    assert_eq!(OnnxModel::open(&back).unwrap().lstm().unwrap().weights, want);
    let input = folder.path("x.npy");
    save(&input, &x(2, 6, 4));
    let digests = [&model, &there, &back].map(|m| json(&["run", m, "-i", &input, "--digest"]).1["digest"].clone());
    assert!(digests[0].is_string() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // RTNeural's: its dense layer is named, a model without one is converted.
    let (headed, plain) = (data("rtneural/one.json"), data("rtneural/no-head.json"));
    let (code, report) = json(&["inspect", &headed]);
    assert_eq!((code, &report["unused"][0]), (0, &"dense layer [1, 4]".into()), "{report}");
    assert_eq!(json(&["convert", &headed, &back]).0, 1);
    assert_eq!(json(&["convert", &plain, &there]).0, 0);
    save(&input, &x(2, 6, 2));
    let digests = [&plain, &there].map(|m| json(&["run", m, "-i", &input, "--digest"]).1["digest"].clone());
    assert!(digests[0].is_string() && digests[0] == digests[1], "{digests:?}");
    assert_eq!(json(&["convert", &model, &there]).0, 0);
    // What the other format can't hold.
    let passengers = data("passengers/model.safetensors");
    let constants = data("onnx/constants.onnx");
    for (args, word) in [
        (&["convert", &passengers, &back][..], "head.weight"),
        (&["convert", &constants, &there], "fixes"),
        (&["convert", &data("golden/no-bias.safetensors"), &back], ""),
    ] {
        let (code, report) = json(args);
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(word), "{args:?}: {report}");
    }
    assert_eq!(OnnxModel::open(&back).unwrap().lstm().unwrap().weights, want);
    assert_eq!(json(&["convert", &passengers, &back, "--name", "lstm"]).0, 0);
    // States and lengths of the file are those of the run.
    let two = x(2, 5, 4);
    save(&input, &two);
    let onnx = OnnxModel::open(&constants).unwrap().lstm().unwrap();
    let time_major = two.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned().into_dyn();
    let inputs = lstm_cpu::OnnxInputs { x: time_major, ..Default::default() };
    let outputs = onnx.run(&Lstm::new(&Cpu::new(), onnx.weights.clone()).unwrap(), inputs).unwrap();
    let digest = Digest::of(outputs[0].1.iter()).to_string();
    assert_eq!(json(&["run", &constants, "-i", &input, "--digest"]).1["digest"], digest);
}

#[test]
fn every_command_speaks_json_and_text() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let input = folder.path("x.npy");
    save(&input, &x(2, 4, 3));
    let (code, devices) = json(&["devices"]);
    assert_eq!((code, &devices["backends"][0]["name"]), (0, &"cpu".into()));
    assert_eq!(devices["backends"][0]["exact"], true);
    assert!(devices["backends"].as_array().unwrap().iter().any(|row| row["name"] == "cuda-tf32"), "{devices}");
    let (code, report) = json(&["inspect", &model]);
    assert_eq!((code, &report["config"]["input_size"], &report["parameters"]), (0, &3.into(), &200.into()));
    assert_eq!(report["backends"][0]["arithmetic"], "exact");
    let (code, report) = json(&["compare", &model, "-i", &input, "--references"]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((code, report["exact_runs_identical"].as_bool()), (0, Some(true)));
    // Nobody asked for what is not exact, not even whether it could run.
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
fn exit_codes_and_errors() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let both = data("golden/basic.safetensors");
    let bidirectional = data("onnx/bidirectional-lens.onnx");
    let (good, five, bad, nowhere) =
        (folder.path("x.npy"), folder.path("5.npy"), folder.path("bad.npy"), folder.path("nowhere.npy"));
    save(&good, &x(2, 4, 3));
    save(&five, &x(4, 7, 5));
    let out = folder.path("y.npy");
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["run", &model, "-i", &good], 2, "option", "nothing to do"),
        (&["run", &model, "-i", &nowhere, "--digest"], 1, "file", "nowhere.npy"),
        (&["run", &nowhere, "-i", &good, "--digest"], 1, "file", ".safetensors, .onnx or .json"),
        (&["run", &folder.path("no.onnx"), "-i", &good, "--digest"], 1, "model", "no.onnx"),
        (&["run", &model, "-i", &model, "--digest"], 1, "file", ".npy or .csv"),
        (&["run", &model, "-i", &five, "--digest"], 1, "file", "expected 3 features, got 5"),
        (&["run", &model, "-i", &good, "-o", &folder.path("y.csv")], 1, "file", "one sequence"),
        (&["run", &model, "-i", &good, "-o", &folder.path("no/y.npy")], 1, "file", "y.npy"),
        (&["run", &model, "-i", &good, "--digest", "--header"], 2, "option", "no .csv"),
        (
            &["run", &model, "-i", &good, "--digest", "--threads", "2", "-b", "cuda-tf32"],
            2,
            "option",
            "of the cpu backend",
        ),
        (&["run", &model, "-i", &good, "--state-out", &out], 2, "option", "expected the extension .safetensors"),
        (&["run", &model, "-i", &good, "-o", &folder.path("y.txt")], 2, "option", "extension .npy or .csv"),
        (&["convert", &model, &folder.path("x.pt")], 2, "option", "OUT: expected the extension .safetensors or .onnx"),
        (&["run", &model, "-i", &good, "--digest", "--name", "rnn"], 1, "file", "`rnn`"),
        (&["run", &model, "-i", &good, "--digest", "--cell", "peephole-dense"], 1, "model", "PeepholeDense"),
        (&["run", &bidirectional, "-i", &five, "--digest", "--clip", "1"], 2, "option", "leaves it open"),
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
            "held to their bits",
        ),
        (&["inspect", &both, "--name", "a,b"], 2, "option", "one name"),
    ];
    for (args, code, kind, word) in cases {
        let (got, report) = json(args);
        let error = &report["error"];
        assert_eq!((got, error["kind"].as_str()), (*code, Some(*kind)), "{args:?}: {report}");
        assert!(error["message"].as_str().unwrap().contains(word), "{args:?}: {report}");
        let output = run(args);
        assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("error: "), "{args:?}");
    }
    let good = fs::read(&good).unwrap();
    let head = |descr: &str, shape: &[usize]| [npy_head(descr, shape), vec![0; 96]].concat();
    for (bytes, word) in [
        (good[..good.len() - 1].to_vec(), "does not fit"),
        ([&good[..], &[0]].concat(), "does not fit"),
        (good[..40].to_vec(), "no .npy file"),
        (b"a,b\n1,2\n".to_vec(), "no .npy file"),
        (Vec::new(), "no .npy file"),
        (head("<i4", &[2, 4, 3]), "`<i4`"),
        (head("<f4", &[24, 1]), "expected 3 features, got 1"),
        (head("<f4", &[0, 3]), "at least one"),
        (head("<f4", &[2, 2, 2, 3]), "three axes"),
        (head("<f4", &[usize::MAX, 3]), "does not fit"),
        (
            head("<f8", &[2, 2, 3])
                .into_iter()
                .take(128)
                .chain([f64::MAX; 12].iter().flat_map(|v| v.to_le_bytes()))
                .collect(),
            "more than f32",
        ),
    ] {
        fs::write(&bad, bytes).unwrap();
        let (code, report) = json(&["run", &model, "-i", &bad, "-o", &out]);
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(word), "{word}: {report}");
    }
    // Nothing was left behind.
    assert_eq!(folder.names(), ["5.npy", "bad.npy", "model.safetensors", "x.npy"]);
}
