//! One `LSTM` node: its attributes, weights and the values it is fed with.
//!
//! <https://onnx.ai/onnx/operators/onnx__LSTM.html>. Gates lie as i, o, f, c there and as i, f, g, o here.

use ndarray::{ArrayD, Axis, concatenate};

use super::{
    node::Op,
    ops,
    port::{Port, PortAxis},
    proto::{INT32, type_name},
    start::{self, Start},
    tensor,
    value::{Data, Dim, Outputs, Source, Value},
    walk::Walk,
    zeros::Zeros,
};
use lstm_core::{Bias, CellKind, Direction, Error, LstmConfig, Result};

/// Where the lengths of a batch's sequences come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lengths {
    /// All sequences are as long as the input.
    #[default]
    Whole,
    /// A constant in the file, one length per sequence.
    Fixed(Vec<usize>),
    /// The graph's input of this name.
    Input(String),
}

/// A node, read; or two that are the directions of one layer.
pub(super) struct Layer<'a> {
    pub(super) label: String,
    /// The direction of a node over the same input that is still to come.
    pub(super) missing: Option<(usize, &'a str)>,
    /// Of this layer alone.
    pub(super) config: LstmConfig,
    /// For each direction, parameters in the order of `LayerSpec::params`.
    pub(super) params: Vec<Vec<ArrayD<f32>>>,
    pub(super) x: Port,
    pub(super) dropout: Option<f32>,
    pub(super) lengths: Lengths,
    pub(super) h: Start<'a>,
    pub(super) c: Start<'a>,
}

/// What the attributes say.
struct Options {
    hidden: Option<usize>,
    direction: Direction,
    batch_first: bool,
    clip: Option<f32>,
    coupled: bool,
}

fn options(op: &mut Op<'_>, opset: i64) -> Result<Options> {
    let hidden = match op.int("hidden_size")? {
        Some(size) => Some(usize::try_from(size).map_err(|_| op.fail(format!("attribute `hidden_size` is {size}")))?),
        None => None,
    };
    let direction = match op.text("direction")?.as_deref() {
        None | Some("forward") => Direction::Forward,
        Some("reverse") => Direction::Reverse,
        Some("bidirectional") => Direction::Bidirectional,
        Some(other) => {
            let why = format!("attribute `direction`: expected forward, reverse or bidirectional, got `{other}`");
            return Err(op.fail(why));
        }
    };
    let flag = |op: &mut Op<'_>, name: &str| match op.int(name)? {
        None | Some(0) => Ok(false),
        Some(1) => Ok(true),
        Some(other) => Err(op.fail(format!("attribute `{name}`: expected 0 or 1, got {other}"))),
    };
    let coupled = flag(op, "input_forget")?;
    let batch_first = opset >= 14 && flag(op, "layout")?;
    let clip = op.float("clip")?;
    if let Some(bound) = clip.filter(|bound| !(bound.is_finite() && *bound > 0.0)) {
        return Err(op.fail(format!("attribute `clip`: expected a positive and finite bound, got {bound}")));
    }
    let activations = op.texts("activations")?;
    let ours = ["Sigmoid", "Tanh", "Tanh"].repeat(direction.reverse_flags().len());
    if let Some((k, name)) =
        activations.iter().enumerate().find(|(k, a)| ours.get(*k).is_none_or(|o| !o.eq_ignore_ascii_case(a)))
    {
        let want = ours.get(k).copied().unwrap_or("no more");
        return Err(op.fail(format!("attribute `activations`: expected {want} in place {k}, got `{name}`")));
    }
    if !activations.is_empty() && activations.len() < ours.len() {
        return Err(op.fail(format!("attribute `activations`: expected {}, got {}", ours.len(), activations.len())));
    }
    for name in ["activation_alpha", "activation_beta"] {
        let values = op.floats(name)?;
        if !values.is_empty() {
            return Err(op.fail(format!("attribute `{name}`: Sigmoid and Tanh take none, got {values:?}")));
        }
    }
    op.finish()?;
    Ok(Options { hidden, direction, batch_first, clip, coupled })
}

