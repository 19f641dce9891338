//! Tests that declared shapes and types of graph inputs and constants are checked.

use super::{
    assert_rejected, config, insert_node, int_attribute, load, load_named, model_with_x_only, node, two_layer_model,
};
use crate::onnx::{
    OnnxInputKind,
    proto::{BOOL, Dimension, Dims, FLOAT, INT32, INT64, Model, Tensor, TensorType, Type, ValueInfo},
};
use lstm_core::LstmConfig;

/// A model of one layer, input size 4, hidden size 6, with the input `X` only.
fn one_layer_model() -> Model {
    model_with_x_only(LstmConfig::new(4, 6))
}

fn int_tensor(name: &str, dims: &[i64], values: &[i64]) -> Tensor {
    let raw_data = Some(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    Tensor { name: name.into(), dims: dims.to_vec(), data_type: Some(INT64), raw_data, ..Tensor::default() }
}

/// A tensor with all elements equal to `value`.
fn filled_tensor(name: &str, dims: &[i64], value: f32) -> Tensor {
    let raw_data = Some(value.to_le_bytes().repeat(dims.iter().product::<i64>() as usize));
    Tensor { name: name.into(), dims: dims.to_vec(), data_type: Some(FLOAT), raw_data, ..Tensor::default() }
}

/// A model of one layer with the initializers `tensors`. The inputs `initial_h` and `initial_c` of its `LSTM` node are
/// the values named `names`.
fn model_with_states(names: [&str; 2], tensors: Vec<Tensor>) -> Model {
    let mut model = one_layer_model();
    node(&mut model, "lstm_l0").input.extend(["", names[0], names[1]].map(Into::into));
    model.graph.as_mut().unwrap().initializer.extend(tensors);
    model
}

#[test]
fn rejects_constant_states_of_wrong_shape() {
    for value in [0.0, 0.5] {
        for shape in [&[7][..], &[2, 2, 6], &[1, 2, 7], &[1, 2, 6, 1], &[]] {
            let model = model_with_states(["s", ""], vec![filled_tensor("s", shape, value)]);
            assert_rejected(&model, &["lstm_l0", "initial_h: expected [1, batch, 6]", &format!("got {shape:?}")]);
        }
        let model = model_with_states(
            ["h", "c"],
            vec![filled_tensor("h", &[1, 3, 6], value), filled_tensor("c", &[1, 5, 6], value)],
        );
        assert_rejected(&model, &["lstm_l0", "initial_c: expected [1, batch, 6], got [1, 5, 6]", "expected 3"]);
    }
    let onnx = load(&model_with_states(["s", "s"], vec![filled_tensor("s", &[1, 2, 6], 0.0)])).unwrap();
    // The constant states fix the batch size, though the declared shape of the input does not.
    assert_eq!(onnx.inputs()[0].shape, [None, Some(2), Some(4)]);
    let arguments =
        |shape: [usize; 3]| onnx.arguments([("X".to_owned(), ndarray::ArrayD::<f32>::zeros(&shape[..]).into())].into());
    let error = arguments([7, 3, 4]).unwrap_err().to_string();
    assert!(error.contains("`X`") && error.contains("[?, 2, 4]") && error.contains("[7, 3, 4]"), "{error}");
    assert!(arguments([7, 2, 4]).unwrap().states.is_none());
}

/// Operators with their inputs. The output of the node with index `k` is `v{k}`.
type OperatorsWithInputs<'a> = &'a [(&'a str, &'a [&'a str])];

#[test]
fn rejects_computed_zero_states_of_wrong_shape() {
    // The nodes are inserted before the LSTM. The output of the last one is the initial state.
    let build_model = |nodes: OperatorsWithInputs<'_>| {
        let vector = |name, values: &[i64]| int_tensor(name, &[values.len() as i64], values);
        let mut model = model_with_states(
            ["", &format!("v{}", nodes.len() - 1)],
            vec![
                filled_tensor("zeros", &[2, 2, 6], 0.0),
                filled_tensor("one", &[1, 1, 6], 0.0),
                filled_tensor("vector", &[6], 0.0),
                vector("nine", &[9, 9, 9]),
                vector("state", &[1, 2, 6]),
                vector("flat", &[-1, 6]),
                vector("copy", &[0, 2, 1, -1]),
                vector("0", &[0]),
                vector("1", &[1]),
                vector("2", &[2]),
                vector("6", &[6]),
                int_tensor("scalar", &[], &[1]),
            ],
        );
        for (k, (op, inputs)) in nodes.iter().enumerate() {
            insert_node(&mut model, k, op, inputs, &format!("v{k}"));
            if *op == "Concat" {
                model.graph.as_mut().unwrap().node[k].attribute.push(int_attribute("axis", 0));
            }
        }
        let graph = model.graph.as_mut().unwrap();
        let used_names: Vec<&str> = nodes.iter().flat_map(|(_, inputs)| inputs.iter().copied()).collect();
        graph.initializer.retain(|t| t.name.contains("_") || used_names.contains(&t.name.as_str()));
        model
    };
    // Zeros of the batch size of `X`.
    let batch_zeros_nodes: [(&str, &[&str]); 5] = [
        ("Shape", &["X"]),
        ("Gather", &["v0", "scalar"]),
        ("Unsqueeze", &["v1", "0"]),
        ("Concat", &["1", "v2", "6"]),
        ("ConstantOfShape", &["v3"]),
    ];
    let cases: [(OperatorsWithInputs<'_>, Result<(), &str>); 15] = [
        (&[("ConstantOfShape", &["nine"])], Err("[9, 9, 9]")),
        (&[("ConstantOfShape", &["state"])], Ok(())),
        (&batch_zeros_nodes, Ok(())),
        (&[&batch_zeros_nodes[..], &[("Unsqueeze", &["v4", "0"])]].concat(), Err("got [1, 1, 3, 6]")),
        (&[&batch_zeros_nodes[..], &[("Concat", &["v4", "v4"])]].concat(), Err("got [2, 3, 6]")),
        (&[&batch_zeros_nodes[..3], &[("Concat", &["1", "v2", "1"]), ("Expand", &["one", "v3"])]].concat(), Ok(())),
        (&[("Expand", &["one", "state"])], Ok(())),
        (&[("Expand", &["zeros", "nine"])], Err("cannot expand")),
        (&[("Expand", &["vector", "state"])], Ok(())),
        (&[("Slice", &["zeros", "1", "2"])], Ok(())),
        (&[("Slice", &["zeros", "0", "2"])], Err("[2, 2, 6]")),
        (&[("Squeeze", &["one", "0"])], Err("[1, 6]")),
        (&[("Reshape", &["zeros", "flat"])], Err("[4, 6]")),
        (&[("Reshape", &["zeros", "copy"])], Err("[2, 2, 1, 6]")),
        (&[("Reshape", &["zeros", "state"])], Err("cannot reshape [2, 2, 6]")),
    ];
    for (nodes, want) in cases {
        match (want, load(&build_model(nodes))) {
            (Ok(()), Ok(onnx)) => assert_eq!(onnx.inputs().len(), 1, "{nodes:?}"),
            (Err(word), Err(error)) if error.to_string().contains(word) => {}
            (want, got) => panic!("{nodes:?}: expected {want:?}, got {:?}", got.map(|_| ())),
        }
    }
}

/// Changes the element type of a graph input.
fn set_input_type(model: &mut Model, input: &str, elem_type: i32) {
    let input_info =
        model.graph.as_mut().unwrap().input.iter_mut().find(|input_info| input_info.name == input).unwrap();
    input_info.value_type.as_mut().unwrap().tensor.as_mut().unwrap().elem_type = Some(elem_type);
}

#[test]
fn rejects_inputs_of_wrong_type() {
    for (input, elem_type, words) in [
        ("X", INT32, ["X: expected floats", "`X` of INT32"]),
        ("X", INT64, ["X: expected floats", "`X` of INT64"]),
        ("X", 0, ["expected numbers", "`X` of UNDEFINED"]),
        ("initial_c", BOOL, ["initial_c: expected floats", "of BOOL"]),
        ("sequence_lens", FLOAT, ["expected INT32", "`sequence_lens` of FLOAT"]),
        ("sequence_lens", INT64, ["expected INT32", "`sequence_lens` of INT64"]),
        ("sequence_lens", 99, ["expected numbers", "`sequence_lens` of element type 99"]),
    ] {
        let mut model = two_layer_model();
        set_input_type(&mut model, input, elem_type);
        assert_rejected(&model, &words);
    }
    let mut model = one_layer_model();
    model.graph.as_mut().unwrap().input[0].value_type = None;
    assert_rejected(&model, &["`X` is not a tensor"]);
}

#[test]
fn ignored_nodes_may_have_inputs_of_any_type() {
    let mut model = one_layer_model();
    let graph = model.graph.as_mut().unwrap();
    let int64_type = Type { tensor: Some(TensorType { elem_type: Some(INT64), shape: None }) };
    graph.input[0] = ValueInfo { name: "ids".into(), value_type: Some(int64_type) };
    graph.input.push(ValueInfo { name: "list".into(), value_type: None });
    graph.initializer.push(filled_tensor("table", &[9, 4], 0.5));
    insert_node(&mut model, 0, "Gather", &["table", "ids"], "X");
    assert_rejected(&model, &["(Gather)", "shape of the input `ids`"]);
    let onnx = load_named(&model, &["lstm_l0"]).unwrap();
    assert_eq!((onnx.inputs()[0].name.as_str(), &onnx.inputs()[0].kind), ("X", &OnnxInputKind::Features));
}

#[test]
fn accepts_lengths_after_integer_casts() {
    // Inserts casts to these types between `sequence_lens`, of type `from`, and the LSTM nodes.
    let model_with_casts = |from: i32, to: &[i32]| {
        let mut model = two_layer_model();
        set_input_type(&mut model, "sequence_lens", from);
        for (k, &to) in to.iter().enumerate() {
            let input = if k == 0 { "sequence_lens".into() } else { format!("cast{}", k - 1) };
            insert_node(&mut model, k, "Cast", &[&input], &format!("cast{k}"));
            model.graph.as_mut().unwrap().node[k].attribute.push(int_attribute("to", i64::from(to)));
        }
        let last_output = format!("cast{}", to.len() - 1);
        ["lstm_l0", "lstm_l1"].iter().for_each(|name| node(&mut model, name).input[4] = last_output.clone());
        model
    };
    for (from, to) in [
        (INT64, &[INT32][..]),
        (INT64, &[INT64, INT32]),
        (INT32, &[INT64, INT32]),
        (INT32, &[INT32]),
        (FLOAT, &[INT32]),
    ] {
        assert_eq!(
            load(&model_with_casts(from, to)).unwrap().inputs()[1].kind,
            OnnxInputKind::Lengths,
            "{from} {to:?}"
        );
    }
    assert_rejected(&model_with_casts(INT32, &[INT64]), &["lstm_l0", "expected INT32", "of INT64"]);
    assert_rejected(&model_with_casts(INT64, &[FLOAT]), &["lstm_l0", "expected INT32", "of FLOAT"]);
}

#[test]
fn rejects_declarations_that_contradict_the_default() {
    let model_with_declared_weight = |elem_type: i32, sizes: Option<&[Option<i64>]>| {
        let dims = |sizes: &[Option<i64>]| sizes.iter().map(|&value| Dimension { value, param: None }).collect();
        let shape = sizes.map(|sizes| Dims { dim: dims(sizes) });
        let tensor = Some(TensorType { elem_type: Some(elem_type), shape });
        let mut model = one_layer_model();
        model.graph.as_mut().unwrap().input.push(ValueInfo { name: "W_l0".into(), value_type: Some(Type { tensor }) });
        model
    };
    let expected = load(&one_layer_model()).unwrap();
    for sizes in [None, Some(&[Some(1), Some(24), Some(4)][..]), Some(&[None, Some(24), None])] {
        assert_eq!(load(&model_with_declared_weight(FLOAT, sizes)).unwrap(), expected, "{sizes:?}");
    }
    assert_rejected(
        &model_with_declared_weight(INT32, None),
        &["input `W_l0`", "expected FLOAT, as in its initializer, got INT32"],
    );
    assert_rejected(
        &model_with_declared_weight(FLOAT, Some(&[Some(9), Some(9)])),
        &["input `W_l0`", "[1, 24, 4], as in its initializer, got [9, 9]"],
    );
    assert_rejected(
        &model_with_declared_weight(FLOAT, Some(&[None, Some(23), Some(4)])),
        &["input `W_l0`", "[1, 24, 4], as in its initializer, got [?, 23, 4]"],
    );
}

#[test]
fn rejects_dropout_in_training_mode_or_with_several_ratios() {
    let model_with_dropout = |ratio: Tensor, training_mode: Option<Tensor>| {
        let mut model = model_with_x_only(LstmConfig::new(4, 6).layers(2).dropout(0.5));
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.retain(|t| t.name != "dropout");
        graph.initializer.push(ratio);
        let input = &mut graph.node.iter_mut().find(|node| node.op_type == "Dropout").unwrap().input;
        input.extend(training_mode.iter().map(|t| t.name.clone()));
        graph.initializer.extend(training_mode);
        model
    };
    let bool_tensor = |value: u8| {
        Some(Tensor {
            name: "training".into(),
            data_type: Some(BOOL),
            raw_data: Some(vec![value]),
            ..Tensor::default()
        })
    };
    for (ratio, training_mode) in [(0.25, None), (0.0, None), (0.25, bool_tensor(0))] {
        let onnx = load(&model_with_dropout(filled_tensor("dropout", &[], ratio), training_mode)).unwrap();
        assert_eq!(config(&onnx).dropout, ratio);
    }
    assert_rejected(
        &model_with_dropout(filled_tensor("dropout", &[], 0.25), bool_tensor(1)),
        &["(Dropout)", "`training_mode`"],
    );
    for value in [0.0, 0.25] {
        assert_rejected(
            &model_with_dropout(filled_tensor("dropout", &[2], value), None),
            &["(Dropout)", "ratio", "scalar", "[2]"],
        );
    }
}
