//! Sums of a matrix's columns.

use lstm_core::{Result, arithmetic::DOT_BLOCK};

use crate::{
    driver::{Address, Launch, checked_u32},
    kernels::args::ColumnSumArgs,
};

/// Returns the kernel arguments for the column sums of a matrix `[rows, cols]`, whose rows are `stride` elements apart.
/// The sums are added to `acc`, if there is one. The order of summation is that of a matrix product with a row of ones.
/// The remaining fields of the result have default values, which the caller may change.
pub(crate) fn column_sum_args(
    op: &'static str,
    (x, stride): (Address, usize),
    [rows, cols]: [usize; 2],
    acc: Option<Address>,
    out: Address,
) -> Result<ColumnSumArgs> {
    Ok(ColumnSumArgs {
        x,
        factor: 0,
        acc: acc.unwrap_or(0),
        out,
        active_counts: 0,
        rows: checked_u32(op, rows)?,
        cols: checked_u32(op, cols)?,
        x_stride: checked_u32(op, stride)?,
        batch: 1,
        segments: 1,
        segment_stride: 0,
    })
}

/// Returns a launch of the kernel `column_sums`. Each thread block sums 32 columns, with one warp per `DOT_BLOCK` rows,
/// at most eight.
pub(crate) fn column_sums(op: &'static str, args: ColumnSumArgs) -> Result<Launch> {
    let threads = 32 * (args.rows as usize).div_ceil(DOT_BLOCK).clamp(1, 8) as u32;
    let launch = Launch::new(op, "column_sums", (args.cols as usize).div_ceil(32), threads, args)?;
    Ok(Launch { shared_bytes: 4 * threads, ..launch })
}