/// Reads the node as the next layer of the chain, or as that direction of one which has another node for the other
/// direction; returns what its outputs are.
pub(super) fn read<'a>(op: &mut Op<'a>, walk: &mut Walk<'a>, half: Option<usize>) -> Result<[Value<'a>; 3]> {
    let options = options(op, walk.opset)?;
    if op.node.input.len() > 8 || op.node.output.len() > 3 {
        return Err(op.fail("expected at most 8 inputs and 3 outputs"));
    }
    // Of the node and of the layer.
    let directions = options.direction.reverse_flags().len();
    let direction = half.map_or(options.direction, |_| Direction::Bidirectional);
    let reversals = direction.reverse_flags();
    let x_name = op.input(0).ok_or_else(|| op.fail("input 0 (X) is missing"))?;
    let begun = half.and_then(|half| walk.layers.iter().position(|layer| layer.missing == Some((half, x_name))));
    let k = begun.unwrap_or(walk.layers.len());

    let x = sequence(op, walk, x_name, k, &options)?;
    let (w, r) = (required(op, walk, 1, "W")?, required(op, walk, 2, "R")?);
    let hidden = options.hidden.or(r.shape().last().copied()).unwrap_or_default();
    if let Some(LstmConfig { hidden_size: size, direction: all, .. }) = walk.layers.first().map(|first| &first.config)
        && (*size, *all) != (hidden, direction)
    {
        let why =
            format!("expected {all:?} of hidden size {size}, as of the layers below, got {direction:?} of {hidden}");
        return Err(op.fail(format!("{why}; {ALONE}")));
    }
    let input = match k {
        0 => w.shape().last().copied().unwrap_or_default(),
        _ => hidden.saturating_mul(reversals.len()),
    };
    let mut config = LstmConfig::new(input, hidden).direction(options.direction).bias(Bias::None);
    (config.clip, config.coupled) = (options.clip, options.coupled);
    config.validate().map_err(|e| op.fail(e))?;
    let check = |name: &str, array: &ArrayD<f32>, want: &[usize]| match array.shape() == want {
        true => Ok(()),
        false => Err(op.fail(format!("{name}: expected shape {want:?}, got {:?}", array.shape()))),
    };
    check("W", &w, &[directions, 4 * hidden, input])?;
    check("R", &r, &[directions, 4 * hidden, hidden])?;
    if matches!(x.features, Dim::Known(size) if size != input as i64) {
        return Err(op.fail(format!("X: expected features of size {input}, got {:?}", x.features)));
    }
    let b = weight(op, walk, 3)?;
    if let Some(b) = &b {
        check("B", b, &[directions, 8 * hidden])?;
        config.bias = Bias::Two;
    }
    let p = weight(op, walk, 7)?;
    if let Some(p) = &p {
        check("P", p, &[directions, 3 * hidden])?;
        config.cell = CellKind::PeepholeDiagonal;
    }
    let params = (0..directions).map(|d| {
        let of = |array: &ArrayD<f32>| array.index_axis(Axis(0), d).to_owned();
        let mut params = vec![gates(&of(&w))?, gates(&of(&r))?];
        if let Some(b) = &b {
            params.extend(halves(&of(b), 2).iter().map(gates).collect::<Result<Vec<_>>>()?);
        }
        if let Some(p) = &p {
            // Here as there: input, forget and output, but in the order i, o, f.
            let [i, o, f] = <[_; 3]>::try_from(halves(&of(p), 3)).map_err(|_| op.fail("P: three parts"))?;
            params.extend([i, f, o]);
        }
        Ok(params)
    });
    let params = params.collect::<Result<_>>()?;

    let lengths = lengths(op, walk)?;
    if let (0, Dim::Known(batch)) = (k, x.batch) {
        walk.batch = Some(batch);
    }
    let start = |walk: &mut Walk<'a>, k| start::read(op, walk, k, options.batch_first, [directions, hidden]);
    let (h, c) = (start(walk, 5)?, start(walk, 6)?);

    let size = |n: usize| Dim::Known(n as i64);
    let of = Outputs { layer: k, reversals, whole: lengths == Lengths::Whole };
    let row = k * reversals.len() + half.unwrap_or_default();
    let mut y = Data::new(Source::Sequence(of), vec![x.steps, size(directions), x.batch, size(hidden)]);
    let mut state = Data::new(Source::H(row, row + directions), vec![size(directions), x.batch, size(hidden)]);
    y.direction = half;
    if options.batch_first {
        y.axes = vec![vec![2], vec![0], vec![1], vec![3]];
        state.axes.swap(0, 1);
    }
    let last = Data { source: Source::C(row, row + directions), ..state.clone() };
    let (label, dropout, x) = (op.label.clone(), x.dropout, x.port);
    if half.is_some() {
        config.direction = Direction::Bidirectional;
    }
    let layer = Layer { label, missing: None, config, params, x, dropout, lengths, h, c };
    match (half, begun) {
        (Some(half), Some(k)) => walk.layers[k].complete(layer, half)?,
        (half, _) => walk.layers.push(Layer { missing: half.map(|half| (1 - half, x_name)), ..layer }),
    }
    Ok([y, state, last].map(Value::Data))
}

