//! Writing ONNX files: the same weights give the same bytes, and a file is replaced whole or not at all.

use std::path::Path;

use ndarray::{ArrayD, Axis};
use prost::Message;

use super::proto::{
    Attribute, Dimension, Dims, FLOAT, Graph, INT32, INT64, Model, Node, Opset, Tensor, TensorType, Type, ValueInfo,
};
use lstm_core::{Bias, CellKind, Direction, Error, LayerWeights, Param, Result, Weights, weights::file};

/// The first operator set whose operators are all those used here, and the format's version of its time.
const OPSET: i64 = 14;
const IR_VERSION: i64 = 8;

/// What protocol buffers can hold.
const MAX_BYTES: usize = i32::MAX as usize;

/// Writes a model as a chain of `LSTM` nodes, one per layer, that ONNX Runtime runs and
/// [`OnnxModel`](super::OnnxModel) reads back bit for bit.
///
/// The graph's input is `X`, `[steps, batch, input]`, its outputs are as PyTorch's: `Y`,
/// `[steps, batch, directions * hidden]`, and `Y_h` and `Y_c`, `[layers * directions, batch, hidden]`. By default it
/// starts from zeros and all sequences are whole.
///
/// ```no_run
/// # use lstm_core::Weights;
/// # use lstm_formats::OnnxWriter;
/// # fn save(weights: &Weights) -> lstm_core::Result<()> {
/// OnnxWriter::new(weights).initial_state().save("model.onnx")
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OnnxWriter<'a> {
    weights: &'a Weights,
    state: bool,
    lengths: bool,
}

impl<'a> OnnxWriter<'a> {
    /// Of these weights, with one input.
    pub fn new(weights: &'a Weights) -> Self {
        OnnxWriter { weights, state: false, lengths: false }
    }

    /// Starts from two inputs more, `initial_h` and `initial_c`, `[layers * directions, batch, hidden]`.
    pub fn initial_state(self) -> Self {
        OnnxWriter { state: true, ..self }
    }

    /// Takes the sequences' lengths from one input more, `sequence_lens`, `[batch]` of INT32. (An input that may be
    /// left out is more than ONNX can express where the batch is not fixed.)
    pub fn lengths(self) -> Self {
        OnnxWriter { lengths: true, ..self }
    }

