//! What is known of a value in the graph without running it: constants, sizes, zeros, and where data comes from.
//!
//! Exporters surround LSTMs with nodes that only move axes and compute sizes. Following where each axis goes tells, for
//! any such arrangement, whether it is the plain sequence that the next LSTM or the caller expects.

use std::fmt;

use super::{
    proto::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, Tensor, type_name},
    zeros::Zeros,
};

/// More axes or sizes than any model has; keeps work on hostile graphs small.
pub(super) const MAX_RANK: usize = 64;

/// A size.
#[derive(Clone, Copy)]
pub(super) enum Dim<'a> {
    Known(i64),
    /// Some axis of a value from outside whose size the file leaves open.
    Open(&'a str, usize),
    /// A result of arithmetic with open sizes.
    Unknown,
}

impl fmt::Debug for Dim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(size) => write!(f, "{size}"),
            Dim::Open(name, axis) => write!(f, "{name}.shape[{axis}]"),
            Dim::Unknown => write!(f, "?"),
        }
    }
}

impl Dim<'_> {
    /// Whether they are the same for certain.
    pub(super) fn same(self, other: Self) -> bool {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => a == b,
            (Dim::Open(a, j), Dim::Open(b, k)) => (a, j) == (b, k),
            _ => false,
        }
    }

    pub(super) fn is_one(self) -> bool {
        matches!(self, Dim::Known(1))
    }

    pub(super) fn times(self, other: Self) -> Self {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => a.checked_mul(b).map_or(Dim::Unknown, Dim::Known),
            (Dim::Known(1), open) | (open, Dim::Known(1)) => open,
            _ => Dim::Unknown,
        }
    }
}

/// What data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// A value that the chain of LSTMs does not compute: an input of the graph, by name.
    Outside(&'a str),
    /// Outputs of a layer: steps, directions, batch, features.
    Sequence(Outputs),
    /// Final `h`: the rows of a [`HostState`](lstm_core::HostState) from one number up to another; rows, batch, features.
    H(usize, usize),
    /// Final `c`.
    C(usize, usize),
}

/// A layer whose outputs they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outputs {
    /// Its number in the chain.
    pub(super) layer: usize,
    /// For each of its directions, whether it walks in reverse.
    pub(super) reversals: &'static [bool],
    /// Whether all sequences are as long as the input.
    pub(super) whole: bool,
}

/// Where each atom, an axis of the source, is now.
#[derive(Clone, Debug)]
pub(super) struct Data<'a> {
    pub(super) source: Source<'a>,
    /// Sizes of the source's axes.
    pub(super) atoms: Vec<Dim<'a>>,
    /// The present axes, each made of neighbouring atoms; an axis of none has size 1. Atoms of size 1 may be missing.
    pub(super) axes: Vec<Vec<usize>>,
    /// Of a value from outside, the part of the first axis that is taken, if not all.
    pub(super) part: Option<(i64, i64)>,
    /// Of outputs, the only step that is taken, counted from the end if it is negative.
    pub(super) step: Option<i64>,
    /// Of outputs, the only direction that is taken, of two.
    pub(super) direction: Option<usize>,
    /// Of an input, the type of its elements; `None` for what nodes compute.
    pub(super) kind: Option<i32>,
    /// The probability of a `Dropout` passed on the way, which does nothing outside training.
    pub(super) dropout: Option<f32>,
}

impl<'a> Data<'a> {
    /// The source as it is.
    pub(super) fn new(source: Source<'a>, atoms: Vec<Dim<'a>>) -> Self {
        let axes = (0..atoms.len()).map(|k| vec![k]).collect();
        Data { source, atoms, axes, part: None, step: None, direction: None, kind: None, dropout: None }
    }