impl<'a> Layer<'a> {
    /// Adds the direction that is missing.
    fn complete(&mut self, other: Layer<'a>, direction: usize) -> Result<()> {
        let same = (&self.config, &self.x, self.dropout, &self.lengths);
        if same != (&other.config, &other.x, other.dropout, &other.lengths) {
            let why = format!("expected sizes, options and lengths as of the other direction, {}", self.label);
            return Err(Error::format(&other.label, why));
        }
        let mut params = [std::mem::take(&mut self.params), other.params];
        params.rotate_left(1 - direction);
        self.params = params.concat();
        for (start, other_start) in [(&mut self.h, other.h), (&mut self.c, other.c)] {
            let mut both = [std::mem::replace(start, Start::Zero), other_start];
            both.rotate_left(1 - direction);
            *start = start::together(both).ok_or_else(|| {
                let why = "expected its state to start as the other direction's, from zeros, constants or inputs";
                Error::format(&other.label, why)
            })?;
        }
        self.missing = None;
        Ok(())
    }
}

/// i, o, f, c to i, f, g, o.
fn gates(array: &ArrayD<f32>) -> Result<ArrayD<f32>> {
    let parts = halves(array, 4);
    let views: Vec<_> = [0, 2, 3, 1].iter().filter_map(|&k| parts.get(k)).map(|part| part.view()).collect();
    concatenate(Axis(0), &views).map_err(|e| Error::shape("onnx gates", "four gates", e))
}

/// `n` equal parts along the first axis, which is a multiple of it.
fn halves(array: &ArrayD<f32>, n: usize) -> Vec<ArrayD<f32>> {
    let len = array.len_of(Axis(0)) / n;
    array.axis_chunks_iter(Axis(0), len.max(1)).map(|part| part.to_owned()).collect()
}

fn weight<'a>(op: &Op<'a>, walk: &mut Walk<'a>, k: usize) -> Result<Option<ArrayD<f32>>> {
    let Some(name) = op.input(k) else { return Ok(None) };
    match walk.value(op, name)? {
        // A bias of zeros is one all the same.
        Value::Zeros(Zeros { tensor: Some(_), .. }) | Value::Constant(_) => walk.floats(op, name).map(Some),
        other => Err(op.fail(format!("input {k}: expected a constant, got {}", other.describe()))),
    }
}

fn required<'a>(op: &Op<'a>, walk: &mut Walk<'a>, k: usize, name: &str) -> Result<ArrayD<f32>> {
    weight(op, walk, k)?.ok_or_else(|| op.fail(format!("input {k} ({name}) is missing")))
}

