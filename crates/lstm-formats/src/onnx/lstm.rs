//! [`OnnxLstm`], an LSTM that was read from an ONNX graph. It runs on arrays in the layout of the graph's inputs and
//! outputs.

use std::collections::BTreeMap;

use ndarray::{Array3, ArrayD, Axis, Ix3, Slice};
use safetensors::Dtype;

use super::{
    graph_port::{GraphAxis, GraphPort, GraphPortKind},
    lengths::SequenceLengths,
};
use lstm_core::{Backend, Error, HostState, Input, Lstm, Result, State, Weights};

/// The axes of a [`HostState`].
const STATE_AXES: [GraphAxis; 3] = [GraphAxis::Layers, GraphAxis::Batch, GraphAxis::Features];

/// Where the initial `h` or `c` comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum InitialState {
    /// Zeros.
    #[default]
    Zeros,
    /// A constant in the file, in the layout of a [`HostState`]: `[layers * directions, batch, hidden]`.
    Constant(Array3<f32>),
    /// Graph inputs, each with [`rows`](GraphPort::rows) of the state. Rows that no input holds are zeros.
    Inputs(Vec<GraphPort>),
}

/// An LSTM from an ONNX file, with the inputs and outputs of its graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxLstm {
    /// The parameters, for [`Lstm::new`]. The cell is the fused one, or the diagonal peephole cell if the nodes have
    /// peephole weights `P`.
    pub weights: Weights,
    /// Element types of the weights and constant states in the file, without duplicates.
    pub dtypes: Vec<Dtype>,
    /// The graph input with the sequences.
    pub x: GraphPort,
    /// Where the initial `h` comes from.
    pub initial_h: InitialState,
    /// Where the initial `c` comes from.
    pub initial_c: InitialState,
    /// Where the lengths of the sequences come from.
    pub lengths: SequenceLengths,
    /// The graph outputs that the LSTM computes: all of them, unless `LSTM` nodes were selected by name.
    pub outputs: Vec<GraphPort>,
    /// Labels of the nodes that are not part of the LSTM. Empty unless `LSTM` nodes were selected by name.
    pub ignored_nodes: Vec<String>,
    /// The declared shape of each graph input, with `None` for sizes that are not fixed. Sizes that are fixed must be
    /// checked at run time, because constants in the graph may depend on them.
    pub(crate) declared_shapes: BTreeMap<String, Vec<Option<usize>>>,
}

/// Arrays for the inputs of a graph, in the layout of the graph.
#[derive(Clone, Debug, Default)]
pub struct OnnxInputs {
    /// The sequences.
    pub x: ArrayD<f32>,
    /// One array for each input of the initial `h`, in the order of [`InitialState::Inputs`].
    pub initial_h: Vec<ArrayD<f32>>,
    /// One array for each input of the initial `c`, in the order of [`InitialState::Inputs`].
    pub initial_c: Vec<ArrayD<f32>>,
    /// The lengths of the sequences, if the graph has an input for them.
    pub lengths: Option<Vec<i64>>,
}

impl OnnxLstm {
    /// Runs `model`, which was made from [`weights`](Self::weights), on the inputs of the graph. Returns the name and
    /// array of each of [`outputs`](Self::outputs), in the layout of the graph.
    ///
    /// The final state of a sequence of length 0 is its initial state. ONNX leaves this case undefined; ONNX Runtime
    /// returns zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] if an input is missing, does not exist in the graph, or does not have the shape that the file
    /// declares; the errors of [`Lstm::forward`].
    pub fn run<B: Backend>(&self, model: &Lstm<B>, inputs: OnnxInputs) -> Result<Vec<(String, ArrayD<f32>)>> {
        self.check_input_shape(&self.x.name, inputs.x.shape())?;
        for (state, arrays) in [(&self.initial_h, &inputs.initial_h), (&self.initial_c, &inputs.initial_c)] {
            if let InitialState::Inputs(ports) = state {
                let mut ports = ports.iter().zip(arrays);
                ports.try_for_each(|(port, array)| self.check_input_shape(&port.name, array.shape()))?;
            }
        }
        if let (SequenceLengths::Input(name), Some(lengths)) = (&self.lengths, &inputs.lengths) {
            self.check_input_shape(name, &[lengths.len()])?;
        }
        let x = self.x.permute_input(inputs.x, &[GraphAxis::Batch, GraphAxis::Steps, GraphAxis::Features])?;
        let x = into_array3(x)?;
        let batch = x.dim().0;
        let zeros = HostState::zeros(self.weights.config(), batch)?;
        let state = State {
            h: initial_state("initial_h", &self.initial_h, inputs.initial_h, zeros.h)?,
            c: initial_state("initial_c", &self.initial_c, inputs.initial_c, zeros.c)?,
        };
        let input_lengths = inputs.lengths.map(|lengths| {
            let sizes = lengths.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
            sizes.map_err(|_| Error::shape("onnx: lengths", "lengths of at least 0", format!("{lengths:?}")))
        });
        let lengths = match (&self.lengths, input_lengths.transpose()?) {
            (SequenceLengths::Full, None) => None,
            (SequenceLengths::Constant(lengths), None) => Some(lengths.clone()),
            (SequenceLengths::Input(_), Some(lengths)) => Some(lengths),
            (SequenceLengths::Input(name), None) => {
                return Err(Error::shape("onnx: lengths", format!("lengths for the input `{name}`"), "none"));
            }
            (_, Some(lengths)) => {
                let expected = "none, since the graph has no input for them";
                return Err(Error::shape("onnx: lengths", expected, format!("{lengths:?}")));
            }
        };
        let mut input = Input::from(&x).state(&state);
        if let Some(lengths) = &lengths {
            input = input.lengths(lengths);
        }
        let (y, final_state) = model.forward(input)?;
        let outputs = self.outputs.iter().map(|port| Ok((port.name.clone(), self.output(port, &y, &final_state)?)));
        outputs.collect()
    }

