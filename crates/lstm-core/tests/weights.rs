//! Weights in safetensors files: exact round trips for every option, and errors that name the tensor.

use lstm_core::{
    Bias, CellKind, Direction, Error, Init, LayerWeights, LstmConfig, Param, StateDict, StateDictWriter, TensorNames,
    Weights,
    ndarray::{ArrayD, IxDyn, array},
    weights::state_dict::Dtype,
};

fn random_weights(config: LstmConfig) -> Weights {
    Weights::init(config, &Init::default(), 11).unwrap()
}

/// All valid combinations of cell, direction, number of layers, bias and projection.
fn configs() -> Vec<LstmConfig> {
    let mut configs = Vec::new();
    for cell in CellKind::ALL {
        for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
            for bias in [Bias::None, Bias::One, Bias::Two] {
                for (layers, proj) in [(1, None), (3, None), (1, Some(2)), (2, Some(2))] {
                    let config = LstmConfig::new(3, 5).layers(layers).direction(direction).cell(cell).bias(bias);
                    configs.push(if let Some(size) = proj { config.proj_size(size) } else { config });
                }
            }
        }
    }
    configs.retain(|config| config.validate().is_ok());
    configs
}

fn to_bytes(weights: &Weights, names: TensorNames) -> Vec<u8> {
    StateDictWriter::new().lstm("lstm.", weights, names).unwrap().to_bytes().unwrap()
}

fn bits(weights: &Weights) -> Vec<u32> {
    weights.layers().iter().flat_map(|l| l.iter()).flat_map(|(_, v)| v.iter().map(|v| v.to_bits())).collect()
}

/// A file with tensors of zeros with the given names and shapes.
fn zeros(tensors: &[(&str, &[usize])]) -> StateDict {
    let writer = tensors
        .iter()
        .try_fold(StateDictWriter::new(), |writer, (name, shape)| writer.tensor(*name, &ArrayD::zeros(IxDyn(shape))));
    StateDict::from_bytes(writer.unwrap().to_bytes().unwrap()).unwrap()
}

/// A safetensors file with the given header and data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The error message of `take_lstm` for tensors of zeros with the given names and shapes. Checks that no tensor was taken.
fn error_message(tensors: &[(&str, &[usize])], hint: Option<CellKind>) -> String {
    let mut dict = zeros(tensors);
    let taken = match hint {
        None => dict.take_lstm("m."),
        Some(cell) => dict.take_lstm_as("m.", cell),
    };
    let error = taken.unwrap_err();
    assert_eq!(dict.names().count(), tensors.len(), "{error}");
    error.to_string()
}

#[test]
fn pytorch_names_round_trip_is_exact() {
    for config in configs() {
        let weights = random_weights(config.clone());
        let mut dict = StateDict::from_bytes(to_bytes(&weights, TensorNames::PyTorch)).unwrap();
        assert_eq!(dict.lstm_config("lstm.").unwrap(), (config.cell == CellKind::Unfused).then(|| config.clone()));
        assert_eq!(dict.clone().take_lstm("lstm.").unwrap(), weights, "{config:?}");
        assert_eq!(dict.take_lstm_as("lstm.", config.cell).unwrap(), weights, "{config:?}");
        dict.finish().unwrap();
    }
}

#[test]
fn notebook_names_round_trip_is_exact() {
    for cell in [CellKind::Fused, CellKind::Unfused, CellKind::PeepholeDense] {
        for bias in [Bias::None, Bias::One] {
            let weights = random_weights(LstmConfig::new(3, 5).cell(cell).bias(bias));
            let mut dict = StateDict::from_bytes(to_bytes(&weights, TensorNames::Notebook)).unwrap();
            assert_eq!(dict.take_lstm_as("lstm.", cell).unwrap(), weights);
            dict.finish().unwrap();
        }
    }
    // The layout itself: (input, hidden) for each gate, and (input, 4 * hidden) for all, i f g o.
    let weights = random_weights(LstmConfig::new(3, 2).cell(CellKind::Unfused).bias(Bias::One));
    let ours = weights.layers()[0].get(Param::WeightIh).unwrap().clone();
    let mut gates = StateDict::from_bytes(to_bytes(&weights, TensorNames::Notebook)).unwrap();
    let candidate = gates.take("lstm.U_c", &[3, 2]).unwrap();
    let weights = weights.into_fused().unwrap();
    let mut packed = StateDict::from_bytes(to_bytes(&weights, TensorNames::Notebook)).unwrap();
    let all = packed.take("lstm.W", &[3, 8]).unwrap();
    for (feature, unit) in [(0, 0), (2, 0), (1, 1)] {
        assert_eq!(candidate[[feature, unit]], ours[[4 + unit, feature]]);
        assert_eq!(all[[feature, 6 + unit]], ours[[6 + unit, feature]]);
    }
    let refused =
        StateDictWriter::new().lstm("", &random_weights(LstmConfig::new(3, 2)), TensorNames::Notebook).unwrap_err();
    let says = "option bias: the notebook's tensor names do not support two biases; use PyTorch's names";
    assert_eq!(refused.to_string(), says);
}

