//! Sizes of axes, known or symbolic.

use std::{fmt, ops::Range};

/// The largest accepted number of axes of a value, and of elements of an integer vector. Real models have far fewer;
/// the limit bounds the work that a malicious graph can cause.
pub(crate) const MAX_RANK: usize = 64;

/// The smallest slice end that stands for the end of the axis, whatever the axis's size. Exporters write the largest
/// INT32 or INT64 for it.
pub(crate) const OPEN_SLICE_END: i64 = i32::MAX as i64;

/// The size of an axis, or an integer computed from such sizes.
#[derive(Clone, Copy)]
pub(crate) enum Dim<'a> {
    /// A known number.
    Known(i64),
    /// The size of an axis that the file does not fix. The fields are the name of the value and the index of the axis.
    Symbolic(&'a str, usize),
    /// A number that can't be derived, such as a sum of symbolic sizes.
    Unknown,
}

impl fmt::Debug for Dim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(size) => write!(f, "{size}"),
            Dim::Symbolic(name, axis) => write!(f, "{name}.shape[{axis}]"),
            Dim::Unknown => write!(f, "?"),
        }
    }
}

impl Dim<'_> {
    /// The number, or `None` if it is not known.
    pub(crate) fn as_known(self) -> Option<i64> {
        if let Dim::Known(size) = self { Some(size) } else { None }
    }

    /// Whether both sizes are equal for all inputs, as far as can be derived.
    pub(crate) fn equals(self, other: Self) -> bool {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => a == b,
            (Dim::Symbolic(a, j), Dim::Symbolic(b, k)) => (a, j) == (b, k),
            _ => false,
        }
    }

    /// Whether the size is certainly 1.
    pub(crate) fn is_one(self) -> bool {
        matches!(self, Dim::Known(1))
    }

    /// The product of both sizes, which is unknown on overflow.
    pub(crate) fn multiply(self, other: Self) -> Self {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => a.checked_mul(b).map_or(Dim::Unknown, Dim::Known),
            (Dim::Known(1), size) | (size, Dim::Known(1)) => size,
            _ => Dim::Unknown,
        }
    }
}

/// The indices that Python's `[start:end]` selects from `len` elements.
pub(crate) fn slice_range(start: i64, end: i64, len: usize) -> Range<usize> {
    let n = len as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
    let (start, end) = (clamp(start), clamp(end));
    start..end.max(start)
}