/// What an error says where LSTMs are not layers of one model.
const ALONE: &str =
    "an LSTM that is no layer on top of the ones before is a model of its own, which `lstm_named` reads";

/// A layer's input: how it lies, what was passed on the way, and its sizes.
struct Sequence<'a> {
    port: Port,
    dropout: Option<f32>,
    steps: Dim<'a>,
    batch: Dim<'a>,
    features: Dim<'a>,
}

fn sequence<'a>(op: &Op<'a>, walk: &mut Walk<'a>, name: &'a str, k: usize, options: &Options) -> Result<Sequence<'a>> {
    let value = walk.value(op, name)?.clone();
    let data = ops::data(op, &value, 3)?;
    if !data.is_float() {
        return Err(op.fail(format!("X: expected floats, got {}", value.describe())));
    }
    let labels = match options.batch_first {
        false => [PortAxis::Steps, PortAxis::Batch, PortAxis::Features],
        true => [PortAxis::Batch, PortAxis::Steps, PortAxis::Features],
    };
    let shape = data.shape();
    let &[first, second, features] = &shape[..] else {
        return Err(op.fail(format!("X: expected three axes, got {shape:?}")));
    };
    let (steps, batch) = if options.batch_first { (second, first) } else { (first, second) };
    let port = match data.source {
        Source::Outside(_) if k == 0 && data.part.is_none() => match Port::outside(op, &data, labels) {
            // Nodes that are left out may do anything: then the input is what comes of them.
            Err(_) if data.kind.is_none() => {
                Port::outside(op, &Data::new(Source::Outside(name), vec![Dim::Unknown; 3]), labels)?
            }
            port => port?,
        },
        Source::Sequence(of) if of.layer + 1 == k && (data.step, data.direction) == (None, None) => {
            let want: [&[usize]; 3] = if options.batch_first { [&[2], &[0], &[1, 3]] } else { [&[0], &[2], &[1, 3]] };
            if !data.lies_as(&want) {
                let why =
                    "its axes are not steps, batch and features, or these not those of one direction after the other";
                return Err(op.fail(format!("X is {}: {why}", value.describe())));
            }
            Port::default()
        }
        _ => {
            let got = value.describe();
            return Err(op.fail(match k {
                0 => format!("X: expected an input of the graph, got {got}"),
                _ => format!("X: expected the outputs of layer {}, got {got}; {ALONE}", k - 1),
            }));
        }
    };
    Ok(Sequence { port, dropout: data.dropout, steps, batch, features })
}

fn lengths<'a>(op: &Op<'a>, walk: &mut Walk<'a>) -> Result<Lengths> {
    let Some(name) = op.input(4) else { return Ok(Lengths::Whole) };
    let refuse = |got: String| op.fail(format!("sequence_lens: expected an input or constant lengths, got {got}"));
    let known = match walk.value(op, name)? {
        Value::Rankless(_, Some(kind)) | Value::Data(Data { kind: Some(kind), .. }) if *kind != INT32 => {
            return Err(op.fail(format!("sequence_lens: expected INT32, got `{name}` of {}", type_name(*kind))));
        }
        Value::Rankless(name, _) => return Ok(Lengths::Input((*name).to_owned())),
        Value::Data(Data { source: Source::Outside(name), atoms, axes, part: None, .. })
            if atoms.len() == 1 && axes.len() == 1 =>
        {
            return Ok(Lengths::Input((*name).to_owned()));
        }
        Value::Constant(t) if tensor::is_int(t) && t.dims.len() == 1 => walk.ints(op, name)?,
        Value::Numbers { scalar: false, values } => {
            let known = values.iter().map(|v| if let Dim::Known(n) = v { Some(*n) } else { None });
            known.collect::<Option<Vec<_>>>().ok_or_else(|| refuse("sizes of the input".into()))?
        }
        other => return Err(refuse(other.describe())),
    };
    let lengths = known.iter().map(|&n| usize::try_from(n));
    lengths.collect::<Result<_, _>>().map(Lengths::Fixed).map_err(|_| refuse(format!("{known:?}")))
}
