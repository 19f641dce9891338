//! Layers to one model, and running it as the file's graph would.

use std::collections::BTreeMap;

use ndarray::{Array3, ArrayD, Axis, Ix3, Slice, concatenate};
use safetensors::Dtype;

use super::{
    layer::Lengths,
    port::{Port, PortAxis, PortKind},
    start::{Piece, Start},
    walk::Walk,
};
use lstm_core::{Backend, Error, HostState, Input, LayerWeights, Lstm, Result, State, Weights};

/// What `h` or `c` starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Initial {
    /// Zeros.
    #[default]
    Zero,
    /// A constant in the file, as in a [`HostState`]: `[layers * directions, batch, hidden]`.
    Fixed(Array3<f32>),
    /// Inputs of the graph, each with [`rows`](Port::rows) of the state: one for all layers, or several; the rest is zeros.
    Inputs(Vec<Port>),
}

/// A model from an ONNX file, and how the file's graph feeds it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OnnxLstm {
    /// The parameters, ready for [`Lstm::new`]: the fused cell, or the diagonal peephole where the file has `P`.
    pub weights: Weights,
    /// Element types of the file's weights and fixed states, each once.
    pub dtypes: Vec<Dtype>,
    /// The input with the sequences.
    pub x: Port,
    /// What `h` starts from.
    pub initial_h: Initial,
    /// What `c` starts from.
    pub initial_c: Initial,
    /// Where lengths come from.
    pub lengths: Lengths,
    /// The outputs of the graph that this model computes: all, unless LSTMs were chosen by name.
    pub outputs: Vec<Port>,
    /// Nodes that compute something else; none, unless LSTMs were chosen by name.
    pub ignored: Vec<String>,
    /// By the names of the inputs, the sizes that the file gives them; what follows from them may depend on these.
    declared: BTreeMap<String, Vec<Option<usize>>>,
}

/// Arrays for the inputs of a graph, lying as the file has them.
#[derive(Clone, Debug, Default)]
pub struct OnnxInputs {
    /// The sequences.
    pub x: ArrayD<f32>,
    /// One for each input that `h` starts from, in the order of [`Initial::Inputs`].
    pub initial_h: Vec<ArrayD<f32>>,
    /// One for each input that `c` starts from.
    pub initial_c: Vec<ArrayD<f32>>,
    /// For the input with the lengths, where there is one.
    pub lengths: Option<Vec<i64>>,
}

/// One model out of the layers that were found.
pub(super) fn assemble(walk: &mut Walk<'_>, outputs: Vec<Port>) -> Result<OnnxLstm> {
    let Some(first) = walk.layers.first() else {
        return Err(Error::format("graph", "expected an LSTM node, found none"));
    };
    let (x, lengths) = (first.x.clone(), first.lengths.clone());
    let mut config = first.config.clone().layers(walk.layers.len());
    let dropout = walk.layers.get(1).and_then(|layer| layer.dropout);
    config.dropout = dropout.unwrap_or_default();
    for layer in &walk.layers {
        if layer.missing.is_some() {
            return Err(Error::format(&layer.label, "the node of its other direction is missing"));
        }
        let mut same = layer.config.clone();
        same.input_size = first.config.input_size;
        let fail = |what: &str, want: String, got: String| {
            Err(Error::format(&layer.label, format!("{what} as of the first layer, {want}; got {got}")))
        };
        if same != first.config {
            return fail("expected sizes and options", format!("{:?}", first.config), format!("{same:?}"));
        }
        if layer.lengths != lengths {
            return fail("expected lengths", format!("{lengths:?}"), format!("{:?}", layer.lengths));
        }
    }
    if let Some(odd) = walk.layers.iter().skip(1).find(|layer| layer.dropout != dropout) {
        let why =
            format!("expected a dropout of {dropout:?} below, as between the first layers; got {:?}", odd.dropout);
        return Err(Error::format(&odd.label, why));
    }
    let directions = config.num_directions();
    let layers = std::mem::take(&mut walk.layers);
    let (mut params, mut h, mut c) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        params.extend(layer.params);
        h.push((layer.label.clone(), layer.h));
        c.push((layer.label, layer.c));
    }
    config.validate()?;
    let declared = declared(walk, &x);
    let specs = config.layer_specs();
    let layers = specs.into_iter().zip(params).map(|(spec, params)| LayerWeights::new(spec, params));
    let layers = layers.collect::<Result<_>>()?;
    Ok(OnnxLstm {
        initial_h: initial(walk, PortKind::H, directions, h)?,
        initial_c: initial(walk, PortKind::C, directions, c)?,
        weights: Weights::new(config, layers)?,
        dtypes: std::mem::take(&mut walk.dtypes).into_iter().collect(),
        x,
        lengths,
        outputs,
        ignored: std::mem::take(&mut walk.ignored),
        declared,
    })
}