#[test]
fn candidate_letter_may_be_c_or_g_but_not_both() {
    let gates = |letters: [&str; 3]| {
        let mut tensors = Vec::new();
        for (stem, shape, letter) in
            [("U", &[3, 5][..], letters[0]), ("V", &[5, 5], letters[1]), ("b", &[5], letters[2])]
        {
            tensors.extend(["i", "f", letter, "o"].map(|gate| (format!("m.{stem}_{gate}"), shape)));
        }
        tensors
    };
    let run = |letters| {
        let tensors = gates(letters);
        zeros(&tensors.iter().map(|(name, shape)| (name.as_str(), *shape)).collect::<Vec<_>>()).take_lstm("m.")
    };
    let config = LstmConfig::new(3, 5).cell(CellKind::Unfused).bias(Bias::One);
    assert_eq!(run(["g"; 3]).unwrap().config(), &config);
    assert_eq!(run(["c"; 3]).unwrap().config(), &config);
    let mixed = run(["c", "g", "c"]).unwrap_err().to_string();
    assert_eq!(mixed, "tensor `m.V_c` is missing; expected shape [5, 5]");
}

#[test]
fn element_types_round_trip() {
    let odd = [0x0000u16, 0x8000, 0x0001, 0x7c00, 0xfc00, 0x7c01, 0xfe12, 0x3c00, 0x7bff];
    for (dtype, len) in [(Dtype::F16, 2), (Dtype::BF16, 2), (Dtype::F32, 4), (Dtype::F64, 8)] {
        let weights = random_weights(LstmConfig::new(3, 4).layers(2));
        let writer = StateDictWriter::new().dtype(dtype).lstm("lstm.", &weights, TensorNames::PyTorch).unwrap();
        let bytes = writer.to_bytes().unwrap();
        let mut dict = StateDict::from_bytes(bytes.clone()).unwrap();
        assert_eq!(dict.dtype("lstm.bias_hh_l1"), Some(dtype));
        let back = dict.take_lstm("lstm.").unwrap();
        if len >= 4 {
            assert_eq!(back, weights);
        }
        let again = StateDictWriter::new().dtype(dtype).lstm("lstm.", &back, TensorNames::PyTorch).unwrap();
        assert!(again.to_bytes().unwrap() == bytes, "{dtype}: a file read and saved is the same file");
    }
    let values: Vec<f32> = odd.iter().map(|b| f32::from_bits(u32::from(*b) << 16 | 1)).collect();
    let mut weights = random_weights(LstmConfig::new(1, 1));
    let (_, slice) = weights.iter_mut().next().unwrap();
    slice.copy_from_slice(&values[3..7]);
    let mut dict = StateDict::from_bytes(to_bytes(&weights, TensorNames::PyTorch)).unwrap();
    assert_eq!(bits(&dict.take_lstm("lstm.").unwrap()), bits(&weights), "infinities and NaN payloads");
}

