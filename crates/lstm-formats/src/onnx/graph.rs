//! [`OnnxGraph`], the model of an ONNX graph, which runs on arrays in the layout of the graph's inputs and outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use ndarray::{Array2, Array3, ArrayD, ArrayView3, IxDyn};

use super::{
    layout::Layout,
    lstm_stage::{Lengths, State, StateElement},
};
use lstm_core::{Activation, Backend, Error, HostState, Model, ModelInput, ModelLayer, ModelWeights, Result};

/// An array for an input of a graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnnxArray {
    /// Floats, such as features and states.
    F32(ArrayD<f32>),
    /// Integers, such as tokens and lengths.
    I64(ArrayD<i64>),
}

impl OnnxArray {
    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            OnnxArray::F32(array) => array.shape(),
            OnnxArray::I64(array) => array.shape(),
        }
    }

    /// The elements as floats, in row-major order.
    fn to_floats(&self) -> Vec<f32> {
        match self {
            OnnxArray::F32(array) => array.iter().copied().collect(),
            OnnxArray::I64(array) => array.iter().map(|&v| v as f32).collect(),
        }
    }

    /// The elements as integers, rounded toward zero, in row-major order.
    fn to_ints(&self) -> Vec<i64> {
        match self {
            OnnxArray::F32(array) => array.iter().map(|&v| v as i64).collect(),
            OnnxArray::I64(array) => array.iter().copied().collect(),
        }
    }
}

impl From<ArrayD<f32>> for OnnxArray {
    fn from(array: ArrayD<f32>) -> Self {
        OnnxArray::F32(array)
    }
}

impl From<ArrayD<i64>> for OnnxArray {
    fn from(array: ArrayD<i64>) -> Self {
        OnnxArray::I64(array)
    }
}

/// What a graph input or output holds of the states of an LSTM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateRows {
    /// Index among the LSTM layers of the model, [`ModelWeights::lstms`].
    pub lstm: usize,
    /// Whether it is the cell state `c`; otherwise the hidden state `h`.
    pub is_c: bool,
    /// Rows of the [`HostState`]; each row belongs to one layer of a stack and one direction.
    pub rows: Range<usize>,
}

/// What a graph input holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnnxInputKind {
    /// The features of each time step.
    Features,
    /// The tokens, indices of rows of the embedding.
    Tokens,
    /// The lengths of the sequences.
    Lengths,
    /// Initial states.
    State(Vec<StateRows>),
    /// A scalar whose value was given by [`OpenOptions::set`](crate::OpenOptions::set), which is part of the model now.
    Scalar(f64),
    /// Not used by the LSTMs that were selected by name.
    Unused,
}

/// A graph input.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxInput {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: OnnxInputKind,
    /// The size of each axis; `None` for a size that the file does not fix.
    pub shape: Vec<Option<usize>>,
}

/// What a graph output holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnnxOutputKind {
    /// The outputs of the model, of all time steps or of one.
    Outputs,
    /// Final states.
    State(Vec<StateRows>),
    /// The lengths of the sequences, as in the input.
    Lengths,
}

/// A graph output.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxOutput {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: OnnxOutputKind,
    pub(crate) layout: Layout<OutputElement>,
    /// For outputs of one time step of a model that returns all: whether it is the last one, or the first.
    pub(crate) is_last_step: bool,
}

/// What an element of an output is, besides its sequence and time step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OutputElement {
    /// A feature of the model's output.
    Feature(usize),
    State {
        lstm: usize,
        is_c: bool,
        row: usize,
        unit: usize,
    },
    Constant(f32),
    /// The length of the sequence.
    Length,
}

/// Inputs of a model, converted from the layout of a graph.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelArguments {
    /// The features, `(batch, steps, input_size)`, unless the model reads tokens.
    pub features: Option<Array3<f32>>,
    /// The tokens, `(batch, steps)`, if the model reads tokens.
    pub tokens: Option<Array2<i64>>,
    /// The lengths of the sequences, if the graph has them.
    pub lengths: Option<Vec<usize>>,
    /// The initial state of each LSTM layer, if one of them depends on an input or on the index of the sequence.
    pub states: Option<Vec<HostState>>,
}

