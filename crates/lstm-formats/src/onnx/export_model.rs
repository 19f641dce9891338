//! Writes a whole model as an ONNX graph.

use ndarray::s;

use super::{
    export::{
        OnnxWriter, attribute, fixed_dim, float_tensor, int_tensor, node, symbolic_dim, to_file_bytes, value_info,
    },
    proto::{Attribute, FLOAT, Graph, INT64, attribute_type},
};
use lstm_core::{Activation, Error, ModelLayer, ModelWeights, Precision, Result};

/// Writes a whole model as an ONNX graph: embeddings as `Gather`, LSTMs as `LSTM`, linear layers as `MatMul` and `Add`, and
/// activations. ONNX Runtime can run the graph, and [`OnnxModel`](super::OnnxModel) reads an equal model from it.
///
/// The graph has the input `X`, `[steps, batch, input_size]`, or `[steps, batch]` of INT64 for tokens, and the output `Y`,
/// `[steps, batch, output_size]`, or `[batch, output_size]` if the model returns the last step.
///
/// ```
/// use lstm_core::{Init, LstmConfig, ModelLayer, ModelWeights, Weights, ndarray::Array2};
/// use lstm_formats::{OpenOptions, onnx::{OnnxModel, model_to_bytes}};
/// let weights = Weights::init(LstmConfig::new(3, 5), &Init::default(), 1)?.into();
/// let model = ModelWeights::new(vec![
///     ModelLayer::Lstm { name: "rec".into(), weights, initial_state: None },
///     ModelLayer::Linear { name: "lin".into(), weight: Array2::zeros((2, 5)), bias: None },
/// ])?;
/// let graph = OnnxModel::from_bytes(&model_to_bytes(&model)?)?.graph(&OpenOptions::default())?;
/// assert_eq!(graph.weights(), &model);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Config`] for options that ONNX can't express (the dense peephole and projections), and for a skip connection
/// and gains, which are not supported here; [`Error::Format`] if the file would exceed the 2 GiB that the format allows.
pub fn model_to_bytes(model: &ModelWeights) -> Result<Vec<u8>> {
    if model.skip() || model.input_gain() != 1.0 || model.output_gain() != 1.0 {
        let why = "a skip connection and gains can't be written to ONNX files; save the model as safetensors";
        return Err(Error::config("skip", why));
    }
    let precisions = (0..model.layers().len()).filter_map(|k| model.layer_precision(k));
    if let Some(precision) = precisions.into_iter().find(|precision| *precision != Precision::F32) {
        let reason =
            format!("ONNX files hold f32 weights, got {precision}; convert them with `quantize(Precision::F32)`");
        return Err(Error::config("precision", reason));
    }
    let mut graph = Graph { name: "model".into(), ..Graph::default() };
    let (steps, batch) = (symbolic_dim("steps"), symbolic_dim("batch"));
    graph.input.push(match model.reads_tokens() {
        true => value_info("X", INT64, &[steps.clone(), batch.clone()]),
        false => value_info("X", FLOAT, &[steps.clone(), batch.clone(), fixed_dim(model.input_size())]),
    });
    let mut value = "X".to_owned();
    for (k, layer) in model.layers().iter().enumerate() {
        let kind = layer.kind();
        let name = layer.name().map_or_else(|| format!("{kind}_{k}"), str::to_owned);
        let y = format!("{name}.y");
        let mut add = |op: &str, inputs: &[&str], attributes: Vec<Attribute>| {
            let inputs: Vec<String> = inputs.iter().map(|&input| input.to_owned()).collect();
            graph.node.push(node(op, &name, &inputs, &[&y], attributes));
        };
        match layer {
            ModelLayer::Embedding { weight, .. } => {
                add("Gather", &[&format!("{name}.weight"), &value], vec![]);
                let shape = [weight.nrows() as i64, weight.ncols() as i64];
                let values: Vec<f32> = weight.iter().copied().collect();
                graph.initializer.push(float_tensor(&format!("{name}.weight"), &shape, &values));
            }
            ModelLayer::Linear { weight, bias, .. } => {
                let (transposed, product) = (format!("{name}.weight"), format!("{name}.product"));
                let shape = [weight.ncols() as i64, weight.nrows() as i64];
                let values: Vec<f32> = weight.t().iter().copied().collect();
                graph.initializer.push(float_tensor(&transposed, &shape, &values));
                match bias {
                    None => graph.node.push(node("MatMul", &name, &[value, transposed], &[&y], vec![])),
                    Some(bias) => {
                        let inputs = [value, transposed];
                        graph.node.push(node("MatMul", &format!("{name}.matmul"), &inputs, &[&product], vec![]));
                        let values: Vec<f32> = bias.iter().copied().collect();
                        let bias = format!("{name}.bias");
                        graph.initializer.push(float_tensor(&bias, &[values.len() as i64], &values));
                        graph.node.push(node("Add", &name, &[product, bias], &[&y], vec![]));
                    }
                }
            }
            ModelLayer::Activation(activation) => {
                let float = |name: &str, f: f32| Attribute { f: Some(f), ..attribute(name, attribute_type::FLOAT) };
                let axis = || vec![Attribute { i: Some(-1), ..attribute("axis", attribute_type::INT) }];
                match *activation {
                    Activation::Relu => add("Relu", &[&value], vec![]),
                    Activation::Sigmoid => add("Sigmoid", &[&value], vec![]),
                    Activation::Tanh => add("Tanh", &[&value], vec![]),
                    Activation::HardSigmoid { alpha, beta } => {
                        add("HardSigmoid", &[&value], vec![float("alpha", alpha), float("beta", beta)]);
                    }
                    Activation::Softmax => add("Softmax", &[&value], axis()),
                    Activation::LogSoftmax => add("LogSoftmax", &[&value], axis()),
                    other => return Err(Error::config("activation", format!("ONNX files can't hold {other}"))),
                }
            }
            ModelLayer::LastStep => {
                let index = format!("{name}.index");
                add("Gather", &[&value, &index], vec![]);
                let mut tensor = int_tensor(&index, &[-1]);
                tensor.dims.clear();
                graph.initializer.push(tensor);
            }
            ModelLayer::FinalState => {
                let Some(ModelLayer::Lstm { name: lstm, weights, .. }) = model.layers().get(k.wrapping_sub(1)) else {
                    return Err(Error::config("layers", "expected an LSTM before the final state"));
                };
                let layers = weights.config().num_layers;
                let h = if layers == 1 { format!("{lstm}.Y_h") } else { format!("{lstm}.Y_h_l{}", layers - 1) };
                let (moved, shape) = (format!("{name}.by_sequence"), format!("{name}.shape"));
                let perm = Attribute { ints: vec![1, 0, 2], ..attribute("perm", attribute_type::INTS) };
                let transpose = node("Transpose", &format!("{name}.transpose"), &[h], &[&moved], vec![perm]);
                graph.node.push(transpose);
                graph.initializer.push(int_tensor(&shape, &[0, -1]));
                graph.node.push(node("Reshape", &name, &[moved, shape], &[&y], vec![]));
            }
            ModelLayer::Dropout(probability) => {
                let ratio = format!("{name}.ratio");
                add("Dropout", &[&value, &ratio], vec![]);
                graph.initializer.push(float_tensor(&ratio, &[], &[*probability]));
            }
            ModelLayer::Lstm { weights, initial_state, .. } => {
                let mut stack = OnnxWriter::new(weights).checked_graph()?;
                if let Some(state) = initial_state {
                    add_states(&mut stack, state, weights.config().num_directions());
                }
                let rename = |text: &str| match text {
                    "" => String::new(),
                    "X" => value.clone(),
                    "Y" => y.clone(),
                    other => format!("{name}.{other}"),
                };
                for mut node in stack.node.into_iter().filter(|node| !node.name.starts_with("all_")) {
                    node.name = match node.name.strip_prefix("lstm_l") {
                        // From this the reader knows which nodes are one stack.
                        Some(layer) => format!("{name}_l{layer}"),
                        None => format!("{name}.{}", node.name),
                    };
                    node.input = node.input.iter().map(|input| rename(input)).collect();
                    node.output = node.output.iter().map(|output| rename(output)).collect();
                    graph.node.push(node);
                }
                for mut tensor in stack.initializer {
                    tensor.name = rename(&tensor.name);
                    graph.initializer.push(tensor);
                }
            }
            _ => return Err(Error::config("layers", format!("ONNX files can't hold a layer of the kind {kind}"))),
        }
        value = y;
    }
    graph.node.push(node("Identity", "output", &[value], &["Y"], vec![]));
    let features = fixed_dim(model.output_size());
    let shape = if model.returns_last_step() { vec![batch, features] } else { vec![steps, batch, features] };
    graph.output.push(value_info("Y", FLOAT, &shape));
    to_file_bytes(graph)
}

