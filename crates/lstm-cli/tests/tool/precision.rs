//! Quantized weights: `--precision` in every command, and files that hold them.

use lstm::{
    Activation, Cpu, Init, LstmConfig, Model, ModelLayer, ModelWeights, Precision, StateDictWriter, TensorNames,
    Weights, ndarray::Array2,
};

use super::{TempDir, bits, data, read_npy, run, run_json, save_npy, sequences};

/// An LSTM, a linear layer and a sigmoid.
fn model() -> ModelWeights {
    let lstm = Weights::init(LstmConfig::new(3, 20), &Init::default(), 1).unwrap();
    let weight = Array2::from_shape_fn((2, 20), |(r, c)| ((r * 7 + c) % 11) as f32 * 0.1 - 0.3);
    ModelWeights::new(vec![
        ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None },
        ModelLayer::Linear { name: "head".into(), weight, bias: None },
        ModelLayer::Activation(Activation::Sigmoid),
    ])
    .unwrap()
}

#[test]
fn converted_models_have_the_bits_of_models_quantized_when_they_are_opened() {
    let dir = TempDir::new();
    let (original, x, y) = (dir.path("model.safetensors"), dir.path("x.npy"), dir.path("y.npy"));
    model().save(&original).unwrap();
    let input = sequences(2, 12, 3);
    save_npy(&x, &input);
    for precision in [Precision::Int8, Precision::Int12] {
        let (name, converted) = (precision.name(), dir.path("converted.safetensors"));
        let (code, report) = run_json(&["convert", &original, &converted, "--precision", name]);
        assert_eq!((code, report["precision"].as_str()), (0, Some(name)), "{report}");
        let (code, report) = run_json(&["inspect", &converted]);
        assert_eq!((code, report["layers"][0]["precision"].as_str()), (0, Some(name)), "{report}");
        assert_eq!(report["layers"][1]["precision"].as_str(), Some(name), "{report}");
        let want = Model::new(&Cpu::new(), model().quantize(precision).unwrap()).unwrap().forward(&input).unwrap().y;
        for args in [&[&*original, "--precision", name][..], &[&*converted], &[&*converted, "--chunk", "1"]] {
            let (code, report) = run_json(&[&["run", "-i", &x, "-o", &y], args].concat());
            assert_eq!((code, report["precision"].as_str()), (0, Some(name)), "{report}");
            assert_eq!(bits(&read_npy(&y, &[2, 12, 2])), bits(&want), "{args:?}");
        }
        // The way out that the error names.
        let onnx = dir.path("model.onnx");
        let refused = run(&["convert", &converted, &onnx]);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && text.contains("an .onnx file holds f32 weights, got"), "{text}");
        assert_eq!(run_json(&["convert", &converted, &onnx, "--precision", "f32"]).0, 0);
        let other = if precision == Precision::Int8 { "int12" } else { "int8" };
        let refused = run(&["run", &converted, "-i", &x, "--digest", "--precision", other]);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && text.contains(&format!("the weights are {name} already")), "{text}");
    }
}

#[test]
fn models_of_every_format_run_in_a_precision() {
    let dir = TempDir::new();
    let (x, converted) = (dir.path("x.npy"), dir.path("there.safetensors"));
    for (file, features) in
        [("keras-last.keras", 3), ("keras-last.h5", 3), ("nam.nam", 1), ("guitarml.json", 1), ("learned.onnx", 3)]
    {
        let file = data(&format!("models/{file}"));
        let size = run_json(&["inspect", &file]).1["input_size"].as_u64().unwrap_or(features) as usize;
        save_npy(&x, &sequences(2, 6, size));
        let (code, report) = run_json(&["run", &file, "-i", &x, "--digest", "--precision", "int8"]);
        assert_eq!((code, report["precision"].as_str()), (0, Some("int8")), "{file}: {report}");
        assert_eq!(run_json(&["convert", &file, &converted, "--precision", "int8"]).0, 0, "{file}");
        assert_eq!(run_json(&["run", &converted, "-i", &x, "--digest"]).1["digest"], report["digest"], "{file}");
    }
}

#[test]
fn compare_reports_the_errors_of_each_precision() {
    let dir = TempDir::new();
    let (file, x) = (dir.path("model.safetensors"), dir.path("x.npy"));
    model().save(&file).unwrap();
    save_npy(&x, &sequences(2, 12, 3));
    let args = ["compare", &file, "-i", &x, "--backend", "cpu", "--precision", "f32,int12,int8"];
    let (code, report) = run_json(&args);
    assert_eq!((code, report["exact_runs_identical"].as_bool()), (0, Some(true)), "{report}");
    // Each precision runs the kernels and the reference path.
    let runs: Vec<_> =
        report["runs"].as_array().unwrap().iter().map(|run| run["precision"].as_str().unwrap()).collect();
    assert_eq!(runs, ["f32", "f32", "int12", "int12", "int8", "int8"]);
    let errors: Vec<f64> =
        report["precisions"].as_array().unwrap().iter().map(|p| p["rms_error"].as_f64().unwrap()).collect();
    assert!(errors[0] == 0.0 && errors[1] > 0.0 && 4.0 * errors[1] < errors[2] && errors[2] < 0.01, "{errors:?}");
    let text = String::from_utf8(run(&args).stdout).unwrap();
    assert!(text.contains("int8 against f32: rms error "), "{text}");
    let refused = run(&["run", &file, "-i", &x, "--digest", "--precision", "f32,int8"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && text.contains("only `compare` takes several"), "{text}");
    let refused = run(&["run", &file, "-i", &x, "--digest", "--precision", "int4"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && text.contains("expected one of f32, int8, int12"), "{text}");
}

#[test]
fn a_file_of_one_quantized_lstm_opens_without_the_layers_of_a_model() {
    let dir = TempDir::new();
    let (file, x) = (dir.path("lstm.safetensors"), dir.path("x.npy"));
    save_npy(&x, &sequences(1, 5, 3));
    let config = LstmConfig::new(3, 6).bidirectional().clip(0.5).precision(Precision::Int8);
    let lstm = Weights::init(config, &Init::default(), 1).unwrap();
    for prefix in ["", "rec."] {
        StateDictWriter::new().lstm(prefix, &lstm, TensorNames::PyTorch).unwrap().save(&file).unwrap();
        let (code, report) = run_json(&["inspect", &file]);
        assert_eq!((code, report["layers"][0]["precision"].as_str()), (0, Some("int8")), "{report}");
        assert_eq!(run_json(&["run", &file, "-i", &x, "--digest"]).0, 0);
        let refused = run(&["run", &file, "-i", &x, "--digest", "--clip", "1"]);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && text.contains("says what it is"), "{text}");
    }
}