    /// The file's bytes.
    ///
    /// A bias that is one becomes ONNX's first, beside a second of zeros; the unfused cell becomes the fused one,
    /// which computes the same; dropout becomes a `Dropout` node, which does nothing outside training.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option that ONNX can't express: the dense peephole, a projection.
    /// [`Error::Format`] if the file were larger than the 2 GiB that the format allows.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let config = self.weights.config();
        if config.cell == CellKind::PeepholeDense {
            return Err(Error::config("cell", "ONNX can't express the dense peephole"));
        }
        if let Some(size) = config.proj_size {
            return Err(Error::config("proj_size", format!("ONNX can't express a projection, got one of {size}")));
        }
        let graph = self.graph();
        let opset = Opset { domain: Some(String::new()), version: Some(OPSET) };
        let model = Model {
            ir_version: Some(IR_VERSION),
            producer_name: "lstm-core".into(),
            graph: Some(graph),
            opset_import: vec![opset],
            functions: Vec::new(),
        };
        let len = model.encoded_len();
        if len > MAX_BYTES {
            return Err(Error::format("onnx", format!("{len} bytes are more than the {MAX_BYTES} the format allows")));
        }
        Ok(model.encode_to_vec())
    }

    /// Writes the file: to another one beside it, which then takes its name. If anything fails, an older file of that
    /// name is as it was.
    ///
    /// # Errors
    /// Those of [`to_bytes`](Self::to_bytes), and [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        file::write_atomic(path.as_ref(), &self.to_bytes()?)
    }

    fn graph(&self) -> Graph {
        let config = self.weights.config();
        let (layers, directions) = (config.num_layers, config.num_directions());
        let rows = layers * directions;
        let mut graph = Graph { name: "lstm".into(), ..Graph::default() };

        let state = [size(rows), named("batch"), size(config.hidden_size)];
        graph.input.push(info("X", FLOAT, &[named("steps"), named("batch"), size(config.input_size)]));
        if self.lengths {
            graph.input.push(info("sequence_lens", INT32, &[named("batch")]));
        }
        if self.state {
            graph.input.extend(["initial_h", "initial_c"].map(|name| info(name, FLOAT, &state)));
        }
        graph.output.push(info("Y", FLOAT, &[named("steps"), named("batch"), size(config.output_size())]));
        graph.output.extend(["Y_h", "Y_c"].map(|name| info(name, FLOAT, &state)));

        let joined = "joined_shape";
        match directions {
            1 => graph.initializer.push(ints("direction_axis", &[1])),
            _ => graph.initializer.push(ints(joined, &[0, 0, -1])),
        }
        if self.state && layers > 1 {
            graph.initializer.push(ints("layers_axis", &[0]));
            graph.initializer.extend((0..=layers).map(|k| ints(&format!("row_{k}"), &[(k * directions) as i64])));
        }
        if config.dropout > 0.0 {
            graph.initializer.push(floats("dropout", &[], &[config.dropout]));
        }

        let mut below = "X".to_owned();
        for (k, weights) in self.weights.layers().chunks(directions).enumerate() {
            let last = k + 1 == layers;
            let name = |what: &str| format!("{what}_l{k}");
            let states = |what: &str| if layers == 1 { what.to_owned() } else { name(what) };
            let inputs = self.inputs(&mut graph, k, below, weights);
            let outputs = [name("sequence"), states("Y_h"), states("Y_c")];
            graph.node.push(node(
                "LSTM",
                &name("lstm"),
                &inputs,
                &outputs.each_ref().map(String::as_str),
                self.attributes(),
            ));
            let y = if last { "Y".to_owned() } else { name("Y") };
            match directions {
                1 => {
                    let inputs = [name("sequence"), "direction_axis".into()];
                    graph.node.push(node("Squeeze", &name("squeeze"), &inputs, &[&y], vec![]));
                }
                _ => {
                    let (inputs, by_step) = ([name("sequence")], name("by_step"));
                    let perm = Attribute { ints: vec![0, 2, 1, 3], ..attribute("perm", 7) };
                    graph.node.push(node("Transpose", &name("transpose"), &inputs, &[&by_step], vec![perm]));
                    let inputs = [by_step, joined.into()];
                    graph.node.push(node("Reshape", &name("reshape"), &inputs, &[&y], vec![]));
                }
            }
            below = y;
            if config.dropout > 0.0 && !last {
                let dropped = name("dropped");
                graph.node.push(node("Dropout", &name("dropout"), &[below, "dropout".into()], &[&dropped], vec![]));
                below = dropped;
            }
        }
        if layers > 1 {
            for what in ["Y_h", "Y_c"] {
                let parts: Vec<String> = (0..layers).map(|k| format!("{what}_l{k}")).collect();
                let axis = Attribute { i: Some(0), ..attribute("axis", 2) };
                graph.node.push(node("Concat", &format!("all_{what}"), &parts, &[what], vec![axis]));
            }
        }
        graph
    }

    /// The names of a layer's inputs, which are added to the graph.
    fn inputs(&self, graph: &mut Graph, k: usize, x: String, weights: &[LayerWeights]) -> Vec<String> {
        let config = self.weights.config();
        let directions = config.num_directions();
        // Gates i, f, g, o to i, o, f, c.
        const GATES: &[usize] = &[0, 3, 1, 2];
        let mut weight = |stem: &str, shape: &[usize], params: &[(Param, &[usize])]| {
            let mut values = Vec::new();
            for layer in weights {
                params.iter().for_each(|(param, order)| put(layer.get(*param), order, &mut values));
                // A second bias that the model does not have.
                values.resize(values.len().next_multiple_of(shape.iter().product()), 0.0);
            }
            let name = format!("{stem}_l{k}");
            let shape: Vec<i64> = [&[directions], shape].concat().into_iter().map(|n| n as i64).collect();
            graph.initializer.push(floats(&name, &shape, &values));
            name
        };
        let hidden = config.hidden_size;
        let input = if k == 0 { config.input_size } else { config.output_size() };
        let w = weight("W", &[4 * hidden, input], &[(Param::WeightIh, GATES)]);
        let r = weight("R", &[4 * hidden, hidden], &[(Param::WeightHh, GATES)]);
        let b = match config.bias {
            Bias::None => String::new(),
            Bias::One => weight("B", &[8 * hidden], &[(Param::Bias, GATES)]),
            Bias::Two => weight("B", &[8 * hidden], &[(Param::BiasIh, GATES), (Param::BiasHh, GATES)]),
        };
        let p = match config.cell {
            CellKind::PeepholeDiagonal => {
                let params = [Param::PeepholeI, Param::PeepholeO, Param::PeepholeF].map(|p| (p, &[0][..]));
                weight("P", &[3 * hidden], &params)
            }
            _ => String::new(),
        };
        let mut inputs = vec![x, w, r, b];
        inputs.push(if self.lengths { "sequence_lens".into() } else { String::new() });
        for what in ["initial_h", "initial_c"] {
            inputs.push(match (self.state, config.num_layers) {
                (false, _) => String::new(),
                (true, 1) => what.to_owned(),
                (true, _) => {
                    let part = format!("{what}_l{k}");
                    let from = [what.into(), format!("row_{k}"), format!("row_{}", k + 1), "layers_axis".into()];
                    graph.node.push(node("Slice", &format!("slice_{part}"), &from, &[&part], vec![]));
                    part
                }
            });
        }
        inputs.push(p);
        let used = inputs.iter().rposition(|name| !name.is_empty()).map_or(0, |k| k + 1);
        inputs.truncate(used);
        inputs
    }

    fn attributes(&self) -> Vec<Attribute> {
        let config = self.weights.config();
        let direction = match config.direction {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        };
        let mut attributes = vec![
            Attribute { i: Some(config.hidden_size as i64), ..attribute("hidden_size", 2) },
            Attribute { s: Some(direction.into()), ..attribute("direction", 3) },
        ];
        if let Some(bound) = config.clip {
            attributes.push(Attribute { f: Some(bound), ..attribute("clip", 1) });
        }
        if config.coupled {
            attributes.push(Attribute { i: Some(1), ..attribute("input_forget", 2) });
        }
        attributes
    }
}

