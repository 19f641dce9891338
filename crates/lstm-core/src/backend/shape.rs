//! Shapes of device matrices, and the argument checks that all backends share, so that all report the same errors.

use std::{fmt, ops::Range};

use crate::error::{Error, Result};

/// The shape of a row-major matrix. A batch of sequences is stored as a matrix `[steps * batch, features]`, one time
/// step after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl MatrixShape {
    /// Creates a shape of `rows` by `cols`.
    pub const fn new(rows: usize, cols: usize) -> Self {
        MatrixShape { rows, cols }
    }

    /// Number of elements; saturates at `usize::MAX`.
    pub const fn len(self) -> usize {
        self.rows.saturating_mul(self.cols)
    }

    /// Whether the shape has no elements. Device tensors are never empty.
    pub const fn is_empty(self) -> bool {
        self.rows == 0 || self.cols == 0
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// Maximum number of elements of a buffer, so that addresses and padding cannot overflow.
const MAX_LEN: usize = isize::MAX as usize / 64;

/// The product of `sizes`.
///
/// # Errors
/// [`Error::TooLarge`] if a buffer cannot have that many elements.
pub fn checked_len(op: &'static str, sizes: &[usize]) -> Result<usize> {
    // A size of zero must not hide an overflow of the others.
    let len = sizes.iter().try_fold(1usize, |len, &size| len.checked_mul(size.max(1))).filter(|&len| len <= MAX_LEN);
    match len {
        Some(len) => Ok(if sizes.contains(&0) { 0 } else { len }),
        None => Err(Error::TooLarge { op, sizes: sizes.to_vec() }),
    }
}

/// A vector of zeros whose length is the product of `sizes`.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn zeros(op: &'static str, sizes: &[usize]) -> Result<Vec<f32>> {
    memory::filled(op, sizes, 0.0)
}

/// Memory whose size a caller decides: each allocation can fail with [`Error::TooLarge`] instead of ending the process.
pub mod memory {
    pub use crate::memory::{
        collect, concat, copy, copy_array, filled, map_array, row_major, try_collect, with_capacity, zero_array,
    };
}

/// The axis along which [`Ops::concat`](crate::Ops::concat) joins matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcatAxis {
    /// Joins matrices one below the other; their numbers of columns must be equal.
    Rows,
    /// Joins matrices side by side; their numbers of rows must be equal.
    Cols,
}

/// An operand of [`Ops::gemm`](crate::Ops::gemm): a tensor, possibly transposed.
#[derive(Debug)]
#[must_use]
pub struct MatrixRef<'a, T> {
    /// The tensor as it is stored.
    pub tensor: &'a T,
    /// Whether the product uses the transposed matrix.
    pub transposed: bool,
}

impl<T> Clone for MatrixRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatrixRef<'_, T> {}

impl<T> MatrixRef<'_, T> {
    /// Returns the transposed operand. No elements are copied.
    pub fn t(self) -> Self {
        MatrixRef { transposed: !self.transposed, ..self }
    }

    /// The shape of the operand, given the shape of the stored tensor.
    pub fn shape(&self, stored_shape: MatrixShape) -> MatrixShape {
        if self.transposed { MatrixShape::new(stored_shape.cols, stored_shape.rows) } else { stored_shape }
    }
}

impl<'a, T> From<&'a T> for MatrixRef<'a, T> {
    fn from(tensor: &'a T) -> Self {
        MatrixRef { tensor, transposed: false }
    }
}

/// Checks that an upload has as many elements as its shape, and at least one.
pub fn check_upload(shape: MatrixShape, len: usize) -> Result<()> {
    match shape.rows.checked_mul(shape.cols) {
        Some(n) if n == len && n > 0 => Ok(()),
        _ => Err(Error::shape("upload", format!("{shape} with at least one element"), format!("{len} elements"))),
    }
}

