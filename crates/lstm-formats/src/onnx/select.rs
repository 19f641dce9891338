//! Parts of data and joining them again: one direction, one step, the states of some layers, some of the inputs.

use super::value::{Data, Dim, Source, Value};

/// Ends of slices from here on mean the end of the axis, whatever its size: exporters write the largest INT32 or INT64.
const OPEN_END: i64 = i32::MAX as i64;

/// What Python's `[start:end]` is of so many.
pub(super) fn range(start: i64, end: i64, len: usize) -> std::ops::Range<usize> {
    let n = len as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
    let (start, end) = (clamp(start), clamp(end));
    start..end.max(start)
}

/// The part `[start:end]` of an axis.
pub(super) fn cut<'a>(value: &Value<'a>, axis: usize, start: i64, end: i64) -> Result<Value<'a>, String> {
    match value {
        Value::Data(data) => cut_data(data, axis, start, end).map(Value::Data),
        Value::Zeros(zeros) => Ok(Value::Zeros(zeros.cut(axis, start, end))),
        Value::Joined { along, parts } if *along == axis => {
            // Whole inputs out of those that were joined.
            let mut at = 0;
            let mut bounds = vec![0];
            for part in parts {
                let Dim::Known(size) = part.dim(&part.axes[axis]) else { return Err("inputs of open sizes".into()) };
                at += size;
                bounds.push(at);
            }
            let part = range(start, end, at as usize);
            let place = |row: usize| bounds.iter().position(|&bound| bound == row as i64);
            let (Some(from), Some(to)) = (place(part.start), place(part.end)) else {
                return Err(format!("expected whole inputs, got rows {part:?} where these begin at {bounds:?}"));
            };
            match &parts[from..to] {
                [] => Err(format!("expected a part of {at}, got {start} to {end}")),
                [only] => Ok(Value::Data(only.clone())),
                several => Ok(Value::Joined { along: *along, parts: several.to_vec() }),
            }
        }
        other => Err(format!("expected sizes, states, or outputs of an LSTM, got {}", other.describe())),
    }
}

fn cut_data<'a>(data: &Data<'a>, axis: usize, start: i64, end: i64) -> Result<Data<'a>, String> {
    let atoms = data.axes.get(axis).ok_or("no such axis")?;
    let size = match data.dim(atoms) {
        Dim::Known(size) => usize::try_from(size).ok(),
        _ => None,
    };
    let part = size.map(|size| range(start, end, size));
    if part == size.map(|size| 0..size) && part.is_some() || (start, size) == (0, None) && end >= OPEN_END {
        return Ok(data.clone());
    }
    let refuse = || format!("can't follow [{start}:{end}] of axis {axis} of {}", data.describe());
    let large: Vec<usize> = atoms.iter().copied().filter(|&atom| !data.atoms[atom].is_one()).collect();
    let mut out = data.clone();
    match data.source {
        // An initial state for all layers, of which each takes its own.
        Source::Outside(_) if *atoms == [0] && data.part.is_none() => {
            let size = size.map_or(i64::MAX, |size| size as i64);
            let end = if end < 0 { end.saturating_add(size) } else { end.min(size) };
            if !(0..end).contains(&start) {
                return Err(format!("expected a part of {size}, got {start} to {end}"));
            }
            (out.part, out.atoms[0]) = (Some((start, end)), Dim::Known(end - start));
        }
        Source::H(from, _) | Source::C(from, _) if large == [0] => {
            let part = part.filter(|part| !part.is_empty()).ok_or_else(refuse)?;
            let rows = (from + part.start, from + part.end);
            out.source = if matches!(data.source, Source::H(..)) {
                Source::H(rows.0, rows.1)
            } else {
                Source::C(rows.0, rows.1)
            };
            out.atoms[0] = Dim::Known(part.len() as i64);
        }
        Source::Sequence(_) if *atoms == [0] => {
            out.step = Some(step(start, end, size).ok_or_else(refuse)?);
            out.atoms[0] = Dim::Known(1);
        }
        // One direction, as an axis of its own or as some of the features.
        Source::Sequence(_) if large == [1] || large == [1, 3] => {
            let of = large.iter().skip(1).fold(Dim::Known(1), |of, &atom| of.times(data.atoms[atom]));
            let (Some(part), Dim::Known(of)) = (part, of) else { return Err(refuse()) };
            if part.len() as i64 != of || part.start as i64 % of != 0 {
                return Err(refuse());
            }
            out.direction = Some((part.start as i64 / of) as usize);
            out.atoms[1] = Dim::Known(1);
        }
        _ => return Err(refuse()),
    }
    Ok(settle(out))
}

