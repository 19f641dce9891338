//! Round trips through ONNX files: weights stay bit-identical, and options that ONNX can't express are errors.

use lstm_core::{
    Activation, Bias, CellKind, Direction, Error, HostState, Init, LstmConfig, ModelLayer, ModelWeights, Param,
    Weights,
    ndarray::{Array1, Array2, Array3},
};
use lstm_formats::{
    OnnxGraph, OnnxModel, OnnxWriter, OpenOptions,
    onnx::{OnnxInputKind, OnnxOutputKind, model_to_bytes},
};
use proptest::prelude::*;

fn random_weights(config: LstmConfig) -> Weights {
    Weights::init(config, &Init::default(), 11).unwrap()
}

/// The only LSTM of a graph.
fn lstm(graph: &OnnxGraph) -> &Weights {
    let layers: Vec<_> = graph.weights().lstms().collect();
    assert_eq!((layers.len(), graph.weights().layers().len()), (1, 1));
    layers[0]
}

/// Reads a whole graph.
fn read(bytes: &[u8]) -> OnnxGraph {
    OnnxModel::from_bytes(bytes).unwrap().graph(&OpenOptions::default()).unwrap()
}

/// Writes weights to a file and reads them back.
fn round_trip(weights: &Weights) -> Weights {
    lstm(&read(&OnnxWriter::new(weights).to_bytes().unwrap())).clone()
}

