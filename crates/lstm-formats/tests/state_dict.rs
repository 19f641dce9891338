//! Reads files of `torch.save` and of safetensors that `tests/data/make_pytorch.py` wrote, and damaged ones.

use std::{collections::BTreeMap, path::PathBuf};

use lstm_core::{
    Activation, Bias, CellKind, Error, Init, LstmConfig, ModelLayer, ModelWeights, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::{Array1, Array2, ArrayD, IxDyn},
    weights::state_dict::Dtype,
};
use lstm_formats::{Format, ModelFile, OpenOptions, detect, open, open_bytes};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", "pytorch", name].iter().collect()
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn options(layers: &str, name: &str) -> OpenOptions {
    let mut options = OpenOptions::default();
    options.layers = (!layers.is_empty()).then(|| layers.to_owned());
    options.names = name.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    options
}

/// The layers of a model in short: `rec[3->4] linear(lin) last_step relu`.
fn describe(weights: &ModelWeights) -> String {
    let layers = weights.layers().iter().map(|layer| match layer {
        ModelLayer::Lstm { name, weights, .. } => {
            let config = weights.config();
            let layers = if config.num_layers > 1 { format!("x{}", config.num_layers) } else { String::new() };
            format!("{name}[{}->{}]{layers}", config.input_size, config.output_size())
        }
        ModelLayer::Activation(activation) => activation.to_string(),
        layer => layer.name().map_or(layer.kind().to_owned(), |name| format!("{}({name})", layer.kind())),
    });
    layers.collect::<Vec<_>>().join(" ")
}

/// The parameters of a model under the names of PyTorch.
fn parameters(weights: &ModelWeights) -> BTreeMap<String, ArrayD<f32>> {
    let mut parameters = BTreeMap::new();
    for layer in weights.layers() {
        match layer {
            ModelLayer::Lstm { name, weights, .. } => {
                let bytes = StateDictWriter::new().lstm("", weights, TensorNames::PyTorch).unwrap().to_bytes().unwrap();
                let mut dict = StateDict::from_bytes(bytes).unwrap();
                let names: Vec<String> = dict.names().map(str::to_owned).collect();
                parameters.extend(names.into_iter().map(|n| (format!("{name}.{n}"), dict.take_any(&n).unwrap())));
            }
            ModelLayer::Embedding { name, weight } => {
                parameters.insert(format!("{name}.weight"), weight.clone().into_dyn());
            }
            ModelLayer::Linear { name, weight, bias } => {
                parameters.insert(format!("{name}.weight"), weight.clone().into_dyn());
                parameters.extend(bias.iter().map(|bias| (format!("{name}.bias"), bias.clone().into_dyn())));
            }
            _ => {}
        }
    }
    parameters
}

/// Checks the parameters of a model with those that PyTorch printed for the file.
fn check_parameters(file_name: &str, weights: &ModelWeights) {
    let mut expected = StateDict::open(path("expected.safetensors")).unwrap();
    let prefix = format!("{file_name}/");
    let names: Vec<String> = expected.names().filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect();
    let read = parameters(weights);
    assert!(!names.is_empty(), "{file_name}");
    for name in names {
        let expected = expected.take_any(&name).unwrap();
        let mut name = name[prefix.len()..].to_owned();
        if name.starts_with("cells.") {
            name.push_str("_l0");
        }
        let found = read.get(&name).unwrap_or_else(|| panic!("{file_name}: no {name} among {:?}", read.keys()));
        assert_eq!(found.shape(), expected.shape(), "{file_name}: {name}");
        for (found, expected) in found.iter().zip(&expected) {
            let is_equal = match file_name.starts_with("weight_norm") {
                true => (found - expected).abs() <= 1e-6 + 1e-6 * expected.abs(),
                false => found == expected,
            };
            assert!(is_equal, "{file_name}: {name}: {found} {expected}");
        }
    }
}