#[test]
fn tensors_are_taken_one_by_one() {
    let two = array![[1.5f32, -2.0, 3.0], [0.1, 0.2, 0.3]];
    let writer = StateDictWriter::new().metadata("b", "2 \"\\\n\u{1}é").metadata("a", "1");
    let writer = writer.tensor("x", &two.t()).unwrap().tensor("y", &array![1.0f32]).unwrap();
    let bytes = writer.dtype(Dtype::F64).to_bytes().unwrap();
    let mut dict = StateDict::from_bytes(bytes.clone()).unwrap();
    let metadata: Vec<_> = dict.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, [("a", "1"), ("b", "2 \"\\\n\u{1}é")]);
    assert_eq!((dict.shape("x"), dict.shape("z")), (Some(&[3, 2][..]), None));

    let missing = dict.take("z", &[1]).unwrap_err().to_string();
    assert_eq!(missing, "tensor `z` is missing; expected shape [1]");
    let shape = dict.take("x", &[2, 3]).unwrap_err().to_string();
    assert_eq!(shape, "tensor `x`: expected shape [2, 3], found [3, 2]");
    let integers = dict.take_i64("x").unwrap_err().to_string();
    assert_eq!(integers, "tensor `x`: expected element type I64 or I32, found F64");
    assert_eq!(dict.names().collect::<Vec<_>>(), ["x", "y"]);

    assert_eq!(dict.clone().take_f64("x").unwrap()[[1, 0]], f64::from(-2.0f32));
    assert_eq!(dict.take("x", &[3, 2]).unwrap(), two.t().into_dyn());
    assert!(matches!(dict.take_any("x"), Err(Error::MissingTensor { .. })));
    assert_eq!(dict.clone().finish().unwrap_err().to_string(), "unused tensors: y");
    dict.take_any("y").unwrap();
    dict.finish().unwrap();

    for _ in 0..20 {
        let writer = StateDictWriter::new().tensor("y", &array![1.0f32]).unwrap().tensor("x", &two.t()).unwrap();
        let writer = writer.dtype(Dtype::F64).metadata("a", "1").metadata("b", "2 \"\\\n\u{1}é");
        assert!(writer.to_bytes().unwrap() == bytes, "the same whatever the order");
    }
    let twice = StateDictWriter::new().tensor("y", &array![1.0f32]).unwrap().tensor("y", &two);
    assert_eq!(twice.unwrap_err().to_string(), "tensor `y`: the name already exists");
    assert!(StateDictWriter::new().tensor("__metadata__", &two).is_err());
    assert!(StateDictWriter::new().dtype(Dtype::BOOL).tensor("y", &two).unwrap().to_bytes().is_err());
    let half = StateDictWriter::new().dtype(Dtype::F16).tensor("y", &array![1e5f32]).unwrap().to_bytes();
    assert_eq!(half.unwrap_err().to_string(), "tensor `y`: 1e5 is too large for F16");
}