    pub(super) fn dim(&self, axis: &[usize]) -> Dim<'a> {
        axis.iter().fold(Dim::Known(1), |dim, &atom| dim.times(self.atoms[atom]))
    }

    /// What it is, in an error.
    pub(super) fn describe(&self) -> String {
        let what = match self.source {
            Source::Outside(name) => format!("`{name}`{}", self.typed()),
            Source::Sequence(of) => format!("the outputs of layer {}", of.layer),
            Source::H(from, to) => format!("the final h of layers and directions {from}..{to}"),
            Source::C(from, to) => format!("the final c of layers and directions {from}..{to}"),
        };
        let direction = self.direction.map(|d| format!(", direction {d} alone")).unwrap_or_default();
        let step = self.step.map(|step| format!(", step {step} alone")).unwrap_or_default();
        format!("{what}{direction}{step} with axes {:?}", self.axes)
    }

    /// Whether an LSTM can take it for numbers.
    pub(super) fn is_float(&self) -> bool {
        self.kind.is_none_or(|kind| [FLOAT, FLOAT16, DOUBLE, BFLOAT16].contains(&kind))
    }

    /// Which type it has, if that is not one of floats.
    fn typed(&self) -> String {
        self.kind.filter(|_| !self.is_float()).map(|kind| format!(" of {}", type_name(kind))).unwrap_or_default()
    }

    /// The sizes of the present axes.
    pub(super) fn shape(&self) -> Vec<Dim<'a>> {
        self.axes.iter().map(|axis| self.dim(axis)).collect()
    }

    /// Whether elements lie as in `want`, axes of size 1 aside.
    pub(super) fn lies_as(&self, want: &[&[usize]]) -> bool {
        let large = |axis: &[usize]| axis.iter().copied().filter(|&a| !self.atoms[a].is_one()).collect::<Vec<_>>();
        self.axes.len() == want.len() && self.axes.iter().zip(want).all(|(got, want)| large(got) == large(want))
    }

    /// Axes split or merged to `target`, the argument of `Reshape`; `None` if that is more than merging.
    pub(super) fn reshape(&self, target: &[Dim<'a>], zero_copies: bool) -> Option<Self> {
        let mut axes = Vec::new();
        // Two axes of unknown size could be anything.
        let free = target.iter().filter(|t| matches!(t, Dim::Known(-1))).count();
        let fits = free <= 1 && self.merge(0, target, zero_copies, &mut axes);
        fits.then(|| Data { axes, ..self.clone() })
    }

    /// Finds, from the left, which of the axes from `from` on each target size is made of.
    fn merge(&self, from: usize, target: &[Dim<'a>], zero_copies: bool, found: &mut Vec<Vec<usize>>) -> bool {
        let Some((&size, rest)) = target.split_first() else {
            return from == self.axes.len();
        };
        for to in from..=self.axes.len() {
            let run = self.axes[from..to].concat();
            let fits = match size {
                Dim::Known(-1) => true,
                Dim::Known(0) if zero_copies => to == from + 1 && from == found.len(),
                size => self.dim(&run).same(size),
            };
            if !fits {
                continue;
            }
            found.push(run);
            if self.merge(to, rest, zero_copies, found) {
                return true;
            }
            found.pop();
        }
        false
    }
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// A constant.
    Constant(&'a Tensor),
    /// Integers, a few: a scalar or a vector.
    Numbers { scalar: bool, values: Vec<Dim<'a>> },
    /// Floats that are all +0.
    Zeros(Zeros<'a>),
    /// Data whose axes are known.
    Data(Data<'a>),
    /// Values from outside, one after the other along an axis.
    Joined { along: usize, parts: Vec<Data<'a>> },
    /// Data from outside of a rank that the file does not tell, and its type, as in [`Data`].
    Rankless(&'a str, Option<i32>),
}

impl Value<'_> {
    /// What it is, in an error.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Constant(tensor) => format!("the constant `{}`", tensor.name),
            Value::Numbers { values, .. } => format!("{} integers", values.len()),
            Value::Zeros(_) => "zeros".into(),
            Value::Rankless(name, kind) => {
                let typed = Data { kind: *kind, ..Data::new(Source::Outside(name), Vec::new()) }.typed();
                format!("`{name}`{typed}, whose shape is not declared")
            }
            Value::Data(data) => data.describe(),
            Value::Joined { parts, .. } => parts.iter().map(Data::describe).collect::<Vec<_>>().join(" and "),
        }
    }
}