#[test]
fn opens_files_that_say_everything() {
    for (name, layers, dtype) in [
        ("legacy.pt", "rec[3->4]x2 linear(lin)", "F32"),
        ("protocol4.pt", "rec[3->4]x2 linear(lin)", "F32"),
        ("tar.pth", "rec[3->4] linear(lin)", "F32"),
        ("half.pt", "rec[3->4] linear(lin)", "F16"),
        ("bfloat16.pt", "rec[3->4] linear(lin)", "BF16"),
        ("double.pt", "rec[3->4] linear(lin)", "F64"),
        ("shared_storage.pt", "rec[3->4] linear(lin)", "F32"),
        ("transposed.pt", "rec[3->4] linear(lin)", "F32"),
        ("checkpoint.ckpt", "rec[3->4] linear(lin)", "F32"),
        ("wrapped.pth", "rec[3->4] linear(lin)", "F32"),
        ("values.pt", "rec[3->4] linear(lin)", "F32"),
        ("module.pt", "rec[3->4]x2 linear(lin)", "F32"),
        ("bare_lstm.pt", "lstm[3->4]", "F32"),
        ("weight_norm_old.pt", "rec[3->4] linear(lin)", "F32"),
        ("weight_norm.pt", "rec[3->4] linear(lin)", "F32"),
        ("cells.pt", "cells.0[3->4] cells.1[4->4] cells.2[4->2]", "F32"),
        ("embedding.pt", "embedding(embedding) rec[3->8] linear(out)", "F32"),
        ("tied.pt", "encoder.rec[3->4] linear(lin)", "F32"),
        ("tied.safetensors", "encoder.rec[3->4] linear(lin)", "F32"),
    ] {
        let model = open(path(name), &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(describe(&model.weights), layers, "{name}");
        assert_eq!(model.dtypes, [dtype], "{name}");
        assert!(model.unused.is_empty(), "{name}: {:?}", model.unused);
        let format = if name.ends_with("safetensors") { Format::Safetensors } else { Format::PyTorch };
        assert_eq!(model.format, format, "{name}");
        if name != "module.pt" {
            check_parameters(name, &model.weights);
        }
    }
}

#[test]
fn the_user_states_layers_or_a_name() {
    for (name, layers, lstm, expected, unused) in [
        (
            "two_linear.pt",
            "rec, last, fc1:relu, fc2:softmax",
            "",
            "rec[3->4] last_step linear(fc1) relu linear(fc2) softmax",
            0,
        ),
        ("two_linear.pt", "", "rec", "rec[3->4]", 4),
        (
            "two_linear.pt",
            "rec., h_n, dropout(0.5), fc1:hard_sigmoid(0.2,0.5), fc2",
            "",
            "rec[3->4] final_state dropout linear(fc1) hard_sigmoid(alpha=0.2, beta=0.5) linear(fc2)",
            0,
        ),
        ("linear_before.pt", "prenet:tanh, rec, lin", "", "linear(prenet) tanh rec[3->4] linear(lin)", 0),
        ("two_cells.pt", "forward_cell, backward_cell", "", "forward_cell[4->4] backward_cell[4->4]", 0),
        ("two_models.pt", "", "model", "rec[3->4] linear(lin)", 6),
        ("two_models.pt", "", "ema.rec", "rec[3->4]", 8),
        ("two_models.pt", "rec, last, lin", "model.", "rec[3->4] last_step linear(lin)", 6),
        ("checkpoint.ckpt", "rec, last, model.lin", "", "rec[3->4] last_step linear(lin)", 0),
        ("checkpoint.ckpt", "", "rec", "rec[3->4]", 3),
        ("embedding.pt", "embedding, rec, last, out", "", "embedding(embedding) rec[3->8] last_step linear(out)", 0),
        ("integer.pt", "", "rec", "rec[3->4]", 3),
        ("batch_norm.pt", "", "rec", "rec[3->4]", 5),
        ("spectral_norm.pt", "", "rec", "rec[3->4]", 4),
        ("statistics.pt", "", "model_state", "rec[3->4] linear(lin)", 2),
        ("scale.pt", "lstm, last, linear:relu", "lstm,linear", "lstm[3->4] last_step linear(linear) relu", 1),
        ("nested_scale.pt", "", "model_state", "lstm[3->4] linear(linear)", 1),
        ("nested_scale.pt", "lstm, last, linear:relu", "model_state", "lstm[3->4] last_step linear(linear) relu", 1),
        ("tied.pt", "rec, lin", "", "encoder.rec[3->4] linear(lin)", 0),
        ("bare_lstm.pt", "lstm, last", "", "lstm[3->4] last_step", 0),
        ("bare_lstm.pt", "", "lstm", "lstm[3->4]", 0),
        ("cells.pt", "", "cells.1", "cells.1[4->4]", 8),
    ] {
        let model = open(path(name), &options(layers, lstm)).unwrap_or_else(|e| panic!("{layers}: {e}"));
        assert_eq!(describe(&model.weights), expected, "{name} {layers} {lstm}");
        assert_eq!(model.unused.len(), unused, "{name} {layers} {lstm}: {:?}", model.unused);
    }
}

#[test]
fn errors_name_the_thing_and_the_next_step() {
    for (name, layers, lstm, words) in [
        ("gru.pt", "", "", &["`gru` is a GRU (`weight_ih_l0` has 3 x 8 rows", "no LSTM in the file"][..]),
        ("rnn_beside.pt", "", "", &["`rnn` is a plain RNN (`weight_ih_l0` has 8 rows", "--name rec opens"]),
        ("batch_norm.pt", "", "", &["`bn` is a batch normalization", "--name rec"]),
        ("layer_norm.pt", "", "", &["`norm` is a normalization layer"]),
        ("conv.pt", "", "", &["`conv` is a convolution [3, 2, 5]"]),
        ("conv.pt", "conv, rec", "", &["`conv` is a convolution [3, 2, 5]", "--name rec"]),
        ("integer.pt", "", "", &["`steps` (I64 [1]) is a tensor of an unknown layer", "--name rec"]),
        ("integer.pt", "rec, lin", "", &["do not use", "`steps`"]),
        ("linear_only.pt", "", "", &["no LSTM in the file, only `a` (linear, 2 -> 3), `b` (linear, 3 -> 1)"]),
        (
            "two_linear.pt",
            "",
            "",
            &["`fc1` (linear, 4 -> 5)", r#"--layers "rec, fc1, fc2" is a guess"#, "`fc1:relu`", "--name rec"],
        ),
        ("linear_before.pt", "", "", &[r#"--layers "prenet, rec, lin""#]),
        ("two_cells.pt", "", "", &["`backward_cell` (LSTM, 4 -> 4)", "--name backward_cell or --name forward_cell"]),
        ("two_models.pt", "", "", &["several models: `ema`, `model`", "--name model"]),
        ("two_models.pt", "", "optimizer", &["no LSTM is named `optimizer`; expected one of: `ema.rec`, `model.rec`"]),
        ("statistics.pt", "", "", &["`mean`", "`std`", "--name model_state opens the model"]),
        ("scale.pt", "", "", &["`similarity_weight` ([1]) is a tensor of an unknown layer", "--name lstm"]),
        ("nested_scale.pt", "", "", &["`model_state.similarity_weight` ([1])", "--name model_state opens the model"]),
        ("scale.pt", "lstm, linear", "", &["do not use", "`similarity_weight`", "--name lstm,linear"]),
        ("script.pt", "", "", &["TorchScript", "state_dict()"]),
        ("list.pt", "", "", &["expected a state dict, found `list`", "torch.save(model.state_dict()"]),
        ("expanded.pt", "", "", &["[65536, 65536]"]),
        (
            "weight_norm_dim1.pt",
            "",
            "",
            &["`lin.parametrizations.weight.original0`", "[1, 4]", "remove_parametrizations"],
        ),
        ("spectral_norm.pt", "", "", &["`lin.parametrizations.weight", "other than weight norm"]),
        ("two_linear.pt", "rec, fc1", "", &["do not use `fc2` (linear, 5 -> 2)"]),
        ("two_linear.pt", "rec, fc1, fc3", "", &["no layer is named `fc3`", "`fc2` (linear, 5 -> 2)"]),
        ("two_linear.pt", "rec, fc2, fc1", "", &["layer 1 (linear `fc2`)", "reads 5 features"]),
        ("two_linear.pt", "rec, rec, fc1, fc2", "", &["`rec` occurs twice"]),
        ("two_linear.pt", "rec, fc1:gelu, fc2", "", &["got `gelu`"]),
        ("two_linear.pt", "rec, fc1:softmax, fc2", "", &["softmax is only possible as the last layer"]),
    ] {
        let error = open(path(name), &options(layers, lstm)).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{name} {layers} {lstm}: {error}: expected {word}");
        }
        assert!(error.contains(name), "{error}");
        assert!(error.len() < 700, "{error}");
    }
}

/// A suggestion in an error message works when it is pasted.
#[test]
fn suggestions_work() {
    for name in ["two_linear.pt", "linear_before.pt", "two_cells.pt"] {
        let error = open(path(name), &OpenOptions::default()).unwrap_err().to_string();
        let layers = error.split("--layers \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        open(path(name), &options(layers, "")).unwrap();
        for lstm in error.split("--name ").skip(1).filter_map(|rest| rest.split(' ').next()) {
            open(path(name), &options("", lstm)).unwrap();
        }
    }
}

#[test]
fn nothing_is_lost_or_joined() {
    let open = |name: &str, layers: &str| open_file(name, layers).map(|model| describe(&model.weights));
    // A cell that is used twice is two layers.
    assert_eq!(open("used_twice.pt", "").unwrap(), "0[4->4] 1[4->4]");
    let error = open("whole_module.pt", "").unwrap_err().to_string();
    assert!(error.contains("`1`, are not read"), "{error}");
    assert_eq!(open("whole_module.pt", "0:relu").unwrap(), "linear(0) relu");
    let error = open("numpy.pt", "").unwrap_err().to_string();
    assert!(error.contains("`lin.weight` is not a tensor"), "{error}");
    assert!(open("lstm_best_model_final.pt", "").unwrap().starts_with("rec["));
}

/// Opens a file, with these layers if there are any.
fn open_file(name: &str, layers: &str) -> Result<ModelFile, Error> {
    open(path(name), &options(layers, ""))
}

/// A safetensors file with random tensors of these shapes.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut next = 0u32;
    let mut random = move || {
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (next >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let writer = tensors.iter().try_fold(StateDictWriter::new(), |writer, (name, shape)| {
        writer.tensor(*name, &ArrayD::from_shape_simple_fn(IxDyn(shape), &mut random))
    });
    writer.unwrap().to_bytes().unwrap()
}

/// The tensors of an LSTM without biases.
fn lstm_tensors<'a>(names: [&'a str; 2], shapes: &'a [[usize; 2]; 2]) -> Vec<(&'a str, &'a [usize])> {
    names.into_iter().zip(shapes).map(|(name, shape)| (name, &shape[..])).collect()
}

fn read(tensors: &[(&str, &[usize])], options: &OpenOptions) -> Result<ModelFile, Error> {
    open_bytes(&safetensors(tensors), options)
}

#[test]
fn infers_only_what_is_determined() {
    let rec = lstm_tensors(["rec.weight_ih_l0", "rec.weight_hh_l0"], &[[16, 4], [16, 4]]);
    let with = |others: &[(&'static str, &'static [usize])]| [&rec[..], others].concat();
    for (others, expected) in [
        (&[("out.weight", &[4, 4][..]), ("out.bias", &[4])][..], Ok("rec[4->4] linear(out)")),
        (&[("lin.weight", &[2, 4]), ("lin.bias", &[2])], Ok("rec[4->4] linear(lin)")),
        // These may be before the LSTM, or beside it.
        (&[("lin.weight", &[4, 4]), ("lin.bias", &[4])], Err("how its layers are connected")),
        (&[("skip.weight", &[2, 4]), ("skip.bias", &[2])], Err("how its layers are connected")),
        (&[("input_proj.weight", &[4, 4]), ("input_proj.bias", &[4])], Err("how its layers are connected")),
        (&[("emb.weight", &[9, 4])], Ok("embedding(emb) rec[4->4]")),
        (&[("pos_embedding.weight", &[9, 4])], Err("how its layers are connected")),
        (&[("table.weight", &[9, 4])], Err("how its layers are connected")),
        (&[("emb.weight", &[9, 5])], Err("their sizes do not fit")),
        (&[("emb.weight", &[9, 4]), ("out.weight", &[9, 4])], Err("--layers \"emb, rec, out\"")),
        (&[("lin.weight", &[2, 5]), ("lin.bias", &[2])], Err("their sizes do not fit one after the other")),
        (
            &[("lin.weight", &[2, 4]), ("lin.bias", &[3])],
            Err("`lin.bias` ([3]), `lin.weight` ([2, 4]) are tensors of an"),
        ),
        (&[("h0", &[1, 1, 4])], Err("`h0` ([1, 1, 4]) is a tensor of an unknown layer")),
    ] {
        let found = read(&with(others), &OpenOptions::default()).map(|model| describe(&model.weights));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, expected) => panic!("{others:?}: {found:?} instead of {expected:?}"),
        }
    }
    // An embedding and a bias-free linear layer that share their weight are two layers.
    let tied = options("emb, rec, out", "");
    let model = read(&with(&[("emb.weight", &[9, 4]), ("out.weight", &[9, 4])]), &tied).unwrap();
    assert_eq!(describe(&model.weights), "embedding(emb) rec[4->4] linear(out)");
}

#[test]
fn several_lstms_need_numbers_that_fit() {
    let names = |prefix: &str, end: &str| format!("{prefix}.weight_{end}_l0");
    let open = |lstms: &[(&str, usize, usize)]| {
        let tensors: Vec<(String, [usize; 2])> = lstms
            .iter()
            .flat_map(|&(name, i, h)| [(names(name, "ih"), [4 * h, i]), (names(name, "hh"), [4 * h, h])])
            .collect();
        let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape)| (&**name, &shape[..])).collect();
        read(&tensors, &OpenOptions::default()).map(|model| describe(&model.weights))
    };
    // A list of `LSTMCell`.
    let names_of_cells = (0..11).map(|k| ["ih", "hh"].map(|end| format!("cells.{k}.weight_{end}")));
    let names_of_cells: Vec<String> = names_of_cells.flatten().collect();
    let tensors: Vec<(&str, &[usize])> = names_of_cells.iter().map(|name| (&**name, &[8, 2][..])).collect();
    let cells = read(&tensors, &OpenOptions::default()).map(|model| describe(&model.weights));
    assert!(cells.unwrap().ends_with("cells.9[2->2] cells.10[2->2]"));
    assert_eq!(open(&[("lstm1", 3, 4), ("lstm2", 4, 2)]).unwrap(), "lstm1[3->4] lstm2[4->2]");
    for ambiguous in [
        &[("lstm1", 4, 4), ("lstm2", 4, 4)][..],
        &[("encoder", 3, 4), ("decoder", 4, 2)],
        &[("lstm1", 3, 4), ("lstm2", 3, 4)],
        &[("cells.0", 3, 4), ("cells.2", 4, 4)],
        // LSTMs of one size in a list may be side by side.
        &[("branches.0", 4, 4), ("branches.1", 4, 4)],
    ] {
        let error = open(ambiguous).unwrap_err().to_string();
        assert!(error.contains("how its layers are connected"), "{ambiguous:?}: {error}");
    }
}

