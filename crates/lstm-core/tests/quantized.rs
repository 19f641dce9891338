//! Quantized weights on the host: conversion, files, and what is rejected.

use lstm_core::{
    CellKind, Error, Init, LstmConfig, ModelLayer, ModelWeights, Param, Precision, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::{Array1, Array2},
    quantized::{INT8, INT12, OperandRange},
    weights::state_dict::Dtype,
};

fn weights(config: LstmConfig) -> Weights {
    Weights::init(config, &Init::default(), 3).unwrap()
}

fn model(lstm: Weights) -> ModelWeights {
    let size = lstm.config().output_size();
    let matrix = |rows, cols| Array2::from_shape_fn((rows, cols), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 8.0 - 0.6);
    ModelWeights::new(vec![
        ModelLayer::Embedding { name: "emb".into(), weight: matrix(9, lstm.config().input_size) },
        ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None },
        ModelLayer::LastStep,
        ModelLayer::Linear { name: "lin".into(), weight: matrix(2, size), bias: Some(Array1::from(vec![0.5, -1.0])) },
    ])
    .unwrap()
}

fn config_error(result: lstm_core::Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Config { option: "precision", reason }) => reason,
        other => panic!("expected an error about the precision, got {other:?}"),
    }
}

#[test]
fn a_weight_becomes_the_nearest_multiple_of_the_scale_of_its_row() {
    let original = weights(LstmConfig::new(5, 7).proj_size(3).cell(CellKind::PeepholeDiagonal));
    for (precision, max) in [(Precision::Int8, 127.0), (Precision::Int12, 2047.0)] {
        let quantized = original.quantize(precision).unwrap();
        assert_eq!(quantized.config().precision, precision);
        for (layer, original) in quantized.layers().iter().zip(original.layers()) {
            for (param, value) in original.iter() {
                let got = layer.get(param).unwrap();
                let Some(rows) = layer.quantized(param).unwrap() else {
                    assert_eq!(got, value, "{param:?} stays f32");
                    continue;
                };
                let cols = value.shape()[1];
                for (k, &v) in value.iter().enumerate() {
                    let scale = rows.scale[k / cols];
                    assert_eq!(got.as_slice().unwrap()[k], f32::from(rows.q[k]) * scale);
                    assert!((v - f32::from(rows.q[k]) * scale).abs() <= 0.5001 * scale, "{param:?} {k}");
                }
                let largest = rows.q.iter().map(|q| q.abs()).max();
                assert_eq!(largest, Some(max as i16), "{param:?}");
            }
        }
        // Back to f32 keeps the values; quantizing again gives the same ones.
        let f32_again = quantized.quantize(Precision::F32).unwrap();
        assert_eq!(f32_again.config().precision, Precision::F32);
        assert_eq!(
            f32_again.quantize(precision).unwrap().layers()[0].get(Param::WeightIh),
            quantized.layers()[0].get(Param::WeightIh)
        );
    }
}

#[test]
fn files_reload_to_the_same_integers_and_scales() {
    for precision in Precision::ALL {
        for config in [
            LstmConfig::new(5, 7).layers(2).bidirectional().proj_size(3).dropout(0.25),
            LstmConfig::new(2, 6).cell(CellKind::PeepholeDense).clip(0.5),
            LstmConfig::new(1, 1).cell(CellKind::PeepholeDiagonal).coupled(),
        ] {
            let lstm = weights(config.precision(precision));
            let writer = StateDictWriter::new().lstm("rec.", &lstm, TensorNames::PyTorch).unwrap();
            // The element type applies to floats only.
            for dtype in [Dtype::F32, Dtype::F64] {
                let mut dict = StateDict::from_bytes(writer.clone().dtype(dtype).to_bytes().unwrap()).unwrap();
                assert_eq!(dict.lstm_prefixes(), ["rec."]);
                assert_eq!(dict.take_lstm("rec.").unwrap(), lstm);
                dict.finish().unwrap();
            }
            let model = model(lstm).quantize(precision).unwrap();
            assert_eq!(ModelWeights::from_bytes(model.to_bytes().unwrap()).unwrap(), model);
        }
    }
    let bytes =
        |precision| model(weights(LstmConfig::new(40, 64))).quantize(precision).unwrap().to_bytes().unwrap().len();
    let [f32, int8, int12] = Precision::ALL.map(bytes);
    assert!(int8 * 3 < f32 && int12 * 5 < f32 * 3, "{f32} {int8} {int12}");
}

