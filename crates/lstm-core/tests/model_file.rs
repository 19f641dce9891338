//! Saved models: every field round-trips, and everything unexpected in a file is an error.

use std::{collections::BTreeMap, fs};

use lstm_core::{
    Activation, CellKind, Error, HostState, Init, LstmConfig, ModelLayer, ModelWeights, Result, StateDict,
    StateDictWriter, Weights,
    ndarray::{Array1, Array2, Array3},
};

fn matrix(rows: usize, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| (r * cols + c) as f32 / 7.0 - 1.0)
}

fn lstm(name: &str, config: LstmConfig) -> Result<ModelLayer> {
    let weights = Weights::init(config, &Init::default(), 1)?.into();
    Ok(ModelLayer::Lstm { name: name.into(), weights, initial_state: None })
}

fn activation(activation: Activation) -> ModelLayer {
    ModelLayer::Activation(activation)
}

/// Models that together have every kind of layer and every field.
fn models() -> Result<Vec<ModelWeights>> {
    let metadata = BTreeMap::from([("author".to_owned(), "a \"quoted\" name\n".to_owned())]);
    let tagger = ModelWeights::new(vec![
        ModelLayer::Embedding { name: "emb".into(), weight: matrix(11, 5) },
        ModelLayer::Dropout(0.1),
        lstm("rec.a", LstmConfig::new(5, 4).bidirectional().layers(2).dropout(0.25))?,
        activation(Activation::Relu),
        ModelLayer::Linear { name: "lin".into(), weight: matrix(4, 8), bias: None },
        activation(Activation::LogSoftmax),
    ])?;
    let config = LstmConfig::new(3, 4).cell(CellKind::PeepholeDiagonal).proj_size(2).layers(2).clip(0.3);
    let mut state = HostState::zeros(&config, 1)?;
    state.h.iter_mut().chain(&mut state.c).enumerate().for_each(|(k, v)| *v = k as f32 / 3.0);
    state.h[[0, 0, 0]] = f32::NAN;
    let weights = Weights::init(config, &Init::default(), 2)?.into();
    let amplifier = ModelWeights::new(vec![
        ModelLayer::Lstm { name: "rec".into(), weights, initial_state: Some(state) },
        activation(Activation::Sigmoid),
        ModelLayer::Linear { name: "a".into(), weight: matrix(3, 2), bias: Some(Array1::from(vec![1e-30, 2.0, -0.0])) },
        activation(Activation::HardSigmoid { alpha: 0.2, beta: 1.0 / 3.0 }),
        activation(Activation::Tanh),
    ])?;
    let unfused = lstm("rec", LstmConfig::new(2, 3).cell(CellKind::Unfused).coupled())?;
    let last = |last, end| ModelWeights::new(vec![unfused.clone(), last, end]);
    Ok(vec![
        tagger,
        amplifier.with_skip()?.with_gains(0.1, f32::MIN_POSITIVE)?.with_metadata(metadata),
        last(ModelLayer::LastStep, activation(Activation::Softmax))?,
        last(ModelLayer::FinalState, ModelLayer::Dropout(0.0))?,
    ])
}

/// The text of a model, with the bits of each number. Derived equality treats NaN and -0 as numbers.
fn bits(model: &ModelWeights) -> String {
    let arrays = model.layers().iter().map(|layer| match layer {
        ModelLayer::Lstm { weights, initial_state, .. } => {
            let mut values: Vec<f32> = initial_state.iter().flat_map(|s| s.h.iter().chain(&s.c)).copied().collect();
            values.extend(weights.layers().iter().flat_map(|layer| layer.iter().flat_map(|(_, v)| v.clone())));
            values
        }
        ModelLayer::Linear { bias, weight, .. } => weight.iter().chain(bias.iter().flatten()).copied().collect(),
        ModelLayer::Activation(Activation::HardSigmoid { alpha, beta }) => vec![*alpha, *beta],
        ModelLayer::Dropout(p) => vec![*p],
        _ => vec![],
    });
    let arrays: Vec<Vec<u32>> = arrays.map(|values| values.iter().map(|v| v.to_bits()).collect()).collect();
    format!("{:?} {:?} {arrays:?}", model.input_gain().to_bits(), model.output_gain().to_bits())
}

#[test]
fn every_field_round_trips() -> Result<()> {
    for model in models()? {
        let read = ModelWeights::from_bytes(model.to_bytes()?)?;
        // The debug text has every field; it shows NaN, which equality rejects.
        assert_eq!(format!("{read:?}"), format!("{model:?}"));
        assert_eq!(bits(&read), bits(&model));
        assert_eq!(read.to_bytes()?, model.to_bytes()?);
    }
    Ok(())
}

#[test]
fn files_are_replaced() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lstm-model-file-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("model.safetensors");
    for model in models()? {
        model.save(&path)?;
        assert_eq!(bits(&ModelWeights::open(&path)?), bits(&model));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file remains");
    fs::remove_dir_all(&folder).unwrap();
    let error = ModelWeights::open(&path).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    Ok(())
}

