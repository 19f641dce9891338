//! Tests of configuration options in the metadata of safetensors files: those that do not follow from the tensors.

use lstm_core::{
    Bias, CellKind, Direction, GateActivation, GateActivations, Init, LstmConfig, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::{ArrayD, IxDyn},
};

fn random_weights(config: LstmConfig) -> Weights {
    Weights::init(config, &Init::default(), 11).unwrap()
}

fn to_bytes(weights: &Weights, names: TensorNames) -> Vec<u8> {
    StateDictWriter::new().lstm("lstm.", weights, names).unwrap().to_bytes().unwrap()
}

#[test]
fn metadata_hold_options_without_tensors() {
    let two = LstmConfig::new(3, 5).layers(2);
    let relu = GateActivations { candidate: GateActivation::Relu, ..GateActivations::default() };
    let relu = two.clone().activations(relu);
    for config in
        [two.clone().clip(0.5), two.clone().coupled(), two.clone().dropout(0.25), relu, two.coupled().clip(1.5)]
    {
        let (a, b) = (random_weights(config.clone()), random_weights(LstmConfig::new(2, 3)));
        let writer = StateDictWriter::new().lstm("a.", &a, TensorNames::PyTorch).unwrap();
        let bytes = writer.lstm("b.", &b, TensorNames::PyTorch).unwrap().to_bytes().unwrap();
        let mut dict = StateDict::from_bytes(bytes).unwrap();
        assert_eq!(dict.metadata().keys().collect::<Vec<_>>(), ["a.lstm.config"]);
        assert_eq!((dict.take_lstm("a.").unwrap(), dict.take_lstm("b.").unwrap()), (a, b));
    }
    // The caller may choose between the fused and the unfused cell, which are bit-identical.
    let unfused = random_weights(LstmConfig::new(3, 5).cell(CellKind::Unfused).clip(0.5));
    let mut dict = StateDict::from_bytes(to_bytes(&unfused, TensorNames::PyTorch)).unwrap();
    assert_eq!(dict.take_lstm_as("lstm.", CellKind::Fused).unwrap(), unfused.into_fused().unwrap());
    // The fused and the dense peephole cell share the notebook's names.
    let dense = random_weights(LstmConfig::new(3, 5).cell(CellKind::PeepholeDense).bias(Bias::One));
    let mut dict = StateDict::from_bytes(to_bytes(&dense, TensorNames::Notebook)).unwrap();
    assert!(dict.clone().take_lstm_as("lstm.", CellKind::Fused).is_err());
    assert_eq!(dict.take_lstm("lstm.").unwrap(), dense);
}

#[test]
fn rejects_metadata_of_another_model() {
    let weights = random_weights(LstmConfig::new(3, 5).clip(0.5));
    let with = |weights: &Weights, text: &str| {
        let writer = StateDictWriter::new().metadata("lstm.lstm.config", text);
        writer.lstm("lstm.", weights, TensorNames::PyTorch).unwrap().to_bytes()
    };
    // Metadata of a model other than the written one.
    let clipped = weights.config().to_string();
    assert_eq!(with(&weights, &clipped).unwrap(), to_bytes(&weights, TensorNames::PyTorch));
    let plain = random_weights(LstmConfig::new(3, 5));
    for (weights, text, says) in [
        (&weights, "lstm input_size=3 hidden_size=5", "expected lstm input_size=3 hidden_size=5"),
        (&plain, &*clipped, "expected none, as the configuration follows from the tensors, got lstm"),
    ] {
        let error = with(weights, text).unwrap_err().to_string();
        assert!(error.contains("metadata `lstm.lstm.config`") && error.contains(says), "{error}");
    }
    for (text, says) in [
        ("lstm input_size=3 hidden_size=5 clip=-1", "option clip"),
        ("lstm input_size=3", "hidden_size"),
        ("lstm input_size=3 hidden_size=5 num_layers=2", "expected lstm input_size=3 hidden_size=5"),
        (
            "lstm input_size=3 hidden_size=5 direction=reverse",
            "with any clip, coupled, dropout and activations, got lstm",
        ),
        ("", "expected"),
    ] {
        let shapes = [("weight_ih", &[20, 3][..]), ("weight_hh", &[20, 5]), ("bias_ih", &[20]), ("bias_hh", &[20])];
        let mut writer = StateDictWriter::new().metadata("lstm.lstm.config", text);
        for (stem, shape) in shapes {
            writer = writer.tensor(format!("lstm.{stem}_l0"), &ArrayD::zeros(IxDyn(shape))).unwrap();
        }
        let mut dict = StateDict::from_bytes(writer.to_bytes().unwrap()).unwrap();
        let error = dict.take_lstm("lstm.").unwrap_err().to_string();
        assert!(error.contains("metadata `lstm.lstm.config`") && error.contains(says), "{text}: {error}");
        assert_eq!(dict.names().count(), 4, "no tensor was taken");
    }
    let config = LstmConfig::new(5, 5).layers(2);
    for other in [
        config.clone().layers(1).bidirectional(),
        config.clone().direction(Direction::Reverse),
        config.clone().cell(CellKind::PeepholeDense),
    ] {
        let error = random_weights(config.clone()).with_config(other.clone()).unwrap_err().to_string();
        assert!(error.contains("option config") && error.contains(&other.to_string()), "{error}");
    }
}
