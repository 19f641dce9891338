//! Assembles the layers of a graph to an [`OnnxLstm`].

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis, concatenate};

use super::{
    context::GraphContext,
    graph_port::{GraphAxis, GraphPort, GraphPortKind},
    initial_state::{LayerInitialState, StateRows},
    layer::Layer,
    lstm::{InitialState, OnnxLstm, into_array3},
    traversal::Traversal,
};
use lstm_core::{Error, LayerWeights, LstmConfig, Result, Weights};

/// Combines the layers of `traversal` into one model.
pub(crate) fn assemble(traversal: Traversal<'_>) -> Result<OnnxLstm> {
    let Traversal { mut context, layers, outputs, ignored_nodes, .. } = traversal;
    let config = common_config(&layers)?;
    let Some(first_layer) = layers.first() else { return Err(no_lstm_error()) };
    let (x, lengths) = (first_layer.x.clone(), first_layer.lengths.clone());
    let (mut params, mut h, mut c) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        params.extend(layer.params);
        h.push((layer.label.clone(), layer.h));
        c.push((layer.label, layer.c));
    }
    config.validate()?;
    let directions = config.num_directions();
    let specs = config.layer_specs();
    let weights = specs.into_iter().zip(params).map(|(spec, params)| LayerWeights::new(spec, params));
    let weights = weights.collect::<Result<_>>()?;
    Ok(OnnxLstm {
        initial_h: join_initial_states(&context, GraphPortKind::H, directions, h)?,
        initial_c: join_initial_states(&context, GraphPortKind::C, directions, c)?,
        weights: Weights::new(config, weights)?,
        declared_shapes: declared_shapes(&context, &x),
        dtypes: std::mem::take(&mut context.dtypes).into_iter().collect(),
        x,
        lengths,
        outputs,
        ignored_nodes,
    })
}

/// The error for a graph without `LSTM` nodes.
fn no_lstm_error() -> Error {
    Error::format("graph", "expected an LSTM node, found none")
}