/// Sizes of the inputs; constant states fix the batch where the input itself leaves it open.
fn declared(walk: &Walk<'_>, x: &Port) -> BTreeMap<String, Vec<Option<usize>>> {
    let mut declared = walk.declared();
    let sizes = declared.entry(x.name.clone()).or_insert_with(|| vec![None; x.axes.len()]);
    let axis = x.axes.iter().position(|axis| axis[..] == [PortAxis::Batch]);
    if let (Some(batch), Some(size)) = (walk.batch, axis.and_then(|axis| sizes.get_mut(axis))) {
        *size = usize::try_from(batch).ok();
    }
    declared
}

/// One start for all layers out of one for each.
fn initial(walk: &Walk<'_>, kind: PortKind, directions: usize, starts: Vec<(String, Start<'_>)>) -> Result<Initial> {
    if starts.iter().any(|(_, start)| matches!(start, Start::Inputs(_))) {
        return inputs(walk, kind, directions, starts);
    }
    let mut parts: Vec<ArrayD<f32>> = Vec::new();
    for (k, (label, start)) in starts.into_iter().enumerate() {
        let batch = parts.first().map(|part| part.shape()[1]);
        match start {
            Start::Fixed(array) if parts.len() == k && batch.is_none_or(|batch| batch == array.shape()[1]) => {
                parts.push(array)
            }
            Start::Zero if parts.is_empty() => {}
            _ => {
                let why = "expected all layers to start from constants for one number of sequences, or none";
                return Err(Error::format(label, why));
            }
        }
    }
    if parts.is_empty() {
        return Ok(Initial::Zero);
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let joined =
        concatenate(Axis(0), &views).map_err(|e| Error::shape("onnx initial state", "states that stack", e))?;
    Ok(Initial::Fixed(three(joined)?))
}

/// Inputs out of the pieces from which layers and directions start, each input from its first row to its last.
fn inputs(walk: &Walk<'_>, kind: PortKind, directions: usize, starts: Vec<(String, Start<'_>)>) -> Result<Initial> {
    let mut whole: Vec<Piece<'_>> = Vec::new();
    let mut row = 0;
    for (label, start) in &starts {
        let pieces = match start {
            Start::Inputs(pieces) => pieces,
            Start::Zero => {
                row += directions;
                continue;
            }
            Start::Fixed(_) => {
                return Err(Error::format(label, "its state should start from inputs or zeros, as other layers' do"));
            }
        };
        for piece in pieces {
            let rows = row..row + piece.rows;
            row = rows.end;
            match whole.iter_mut().find(|other| other.source == piece.source) {
                Some(Piece { port, part: Some((_, end)), .. })
                    if port.axes == piece.port.axes && port.rows.end == rows.start =>
                {
                    let Some((_, next)) = piece.part.filter(|(from, _)| from == end) else {
                        let why = format!("its state should start from rows {end}.. of `{}`", piece.source);
                        return Err(Error::format(label, why));
                    };
                    (port.rows.end, *end) = (rows.end, next);
                }
                None if piece.part.is_none_or(|(from, _)| from == 0) => {
                    whole.push(Piece { port: Port { kind, rows, ..piece.port.clone() }, ..piece.clone() });
                }
                _ => {
                    let why =
                        format!("its state should start from all rows of `{}`, one after the other", piece.source);
                    return Err(Error::format(label, why));
                }
            }
        }
    }
    for Piece { source, part, .. } in &whole {
        if let (Some((_, used)), Some(size)) = (part, walk.first_size(source))
            && size != *used
        {
            let why = format!("`{source}` has {size} rows, of which {used} are used");
            return Err(Error::format(format!("input `{source}`"), why));
        }
    }
    Ok(Initial::Inputs(whole.into_iter().map(|piece| piece.port).collect()))
}