impl ModelArguments {
    /// The input for [`Model::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`] if there are neither features nor tokens.
    pub fn input(&self) -> Result<ModelInput<'_>> {
        let input = match (&self.features, &self.tokens) {
            (Some(features), None) => ModelInput::from(features),
            (None, Some(tokens)) => ModelInput::from(tokens),
            _ => return Err(Error::shape("onnx inputs", "features or tokens", "none or both")),
        };
        let input = self.lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
        Ok(self.states.iter().fold(input, |input, states| input.states(states)))
    }
}

/// The model of an ONNX graph, with the inputs and outputs of the graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxGraph {
    pub(crate) weights: ModelWeights,
    pub(crate) inputs: Vec<OnnxInput>,
    pub(crate) outputs: Vec<OnnxOutput>,
    pub(crate) dtypes: Vec<String>,
    pub(crate) lstm_nodes: Vec<String>,
    pub(crate) ignored_nodes: Vec<String>,
    /// Index of the input with the features or tokens, and its layout.
    pub(crate) x: (usize, Layout<usize>),
    pub(crate) lengths: Lengths,
    /// For each LSTM layer and each row of its state, `h` and `c`.
    pub(crate) states: Vec<Vec<[State; 2]>>,
}

impl OnnxGraph {
    /// The layers and parameters, for [`Model::new`].
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// The inputs of the graph, in the order of the file. With LSTMs selected by name, values of the graph that feed them
    /// are inputs, too.
    pub fn inputs(&self) -> &[OnnxInput] {
        &self.inputs
    }

    /// The outputs of the graph that the model computes: all of them, unless LSTMs were selected by name.
    pub fn outputs(&self) -> &[OnnxOutput] {
        &self.outputs
    }

    /// Element types of the parameters in the file, without duplicates.
    pub fn dtypes(&self) -> &[String] {
        &self.dtypes
    }

    /// Names of all `LSTM` nodes of the file, in its order.
    pub fn lstm_nodes(&self) -> &[String] {
        &self.lstm_nodes
    }

    /// Labels of the nodes that are not part of the model. Empty unless LSTMs were selected by name.
    pub fn ignored_nodes(&self) -> &[String] {
        &self.ignored_nodes
    }

    /// How the arrays of the graph differ from those of the model, in words, if not only in the order of the batch and time
    /// axes: features or time steps in another order, or a part of the outputs. Then only [`run`](Self::run),
    /// [`arguments`](Self::arguments) and [`to_outputs`](Self::to_outputs) give what the graph gives.
    pub fn rearrangement(&self) -> Option<String> {
        let (index, layout) = &self.x;
        let name = &self.inputs[*index].name;
        if layout.is_reversed() {
            return Some(format!("it reverses the time steps of its input `{name}`"));
        }
        if !self.weights.reads_tokens() && !layout.elements.iter().copied().eq(0..self.weights.input_size()) {
            return Some(format!("it changes the order of the features of its input `{name}`"));
        }
        let outputs: Vec<&OnnxOutput> =
            self.outputs.iter().filter(|output| output.kind == OnnxOutputKind::Outputs).collect();
        // Several outputs may have the features together, such as one for each direction.
        let mut features = BTreeSet::new();
        for output in &outputs {
            let has_all_steps = output.layout.has_steps() || self.weights.returns_last_step() || !layout.has_steps();
            let elements = &output.layout.elements;
            let is_in_order = elements.windows(2).all(|pair| match pair {
                [OutputElement::Feature(a), OutputElement::Feature(b)] => a + 1 == *b,
                _ => false,
            });
            // The tool says so itself if a graph returns the last step only.
            if (has_all_steps || output.is_last_step) && !output.layout.is_reversed() && is_in_order {
                features.extend(elements.iter().filter_map(|element| match element {
                    OutputElement::Feature(feature) => Some(*feature),
                    _ => None,
                }));
            }
        }
        match outputs.first() {
            Some(output) if !features.into_iter().eq(0..self.weights.output_size()) => {
                Some(format!("its output `{}` has another order or a part of the model's outputs", output.name))
            }
            _ => None,
        }
    }

    /// The number of sequences and of time steps that the file fixes for the input.
    pub fn fixed_sizes(&self) -> (Option<usize>, Option<usize>) {
        let (index, layout) = &self.x;
        layout.fixed_sizes(&self.inputs[*index].shape)
    }