/// The only step of `[start:end]`, counted from the end if it is negative; the last is -1.
fn step(start: i64, end: i64, size: Option<usize>) -> Option<i64> {
    match size {
        Some(size) => {
            let part = range(start, end, size);
            (part.len() == 1).then_some(if part.end == size { -1 } else { part.start as i64 })
        }
        None if start == -1 && end >= OPEN_END => Some(-1),
        None => (start != -1 && start.checked_add(1) == Some(end)).then_some(start),
    }
}

/// The step at which a direction ends is its final h, unless sequences are shorter than the others.
fn settle(data: Data<'_>) -> Data<'_> {
    let (Source::Sequence(of), Some(step)) = (data.source, data.step) else { return data };
    let only = (of.reversals.len() == 1).then_some(0);
    let Some(direction) = data.direction.or(only).filter(|_| of.whole) else { return data };
    if step != if of.reversals[direction] { 0 } else { -1 } {
        return data;
    }
    let row = of.layer * of.reversals.len() + direction;
    // Atoms were steps, direction, batch and features.
    let axis = |axis: &Vec<usize>| axis.iter().filter(|&&atom| atom != 0).map(|atom| atom - 1).collect();
    let axes = data.axes.iter().map(axis).collect();
    let atoms = data.atoms[1..].to_vec();
    Data { source: Source::H(row, row + 1), atoms, axes, step: None, direction: None, ..data }
}

/// An axis, which must be of size 1, is gone.
pub(super) fn without_axis<'a>(value: Value<'a>, axis: usize) -> Result<Value<'a>, String> {
    match value {
        Value::Data(mut data) if axis < data.axes.len() => {
            if !data.dim(&data.axes[axis]).is_one() {
                return Err(format!("axis {axis} is not known to be of size 1"));
            }
            data.axes.remove(axis);
            Ok(Value::Data(data))
        }
        other => Err(format!("expected data with an axis {axis}, got {}", other.describe())),
    }
}

/// Two parts one after the other along an axis: states of the next layer or direction, the other direction's outputs.
pub(super) fn join<'a>(a: &Data<'a>, b: &Data<'a>, along: usize) -> Result<Data<'a>, String> {
    let (source, atom) = match (a.source, b.source) {
        (Source::H(from, m), Source::H(n, to)) if m == n => (Source::H(from, to), 0),
        (Source::C(from, m), Source::C(n, to)) if m == n => (Source::C(from, to), 0),
        (Source::Sequence(x), Source::Sequence(y))
            if x == y && (a.direction, b.direction) == (Some(0), Some(1)) && a.step == b.step =>
        {
            (a.source, 1)
        }
        _ => {
            let (a, b) = (a.describe(), b.describe());
            let want = "the final states of one layer after the other, or of one layer's directions";
            return Err(format!("expected {want}, got {a} and then {b}"));
        }
    };
    // Along the axis, what is joined counts slower than all else; where it is 1 it may be in any axis or none.
    let rest = |data: &Data<'a>| {
        let free = data.atoms[atom].is_one() || data.axes.get(along).and_then(|axis| axis.first()) == Some(&atom);
        let axis = |axis: &Vec<usize>| axis.iter().copied().filter(|&a| a != atom).collect::<Vec<_>>();
        free.then(|| data.axes.iter().map(axis).collect::<Vec<_>>())
    };
    let (Some(mut axes), Dim::Known(m), Dim::Known(n)) = (rest(a), a.atoms[atom], b.atoms[atom]) else {
        return Err(format!("can't follow a join along axis {along} of {}", a.describe()));
    };
    if rest(b).as_ref() != Some(&axes) || a.dropout != b.dropout || along >= axes.len() {
        return Err(format!("expected parts that lie alike, got {} and {}", a.describe(), b.describe()));
    }
    axes[along].insert(0, atom);
    let mut atoms = a.atoms.clone();
    atoms[atom] = Dim::Known(m.saturating_add(n));
    Ok(Data { source, atoms, axes, direction: None, ..a.clone() })
}
