use std::{
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use lstm_core::{Activation, Direction, ModelLayer, ModelWeights, Result};

use super::{Builder, Store, config};
use crate::{
    Format, ModelFile, OpenOptions,
    json::Object,
    open_bytes,
    test_files::{check, check_damaged, data},
};

/// A file of the folder that `make.py` writes.
fn local(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/keras").join(name)
}

/// Checks the `.keras` file and the `.h5` file of a model, and that both hold the same one.
fn check_both(path: impl Fn(&str) -> PathBuf, expected: &str) -> ModelWeights {
    let [archive, hdf5] = ["keras", "h5"].map(|extension| check(&path(extension), &path(expected), Format::Keras));
    assert_eq!(archive.weights, hdf5.weights);
    assert_eq!(archive.dtypes, ["float32"]);
    archive.weights
}

fn kinds(model: &ModelWeights) -> Vec<&str> {
    model.layers().iter().map(ModelLayer::kind).collect()
}

fn names(model: &ModelWeights) -> Vec<&str> {
    model.layers().iter().filter_map(ModelLayer::name).collect()
}

#[test]
fn reads_shared_models() {
    let check =
        |name: &str| check_both(|extension| data(&format!("models/{name}.{extension}")), "expected.safetensors");
    assert_eq!(kinds(&check("keras-two-sizes")), ["lstm", "lstm", "linear"]);
    let last = ["lstm", "lstm", "final_state", "linear", "activation", "linear", "activation"];
    assert_eq!(kinds(&check("keras-last")), last);
    assert_eq!(kinds(&check("keras-embedding")), ["embedding", "lstm", "final_state", "linear", "activation"]);
    assert_eq!(kinds(&check("keras-nobias")), ["lstm", "dropout", "linear", "activation"]);
}

#[test]
fn reads_models_of_this_crate() {
    let check = |name: &str| check_both(|extension| local(&format!("{name}.{extension}")), "safetensors");
    let functional = check("functional");
    assert_eq!(functional.metadata()["keras_version"], "3.15.1");
    let hard_sigmoid = Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
    assert_eq!(functional.layers().last(), Some(&ModelLayer::Activation(hard_sigmoid)));
    assert_eq!(names(&functional), ["both", "both_sum", "time_distributed", "lstm_1", "dense_1"]);
    let backwards = check("backwards");
    let directions: Vec<_> = backwards.lstms().map(|lstm| lstm.config().direction).collect();
    assert_eq!(directions, [Direction::Bidirectional, Direction::Reverse]);
    assert_eq!(backwards.layers().last(), Some(&ModelLayer::Activation(Activation::LogSoftmax)));
    let twice = check("backwards-twice");
    let directions: Vec<_> = twice.lstms().map(|lstm| lstm.config().direction).collect();
    assert_eq!(directions, [Direction::Reverse, Direction::Forward]);
    assert_eq!(kinds(&check("bidirectional-last")), ["linear", "activation", "lstm", "final_state", "linear"]);
    assert_eq!(kinds(&check("deferred")), ["linear", "lstm", "final_state", "linear"]);
    let nested = check("nested");
    assert_eq!(kinds(&nested), ["embedding", "lstm", "linear", "lstm", "linear", "activation"]);
}

#[test]
fn one_step_and_cudnn() {
    let model = check_both(|extension| local(&format!("one-step.{extension}")), "safetensors");
    assert_eq!(kinds(&model), ["lstm", "last_step", "linear"]);
    // The model is for one time step; others would have wrong results.
    let file = crate::open(local("one-step.h5"), &OpenOptions::default()).unwrap();
    assert_eq!(file.steps, Some(1));
    // A saved file says it too.
    let saved = crate::open_bytes(&file.weights.to_bytes().unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!((saved.steps, &saved.weights), (Some(1), &file.weights));
    let invalid = [("lstm.steps".to_owned(), "0".to_owned())].into();
    let invalid = file.weights.clone().with_metadata(invalid).to_bytes().unwrap();
    let error = crate::open_bytes(&invalid, &OpenOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("metadata `lstm.steps`: expected a number of time steps of at least 1, got \"0\""),
        "{error}"
    );
    assert_eq!(crate::open(local("cudnn.h5"), &OpenOptions::default()).unwrap().steps, None);
    // The parameters of CuDNNLSTM are in another order, and its bias is in two parts.
    let model = check(&local("cudnn.h5"), &local("cudnn.safetensors"), Format::Keras).weights;
    assert_eq!(kinds(&model), ["lstm", "linear"]);
}

/// Reads an architecture without weights. Each error comes before a parameter is read, or is that of the first one.
fn architecture(json: &str, is_keras_2: bool) -> std::result::Result<(), String> {
    let mut builder = Builder::new(Store::empty(), is_keras_2);
    for layer in config::chain(Object::parse(json.as_bytes())?)? {
        builder.add(layer)?;
    }
    builder.finish().map(drop)
}

fn sequential(layers: &str) -> String {
    let input = r#"{"class_name": "InputLayer", "config": {"name": "input", "batch_shape": [null, null, 3]}}"#;
    format!(r#"{{"class_name": "Sequential", "config": {{"name": "m", "layers": [{input}, {layers}]}}}}"#)
}

fn layer(class: &str, options: &str) -> String {
    format!(r#"{{"class_name": "{class}", "config": {{"name": "the_layer"{options}}}}}"#)
}

#[test]
fn rejects_unsupported_layers() {
    let reject = |class: &str, options: &str, word: &str| {
        let error = architecture(&sequential(&layer(class, options)), false).unwrap_err();
        assert!(error.contains(word) && error.contains(&format!("layer `the_layer` ({class})")), "{error}: {word}");
    };
    for class in ["GRU", "SimpleRNN", "RNN"] {
        reject(class, "", "another kind");
    }
    for class in ["Conv1D", "LayerNormalization", "BatchNormalization", "Attention", "Lambda", "LeakyReLU"] {
        reject(class, "", "can't be opened");
    }
    reject("Masking", r#", "mask_value": 0.0"#, "skips time steps");
    reject("Embedding", r#", "mask_zero": true, "input_dim": 3, "output_dim": 3"#, "`mask_zero`");
    reject("Flatten", "", "joins the time steps");
    for target in ["[3]", "[1, 3]", "[3, 1]", "[-1]", "[2, 2, 3]"] {
        reject("Reshape", &format!(r#", "target_shape": {target}"#), "changes the order of values");
    }
    reject("LSTM", r#", "units": 4, "activation": "elu""#, "`elu`");
    reject("LSTM", r#", "units": 4, "time_major": true"#, "time_major");
    reject("LSTM", r#", "units": 4, "forget_gate": 1"#, "unknown key `forget_gate`");
    reject("LSTM", r#", "units": 4.5"#, "whole number");
    reject("LSTM", "", "`units`");
    reject("LSTM", r#", "units": 900000000000"#, "hidden_size");
    reject("LSTM", r#", "units": 4, "dtype": "string""#, "`string`");
    reject("LSTM", r#", "units": 4"#, "the dataset `layers/lstm/cell/vars/0` is missing");
    reject("Dense", r#", "units": 4, "activation": "gelu""#, "the dataset");
    reject("Activation", r#", "activation": "gelu""#, "`gelu`");
    reject("Activation", r#", "activation": {"class_name": "LeakyReLU", "config": {}}"#, "`LeakyReLU`");
    reject("ReLU", r#", "max_value": 6.0"#, "max_value");
    reject("ReLU", r#", "negative_slope": 0.1"#, "negative_slope");
    reject("Softmax", r#", "axis": 1"#, "axis");
    reject("Dense", r#", "units": 4, "quantization_config": {"a": 1}"#, "quantized");
    let lstm = |options: &str| layer("LSTM", &format!(r#", "units": 2, {options}"#));
    let both = |merge: &str, options: &str| format!(r#", "merge_mode": {merge}, "layer": {}"#, lstm(options));
    reject("Bidirectional", &both(r#""mul""#, r#""use_bias": true"#), "`mul`");
    reject("Bidirectional", &both("null", r#""use_bias": true"#), "got none");
    reject("Bidirectional", &both(r#""sum""#, r#""go_backwards": true"#), "`go_backwards`: expected false");
    let other = format!(
        r#"{}, "backward_layer": {}"#,
        both(r#""sum""#, r#""use_bias": true"#),
        lstm(r#""use_bias": false, "go_backwards": true"#)
    );
    reject("Bidirectional", &other, "options of the forward layer");
    let gru = both(r#""sum""#, r#""use_bias": true"#).replace("LSTM", "GRU");
    reject("Bidirectional", &gru, "expected an LSTM");
    reject("TimeDistributed", &format!(r#", "layer": {}"#, lstm(r#""use_bias": true"#)), "expected a Dense layer");
    // A layer that reads one step only.
    let after_step = sequential(&layer("Dense", "")).replace("[null, null, 3]", "[null, 3]").replace("Dense", "LSTM");
    assert!(
        architecture(&after_step.replace(r#""the_layer""#, r#""l", "units": 2"#), false)
            .unwrap_err()
            .contains("expected a sequence")
    );
}

/// A user's class may have the name of one of Keras's. Only `module` and `registered_name` tell.
#[test]
fn rejects_users_classes() {
    let origin = |json: &str, module: &str, registered: &str| {
        let keys = format!(r#", "module": {module}, "registered_name": {registered}, "config""#);
        architecture(&json.replacen(r#", "config""#, &keys, 1), false)
    };
    let of_user = [("null", r#""my>X""#), ("null", r#""LSTM""#), (r#""mine.layers""#, r#""LSTM""#), ("3", "null")];
    let of_user = of_user.into_iter().chain([(r#""keras_hub.layers""#, "null"), (r#""keras.layers""#, r#""my>X""#)]);
    for (module, registered) in of_user {
        let reject = |json: &str, what: &str| {
            let error = origin(json, module, registered).unwrap_err();
            assert!(error.contains(&format!("{what}: expected a class of Keras")), "{module}: {error}");
        };
        reject(&sequential(&layer("LSTM", "")), "the model");
        reject(r#"{"class_name": "Functional", "config": {}}"#, "the model");
    }
    let keys = r#", "module": null, "registered_name": "my>X", "config""#;
    for class in ["LSTM", "Dense", "Dropout", "Activation", "Bidirectional", "Sequential", "InputLayer"] {
        let text = sequential(&layer(class, "").replace(r#", "config""#, keys));
        let error = architecture(&text, false).unwrap_err();
        assert!(error.contains(&format!("layer `the_layer` ({class}): expected a class of Keras")), "{error}");
        assert!(error.contains("`my>X`"), "{error}");
    }
    for (outer, class) in [("Bidirectional", "LSTM"), ("TimeDistributed", "Dense")] {
        let inner = layer(class, "").replace(r#", "config""#, keys);
        let options = if outer == "Bidirectional" { r#", "merge_mode": "sum""# } else { "" };
        let text = sequential(&layer(outer, &format!(r#"{options}, "layer": {inner}"#)));
        let error = architecture(&text, false).unwrap_err();
        assert!(error.contains(&format!("layer `the_layer` ({class}): expected a class of Keras")), "{error}");
    }
    // `.h5` files have no more than the name of a registered class.
    let error = architecture(&sequential(&layer("my>LSTM", "")), false).unwrap_err();
    assert!(error.contains("layer `the_layer` (my>LSTM): expected a class of Keras"), "{error}");
    // Classes of Keras, whatever its version.
    let without_lstm = sequential(&layer("Dropout", r#", "rate": 0.5"#));
    for module in ["keras", "keras.layers", "keras.src.models.sequential", "tf_keras.layers"] {
        for registered in ["null", r#""Sequential""#] {
            // The model itself, and a model that is a layer.
            let nested = sequential(&without_lstm.replacen(
                r#", "config""#,
                &format!(r#", "module": "{module}", "registered_name": {registered}, "config""#),
                1,
            ));
            for text in [&without_lstm, &nested] {
                let error = origin(text, &format!("{module:?}"), registered).unwrap_err();
                assert!(error.contains("found none"), "{error}");
            }
        }
    }
}

/// A user's function may have the name of one of Keras's, too.
#[test]
fn rejects_users_activation_functions() {
    let function = |module: &str, registered: &str, name: &str| {
        let keys = format!(r#""module": {module}, "registered_name": {registered}, "config": "{name}""#);
        let activation = format!(r#", "units": 2, "activation": {{"class_name": "function", {keys}}}"#);
        ["Activation", "LSTM"].map(|class| architecture(&sequential(&layer(class, &activation)), true).unwrap_err())
    };
    for (module, registered, name) in [
        (r#""builtins""#, r#""function""#, "my>tanh"),
        (r#""mine""#, r#""function""#, "tanh"),
        (r#""builtins""#, r#""my>tanh""#, "tanh"),
        ("null", r#""tanh""#, "tanh"),
    ] {
        for error in function(module, registered, name) {
            assert!(error.contains(&format!("the user's function `{name}`")), "{error}");
        }
    }
    for (module, registered) in [(r#""builtins""#, r#""function""#), (r#""keras.activations""#, "null")] {
        let [activation, lstm] = function(module, registered, "tanh");
        assert!(!activation.contains("user's") && !lstm.contains("user's"), "{activation}; {lstm}");
    }
    let error = architecture(&sequential(&layer("Activation", r#", "activation": "my>tanh""#)), false).unwrap_err();
    assert!(error.contains("the user's function `my>tanh`"), "{error}");
}

#[test]
fn rejects_other_graphs() {
    let reject = |json: &str, word: &str| {
        let error = architecture(json, false).unwrap_err();
        assert!(error.contains(word), "{error}: expected {word}");
    };
    reject(r#"{"class_name": "MyModel", "config": {}}"#, "`MyModel`");
    reject(&sequential(&layer("Dropout", r#", "rate": 0.5"#)), "expected an LSTM layer, found none");
    let node = |class: &str, name: &str, inputs: &str| {
        format!(
            r#"{{"class_name": "{class}", "name": "{name}", "config": {{"name": "{name}"}}, "inbound_nodes": {inputs}}}"#
        )
    };
    let model = |layers: &[String], outputs: &str| {
        format!(
            r#"{{"class_name": "Functional", "config": {{"layers": [{}], "input_layers": [["in", 0, 0]],
                "output_layers": {outputs}}}}}"#,
            layers.join(", ")
        )
    };
    let input = node("InputLayer", "in", "[]");
    let call = |name: &str, arguments: &str| format!(r#"[[["{name}", 0, 0, {{{arguments}}}]]]"#);
    let out = r#"[["a", 0, 0]]"#;
    reject(&model(&[input.clone(), node("Flatten", "a", &call("in", ""))], out), "layer `a` (Flatten)");
    reject(&model(&[input.clone(), node("Flatten", "a", &call("in", ""))], r#"["a", 0, 0]"#), "layer `a` (Flatten)");
    reject(
        &model(&[input.clone(), node("LSTM", "a", &call("in", r#""initial_state": ["x", 0, 0]"#))], out),
        "`initial_state`",
    );
    reject(
        &model(&[input.clone(), node("LSTM", "a", &call("in", ""))], r#"[["a", 0, 1]]"#),
        "the state of the layer `a`",
    );
    reject(
        &model(&[input.clone(), node("LSTM", "a", &call("in", ""))], r#"[["a", 0, 0], ["in", 0, 0]]"#),
        "one output, got 2: `a`, `in`; make a model of the chain",
    );
    reject(
        &model(&[input.clone(), node("Add", "a", r#"[[["in", 0, 0, {}], ["in", 0, 0, {}]]]"#)], out),
        "the layer `a` (Add): it has several inputs",
    );
    reject(
        &model(&[input.clone(), node("LSTM", "a", r#"[[["in", 0, 0, {}]], [["in", 0, 0, {}]]]"#)], out),
        "several times",
    );
    reject(&model(&[input.clone(), node("LSTM", "a", &call("a", ""))], out), "occurs twice");
    reject(&model(&[input.clone(), node("LSTM", "a", &call("b", ""))], out), "`b` is missing");
    reject(&model(&[input.clone(), node("LSTM", "a", "[]")], out), "not at the input");
    let extra = node("LSTM", "extra", &call("in", ""));
    reject(&model(&[input.clone(), node("LSTM", "a", &call("in", "")), extra], out), "`extra` (LSTM)");
    let keras_3 = r#"[{"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": ["in", 0, 0]}}],
                      "kwargs": {"training": true}}]"#;
    reject(&model(&[input.clone(), node("Flatten", "a", keras_3)], out), "`training`");
    let list = keras_3.replace(r#""args": [{"#, r#""args": [[{"#).replace("}}],", "}}]],");
    reject(&model(&[input.clone(), node("Add", "a", &list)], out), "the layer `a` (Add): it has several inputs");
    reject(&model(&[input, node("Flatten", "a", &keras_3.replace("true", "false"))], out), "layer `a` (Flatten)");
}

#[test]
fn keras_2_models() {
    let check = |name: &str| {
        let model = check_both(|extension| local(&format!("keras-2-{name}.{extension}")), "safetensors");
        assert_eq!(model.metadata()["keras_version"], "2.15.0");
        model
    };
    let functional = check("functional");
    let activations: Vec<_> = functional.lstms().map(|lstm| lstm.config().activations.to_string()).collect();
    assert_eq!(activations[1], "hard_sigmoid(0.2,0.5)/tanh/tanh");
    let hard_sigmoid = Activation::HardSigmoid { alpha: 0.2, beta: 0.5 };
    assert_eq!(functional.layers().last(), Some(&ModelLayer::Activation(hard_sigmoid)));
    let directions: Vec<_> = check("sequential").lstms().map(|lstm| lstm.config().direction).collect();
    assert_eq!(directions, [Direction::Forward, Direction::Reverse, Direction::Forward]);
    assert_eq!(kinds(&check("no-input")), ["lstm", "lstm", "final_state", "linear"]);
}

/// Not the functions of Keras 3's defaults.
#[test]
fn gate_activations() {
    let model = check_both(|extension| local(&format!("gates.{extension}")), "safetensors");
    let activations: Vec<_> = model.lstms().map(|lstm| lstm.config().activations.to_string()).collect();
    assert_eq!(activations, ["hard_sigmoid(0.16666667,0.5)/relu/relu", "sigmoid/sigmoid/sigmoid"]);
}

/// Keras 2 has other parameters of the hard sigmoid.
#[test]
fn hard_sigmoid_of_keras_2() {
    let mut builder = Builder::new(Store::empty(), true);
    let text = sequential(&layer("Activation", r#", "activation": "hard_sigmoid""#));
    for layer in config::chain(Object::parse(text.as_bytes()).unwrap()).unwrap() {
        builder.add(layer).unwrap();
    }
    let expected = Activation::HardSigmoid { alpha: 0.2, beta: 0.5 };
    assert_eq!(builder.into_layers(), [ModelLayer::Activation(expected)]);
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn open(bytes: &[u8]) -> Result<ModelFile> {
    open_bytes(bytes, &OpenOptions::default())
}

fn assert_rejected(bytes: &[u8], word: &str) {
    match open(bytes) {
        Ok(_) => panic!("expected an error with {word}"),
        Err(error) => assert!(error.to_string().contains(word), "{error}: expected {word}"),
    }
}

/// A zip archive with these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The three files in a `.keras` file.
fn unpack(bytes: &[u8]) -> [Vec<u8>; 3] {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    ["metadata.json", "config.json", "model.weights.h5"].map(|name| {
        let mut unpacked = Vec::new();
        std::io::copy(&mut archive.by_name(name).unwrap(), &mut unpacked).unwrap();
        unpacked
    })
}

#[test]
fn edited_archives() {
    let [metadata, config, weights] = unpack(&read(&local("functional.keras")));
    let pack = |metadata: &[u8], config: &[u8], weights: &[u8]| {
        archive(&[("metadata.json", metadata), ("config.json", config), ("model.weights.h5", weights)])
    };
    open(&pack(&metadata, &config, &weights)).unwrap();
    // The number of features is in the kernel as well.
    let text = String::from_utf8(config.clone()).unwrap().replacen("[null, null, 3]", "[null, null, null]", 1);
    assert_eq!(open(&pack(&metadata, text.as_bytes(), &weights)).unwrap().weights.input_size(), 3);
    let edit = |from: &str, to: &str, word: &str| {
        let text = String::from_utf8(config.clone()).unwrap();
        assert!(text.contains(from), "{from}");
        assert_rejected(&pack(&metadata, text.replace(from, to).as_bytes(), &weights), word);
    };
    edit(r#""units": 5"#, r#""units": 6"#, "expected the shape [3, 24], got [3, 20]");
    edit(r#""use_bias": true"#, r#""use_bias": false"#, "5 datasets are not part of the model");
    edit("lstm_1", "lstm_9", "those of `lstm_1`");
    assert_rejected(&pack(br#"{"keras_version": "1.2"}"#, &config, &weights), "`1.2`");
    assert_rejected(&pack(&metadata, b"[", &weights), "config.json");
    assert_rejected(&pack(&metadata, "[".repeat(1 << 20).as_bytes(), &weights), "config.json");
    assert_rejected(&pack(&metadata, &config, b"\x89HDF\r\n\x1a\n"), "HDF5");
    assert_rejected(&archive(&[("config.json", b"{}"), ("model.weights.h5", b"")]), "metadata.json");
    // A megabyte of a few bytes.
    let bomb = vec![b' '; 256 << 20];
    let bomb = pack(&metadata, &bomb, &weights);
    assert!(bomb.len() < 1 << 20);
    assert_rejected(&bomb, "times the size");
}

#[test]
fn files_without_an_architecture() {
    assert_rejected(&read(&local("only.weights.h5")), "model.save(\"model.keras\")");
    let options = OpenOptions { names: vec!["lstm".into()], ..OpenOptions::default() };
    let error = open_bytes(&read(&local("functional.h5")), &options).unwrap_err().to_string();
    assert!(error.contains("omit the options"), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    check_damaged(&read(&data("models/keras-nobias.h5")), 53, 1024);
    check_damaged(&read(&data("models/keras-nobias.keras")), 53, 0);
}