#[test]
fn layers_of_a_model_may_have_different_precisions() {
    let model = model(weights(LstmConfig::new(3, 4)));
    let mixed = model.quantize_layer(1, Precision::Int8).unwrap().quantize_layer(3, Precision::Int12).unwrap();
    let precisions: Vec<_> = (0..4).map(|k| mixed.layer_precision(k)).collect();
    assert_eq!(precisions, [Some(Precision::F32), Some(Precision::Int8), None, Some(Precision::Int12)]);
    assert_eq!(ModelWeights::from_bytes(mixed.to_bytes().unwrap()).unwrap(), mixed);
    assert!(mixed.quantize_layer(2, Precision::Int8).unwrap() == mixed, "a layer without parameters is unchanged");
    assert!(matches!(mixed.quantize_layer(4, Precision::Int8), Err(Error::Config { option: "layers", .. })));
    let reason = config_error(mixed.quantize(Precision::Int8));
    assert!(reason.contains("layer 3 (linear `lin`): the weights are int12 already"), "{reason}");
}

#[test]
fn rejects_what_can_not_be_quantized() {
    let original = weights(LstmConfig::new(3, 4));
    for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (3e38, "3")] {
        for param in [Param::WeightHh, Param::BiasIh] {
            let mut weights = original.clone();
            weights.iter_mut().find(|(p, _)| *p == param).unwrap().1[5] = bad;
            let reason = config_error(weights.quantize(Precision::Int8));
            assert!(reason.contains(&format!("{param:?}")) && reason.contains(text), "{reason}");
        }
    }
    let bias = Some(Array1::from(vec![f32::NAN]));
    let linear = ModelLayer::Linear { name: "lin".into(), weight: Array2::ones((1, 2)), bias };
    let reason = config_error(ModelWeights::new(vec![linear]).unwrap().quantize(Precision::Int8));
    assert!(reason.contains("linear `lin`") && reason.contains("the bias has the value NaN"), "{reason}");
    let quantized = original.quantize(Precision::Int8).unwrap();
    assert!(config_error(quantized.quantize(Precision::Int12)).contains("int8 already"));
    let mut changed = quantized.clone();
    changed.iter_mut().next().unwrap().1[2] += 1e-3;
    assert!(config_error(changed.layers()[0].quantized(Param::WeightIh)).contains("changed after"));
    let names = StateDictWriter::new().lstm(
        "",
        &weights(LstmConfig::new(3, 4).bias(lstm_core::Bias::One).precision(Precision::Int8)),
        TensorNames::Notebook,
    );
    assert!(matches!(names, Err(Error::Config { option: "names", .. })));
}

