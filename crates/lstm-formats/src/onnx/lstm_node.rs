//! `LSTM` nodes. See <https://onnx.ai/onnx/operators/onnx__LSTM.html>.
//!
//! ONNX orders the gates i, o, f, c; this library orders them i, f, g, o, where g is ONNX's c.

use std::collections::HashMap;

use ndarray::{Array2, ArrayD, Axis, IxDyn, concatenate};

use super::{
    chain::{Chain, Grid, Labels, Rows, Source, StageKind, Step},
    data::{Budget, Label, Shared},
    lstm_stage::{Attributes, Lengths, LstmDirection, LstmStage, State, StateElement},
    node::NodeReader,
    sizes::{Size, TRIALS},
};
use lstm_core::{Direction, GateActivation, GateActivations, Result};

/// The attributes of an `LSTM` node.
pub(crate) struct NodeAttributes {
    /// `None` if the attribute is absent, so that the size follows from the weights.
    pub(crate) hidden_size: Option<usize>,
    pub(crate) direction: Direction,
    /// Whether the batch is the first axis of `X`, `Y` and the states: ONNX's attribute `layout`.
    pub(crate) batch_first: bool,
    pub(crate) shared: Attributes,
}

/// Reads and checks all attributes of an `LSTM` node.
pub(crate) fn read_attributes(node: &mut NodeReader<'_>, opset: i64) -> Result<NodeAttributes> {
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
    let activations = read_activations(node, direction.reverse_flags().len())?;
    node.check_all_attributes_read()?;
    Ok(NodeAttributes { hidden_size, direction, batch_first, shared: Attributes { clip, coupled, activations } })
}

/// Reads the activation functions, which must be the same in all directions.
fn read_activations(node: &mut NodeReader<'_>, directions: usize) -> Result<GateActivations> {
    let names = node.strings_attribute("activations")?;
    let [mut alphas, mut betas] =
        ["activation_alpha", "activation_beta"].map(|name| node.floats_attribute(name).map(<[f32]>::iter));
    let (alphas, betas) = (alphas.as_mut(), betas.as_mut());
    let (alphas, betas) = match (alphas, betas) {
        (Ok(alphas), Ok(betas)) => (alphas, betas),
        (Err(error), _) | (_, Err(error)) => return Err(node.error(error)),
    };
    let defaults = ["Sigmoid", "Tanh", "Tanh"].repeat(directions);
    let names: Vec<&str> = if names.is_empty() { defaults } else { names.iter().map(String::as_str).collect() };
    if names.len() != 3 * directions {
        let why = format!("attribute `activations`: expected {} names, got {}", 3 * directions, names.len());
        return Err(node.error(why));
    }
    let mut functions = Vec::new();
    for (k, name) in names.iter().enumerate() {
        functions.push(match name.to_ascii_lowercase().as_str() {
            "sigmoid" => GateActivation::Sigmoid,
            "tanh" => GateActivation::Tanh,
            "relu" => GateActivation::Relu,
            // Functions with parameters take the next values of the lists.
            "hardsigmoid" => GateActivation::HardSigmoid {
                alpha: alphas.next().copied().unwrap_or(0.2),
                beta: betas.next().copied().unwrap_or(0.5),
            },
            _ => {
                let expected = "expected Sigmoid, Tanh, Relu or HardSigmoid";
                return Err(node.error(format!("attribute `activations`: {expected} at index {k}, got `{name}`")));
            }
        });
    }
    for (name, rest) in [("activation_alpha", alphas), ("activation_beta", betas)] {
        if rest.len() > 0 {
            let why =
                format!("attribute `{name}`: the functions take fewer values, further ones are {:?}", rest.as_slice());
            return Err(node.error(why));
        }
    }
    let [gate, candidate, output] = [0, 1, 2].map(|k| functions[k]);
    if functions.chunks(3).any(|other| other != [gate, candidate, output]) {
        return Err(node.error("attribute `activations`: expected the same functions in both directions"));
    }
    Ok(GateActivations { gate, candidate, output })
}

