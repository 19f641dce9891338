//! Tests of graphs with other layers and values around the LSTM.

use super::{assert_rejected, insert_node, int_attribute, load, model_with_all_inputs, model_with_x_only, node};
use crate::onnx::{
    OnnxArray, OnnxGraph, OnnxInputKind, OnnxOutputKind,
    proto::{FLOAT, FLOAT16, INT32, INT64, Model, Tensor},
};
use lstm_core::{
    HostState, LstmConfig, ModelLayer,
    ndarray::{Array3, arr1},
};

/// Adds nodes after the output `Y`, each of which reads the one before it and constants. The last one is the output.
fn with_nodes(mut model: Model, nodes: &[(&str, &[&str])]) -> Model {
    let mut value = "Y".to_owned();
    for (k, (op, constants)) in nodes.iter().enumerate() {
        let (index, output) = (model.graph.as_ref().unwrap().node.len(), format!("after{k}"));
        insert_node(&mut model, index, op, &[&[&*value][..], constants].concat(), &output);
        value = output;
    }
    model.graph.as_mut().unwrap().output[0].name = value;
    model
}

fn add_constant(model: &mut Model, name: &str, data_type: i32, dims: &[i64], bytes: &[u8]) {
    let (name, raw_data) = (name.into(), Some(bytes.to_vec()));
    let tensor = Tensor { name, dims: dims.to_vec(), data_type: Some(data_type), raw_data, ..Tensor::default() };
    model.graph.as_mut().unwrap().initializer.push(tensor);
}

/// The layers after the LSTM.
fn layers(graph: &OnnxGraph) -> Vec<String> {
    let name = |layer: &ModelLayer| match layer {
        ModelLayer::Activation(activation) => activation.to_string(),
        layer => layer.kind().to_owned(),
    };
    graph.weights().layers()[1..].iter().map(name).collect()
}

/// Makes the features of the input integers, which casts to `types` follow.
fn with_integer_features(from: i32, types: &[i32]) -> Model {
    let mut model = model_with_x_only(LstmConfig::new(3, 5));
    let input = model.graph.as_mut().unwrap().input[0].value_type.as_mut().unwrap();
    input.tensor.as_mut().unwrap().elem_type = Some(from);
    let mut value = "X".to_owned();
    for (k, &to) in types.iter().enumerate() {
        insert_node(&mut model, k, "Cast", &[&value], &format!("cast{k}"));
        value = format!("cast{k}");
        model.graph.as_mut().unwrap().node[k].attribute.push(int_attribute("to", to.into()));
    }
    node(&mut model, "lstm_l0").input[0] = value;
    model
}

#[test]
fn integer_features_may_be_cast_to_floats() {
    for (from, types) in
        [(INT64, &[FLOAT][..]), (INT32, &[FLOAT]), (INT64, &[INT32, FLOAT]), (INT64, &[FLOAT, INT64, FLOAT])]
    {
        let graph = load(&with_integer_features(from, types)).unwrap_or_else(|e| panic!("{from} {types:?}: {e}"));
        assert_eq!(graph.inputs()[0].kind, OnnxInputKind::Features);
        let x = OnnxArray::I64(Array3::from_elem((2, 1, 3), 7).into_dyn());
        let arguments = graph.arguments([("X".to_owned(), x)].into()).unwrap();
        assert!(arguments.features.unwrap().iter().all(|&v| v == 7.0));
    }
    // The cast to integers cuts the floats off.
    assert_rejected(&with_integer_features(FLOAT, &[INT64, FLOAT]), &["(Cast)", "from INT64 to FLOAT"]);
    assert_rejected(&with_integer_features(INT64, &[FLOAT16, FLOAT]), &["(Cast)", "to FLOAT16"]);
}

