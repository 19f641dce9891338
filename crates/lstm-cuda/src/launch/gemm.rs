//! Matrix products of strided operands.

use lstm_core::{Error, Result, arithmetic::DOT_BLOCK};

use super::tile::{LARGE, TF32_WIDE, step_tile, uses_tensor_cores};
use crate::{
    driver::{Address, Driver, Launch, checked_u32},
    kernels::args::GemmArgs,
};

/// An operand of a matrix product. A line is a row of the left operand or a column of the right operand. Depth is the
/// inner dimension of the product, which indexes the elements of a line.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) address: Address,
    /// Distance in memory, counted in elements, from one row of the left operand or one column of the right operand to
    /// the next.
    pub(crate) line_stride: usize,
    /// Distance in memory, counted in elements, between neighboring elements of a row of the left operand or of a
    /// column of the right operand.
    pub(crate) depth_stride: usize,
    /// Distance in memory, counted in elements, from one segment of the operand to the next. Each segment is a matrix;
    /// the products of all segments are added.
    pub(crate) segment_stride: isize,
    /// Whether the kernel snaps the elements as it reads them: it replaces magnitudes below 2^-40 by zero.
    pub(crate) snap: bool,
}

impl Operand {
    /// Returns a row-major left operand or a transposed right operand. The `depth` elements of each row (of the left
    /// operand) or column (of the right operand) are contiguous in memory.
    pub(crate) fn contiguous_depth(address: Address, depth: usize) -> Self {
        Operand { address, line_stride: depth, depth_stride: 1, segment_stride: 0, snap: false }
    }

    /// Returns a transposed left operand with `outer_size` rows, or a row-major right operand with `outer_size` columns.
    /// Neighboring elements of a row of the left or a column of the right operand are `outer_size` elements apart in memory.
    pub(crate) fn strided_depth(address: Address, outer_size: usize) -> Self {
        Operand { address, line_stride: 1, depth_stride: outer_size, segment_stride: 0, snap: false }
    }
}

/// Converts a stride to `i32`, the type of signed strides in kernel arguments.
///
/// # Errors
/// [`Error::TooLarge`] if the stride does not fit.
pub(crate) fn checked_i32(op: &'static str, n: isize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::TooLarge { op, sizes: vec![n.unsigned_abs()] })
}

/// Whether a sum of several matrix products of this shape is faster with one launch per product than in a single
/// launch. A single launch can't use large tiles, since a thread has too few registers to hold the current product and
/// the sum of the previous ones. With separate launches, each reads and writes the sum in memory, but for a large depth
/// large tiles gain more than that costs.
pub(crate) fn launches_segments_separately(driver: &impl Driver, [rows, cols, depth]: [usize; 3]) -> bool {
    depth >= 8 * DOT_BLOCK
        && LARGE.uses_whole_device(driver, [rows, cols])
        && !uses_tensor_cores(driver, [rows, cols, depth])
}

/// Returns a launch that computes `acc + a b` of shape `[rows, cols]`, with inner dimension `depth`. If there are
/// several segments, each operand is a series of matrices, and `a b` is the sum of their products, added in order.
/// `acc` consists of an address and the distance between rows in elements; a distance of 0 adds the same row to every
/// row of the result. `None` stands for zeros.
pub(crate) fn gemm(
    driver: &impl Driver,
    op: &'static str,
    [rows, cols, depth]: [usize; 3],
    segments: usize,
    (a, b): (Operand, Operand),
    acc: Option<(Address, usize)>,
    out: Address,
) -> Result<Launch> {
    let (acc, acc_row_stride) = acc.unwrap_or((0, 0));
    let args = GemmArgs {
        a: a.address,
        b: b.address,
        acc,
        out,
        rows: checked_u32(op, rows)?,
        cols: checked_u32(op, cols)?,
        depth: checked_u32(op, depth)?,
        segments: checked_u32(op, segments)?,
        a_row_stride: checked_u32(op, a.line_stride)?,
        a_depth_stride: checked_u32(op, a.depth_stride)?,
        a_segment_stride: checked_i32(op, a.segment_stride)?,
        b_col_stride: checked_u32(op, b.line_stride)?,
        b_depth_stride: checked_u32(op, b.depth_stride)?,
        b_segment_stride: checked_i32(op, b.segment_stride)?,
        acc_row_stride: checked_u32(op, acc_row_stride)?,
        snap: u32::from(a.snap) | u32::from(b.snap) << 1,
    };
    let shape = [rows, cols];
    let tile = match uses_tensor_cores(driver, [rows, cols, depth]) {
        true if TF32_WIDE.uses_whole_device(driver, shape) => TF32_WIDE,
        false if LARGE.uses_whole_device(driver, shape) && segments == 1 => LARGE,
        _ => step_tile(driver, [rows, cols, depth]),
    };
    let kernels = ["gemm_small", "gemm_medium", "tf32_gemm_narrow", "gemm_large", "tf32_gemm_wide"];
    tile.launch(op, &kernels, shape, args)
}