/// The constant inputs of an `LSTM` node.
pub(crate) struct Constants {
    pub(crate) w: Shared<f32>,
    pub(crate) r: Shared<f32>,
    pub(crate) b: Option<Shared<f32>>,
    pub(crate) p: Option<Shared<f32>>,
}

/// The other inputs of an `LSTM` node, with the axes steps, batch, features or directions, batch, units.
pub(crate) struct Operands {
    pub(crate) x: Labels,
    pub(crate) lengths: LengthsOperand,
    /// The initial `h` and `c`.
    pub(crate) states: [Option<Labels>; 2],
}

/// The input `sequence_lens`.
pub(crate) enum LengthsOperand {
    None,
    Known([Shared<i64>; TRIALS]),
    Labels(Labels),
}

/// Labels of the outputs `Y`, with axes steps, directions, batch, units, and `Y_h` and `Y_c`, with axes directions,
/// batch, units.
pub(crate) type Outputs = [Labels; 3];

/// Adds an `LSTM` node to the chain.
pub(crate) fn add(
    chain: &mut Chain,
    label: &str,
    name: &str,
    attributes: NodeAttributes,
    constants: &Constants,
    operands: Operands,
    budget: &mut Budget,
) -> Step<Outputs> {
    let Constants { w, r, b, p } = constants;
    let reverse_flags = attributes.direction.reverse_flags();
    let num_directions = reverse_flags.len();
    let hidden = attributes.hidden_size.or(r.shape().last().copied()).unwrap_or_default();
    let input_size = w.shape().last().copied().unwrap_or_default();
    if hidden == 0 || input_size == 0 || hidden > 1 << 24 {
        return Err(format!("hidden_size: expected positive sizes, got hidden size {hidden}, input size {input_size}"));
    }
    let check_shape = |name: &str, array: &Shared<f32>, expected: &[usize]| match array.shape() == expected {
        true => Ok(()),
        false => Err(format!("{name}: expected shape {expected:?}, got {:?}", array.shape())),
    };
    check_shape("W", w, &[num_directions, 4 * hidden, input_size])?;
    check_shape("R", r, &[num_directions, 4 * hidden, hidden])?;
    b.as_ref().map_or(Ok(()), |b| check_shape("B", b, &[num_directions, 8 * hidden]))?;
    p.as_ref().map_or(Ok(()), |p| check_shape("P", p, &[num_directions, 3 * hidden]))?;
    budget.charge::<f32>(&[w.len() + r.len()])?;

    let sizes = |labels: &Labels, axis: usize| -> Size { std::array::from_fn(|k| labels[k].shape()[axis]) };
    if operands.x.iter().any(|x| x.ndim() != 3) {
        return Err(format!("X: expected three axes, got shape {:?}", operands.x[0].shape()));
    }
    chain.require_equal(sizes(&operands.x, 2), [input_size; TRIALS], "features of X")?;
    let Rows { stage: parent, features, positions } = chain.rows(&operands.x).map_err(|why| format!("X: {why}"))?;
    if chain.is_final(parent) {
        return Err("X: expected a sequence, got the final state of an LSTM".into());
    }
    let flipped = place(chain, &positions)?;
    let (steps, batch) = (sizes(&operands.x, 0), sizes(&operands.x, 1));

    let lengths = read_lengths(chain, operands.lengths, batch, steps)?;
    if flipped && lengths != Lengths::Full {
        return Err("X: a sequence in reverse order with lengths is not supported".into());
    }
    let mut states: Vec<Vec<State>> = Vec::new();
    for (name, state) in ["initial_h", "initial_c"].into_iter().zip(&operands.states) {
        states.push(match state {
            None => vec![State::zeros(hidden); num_directions],
            Some(labels) => {
                let shape = labels[0].shape().to_vec();
                let expected = format!("expected [{num_directions}, batch, {hidden}], got {shape:?}");
                if labels.iter().any(|state| state.ndim() != 3) {
                    return Err(format!("{name}: {expected}"));
                }
                let what = "values along an axis";
                for (axis, size) in [(0, [num_directions; TRIALS]), (2, [hidden; TRIALS]), (1, batch)] {
                    let why = |why| format!("{name}: {expected}, {why}");
                    chain.require_equal(sizes(labels, axis), size, what).map_err(why)?;
                }
                (0..num_directions)
                    .map(|d| read_state(chain, labels, d))
                    .collect::<Step<_>>()
                    .map_err(|why| format!("{name}: {why}"))?
            }
        });
    }

    let part = |array: &Shared<f32>, d: usize| array.index_axis(Axis(0), d).to_owned();
    let directions = (0..num_directions).map(|d| {
        let weight_ih = reorder_gates(&part(w, d)).into_dimensionality().map_err(|e| e.to_string())?;
        let mut params = vec![reorder_gates(&part(r, d))];
        if let Some(b) = b {
            params.extend(split(&part(b, d), 2).iter().map(reorder_gates));
        }
        if let Some(p) = p {
            // ONNX orders the peepholes i, o, f; this library orders them i, f, o.
            let peepholes = split(&part(p, d), 3);
            params.extend([0, 2, 1].map(|k| peepholes[k].clone()));
        }
        let states = std::array::from_fn(|k| states[k][d].clone());
        Ok(LstmDirection { reverse: reverse_flags[d] != flipped, columns: features.clone(), weight_ih, params, states })
    });
    let directions = directions.collect::<Step<Vec<_>>>()?;
    let (has_bias, has_peepholes) = (b.is_some(), p.is_some());

    // The other direction of a layer that is split into two nodes.
    let is_other_direction = |stage: &super::chain::Stage| match &stage.kind {
        StageKind::Lstm(other) => {
            stage.parent == Some(parent)
                && directions.len() == 1
                && other.directions.len() == 1
                && other.directions[0].reverse != directions[0].reverse
                && (other.hidden, &other.attributes, &other.lengths) == (hidden, &attributes.shared, &lengths)
                && (other.has_bias, other.has_peepholes) == (has_bias, has_peepholes)
        }
        _ => false,
    };
    let first_feature;
    let stage = match chain.stages.iter().position(is_other_direction) {
        Some(stage) => {
            if let StageKind::Lstm(other) = &mut chain.stages[stage].kind {
                other.directions.extend(directions);
            }
            first_feature = hidden;
            stage
        }
        None => {
            let name = name.to_owned();
            let attributes = attributes.shared;
            let lstm = LstmStage { name, hidden, attributes, has_bias, has_peepholes, lengths, directions };
            first_feature = 0;
            chain.push(Some(parent), StageKind::Lstm(Box::new(lstm)), label)
        }
    };

    let sources = [
        chain.source_index(Source::Stage(stage)),
        chain.source_index(Source::Final { stage, is_c: false }),
        chain.source_index(Source::Final { stage, is_c: true }),
    ];
    let feature = |d: usize, unit: usize| (first_feature + d * hidden + unit) as u32;
    for k in 0..TRIALS {
        budget.charge::<Label>(&[steps[k] + 2, num_directions, batch[k], hidden])?;
    }
    let y = std::array::from_fn(|k| {
        let shape = IxDyn(&[steps[k], num_directions, batch[k], hidden]);
        ArrayD::from_shape_fn(shape, |i| Label {
            source: sources[0],
            position: positions[k][[i[0], i[2]]],
            feature: feature(i[1], i[3]),
        })
        .into_shared()
    });
    let finals = |source: u32| -> Labels {
        std::array::from_fn(|k| {
            let shape = IxDyn(&[num_directions, batch[k], hidden]);
            ArrayD::from_shape_fn(shape, |i| Label { source, position: i[1] as u32, feature: feature(i[0], i[2]) })
                .into_shared()
        })
    };
    Ok([y, finals(sources[1]), finals(sources[2])])
}

