use lstm_core::{Bias, ModelLayer, ModelWeights, Result};

use crate::{
    Format, ModelFile, OpenOptions, open_bytes,
    test_files::{check, check_damaged, data},
};

/// Checks a file of the folder `tests/data/models`.
fn check_model(name: &str, format: Format) -> ModelFile {
    let stem = name.split('.').next().unwrap();
    check(&data(&format!("models/{name}")), &data(&format!("models/{stem}.expected.safetensors")), format)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(data(&format!("models/{name}"))).unwrap()
}

fn parse(text: &str) -> Result<ModelFile> {
    open_bytes(text.as_bytes(), &OpenOptions::default())
}

/// Asserts that a text is rejected with a message that contains `word`.
fn assert_rejected(text: &str, word: &str) {
    match parse(text) {
        Ok(_) => panic!("expected an error with {word}"),
        Err(error) => assert!(error.to_string().contains(word), "{error}: expected {word}"),
    }
}

/// Asserts that a file is rejected if `from` is replaced by `to`.
fn assert_edit_rejected(file: &str, from: &str, to: &str, word: &str) {
    assert!(file.contains(from), "{from}");
    assert_rejected(&file.replacen(from, to, 1), word);
}

fn metadata<'a>(model: &'a ModelWeights, key: &str) -> Option<&'a str> {
    model.metadata().get(key).map(String::as_str)
}

#[test]
fn guitarml_outputs_match_pytorch() {
    for (name, inputs, skip) in [("guitarml", 1, true), ("guitarml-knob", 2, true), ("guitarml-noskip", 1, false)] {
        let model = check_model(&format!("{name}.json"), Format::GuitarMl).weights;
        assert_eq!((model.input_size(), model.output_size(), model.skip()), (inputs, 1, skip));
        let names: Vec<_> = model.layers().iter().filter_map(ModelLayer::name).collect();
        assert_eq!(names, ["rec", "lin"]);
    }
}

