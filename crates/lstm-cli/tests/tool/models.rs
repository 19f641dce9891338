//! Files that contain more than one LSTM: what is used, what is reported as unused, and what is rejected.

use std::fs;

use lstm::{
    Init, LstmConfig, StateDict, StateDictWriter, TensorNames, Weights,
    ndarray::{Array2, Array3},
};

use super::{TempDir, data, onnx_lstm, run, run_json, save_npy, sequences};

#[test]
fn reads_lstms_with_nested_prefixes() {
    let dir = TempDir::new();
    let (model, out) = (dir.path("m.safetensors"), dir.path("out.safetensors"));
    let weights = |seed| Weights::init(LstmConfig::new(3, 5), &Init::default(), seed).unwrap();
    let (outer, inner) = (weights(1), weights(2));
    for (outer_prefix, inner_prefix, name) in
        [("lstm.", "lstm.sub.", "lstm"), ("", "lstm2.", ""), ("a.", "a.b.c.", "a.")]
    {
        let writer = StateDictWriter::new().lstm(outer_prefix, &outer, TensorNames::PyTorch).unwrap();
        let writer = writer.lstm(inner_prefix, &inner, TensorNames::PyTorch).unwrap();
        writer
            .tensor(format!("{outer_prefix}head.weight"), &Array2::<f32>::zeros((1, 5)))
            .unwrap()
            .save(&model)
            .unwrap();
        let (code, report) = run_json(&["inspect", &model, "--name", name]);
        assert_eq!((code, report["layers"].as_array().map(Vec::len)), (0, Some(1)), "{report}");
        let unused: Vec<_> = report["unused"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(unused.len() == 5 && unused.contains(&&*format!("{inner_prefix}bias_hh_l0")), "{report}");
        for (name, want) in [(name, &outer), (inner_prefix, &inner)] {
            assert_eq!(run_json(&["convert", &model, &out, "--name", name]).0, 0);
            assert_eq!(StateDict::open(&out).unwrap().take_lstm("").unwrap(), *want, "{name}");
        }
    }
    // Each command says what it leaves.
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 4, 3));
    for args in [
        &["inspect", &model, "--name", "a"][..],
        &["convert", &model, &out, "--name", "a"],
        &["run", &model, "--name", "a", "-i", &input, "--digest"],
        &["compare", &model, "--name", "a", "-i", &input, "-b", "cpu"],
    ] {
        let (text, report) = (String::from_utf8(run(args).stdout).unwrap(), run_json(args).1);
        assert!(text.contains("not part of this model: `a.b.c.bias_hh_l0`, "), "{args:?}: {text}");
        assert_eq!(report["unused"].as_array().map(Vec::len), Some(5), "{report}");
    }
    // An unknown tensor of the LSTM itself is an error.
    let writer = StateDictWriter::new().lstm("lstm.", &outer, TensorNames::PyTorch).unwrap();
    writer.tensor("lstm.scale", &Array2::<f32>::zeros((1, 5))).unwrap().save(&model).unwrap();
    let (code, report) = run_json(&["inspect", &model]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 1 && message.ends_with("m.safetensors: unused tensors: lstm.scale"), "{report}");
}

#[test]
fn convert_rejects_graphs_it_would_change() {
    let dir = TempDir::new();
    let (onnx, tensors) = (dir.path("out.onnx"), dir.path("out.safetensors"));
    let with_state_inputs = data("onnx/keras-initial-state.onnx");
    let lengths = data("onnx/bidirectional-lens.onnx");
    let last = data("onnx/last-state-only.onnx");
    for (model, out, part) in [
        (&with_state_inputs, &onnx, "`initial_h`, `initial_c`, would be lost; --inputs keeps them"),
        (
            &with_state_inputs,
            &tensors,
            "`initial_h`, `initial_c`, would be lost; to convert the LSTM nodes alone, select them with --name: `n3`",
        ),
        (&lengths, &onnx, "`sequence_lens`, would be lost"),
        (&last, &onnx, "outputs `Y_h` would be replaced by the whole output sequence of the last layer"),
        (&last, &tensors, "outputs `Y_h` would be replaced by the whole output sequence of the last layer"),
    ] {
        let (code, report) = run_json(&["convert", model, out]);
        let message = report["error"]["message"].as_str().unwrap();
        assert!(code == 1 && message.starts_with(&**model) && message.contains(part), "{report}");
        assert!(dir.names().is_empty(), "{model}");
    }
    let want = onnx_lstm(&with_state_inputs);
    for more in [&["--inputs"][..], &["--name", "n3"]] {
        assert_eq!(run_json(&[&["convert", &with_state_inputs, &onnx], more].concat()).0, 0);
        assert_eq!(onnx_lstm(&onnx), want);
    }
    // Separate outputs of both directions make up the whole sequence.
    let separate_directions = data("onnx/pytorch-dynamo-dynamic-directions.onnx");
    for args in
        [["convert", &last, &tensors, "--name", "0"], ["convert", &separate_directions, &tensors, "--dtype", "F32"]]
    {
        let (code, report) = run_json(&args);
        assert_eq!(code, 0, "{report}");
    }
    let input = dir.path("x.npy");
    let size = onnx_lstm(&last).config().input_size;
    save_npy(&input, &sequences(2, 4, size));
    let stderr = |more: &[&str]| {
        let output = run(&[&["run", &last, "-i", &input, "--digest"], more].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "note: the graph's outputs are `Y_h`; this command outputs the last layer's whole sequence";
    assert!(stderr(&[]).contains(note), "{}", stderr(&[]));
    assert!(!stderr(&["--name", "0"]).contains("Y_h") && stderr(&["-q"]).is_empty());
}

#[test]
fn errors_name_the_file_they_concern() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let (three, four, state) = (dir.path("3.npy"), dir.path("4.npy"), dir.path("h.safetensors"));
    save_npy(&three, &sequences(3, 4, 3));
    save_npy(&four, &sequences(3, 4, 4));
    let constants = data("onnx/constants.onnx");
    let part = |names: &[&str], batch| {
        let array = Array3::<f32>::zeros((1, batch, 5));
        let writer = names.iter().try_fold(StateDictWriter::new(), |writer, name| writer.tensor(*name, &array));
        fs::write(&state, writer.unwrap().to_bytes().unwrap()).unwrap();
        run_json(&["run", &model, "-i", &three, "--digest", "--state-in", &state])
    };
    for ((code, report), file, why) in [
        (part(&["c"], 3), &state, "tensor `h` is missing"),
        (part(&["c", "h", "k"], 3), &state, "unused tensors: k"),
        (part(&["c", "h"], 2), &state, "state h: expected [1, 3, 5] for 3 sequences, got [1, 2, 5]"),
        (
            run_json(&["run", &constants, "-i", &four, "--digest", "--lengths", "1,2,3"]),
            &constants,
            "for 3 sequences, got ",
        ),
        (run_json(&["inspect", &state]), &state, "no LSTM in the file"),
    ] {
        let error = &report["error"];
        assert_eq!((code, error["kind"].as_str()), (1, Some("model")), "{report}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{file}: ")) && message.contains(why), "{report}");
        assert_eq!(message.matches(&**file).count(), 1, "{report}");
    }
}