#[test]
fn integers_and_f64_can_be_read() {
    let file = |dtype: &str, data: &[u8], n: usize| {
        raw(&format!(r#"{{"m.x":{{"dtype":"{dtype}","shape":[{n}],"data_offsets":[0,{}]}}}}"#, data.len()), data)
    };
    let integers = |dtype, data: &[u8], n| StateDict::from_bytes(file(dtype, data, n)).unwrap().take_i64("m.x");
    let minus_two = &(-2i64).to_le_bytes();
    assert_eq!(integers("I64", minus_two, 1).unwrap(), [-2]);
    assert_eq!(integers("I32", minus_two, 2).unwrap(), [-2, -1]);
    assert!(matches!(integers("U64", minus_two, 1), Err(Error::TensorType { .. })));
    let mut dict = StateDict::from_bytes(file("I64", minus_two, 1)).unwrap();
    let error = dict.take("m.x", &[1]).unwrap_err().to_string();
    assert_eq!(error, "tensor `m.x`: expected element type F32, F16, BF16 or F64, found I64");
    assert!(dict.take_f64("m.x").is_err() && dict.shape("m.x").is_some());
    let mut dict = StateDict::from_bytes(file("F64", &(-1e39f64).to_le_bytes(), 1)).unwrap();
    assert_eq!(dict.take_any("m.x").unwrap_err().to_string(), "tensor `m.x`: -1e39 is too large for f32");
    assert_eq!(dict.take_f64("m.x").unwrap(), array![-1e39].into_dyn());
}

#[test]
fn listed_prefixes_can_be_taken() {
    let weights = random_weights(LstmConfig::new(3, 5).bias(Bias::One));
    let unfused = random_weights(LstmConfig::new(3, 5).cell(CellKind::Unfused).bias(Bias::One));
    let mut writer = StateDictWriter::new();
    for prefix in ["", "a.", "a.b.", "encoder_"] {
        writer = writer.lstm(prefix, &weights, TensorNames::PyTorch).unwrap();
    }
    for prefix in ["gates.", "n.gates."] {
        writer = writer.lstm(prefix, &unfused, TensorNames::Notebook).unwrap();
    }
    let dict = StateDict::from_bytes(writer.to_bytes().unwrap()).unwrap();
    let prefixes = ["", "a.", "a.b.", "encoder_", "gates.", "n.gates."];
    assert_eq!(dict.lstm_prefixes(), prefixes);
    let error = dict.clone().take_lstm("c.").unwrap_err().to_string();
    assert!(error.contains("expected an LSTM with this prefix"), "{error}");
    // The empty prefix and `a.` also select the tensors of the other LSTMs that start with them.
    for prefix in &prefixes[2..] {
        assert!(error.contains(&format!("`{prefix}`")), "{error}");
        assert_eq!(dict.clone().take_lstm(prefix).unwrap().layers().len(), 1);
    }
}

#[test]
fn lstm_cells_have_no_layer_number() {
    let weights = random_weights(LstmConfig::new(3, 5));
    let mut with_number = StateDict::from_bytes(to_bytes(&weights, TensorNames::PyTorch)).unwrap();
    let mut dict = StateDict::default();
    for name in ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] {
        let (from, to) = (format!("lstm.{name}_l0"), format!("cells.0.{name}"));
        let shape = with_number.shape(&from).unwrap().to_vec();
        dict.insert(&to, Dtype::F32, &shape, with_number.bytes(&from).unwrap()).unwrap();
        assert!(dict.insert(&to, Dtype::F32, &shape, &[]).unwrap_err().to_string().contains("exists"));
        with_number.take_any(&from).unwrap();
    }
    dict.insert("cells.1.weight_ih", Dtype::F32, &[4, 1], &[0; 16]).unwrap();
    assert_eq!(dict.lstm_prefixes(), ["cells.0.", "cells.1."]);
    assert_eq!(dict.take_lstm("cells.0.").unwrap(), weights);
    let error = dict.take_lstm("cells.1.").unwrap_err().to_string();
    assert!(error.contains("`cells.1.weight_hh` is missing"), "{error}");
    dict.retain(|name| name != "cells.1.weight_ih");
    dict.finish().unwrap();
    let error = StateDict::default().insert("x", Dtype::F16, &[3], &[0; 5]).unwrap_err().to_string();
    assert!(error.contains("5 bytes do not hold the shape [3] of F16"), "{error}");
}

#[test]
fn errors_name_the_tensor() {
    type Tensors<'a> = &'a [(&'a str, &'a [usize])];
    let (ih, hh): (&[usize], &[usize]) = (&[20, 3], &[20, 5]);
    let layer: [(&str, &[usize]); 4] =
        [("m.weight_ih_l0", ih), ("m.weight_hh_l0", hh), ("m.bias_ih_l0", &[20]), ("m.bias_hh_l0", &[20])];
    let with = |more: Tensors| error_message(&[&layer[..], more].concat(), None);
    let bare = |tensors: Tensors| error_message(tensors, None);
    let missing = |name: &str, shape: &str| format!("tensor `m.{name}` is missing; expected shape {shape}");
    let odd = |name: &str, expected: &str, found: &str| {
        format!("tensor `m.{name}`: expected shape {expected}, found {found}")
    };

    // Something is missing.
    assert_eq!(bare(&layer[1..]), missing("weight_ih_l0", "[20, input]"));
    assert_eq!(bare(&[layer[0], layer[2], layer[3]]), missing("weight_hh_l0", "[20, 5]"));
    assert_eq!(bare(&layer[..3]), missing("bias_hh_l0", "[20]"));
    assert_eq!(with(&[("m.weight_ih_l2", hh)]), missing("weight_ih_l1", "[20, 5]"));
    assert_eq!(with(&[("m.weight_ih_l16777215", hh)]), missing("weight_ih_l1", "[20, 5]"));
    assert_eq!(with(&[("m.weight_ih_l1", hh), ("m.weight_hh_l1", hh)]), missing("bias_ih_l1", "[20]"));
    assert_eq!(with(&[("m.weight_ih_l0_reverse", ih)]), missing("weight_hh_l0_reverse", "[20, 5]"));
    assert_eq!(with(&[("m.weight_po_l0", &[5])]), missing("weight_pi_l0", "[5]"));
    assert_eq!(bare(&[("m.weight_ih_l1_reverse", ih)]), missing("weight_ih_l0_reverse", "[20, input]"));
    assert_eq!(bare(&[("m.U_i", &[3, 5]), ("m.V_o", &[5, 5])]), missing("U_f", "[3, 5]"));
    assert_eq!(bare(&[("m.V_o", &[5, 5])]), missing("U_i", "[input, 5]"));
    let nothing = "tensor `m.weight_ih_l0` is missing; expected an LSTM with this prefix";
    assert_eq!(bare(&[]), format!("{nothing}, found no tensors in the file"));
    let elsewhere = [("n.k.weight_ih_l0", ih), ("weight_ih_l0", ih), ("m.head", ih)];
    assert_eq!(bare(&elsewhere), format!("{nothing}, found LSTMs with the prefixes `` (empty), `n.k.`"));
    assert_eq!(bare(&elsewhere[1..]), format!("{nothing}, found an LSTM with the prefix `` (empty)"));
    assert_eq!(bare(&elsewhere[2..]), format!("{nothing}, found no LSTM in the file, only `m.head`"));
    let names: Vec<String> = (0..10).map(|k| format!("x{k}")).collect();
    let many: Vec<(&str, &[usize])> = names.iter().map(|name| (&**name, ih)).collect();
    let list = "`x0`, `x1`, `x2`, `x3`, `x4`, `x5`, `x6`, `x7`";
    assert_eq!(bare(&many), format!("{nothing}, found no LSTM in the file, only {list} and 2 others"));

    // Something is left over.
    assert_eq!(with(&[("m.x", &[1]), ("n", &[1]), ("m.weight_ih_l00", ih)]), "unused tensors: m.weight_ih_l00, m.x");
    assert_eq!(with(&[("m.bias_l0", &[20])]), "unused tensors: m.bias_l0");
    assert_eq!(with(&[("m.W", &[3, 20])]), "unused tensors: m.W");
    let both = [layer[0], layer[1], ("m.weight_ch_l0", hh)];
    assert_eq!(bare(&both), "unused tensors: m.weight_hh_l0");

    // Something has the wrong shape.
    let swap = |k: usize, shape: &[usize]| {
        let mut layer = layer;
        layer[k].1 = shape;
        error_message(&layer, None)
    };
    assert_eq!(swap(0, &[19, 3]), odd("weight_ih_l0", "[20, 3]", "[19, 3]"));
    assert_eq!(swap(0, &[16, 3]), odd("weight_ih_l0", "[20, 3]", "[16, 3]"));
    assert_eq!(swap(0, &[20]), "tensor `m.weight_ih_l0`: expected [20, input], got [20]");
    assert_eq!(swap(1, &[5, 20]), odd("weight_hh_l0", "[20, 5]", "[5, 20]"));
    assert_eq!(swap(1, &[20, 4]), odd("weight_hh_l0", "[20, 5]", "[20, 4]"));
    assert_eq!(swap(2, &[20, 1]), odd("bias_ih_l0", "[20]", "[20, 1]"));
    assert_eq!(swap(3, &[5]), odd("bias_hh_l0", "[20]", "[5]"));
    let second: Tensors =
        &[("m.weight_ih_l1", ih), ("m.weight_hh_l1", hh), ("m.bias_ih_l1", &[20]), ("m.bias_hh_l1", &[20])];
    assert_eq!(with(second), odd("weight_ih_l1", "[20, 5]", "[20, 3]"));
    assert_eq!(with(&[("m.weight_hr_l0", &[2, 5])]), odd("weight_hh_l0", "[20, 2]", "[20, 5]"));
    assert!(with(&[("m.weight_hr_l0", &[5, 5])]).starts_with("option proj_size: expected less than hidden_size 5"));
    assert_eq!(bare(&[("m.weight_ih_l0", &[])]), "tensor `m.weight_ih_l0`: expected [4 * hidden, input], got []");
    assert!(bare(&[("m.weight_ih_l0", &[0, 0])]).starts_with("option input_size: expected 1 to"));
    assert!(bare(&[("m.weight_ih_l0", &[1 << 62, 0])]).starts_with("option input_size: expected 1 to"));
    assert!(bare(&[("m.weight_ih_l0", &[0, 1 << 62]), ("m.bias_l0", &[])]).starts_with("option input_size"));

    // A projection that fits.
    let projected: Tensors = &[("m.weight_ih_l0", ih), ("m.weight_hh_l0", &[20, 2]), ("m.weight_hr_l0", &[2, 5])];
    let weights = zeros(projected).take_lstm("m.").unwrap();
    assert_eq!(weights.config(), &LstmConfig::new(3, 5).proj_size(2).bias(Bias::None));
}

#[test]
fn expected_cell_must_match_the_names() {
    let packed: &[(&str, &[usize])] = &[("m.W", &[3, 20]), ("m.U", &[5, 20]), ("m.bias", &[20])];
    let gates: &[(&str, &[usize])] = &[("m.U_i", &[3, 5])];
    let plain: &[(&str, &[usize])] = &[("m.weight_ih_l0", &[20, 3]), ("m.weight_hh_l0", &[20, 5])];
    let dense: &[(&str, &[usize])] = &[("m.weight_ih_l0", &[20, 3]), ("m.weight_ch_l0", &[20, 5])];
    let which = "option cell: `m.W`, `m.U`, `m.bias` may be of the fused or the dense peephole cell; specify the cell";
    assert_eq!(error_message(packed, None), which);
    for (tensors, hint, named) in [
        (packed, CellKind::PeepholeDiagonal, "fused or peephole-dense or unfused"),
        (gates, CellKind::PeepholeDense, "unfused or fused"),
        (plain, CellKind::PeepholeDense, "fused or unfused"),
        (plain, CellKind::PeepholeDiagonal, "fused or unfused"),
        (dense, CellKind::Fused, "peephole-dense"),
    ] {
        let says = format!("option cell: expected {hint}, got tensors of {named} with the prefix `m.`");
        assert_eq!(error_message(tensors, Some(hint)), says);
    }
    for (tensors, cell) in [(packed, CellKind::Fused), (packed, CellKind::PeepholeDense), (plain, CellKind::Unfused)] {
        assert_eq!(zeros(tensors).take_lstm_as("m.", cell).unwrap().config().cell, cell);
    }
    assert_eq!(zeros(dense).take_lstm("m.").unwrap().config().cell, CellKind::PeepholeDense);
    let narrow: &[(&str, &[usize])] = &[("m.W", &[3, 20]), ("m.U", &[5, 16]), ("m.bias", &[20])];
    let says = "tensor `m.U`: expected shape [5, 20], found [5, 16]";
    assert_eq!(error_message(narrow, Some(CellKind::Fused)), says);
}

#[test]
fn files_are_replaced_atomically() {
    let folder = std::env::temp_dir().join(format!("lstm-core-weights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("model.safetensors");
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let weights = random_weights(LstmConfig::new(3, 5));
    let writer = StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch).unwrap();
    writer.save(&path).unwrap();
    writer.clone().metadata("again", "yes").save(&path).unwrap();
    let mut dict = StateDict::open(&path).unwrap();
    assert_eq!((dict.metadata()["again"].as_str(), files()), ("yes", 1));
    assert_eq!(dict.take_lstm("").unwrap(), weights);

    let before = std::fs::read(&path).unwrap();
    let huge = writer.tensor("huge", &array![f32::MAX]).unwrap().dtype(Dtype::F16);
    assert!(matches!(huge.save(&path), Err(Error::Format { .. })));
    assert!(std::fs::read(&path).unwrap() == before && files() == 1);
    // A folder in the way: the rename fails, and nothing stays beside it.
    std::fs::create_dir_all(folder.join("folder/full")).unwrap();
    for name in ["folder", "absent/model", ".."] {
        let save = StateDictWriter::new().save(folder.join(name));
        assert!(matches!(save, Err(Error::Io { .. })), "{name}: {save:?}");
    }
    assert_eq!(files(), 2);
    assert!(matches!(StateDict::open(folder.join("absent")), Err(Error::Io { .. })));
    std::fs::write(&path, &before[..100]).unwrap();
    let short = StateDict::open(&path).unwrap_err().to_string();
    assert!(short.ends_with("model.safetensors: not a safetensors file: invalid header length"), "{short}");
    for pickle in [&b"PK\x03\x04\0\0\x08\x08\0\0"[..], b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"] {
        let error = StateDict::from_bytes(pickle.to_vec()).unwrap_err().to_string();
        assert!(error.contains("not a safetensors file") && error.contains("torch.save"), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn layer_weights_check_their_arrays() {
    let weights = random_weights(LstmConfig::new(3, 5));
    let spec = *weights.layers()[0].spec();
    let values: Vec<_> = weights.layers()[0].iter().map(|(_, v)| v.clone()).collect();
    assert!(LayerWeights::new(spec, values[1..].to_vec()).is_err());
    assert!(LayerWeights::new(spec, values.into_iter().rev().collect()).is_err());
}
