//! Tests on edited graphs, which need the private protocol buffer messages.

mod declared_shapes;
mod graph_edits;
mod invalid_graphs;
mod layers;

use prost::Message;

use super::{
    OnnxGraph, OnnxModel, OnnxWriter,
    proto::{Attribute, Model, Node, Tensor, attribute_type},
};
use crate::OpenOptions;
use lstm_core::{CellKind, Init, LstmConfig, Result, Weights};

/// A model with inputs for the initial state and the lengths.
fn model_with_all_inputs(config: LstmConfig) -> Model {
    let weights = Weights::init(config, &Init::default(), 1).unwrap();
    let bytes = OnnxWriter::new(&weights).initial_state().lengths().to_bytes().unwrap();
    Model::decode(&bytes[..]).unwrap()
}

/// A model with the input `X` only.
fn model_with_x_only(config: LstmConfig) -> Model {
    let weights = Weights::init(config, &Init::default(), 1).unwrap();
    Model::decode(&OnnxWriter::new(&weights).to_bytes().unwrap()[..]).unwrap()
}

/// A model of two bidirectional layers with peepholes, input size 3, hidden size 5, and all inputs.
fn two_layer_model() -> Model {
    model_with_all_inputs(LstmConfig::new(3, 5).layers(2).bidirectional().cell(CellKind::PeepholeDiagonal))
}

/// Encodes a model and loads it.
fn load(model: &Model) -> Result<OnnxGraph> {
    OnnxModel::from_bytes(&model.encode_to_vec())?.graph(&OpenOptions::default())
}

/// Encodes a model and loads the `LSTM` nodes with these names.
fn load_named(model: &Model, names: &[&str]) -> Result<OnnxGraph> {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    OnnxModel::from_bytes(&model.encode_to_vec())?.graph(&OpenOptions { names, ..OpenOptions::default() })
}

/// The configuration of the first LSTM.
fn config(graph: &OnnxGraph) -> LstmConfig {
    graph.weights().lstms().next().unwrap().config().clone()
}

/// Checks that loading fails with a message that contains all `words`.
#[track_caller]
fn assert_rejected(model: &Model, words: &[&str]) {
    let message = match load(model) {
        Ok(_) => panic!("expected an error with {words:?}, but the model was loaded"),
        Err(error) => error.to_string(),
    };
    assert!(words.iter().all(|word| message.contains(word)), "{message}: expected {words:?}");
}

/// The node of this name.
fn node<'m>(model: &'m mut Model, name: &str) -> &'m mut Node {
    let nodes = &mut model.graph.as_mut().unwrap().node;
    nodes.iter_mut().find(|node| node.name == name).unwrap()
}

/// The initializer of this name.
fn tensor<'m>(model: &'m mut Model, name: &str) -> &'m mut Tensor {
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

/// Adds or replaces an attribute of the node with name `node_name`.
fn set_attribute(model: &mut Model, node_name: &str, attribute: Attribute) {
    let attributes = &mut node(model, node_name).attribute;
    attributes.retain(|a| a.name != attribute.name);
    attributes.push(attribute);
}

fn int_attribute(name: &str, i: i64) -> Attribute {
    let attribute_type = Some(attribute_type::INT);
    Attribute { name: name.into(), attribute_type, i: Some(i), ..Attribute::default() }
}

fn string_attribute(name: &str, s: &str) -> Attribute {
    let attribute_type = Some(attribute_type::STRING);
    Attribute { name: name.into(), attribute_type, s: Some(s.into()), ..Attribute::default() }
}

/// Inserts a node without a name before the node with this index.
fn insert_node(model: &mut Model, index: usize, op_type: &str, input: &[&str], output: &str) {
    let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let node = Node { op_type: op_type.into(), input: strings(input), output: strings(&[output]), ..Node::default() };
    model.graph.as_mut().unwrap().node.insert(index, node);
}