#[test]
fn guitarml_options() {
    let file = text("guitarml.json");
    let edit = |from: &str, to: &str| {
        assert!(file.contains(from), "{from}");
        parse(&file.replacen(from, to, 1))
    };
    let with_rate = edit(r#""skip": 1"#, r#""skip": 1, "samplerate": 44100"#).unwrap().weights;
    assert_eq!(metadata(&with_rate, "sample_rate"), Some("44100"));
    assert!(edit(r#""skip": 1"#, r#""skip": true"#).unwrap().weights.skip());
    assert!(!edit(r#""skip": 1"#, r#""skip": false"#).unwrap().weights.skip());
    let described = edit(r#"{"model_data""#, r#"{"epoch": 3, "metadata": {"author": "me"}, "model_data""#).unwrap();
    assert_eq!(
        (metadata(&described.weights, "epoch"), metadata(&described.weights, "author")),
        (Some("3"), Some("me"))
    );

    let reject = |from: &str, to: &str, word: &str| assert_edit_rejected(&file, from, to, word);
    reject(r#""LSTM""#, r#""GRU""#, "`GRU`");
    reject(r#""SimpleRNN""#, r#""ConvSimpleRNN""#, "`ConvSimpleRNN`");
    reject(r#""hidden_size": 6"#, r#""hidden_size": 7"#, "[28, 1]");
    reject(r#""hidden_size": 6"#, r#""hidden_size": 0"#, "hidden_size");
    reject(r#""hidden_size": 6"#, r#""hidden_size": 6.5"#, "whole number");
    reject(r#""num_layers": 1"#, r#""num_layers": 2"#, "rec.weight_ih_l1");
    reject(r#""num_layers": 1"#, r#""num_layers": 1000000000000"#, "num_layers");
    reject(r#""output_size": 1"#, r#""output_size": 2"#, "lin.weight");
    reject(r#""skip": 1"#, r#""skip": 2"#, "`skip`");
    reject(r#""skip": 1"#, r#""skip": 1, "dropout": 0.5"#, "`dropout`");
    reject(r#""skip": 1, "#, "", "`skip`");
    reject(r#""bias_fl": true"#, r#""bias_fl": false"#, "lin.bias");
    reject(r#""lin.weight""#, r#""lin2.weight""#, "lin.weight");
    reject(r#""state_dict": {"#, r#""state_dict": {"extra.weight": [1], "#, "extra.weight");
    reject(r#""model_data""#, r#""layers": [], "model_data""#, "`layers`");
    reject(r#""skip": 1"#, r#""skip": 1, "skip": 0"#, "twice");
    let with_option = OpenOptions { coupled: true, ..OpenOptions::default() };
    assert!(open_bytes(file.as_bytes(), &with_option).unwrap_err().to_string().contains("omit the options"));
}

/// A GuitarML file of two layers, two outputs, and a linear layer without a bias.
#[test]
fn guitarml_stacks_and_heads_without_bias() {
    let model = parse(
        r#"{"model_data": {"model": "SimpleRNN", "input_size": 2, "skip": 2, "output_size": 2, "unit_type": "LSTM",
            "num_layers": 2, "hidden_size": 1, "bias_fl": false},
            "state_dict": {
              "rec.weight_ih_l0": [[1, 2], [3, 4], [5, 6], [7, 8]], "rec.weight_hh_l0": [[1], [2], [3], [4]],
              "rec.bias_ih_l0": [1, 2, 3, 4], "rec.bias_hh_l0": [5, 6, 7, 8],
              "rec.weight_ih_l1": [[1], [2], [3], [4]], "rec.weight_hh_l1": [[5], [6], [7], [8]],
              "rec.bias_ih_l1": [1, 2, 3, 4], "rec.bias_hh_l1": [5, 6, 7, 8], "lin.weight": [[1], [2]]}}"#,
    )
    .unwrap()
    .weights;
    let config = model.lstms().next().unwrap().config();
    assert_eq!((config.num_layers, config.bias, model.skip()), (2, Bias::Two, true));
    assert!(matches!(&model.layers()[1], ModelLayer::Linear { bias: None, .. }));
}

#[test]
fn aidax_outputs_match() {
    for name in ["aidax.json", "aidax-gain.aidax", "aidax-noskip.json"] {
        let model = check_model(name, Format::AidaX).weights;
        assert_eq!((metadata(&model, "sample_rate"), metadata(&model, "name")), (Some("48000"), Some("small")));
        assert_eq!(metadata(&model, "samplerate"), None);
        assert_eq!(model.skip(), name != "aidax-noskip.json");
    }
}

#[test]
fn aidax_self_test_finds_errors() {
    let file = text("aidax.json");
    let reject = |from: &str, to: &str, word: &str| assert_edit_rejected(&file, from, to, word);
    reject(r#""in_skip": 1"#, r#""in_skip": 0"#, "self-test failed");
    reject(r#""in_skip": 1"#, r#""in_skip": 2"#, "`in_skip`");
    reject(r#""in_gain": 0.0"#, r#""in_gain": 0.1"#, "self-test failed");
    reject(r#""out_gain": 0.0"#, r#""out_gain": 0.01"#, "self-test failed");
    reject(r#""out_gain": 0.0"#, r#""out_gain": 1e9"#, "output_gain");
    reject(r#""input_batch": ["#, r#""input_batch": [0.5, "#, "got 64 and 65");
    reject(r#""output_batch""#, r#""output_batches""#, "no `output_batch`");
    reject(r#""input_batch""#, r#""input_batches""#, "no `input_batch`");
    reject(r#""samplerate": "48000""#, r#""samplerate": "fast""#, "`fast`");
    reject(r#""samplerate": "48000""#, r#""samplerate": "48000", "sample_rate": 44100"#, "two different");
    // A file without a self-test opens.
    let start = file.find(r#", "input_batch""#).unwrap();
    parse(&format!("{}}}", &file[..start])).unwrap();
}

#[test]
fn nam_outputs_match() {
    for (name, layers) in [("nam", 1), ("nam-two", 2)] {
        let model = check_model(&format!("{name}.nam"), Format::Nam).weights;
        let ModelLayer::Lstm { weights, initial_state: Some(state), .. } = &model.layers()[0] else { panic!() };
        assert_eq!(weights.config().num_layers, layers);
        let mut expected = lstm_core::StateDict::open(data(&format!("models/{name}.expected.safetensors"))).unwrap();
        for (part, name) in [(&state.h, "state.h"), (&state.c, "state.c")] {
            let want = expected.take_f64(name).unwrap().mapv(|v| v as f32);
            assert_eq!(part.view().into_dyn(), want);
        }
        let keys = ["sample_rate", "gear_type", "version"];
        assert_eq!(keys.map(|key| metadata(&model, key)), [Some("48000"), Some("amp"), Some("0.5.4")]);
    }
}

#[test]
fn nam_rejections() {
    let file = text("nam.nam");
    let reject = |from: &str, to: &str, word: &str| assert_edit_rejected(&file, from, to, word);
    reject(r#""LSTM""#, r#""WaveNet""#, "`WaveNet`, a convolutional network");
    reject(r#""LSTM""#, r#""SlimmableContainer""#, "several models");
    reject(r#""0.5.4""#, r#""0.4.0""#, "`0.4.0`");
    reject(r#""0.5.4""#, r#""1.5.4""#, "`1.5.4`");
    reject(
        r#""weights": ["#,
        r#""weights": [0.5, "#,
        "expected 156 numbers for 1 layers of hidden size 5, 1 inputs and 1 outputs, got 157",
    );
    reject(r#""weights": ["#, r#""weights": [1e39, "#, "fit in f32");
    reject(r#""hidden_size": 5"#, r#""hidden_size": 6"#, "expected 211 numbers");
    reject(r#""hidden_size": 5"#, r#""hidden_size": 900000000000"#, "more than fit in memory");
    reject(r#""num_layers": 1"#, r#""num_layers": 0"#, "0 layers");
    reject(r#""num_layers": 1"#, r#""num_layers": 1, "out_channels": 2"#, "2 outputs");
    reject(r#""num_layers": 1"#, r#""num_layers": 1, "in_channels": 2"#, "channels");
    reject(r#""num_layers": 1"#, r#""num_layers": 1, "activation": "relu""#, "`activation`");
    reject(r#""config""#, r#""submodels": [], "config""#, "`submodels`");
    assert_rejected(
        r#"{"version": "0.5.0", "architecture": "LSTM", "weights": [1], "config": {"input_size": 1, "hidden_size": 0,
            "num_layers": 1000000000}}"#,
        "num_layers",
    );
}

const DENSE: &str = r#"{"type": "dense", "activation": "", "shape": [null, null, 1], "weights": [[[7], [8]], [9]]}"#;

/// An LSTM layer of hidden size 2. The element at `[row, column]` of its matrices is `10 * row + column`.
fn lstm_layer(inputs: usize) -> String {
    let row = |first: usize| {
        let values: Vec<_> = (first..first + 8).map(|v| v.to_string()).collect();
        format!("[{}]", values.join(", "))
    };
    let rows = |n: usize| format!("[{}]", (0..n).map(|k| row(10 * k)).collect::<Vec<_>>().join(", "));
    let weights = format!("[{}, {}, {}]", rows(inputs), rows(2), row(0));
    format!(r#"{{"type": "lstm", "activation": "tanh", "shape": [null, null, 2], "weights": {weights}}}"#)
}

/// An RTNeural file with one input feature and these layers.
fn rtneural(layers: &[&str]) -> String {
    format!(r#"{{"in_shape": [null, null, 1], "layers": [{}]}}"#, layers.join(", "))
}

#[test]
fn rtneural_layers() {
    let activation = r#"{"type": "activation", "activation": "relu", "shape": [null, null, 1], "weights": []}"#;
    let before = r#"{"type": "time-distributed-dense", "activation": "sigmoid", "shape": [1, 2, 2], "weights": [[[3, 4]], [5, 6]]}"#;
    let text = rtneural(&[before, &lstm_layer(2), DENSE, activation]);
    let model = parse(&text).unwrap().weights;
    let kinds: Vec<_> = model.layers().iter().map(ModelLayer::kind).collect();
    assert_eq!(kinds, ["linear", "activation", "lstm", "linear", "activation"]);
    let ModelLayer::Lstm { weights, .. } = &model.layers()[2] else { panic!() };
    let weight = weights.layers()[0].get(lstm_core::Param::WeightIh).unwrap();
    assert_eq!((weight.shape(), weight[[3, 1]]), (&[8, 2][..], 13.0));
    let ModelLayer::Linear { weight, bias, .. } = &model.layers()[3] else { panic!() };
    assert_eq!((weight, bias), (&ndarray::array![[7.0, 8.0]], &Some(ndarray::array![9.0])));
    // Layers of different sizes, a nested shape, no bias, metadata.
    let nested = text
        .replace(
            r#""in_shape": [null, null, 1]"#,
            r#""in_shape": [[null, null, 1]], "version": 2, "metadata": {"a": {"b": 1}}"#,
        )
        .replace("[[3, 4]], [5, 6]", "[[3, 4]]");
    let model = parse(&nested).unwrap().weights;
    assert_eq!((metadata(&model, "version"), metadata(&model, "a.b")), (Some("2"), Some("1")));
    assert!(matches!(&model.layers()[0], ModelLayer::Linear { bias: None, .. }));
}

#[test]
fn rtneural_rejections() {
    let reject = |layers: &[&str], word: &str| assert_rejected(&rtneural(layers), word);
    let (one, two) = (lstm_layer(1), lstm_layer(2));
    for kind in ["gru", "conv1d", "conv2d", "prelu", "batchnorm"] {
        reject(&[&one.replace("lstm", kind)], &format!("layer 0 ({kind})"));
    }
    reject(&[&one, r#"{"type": "unknown", "weights": []}"#], "did not know it");
    reject(&[&one.replace("tanh", "relu")], "`relu`");
    reject(&[&one, &DENSE.replace(r#""activation": """#, r#""activation": "elu""#)], "`elu`");
    let softmax = DENSE.replace(r#""activation": """#, r#""activation": "softmax""#);
    reject(&[&one, &softmax, &softmax], "layer 2 (dense): the kernel: expected 1 x 1");
    reject(&[&softmax.replace("[[7], [8]]", "[[7]]"), &one], "softmax is only possible as the last layer");
    reject(&[&two], "1 x 8");
    reject(&[&one, &two.replace("null, 2]", "null, 3]")], "2 x 12");
    reject(&[&one.replace("[[0, 1,", "[[1e60, 1,")], "fit in f32");
    reject(&[&one.replace("null, 2]", "2, null]")], "ends with a size");
    reject(&[&one.replace("null, 2]", "null, 1000000000000000]")], "ends with a size");
    reject(&[&one.replace(r#""shape""#, r#""dropout": 0.5, "shape""#)], "`dropout`");
    reject(&[&one, &DENSE.replace("[9]]", "[9], [1]]")], "too many");
    reject(&[&one, &DENSE.replace("[9]]", "[9, 1]]")], "expected 1 numbers, got 2");
    reject(
        &[&one, r#"{"type": "activation", "activation": "tanh", "shape": [3], "weights": []}"#],
        "expected 2 features",
    );
    reject(&[], "none");
    reject(&[&DENSE.replace("[[7], [8]]", "[[7]]")], "expected an LSTM layer, found none");
    assert_rejected(r#"{"in_shape": [1], "layers": [], "extra": [1]}"#, "found none");
    assert_rejected(&rtneural(&[&one]).replace(r#""in_shape""#, r#""extra": [1], "in_shape""#), "`extra`");
}

#[test]
fn unknown_keys_with_an_effect_are_errors() {
    let rtneural = rtneural(&[&lstm_layer(1), DENSE]);
    let files = [text("guitarml.json"), text("aidax.json"), text("nam.nam"), rtneural];
    for file in files {
        let with = |entry: &str| file.replacen('{', &format!("{{{entry}, "), 1);
        for key in ["output_gain", "inputSkip", "activation", "Scale", "normalize", "out_bias"] {
            for value in ["6", r#""x""#, "true"] {
                assert_rejected(&with(&format!(r#""{key}": {value}"#)), &format!("unknown key `{key}`"));
            }
            parse(&with(&format!(r#""{key}": null"#))).unwrap();
        }
        let described = parse(&with(r#""author": "me""#)).unwrap().weights;
        assert_eq!(metadata(&described, "author"), Some("me"));
    }
    // Neural Amp Modeler's description of a model.
    let model = parse(&text("nam.nam").replacen(r#""metadata": {"#, r#""metadata": {"gain": 0.5, "#, 1)).unwrap();
    assert_eq!(metadata(&model.weights, "gain"), Some("0.5"));
}

#[test]
fn damaged_files_are_errors() {
    for name in ["guitarml-noskip.json", "aidax-noskip.json", "nam.nam"] {
        check_damaged(text(name).as_bytes(), 7, 0);
    }
    for key in ["model_data", "layers", "architecture"] {
        let deep = format!(r#"{{"state_dict": 1, "{key}": {}"#, "[".repeat(200_000));
        assert!(parse(&deep).is_err());
        let deep = format!(r#"{{"state_dict": 1, "{key}": {}"#, "{\"a\":".repeat(200_000));
        assert!(parse(&deep).is_err());
    }
}