/// Compares the positions of a sequence, with axes steps and batch, with those of the first LSTM. Returns whether the
/// time steps are in reverse order.
fn place(chain: &mut Chain, positions: &[ArrayD<u32>; TRIALS]) -> Step<bool> {
    let sizes = |axis: usize| -> Size { std::array::from_fn(|k| positions[k].shape()[axis]) };
    let (steps, batch) = (sizes(0), sizes(1));
    if steps.contains(&0) || batch.contains(&0) {
        return Err("X: expected time steps and sequences, got an empty tensor".into());
    }
    let mut is_flipped = [false; TRIALS];
    if chain.grid.is_none() {
        let mut places: [HashMap<u32, (usize, usize)>; TRIALS] = Default::default();
        for k in 0..TRIALS {
            let flipped = steps[k] > 1 && positions[k][[1, 0]] < positions[k][[0, 0]];
            for (index, &position) in positions[k].indexed_iter() {
                let step = if flipped { steps[k] - 1 - index[0] } else { index[0] };
                if places[k].insert(position, (index[1], step)).is_some() {
                    return Err("X: expected each time step once".into());
                }
            }
            is_flipped[k] = flipped;
        }
        chain.grid = Some(Grid { batch, steps, places });
    } else if let Some(grid) = &chain.grid {
        let error = || {
            "X: expected all time steps of all sequences that the first LSTM reads; an LSTM that is not stacked on the \
             others is a separate model"
                .to_owned()
        };
        if (grid.steps, grid.batch) != (steps, batch) {
            return Err(error());
        }
        for k in 0..TRIALS {
            let place = |s: usize, b: usize| grid.places[k].get(&positions[k][[s, b]]).copied();
            is_flipped[k] = steps[k] > 1 && place(0, 0) == Some((0, steps[k] - 1));
            let expected = |s: usize| if is_flipped[k] { steps[k] - 1 - s } else { s };
            let mut cells = (0..steps[k]).flat_map(|s| (0..batch[k]).map(move |b| (s, b)));
            if !cells.all(|(s, b)| place(s, b) == Some((b, expected(s)))) {
                return Err(error());
            }
        }
    }
    match is_flipped[0] == is_flipped[1] {
        true => Ok(is_flipped[0]),
        false => Err("X: the order of the time steps depends on sizes that the file does not fix".into()),
    }
}

