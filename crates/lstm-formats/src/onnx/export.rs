//! Writes ONNX files. The bytes depend only on the weights and the options.

use std::path::Path;

use ndarray::{ArrayD, Axis};
use prost::Message;

use super::proto::{
    Attribute, Dimension, Dims, FLOAT, Graph, INT32, INT64, Model, Node, Opset, Tensor, TensorType, Type, ValueInfo,
    attribute_type,
};
use lstm_core::{
    Bias, CellKind, Direction, Error, GateActivation, GateActivations, LayerWeights, Param, Precision, Result, Weights,
    weights::file,
};

/// Version of the ONNX operator set that written files use: the first one with the current form of all operators in
/// them.
const EXPORT_OPSET: i64 = 14;
/// Version of the ONNX file format, ONNX's `ir_version`.
const IR_VERSION: i64 = 8;

/// Maximum size of a protocol buffer in bytes.
const MAX_PROTOBUF_BYTES: usize = i32::MAX as usize;

/// Writes a model as an ONNX graph with one `LSTM` node for each layer. ONNX Runtime can run the graph, and
/// [`OnnxModel`](super::OnnxModel) reads bit-identical weights from it.
///
/// The graph has the input `X`, `[steps, batch, input]`, and the outputs `Y`, `[steps, batch, directions * hidden]`,
/// and `Y_h` and `Y_c`, `[layers * directions, batch, hidden]`, as in PyTorch. By default, the initial state is zero
/// and all sequences are as long as the input.
///
/// ```no_run
/// # use lstm_core::Weights;
/// # use lstm_formats::OnnxWriter;
/// # fn save(weights: &Weights) -> lstm_core::Result<()> {
/// OnnxWriter::new(weights).initial_state().save("model.onnx")
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct OnnxWriter<'a> {
    /// The weights to write.
    weights: &'a Weights,
    /// Whether the graph has inputs for the initial state.
    has_initial_state: bool,
    /// Whether the graph has an input for the lengths.
    has_lengths: bool,
}

impl<'a> OnnxWriter<'a> {
    /// Creates a writer of these weights, for a graph with the input `X` only.
    pub fn new(weights: &'a Weights) -> Self {
        OnnxWriter { weights, has_initial_state: false, has_lengths: false }
    }

    /// Adds the inputs `initial_h` and `initial_c`, `[layers * directions, batch, hidden]`.
    pub fn initial_state(self) -> Self {
        OnnxWriter { has_initial_state: true, ..self }
    }

    /// Adds the input `sequence_lens`, `[batch]` of INT32, with the lengths of the sequences. The input is then
    /// required: ONNX can't express an optional one without fixing the batch size.
    pub fn lengths(self) -> Self {
        OnnxWriter { has_lengths: true, ..self }
    }