#[test]
fn clip_is_relu_or_a_hard_sigmoid() {
    let clip = |bounds: &[Option<f32>]| {
        let names: Vec<&str> = ["min", "max"].iter().zip(bounds).map(|(name, b)| b.map_or("", |_| *name)).collect();
        let mut model = with_nodes(model_with_x_only(LstmConfig::new(3, 5)), &[("Clip", &names)]);
        for (name, bound) in ["min", "max"].iter().zip(bounds) {
            if let Some(bound) = bound {
                add_constant(&mut model, name, FLOAT, &[], &bound.to_le_bytes());
            }
        }
        model
    };
    for bounds in
        [&[Some(0.0)][..], &[Some(-0.0), None], &[Some(0.0), Some(f32::MAX)], &[Some(0.0), Some(f32::INFINITY)]]
    {
        assert_eq!(layers(&load(&clip(bounds)).unwrap()), ["relu"], "{bounds:?}");
    }
    let hard_sigmoid = layers(&load(&clip(&[Some(0.0), Some(1.0)])).unwrap());
    assert_eq!(hard_sigmoid, ["hard_sigmoid(alpha=1, beta=0)"]);
    for bounds in [&[Some(0.0), Some(6.0)][..], &[Some(-1.0)], &[None, Some(1.0)], &[None]] {
        assert_rejected(&clip(bounds), &["(Clip)", "expected the bounds 0 and none"]);
    }
}

#[test]
fn softmax_may_be_followed_by_nodes_that_move_elements() {
    let model = model_with_x_only(LstmConfig::new(3, 5));
    for nodes in
        [&[("Softmax", &[][..]), ("Identity", &[])][..], &[("Softmax", &[]), ("Transpose", &[]), ("Identity", &[])]]
    {
        assert_eq!(layers(&load(&with_nodes(model.clone(), nodes)).unwrap()), ["softmax"], "{nodes:?}");
    }
    // Of one step, whose axis goes.
    let mut model =
        with_nodes(model, &[("Slice", &["start", "end", "zero"]), ("Softmax", &[]), ("Squeeze", &["zero"])]);
    for (name, value) in [("start", -1i64), ("end", i64::MAX), ("zero", 0)] {
        add_constant(&mut model, name, INT64, &[1], &value.to_le_bytes());
    }
    assert!(layers(&load(&model).unwrap()).contains(&"softmax".to_owned()));
}

#[test]
fn lengths_may_be_outputs() {
    let mut model = model_with_all_inputs(LstmConfig::new(3, 5));
    insert_node(&mut model, 0, "Identity", &["sequence_lens"], "out_lens");
    let output = &mut model.graph.as_mut().unwrap().output;
    let mut lengths = output[0].clone();
    lengths.name = "out_lens".into();
    output.push(lengths);
    let graph = load(&model).unwrap();
    assert_eq!(graph.outputs()[3].kind, OnnxOutputKind::Lengths);
    let (state, lens) = (HostState::zeros(&LstmConfig::new(3, 5), 2).unwrap(), arr1(&[4, 2]).into_dyn());
    let states = ["initial_h", "initial_c"].map(|name| (name.to_owned(), OnnxArray::F32(state.h.clone().into_dyn())));
    let mut inputs: std::collections::BTreeMap<_, _> = states.into();
    inputs.insert("X".into(), OnnxArray::F32(Array3::zeros((4, 2, 3)).into_dyn()));
    inputs.insert("sequence_lens".into(), OnnxArray::I64(lens));
    let arguments = graph.arguments(inputs).unwrap();
    let outputs = graph.to_outputs(&arguments, Array3::zeros((2, 4, 5)).view(), &[state]).unwrap();
    assert_eq!(outputs[3].1.shape(), [2]);
    assert_eq!(outputs[3].1.iter().copied().collect::<Vec<_>>(), [4.0, 2.0]);
}

/// Operators on values, not on sizes, are not called dependent on sizes.
#[test]
fn unsupported_operators_are_named() {
    let model = with_nodes(model_with_x_only(LstmConfig::new(3, 5)), &[("ReduceMax", &[])]);
    assert_rejected(&model, &["(ReduceMax)", "this operator is not supported"]);
}