fn three(array: ArrayD<f32>) -> Result<Array3<f32>> {
    let shape = format!("{:?}", array.shape());
    array.into_dimensionality::<Ix3>().map_err(|_| Error::shape("onnx", "three axes", shape))
}

impl OnnxLstm {
    /// Runs `model`, made from [`weights`](Self::weights), on what the graph would be given, and returns each of
    /// [`outputs`](Self::outputs) by name, lying as the file has it.
    ///
    /// Of a sequence of length 0 the final states are the initial ones. ONNX leaves that open; ONNX Runtime gives zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input whose shape is not the file's, sizes that it fixes included, that is missing, or that the file has no place for;
    /// those of [`Lstm::forward`].
    pub fn run<B: Backend>(&self, model: &Lstm<B>, inputs: OnnxInputs) -> Result<Vec<(String, ArrayD<f32>)>> {
        self.fits(&self.x.name, inputs.x.shape())?;
        for (initial, given) in [(&self.initial_h, &inputs.initial_h), (&self.initial_c, &inputs.initial_c)] {
            if let Initial::Inputs(ports) = initial {
                ports.iter().zip(given).try_for_each(|(port, array)| self.fits(&port.name, array.shape()))?;
            }
        }
        if let (Lengths::Input(name), Some(lengths)) = (&self.lengths, &inputs.lengths) {
            self.fits(name, &[lengths.len()])?;
        }
        let x = three(self.x.take(inputs.x, &[PortAxis::Batch, PortAxis::Steps, PortAxis::Features])?)?;
        let batch = x.dim().0;
        let zeros = HostState::zeros(self.weights.config(), batch)?;
        let state = State {
            h: start("initial_h", &self.initial_h, inputs.initial_h, zeros.h)?,
            c: start("initial_c", &self.initial_c, inputs.initial_c, zeros.c)?,
        };
        let given = inputs.lengths.map(|lengths| {
            let sizes = lengths.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
            sizes.map_err(|_| Error::shape("onnx: lengths", "lengths of at least 0", format!("{lengths:?}")))
        });
        let lengths = match (&self.lengths, given.transpose()?) {
            (Lengths::Whole, None) => None,
            (Lengths::Fixed(lengths), None) => Some(lengths.clone()),
            (Lengths::Input(_), Some(lengths)) => Some(lengths),
            (want, got) => return Err(Error::shape("onnx: lengths", format!("{want:?}"), format!("{got:?}"))),
        };
        let mut input = Input::from(&x).state(&state);
        if let Some(lengths) = &lengths {
            input = input.lengths(lengths);
        }
        let (y, last) = model.forward(input)?;
        let outputs = self.outputs.iter().map(|port| Ok((port.name.clone(), self.output(port, &y, &last)?)));
        outputs.collect()
    }

    /// Checks an input's shape against the sizes that the file fixes.
    pub(super) fn fits(&self, name: &str, shape: &[usize]) -> Result<()> {
        let Some(sizes) = self.declared.get(name) else { return Ok(()) };
        let same = |(want, got): (&Option<usize>, &usize)| want.is_none_or(|want| want == *got);
        if sizes.len() == shape.len() && sizes.iter().zip(shape).all(same) {
            return Ok(());
        }
        let sizes: Vec<_> = sizes.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
        let want = format!("[{}] as in the file", sizes.join(", "));
        Err(Error::shape(format!("onnx input `{name}`"), want, format!("{shape:?}")))
    }