#[test]
fn rejects_damaged_tensors_of_quantized_files() {
    let lstm = weights(LstmConfig::new(3, 2).precision(Precision::Int8));
    let bytes = StateDictWriter::new().lstm("", &lstm, TensorNames::PyTorch).unwrap().to_bytes().unwrap();
    type Change<'a> = &'a dyn Fn(&mut StateDict, &str, Dtype, &[usize], &[u8]);
    let take = |change: Change<'_>| {
        let original = StateDict::from_bytes(bytes.clone()).unwrap();
        let mut dict = StateDict::default();
        for name in original.names() {
            let (dtype, shape) = (original.dtype(name).unwrap(), original.shape(name).unwrap());
            change(&mut dict, name, dtype, shape, original.bytes(name).unwrap());
        }
        dict.take_lstm("").unwrap_err().to_string()
    };
    let insert = |dict: &mut StateDict, name: &str, dtype, shape: &[usize], bytes: &[u8]| {
        dict.insert(name, dtype, shape, bytes).unwrap();
    };
    let error = take(&|dict, name, dtype, shape, bytes| {
        if name != "weight_hh_l0.scale" {
            insert(dict, name, dtype, shape, bytes);
        }
    });
    assert!(error.contains("`weight_hh_l0.scale` is missing"), "{error}");
    let error = take(&|dict, name, dtype, shape, bytes| {
        let changed: Vec<u8> = bytes.iter().map(|b| if name == "weight_ih_l0.q" { 0x80 } else { *b }).collect();
        insert(dict, name, dtype, shape, &changed);
    });
    assert!(error.contains("weight_ih_l0.q") && error.contains("from -127 to 127, got -128"), "{error}");
    for (scale, shown) in [(f32::NAN, "NaN"), (-0.5, "-5e-1"), (1e-30, "1e-30"), (3e38, "3e38")] {
        let error = take(&|dict, name, dtype, shape, bytes| {
            let changed = scale.to_le_bytes().repeat(bytes.len() / 4);
            insert(dict, name, dtype, shape, if name == "weight_ih_l0.scale" { &changed } else { bytes });
        });
        assert!(error.contains("weight_ih_l0.scale") && error.contains(shown), "{error}");
    }
    let error = take(&|dict, name, dtype, shape, bytes| {
        let zeros = vec![0; bytes.len()];
        insert(dict, name, dtype, shape, if name == "weight_ih_l0.scale" { &zeros } else { bytes });
    });
    assert!(error.contains("row 0 has the scale 0"), "{error}");
    let error = take(&|dict, name, dtype, shape, bytes| match name {
        "weight_hh_l0.q" => {
            let wide: Vec<u8> = bytes.iter().flat_map(|&b| i16::from(b as i8).to_le_bytes()).collect();
            insert(dict, name, Dtype::I16, shape, &wide);
        }
        _ => insert(dict, name, dtype, shape, bytes),
    });
    assert!(error.contains("weight_") && (error.contains("I8") || error.contains("I16")), "{error}");
    let error = take(&|dict, name, dtype, shape, bytes| match name {
        "weight_ih_l0.scale" => insert(dict, name, dtype, &[4], &bytes[..16]),
        _ => insert(dict, name, dtype, shape, bytes),
    });
    assert!(error.contains("weight_ih_l0.scale") && error.contains("[8]"), "{error}");
}

#[test]
fn row_scales_are_powers_of_two_times_eighths() {
    for format in [INT8, INT12] {
        let mut magnitude = 0x2b80_0000u32;
        while magnitude <= 0x7ef0_0000 {
            let largest = f32::from_bits(magnitude);
            let scale = format.row_scale(magnitude, OperandRange::Any);
            let q = i32::from(lstm_core::quantized::to_int(largest, scale.to_integer));
            // The scale is at most an eighth of an octave larger than needed.
            assert!(q <= format.max && f64::from(q) >= f64::from(format.max) * 8.0 / 9.0 - 0.5, "{largest:e}: {q}");
            let back = f64::from(q) * f64::from(scale.from_integer);
            assert!((back - f64::from(largest)).abs() <= 0.5001 * f64::from(scale.from_integer), "{largest:e}");
            assert_eq!(lstm_core::quantized::to_int(-largest, scale.to_integer), -q as i16);
            magnitude += 0x0007_1234;
        }
        let unit = format.row_scale(0x3dcc_cccd, OperandRange::Unit);
        assert_eq!((unit.to_integer, unit.from_integer), (format.max as f32, 1.0 / format.max as f32));
        assert_eq!(unit, format.row_scale(0x3f80_0000, OperandRange::Any));
        for bits in [0x7f80_0000, 0x7fc0_0000, 0x7f7f_ffff, 0x7ef0_0001] {
            let scale = format.row_scale(bits, OperandRange::Unit);
            assert!(scale.to_integer == 0.0 && scale.from_integer.is_nan());
        }
    }
}
