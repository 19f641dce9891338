//! Elementwise operations and copies.

use lstm_core::Result;

use crate::{
    driver::{Address, Launch, kernel_size},
    kernels::args::{CopyArgs, MapArgs},
};

/// The function that the kernel `map` applies. The discriminants are the values of [`MapArgs::op`].
#[derive(Clone, Copy)]
pub(crate) enum Map {
    Snap = 0,
    Sigmoid = 1,
    Tanh = 2,
    Clip = 3,
    /// Fills the output with the sentinel, which marks words that no block has written yet.
    Sentinel = 4,
}

/// Applies a function to `len` values. `out` may be `x`. `bound` is for [`Map::Clip`] only.
pub(crate) fn map(op: &'static str, map: Map, x: Address, out: Address, len: usize, bound: f32) -> Result<Launch> {
    Launch::elementwise(op, "map", len, MapArgs { x, out, len: len as u64, op: map as u32, bound })
}

/// Copies a matrix. Each address comes with the number of elements from one row to the next. If `snap` is true, values
/// are snapped while they are copied.
pub(crate) fn copy(
    op: &'static str,
    (from, from_stride): (Address, usize),
    (to, to_stride): (Address, usize),
    [rows, cols]: [usize; 2],
    snap: bool,
) -> Result<Launch> {
    let args = CopyArgs {
        from,
        to,
        rows: rows as u64,
        cols: kernel_size(op, cols)?,
        from_stride: kernel_size(op, from_stride)?,
        to_stride: kernel_size(op, to_stride)?,
        snap: snap.into(),
    };
    Launch::elementwise(op, "copy", rows * cols, args)
}
