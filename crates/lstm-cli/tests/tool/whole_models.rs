//! Whole models of every format: outputs against those of other programs, tokens, the last step, states, conversion.

use std::fs;

use lstm::{
    Activation, Cpu, Init, LstmConfig, Model, ModelInput, ModelLayer, ModelWeights, StateDict, Weights,
    ndarray::{Array2, Array3, Ix3, s},
};

use super::{TempDir, bits, data, npy_header, read_npy, run, run_json, save_npy, sequences};

/// Runs every model of `tests/data/models` that has one input by the tool, and again after its conversion.
#[test]
fn models_of_other_programs_run_and_convert() {
    let dir = TempDir::new();
    let (input, output, converted) = (dir.path("x.npy"), dir.path("y.npy"), dir.path("there.safetensors"));
    let mut count = 0;
    for entry in fs::read_dir(data("models")).unwrap() {
        let model = entry.unwrap().path();
        let values = model.with_extension("expected.safetensors");
        if model == values || !values.is_file() || model.to_string_lossy().ends_with(".expected.safetensors") {
            continue;
        }
        count += 1;
        let model = model.to_str().unwrap();
        let mut file = StateDict::open(&values).unwrap();
        let (batch, steps) = match file.shape("tokens").map(<[usize]>::to_vec) {
            Some(shape) => {
                let tokens = file.take_i64("tokens").unwrap();
                let values: Vec<u8> = tokens.into_iter().flat_map(i64::to_le_bytes).collect();
                fs::write(&input, [npy_header("<i8", &shape), values].concat()).unwrap();
                (shape[0], shape[1])
            }
            None => {
                let x = file.take_any("x").unwrap().into_dimensionality::<Ix3>().unwrap();
                save_npy(&input, &x);
                (x.dim().0, x.dim().1)
            }
        };
        let is_last = file.shape("last").is_some();
        let want = file.take_f64(if is_last { "last" } else { "y" }).unwrap();
        let (code, report) = run_json(&["run", model, "-i", &input, "-o", &output, "--digest", "--chunk", "4"]);
        assert_eq!(code, 0, "{model}: {report}");
        let features = *want.shape().last().unwrap();
        let shape = if is_last { vec![batch, features] } else { vec![batch, steps, features] };
        for (got, want) in read_npy(&output, &shape).into_iter().zip(&want) {
            assert!((f64::from(got) - want).abs() <= 1e-5 + 1e-5 * want.abs(), "{model}: {got} {want}");
        }
        let (code, conversion) = run_json(&["convert", model, &converted]);
        assert_eq!(code, 0, "{model}: {conversion}");
        let again = run_json(&["run", &converted, "-i", &input, "--digest"]).1;
        assert_eq!(again["digest"], report["digest"], "{model}: {again}");
        let inspected = run(&["inspect", model]);
        let text = String::from_utf8(inspected.stdout).unwrap();
        assert!(
            inspected.status.success() && text.contains("lstm `") && text.lines().all(|line| line.len() < 400),
            "{text}"
        );
    }
    assert!(count >= 24, "{count}");
}

/// Two LSTMs of different sizes, the last step and a softmax.
fn two_lstms() -> ModelWeights {
    let lstm = |name: &str, input, hidden, seed| ModelLayer::Lstm {
        name: name.into(),
        weights: Weights::init(LstmConfig::new(input, hidden), &Init::default(), seed).unwrap().into(),
        initial_state: None,
    };
    let weight = Array2::from_shape_fn((2, 4), |(r, c)| (r * 4 + c) as f32 * 0.1 - 0.3);
    ModelWeights::new(vec![
        lstm("first", 3, 5, 1),
        lstm("second", 5, 4, 2),
        ModelLayer::LastStep,
        ModelLayer::Linear { name: "head".into(), weight, bias: None },
        ModelLayer::Activation(Activation::Softmax),
    ])
    .unwrap()
}

#[test]
fn states_of_several_lstms_continue_a_run() {
    let dir = TempDir::new();
    let weights = two_lstms();
    let model = dir.path("two.safetensors");
    weights.save(&model).unwrap();
    let x = sequences(2, 12, 3);
    let want = Model::new(&Cpu::new(), weights).unwrap().forward(&x).unwrap();
    let (a, b, y, state) = (dir.path("a.npy"), dir.path("b.npy"), dir.path("y.npy"), dir.path("h.safetensors"));
    save_npy(&a, &x.slice(s![.., ..5, ..]).to_owned());
    save_npy(&b, &x.slice(s![.., 5.., ..]).to_owned());
    assert_eq!(run_json(&["run", &model, "-i", &a, "--state-out", &state]).0, 0);
    let names: Vec<String> = StateDict::open(&state).unwrap().names().map(str::to_owned).collect();
    assert_eq!(names, ["first.c", "first.h", "second.c", "second.h"]);
    for chunk in ["1", "3", "100"] {
        let args = ["run", &model, "-i", &b, "-o", &y, "--state-in", &state, "--chunk", chunk];
        assert_eq!(run_json(&args).0, 0);
        assert_eq!(bits(&read_npy(&y, &[2, 2])), bits(&want.y), "{chunk}");
    }
    // One row per sequence in a .csv file, too.
    let table = dir.path("y.csv");
    assert_eq!(run_json(&["run", &model, "-i", &b, "-o", &table, "--state-in", &state]).0, 0);
    assert_eq!(fs::read_to_string(&table).unwrap().lines().count(), 2);
    // Sequences that end at different steps.
    save_npy(&a, &x);
    let lengths = [12, 7];
    let model_on_cpu = Model::new(&Cpu::new(), two_lstms()).unwrap();
    let want = model_on_cpu.forward(ModelInput::from(&x).lengths(&lengths)).unwrap().y;
    assert_eq!(run_json(&["run", &model, "-i", &a, "-o", &y, "--lengths", "12,7"]).0, 0);
    assert_eq!(bits(&read_npy(&y, &[2, 2])), bits(&want));
    let (code, report) = run_json(&["compare", &model, "-i", &a]);
    assert_eq!((code, report["exact_runs_identical"].as_bool()), (0, Some(true)), "{report}");
}

