//! Random edits of valid graphs: loading the result gives an error or a model, but never panics.

use proptest::{prelude::*, sample::Index};
use prost::Message;

use crate::{
    OpenOptions,
    onnx::{
        OnnxModel,
        proto::{INT64, Model},
    },
};

/// Model files to edit, which together use all supported operators.
const MODEL_FILES: [&[u8]; 12] = [
    include_bytes!("../../../../../tests/data/onnx/pytorch-dynamo-dynamic-batch-first.onnx"),
    include_bytes!("../../../../../tests/data/onnx/pytorch-script-dynamic-state-stacked-bidirectional.onnx"),
    include_bytes!("../../../../../tests/data/onnx/pytorch-script-opset-9.onnx"),
    include_bytes!("../../../../../tests/data/onnx/peephole-bidirectional-clip.onnx"),
    include_bytes!("../../../../../tests/data/onnx/pytorch-script-static-ends.onnx"),
    include_bytes!("../../../../../tests/data/onnx/pytorch-script-packed-stacked-bidirectional.onnx"),
    include_bytes!("../../../../../tests/data/onnx/keras-bidirectional-states.onnx"),
    include_bytes!("../../../../../tests/data/onnx/two-nodes.onnx"),
    include_bytes!("../../../../../tests/data/models/tagger.onnx"),
    include_bytes!("../../../../../tests/data/models/learned.onnx"),
    include_bytes!("../../../../../tests/data/models/statesplit.onnx"),
    include_bytes!("../../../../../tests/data/models/if.onnx"),
];

/// Operator names that an edit can put in place of the operator of a node.
const OPERATOR_NAMES: [&str; 28] = [
    "LSTM",
    "Constant",
    "Identity",
    "Cast",
    "Shape",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Slice",
    "Split",
    "Mul",
    "Reshape",
    "Transpose",
    "Expand",
    "Dropout",
    "MatMul",
    "Add",
    "Div",
    "Gemm",
    "Softmax",
    "Relu",
    "Tile",
    "Where",
    "Range",
    "Flatten",
    "ReduceMean",
    "ReverseSequence",
];

/// A random edit of a graph: the number of the kind of edit, two random indices, and a new number. The kind determines
/// which lists the indices select from, and which number in the graph the new one replaces.
type GraphEdit = (u8, Index, Index, i64);

/// Generates numbers to use as sizes, axes or indices, valid or not.
fn any_number() -> impl Strategy<Value = i64> {
    prop_oneof![-6..12i64, Just(i64::MAX), Just(i64::MIN), any::<i64>()]
}

/// Applies one edit, if the graph contains an element of the kind that the edit changes.
fn apply_edit(model: &mut Model, (kind, first_index, second_index, new_number): GraphEdit) {
    let Some(graph) = &mut model.graph else { return };
    let names: Vec<String> =
        graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output)).cloned().collect();
    if graph.node.is_empty() || names.is_empty() {
        return;
    }
    let index = first_index.index(graph.node.len());
    let node = &mut graph.node[index];
    match kind {
        // Replace an operand by another value.
        0..3 if !node.input.is_empty() => *second_index.get_mut(&mut node.input) = first_index.get(&names).clone(),
        3 => node.op_type = (*second_index.get(&OPERATOR_NAMES)).to_owned(),
        4 => drop(node.input.pop()),
        5 => node.output.push(second_index.get(&names).clone()),
        6 | 7 if !node.attribute.is_empty() => {
            let attribute = second_index.get_mut(&mut node.attribute);
            attribute.i = attribute.i.map(|_| new_number);
            if !attribute.ints.is_empty() {
                *first_index.get_mut(&mut attribute.ints) = new_number;
            }
        }
        8 | 9 => {
            let constants = graph.node.iter_mut().flat_map(|node| &mut node.attribute).filter_map(|a| a.t.as_mut());
            let mut tensors: Vec<_> = constants.chain(&mut graph.initializer).collect();
            if tensors.is_empty() {
                return;
            }
            let tensor = first_index.get_mut(&mut tensors);
            match (&mut tensor.raw_data, &mut tensor.dims[..]) {
                (Some(raw), _) if tensor.data_type == Some(INT64) && raw.len() >= 8 => {
                    raw[..8].copy_from_slice(&new_number.to_le_bytes());
                }
                (_, []) => tensor.dims.push(new_number),
                (_, dims) => *second_index.get_mut(dims) = new_number,
            }
        }
        10 => {
            let node = graph.node.remove(index);
            graph.node.insert(second_index.index(graph.node.len() + 1), node);
        }
        11 => {
            let node_copy = graph.node[index].clone();
            graph.node.insert(index, node_copy);
        }
        12 => drop(graph.node.remove(index)),
        _ => {
            // Fix a size of an input.
            let input = first_index.get_mut(&mut graph.input);
            let shape = input
                .value_type
                .as_mut()
                .and_then(|value_type| value_type.tensor.as_mut())
                .and_then(|t| t.shape.as_mut());
            if let Some(dim) = shape.and_then(|shape| shape.dim.get_mut(second_index.index(3))) {
                dim.value = Some(new_number);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edited_graphs_never_panic(
        file in 0..MODEL_FILES.len(),
        edits in prop::collection::vec((0..14u8, any::<Index>(), any::<Index>(), any_number()), 1..5),
    ) {
        let mut model = Model::decode(MODEL_FILES[file]).unwrap();
        edits.into_iter().for_each(|edit| apply_edit(&mut model, edit));
        if let Ok(model) = OnnxModel::from_bytes(&model.encode_to_vec()) {
            let _ = model.graph(&OpenOptions::default());
            let names = model.lstm_nodes();
            let last = names.last().cloned().into_iter().collect();
            let _ = model.graph(&OpenOptions { names, ..OpenOptions::default() });
            let _ = model.graph(&OpenOptions { names: last, ..OpenOptions::default() });
        }
    }
}