    /// Runs `model`, which was made from [`weights`](Self::weights), on arrays for the inputs of the graph, by name. Returns
    /// the name and array of each output of the graph. Arrays have the layout of the graph.
    ///
    /// # Errors
    /// The errors of [`arguments`](Self::arguments) and of [`Model::forward`].
    pub fn run<B: Backend>(
        &self,
        model: &Model<B>,
        inputs: BTreeMap<String, OnnxArray>,
    ) -> Result<Vec<(String, ArrayD<f32>)>> {
        let arguments = self.arguments(inputs)?;
        let output = model.forward(arguments.input()?)?;
        self.to_outputs(&arguments, output.y.view(), &output.states)
    }

    /// Whether the graph gives the model initial states: by inputs, or other constants for each sequence.
    fn has_given_states(&self) -> bool {
        let is_input = |element: &StateElement| matches!(element, StateElement::Input { .. });
        self.states.iter().flatten().flatten().any(|state| match state {
            State::Shared(elements) => elements.iter().any(is_input),
            State::PerSequence(_) => true,
        })
    }

    /// Converts arrays for the inputs of the graph, by name, to the inputs of the model.
    ///
    /// # Errors
    /// [`Error::Shape`] if an input is missing, does not exist in the graph, or does not have the shape that the file
    /// declares; [`Error::Format`] for lengths that are not between 0 and the number of time steps.
    pub fn arguments(&self, mut inputs: BTreeMap<String, OnnxArray>) -> Result<ModelArguments> {
        let names: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
        let mut arrays = Vec::new();
        for input in &self.inputs {
            let op = || format!("onnx input `{}`", input.name);
            let array = inputs.remove(&input.name);
            if let (OnnxInputKind::Scalar(value), Some(array)) = (&input.kind, &array)
                && array.to_floats().iter().any(|&given| f64::from(given) != *value)
            {
                return Err(Error::shape(op(), format!("the value {value} that was set"), format!("{array:?}")));
            }
            if matches!(input.kind, OnnxInputKind::Scalar(_) | OnnxInputKind::Unused) {
                arrays.push(None);
                continue;
            }
            let array = array.ok_or_else(|| Error::shape(op(), "an array", "none"))?;
            let is_expected = |(&expected, &n): (&Option<usize>, &usize)| expected.is_none_or(|expected| expected == n);
            let shape = array.shape();
            if shape.len() != input.shape.len() || !input.shape.iter().zip(shape).all(is_expected) {
                return Err(Error::shape(op(), shape_text(&input.shape), format!("{shape:?}")));
            }
            arrays.push(Some(array));
        }
        if let Some(name) = inputs.keys().next() {
            return Err(Error::shape("onnx inputs", format!("inputs {}", list(&names)), format!("`{name}`")));
        }
        let (x_index, layout) = &self.x;
        let x = arrays[*x_index].take().ok_or_else(|| Error::shape("onnx inputs", "an input", "none"))?;
        let x_name = &self.inputs[*x_index].name;
        let sizes = layout.sizes(x.shape());
        let expected = || format!("the layout that the graph reads, {}", shape_text(&self.inputs[*x_index].shape));
        let error = || Error::shape(format!("onnx input `{x_name}`"), expected(), format!("{:?}", x.shape()));
        let sizes = sizes.ok_or_else(error)?;
        let (batch, steps) = sizes;
        let mut arguments = ModelArguments::default();
        if self.weights.reads_tokens() {
            let rows = match self.weights.layers().first() {
                Some(ModelLayer::Embedding { weight, .. }) => weight.nrows() as i64,
                _ => 0,
            };
            let mut tokens = Array2::zeros((batch, steps));
            for (token, (_, b, t)) in x.to_ints().into_iter().zip(layout.walk(sizes)) {
                // As in ONNX's Gather, a negative index counts from the end.
                tokens[[b, t]] = if token < 0 { token + rows } else { token };
            }
            arguments.tokens = Some(tokens);
        } else {
            let mut features = Array3::zeros((batch, steps, self.weights.input_size()));
            for (value, (k, b, t)) in x.to_floats().into_iter().zip(layout.walk(sizes)) {
                features[[b, t, layout.elements[k]]] = value;
            }
            arguments.features = Some(features);
        }
        let lengths: Option<Vec<i64>> = match &self.lengths {
            Lengths::Full => None,
            Lengths::Constant(lengths) => Some(lengths.iter().map(|&n| n as i64).collect()),
            Lengths::Input(input) => arrays[*input].as_ref().map(OnnxArray::to_ints),
        };
        arguments.lengths = lengths.map(|lengths| to_lengths(&lengths, batch, steps)).transpose()?;
        if self.has_given_states() {
            let arrays: Vec<Vec<f32>> =
                arrays.iter().map(|array| array.as_ref().map(OnnxArray::to_floats).unwrap_or_default()).collect();
            let states = self.weights.lstms().zip(&self.states).map(|(weights, rows)| {
                let mut state = HostState::zeros(weights.config(), batch)?;
                for (row, [h, c]) in rows.iter().enumerate() {
                    self.fill(&mut state.h, row, h, &arrays)?;
                    self.fill(&mut state.c, row, c, &arrays)?;
                }
                Ok(state)
            });
            arguments.states = Some(states.collect::<Result<_>>()?);
        }
        Ok(arguments)
    }