/// The configuration of the whole model. All layers must have the options and lengths of the first layer, and all but
/// the first must have the same dropout before them.
fn common_config(layers: &[Layer<'_>]) -> Result<LstmConfig> {
    let first_layer = layers.first().ok_or_else(no_lstm_error)?;
    let mut config = first_layer.config.clone().layers(layers.len());
    let dropout = layers.get(1).and_then(|layer| layer.dropout);
    config.dropout = dropout.unwrap_or_default();
    for layer in layers {
        if layer.missing_direction.is_some() {
            return Err(Error::format(&layer.label, "the node of the other direction is missing"));
        }
        let mut layer_config = layer.config.clone();
        layer_config.input_size = first_layer.config.input_size;
        let mismatch_error = |what: &str, expected: String, got: String| {
            let why = format!("expected {what} of the first layer, {expected}; got {got}");
            Err(Error::format(&layer.label, why))
        };
        if layer_config != first_layer.config {
            return mismatch_error(
                "the sizes and options",
                format!("{:?}", first_layer.config),
                format!("{layer_config:?}"),
            );
        }
        if layer.lengths != first_layer.lengths {
            return mismatch_error(
                "the sequence lengths",
                format!("{:?}", first_layer.lengths),
                format!("{:?}", layer.lengths),
            );
        }
    }
    if let Some(differing_layer) = layers.iter().skip(1).find(|layer| layer.dropout != dropout) {
        let why = format!(
            "expected a dropout of {dropout:?} before the layer, as before the second layer; got {:?}",
            differing_layer.dropout
        );
        return Err(Error::format(&differing_layer.label, why));
    }
    Ok(config)
}

/// The declared shapes of the graph inputs, by name. The batch size of the input `x` comes from a constant initial
/// state if the shape of `x` does not fix it.
fn declared_shapes(context: &GraphContext<'_>, x: &GraphPort) -> BTreeMap<String, Vec<Option<usize>>> {
    let mut shapes = context.declared_shapes();
    let sizes = shapes.entry(x.name.clone()).or_insert_with(|| vec![None; x.axes.len()]);
    let batch_axis = x.axes.iter().position(|axis| axis[..] == [GraphAxis::Batch]);
    if let (Some(batch), Some(size)) = (context.batch_size, batch_axis.and_then(|axis| sizes.get_mut(axis))) {
        *size = usize::try_from(batch).ok();
    }
    shapes
}

/// Joins the initial `h` or `c` of all layers to one initial state. `layers` holds the label of each layer, for error
/// messages, and its initial state; `directions` is the number of directions of a layer.
fn join_initial_states(
    context: &GraphContext<'_>,
    kind: GraphPortKind,
    directions: usize,
    layers: Vec<(String, LayerInitialState<'_>)>,
) -> Result<InitialState> {
    if layers.iter().any(|(_, state)| matches!(state, LayerInitialState::Inputs(_))) {
        return state_from_inputs(context, kind, directions, layers);
    }
    let mut arrays: Vec<ArrayD<f32>> = Vec::new();
    for (k, (label, state)) in layers.into_iter().enumerate() {
        let batch = arrays.first().map(|array| array.shape()[1]);
        match state {
            LayerInitialState::Constant(array)
                if arrays.len() == k && batch.is_none_or(|batch| batch == array.shape()[1]) =>
            {
                arrays.push(array);
            }
            LayerInitialState::Zeros if arrays.is_empty() => {}
            _ => {
                let why = "expected constant initial states of the same batch size in all layers, or in none";
                return Err(Error::format(label, why));
            }
        }
    }
    if arrays.is_empty() {
        return Ok(InitialState::Zeros);
    }
    let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
    let joined_state = concatenate(Axis(0), &views)
        .map_err(|e| Error::shape("onnx initial state", "states of the same batch size", e))?;
    Ok(InitialState::Constant(into_array3(joined_state)?))
}

/// Joins the initial `h` or `c` of all layers, of which at least one comes from graph inputs. Consecutive layers and
/// directions must take the rows of each input in order, and all of them.
fn state_from_inputs(
    context: &GraphContext<'_>,
    kind: GraphPortKind,
    directions: usize,
    layers: Vec<(String, LayerInitialState<'_>)>,
) -> Result<InitialState> {
    let mut inputs: Vec<StateRows<'_>> = Vec::new();
    let mut row = 0;
    for (label, state) in &layers {
        let layer_inputs = match state {
            LayerInitialState::Inputs(layer_inputs) => layer_inputs,
            LayerInitialState::Zeros => {
                row += directions;
                continue;
            }
            LayerInitialState::Constant(_) => {
                let why =
                    "expected an initial state of zeros or from a graph input, as in other layers, got a constant";
                return Err(Error::format(label, why));
            }
        };
        for input in layer_inputs {
            let rows = row..row + input.row_count;
            row = rows.end;
            match inputs.iter_mut().find(|other| other.source == input.source) {
                // The next rows of an input that is already used.
                Some(StateRows { port, row_range: Some((_, end)), .. })
                    if port.axes == input.port.axes && port.rows.end == rows.start =>
                {
                    let Some((_, next_end)) = input.row_range.filter(|(start, _)| start == end) else {
                        let why = format!("expected an initial state from rows {end}.. of `{}`", input.source);
                        return Err(Error::format(label, why));
                    };
                    (port.rows.end, *end) = (rows.end, next_end);
                }
                None if input.row_range.is_none_or(|(start, _)| start == 0) => {
                    let port = GraphPort { kind, rows, ..input.port.clone() };
                    inputs.push(StateRows { port, ..input.clone() });
                }
                _ => {
                    let why = format!("expected initial states from all rows of `{}`, in order", input.source);
                    return Err(Error::format(label, why));
                }
            }
        }
    }
    for StateRows { source, row_range, .. } in &inputs {
        if let (Some((_, used_rows)), Some(size)) = (row_range, context.first_axis_size(source))
            && size != *used_rows
        {
            let why = format!("expected all {size} rows to be used, but only {used_rows} are used");
            return Err(Error::format(format!("input `{source}`"), why));
        }
    }
    Ok(InitialState::Inputs(inputs.into_iter().map(|input| input.port).collect()))
}