/// Reads the input `sequence_lens`.
fn read_lengths(chain: &mut Chain, operand: LengthsOperand, batch: Size, steps: Size) -> Step<Lengths> {
    let what = "sequence lengths";
    let lengths = |shape: &dyn Fn(usize) -> Vec<usize>| -> Step<Size> {
        match (shape(0)[..].to_owned(), shape(1)[..].to_owned()) {
            (a, b) if a.len() == 1 && b.len() == 1 => Ok([a[0], b[0]]),
            (a, _) => Err(format!("sequence_lens: expected one axis, got shape {a:?}")),
        }
    };
    match operand {
        LengthsOperand::None => Ok(Lengths::Full),
        LengthsOperand::Known(values) => {
            chain.require_equal(lengths(&|k| values[k].shape().to_vec())?, batch, what)?;
            if (0..TRIALS).all(|k| values[k].iter().all(|&n| n == steps[k] as i64)) {
                return Ok(Lengths::Full);
            }
            let lengths = values[0].iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<_, _>>();
            match (values[0] == values[1], lengths) {
                (true, Ok(lengths)) => Ok(Lengths::Constant(lengths)),
                _ => Err(format!("sequence_lens: expected lengths, got {:?}", values[0])),
            }
        }
        LengthsOperand::Labels(labels) => {
            chain.require_equal(lengths(&|k| labels[k].shape().to_vec())?, batch, what)?;
            let first = labels[0].first().copied().ok_or("sequence_lens: expected lengths, got none")?;
            let error =
                || format!("sequence_lens: expected one graph input or constants, got {}", chain.describe(&labels));
            let Some(Source::Input(input)) = chain.resolve(first) else { return Err(error()) };
            let is_whole = |k: usize| {
                let len: usize = chain.inputs[input].shape.iter().map(|size| size[k]).product();
                let in_order =
                    |(index, label): (usize, &Label)| label.source == first.source && label.position as usize == index;
                len == labels[k].len() && labels[k].iter().enumerate().all(in_order)
            };
            if (0..TRIALS).all(is_whole) { Ok(Lengths::Input(input)) } else { Err(error()) }
        }
    }
}