#[test]
fn an_lstm_may_be_the_parent_of_other_layers() {
    let names = ["model.weight_ih_l0", "model.weight_hh_l0"];
    let mut tensors = lstm_tensors(names, &[[16, 3], [16, 4]]);
    tensors.extend([("model.lin.weight", &[2, 4][..]), ("model.lin.bias", &[2])]);
    assert_eq!(describe(&read(&tensors, &OpenOptions::default()).unwrap().weights), "lstm[3->4] linear(lin)");
    assert_eq!(describe(&read(&tensors, &options("", "model")).unwrap().weights), "lstm[3->4]");
}

#[test]
fn saved_models_and_options_of_the_lstm() {
    let config = LstmConfig::new(3, 4).clip(2.0).coupled();
    let lstm = Weights::init(config, &Init::default(), 1).unwrap();
    let layers = vec![
        ModelLayer::Lstm { name: "a.rec".into(), weights: lstm.clone().into(), initial_state: None },
        ModelLayer::LastStep,
        ModelLayer::Linear { name: "lin".into(), weight: Array2::ones((2, 4)), bias: Some(Array1::zeros(2)) },
        ModelLayer::Activation(Activation::Relu),
    ];
    let weights = ModelWeights::new(layers).unwrap();
    let bytes = weights.to_bytes().unwrap();
    assert_eq!(open_bytes(&bytes, &OpenOptions::default()).unwrap().weights, weights);
    let alone = open_bytes(&bytes, &options("", "a.rec")).unwrap();
    assert_eq!((describe(&alone.weights), alone.unused.len()), ("a.rec[3->4]".into(), 2));
    let error = open_bytes(&bytes, &options("a.rec, lin", "")).unwrap_err().to_string();
    assert!(error.contains("omit --layers"), "{error}");

    // A training checkpoint of the model.
    let chain = StateDict::from_bytes(bytes).unwrap().metadata()[ModelWeights::METADATA_KEY].clone();
    let checkpoint = StateDictWriter::new().lstm("a.rec.", &lstm, TensorNames::PyTorch).unwrap();
    let checkpoint = checkpoint.tensor("lin.weight", &Array2::<f32>::ones((2, 4))).unwrap();
    let checkpoint = checkpoint.tensor("lin.bias", &Array1::<f32>::zeros(2)).unwrap();
    let checkpoint = checkpoint.tensor("optimizer.m", &Array1::<f32>::zeros(2)).unwrap();
    let checkpoint = checkpoint.metadata(ModelWeights::METADATA_KEY, chain).metadata("trainer.format", "1");
    let error = open_bytes(&checkpoint.to_bytes().unwrap(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("ModelTrainer::resume"), "{error}");

    // A state dict of an LSTM whose options do not follow from its tensors.
    let bytes = StateDictWriter::new().lstm("rec.", &lstm, TensorNames::PyTorch).unwrap();
    let bytes = bytes.metadata("trained-on", "x.csv").to_bytes().unwrap();
    let read = open_bytes(&bytes, &OpenOptions::default()).unwrap().weights;
    assert_eq!(read.lstms().next().unwrap().config(), lstm.config());
    assert_eq!(read.metadata().iter().collect::<Vec<_>>(), [(&"trained-on".to_owned(), &"x.csv".to_owned())]);
    let mut clipped = OpenOptions::default();
    clipped.clip = Some(1.0);
    assert!(open_bytes(&bytes, &clipped).unwrap_err().to_string().contains("omit --cell, --clip and --coupled"));

    // One without metadata takes them from the user.
    let mut given = OpenOptions::default();
    (given.cell, given.clip, given.coupled) = (Some(CellKind::Unfused), Some(1.5), true);
    let model = open(path("bare_lstm.pt"), &given).unwrap().weights;
    let expected = LstmConfig::new(3, 4).cell(CellKind::Unfused).clip(1.5).coupled();
    assert_eq!(model.lstms().next().unwrap().config(), &expected);

    // The notebook's names need the cell.
    let lstm = Weights::init(LstmConfig::new(3, 4).bias(Bias::One), &Init::default(), 1).unwrap();
    let mut dict = StateDict::from_bytes(
        StateDictWriter::new().lstm("", &lstm, TensorNames::Notebook).unwrap().to_bytes().unwrap(),
    )
    .unwrap();
    let mut plain = StateDictWriter::new();
    for name in ["W", "U", "bias"] {
        plain = plain.tensor(name, &dict.take_any(name).unwrap()).unwrap();
    }
    let bytes = plain.to_bytes().unwrap();
    assert!(open_bytes(&bytes, &OpenOptions::default()).unwrap_err().to_string().contains("specify the cell"));
    given = OpenOptions::default();
    given.cell = Some(CellKind::Fused);
    assert_eq!(**open_bytes(&bytes, &given).unwrap().weights.lstms().next().unwrap(), lstm);
}

#[test]
fn only_regular_files_are_opened() {
    let error = open(path(""), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("directory"), "{error}");
    #[cfg(unix)]
    {
        let error = open("/dev/zero", &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
    }
}

#[test]
fn one_shard_is_not_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("model-00001-of-00002.safetensors");
    let tensors = lstm_tensors(["lstm.weight_ih_l0", "lstm.weight_hh_l0"], &[[8, 3], [8, 2]]);
    std::fs::write(&shard, safetensors(&tensors)).unwrap();
    for options in [OpenOptions::default(), options("", "lstm")] {
        let error = open(&shard, &options).unwrap_err().to_string();
        assert!(error.contains("shard 1 of the 2 files") && error.contains("merge all"), "{error}");
    }
    let whole = folder.path().join("model-00001-of-00001.safetensors");
    std::fs::rename(&shard, &whole).unwrap();
    open(&whole, &OpenOptions::default()).unwrap();
}

#[test]
fn truncated_files_are_rejected() {
    for name in ["cells.pt", "legacy.pt", "tied.safetensors", "tar.pth"] {
        let bytes = file(name);
        // The end of a tar archive is padding.
        let (len, step) = if name == "tar.pth" { (2048, 7) } else { (bytes.len(), 1) };
        for end in (0..len).step_by(step) {
            assert!(open_bytes(&bytes[..end], &OpenOptions::default()).is_err(), "{name}: {end}");
        }
    }
}

#[test]
fn flipped_bytes_do_not_panic() {
    for name in ["bare_lstm.pt", "legacy.pt", "tied.safetensors"] {
        let bytes = file(name);
        for at in 0..bytes.len() {
            for mask in [0xff, 0x01] {
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                let _ = open_bytes(&damaged, &OpenOptions::default());
            }
        }
    }
}

/// The stream of pickles of an old file with this pickle in the place of the model.
fn legacy_with(pickle: &[u8]) -> Vec<u8> {
    let bytes = file("legacy.pt");
    // The header ends with the third pickle: the magic number, the version, the system.
    let end = |start: usize| start + bytes[start..].iter().position(|byte| *byte == b'.').unwrap() + 1;
    let header = end(end(end(0)));
    [&bytes[..header], pickle].concat()
}

#[test]
fn hostile_pickles_are_rejected() {
    let nested =
        |open: &[u8], n: usize, close: &[u8]| [b"\x80\x02", open.repeat(n).as_slice(), &close.repeat(n), b"."].concat();
    let mut bombs = vec![
        // Deep nesting: tuples of tuples, and lists in lists.
        [&b"\x80\x02]"[..], &b"\x85".repeat(1_000_000), b"."].concat(),
        nested(b"]", 1_000_000, b"a"),
        nested(b"(", 1_000_000, b"t"),
        // Numbers and texts that claim more bytes than there are.
        b"\x80\x02\x8b\xff\xff\xff\x7f1.".to_vec(),
        b"\x80\x02X\xff\xff\xff\xffx.".to_vec(),
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.".to_vec(),
        // A call that a pickle could run.
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec(),
        // A dictionary that contains itself.
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.".to_vec(),
        b"\x80\x02.".to_vec(),
        b"".to_vec(),
    ];
    // A list that is doubled 60 times.
    let mut doubled = b"\x80\x02]q\x00".to_vec();
    for k in 0..60 {
        doubled.extend([b'h', k, b'h', k, 0x86, b'q', k + 1]);
    }
    doubled.push(b'.');
    bombs.push(doubled);
    for pickle in bombs {
        let shown = pickle[..pickle.len().min(20)].escape_ascii().to_string();
        let error = open_bytes(&legacy_with(&pickle), &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.len() < 500, "{shown}: {error}");
    }
}

#[test]
fn sizes_that_a_zip_archive_claims_are_not_trusted() {
    let bytes = file("bare_lstm.pt");
    let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    // The sizes of the first entry, `data.pkl`, in the directory.
    for (compressed, size) in [(u32::MAX - 1, u32::MAX - 1), (0, u32::MAX - 1), (1 << 30, 1 << 30)] {
        let mut damaged = bytes.clone();
        damaged[directory + 20..directory + 24].copy_from_slice(&u32::to_le_bytes(compressed));
        damaged[directory + 24..directory + 28].copy_from_slice(&u32::to_le_bytes(size));
        let error = open_bytes(&damaged, &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("more than the whole file has"), "{error}");
    }
}

#[test]
fn tensors_may_not_be_larger_than_their_file() {
    // A shape of 2^20 elements with stride 0 in place of the first one: the size tuple follows the offset `K\0`.
    let bytes = file("legacy.pt");
    let at = bytes.windows(6).position(|window| window == b"K\x00K\x10K\x03").expect("the shape of the first tensor");
    let mut damaged = bytes.clone();
    damaged.splice(at + 2..at + 4, [b'J', 0, 0, 0x10, 0]);
    let error = open_bytes(&damaged, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("1048576"), "{error}");
}

#[test]
fn unknown_files_are_called_what_they_are() {
    let zip = |names: &[&str]| -> Vec<u8> {
        let mut bytes = b"PK\x03\x04".to_vec();
        let start = bytes.len() as u32;
        for name in names {
            bytes.extend(b"PK\x01\x02");
            bytes.extend([0; 24]);
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend([0; 16]);
            bytes.extend(name.as_bytes());
        }
        let len = bytes.len() as u32 - start;
        bytes.extend(b"PK\x05\x06");
        bytes.extend([0; 8]);
        bytes.extend(len.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    };
    for (bytes, words) in [
        (b"".to_vec(), "the file is empty"),
        (vec![0; 100], "zeros only"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n".to_vec(), "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>".to_vec(), "an HTML page"),
        (b"<?xml version=\"1.0\"?><net name=\"x\"/>".to_vec(), "XML"),
        (b"\x1f\x8b\x08\x00abc".to_vec(), "gunzip"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}".to_vec(), "NumPy array"),
        (b"GGUF\x03\x00\x00\x00".to_vec(), "GGUF"),
        (b"\x1c\x00\x00\x00TFL3\x00\x00".to_vec(), "TensorFlow Lite"),
        (b"\x1c\x00\x00\x00ORTM\x00\x00".to_vec(), "ONNX Runtime's own format"),
        (b"RIFF\x00\x00\x00\x00WAVE".to_vec(), "WAV"),
        (b"\x80\x03}q\x00X\x01\x00\x00\x00aq\x01K\x01s.".to_vec(), "a Python pickle that `torch.save` did not write"),
        (b"\x08\x01\x12\x03abc".to_vec(), "SavedModel"),
        (b"\x0a\x03abc\x22\x02\x08\x15".to_vec(), "a TensorFlow graph"),
        (br#"{"class_name": "Sequential", "config": {"layers": []}}"#.to_vec(), "Keras model without weights"),
        (br#"{"a": {"layers": 1}, "b": 2}"#.to_vec(), "with the keys `a`, `b`"),
        (zip(&["a/x.npy", "y.npy"]), "`a/x.npy`, `y.npy`"),
        (zip(&["m/archive_format", "m/models/model.json"]), "torch.export.load"),
        (zip(&["serialized_exported_program.json"]), "an archive of torch.export"),
        (zip(&["readme.txt"]), "a zip archive with `readme.txt`"),
        (zip(&[]), "without a directory"),
        (b"hello".to_vec(), "a text file"),
        (b"\xff\xfe\x00\x01\xff".to_vec(), "unknown format"),
    ] {
        assert_eq!(detect(&bytes), None, "{words}");
        let error = open_bytes(&bytes, &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("expected a file of safetensors"), "{error}: {words}");
    }
    assert_eq!(detect(&zip(&["config.json", "model.weights.h5"])), Some(Format::Keras));
    assert_eq!(detect(&zip(&["x/data.pkl"])), Some(Format::PyTorch));
    assert_eq!(detect(b"\x89HDF\r\n\x1a\n\x00"), Some(Format::Keras));
    for (json, format) in [
        (r#"{"model_data": {}, "state_dict": {}}"#, Format::GuitarMl),
        (r#" {"version": "0.5", "architecture": "LSTM"}"#, Format::Nam),
        (r#"{"in_shape": [1], "layers": []}"#, Format::RtNeural),
        (r#"{"in_shape": [1], "layers": [{"x": 1}], "in_skip": 1}"#, Format::AidaX),
    ] {
        assert_eq!(detect(json.as_bytes()), Some(format));
    }
    assert_eq!(detect(b"\x08\x08\x3a\x02ab\x42\x00"), Some(Format::Onnx));
    // Integers of another type in a layer.
    let mut dict = StateDict::default();
    dict.insert("rec.weight_ih_l0", Dtype::I64, &[4, 1], &[0; 32]).unwrap();
    assert!(dict.insert("rec.weight_ih_l0", Dtype::I64, &[4, 1], &[0; 32]).is_err());
    assert!(dict.insert("x", Dtype::I64, &[4, 1], &[0; 31]).is_err());
    assert!(dict.insert("x", Dtype::F32, &[usize::MAX, 3], &[0; 4]).is_err());
}
