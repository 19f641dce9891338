//! Shapes of device matrices, and the checks that every backend shares, so that all refuse alike.

use std::{fmt, ops::Range};

use crate::error::{Error, Result};

/// Rows and columns of a row-major matrix. A sequence is `[steps * batch, features]`, time-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl MatrixShape {
    /// A shape of `rows` by `cols`.
    pub const fn new(rows: usize, cols: usize) -> Self {
        MatrixShape { rows, cols }
    }

    /// Number of elements, or the largest number if that does not fit.
    pub const fn len(self) -> usize {
        self.rows.saturating_mul(self.cols)
    }

    /// Whether it has no elements. No device tensor has such a shape.
    pub const fn is_empty(self) -> bool {
        self.rows == 0 || self.cols == 0
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// Most elements that a buffer can have: addresses and padding stay far from overflow.
const MAX_LEN: usize = isize::MAX as usize / 64;

/// The product of sizes.
///
/// # Errors
/// [`Error::TooLarge`] if it is more than any memory holds.
pub fn checked_len(op: &'static str, sizes: &[usize]) -> Result<usize> {
    // A zero among them must not hide an overflow of the others.
    let len = sizes.iter().try_fold(1usize, |len, &size| len.checked_mul(size.max(1))).filter(|&len| len <= MAX_LEN);
    match len {
        Some(len) => Ok(if sizes.contains(&0) { 0 } else { len }),
        None => Err(Error::TooLarge { op, sizes: sizes.to_vec() }),
    }
}

/// As many zeros as the product of sizes.
///
/// # Errors
/// [`Error::TooLarge`] if there is no memory for them.
pub fn zeros(op: &'static str, sizes: &[usize]) -> Result<Vec<f32>> {
    let len = checked_len(op, sizes)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).map_err(|_| Error::TooLarge { op, sizes: sizes.to_vec() })?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}

/// Along which axis [`Ops::concat`](crate::Backend::concat) joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcatAxis {
    /// Below one another: equal columns.
    Rows,
    /// Beside one another: equal rows.
    Cols,
}

/// A tensor as an operand of a product, possibly transposed.
#[derive(Debug)]
pub struct MatrixRef<'a, T> {
    /// The matrix.
    pub tensor: &'a T,
    /// Whether the product reads it transposed.
    pub transposed: bool,
}

impl<T> Clone for MatrixRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatrixRef<'_, T> {}

impl<T> MatrixRef<'_, T> {
    /// The same matrix, transposed.
    pub fn t(self) -> Self {
        MatrixRef { transposed: !self.transposed, ..self }
    }

    /// The shape that the product sees, given the tensor's own.
    pub fn view(&self, own: MatrixShape) -> MatrixShape {
        if self.transposed { MatrixShape::new(own.cols, own.rows) } else { own }
    }
}

impl<'a, T> From<&'a T> for MatrixRef<'a, T> {
    fn from(tensor: &'a T) -> Self {
        MatrixRef { tensor, transposed: false }
    }
}

/// Checks an upload: as many elements as the shape says, and at least one.
pub fn check_upload(shape: MatrixShape, len: usize) -> Result<()> {
    match shape.rows.checked_mul(shape.cols) {
        Some(n) if n == len && n > 0 => Ok(()),
        _ => Err(Error::shape("upload", format!("{shape} with at least one element"), format!("{len} elements"))),
    }
}

/// Checks a download: the slice has as many elements as the tensor.
pub fn check_download(shape: MatrixShape, len: usize) -> Result<()> {
    if shape.len() == len {
        return Ok(());
    }
    Err(Error::shape("download", format!("{} elements for {shape}", shape.len()), len))
}

/// Shape of `a . b`, where `acc` is absent, of the result's shape, or one row that is added to every row.
pub fn check_gemm(a: MatrixShape, b: MatrixShape, acc: Option<MatrixShape>) -> Result<MatrixShape> {
    if a.cols != b.rows {
        return Err(Error::Mismatch { op: "gemm", lhs: a, rhs: b });
    }
    checked_len("gemm", &[a.rows, b.cols])?;
    check_rows("gemm accumulator", MatrixShape::new(a.rows, b.cols), acc)
}

/// Checks a bound for [`clip`](crate::arithmetic::clip): positive and finite.
pub fn check_clip(bound: f32) -> Result<()> {
    if bound > 0.0 && bound.is_finite() {
        return Ok(());
    }
    Err(Error::config("clip", format!("expected a positive finite bound, got {bound}")))
}

/// Checks the operands of [`Ops::select_between`](crate::Backend::within).
pub fn check_select_between(x: MatrixShape, by: MatrixShape, low: MatrixShape, high: MatrixShape) -> Result<()> {
    let row = MatrixShape::new(1, x.cols);
    match [(by, x), (low, row), (high, row)].into_iter().find(|(got, want)| got != want) {
        Some((got, want)) => Err(Error::shape(format!("select_between: operand of {x}"), want, got)),
        None => Ok(()),
    }
}

/// Checks that `operand` is absent, of shape `full`, or one row of it; returns `full`.
pub fn check_rows(op: &'static str, full: MatrixShape, operand: Option<MatrixShape>) -> Result<MatrixShape> {
    match operand {
        Some(s) if s != full && s != MatrixShape::new(1, full.cols) => Err(Error::Mismatch { op, lhs: full, rhs: s }),
        _ => Ok(full),
    }
}

/// Shape of a slice: non-empty ranges within `shape`.
pub fn check_slice(shape: MatrixShape, rows: &Range<usize>, cols: &Range<usize>) -> Result<MatrixShape> {
    let inside = |r: &Range<usize>, n| r.start < r.end && r.end <= n;
    if inside(rows, shape.rows) && inside(cols, shape.cols) {
        return Ok(MatrixShape::new(rows.len(), cols.len()));
    }
    Err(Error::shape("slice", format!("non-empty ranges within {shape}"), format!("rows {rows:?}, columns {cols:?}")))
}

/// Shape of parts joined along `axis`.
pub fn check_concat(axis: ConcatAxis, parts: impl IntoIterator<Item = MatrixShape>) -> Result<MatrixShape> {
    let mut parts = parts.into_iter();
    let first = parts.next().ok_or_else(|| Error::shape("concat", "at least one part", "none"))?;
    parts.try_fold(first, |all, part| {
        // Parts exist in memory, but clones share it: their sum may not fit.
        let (same, joined) = match axis {
            ConcatAxis::Rows => (all.cols == part.cols, MatrixShape::new(all.rows.saturating_add(part.rows), all.cols)),
            ConcatAxis::Cols => (all.rows == part.rows, MatrixShape::new(all.rows, all.cols.saturating_add(part.cols))),
        };
        if !same {
            return Err(Error::Mismatch { op: "concat", lhs: all, rhs: part });
        }
        checked_len("concat", &[joined.rows, joined.cols]).map(|_| joined)
    })
}