    /// Checks the shape of an input against the sizes that the file declares.
    pub(crate) fn check_input_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let Some(sizes) = self.declared_shapes.get(name) else { return Ok(()) };
        let size_agrees = |(declared, got): (&Option<usize>, &usize)| declared.is_none_or(|declared| declared == *got);
        if sizes.len() == shape.len() && sizes.iter().zip(shape).all(size_agrees) {
            return Ok(());
        }
        let sizes: Vec<_> = sizes.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
        let expected = format!("[{}], as declared in the file", sizes.join(", "));
        Err(Error::shape(format!("onnx input `{name}`"), expected, format!("{shape:?}")))
    }

    /// Computes one of [`outputs`](Self::outputs), in the layout of the graph, from `y` and `state` as returned by
    /// [`Lstm::forward`].
    ///
    /// This does not check that the input of that call had the sizes that the file declares; [`run`](Self::run) does.
    ///
    /// # Errors
    /// [`Error::Shape`] if the arrays do not belong to this model, or have several sequences or steps where the output
    /// has one.
    pub fn output(&self, port: &GraphPort, y: &Array3<f32>, state: &HostState) -> Result<ArrayD<f32>> {
        let config = self.weights.config();
        let directions = config.num_directions();
        let shape_error = |got: &[usize]| Error::shape("onnx: output", "outputs of this model", format!("{got:?}"));
        let select_rows = |array: ArrayD<f32>, axis| match port.rows.end <= array.len_of(axis) && !port.rows.is_empty()
        {
            true => Ok(array.slice_axis(axis, Slice::from(port.rows.clone())).into_owned()),
            false => Err(shape_error(array.shape())),
        };
        let state = match port.kind {
            GraphPortKind::Sequence => {
                let (batch, steps, _) = y.dim();
                let split_shape = (batch, steps, directions, config.hidden_size);
                let y = y.as_standard_layout().into_owned();
                let y = y.to_shape(split_shape).map_err(|_| shape_error(y.shape()))?.into_owned().into_dyn();
                let mut y = select_rows(y, Axis(2))?;
                if let Some(step) = port.step {
                    let index = if step < 0 { (steps as i64).checked_add(step) } else { Some(step) };
                    let index = index.and_then(|index| usize::try_from(index).ok()).filter(|&index| index < steps);
                    let index = index.ok_or_else(|| {
                        Error::shape("onnx: output", format!("a sequence with step {step}"), format!("{steps} steps"))
                    })?;
                    y = y.slice_axis(Axis(1), Slice::from(index..=index)).into_owned();
                }
                let axes = [GraphAxis::Batch, GraphAxis::Steps, GraphAxis::Directions, GraphAxis::Features];
                return port.permute_output(y, &axes);
            }
            GraphPortKind::H => &state.h,
            GraphPortKind::C => &state.c,
            GraphPortKind::Input => return Err(Error::shape("onnx: output", "an output", "an input")),
        };
        let rows = select_rows(state.clone().into_dyn(), Axis(0))?;
        port.permute_output(rows, &STATE_AXES)
    }
}

/// Returns the initial `h` or `c` for one run of the model. `name` is its name for error messages, `arrays` are the
/// arrays given for its graph inputs, and `zeros` is a zero array of the shape of the result.
fn initial_state(
    name: &str,
    state: &InitialState,
    arrays: Vec<ArrayD<f32>>,
    zeros: Array3<f32>,
) -> Result<Array3<f32>> {
    match state {
        InitialState::Zeros if arrays.is_empty() => Ok(zeros),
        InitialState::Constant(array) if arrays.is_empty() => Ok(array.clone()),
        InitialState::Inputs(ports) if arrays.len() == ports.len() => {
            let mut state = zeros.into_dyn();
            for (port, array) in ports.iter().zip(arrays) {
                let rows = port.permute_input(array, &STATE_AXES)?;
                let mut state_rows = state.slice_axis_mut(Axis(0), Slice::from(port.rows.clone()));
                if rows.shape() != state_rows.shape() {
                    let op = format!("onnx {name}, input `{}`", port.name);
                    return Err(Error::shape(op, format!("{:?}", state_rows.shape()), format!("{:?}", rows.shape())));
                }
                state_rows.assign(&rows);
            }
            into_array3(state)
        }
        other => {
            let expected = match other {
                InitialState::Inputs(ports) => {
                    let names: Vec<_> = ports.iter().map(|port| &port.name).collect();
                    format!("arrays for the inputs {names:?}")
                }
                _ => "no arrays".into(),
            };
            let got: Vec<_> = arrays.iter().map(|array| array.shape().to_vec()).collect();
            Err(Error::shape(format!("onnx: {name}"), expected, format!("arrays of shapes {got:?}")))
        }
    }
}

/// Converts an array to one of three axes. Fails if it has another number of axes.
pub(crate) fn into_array3(array: ArrayD<f32>) -> Result<Array3<f32>> {
    let shape = format!("{:?}", array.shape());
    array.into_dimensionality::<Ix3>().map_err(|_| Error::shape("onnx", "three axes", shape))
}