    /// Returns the bytes of the file.
    ///
    /// A single bias becomes ONNX's first bias, and the second one is zero. The unfused cell is written like the fused
    /// one, which computes the same. Dropout becomes `Dropout` nodes, which are the identity in inference.
    ///
    /// # Errors
    /// [`Error::Config`] for the options that ONNX can't express: the dense peephole and projections. [`Error::Format`]
    /// if the file would exceed the 2 GiB that the format allows.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        to_file_bytes(self.checked_graph()?)
    }

    /// Builds the graph, if ONNX can express it.
    pub(crate) fn checked_graph(&self) -> Result<Graph> {
        let config = self.weights.config();
        if config.precision != Precision::F32 {
            let reason = format!(
                "ONNX files hold f32 weights, got {}; convert them with `quantize(Precision::F32)`",
                config.precision
            );
            return Err(Error::config("precision", reason));
        }
        if config.cell == CellKind::PeepholeDense {
            return Err(Error::config("cell", "ONNX can't express the dense peephole cell"));
        }
        if let Some(size) = config.proj_size {
            return Err(Error::config("proj_size", format!("ONNX can't express a projection, got proj_size {size}")));
        }
        Ok(self.build_graph())
    }

    /// Writes a file. The bytes go to a temporary file that is renamed on success, so that an error leaves an existing
    /// file unchanged.
    ///
    /// # Errors
    /// The errors of [`to_bytes`](Self::to_bytes), and [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        file::write_atomic(path.as_ref(), &self.to_bytes()?)
    }

    /// Builds the graph.
    fn build_graph(&self) -> Graph {
        let config = self.weights.config();
        let (layers, directions) = (config.num_layers, config.num_directions());
        let rows = layers * directions;
        let mut graph = Graph { name: "lstm".into(), ..Graph::default() };

        let state_shape = [fixed_dim(rows), symbolic_dim("batch"), fixed_dim(config.hidden_size)];
        graph.input.push(value_info(
            "X",
            FLOAT,
            &[symbolic_dim("steps"), symbolic_dim("batch"), fixed_dim(config.input_size)],
        ));
        if self.has_lengths {
            graph.input.push(value_info("sequence_lens", INT32, &[symbolic_dim("batch")]));
        }
        if self.has_initial_state {
            graph.input.extend(["initial_h", "initial_c"].map(|name| value_info(name, FLOAT, &state_shape)));
        }
        graph.output.push(value_info(
            "Y",
            FLOAT,
            &[symbolic_dim("steps"), symbolic_dim("batch"), fixed_dim(config.output_size())],
        ));
        graph.output.extend(["Y_h", "Y_c"].map(|name| value_info(name, FLOAT, &state_shape)));

        match directions {
            1 => graph.initializer.push(int_tensor("direction_axis", &[1])),
            _ => graph.initializer.push(int_tensor("joined_shape", &[0, 0, -1])),
        }
        if self.has_initial_state && layers > 1 {
            graph.initializer.push(int_tensor("layers_axis", &[0]));
            graph.initializer.extend((0..=layers).map(|k| int_tensor(&format!("row_{k}"), &[(k * directions) as i64])));
        }
        if config.dropout > 0.0 {
            graph.initializer.push(float_tensor("dropout", &[], &[config.dropout]));
        }

        let mut layer_input = "X".to_owned();
        for (k, weights) in self.weights.layers().chunks(directions).enumerate() {
            let is_last_layer = k + 1 == layers;
            let name = |stem: &str| format!("{stem}_l{k}");
            let state_name = |stem: &str| if layers == 1 { stem.to_owned() } else { name(stem) };
            let inputs = self.add_layer_inputs(&mut graph, k, layer_input, weights);
            let outputs = [name("sequence"), state_name("Y_h"), state_name("Y_c")];
            graph.node.push(node(
                "LSTM",
                &name("lstm"),
                &inputs,
                &outputs.each_ref().map(String::as_str),
                self.lstm_attributes(),
            ));
            let y = if is_last_layer { "Y".to_owned() } else { name("Y") };
            match directions {
                1 => {
                    let inputs = [name("sequence"), "direction_axis".into()];
                    graph.node.push(node("Squeeze", &name("squeeze"), &inputs, &[&y], vec![]));
                }
                _ => {
                    let (inputs, transposed_name) = ([name("sequence")], name("by_step"));
                    let perm = Attribute { ints: vec![0, 2, 1, 3], ..attribute("perm", attribute_type::INTS) };
                    graph.node.push(node("Transpose", &name("transpose"), &inputs, &[&transposed_name], vec![perm]));
                    let inputs = [transposed_name, "joined_shape".into()];
                    graph.node.push(node("Reshape", &name("reshape"), &inputs, &[&y], vec![]));
                }
            }
            layer_input = y;
            if config.dropout > 0.0 && !is_last_layer {
                let dropout_output = name("dropped");
                graph.node.push(node(
                    "Dropout",
                    &name("dropout"),
                    &[layer_input, "dropout".into()],
                    &[&dropout_output],
                    vec![],
                ));
                layer_input = dropout_output;
            }
        }
        if layers > 1 {
            for name in ["Y_h", "Y_c"] {
                let state_names: Vec<String> = (0..layers).map(|k| format!("{name}_l{k}")).collect();
                let axis = Attribute { i: Some(0), ..attribute("axis", attribute_type::INT) };
                graph.node.push(node("Concat", &format!("all_{name}"), &state_names, &[name], vec![axis]));
            }
        }
        graph
    }

    /// Adds the weights and initial states of layer `k` to the graph, and returns the names of the inputs of its node.
    fn add_layer_inputs(&self, graph: &mut Graph, k: usize, x: String, weights: &[LayerWeights]) -> Vec<String> {
        let config = self.weights.config();
        let directions = config.num_directions();
        /// ONNX's gate order i, o, f, c as indices into this library's order i, f, g, o, where g is ONNX's c.
        const ONNX_GATE_ORDER: &[usize] = &[0, 3, 1, 2];
        let mut add_weight = |stem: &str, shape: &[usize], params: &[(Param, &[usize])]| {
            let mut values = Vec::new();
            for layer in weights {
                params.iter().for_each(|(param, order)| append_reordered(layer.get(*param), order, &mut values));
                // Appends a second bias of zeros if the model has one bias.
                values.resize(values.len().next_multiple_of(shape.iter().product()), 0.0);
            }
            let name = format!("{stem}_l{k}");
            let shape: Vec<i64> = [&[directions], shape].concat().into_iter().map(|n| n as i64).collect();
            graph.initializer.push(float_tensor(&name, &shape, &values));
            name
        };
        let hidden = config.hidden_size;
        let input_size = if k == 0 { config.input_size } else { config.output_size() };
        let w = add_weight("W", &[4 * hidden, input_size], &[(Param::WeightIh, ONNX_GATE_ORDER)]);
        let r = add_weight("R", &[4 * hidden, hidden], &[(Param::WeightHh, ONNX_GATE_ORDER)]);
        let b = match config.bias {
            Bias::None => String::new(),
            Bias::One => add_weight("B", &[8 * hidden], &[(Param::Bias, ONNX_GATE_ORDER)]),
            Bias::Two => {
                add_weight("B", &[8 * hidden], &[(Param::BiasIh, ONNX_GATE_ORDER), (Param::BiasHh, ONNX_GATE_ORDER)])
            }
        };
        let p = match config.cell {
            CellKind::PeepholeDiagonal => {
                let params = [Param::PeepholeI, Param::PeepholeO, Param::PeepholeF].map(|p| (p, &[0][..]));
                add_weight("P", &[3 * hidden], &params)
            }
            _ => String::new(),
        };
        let mut inputs = vec![x, w, r, b];
        inputs.push(if self.has_lengths { "sequence_lens".into() } else { String::new() });
        for name in ["initial_h", "initial_c"] {
            inputs.push(match (self.has_initial_state, config.num_layers) {
                (false, _) => String::new(),
                (true, 1) => name.to_owned(),
                (true, _) => {
                    let slice_output = format!("{name}_l{k}");
                    let operands = [name.into(), format!("row_{k}"), format!("row_{}", k + 1), "layers_axis".into()];
                    graph.node.push(node(
                        "Slice",
                        &format!("slice_{slice_output}"),
                        &operands,
                        &[&slice_output],
                        vec![],
                    ));
                    slice_output
                }
            });
        }
        inputs.push(p);
        // Only omitted inputs before the last one need an empty name.
        let num_inputs = inputs.iter().rposition(|name| !name.is_empty()).map_or(0, |k| k + 1);
        inputs.truncate(num_inputs);
        inputs
    }

    /// Builds the attributes of an `LSTM` node. They are the same for all layers.
    fn lstm_attributes(&self) -> Vec<Attribute> {
        let config = self.weights.config();
        let direction = match config.direction {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        };
        let mut attributes = vec![
            Attribute { i: Some(config.hidden_size as i64), ..attribute("hidden_size", attribute_type::INT) },
            Attribute { s: Some(direction.into()), ..attribute("direction", attribute_type::STRING) },
        ];
        if let Some(bound) = config.clip {
            attributes.push(Attribute { f: Some(bound), ..attribute("clip", attribute_type::FLOAT) });
        }
        if config.coupled {
            attributes.push(Attribute { i: Some(1), ..attribute("input_forget", attribute_type::INT) });
        }
        if !config.activations.is_default() {
            let GateActivations { gate, candidate, output } = config.activations;
            let functions = [gate, candidate, output].repeat(config.num_directions());
            let strings = functions.iter().map(|function| activation_name(*function).into()).collect();
            attributes.push(Attribute { strings, ..attribute("activations", attribute_type::STRINGS) });
            // Only the functions that have parameters have values in these lists.
            let parameters = functions.iter().filter_map(|function| match *function {
                GateActivation::HardSigmoid { alpha, beta } => Some((alpha, beta)),
                GateActivation::Sigmoid | GateActivation::Tanh | GateActivation::Relu => None,
            });
            let (alphas, betas): (Vec<f32>, Vec<f32>) = parameters.unzip();
            for (name, floats) in [("activation_alpha", alphas), ("activation_beta", betas)] {
                if !floats.is_empty() {
                    attributes.push(Attribute { floats, ..attribute(name, attribute_type::FLOATS) });
                }
            }
        }
        attributes
    }
}

