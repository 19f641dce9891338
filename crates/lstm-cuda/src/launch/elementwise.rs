//! Elementwise operations and copies.

use lstm_core::Result;

use crate::{
    driver::{Address, Launch, checked_u32},
    kernels::args::{CopyArgs, MapArgs, RowNumbersAddress},
};

/// The function that the kernel `map` applies. The discriminants are the values of [`MapArgs::op`].
#[derive(Clone, Copy)]
pub(crate) enum MapFunction {
    Snap = 0,
    Sigmoid = 1,
    Tanh = 2,
    Clip = 3,
    /// Fills the output with the sentinel, which marks words that no block has written yet.
    Sentinel = 4,
}

/// Returns a launch that applies a function to `len` values. `out` may be `x`. `bound` is for [`MapFunction::Clip`]
/// only.
pub(crate) fn map(
    op: &'static str,
    function: MapFunction,
    x: Address,
    out: Address,
    len: usize,
    bound: f32,
) -> Result<Launch> {
    Launch::elementwise(op, "map", len, MapArgs { x, out, len: len as u64, op: function as u32, bound })
}

/// Returns a launch that copies a matrix. Each address is paired with the number of elements from one row to the next.
/// If `snap` is true, values are snapped while they are copied: magnitudes below 2^-40 are replaced by zero.
pub(crate) fn copy(
    op: &'static str,
    (src, src_stride): (Address, usize),
    (dst, dst_stride): (Address, usize),
    [rows, cols]: [usize; 2],
    snap: bool,
) -> Result<Launch> {
    let args = CopyArgs {
        src,
        dst,
        row_numbers: 0,
        rows: rows as u64,
        cols: checked_u32(op, cols)?,
        src_stride: checked_u32(op, src_stride)?,
        dst_stride: checked_u32(op, dst_stride)?,
        snap: snap.into(),
    };
    Launch::elementwise(op, "copy", rows * cols, args)
}

/// Returns a launch that copies some rows of a matrix of `cols` columns to the same rows of another matrix.
/// `row_numbers` is the address of the numbers of these rows, `rows` values of type `u32`.
pub(crate) fn copy_rows(
    op: &'static str,
    src: Address,
    dst: Address,
    row_numbers: RowNumbersAddress,
    [rows, cols]: [usize; 2],
) -> Result<Launch> {
    let stride = checked_u32(op, cols)?;
    let args = CopyArgs {
        src,
        dst,
        row_numbers,
        rows: rows as u64,
        cols: stride,
        src_stride: stride,
        dst_stride: stride,
        snap: 0,
    };
    Launch::elementwise(op, "copy", rows * cols, args)
}