/// Gives the `LSTM` nodes of a stack constant initial states, expanded to the batch.
fn add_states(stack: &mut Graph, state: &lstm_core::HostState, directions: usize) {
    let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    stack.initializer.extend([int_tensor("one", &[1]), int_tensor("two", &[2])]);
    let axis = Attribute { i: Some(0), ..attribute("axis", attribute_type::INT) };
    let mut nodes = vec![
        node("Shape", "shape", &strings(&["X"]), &["shape"], vec![]),
        node("Slice", "slice", &strings(&["shape", "one", "two"]), &["batch"], vec![]),
        node("Concat", "concat", &strings(&["one", "batch", "one"]), &["state_shape"], vec![axis]),
    ];
    let lstms = stack.node.iter_mut().filter(|node| node.op_type == "LSTM");
    for (k, lstm) in lstms.enumerate() {
        lstm.input.resize(lstm.input.len().max(7), String::new());
        for (input, stem, rows) in [(5, "h", &state.h), (6, "c", &state.c)] {
            let rows = rows.slice(s![k * directions..(k + 1) * directions, .., ..]);
            let (constant, expanded) = (format!("{stem}0_l{k}"), format!("initial_{stem}_l{k}"));
            let shape: Vec<i64> = rows.shape().iter().map(|&n| n as i64).collect();
            let values: Vec<f32> = rows.iter().copied().collect();
            stack.initializer.push(float_tensor(&constant, &shape, &values));
            let inputs = [constant, "state_shape".to_owned()];
            nodes.push(node("Expand", &format!("expand_{expanded}"), &inputs, &[&expanded], vec![]));
            lstm.input[input] = expanded;
        }
    }
    nodes.append(&mut stack.node);
    stack.node = nodes;
}