/// The bytes of a file with this graph.
pub(crate) fn to_file_bytes(graph: Graph) -> Result<Vec<u8>> {
    let opset = Opset { domain: Some(String::new()), version: Some(EXPORT_OPSET) };
    let model = Model {
        ir_version: Some(IR_VERSION),
        producer_name: "lstm-core".into(),
        graph: Some(graph),
        opset_import: vec![opset],
        functions: Vec::new(),
    };
    let len = model.encoded_len();
    if len > MAX_PROTOBUF_BYTES {
        return Err(Error::format("onnx", format!("expected at most {MAX_PROTOBUF_BYTES} bytes, got {len}")));
    }
    Ok(model.encode_to_vec())
}

/// ONNX's name of an activation function.
fn activation_name(function: GateActivation) -> &'static str {
    match function {
        GateActivation::Sigmoid => "Sigmoid",
        GateActivation::Tanh => "Tanh",
        GateActivation::Relu => "Relu",
        GateActivation::HardSigmoid { .. } => "HardSigmoid",
    }
}

/// Splits the parameter `value` along its first axis into `order.len()` equal parts, and appends the parts to `out` in
/// the order `order`. Without a value, nothing is appended.
fn append_reordered(value: Option<&ArrayD<f32>>, order: &[usize], out: &mut Vec<f32>) {
    let Some(value) = value else { return };
    let parts: Vec<_> = value.axis_chunks_iter(Axis(0), (value.len_of(Axis(0)) / order.len()).max(1)).collect();
    order.iter().filter_map(|&k| parts.get(k)).for_each(|part| out.extend(part.iter()));
}