    /// The lengths and initial states that are constants of the graph, one for each sequence. They fix the batch size. Initial
    /// states that all sequences share are part of the [weights](Self::weights). States that come from inputs are 0 here.
    ///
    /// # Errors
    /// [`Error::Shape`] if the constants have different batch sizes.
    pub fn constants(&self) -> Result<ModelArguments> {
        let mut arguments = ModelArguments::default();
        if let Lengths::Constant(lengths) = &self.lengths {
            arguments.lengths = Some(lengths.clone());
        }
        let batch = self.states.iter().flatten().flatten().find_map(|state| match state {
            State::PerSequence(values) => Some(values.nrows()),
            State::Shared(_) => None,
        });
        let Some(batch) = batch else { return Ok(arguments) };
        let fills = |state: &State| match state {
            State::PerSequence(_) => true,
            State::Shared(elements) => elements.iter().all(|element| matches!(element, StateElement::Constant(_))),
        };
        let states = self.weights.lstms().zip(&self.states).map(|(weights, rows)| {
            let mut state = HostState::zeros(weights.config(), batch)?;
            for (row, [h, c]) in rows.iter().enumerate() {
                for (target, part) in [(&mut state.h, h), (&mut state.c, c)].into_iter().filter(|(_, part)| fills(part))
                {
                    self.fill(target, row, part, &[])?;
                }
            }
            Ok(state)
        });
        arguments.states = Some(states.collect::<Result<_>>()?);
        Ok(arguments)
    }

    /// Writes one row of an initial state.
    fn fill(&self, target: &mut Array3<f32>, row: usize, state: &State, arrays: &[Vec<f32>]) -> Result<()> {
        let batch = target.dim().1;
        let error = |what: String| Error::shape("onnx initial state", format!("a batch of {batch}"), what);
        match state {
            State::PerSequence(values) if values.nrows() == batch => {
                target.index_axis_mut(ndarray::Axis(0), row).assign(values);
            }
            State::PerSequence(values) => return Err(error(format!("constants for {}", values.nrows()))),
            State::Shared(elements) => {
                for (unit, element) in elements.iter().enumerate() {
                    for b in 0..batch {
                        target[[row, b, unit]] = match *element {
                            StateElement::Constant(value) => value,
                            StateElement::Input { input, block, index } => {
                                let position = (index / block * batch + b) * block + index % block;
                                let value = arrays[input].get(position).copied();
                                let len = arrays[input].len();
                                let name = &self.inputs[input].name;
                                // Each sequence has the same share of the elements.
                                let value = value.filter(|_| len.is_multiple_of(block * batch));
                                value.ok_or_else(|| error(format!("{len} values in `{name}`")))?
                            }
                        };
                    }
                }
            }
        }
        Ok(())
    }

