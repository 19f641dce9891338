//! One `LSTM` node: its attributes, weights and inputs. See <https://onnx.ai/onnx/operators/onnx__LSTM.html>.
//!
//! ONNX orders the gates i, o, f, c; this library orders them i, f, g, o, where g is ONNX's c.

use ndarray::{ArrayD, Axis, concatenate};

use super::{
    context::GraphContext,
    graph_port::{GraphAxis, GraphPort},
    initial_state::{self, INITIAL_C_INPUT, INITIAL_H_INPUT, LayerInitialState},
    lengths::{self, SequenceLengths},
    node::NodeReader,
    value::{Dim, LayerOutputs, Source, TensorView, Value, Zeros},
};
use lstm_core::{Bias, CellKind, Direction, Error, LstmConfig, Result};

/// A layer of the model, read from one node, or from two nodes that are its two directions.
pub(crate) struct Layer<'a> {
    /// Label of the (first) node, for error messages.
    pub(crate) label: String,
    /// For a layer that is split into two nodes, one per direction: the direction that has not been read yet, and the
    /// name of the input that both nodes share. Otherwise `None`.
    pub(crate) missing_direction: Option<(usize, &'a str)>,
    /// Configuration of this layer alone.
    pub(crate) config: LstmConfig,
    /// For each direction, its parameters in the order of [`LayerSpec::params`](lstm_core::LayerSpec::params).
    pub(crate) params: Vec<Vec<ArrayD<f32>>>,
    /// The graph input that the first layer reads. For other layers, an unused default value.
    pub(crate) x: GraphPort,
    /// Probability of the dropout before this layer, if there is a `Dropout` node.
    pub(crate) dropout: Option<f32>,
    /// Where the lengths of the sequences come from.
    pub(crate) lengths: SequenceLengths,
    /// Initial hidden state `h` of the layer.
    pub(crate) h: LayerInitialState<'a>,
    /// Initial cell state `c` of the layer.
    pub(crate) c: LayerInitialState<'a>,
}

/// The attributes of an `LSTM` node.
struct LstmAttributes {
    /// Hidden size; `None` if the attribute is absent, so that the size follows from the weights.
    hidden_size: Option<usize>,
    direction: Direction,
    /// Whether the batch is the first axis of `X`, `Y` and the states: ONNX's attribute `layout`.
    batch_first: bool,
    clip: Option<f32>,
    /// Whether the input and forget gates are coupled: ONNX's attribute `input_forget`.
    coupled: bool,
}

/// Reads and checks all attributes of an `LSTM` node.
fn read_attributes(node: &mut NodeReader<'_>, opset: i64) -> Result<LstmAttributes> {
    let hidden_size = match node.int_attribute("hidden_size")? {
        Some(size) => {
            let size_error = |_| node.error(format!("attribute `hidden_size`: expected a positive size, got {size}"));
            Some(usize::try_from(size).map_err(size_error)?)
        }
        None => None,
    };
    let direction = match node.string_attribute("direction")?.as_deref() {
        None | Some("forward") => Direction::Forward,
        Some("reverse") => Direction::Reverse,
        Some("bidirectional") => Direction::Bidirectional,
        Some(other) => {
            let why = format!("attribute `direction`: expected forward, reverse or bidirectional, got `{other}`");
            return Err(node.error(why));
        }
    };
    let bool_attribute = |node: &mut NodeReader<'_>, name: &str| match node.int_attribute(name)? {
        None | Some(0) => Ok(false),
        Some(1) => Ok(true),
        Some(other) => Err(node.error(format!("attribute `{name}`: expected 0 or 1, got {other}"))),
    };
    let coupled = bool_attribute(node, "input_forget")?;
    let batch_first = opset >= 14 && bool_attribute(node, "layout")?;
    let clip = node.float_attribute("clip")?;
    if let Some(bound) = clip.filter(|bound| !(bound.is_finite() && *bound > 0.0)) {
        return Err(node.error(format!("attribute `clip`: expected a positive and finite bound, got {bound}")));
    }
    let activations = node.strings_attribute("activations")?;
    let supported_activations = ["Sigmoid", "Tanh", "Tanh"].repeat(direction.reverse_flags().len());
    let is_unsupported =
        |(k, name): &(usize, &String)| supported_activations.get(*k).is_none_or(|s| !s.eq_ignore_ascii_case(name));
    if let Some((k, name)) = activations.iter().enumerate().find(is_unsupported) {
        let expected = supported_activations.get(k).copied().unwrap_or("no further activation");
        return Err(node.error(format!("attribute `activations`: expected {expected} at index {k}, got `{name}`")));
    }
    if !activations.is_empty() && activations.len() < supported_activations.len() {
        let (expected, got) = (supported_activations.len(), activations.len());
        return Err(node.error(format!("attribute `activations`: expected {expected} names, got {got}")));
    }
    for name in ["activation_alpha", "activation_beta"] {
        let values = node.floats_attribute(name)?;
        if !values.is_empty() {
            let why = format!("attribute `{name}`: expected no values for Sigmoid and Tanh, got {values:?}");
            return Err(node.error(why));
        }
    }
    node.check_all_attributes_read()?;
    Ok(LstmAttributes { hidden_size, direction, batch_first, clip, coupled })
}

