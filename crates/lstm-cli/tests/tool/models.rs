//! Models with more around them than one LSTM: what is taken, what is told of, what is refused.

use std::fs;

use lstm_cpu::{
    Init, LstmConfig, OnnxModel, StateDict, StateDictWriter, TensorNames, Weights,
    ndarray::{Array2, Array3},
};

use super::{Folder, data, json, run, save, x};

#[test]
fn an_lstm_around_another_is_read() {
    let folder = Folder::new();
    let (model, out) = (folder.path("m.safetensors"), folder.path("out.safetensors"));
    let weights = |seed| Weights::init(LstmConfig::new(3, 5), &Init::default(), seed).unwrap();
    let (outer, inner) = (weights(1), weights(2));
    for (around, within, name) in [("lstm.", "lstm.sub.", "lstm"), ("", "lstm2.", ""), ("a.", "a.b.c.", "a.")] {
        let writer = StateDictWriter::new().lstm(around, &outer, TensorNames::PyTorch).unwrap();
        let writer = writer.lstm(within, &inner, TensorNames::PyTorch).unwrap();
        writer.tensor(format!("{around}head.weight"), &Array2::<f32>::zeros((1, 5))).unwrap().save(&model).unwrap();
        let (code, report) = json(&["inspect", &model, "--name", name]);
        assert_eq!((code, &report["names"][0]), (0, &around.into()), "{report}");
        let unused: Vec<_> = report["unused"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(unused.len() == 5 && unused.contains(&&*format!("{within}bias_hh_l0")), "{report}");
        for (name, want) in [(name, &outer), (within, &inner)] {
            assert_eq!(json(&["convert", &model, &out, "--name", name]).0, 0);
            assert_eq!(StateDict::open(&out).unwrap().take_lstm("").unwrap(), *want, "{name}");
        }
    }
    // What the LSTM itself has no place for is still an error, and says where.
    let writer = StateDictWriter::new().lstm("lstm.", &outer, TensorNames::PyTorch).unwrap();
    writer.tensor("lstm.scale", &Array2::<f32>::zeros((1, 5))).unwrap().save(&model).unwrap();
    let (code, report) = json(&["inspect", &model]);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(code == 1 && message.ends_with("m.safetensors: unused tensors: lstm.scale"), "{report}");
}

#[test]
fn what_a_graph_would_lose_is_not_converted() {
    let folder = Folder::new();
    let (onnx, tensors) = (folder.path("out.onnx"), folder.path("out.safetensors"));
    let stated = data("onnx/keras-initial-state.onnx");
    let lengths = data("onnx/bidirectional-lens.onnx");
    let last = data("onnx/last-state-only.onnx");
    for (model, out, word) in [
        (&stated, &onnx, "`initial_h`, `initial_c`, would be lost; --inputs keeps such inputs"),
        (&stated, &tensors, "`initial_h`, `initial_c`, would be lost; to take LSTMs alone, --name them: `n3`"),
        (&lengths, &onnx, "`sequence_lens`, would be lost"),
        (&last, &onnx, "outputs `Y_h` would become the last layer's whole sequence"),
        (&last, &tensors, "outputs `Y_h` would become the last layer's whole sequence"),
    ] {
        let (code, report) = json(&["convert", model, out]);
        let message = report["error"]["message"].as_str().unwrap();
        assert!(code == 1 && message.starts_with(&**model) && message.contains(word), "{report}");
        assert!(folder.names().is_empty(), "{model}");
    }
    let want = OnnxModel::open(&stated).unwrap().lstm().unwrap().weights;
    for more in [&["--inputs"][..], &["--name", "n3"]] {
        assert_eq!(json(&[&["convert", &stated, &onnx], more].concat()).0, 0);
        assert_eq!(OnnxModel::open(&onnx).unwrap().lstm().unwrap().weights, want);
    }
    // The two directions' sequences are the whole one.
    let apart = data("onnx/pytorch-dynamo-dynamic-directions.onnx");
    for args in [["convert", &last, &tensors, "--name", "0"], ["convert", &apart, &tensors, "--dtype", "F32"]] {
        let (code, report) = json(&args);
        assert_eq!(code, 0, "{report}");
    }
    let input = folder.path("x.npy");
    let size = OnnxModel::open(&last).unwrap().lstm().unwrap().weights.config().input_size;
    save(&input, &x(2, 4, size));
    let words = |more: &[&str]| {
        let output = run(&[&["run", &last, "-i", &input, "--digest"], more].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "note: the graph's outputs are `Y_h`; here it is the whole sequence of the last layer";
    assert!(words(&[]).contains(note), "{}", words(&[]));
    assert!(!words(&["--name", "0"]).contains("Y_h") && words(&["-q"]).is_empty());
}

#[test]
fn errors_name_the_file_they_are_about() {
    let folder = Folder::new();
    let (_, model) = folder.model(LstmConfig::new(3, 5));
    let (three, four, state) = (folder.path("3.npy"), folder.path("4.npy"), folder.path("h.safetensors"));
    save(&three, &x(3, 4, 3));
    save(&four, &x(3, 4, 4));
    let constants = data("onnx/constants.onnx");
    let part = |names: &[&str], batch| {
        let array = Array3::<f32>::zeros((1, batch, 5));
        let writer = names.iter().try_fold(StateDictWriter::new(), |writer, name| writer.tensor(*name, &array));
        fs::write(&state, writer.unwrap().to_bytes().unwrap()).unwrap();
        json(&["run", &model, "-i", &three, "--digest", "--state-in", &state])
    };
    for ((code, report), file, why) in [
        (part(&["c"], 3), &state, "tensor `h` is missing"),
        (part(&["c", "h", "k"], 3), &state, "unused tensors: k"),
        (part(&["c", "h"], 2), &state, "state h: expected [1, 3, 5] for 3 sequences, got [1, 2, 5]"),
        (
            json(&["run", &constants, "-i", &four, "--digest", "--lengths", "1,2,3"]),
            &constants,
            "for 3 sequences, got ",
        ),
        (json(&["inspect", &state]), &state, "tensor `"),
    ] {
        let error = &report["error"];
        assert_eq!((code, error["kind"].as_str()), (1, Some("model")), "{report}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{file}: ")) && message.contains(why), "{report}");
        assert_eq!(message.matches(&**file).count(), 1, "{report}");
    }
}