    /// Converts the results of the model to the outputs of the graph, each with its name. `y` and `states` are what the
    /// model returned for `arguments`.
    ///
    /// The final state of a sequence of length 0 is its initial state. ONNX leaves this case undefined; ONNX Runtime
    /// returns zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] if the arrays are not those of a result of this model.
    pub fn to_outputs(
        &self,
        arguments: &ModelArguments,
        y: ArrayView3<'_, f32>,
        states: &[HostState],
    ) -> Result<Vec<(String, ArrayD<f32>)>> {
        let batch = y.dim().0;
        let steps = y.dim().1;
        let padding = arguments.lengths.as_ref().and_then(|_| self.padding());
        let value = |output: &OnnxOutput, element: OutputElement, b: usize, t: usize| match element {
            OutputElement::Constant(value) => Some(value),
            OutputElement::Length => arguments.lengths.as_ref()?.get(b).map(|&len| len as f32),
            OutputElement::Feature(k) => {
                let t = if output.is_last_step { steps.checked_sub(1)? } else { t };
                let is_padding = arguments.lengths.as_ref().is_some_and(|lengths| t >= lengths[b]);
                match &padding {
                    Some(padding) if is_padding => padding.get(k).copied(),
                    _ => y.get([b, t, k]).copied(),
                }
            }
            OutputElement::State { lstm, is_c, row, unit } => {
                let state = states.get(lstm)?;
                if is_c { &state.c } else { &state.h }.get([row, b, unit]).copied()
            }
        };
        let output = |output: &OnnxOutput| {
            let sizes = (batch, steps);
            let values = output.layout.walk(sizes).map(|(k, b, t)| value(output, output.layout.elements[k], b, t));
            let error = || {
                let expected = format!("outputs of {} features and the states", self.weights.output_size());
                Error::shape(format!("onnx output `{}`", output.name), expected, format!("{:?}", y.shape()))
            };
            let values = values.collect::<Option<Vec<f32>>>().ok_or_else(error)?;
            let array = ArrayD::from_shape_vec(IxDyn(&output.layout.shape(sizes)), values).map_err(|_| error())?;
            Ok((output.name.clone(), array))
        };
        self.outputs.iter().map(output).collect()
    }

    /// What the graph computes for time steps after the end of a sequence: the layers after the LSTMs of zeros. `None` if
    /// that is zeros, or if the model returns the last step only.
    fn padding(&self) -> Option<Vec<f32>> {
        if self.weights.returns_last_step() {
            return None;
        }
        let layers = self.weights.layers();
        let last = layers.iter().rposition(|layer| matches!(layer, ModelLayer::Lstm { .. }))?;
        let ModelLayer::Lstm { weights, .. } = &layers[last] else { return None };
        let mut values = vec![0f32; weights.config().output_size()];
        for layer in &layers[last + 1..] {
            match layer {
                ModelLayer::Linear { weight, bias, .. } => {
                    let x = ndarray::ArrayView1::from(&values);
                    let y = weight.dot(&x);
                    values = bias.as_ref().map_or(y.clone(), |bias| &y + bias).to_vec();
                }
                ModelLayer::Activation(activation) => values = activate(*activation, &values),
                _ => {}
            }
        }
        Some(values)
    }
}

/// Applies an activation to the features of one time step.
fn activate(activation: Activation, x: &[f32]) -> Vec<f32> {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&v| f64::from(v - largest).exp()).sum();
    let f = |v: f32| match activation {
        Activation::Relu => v.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-v).exp()),
        Activation::Tanh => v.tanh(),
        Activation::HardSigmoid { alpha, beta } => (alpha * v + beta).clamp(0.0, 1.0),
        Activation::Softmax => (f64::from(v - largest).exp() / sum) as f32,
        Activation::LogSoftmax => (f64::from(v - largest) - sum.ln()) as f32,
        _ => f32::NAN,
    };
    x.iter().map(|&v| f(v)).collect()
}

/// Converts the lengths of sequences.
fn to_lengths(lengths: &[i64], batch: usize, steps: usize) -> Result<Vec<usize>> {
    if lengths.len() != batch {
        return Err(Error::shape("onnx sequence lengths", format!("[{batch}]"), format!("[{}]", lengths.len())));
    }
    let length = |&len: &i64| usize::try_from(len).ok().filter(|&len| len <= steps);
    let error = || Error::shape("onnx sequence lengths", format!("lengths up to {steps}"), format!("{lengths:?}"));
    lengths.iter().map(length).collect::<Option<_>>().ok_or_else(error)
}

/// A shape as text, with `?` for sizes that are not fixed.
fn shape_text(shape: &[Option<usize>]) -> String {
    let sizes: Vec<_> = shape.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}

/// At most ten names, and how many there are besides.
pub(crate) fn list<T: AsRef<str>>(names: &[T]) -> String {
    const MOST: usize = 10;
    let mut text: Vec<String> = names.iter().take(MOST).map(|name| format!("`{}`", name.as_ref())).collect();
    match names.len().saturating_sub(MOST) {
        0 => {}
        others => text.push(format!("and {others} others")),
    }
    text.join(", ")
}