/// A file with this text for the chain, and tensors for one linear layer `lin` without a bias.
fn with_chain(chain: &str) -> Result<ModelWeights> {
    let writer = StateDictWriter::new().metadata(ModelWeights::METADATA_KEY, chain);
    ModelWeights::from_bytes(writer.tensor("lin.weight", &matrix(2, 3))?.to_bytes()?)
}

#[test]
fn everything_unexpected_is_an_error() -> Result<()> {
    let chain =
        |layers: &str| format!(r#"{{"version":1,"layers":[{layers}],"skip":false,"input_gain":1.0,"output_gain":2}}"#);
    let linear = r#"{"type":"linear","name":"lin","bias":false}"#;
    let valid = chain(linear);
    assert_eq!(with_chain(&valid)?.output_gain(), 2.0);
    for (text, words) in [
        ("".into(), vec!["metadata `lstm.model`", "EOF"]),
        ("[1]".into(), vec!["expected version 1, got none"]),
        (valid.replace(":1,", ":2,"), vec!["expected version 1, got 2"]),
        (valid.replace("\"skip\"", "\"skipped\""), vec!["skipped"]),
        (valid.replace(",\"skip\":false", ""), vec!["missing field `skip`"]),
        (valid.replace("1.0", "1e300"), vec!["input_gain", "finite"]),
        (chain(r#"{"type":"linear","name":"lin","bias":true}"#), vec!["lin.bias", "missing"]),
        (chain(r#"{"type":"linear","name":"lin","bias":false,"x":1}"#), vec!["unknown field `x`"]),
        (chain(&format!(r#"{linear},{{"type":"relu","slope":0.1}}"#)), vec!["unknown field `slope`"]),
        (chain(&format!(r#"{linear},{{"type":"gelu"}}"#)), vec!["unknown variant `gelu`", "hard_sigmoid"]),
        (chain(&format!(r#"{linear},{{"type":"dropout","p":1}}"#)), vec!["layer 1", "dropout", "probability"]),
        (chain(&format!(r#"{linear},{linear}"#)), vec!["lin.weight", "missing"]),
        (chain(r#"{"type":"lstm","name":"lin","initial_state":false}"#), vec!["lin.", "LSTM"]),
        (chain(r#"{"type":"lstm","name":"lin","initial_state":true}"#), vec!["lin.initial_h", "missing"]),
        (chain(r#"{"type":"last_step"}"#), vec!["expected at least an LSTM"]),
        (chain(""), vec!["expected at least an LSTM"]),
        (valid.replace("false}", "false}]").replacen('[', &"[".repeat(100_000), 1), vec!["recursion"]),
    ] {
        let error = with_chain(&text).expect_err(&text).to_string();
        let short = &text[..text.len().min(200)];
        assert!(words.iter().all(|word| error.contains(word)), "{short}: {error}");
    }
    let dict = StateDict::from_bytes(StateDictWriter::new().tensor("lin.weight", &matrix(2, 3))?.to_bytes()?)?;
    let error = ModelWeights::from_state_dict(dict).unwrap_err().to_string();
    assert!(error.contains("lstm.model") && error.contains("missing"), "{error}");

    let writer = StateDictWriter::new().metadata(ModelWeights::METADATA_KEY, &valid);
    let extra = writer.clone().tensor("lin.weight", &matrix(2, 3))?.tensor("lin.extra", &matrix(1, 1))?.to_bytes()?;
    let error = ModelWeights::from_bytes(extra).unwrap_err();
    assert!(matches!(&error, Error::UnusedTensors { names, .. } if names == &["lin.extra"]), "{error}");
    let error = ModelWeights::from_bytes(writer.tensor("lin.weight", &Array3::zeros((1, 2, 3)))?.to_bytes()?);
    assert!(matches!(error, Err(Error::Shape { .. })), "{error:?}");

    let model = with_chain(&valid)?;
    for key in [ModelWeights::METADATA_KEY, "rec.lstm.config"] {
        let metadata = BTreeMap::from([(key.to_owned(), "x".to_owned())]);
        let model = if key == ModelWeights::METADATA_KEY { model.clone() } else { models()?.swap_remove(2) };
        let error = model.with_metadata(metadata).to_bytes().unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    Ok(())
}

#[test]
fn damaged_files_are_errors() -> Result<()> {
    for model in models()? {
        let bytes = model.to_bytes()?;
        for len in (0..bytes.len()).step_by(bytes.len() / 200 + 1) {
            assert!(ModelWeights::from_bytes(bytes[..len].to_vec()).is_err(), "{len} bytes");
        }
        for k in 0..bytes.len() {
            for bit in [0, 2, 4] {
                let mut bytes = bytes.clone();
                bytes[k] ^= 1 << bit;
                assert!(ModelWeights::from_bytes(bytes).is_err(), "bit {bit} of byte {k}");
            }
        }
    }
    Ok(())
}
