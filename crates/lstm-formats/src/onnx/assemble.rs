//! Makes an [`OnnxGraph`] of the stages of a chain.

use std::collections::BTreeSet;

use ndarray::{Array2, Array3, ArrayD, IxDyn};

use super::{
    chain::{Chain, Labels, Source, Stage, StageKind},
    data::Label,
    graph::{OnnxGraph, OnnxInput, OnnxInputKind, OnnxOutput, OnnxOutputKind, OutputElement, StateRows, list},
    layout::{Layout, Origin},
    lstm_stage::{Lengths, LstmStage, State, StateElement},
    sizes::TRIALS,
    walk::{self, Request, Walker},
};
use lstm_core::{
    Bias, CellKind, Direction, Error, HostState, LayerWeights, LstmConfig, ModelLayer, ModelWeights, Result, Weights,
};

/// The outputs of a graph with their labels.
type Outputs = Vec<(String, Labels)>;

/// Makes a model of what was found in a graph.
pub(crate) fn assemble(mut walker: Walker<'_>, request: &Request<'_>) -> Result<OnnxGraph> {
    let is_named = !request.names.is_empty();
    let outputs = outputs(&mut walker, request)?;
    let chain = &mut walker.chain;
    let outputs = outputs.into_iter().map(|(name, labels)| {
        // The last step of one direction and the first step of the other one are the final state.
        let labels = match is_regular(chain, &name, &labels) {
            true => labels,
            false => chain.as_final(&labels).unwrap_or(labels),
        };
        (name, labels)
    });
    let outputs: Outputs = outputs.collect();

    let (end, is_final) = end(chain, &outputs)?;
    let mut path = chain.path(end);
    check_all_used(chain, &path)?;
    let lengths = lengths(chain, &path)?;
    let steps = outputs.iter().map(|(name, labels)| output_step(chain, name, labels)).collect::<Result<Vec<_>>>()?;
    let is_last_only = !is_final
        && lengths == Lengths::Full
        && !path.iter().any(|&stage| matches!(chain.stages[stage].kind, StageKind::FinalState))
        && steps.contains(&Step::Last)
        && steps.iter().all(|step| matches!(step, Step::Last | Step::None));
    if is_final {
        let stage = chain.push(Some(end), StageKind::FinalState, "");
        path.push(stage);
    }

    let mut builder = Builder::default();
    for &stage in &path {
        builder.add(chain, stage)?;
    }
    builder.flush()?;
    if is_last_only {
        let last = builder.layers.iter().rposition(|layer| matches!(layer, ModelLayer::Lstm { .. }));
        builder.layers.insert(last.map_or(0, |last| last + 1), ModelLayer::LastStep);
    }
    let outputs = outputs.iter().zip(&steps).map(|((name, labels), step)| {
        let is_last_step = *step == Step::Last && !is_last_only;
        output(chain, &builder, name, labels, is_last_step)
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let weights = ModelWeights::new(builder.layers)?;
    let x = x_layout(chain, path[0])?;
    let inputs = inputs(chain, x.0, &lengths, &builder.states, request)?;
    let dtypes = walker.dtypes.into_iter().collect();
    let ignored_nodes = if is_named { walker.skipped } else { Vec::new() };
    let lstm_nodes = walk::lstm_names(request.graph);
    Ok(OnnxGraph { weights, inputs, outputs, dtypes, lstm_nodes, ignored_nodes, x, lengths, states: builder.states })
}

/// The labels of the graph's outputs. If LSTMs are selected by name, only of outputs that could be evaluated and contain no
/// element of an input; if there is none, of the outputs of the last selected `LSTM` node.
fn outputs(walker: &mut Walker<'_>, request: &Request<'_>) -> Result<Outputs> {
    let mut outputs = Vec::new();
    for output in &request.graph.output {
        match walker.output(&output.name) {
            Ok(labels) => outputs.push((output.name.clone(), labels)),
            Err(error) if request.names.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    if !request.names.is_empty() {
        let chain = &walker.chain;
        let is_input = |label: &Label| matches!(chain.resolve(*label), Some(Source::Input(_)));
        outputs.retain(|(_, labels)| !labels.iter().flatten().any(is_input));
        if outputs.is_empty() {
            for name in walker.lstm_outputs.clone() {
                if let Ok(labels) = walker.output(name) {
                    outputs.push((name.to_owned(), labels));
                }
            }
        }
    }
    match outputs.is_empty() {
        true => Err(Error::format("the graph", "expected an output of an LSTM, found none")),
        false => Ok(outputs),
    }
}

/// Whether labels come from outputs of stages only, of all time steps or of one, or from final states only.
fn is_regular(chain: &Chain, name: &str, labels: &Labels) -> bool {
    let is_final = |label: &Label| matches!(chain.resolve(*label), Some(Source::Final { .. }));
    let finals = labels.iter().flatten().filter(|label| is_final(label)).count();
    let all = labels.iter().map(|array| array.len()).sum::<usize>();
    match finals {
        0 => match (output_step(chain, name, labels), &chain.grid) {
            (Ok(Step::All), Some(grid)) => {
                let layout = chain.origins(labels).and_then(|origins| Layout::find(&origins, grid.batch, grid.steps));
                layout.is_some()
            }
            (step, _) => step.is_ok(),
        },
        _ => finals == all,
    }
}

/// Whether a graph input holds the lengths of the sequences.
fn are_lengths(chain: &Chain, input: usize) -> bool {
    chain.stages.iter().any(|s| matches!(&s.kind, StageKind::Lstm(lstm) if lstm.lengths == Lengths::Input(input)))
}

/// The layout of an output that is the lengths of the sequences; `None` for other outputs.
fn lengths_layout(chain: &Chain, labels: &Labels) -> Option<Layout<OutputElement>> {
    let is_length =
        |&label: &Label| matches!(chain.resolve(label), Some(Source::Input(input)) if are_lengths(chain, input));
    let grid = chain.grid.as_ref().filter(|_| labels.iter().flatten().all(is_length))?;
    let origin = |&label: &Label| Origin { element: OutputElement::Length, batch: label.position as usize, step: 0 };
    Layout::find(&labels.each_ref().map(|array| array.map(origin)), grid.batch, grid.steps)
}

/// The last stage of the chain, and whether the model returns its final state.
fn end(chain: &Chain, outputs: &Outputs) -> Result<(usize, bool)> {
    let mut ends: Vec<(usize, &str)> = Vec::new();
    let mut finals: Vec<usize> = Vec::new();
    let mut is_h = false;
    for (name, labels) in outputs {
        let mut sources = BTreeSet::new();
        for &label in labels.iter().flatten() {
            match chain.resolve(label) {
                Some(Source::Stage(stage)) => ends.push((stage, name)),
                Some(Source::Final { stage, is_c }) => {
                    finals.push(stage);
                    sources.insert((stage, is_c));
                }
                Some(Source::Input(input)) if are_lengths(chain, input) => {}
                Some(Source::Input(input)) => {
                    let input = &chain.inputs[input].name;
                    return Err(Error::format(format!("output `{name}`"), format!("is the input `{input}`")));
                }
                None => {}
            }
            ends.dedup_by_key(|(stage, _)| *stage);
            finals.dedup();
        }
        let last = sources.iter().map(|(stage, _)| *stage).max();
        is_h |= sources.len() == 1 && sources.iter().all(|&(stage, is_c)| !is_c && Some(stage) == last);
    }
    let deepest = |stages: &mut dyn Iterator<Item = usize>| stages.max_by_key(|&stage| chain.path(stage).len());
    let Some(end) = deepest(&mut ends.iter().map(|(stage, _)| *stage)) else {
        let error = || Error::format("the graph", "expected an output of an LSTM, found none");
        return Ok((deepest(&mut finals.into_iter()).ok_or_else(error)?, is_h));
    };
    if let Some((other, name)) = ends.iter().find(|(stage, _)| *stage != end) {
        let (other, end) = (&chain.stages[*other].label, &chain.stages[end].label);
        let why = format!("expected outputs of the last layer, {end}, got those of {other}");
        return Err(Error::format(format!("output `{name}`"), why));
    }
    Ok((end, false))
}

/// Checks that all LSTMs are part of the chain.
fn check_all_used(chain: &Chain, path: &[usize]) -> Result<()> {
    let is_lstm = |stage: usize| matches!(chain.stages[stage].kind, StageKind::Lstm(_));
    if !path.iter().any(|&stage| is_lstm(stage)) {
        return Err(Error::format("the graph", "expected an LSTM between the input and the output, found none"));
    }
    match (0..chain.stages.len()).find(|stage| is_lstm(*stage) && !path.contains(stage)) {
        None => Ok(()),
        Some(other) => {
            let end = path.iter().rev().find(|&&stage| is_lstm(stage)).map(|&stage| &chain.stages[stage].label);
            let end = end.map(String::as_str).unwrap_or_default();
            let why = format!("this LSTM is not stacked on the others: it is not on the way from the input to {end}");
            Err(Error::format(&chain.stages[other].label, why))
        }
    }
}

/// The lengths, which must be the same for all LSTMs.
fn lengths(chain: &Chain, path: &[usize]) -> Result<Lengths> {
    let mut lengths: Option<&Lengths> = None;
    for &stage in path {
        let Stage { kind: StageKind::Lstm(lstm), label, .. } = &chain.stages[stage] else { continue };
        if lengths.is_some_and(|lengths| *lengths != lstm.lengths) {
            let why = "expected the sequence lengths of the first LSTM";
            return Err(Error::format(label, why));
        }
        lengths = Some(&lstm.lengths);
    }
    Ok(lengths.cloned().unwrap_or(Lengths::Full))
}

/// The time steps of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    All,
    First,
    Last,
    /// The output has none: it is a state.
    None,
}

/// The time steps that an output holds.
fn output_step(chain: &Chain, name: &str, labels: &Labels) -> Result<Step> {
    let error = |why: &str| Error::format(format!("output `{name}`"), why);
    let Some(grid) = &chain.grid else { return Err(error("expected outputs of an LSTM")) };
    let mut steps: [BTreeSet<usize>; TRIALS] = Default::default();
    for (trial, array) in labels.iter().enumerate() {
        for &label in array {
            if let Some(Source::Stage(stage)) = chain.resolve(label)
                && !chain.is_final(stage)
            {
                let place = grid.places[trial].get(&label.position);
                steps[trial].insert(place.ok_or_else(|| error("expected outputs of an LSTM"))?.1);
            }
        }
    }
    let all = |f: fn(&BTreeSet<usize>, usize) -> bool| (0..TRIALS).all(|k| f(&steps[k], grid.steps[k]));
    // With one time step in the file, all of them are the last one.
    if labels.iter().any(|array| array.is_empty()) {
        Err(error("expected elements, got an empty tensor"))
    } else if steps.iter().all(BTreeSet::is_empty) {
        Ok(Step::None)
    } else if all(|steps, n| steps.len() == n) && grid.steps != [1; TRIALS] {
        Ok(Step::All)
    } else if all(|steps, n| steps.len() == 1 && steps.contains(&(n - 1))) {
        // A file with one time step returns the sequence; nothing tells it apart from the last step.
        Ok(if grid.steps == [1; TRIALS] { Step::All } else { Step::Last })
    } else if all(|steps, _| steps.len() == 1 && steps.contains(&0)) {
        Ok(Step::First)
    } else {
        Err(error("expected all time steps, the last one or the first one"))
    }
}

/// Describes an output.
fn output(chain: &Chain, builder: &Builder, name: &str, labels: &Labels, is_last_step: bool) -> Result<OnnxOutput> {
    let error = |why: &str| Error::format(format!("output `{name}`"), why);
    let grid = chain.grid.as_ref().ok_or_else(|| error("expected outputs of an LSTM"))?;
    if let Some(layout) = lengths_layout(chain, labels) {
        return Ok(OnnxOutput { name: name.to_owned(), kind: OnnxOutputKind::Lengths, layout, is_last_step });
    }
    let origins = chain.origins(labels).ok_or_else(|| error("expected outputs of the layers"))?;
    let layout = Layout::find(&origins, grid.batch, grid.steps);
    let layout = layout.ok_or_else(|| {
        error("its elements are not in the order of sequences, time steps and features, or the file does not fix it")
    })?;
    let element = |label: &Label| -> Option<OutputElement> {
        match chain.resolve(*label) {
            None => label.as_constant().map(OutputElement::Constant),
            Some(Source::Input(_)) => None,
            Some(Source::Stage(stage)) => {
                Some(OutputElement::Feature(chain.output_index(stage, label.feature as usize)))
            }
            Some(Source::Final { stage, is_c }) => {
                let StageKind::Lstm(lstm) = &chain.stages[stage].kind else { return None };
                let (layer, first_row) = *builder.rows.get(&stage)?;
                let index = lstm.output_index(label.feature as usize);
                let (row, unit) = (first_row + index / lstm.hidden, index % lstm.hidden);
                Some(OutputElement::State { lstm: layer, is_c, row, unit })
            }
        }
    };
    let elements = layout.elements.iter().map(element).collect::<Option<Vec<_>>>();
    let elements = elements.ok_or_else(|| error("expected outputs or final states of the layers of the chain"))?;
    let states = elements.iter().map(|element| match element {
        OutputElement::State { lstm, is_c, row, .. } => Some((*lstm, *is_c, *row)),
        _ => None,
    });
    let states: Option<Vec<_>> = states.collect();
    let kind = states.map_or(OnnxOutputKind::Outputs, |rows| OnnxOutputKind::State(join_rows(rows)));
    Ok(OnnxOutput { name: name.to_owned(), kind, layout: layout.with_elements(elements), is_last_step })
}

/// Joins adjacent rows of states.
fn join_rows(mut rows: Vec<(usize, bool, usize)>) -> Vec<StateRows> {
    rows.sort_unstable();
    rows.dedup();
    let mut joined: Vec<StateRows> = Vec::new();
    for (lstm, is_c, row) in rows {
        match joined.last_mut() {
            Some(last) if (last.lstm, last.is_c, last.rows.end) == (lstm, is_c, row) => last.rows.end += 1,
            _ => joined.push(StateRows { lstm, is_c, rows: row..row + 1 }),
        }
    }
    joined
}

/// The index and the layout of the input with the features or tokens.
fn x_layout(chain: &Chain, start: usize) -> Result<(usize, Layout<usize>)> {
    let (input, offsets) = match &chain.stages[start].kind {
        StageKind::Features { input, offsets } => (*input, offsets.clone()),
        StageKind::Embedding { input, .. } => (*input, [vec![0], vec![0]]),
        _ => return Err(Error::format(&chain.stages[start].label, "expected an input of the graph")),
    };
    let Some(grid) = &chain.grid else {
        return Err(Error::format(&chain.stages[start].label, "expected an LSTM after it"));
    };
    let error = |why: &str| Error::format(format!("input `{}`", chain.inputs[input].name), why);
    let mut arrays = Vec::new();
    for trial in 0..TRIALS {
        let shape: Vec<usize> = chain.inputs[input].shape.iter().map(|size| size[trial]).collect();
        let mut origins: Vec<Option<Origin<usize>>> = vec![None; shape.iter().product()];
        for (&position, &(batch, step)) in &grid.places[trial] {
            for (element, &offset) in offsets[trial].iter().enumerate() {
                let index = usize::try_from(i64::from(position) + offset).ok();
                let origin = index.and_then(|index| origins.get_mut(index));
                let origin = origin.ok_or_else(|| error("is read outside of its shape"))?;
                if origin.replace(Origin { element, batch, step }).is_some() {
                    return Err(error(
                        "expected each element to be read once, but the first layer reads one several times",
                    ));
                }
            }
        }
        let origins = origins.into_iter().collect::<Option<Vec<_>>>();
        let origins = origins.ok_or_else(|| error("expected all elements to be used, but a part of it is not"))?;
        let array = ArrayD::from_shape_vec(IxDyn(&shape), origins);
        arrays.push(array.map_err(|_| error("invalid shape"))?);
    }
    let arrays: Option<[_; TRIALS]> = arrays.try_into().ok();
    let layout = arrays.and_then(|arrays| Layout::find(&arrays, grid.batch, grid.steps));
    let layout = layout.ok_or_else(|| error("its axes are not those of sequences, time steps and features"))?;
    Ok((input, layout))
}

/// Describes the inputs.
fn inputs(
    chain: &Chain,
    x: usize,
    lengths: &Lengths,
    states: &[Vec<[State; 2]>],
    request: &Request<'_>,
) -> Result<Vec<OnnxInput>> {
    let mut inputs = Vec::new();
    for (index, input) in chain.inputs.iter().enumerate() {
        let mut rows = Vec::new();
        for (lstm, states) in states.iter().enumerate() {
            for (row, pair) in states.iter().enumerate() {
                for (k, state) in pair.iter().enumerate() {
                    let is_source =
                        |e: &StateElement| matches!(e, StateElement::Input { input, .. } if *input == index);
                    if matches!(state, State::Shared(elements) if elements.iter().any(is_source)) {
                        rows.push((lstm, k == 1, row));
                    }
                }
            }
        }
        let kind = if index == x {
            let is_tokens =
                chain.stages.iter().any(|s| matches!(s.kind, StageKind::Embedding { input, .. } if input == x));
            if is_tokens { OnnxInputKind::Tokens } else { OnnxInputKind::Features }
        } else if *lengths == Lengths::Input(index) {
            OnnxInputKind::Lengths
        } else if !rows.is_empty() {
            OnnxInputKind::State(join_rows(rows))
        } else if request.names.is_empty() {
            let why = "the result does not depend on it in a way that is supported";
            return Err(Error::format(format!("input `{}`", input.name), why));
        } else {
            OnnxInputKind::Unused
        };
        let shape = input.shape.iter().map(|size| (size[0] == size[1]).then_some(size[0])).collect();
        inputs.push(OnnxInput { name: input.name.clone(), kind, shape });
    }
    for (name, &value) in request.scalar_inputs {
        inputs.push(OnnxInput { name: name.clone(), kind: OnnxInputKind::Scalar(value), shape: Vec::new() });
    }
    Ok(inputs)
}

/// Builds the layers of a model.
#[derive(Default)]
struct Builder {
    layers: Vec<ModelLayer>,
    /// The stack of LSTM layers that is being built.
    stack: Option<Stack>,
    /// For each LSTM layer and each row of its state, `h` and `c`.
    states: Vec<Vec<[State; 2]>>,
    /// For each LSTM stage the index of its layer among the LSTM layers, and its first row in the state.
    rows: std::collections::BTreeMap<usize, (usize, usize)>,
    names: BTreeSet<String>,
}

/// LSTM layers of one configuration, one on top of the other.
struct Stack {
    name: String,
    config: LstmConfig,
    layers: Vec<LayerWeights>,
    states: Vec<[State; 2]>,
    /// A dropout after the last layer so far.
    dropout: Option<f32>,
}

impl Builder {
    /// Adds a stage.
    fn add(&mut self, chain: &Chain, stage: usize) -> Result<()> {
        let Stage { parent, kind, label } = &chain.stages[stage];
        match kind {
            StageKind::Lstm(lstm) => return self.add_lstm(chain, stage, parent.unwrap_or_default(), lstm),
            StageKind::Dropout(probability) => match &mut self.stack {
                Some(stack) if stack.dropout.is_none() => {
                    stack.dropout = Some(*probability);
                    return Ok(());
                }
                _ => {}
            },
            _ => {}
        }
        self.flush()?;
        let layer = match kind {
            StageKind::Features { .. } => return Ok(()),
            StageKind::Embedding { weight, .. } => {
                ModelLayer::Embedding { name: self.name(label, "embedding"), weight: weight.clone() }
            }
            StageKind::Linear { columns, weight, bias } => {
                let weight = chain.scatter_columns(parent.unwrap_or_default(), columns, weight);
                ModelLayer::Linear { name: self.name(label, "linear"), weight, bias: bias.clone() }
            }
            StageKind::Activation(activation) => ModelLayer::Activation(*activation),
            StageKind::Dropout(probability) => ModelLayer::Dropout(*probability),
            StageKind::FinalState => ModelLayer::FinalState,
            StageKind::Lstm(_) => return Ok(()),
        };
        self.layers.push(layer);
        Ok(())
    }

    /// Adds an LSTM layer, on top of the stack if its configuration is the same.
    fn add_lstm(&mut self, chain: &Chain, stage: usize, parent: usize, lstm: &LstmStage) -> Result<()> {
        let directions = lstm.ordered_directions();
        let direction = match (directions.len(), directions[0].reverse) {
            (1, false) => Direction::Forward,
            (1, true) => Direction::Reverse,
            _ => Direction::Bidirectional,
        };
        let mut config = LstmConfig::new(chain.width(parent), lstm.hidden).direction(direction);
        config.bias = if lstm.has_bias { Bias::Two } else { Bias::None };
        config.cell = if lstm.has_peepholes { CellKind::PeepholeDiagonal } else { CellKind::Fused };
        (config.clip, config.coupled) = (lstm.attributes.clip, lstm.attributes.coupled);
        config.activations = lstm.attributes.activations;
        config.validate().map_err(|e| Error::format(&chain.stages[stage].label, e))?;
        let (base, index) = stack_name(&lstm.name);
        let fits = self.stack.as_ref().is_some_and(|stack| {
            let mut same = config.clone();
            (same.input_size, same.num_layers, same.dropout) =
                (stack.config.input_size, stack.config.num_layers, stack.config.dropout);
            let dropout = stack.dropout.unwrap_or(0.0);
            same == stack.config
                && index != Some(0)
                && (stack.config.num_layers == 1 || dropout == stack.config.dropout)
        });
        if !fits {
            self.flush()?;
            let name = self.name(base, "lstm");
            let (layers, states) = (Vec::new(), Vec::new());
            let mut config = config.clone();
            config.num_layers = 0;
            self.stack = Some(Stack { name, config, layers, states, dropout: None });
        }
        let Some(stack) = &mut self.stack else { return Ok(()) };
        stack.config.num_layers += 1;
        if let Some(dropout) = stack.dropout.take() {
            stack.config.dropout = dropout;
        }
        self.rows.insert(stage, (self.states.len(), stack.states.len()));
        let spec = config.layer_specs();
        for (direction, spec) in directions.iter().zip(spec) {
            let weight_ih: Array2<f32> = chain.scatter_columns(parent, &direction.columns, &direction.weight_ih);
            let values = [vec![weight_ih.into_dyn()], direction.params.clone()].concat();
            stack.layers.push(LayerWeights::new(spec, values)?);
            stack.states.push(direction.states.clone());
        }
        Ok(())
    }

    /// Completes the stack.
    fn flush(&mut self) -> Result<()> {
        let Some(stack) = self.stack.take() else { return Ok(()) };
        let weights = Weights::new(stack.config.clone(), stack.layers)?.into();
        let initial_state = initial_state(&stack.config, &stack.states)?;
        self.layers.push(ModelLayer::Lstm { name: stack.name, weights, initial_state });
        self.layers.extend(stack.dropout.map(ModelLayer::Dropout));
        self.states.push(stack.states);
        Ok(())
    }

    /// A name for a layer that is not the start of another one.
    fn name(&mut self, label: &str, kind: &str) -> String {
        let node = label.split('`').nth(1).unwrap_or(label);
        let word = |c: char| if c.is_alphanumeric() || "_-.".contains(c) { c } else { '_' };
        let name: String = node.trim_start_matches('/').chars().map(word).collect();
        let is_number = name.chars().all(|c| c.is_ascii_digit());
        let name = if is_number || node.starts_with("node ") { kind.to_owned() } else { name };
        // In a state dict, the part of a name before a dot is the name of an outer module.
        let starts = |a: &str, b: &str| b.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let flat = name.replace('.', "_");
        let candidates = [name, flat.clone()].into_iter().chain((1..).map(|k| format!("{flat}_{k}")));
        let is_free = |name: &String| !self.names.iter().any(|other| starts(other, name) || starts(name, other));
        let free = candidates.into_iter().find(is_free).unwrap_or(flat);
        self.names.insert(free.clone());
        free
    }
}

/// The name of a stack and the index of a layer in it, from the name of a node: `rec_l1` is layer 1 of `rec`.
fn stack_name(name: &str) -> (&str, Option<usize>) {
    match name.rsplit_once("_l").map(|(base, index)| (base, index.parse())) {
        Some((base, Ok(index))) => (base, Some(index)),
        _ => (name, None),
    }
}

/// The initial state that belongs to the model: constants other than zeros.
fn initial_state(config: &LstmConfig, states: &[[State; 2]]) -> Result<Option<HostState>> {
    let mut initial = HostState::zeros(config, 1)?;
    let mut is_zero = true;
    for (row, pair) in states.iter().enumerate() {
        for (k, state) in pair.iter().enumerate() {
            let target: &mut Array3<f32> = if k == 0 { &mut initial.h } else { &mut initial.c };
            let State::Shared(elements) = state else { return Ok(None) };
            for (unit, element) in elements.iter().enumerate() {
                let StateElement::Constant(value) = *element else { return Ok(None) };
                target[[row, 0, unit]] = value;
                is_zero &= value.to_bits() == 0;
            }
        }
    }
    Ok((!is_zero).then_some(initial))
}

/// Words for the `LSTM` nodes of a file, for error messages.
pub(crate) fn summary(names: &[String]) -> String {
    let inside: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| name.find("/then/").or(name.find("/else/")).or(name.find("/body/")).map(|end| &name[..end]))
        .collect();
    let inside: Vec<&str> = inside.into_iter().collect();
    let place = if inside.is_empty() { String::new() } else { format!(", inside {}", list(&inside)) };
    let count = if names.len() == 1 { "1 LSTM node".into() } else { format!("{} LSTM nodes", names.len()) };
    format!("{count}{place}: {}", list(names))
}