/// Reads the initial `h` or `c` of direction `d`, with axes directions, batch and units.
fn read_state(chain: &Chain, labels: &Labels, d: usize) -> Step<State> {
    let arrays: Vec<_> = labels.iter().map(|array| array.index_axis(Axis(0), d)).collect();
    let constants = arrays[0].mapv(Label::as_constant);
    if constants.iter().all(Option::is_some) {
        let values = constants.mapv(Option::unwrap_or_default);
        let per_sequence: Array2<f32> = values.into_dimensionality().map_err(|e| e.to_string())?;
        let row = per_sequence.row(0).to_vec();
        let is_row = |array: &ndarray::ArrayViewD<'_, Label>| {
            array.axis_iter(Axis(0)).all(|other| {
                let bits = |v: Option<f32>| v.map(f32::to_bits);
                other.iter().zip(&row).all(|(label, v)| bits(label.as_constant()) == Some(v.to_bits()))
            })
        };
        return match (arrays.iter().all(is_row), arrays[0] == arrays[1]) {
            (true, _) => Ok(State::Shared(row.into_iter().map(StateElement::Constant).collect())),
            (false, true) => Ok(State::PerSequence(per_sequence)),
            _ => Err("the constants depend on the batch size, which the file does not fix".into()),
        };
    }
    let element = |trial: usize, unit: usize| -> Step<StateElement> {
        let array = &arrays[trial];
        let (batch, first) = (array.shape()[0], array[[0, unit]]);
        if let Some(value) = first.as_constant() {
            return match (0..batch).all(|b| array[[b, unit]] == first) {
                true => Ok(StateElement::Constant(value)),
                false => Err("constants and inputs are mixed".into()),
            };
        }
        let Some(Source::Input(input)) = chain.resolve(first) else {
            return Err(format!("expected constants or a graph input, got {}", chain.describe(labels)));
        };
        let len: usize = chain.inputs[input].shape.iter().map(|size| size[trial]).product();
        let position = first.position as usize;
        let error = || format!("the axes of `{}` are not those of a state", chain.inputs[input].name);
        // The distance between two sequences; with one sequence all elements are of it.
        let block = match batch {
            1 => len,
            _ => (array[[1, unit]].position as usize).checked_sub(position).filter(|&n| n > 0).ok_or_else(error)?,
        };
        let is_regular = |b: usize| {
            let label = array[[b, unit]];
            label.source == first.source && label.position as usize == position + b * block
        };
        let group = block.checked_mul(batch).ok_or_else(error)?;
        if !(0..batch).all(is_regular) || !len.is_multiple_of(group) || position % group >= block {
            return Err(error());
        }
        Ok(StateElement::Input { input, block, index: position / group * block + position % group })
    };
    let hidden = arrays[0].shape()[1];
    let elements = |trial: usize| (0..hidden).map(|unit| element(trial, unit)).collect::<Step<Vec<_>>>();
    match (elements(0)?, elements(1)?) {
        (a, b) if a == b => Ok(State::Shared(a)),
        _ => Err("the arrangement depends on sizes that the file does not fix".into()),
    }
}

/// Reorders the gates i, o, f, c along the first axis to i, f, g, o.
fn reorder_gates(array: &ArrayD<f32>) -> ArrayD<f32> {
    let gates = split(array, 4);
    let views: Vec<_> = [0, 2, 3, 1].iter().map(|&k: &usize| gates[k].view()).collect();
    concatenate(Axis(0), &views).expect("the gates have the same shape")
}

/// Splits the first axis, whose size is a multiple of `n`, into `n` equal parts.
fn split(array: &ArrayD<f32>, n: usize) -> Vec<ArrayD<f32>> {
    array.axis_chunks_iter(Axis(0), array.len_of(Axis(0)) / n).map(|part| part.to_owned()).collect()
}