    /// One of [`outputs`](Self::outputs), lying as the file has it, out of what [`Lstm::forward`] returned
    /// for an input of the sizes that the file fixes, which only [`run`](Self::run) checks.
    ///
    /// # Errors
    /// [`Error::Shape`] if the arrays are not of this model, or of several sequences or steps where the file has one.
    pub fn output(&self, port: &Port, y: &Array3<f32>, state: &HostState) -> Result<ArrayD<f32>> {
        let config = self.weights.config();
        let directions = config.num_directions();
        let shape = |got: &[usize]| Error::shape("onnx: output", "outputs of this model", format!("{got:?}"));
        let rows = |array: ArrayD<f32>, axis| match port.rows.end <= array.len_of(axis) && !port.rows.is_empty() {
            true => Ok(array.slice_axis(axis, Slice::from(port.rows.clone())).into_owned()),
            false => Err(shape(array.shape())),
        };
        let array = match port.kind {
            PortKind::Sequence => {
                let (batch, steps, _) = y.dim();
                let split = (batch, steps, directions, config.hidden_size);
                let y = y.as_standard_layout().into_owned();
                let y = y.to_shape(split).map_err(|_| shape(y.shape()))?.into_owned().into_dyn();
                let mut y = rows(y, Axis(2))?;
                if let Some(step) = port.step {
                    let at = if step < 0 { (steps as i64).checked_add(step) } else { Some(step) };
                    let at = at.and_then(|at| usize::try_from(at).ok()).filter(|&at| at < steps);
                    let at = at.ok_or_else(|| {
                        Error::shape("onnx: output", format!("a step {step}"), format!("{steps} steps"))
                    })?;
                    y = y.slice_axis(Axis(1), Slice::from(at..=at)).into_owned();
                }
                return port.give(y, &[PortAxis::Batch, PortAxis::Steps, PortAxis::Directions, PortAxis::Features]);
            }
            PortKind::H => &state.h,
            PortKind::C => &state.c,
            PortKind::Input => return Err(Error::shape("onnx: output", "an output", "an input")),
        };
        let part = rows(array.clone().into_dyn(), Axis(0))?;
        port.give(part, &[PortAxis::Layers, PortAxis::Batch, PortAxis::Features])
    }
}

fn start(name: &str, initial: &Initial, given: Vec<ArrayD<f32>>, zeros: Array3<f32>) -> Result<Array3<f32>> {
    match initial {
        Initial::Zero if given.is_empty() => Ok(zeros),
        Initial::Fixed(array) if given.is_empty() => Ok(array.clone()),
        Initial::Inputs(ports) if given.len() == ports.len() => {
            let order = [PortAxis::Layers, PortAxis::Batch, PortAxis::Features];
            let mut state = zeros.into_dyn();
            for (port, array) in ports.iter().zip(given) {
                let rows = port.take(array, &order)?;
                let mut place = state.slice_axis_mut(Axis(0), Slice::from(port.rows.clone()));
                if rows.shape() != place.shape() {
                    let op = format!("onnx {name}, input `{}`", port.name);
                    return Err(Error::shape(op, format!("{:?}", place.shape()), format!("{:?}", rows.shape())));
                }
                place.assign(&rows);
            }
            three(state)
        }
        want => {
            let want = match want {
                Initial::Inputs(ports) => format!("arrays for {:?}", ports.iter().map(|p| &p.name).collect::<Vec<_>>()),
                _ => "none".into(),
            };
            let got: Vec<_> = given.iter().map(|array| array.shape().to_vec()).collect();
            Err(Error::shape(format!("onnx: {name}"), want, format!("arrays of shapes {got:?}")))
        }
    }
}