#[test]
fn tokens_are_read_from_both_file_formats() {
    let dir = TempDir::new();
    let model = data("models/torch-embedding.pt");
    let (npy, csv, y) = (dir.path("x.npy"), dir.path("x.csv"), dir.path("y.npy"));
    let tokens = [3i32, 0, 10, 7];
    fs::write(&npy, [npy_header("<i4", &[4, 1]), tokens.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
        .unwrap();
    // (4, 1) is four sequences of one token.
    assert_eq!(run_json(&["run", &model, "-i", &npy, "-o", &y]).1["batch"], 4);
    fs::write(&csv, "3\n0\n10\n7\n").unwrap();
    for more in [&[][..], &["--tokens"]] {
        let (code, report) = run_json(&[&["run", &model, "-i", &csv, "-o", &y][..], more].concat());
        assert_eq!((code, &report["steps"]), (0, &4.into()), "{report}");
    }
    for (text, part) in
        [("3\n11\n", "a token from 0 to 10"), ("3\n-1\n", "a token from 0 to 10"), ("1.5\n", "an integer")]
    {
        fs::write(&csv, text).unwrap();
        let (code, report) = run_json(&["run", &model, "-i", &csv, "-o", &y]);
        assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains(part), "{report}");
    }
    save_npy(&npy, &Array3::zeros((1, 4, 1)));
    let (code, report) = run_json(&["run", &model, "-i", &npy, "-o", &y]);
    assert!(code == 1 && report["error"]["message"].as_str().unwrap().contains("tokens"), "{report}");
}

#[test]
fn options_that_do_not_apply_are_rejected() {
    let (nam, pt) = (data("models/nam.nam"), data("models/torch-plain.pt"));
    for (model, more, part) in [
        (&nam, &["--layers", "rec"][..], "--layers: only applies to files of tensors"),
        (&nam, &["--name", "rec"], "--name: only applies to"),
        (&nam, &["--coupled"], "--coupled: only applies to"),
        (&pt, &["--set", "sr=1"], "--set: only applies to .onnx files"),
        (&pt, &["--set", "sr=1", "--set", "sr=2"], "--set: `sr` is set twice"),
    ] {
        let (code, report) = run_json(&[&["inspect", model][..], more].concat());
        assert!(code == 2 && report["error"]["message"].as_str().unwrap().contains(part), "{report}");
    }
    for (more, part) in [("sr", "such as sr=16000"), ("=1", "such as sr=16000"), ("sr=x", "such as sr=16000")] {
        let output = run(&["inspect", &pt, "--set", more]);
        assert!(output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains(part), "{more}");
    }
}

/// Drivers that look for a display stay quiet.
#[test]
fn nothing_but_notes_is_written_to_stderr() {
    let output = super::tool(&["devices"]).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A model for one time step alone stays one when it is converted.
#[test]
fn conversion_keeps_the_number_of_time_steps() {
    let dir = TempDir::new();
    let model = data("../../crates/lstm-formats/tests/data/keras/one-step.keras");
    let (input, converted, other) = (dir.path("x.npy"), dir.path("m.safetensors"), dir.path("m.onnx"));
    let (code, report) = run_json(&["inspect", &model]);
    let features = report["input_size"].as_u64().unwrap_or_else(|| panic!("{code}: {report}")) as usize;
    save_npy(&input, &sequences(1, 2, features));
    assert_eq!(run_json(&["convert", &model, &converted]).0, 0);
    for file in [&model, &converted] {
        let (code, report) = run_json(&["run", file, "-i", &input, "--digest"]);
        assert_eq!((code, report["error"]["kind"].as_str()), (1, Some("file")), "{file}: {report}");
    }
    let (code, report) = run_json(&["convert", &model, &other]);
    assert_eq!(code, 1, "{report}");
    assert!(report["error"]["message"].as_str().unwrap().contains("sequences of 1 time steps"), "{report}");
}