/// Reads an `LSTM` node, adds its layer to `layers`, and returns the values of its outputs `Y`, `Y_h` and `Y_c`.
///
/// If the node is one of two that together are a bidirectional layer, `node_direction` is its direction, 0 (forward) or
/// 1 (reverse), and the second of them completes the layer that the first has added.
pub(crate) fn read_layer<'a>(
    node: &mut NodeReader<'a>,
    context: &mut GraphContext<'a>,
    layers: &mut Vec<Layer<'a>>,
    node_direction: Option<usize>,
) -> Result<[Value<'a>; 3]> {
    let attributes = read_attributes(node, context.opset)?;
    if node.proto.input.len() > 8 || node.proto.output.len() > 3 {
        return Err(node.error("expected at most 8 inputs and 3 outputs"));
    }
    let num_directions = attributes.direction.reverse_flags().len();
    let layer_direction = node_direction.map_or(attributes.direction, |_| Direction::Bidirectional);
    let reverse_flags = layer_direction.reverse_flags();
    let x_name = node.input_name(0).ok_or_else(|| node.error("input 0 (X) is missing"))?;
    // Index of the layer whose other direction has already been read.
    let incomplete_layer = node_direction.and_then(|node_direction| {
        layers.iter().position(|layer| layer.missing_direction == Some((node_direction, x_name)))
    });
    let k = incomplete_layer.unwrap_or(layers.len());

    let x = read_input(node, context, x_name, k, attributes.batch_first)?;
    let w = required_weight(node, context, 1, "W")?;
    let r = required_weight(node, context, 2, "R")?;
    let hidden_size = attributes.hidden_size.or(r.shape().last().copied()).unwrap_or_default();
    if let Some(LstmConfig { hidden_size: first_hidden_size, direction: first_direction, .. }) =
        layers.first().map(|first| &first.config)
        && (*first_hidden_size, *first_direction) != (hidden_size, layer_direction)
    {
        let expected = format!("{first_direction:?} of hidden size {first_hidden_size}, as in the first layer");
        return Err(
            node.error(format!("expected {expected}, got {layer_direction:?} of {hidden_size}; {NOT_STACKED_HINT}"))
        );
    }
    let input_size = match k {
        0 => w.shape().last().copied().unwrap_or_default(),
        _ => hidden_size.saturating_mul(reverse_flags.len()),
    };
    let mut config = LstmConfig::new(input_size, hidden_size).direction(attributes.direction).bias(Bias::None);
    (config.clip, config.coupled) = (attributes.clip, attributes.coupled);
    config.validate().map_err(|e| node.error(e))?;
    let check_shape = |name: &str, array: &ArrayD<f32>, expected: &[usize]| match array.shape() == expected {
        true => Ok(()),
        false => Err(node.error(format!("{name}: expected shape {expected:?}, got {:?}", array.shape()))),
    };
    check_shape("W", &w, &[num_directions, 4 * hidden_size, input_size])?;
    check_shape("R", &r, &[num_directions, 4 * hidden_size, hidden_size])?;
    if x.features.as_known().is_some_and(|size| size != input_size as i64) {
        return Err(node.error(format!("X: expected {input_size} features, got {:?}", x.features)));
    }
    let b = optional_weight(node, context, 3)?;
    if let Some(b) = &b {
        check_shape("B", b, &[num_directions, 8 * hidden_size])?;
        config.bias = Bias::Two;
    }
    let p = optional_weight(node, context, 7)?;
    if let Some(p) = &p {
        check_shape("P", p, &[num_directions, 3 * hidden_size])?;
        config.cell = CellKind::PeepholeDiagonal;
    }
    let params = (0..num_directions).map(|direction| {
        let direction_slice = |array: &ArrayD<f32>| array.index_axis(Axis(0), direction).to_owned();
        let mut params = vec![reorder_gates(&direction_slice(&w))?, reorder_gates(&direction_slice(&r))?];
        if let Some(b) = &b {
            let biases = split_first_axis(&direction_slice(b), 2);
            params.extend(biases.iter().map(reorder_gates).collect::<Result<Vec<_>>>()?);
        }
        if let Some(p) = &p {
            // ONNX orders the peepholes i, o, f; this library orders them i, f, o.
            let peepholes = split_first_axis(&direction_slice(p), 3);
            let [i, o, f] = <[_; 3]>::try_from(peepholes).map_err(|_| node.error("P: expected three peepholes"))?;
            params.extend([i, f, o]);
        }
        Ok(params)
    });
    let params = params.collect::<Result<_>>()?;

    let lengths = lengths::read_lengths(node, context)?;
    if let (0, Dim::Known(batch)) = (k, x.batch) {
        context.batch_size = Some(batch);
    }
    let sizes = [num_directions, hidden_size];
    let h = initial_state::read_initial_state(node, context, INITIAL_H_INPUT, attributes.batch_first, sizes)?;
    let c = initial_state::read_initial_state(node, context, INITIAL_C_INPUT, attributes.batch_first, sizes)?;

    let known_dim = |n: usize| Dim::Known(n as i64);
    let outputs = LayerOutputs { layer: k, reverse_flags, full_length: lengths == SequenceLengths::Full };
    let row = k * reverse_flags.len() + node_direction.unwrap_or_default();
    let (start, end) = (row, row + num_directions);
    let y_dims = vec![x.steps, known_dim(num_directions), x.batch, known_dim(hidden_size)];
    let state_dims = vec![known_dim(num_directions), x.batch, known_dim(hidden_size)];
    let mut y = TensorView::new(Source::Sequence(outputs), y_dims);
    let mut y_h = TensorView::new(Source::FinalH(start, end), state_dims);
    y.direction = node_direction;
    if attributes.batch_first {
        y.axes = vec![vec![2], vec![0], vec![1], vec![3]];
        y_h.axes.swap(0, 1);
    }
    let y_c = TensorView { source: Source::FinalC(start, end), ..y_h.clone() };
    let label = node.label.clone();
    if node_direction.is_some() {
        config.direction = Direction::Bidirectional;
    }
    let (dropout, x) = (x.dropout, x.port);
    let missing_direction = node_direction.map(|node_direction| (1 - node_direction, x_name));
    let layer = Layer { label, missing_direction, config, params, x, dropout, lengths, h, c };
    match (node_direction, incomplete_layer) {
        (Some(node_direction), Some(k)) => layers[k].add_direction(layer, node_direction)?,
        _ => layers.push(layer),
    }
    Ok([y, y_h, y_c].map(Value::View))
}