/// Appends a parameter's parts, as many as `order` has, along its first axis in that order.
fn put(value: Option<&ArrayD<f32>>, order: &[usize], out: &mut Vec<f32>) {
    let Some(value) = value else { return };
    let parts: Vec<_> = value.axis_chunks_iter(Axis(0), (value.len_of(Axis(0)) / order.len()).max(1)).collect();
    order.iter().filter_map(|&k| parts.get(k)).for_each(|part| out.extend(part.iter()));
}

fn attribute(name: &str, kind: i32) -> Attribute {
    Attribute { name: name.into(), kind: Some(kind), ..Attribute::default() }
}

fn node(op: &str, name: &str, input: &[String], output: &[&str], attribute: Vec<Attribute>) -> Node {
    let (input, output) = (input.to_vec(), output.iter().map(|&name| name.into()).collect());
    Node { input, output, name: name.into(), op_type: op.into(), attribute, ..Node::default() }
}

fn size(n: usize) -> Dimension {
    Dimension { value: Some(n as i64), param: None }
}

fn named(name: &str) -> Dimension {
    Dimension { value: None, param: Some(name.into()) }
}

fn info(name: &str, elem_type: i32, dim: &[Dimension]) -> ValueInfo {
    let tensor = TensorType { elem_type: Some(elem_type), shape: Some(Dims { dim: dim.to_vec() }) };
    ValueInfo { name: name.into(), kind: Some(Type { tensor: Some(tensor) }) }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> Tensor {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, dims) = (name.to_owned(), dims.to_vec());
    Tensor { name, dims, data_type: Some(FLOAT), raw_data: Some(raw), ..Tensor::default() }
}

fn ints(name: &str, values: &[i64]) -> Tensor {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, dims) = (name.to_owned(), vec![values.len() as i64]);
    Tensor { name, dims, data_type: Some(INT64), raw_data: Some(raw), ..Tensor::default() }
}
