//! Tests: shapes and types that the file gives its inputs and constants hold.

use super::{
    OnnxModel,
    chain::Initial,
    layer::Lengths,
    proto::{Attribute, Dimension, Dims, Model, Tensor, TensorType, Type, ValueInfo},
    refusals::{self, insert, int, load, node, two_layers},
};
use lstm_core::LstmConfig;
use prost::Message;

/// One layer, 4 to 6, without states and lengths.
fn plain() -> Model {
    refusals::plain(LstmConfig::new(4, 6))
}

#[track_caller]
fn fails(model: &Model, words: &[&str]) {
    let error = load(model).map(|_| ()).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}: expected {words:?}");
}

fn ints(name: &str, dims: &[i64], values: &[i64]) -> Tensor {
    let raw_data = Some(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    Tensor { name: name.into(), dims: dims.to_vec(), data_type: Some(7), raw_data, ..Tensor::default() }
}

/// A constant that is `value` everywhere.
fn floats(name: &str, dims: &[i64], value: f32) -> Tensor {
    let raw_data = Some(value.to_le_bytes().repeat(dims.iter().product::<i64>() as usize));
    Tensor { name: name.into(), dims: dims.to_vec(), data_type: Some(1), raw_data, ..Tensor::default() }
}

/// States in places 5 and 6 of the LSTM.
fn states(names: [&str; 2], tensors: Vec<Tensor>) -> Model {
    let mut model = plain();
    node(&mut model, "lstm_l0").input.extend(["", names[0], names[1]].map(Into::into));
    model.graph.as_mut().unwrap().initializer.extend(tensors);
    model
}

#[test]
fn constant_states_have_the_shape_of_states() {
    for value in [0.0, 0.5] {
        for shape in [&[7][..], &[2, 2, 6], &[1, 2, 7], &[1, 2, 6, 1], &[]] {
            let model = states(["s", ""], vec![floats("s", shape, value)]);
            fails(&model, &["lstm_l0", "initial_h: expected [1, batch, 6]", &format!("got {shape:?}")]);
        }
        let model = states(["h", "c"], vec![floats("h", &[1, 3, 6], value), floats("c", &[1, 5, 6], value)]);
        fails(&model, &["lstm_l0", "initial_c: expected [1, 3, 6], got [1, 5, 6]"]);
    }
    let onnx = load(&states(["s", "s"], vec![floats("s", &[1, 2, 6], 0.0)])).unwrap();
    assert_eq!(onnx.initial_c, Initial::Zero);
    // The input leaves the batch open, but the states do not.
    let error = onnx.fits("X", &[7, 3, 4]).unwrap_err().to_string();
    assert!(error.contains("`X`") && error.contains("[?, 2, 4]") && error.contains("[7, 3, 4]"), "{error}");
    onnx.fits("X", &[7, 2, 4]).unwrap();
}

/// Operators, each with its inputs.
type Nodes<'a> = &'a [(&'a str, &'a [&'a str])];

#[test]
fn zeros_that_nodes_make_have_the_shape_of_states() {
    // Nodes, each with its inputs, before the LSTM; of the last comes the state.
    let made = |nodes: Nodes<'_>| {
        let sizes = |name, values: &[i64]| ints(name, &[values.len() as i64], values);
        let mut model = states(
            ["", &format!("v{}", nodes.len() - 1)],
            vec![
                floats("zeros", &[2, 2, 6], 0.0),
                floats("one", &[1, 1, 6], 0.0),
                floats("vector", &[6], 0.0),
                sizes("nine", &[9, 9, 9]),
                sizes("state", &[1, 2, 6]),
                sizes("flat", &[-1, 6]),
                sizes("copy", &[0, 2, 1, -1]),
                sizes("0", &[0]),
                sizes("1", &[1]),
                sizes("2", &[2]),
                sizes("6", &[6]),
                ints("scalar", &[], &[1]),
            ],
        );
        for (k, (op, inputs)) in nodes.iter().enumerate() {
            insert(&mut model, k, op, inputs, &format!("v{k}"));
            if *op == "Concat" {
                let axis = Attribute { name: "axis".into(), kind: Some(2), i: Some(0), ..Attribute::default() };
                model.graph.as_mut().unwrap().node[k].attribute.push(axis);
            }
        }
        let graph = model.graph.as_mut().unwrap();
        let used: Vec<&str> = nodes.iter().flat_map(|(_, inputs)| inputs.iter().copied()).collect();
        graph.initializer.retain(|t| t.name.contains("_") || used.contains(&t.name.as_str()));
        model
    };
    let batch: [(&str, &[&str]); 5] = [
        ("Shape", &["X"]),
        ("Gather", &["v0", "scalar"]),
        ("Unsqueeze", &["v1", "0"]),
        ("Concat", &["1", "v2", "6"]),
        ("ConstantOfShape", &["v3"]),
    ];
    let cases: [(Nodes<'_>, Result<(), &str>); 15] = [
        (&[("ConstantOfShape", &["nine"])], Err("[9, 9, 9]")),
        (&[("ConstantOfShape", &["state"])], Ok(())),
        (&batch, Ok(())),
        (&[&batch[..], &[("Unsqueeze", &["v4", "0"])]].concat(), Err("[1, 1, X.shape[1], 6]")),
        (&[&batch[..], &[("Concat", &["v4", "v4"])]].concat(), Err("[2, X.shape[1], 6]")),
        (&[&batch[..3], &[("Concat", &["1", "v2", "1"]), ("Expand", &["one", "v3"])]].concat(), Ok(())),
        (&[("Expand", &["one", "state"])], Ok(())),
        (&[("Expand", &["zeros", "nine"])], Err("don't expand")),
        (&[("Expand", &["vector", "state"])], Ok(())),
        (&[("Slice", &["zeros", "1", "2"])], Ok(())),
        (&[("Slice", &["zeros", "0", "2"])], Err("[2, 2, 6]")),
        (&[("Squeeze", &["one", "0"])], Err("[1, 6]")),
        (&[("Reshape", &["zeros", "flat"])], Err("[4, 6]")),
        (&[("Reshape", &["zeros", "copy"])], Err("[2, 2, 1, 6]")),
        (&[("Reshape", &["zeros", "state"])], Err("24 zeros")),
    ];
    for (nodes, want) in cases {
        match (want, load(&made(nodes))) {
            (Ok(()), Ok(onnx)) => assert_eq!(onnx.initial_c, Initial::Zero, "{nodes:?}"),
            (Err(word), Err(error)) if error.to_string().contains(word) => {}
            (want, got) => panic!("{nodes:?}: expected {want:?}, got {:?}", got.map(|_| ())),
        }
    }
}

/// An input of the graph, whose type it becomes.
fn retype(model: &mut Model, input: &str, kind: i32) {
    let info = model.graph.as_mut().unwrap().input.iter_mut().find(|info| info.name == input).unwrap();
    info.kind.as_mut().unwrap().tensor.as_mut().unwrap().elem_type = Some(kind);
}

#[test]
fn inputs_have_a_type_that_an_lstm_takes() {
    for (input, kind, words) in [
        ("X", 6, ["X: expected floats", "`X` of INT32"]),
        ("X", 7, ["X: expected floats", "`X` of INT64"]),
        ("X", 0, ["X: expected floats", "`X` of UNDEFINED"]),
        ("initial_c", 9, ["initial_c: expected floats", "`initial_c` of BOOL"]),
        ("sequence_lens", 1, ["expected INT32", "`sequence_lens` of FLOAT"]),
        ("sequence_lens", 7, ["expected INT32", "`sequence_lens` of INT64"]),
        ("sequence_lens", 99, ["expected INT32", "`sequence_lens` of element type 99"]),
    ] {
        let mut model = two_layers();
        retype(&mut model, input, kind);
        fails(&model, &words);
    }
    let mut model = plain();
    model.graph.as_mut().unwrap().input[0].kind = None;
    fails(&model, &["X: expected floats", "`X` of UNDEFINED"]);
}

#[test]
fn inputs_of_other_types_are_in_nobodys_way() {
    let mut model = plain();
    let graph = model.graph.as_mut().unwrap();
    let ids = Type { tensor: Some(TensorType { elem_type: Some(7), shape: None }) };
    graph.input[0] = ValueInfo { name: "ids".into(), kind: Some(ids) };
    graph.input.push(ValueInfo { name: "list".into(), kind: None });
    graph.initializer.push(floats("table", &[9, 4], 0.5));
    insert(&mut model, 0, "Gather", &["table", "ids"], "X");
    fails(&model, &["(Gather)", "`ids` of INT64"]);
    let model = OnnxModel::from_bytes(&model.encode_to_vec()).unwrap();
    assert_eq!(model.lstm_named(&["lstm_l0"]).unwrap().x.name, "X");
}

#[test]
fn lengths_may_come_through_casts() {
    // A chain of casts from an input of one type.
    let cast = |from: i32, to: &[i64]| {
        let mut model = two_layers();
        retype(&mut model, "sequence_lens", from);
        for (k, &to) in to.iter().enumerate() {
            let input = if k == 0 { "sequence_lens".into() } else { format!("cast{}", k - 1) };
            insert(&mut model, k, "Cast", &[&input], &format!("cast{k}"));
            model.graph.as_mut().unwrap().node[k].attribute.push(int("to", to));
        }
        let last = format!("cast{}", to.len() - 1);
        ["lstm_l0", "lstm_l1"].iter().for_each(|name| node(&mut model, name).input[4] = last.clone());
        model
    };
    for (from, to) in [(7, &[6][..]), (7, &[7, 6]), (6, &[7, 6]), (6, &[6])] {
        assert_eq!(load(&cast(from, to)).unwrap().lengths, Lengths::Input("sequence_lens".into()), "{from} {to:?}");
    }
    fails(&cast(6, &[7]), &["lstm_l0", "expected INT32", "of INT64"]);
    fails(&cast(7, &[1]), &["(Cast)", "FLOAT", "`sequence_lens` of INT64"]);
    fails(&cast(1, &[6]), &["(Cast)", "INT32", "`sequence_lens`"]);
}

#[test]
fn an_input_with_a_default_is_declared_as_it() {
    let declared = |kind: i32, sizes: Option<&[Option<i64>]>| {
        let dims = |sizes: &[Option<i64>]| sizes.iter().map(|&value| Dimension { value, param: None }).collect();
        let shape = sizes.map(|sizes| Dims { dim: dims(sizes) });
        let tensor = Some(TensorType { elem_type: Some(kind), shape });
        let mut model = plain();
        model.graph.as_mut().unwrap().input.push(ValueInfo { name: "W_l0".into(), kind: Some(Type { tensor }) });
        model
    };
    let want = load(&plain()).unwrap();
    for sizes in [None, Some(&[Some(1), Some(24), Some(4)][..]), Some(&[None, Some(24), None])] {
        assert_eq!(load(&declared(1, sizes)).unwrap(), want, "{sizes:?}");
    }
    fails(&declared(6, None), &["input `W_l0`", "initializer is, FLOAT, got INT32"]);
    fails(&declared(1, Some(&[Some(9), Some(9)])), &["input `W_l0`", "[1, 24, 4], got [9, 9]"]);
    fails(&declared(1, Some(&[None, Some(23), Some(4)])), &["input `W_l0`", "[1, 24, 4], got [?, 23, 4]"]);
}

#[test]
fn a_dropout_has_one_ratio_and_does_not_train() {
    let dropout = |ratio: Tensor, training: Option<Tensor>| {
        let mut model = refusals::plain(LstmConfig::new(4, 6).layers(2).dropout(0.5));
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.retain(|t| t.name != "dropout");
        graph.initializer.push(ratio);
        let input = &mut graph.node.iter_mut().find(|node| node.op_type == "Dropout").unwrap().input;
        input.extend(training.iter().map(|t| t.name.clone()));
        graph.initializer.extend(training);
        model
    };
    let flag = |value: u8| {
        Some(Tensor { name: "training".into(), data_type: Some(9), raw_data: Some(vec![value]), ..Tensor::default() })
    };
    for (ratio, training) in [(0.25, None), (0.0, None), (0.25, flag(0))] {
        let onnx = load(&dropout(floats("dropout", &[], ratio), training)).unwrap();
        assert_eq!(onnx.weights.config().dropout, ratio);
    }
    fails(&dropout(floats("dropout", &[], 0.25), flag(1)), &["(Dropout)", "`training_mode`"]);
    for value in [0.0, 0.25] {
        fails(&dropout(floats("dropout", &[2], value), None), &["(Dropout)", "ratio", "scalar", "[2]"]);
    }
}