impl<'a> Layer<'a> {
    /// Adds the missing direction, 0 (forward) or 1 (reverse), from `other`, which was read from another node.
    fn add_direction(&mut self, other: Layer<'a>, direction: usize) -> Result<()> {
        let (own_options, other_options) = (
            (&self.config, &self.x, self.dropout, &self.lengths),
            (&other.config, &other.x, other.dropout, &other.lengths),
        );
        if own_options != other_options {
            let why = format!("expected the sizes, options and lengths of the other direction, {}", self.label);
            return Err(Error::format(&other.label, why));
        }
        let mut params = [std::mem::take(&mut self.params), other.params];
        params.rotate_left(1 - direction);
        self.params = params.concat();
        for (state, other_state) in [(&mut self.h, other.h), (&mut self.c, other.c)] {
            let mut states = [std::mem::replace(state, LayerInitialState::Zeros), other_state];
            states.rotate_left(1 - direction);
            *state = LayerInitialState::join_directions(states).ok_or_else(|| {
                let why =
                    "expected the same kind of initial state as in the other direction: zeros, constants or inputs";
                Error::format(&other.label, why)
            })?;
        }
        self.missing_direction = None;
        Ok(())
    }
}

/// Reorders the gates i, o, f, c along the first axis to i, f, g, o.
fn reorder_gates(array: &ArrayD<f32>) -> Result<ArrayD<f32>> {
    let gates = split_first_axis(array, 4);
    let reordered_gates: Vec<_> = [0, 2, 3, 1].iter().filter_map(|&k| gates.get(k)).map(|gate| gate.view()).collect();
    concatenate(Axis(0), &reordered_gates).map_err(|e| Error::shape("onnx gates", "four gates", e))
}