/// Checks that the destination of a download has as many elements as the tensor.
pub fn check_download(shape: MatrixShape, len: usize) -> Result<()> {
    if shape.len() == len {
        return Ok(());
    }
    Err(Error::shape("download", format!("{} elements for {shape}", shape.len()), len))
}

/// Returns the shape of the matrix product `a . b`. Checks that `acc` has this shape, or is one row, or is absent.
pub fn check_gemm(a: MatrixShape, b: MatrixShape, acc: Option<MatrixShape>) -> Result<MatrixShape> {
    if a.cols != b.rows {
        return Err(Error::Mismatch { op: "gemm", lhs: a, rhs: b });
    }
    checked_len("gemm", &[a.rows, b.cols])?;
    check_row_broadcast("gemm accumulator", MatrixShape::new(a.rows, b.cols), acc)
}

/// Checks that the bound of [`clip`](crate::arithmetic::clip) is positive and finite.
pub fn check_clip(bound: f32) -> Result<()> {
    if bound > 0.0 && bound.is_finite() {
        return Ok(());
    }
    Err(Error::config("clip", format!("expected a positive finite bound, got {bound}")))
}

/// Checks the shapes of the operands of [`Ops::select_between`](crate::Ops::select_between).
pub fn check_select_between(x: MatrixShape, selector: MatrixShape, low: MatrixShape, high: MatrixShape) -> Result<()> {
    let row_shape = MatrixShape::new(1, x.cols);
    match [(selector, x), (low, row_shape), (high, row_shape)].into_iter().find(|(got, expected)| got != expected) {
        Some((got, expected)) => Err(Error::shape(format!("select_between: operand of {x}"), expected, got)),
        None => Ok(()),
    }
}

/// Checks that `operand` is absent, has the shape `full_shape`, or is a single row with the same number of columns,
/// which is broadcast to every row. Returns `full_shape`.
pub fn check_row_broadcast(
    op: &'static str,
    full_shape: MatrixShape,
    operand: Option<MatrixShape>,
) -> Result<MatrixShape> {
    match operand {
        Some(s) if s != full_shape && s != MatrixShape::new(1, full_shape.cols) => {
            Err(Error::Mismatch { op, lhs: full_shape, rhs: s })
        }
        _ => Ok(full_shape),
    }
}

/// Returns the shape of a slice of a matrix of shape `shape`. Checks that the ranges are not empty and within `shape`.
pub fn check_slice(shape: MatrixShape, rows: &Range<usize>, cols: &Range<usize>) -> Result<MatrixShape> {
    let is_valid_range = |r: &Range<usize>, n| r.start < r.end && r.end <= n;
    if is_valid_range(rows, shape.rows) && is_valid_range(cols, shape.cols) {
        return Ok(MatrixShape::new(rows.len(), cols.len()));
    }
    Err(Error::shape("slice", format!("non-empty ranges within {shape}"), format!("rows {rows:?}, columns {cols:?}")))
}

/// Returns the shape of `parts` joined along `axis`. Checks that their sizes along the other axis are equal.
pub fn check_concat(axis: ConcatAxis, parts: impl IntoIterator<Item = MatrixShape>) -> Result<MatrixShape> {
    let mut parts = parts.into_iter();
    let first = parts.next().ok_or_else(|| Error::shape("concat", "at least one part", "none"))?;
    parts.try_fold(first, |all, part| {
        // Each part exists, but clones share memory: the joined matrix may not fit.
        let (sizes_match, joined_shape) = match axis {
            ConcatAxis::Rows => (all.cols == part.cols, MatrixShape::new(all.rows.saturating_add(part.rows), all.cols)),
            ConcatAxis::Cols => (all.rows == part.rows, MatrixShape::new(all.rows, all.cols.saturating_add(part.cols))),
        };
        if !sizes_match {
            return Err(Error::Mismatch { op: "concat", lhs: all, rhs: part });
        }
        checked_len("concat", &[joined_shape.rows, joined_shape.cols]).map(|_| joined_shape)
    })
}