/// Builds an attribute without a value.
pub(crate) fn attribute(name: &str, attribute_type: i32) -> Attribute {
    Attribute { name: name.into(), attribute_type: Some(attribute_type), ..Attribute::default() }
}

/// Builds a node of the operator `op_type`.
pub(crate) fn node(op_type: &str, name: &str, inputs: &[String], outputs: &[&str], attributes: Vec<Attribute>) -> Node {
    let (input, output) = (inputs.to_vec(), outputs.iter().map(|&name| name.into()).collect());
    Node { input, output, name: name.into(), op_type: op_type.into(), attribute: attributes, ..Node::default() }
}

/// Builds a dimension of fixed size.
pub(crate) fn fixed_dim(size: usize) -> Dimension {
    Dimension { value: Some(size as i64), param: None }
}

/// Builds a dimension whose size is chosen at run time.
pub(crate) fn symbolic_dim(name: &str) -> Dimension {
    Dimension { value: None, param: Some(name.into()) }
}

/// Builds the declaration of a graph input or output.
pub(crate) fn value_info(name: &str, elem_type: i32, dims: &[Dimension]) -> ValueInfo {
    let tensor = TensorType { elem_type: Some(elem_type), shape: Some(Dims { dim: dims.to_vec() }) };
    ValueInfo { name: name.into(), value_type: Some(Type { tensor: Some(tensor) }) }
}

/// Builds an initializer of type FLOAT.
pub(crate) fn float_tensor(name: &str, dims: &[i64], values: &[f32]) -> Tensor {
    let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, dims) = (name.to_owned(), dims.to_vec());
    Tensor { name, dims, data_type: Some(FLOAT), raw_data: Some(raw_data), ..Tensor::default() }
}

/// Builds a vector initializer of type INT64.
pub(crate) fn int_tensor(name: &str, values: &[i64]) -> Tensor {
    let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, dims) = (name.to_owned(), vec![values.len() as i64]);
    Tensor { name, dims, data_type: Some(INT64), raw_data: Some(raw_data), ..Tensor::default() }
}

#[cfg(test)]
mod tests {
    use lstm_core::{Init, LstmConfig};

    use super::*;

    #[test]
    fn activations_are_attributes_of_the_nodes() {
        let relu = GateActivation::Relu;
        let gate = GateActivation::HardSigmoid { alpha: 0.25, beta: 0.375 };
        let falling = GateActivation::HardSigmoid { alpha: -1.0, beta: 0.75 };
        let attributes = |activations| {
            let config = LstmConfig::new(3, 5).bidirectional().activations(activations);
            let weights = Weights::init(config, &Init::default(), 1).unwrap();
            let model = Model::decode(&OnnxWriter::new(&weights).to_bytes().unwrap()[..]).unwrap();
            let node = model.graph.unwrap().node.into_iter().find(|node| node.op_type == "LSTM").unwrap();
            let find = |name: &str| node.attribute.iter().find(|a| a.name == name).cloned();
            let [names, alphas, betas] = ["activations", "activation_alpha", "activation_beta"].map(find);
            let names = names.unwrap_or_default().strings;
            let names: Vec<_> = names.into_iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
            (names, alphas.unwrap_or_default().floats, betas.unwrap_or_default().floats)
        };
        let (names, alphas, betas) = attributes(GateActivations { gate, candidate: relu, output: falling });
        assert_eq!(names, ["HardSigmoid", "Relu", "HardSigmoid", "HardSigmoid", "Relu", "HardSigmoid"]);
        assert_eq!((alphas, betas), (vec![0.25, -1.0, 0.25, -1.0], vec![0.375, 0.75, 0.375, 0.75]));
        let (names, alphas, betas) = attributes(GateActivations { candidate: relu, ..GateActivations::default() });
        assert_eq!((names[1].as_str(), names.len(), alphas.len(), betas.len()), ("Relu", 6, 0, 0));
        assert_eq!(
            attributes(GateActivations::default()),
            (vec![], vec![], vec![]),
            "as before there were activations"
        );
    }
}