/// Splits the first axis, whose size is a multiple of `n`, into `n` equal parts.
fn split_first_axis(array: &ArrayD<f32>, n: usize) -> Vec<ArrayD<f32>> {
    let len = array.len_of(Axis(0)) / n;
    array.axis_chunks_iter(Axis(0), len.max(1)).map(|part| part.to_owned()).collect()
}

/// Reads input `k` of a node, which must be a constant; `None` if the input is omitted.
fn optional_weight<'a>(node: &NodeReader<'a>, context: &mut GraphContext<'a>, k: usize) -> Result<Option<ArrayD<f32>>> {
    let Some(name) = node.input_name(k) else { return Ok(None) };
    match context.operand(node, name)? {
        // A constant bias of zeros counts as a bias, so that the model has the parameters of the file.
        Value::Zeros(Zeros { tensor: Some(_), .. }) | Value::Constant(_) => {
            context.constant_floats(node, name).map(Some)
        }
        other => Err(node.error(format!("input {k}: expected a constant, got {}", other.describe()))),
    }
}

/// Reads input `k` of a node, which must be present and a constant. `name` is the name of the input for error messages.
fn required_weight<'a>(
    node: &NodeReader<'a>,
    context: &mut GraphContext<'a>,
    k: usize,
    name: &str,
) -> Result<ArrayD<f32>> {
    optional_weight(node, context, k)?.ok_or_else(|| node.error(format!("input {k} ({name}) is missing")))
}

/// Hint in error messages about `LSTM` nodes that are not layers of one model.
const NOT_STACKED_HINT: &str =
    "an LSTM node that is not stacked on the previous ones is a separate model, which `lstm_named` can load";

/// The input `X` of a layer.
struct LayerInput<'a> {
    /// The graph input that the first layer reads. For other layers, an unused default value.
    port: GraphPort,
    /// Probability of the dropout before the layer, if there is a `Dropout` node.
    dropout: Option<f32>,
    /// Number of time steps.
    steps: Dim<'a>,
    /// Number of sequences.
    batch: Dim<'a>,
    /// Number of features.
    features: Dim<'a>,
}

/// Reads the input `X` of layer `k`: a graph input for the first layer, else the output sequence of layer `k - 1`.
fn read_input<'a>(
    node: &NodeReader<'a>,
    context: &mut GraphContext<'a>,
    name: &'a str,
    k: usize,
    batch_first: bool,
) -> Result<LayerInput<'a>> {
    let value = context.operand(node, name)?.clone();
    let view = value.to_view(3).map_err(|why| node.error(why))?;
    if !view.is_float() {
        return Err(node.error(format!("X: expected floats, got {}", value.describe())));
    }
    let axis_meanings = match batch_first {
        false => [GraphAxis::Steps, GraphAxis::Batch, GraphAxis::Features],
        true => [GraphAxis::Batch, GraphAxis::Steps, GraphAxis::Features],
    };
    let shape = view.shape();
    let &[first_axis_size, second_axis_size, features] = &shape[..] else {
        return Err(node.error(format!("X: expected three axes, got {shape:?}")));
    };
    let (steps, batch) =
        if batch_first { (second_axis_size, first_axis_size) } else { (first_axis_size, second_axis_size) };
    let port = match view.source {
        Source::Input(_) if k == 0 && view.row_range.is_none() => {
            match GraphPort::from_view(node, &view, axis_meanings) {
                // An output of an ignored node that other nodes reshape: the result of these becomes the input.
                Err(_) if view.elem_type.is_none() => {
                    let view = TensorView::new(Source::Input(name), vec![Dim::Unknown; 3]);
                    GraphPort::from_view(node, &view, axis_meanings)?
                }
                port => port?,
            }
        }
        Source::Sequence(outputs) if outputs.layer + 1 == k && (view.step, view.direction) == (None, None) => {
            let expected: [&[usize]; 3] = match batch_first {
                false => [&[0], &[2], &[1, 3]],
                true => [&[2], &[0], &[1, 3]],
            };
            if !view.has_axes(&expected) {
                let axis_order = if batch_first { "batch, steps" } else { "steps, batch" };
                let expected = format!("the axes {axis_order}, and directions merged with features");
                return Err(node.error(format!("X: expected {expected}, got {}", value.describe())));
            }
            GraphPort::default()
        }
        _ => {
            let got = value.describe();
            return Err(node.error(match k {
                0 => format!("X: expected a graph input, got {got}"),
                _ => format!("X: expected the outputs of layer {}, got {got}; {NOT_STACKED_HINT}", k - 1),
            }));
        }
    };
    Ok(LayerInput { port, dropout: view.dropout, steps, batch, features })
}