/// Configurations that a round trip does not change.
fn configs() -> impl Strategy<Value = LstmConfig> {
    let sizes = (1..6usize, 1..6usize, 1..4usize);
    let direction = prop::sample::select(vec![Direction::Forward, Direction::Reverse, Direction::Bidirectional]);
    let cell = prop::sample::select(vec![CellKind::Fused, CellKind::PeepholeDiagonal]);
    let bias = prop::sample::select(vec![Bias::None, Bias::Two]);
    let options = (prop::option::of(0.1f32..9.0), any::<bool>(), prop::option::of(0.01f32..0.99));
    (sizes, direction, cell, bias, options).prop_map(|((input, hidden, layers), direction, cell, bias, options)| {
        let config = LstmConfig::new(input, hidden).layers(layers).direction(direction).cell(cell).bias(bias);
        let (clip, coupled, dropout) = options;
        let dropout = dropout.filter(|_| layers > 1).unwrap_or_default();
        let mut config = config.dropout(dropout);
        (config.clip, config.coupled) = (clip, coupled);
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trip_is_bit_exact(config in configs(), state in any::<bool>(), lengths in any::<bool>()) {
        let weights = random_weights(config);
        let mut writer = OnnxWriter::new(&weights);
        if state {
            writer = writer.initial_state();
        }
        if lengths {
            writer = writer.lengths();
        }
        let bytes = writer.to_bytes().unwrap();
        prop_assert_eq!(&bytes, &writer.to_bytes().unwrap());
        let onnx = read(&bytes);
        prop_assert_eq!(lstm(&onnx), &weights);
        let is_state = |kind: &OnnxInputKind| matches!(kind, OnnxInputKind::State(_));
        prop_assert_eq!(onnx.inputs().iter().any(|input| is_state(&input.kind)), state);
        prop_assert_eq!(onnx.inputs().iter().any(|input| input.kind == OnnxInputKind::Lengths), lengths);
        prop_assert_eq!(onnx.outputs().len(), 3);
        prop_assert!(onnx.ignored_nodes().is_empty());
    }
}

#[test]
fn ports_describe_layout_of_inputs_and_outputs() {
    let weights = random_weights(LstmConfig::new(3, 5).layers(2).bidirectional());
    let bytes = OnnxWriter::new(&weights).initial_state().lengths().to_bytes().unwrap();
    let onnx = read(&bytes);
    let kinds: Vec<_> = onnx.inputs().iter().map(|input| (input.name.as_str(), &input.kind)).collect();
    assert!(matches!(
        kinds[..],
        [
            ("X", OnnxInputKind::Features),
            ("sequence_lens", OnnxInputKind::Lengths),
            ("initial_h", OnnxInputKind::State(_)),
            ("initial_c", OnnxInputKind::State(_)),
        ]
    ));
    assert_eq!(onnx.inputs()[0].shape, [None, None, Some(3)]);
    let OnnxInputKind::State(rows) = &onnx.inputs()[2].kind else { panic!("{kinds:?}") };
    assert_eq!((rows.len(), rows[0].lstm, rows[0].is_c, rows[0].rows.clone()), (1, 0, false, 0..4));
    let kinds: Vec<_> = onnx.outputs().iter().map(|output| (output.name.as_str(), &output.kind)).collect();
    assert!(matches!(
        kinds[..],
        [("Y", OnnxOutputKind::Outputs), ("Y_h", OnnxOutputKind::State(_)), ("Y_c", OnnxOutputKind::State(_)),]
    ));
    // The state has fewer rows than the output.
    let state = lstm_core::HostState::zeros(&LstmConfig::new(3, 5), 1).unwrap();
    let y = Array3::zeros((1, 1, 10));
    assert!(onnx.to_outputs(&Default::default(), y.view(), &[state]).is_err());
}

#[test]
fn unfused_cell_and_single_bias_become_equivalent_options() {
    let weights = random_weights(LstmConfig::new(3, 5).cell(CellKind::Unfused).bias(Bias::One).bidirectional());
    let back = round_trip(&weights);
    assert_eq!((back.config().cell, back.config().bias), (CellKind::Fused, Bias::Two));
    for (layer, back) in weights.layers().iter().zip(back.layers()) {
        assert_eq!(
            (layer.get(Param::WeightHh), layer.bias().unwrap()),
            (back.get(Param::WeightHh), back.bias().unwrap())
        );
        assert!(back.get(Param::BiasHh).unwrap().iter().all(|v| v.to_bits() == 0));
    }
}

#[test]
fn rejects_options_that_onnx_cannot_express() {
    for (config, expected) in [
        (LstmConfig::new(3, 5).cell(CellKind::PeepholeDense), "cell"),
        (LstmConfig::new(3, 5).proj_size(2), "proj_size"),
    ] {
        let result = OnnxWriter::new(&random_weights(config)).to_bytes();
        assert!(matches!(result, Err(Error::Config { option, .. }) if option == expected), "{expected}: {result:?}");
    }
}

#[test]
fn selects_nodes_by_name() {
    let weights = random_weights(LstmConfig::new(3, 5).layers(3));
    let model = OnnxModel::from_bytes(&OnnxWriter::new(&weights).to_bytes().unwrap()).unwrap();
    let named = |names: &[&str]| {
        let mut options = OpenOptions::default();
        options.names = names.iter().map(|&name| name.to_owned()).collect();
        model.graph(&options)
    };
    assert_eq!(model.lstm_nodes(), ["lstm_l0", "lstm_l1", "lstm_l2"]);
    let middle = named(&["lstm_l1"]).unwrap();
    assert_eq!(lstm(&middle).layers()[0].get(Param::WeightIh), weights.layers()[1].get(Param::WeightIh));
    for (node, is_ignored) in [("lstm_l0", true), ("lstm_l1", false), ("lstm_l2", true), ("all_Y_h", true)] {
        assert_eq!(middle.ignored_nodes().iter().any(|label| label.contains(node)), is_ignored, "{node}");
    }
    let two = named(&["lstm_l0", "lstm_l1"]).unwrap();
    assert_eq!(lstm(&two).layers(), &weights.layers()[..2]);
    // Without the layer between them, these are not stacked.
    let gap = named(&["lstm_l0", "lstm_l2"]).unwrap_err().to_string();
    assert!(gap.contains("lstm_l2") && gap.contains("not stacked"), "{gap}");
    let unknown = named(&["lstm"]).unwrap_err().to_string();
    assert!(unknown.contains("lstm_l0") && unknown.contains("got `lstm`"), "{unknown}");
    for (names, words) in [
        (&["lstm_l1", "lstm_l1"][..], "got `lstm_l1` followed by `lstm_l1`"),
        (&["lstm_l0", "lstm_l2", "lstm_l1"], "got `lstm_l2` followed by `lstm_l1`"),
    ] {
        let error = named(names).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("each name once"), "{error}");
    }
    assert_eq!(model.tensor("R_l1").unwrap().shape(), [1, 20, 5]);
    assert!(matches!(model.tensor("head"), Err(Error::MissingTensor { .. })));
}

#[test]
fn whole_models_are_read_back_equal() {
    let lstm = |name: &str, config: LstmConfig, has_state: bool| {
        let state = |scale: f32| {
            let mut state = HostState::zeros(&config, 1).unwrap();
            let mut k = 0.0;
            for value in state.h.iter_mut().chain(&mut state.c) {
                k += scale;
                *value = f32::sin(k);
            }
            state
        };
        let initial_state = has_state.then(|| state(0.7));
        ModelLayer::Lstm { name: name.into(), weights: random_weights(config).into(), initial_state }
    };
    let linear = |name: &str, outputs: usize, inputs: usize, has_bias: bool| {
        let weight = Array2::from_shape_fn((outputs, inputs), |(j, k)| ((j * 7 + k) as f32).sin());
        ModelLayer::Linear { name: name.into(), weight, bias: has_bias.then(|| Array1::from_elem(outputs, 0.25)) }
    };
    let embedding = ModelLayer::Embedding { name: "emb".into(), weight: Array2::from_elem((11, 4), 0.5) };
    let bidirectional = LstmConfig::new(4, 5).layers(2).bidirectional().dropout(0.25);
    let hard_sigmoid = Activation::HardSigmoid { alpha: 0.25, beta: 0.375 };
    let models = [
        vec![
            embedding,
            lstm("rec", bidirectional.clone(), true),
            linear("lin", 3, 10, true),
            ModelLayer::Activation(Activation::LogSoftmax),
        ],
        vec![
            linear("pre", 4, 3, false),
            ModelLayer::Activation(Activation::Relu),
            lstm("model.rec", bidirectional, false),
            lstm("model.top", LstmConfig::new(10, 6), true),
            ModelLayer::LastStep,
            ModelLayer::Dropout(0.5),
            linear("head", 2, 6, true),
            ModelLayer::Activation(hard_sigmoid),
        ],
        vec![
            lstm("a", LstmConfig::new(3, 5).layers(2).bidirectional(), false),
            ModelLayer::FinalState,
            linear("b", 2, 10, true),
            ModelLayer::Activation(Activation::Softmax),
        ],
    ];
    for layers in models {
        let model = ModelWeights::new(layers).unwrap();
        let graph = read(&model_to_bytes(&model).unwrap());
        assert_eq!(graph.weights(), &model);
    }
}

#[test]
fn branches_are_followed_by_a_set_input_or_by_name() {
    let model = OnnxModel::from_bytes(include_bytes!("../../../tests/data/models/if.onnx")).unwrap();
    let names = ["If_0/else/k8/LSTM", "If_0/then/k16/LSTM"];
    let mut found = model.lstm_nodes();
    found.sort();
    assert_eq!(found, names);
    let error = model.graph(&OpenOptions::default()).unwrap_err().to_string();
    let words = ["`sr`", "`--set sr=16000`", "2 LSTM nodes, inside `If_0`", "If_0/then/k16/LSTM", "alone by its name"];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    let set = |name: &str, value: f64| {
        let mut options = OpenOptions::default();
        options.set.insert(name.into(), value);
        model.graph(&options)
    };
    let named = |name: &str| {
        let mut options = OpenOptions::default();
        options.names.push(name.into());
        model.graph(&options).unwrap()
    };
    for (value, name) in [(8000.0, names[0]), (16000.0, names[1])] {
        assert_eq!(lstm(&set("sr", value).unwrap()), lstm(&named(name)));
    }
    for (name, value, words) in [("x", 1.0, "expected a scalar"), ("sr", 0.5, "can't be set"), ("rate", 1.0, "`sr`")] {
        let error = set(name, value).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
}

#[test]
fn failed_save_leaves_the_existing_file() {
    let dir = std::env::temp_dir().join(format!("lstm-onnx-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("model.onnx");
    let weights = random_weights(LstmConfig::new(3, 5));
    OnnxWriter::new(&weights).save(&path).unwrap();
    assert_eq!(lstm(&OnnxModel::open(&path).unwrap().graph(&OpenOptions::default()).unwrap()), &weights);
    assert!(OnnxWriter::new(&random_weights(LstmConfig::new(3, 5).proj_size(2))).save(&path).is_err());
    assert_eq!(lstm(&OnnxModel::open(&path).unwrap().graph(&OpenOptions::default()).unwrap()), &weights);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    std::fs::remove_dir_all(&dir).unwrap();
}
