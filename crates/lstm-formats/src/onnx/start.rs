//! What a layer's state starts from: zeros, constants, or inputs of the graph.

use ndarray::{ArrayD, Axis, concatenate};

use super::{
    node::Op,
    ops,
    port::{Port, PortAxis},
    value::{Data, Dim, Source, Value},
    walk::Walk,
};
use lstm_core::Result;

/// What a layer starts from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Start<'a> {
    Zero,
    /// `[directions, batch, hidden]`
    Fixed(ArrayD<f32>),
    /// Inputs, or parts of them, one after the other.
    Inputs(Vec<Piece<'a>>),
}

/// Of an input, the rows from one number up to another, or all; and how many these are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece<'a> {
    pub(super) port: Port,
    pub(super) source: &'a str,
    pub(super) part: Option<(i64, i64)>,
    pub(super) rows: usize,
}

/// What two directions start from.
pub(super) fn together(starts: [Start<'_>; 2]) -> Option<Start<'_>> {
    match starts {
        [Start::Zero, Start::Zero] => Some(Start::Zero),
        [Start::Fixed(a), Start::Fixed(b)] => concatenate(Axis(0), &[a.view(), b.view()]).ok().map(Start::Fixed),
        [Start::Inputs(mut a), Start::Inputs(b)] => {
            a.extend(b);
            Some(Start::Inputs(a))
        }
        _ => None,
    }
}

/// Input `k` of a node, `h` or `c`, as what it starts from.
pub(super) fn read<'a>(
    op: &Op<'a>,
    walk: &mut Walk<'a>,
    k: usize,
    batch_first: bool,
    [directions, hidden]: [usize; 2],
) -> Result<Start<'a>> {
    let Some(name) = op.input(k) else { return Ok(Start::Zero) };
    let what = if k == 5 { "initial_h" } else { "initial_c" };
    let value = walk.value(op, name)?.clone();
    match &value {
        Value::Zeros(zeros) => {
            if let Some(shape) = &zeros.shape {
                fits(op, walk, what, shape.clone(), batch_first, [directions, hidden])?;
            }
            Ok(Start::Zero)
        }
        Value::Constant(_) => {
            let mut array = walk.floats(op, name)?;
            let shape = array.shape().iter().map(|&size| Dim::Known(size as i64)).collect();
            fits(op, walk, what, shape, batch_first, [directions, hidden])?;
            if batch_first {
                array.swap_axes(0, 1);
            }
            Ok(Start::Fixed(array))
        }
        Value::Joined { along, parts } => {
            if *along != usize::from(batch_first) {
                return Err(op.fail(format!("{what}: its inputs are joined along axis {along}, not by layers")));
            }
            let pieces = parts.iter().map(|part| piece(op, what, part, batch_first, hidden));
            let pieces = pieces.collect::<Result<Vec<_>>>()?;
            let rows: usize = pieces.iter().map(|piece| piece.rows).sum();
            match rows == directions && pieces.iter().all(|piece| piece.rows > 0) {
                true => Ok(Start::Inputs(pieces)),
                false => {
                    Err(op.fail(format!("{what}: expected {directions} rows, got {rows} of {}", value.describe())))
                }
            }
        }
        _ => {
            let data = ops::data(op, &value, 3)?;
            let mut piece = piece(op, what, &data, batch_first, hidden)?;
            if matches!(data.dim(&data.axes[usize::from(batch_first)]), Dim::Known(n) if n != directions as i64) {
                let shape = data.shape();
                return Err(op.fail(format!("{what}: expected {directions} x batch x {hidden}, got {shape:?}")));
            }
            piece.rows = directions;
            Ok(Start::Inputs(vec![piece]))
        }
    }
}

/// Checks the shape of a constant state, as far as it is known, and that all are of as many sequences.
fn fits(
    op: &Op<'_>,
    walk: &mut Walk<'_>,
    what: &str,
    mut shape: Vec<Dim<'_>>,
    batch_first: bool,
    [directions, hidden]: [usize; 2],
) -> Result<()> {
    if batch_first && shape.len() == 3 {
        shape.swap(0, 1);
    }
    let may_be = |size: Dim<'_>, want: usize| !matches!(size, Dim::Known(n) if n != want as i64);
    let batch = match shape[..] {
        [d, batch, h] if may_be(d, directions) && may_be(h, hidden) => Some(batch),
        _ => None,
    };
    match batch {
        Some(Dim::Known(n)) if n >= 0 && walk.batch.is_none_or(|batch| batch == n) => walk.batch = Some(n),
        Some(Dim::Open(..) | Dim::Unknown) => {}
        _ => {
            let batch = walk.batch.map_or("batch".into(), |batch| batch.to_string());
            return Err(op.fail(format!("{what}: expected [{directions}, {batch}, {hidden}], got {shape:?}")));
        }
    }
    Ok(())
}

/// An input, or a part of it, of which each row is a direction's state.
fn piece<'a>(op: &Op<'a>, what: &str, data: &Data<'a>, batch_first: bool, hidden: usize) -> Result<Piece<'a>> {
    let Source::Outside(source) = data.source else {
        return Err(op.fail(format!("{what}: expected an input or a constant, got {}", data.describe())));
    };
    if !data.is_float() {
        return Err(op.fail(format!("{what}: expected floats, got {}", data.describe())));
    }
    let labels = match batch_first {
        false => [PortAxis::Layers, PortAxis::Batch, PortAxis::Features],
        true => [PortAxis::Batch, PortAxis::Layers, PortAxis::Features],
    };
    let shape = data.shape();
    if shape.len() != 3 || matches!(shape[2], Dim::Known(n) if n != hidden as i64) {
        return Err(op.fail(format!("{what}: expected rows x batch x {hidden}, got {shape:?}")));
    }
    let rows = match shape[usize::from(batch_first)] {
        Dim::Known(rows) => usize::try_from(rows).unwrap_or_default(),
        // Of several in a row it must be known; one alone is as long as it should be.
        _ => 0,
    };
    let port = Port::outside(op, data, labels)?;
    if data.part.is_some() && port.axes.first().is_none_or(|axis| axis != &[PortAxis::Layers]) {
        return Err(op.fail(format!("{what}: a part of the batch or features")));
    }
    Ok(Piece { port, source, part: data.part, rows })
}
