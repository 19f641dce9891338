//! Products with quantized matrices.

use lstm_core::{
    Result,
    quantized::{Format, ONE_BITS, OperandRange},
};

use crate::{
    driver::{Address, Launch, checked_u32},
    kernels::args::{EighthFactors, GemmQuantizedArgs, QuantizeRowsArgs},
};

/// Returns a launch that quantizes each row of the matrix `x`: it writes the integers to `q` and the factor of each row
/// to `from_integer`. Each thread block quantizes a row.
pub(crate) fn quantize_rows(
    op: &'static str,
    format: &Format,
    range: OperandRange,
    [rows, cols]: [usize; 2],
    x: Address,
    (q, from_integer): (Address, Address),
) -> Result<Launch> {
    let args = QuantizeRowsArgs {
        x,
        q,
        from_integer,
        cols: checked_u32(op, cols)?,
        min_magnitude: match range {
            OperandRange::Any => 0,
            OperandRange::Unit => ONE_BITS,
        },
        to_integer_factors: EighthFactors::new(format.to_integer_factors()),
        from_integer_factors: EighthFactors::new(format.from_integer_factors()),
    };
    let threads = cols.next_power_of_two().clamp(32, 256) as u32;
    let launch = Launch::new(op, "quantize_rows", rows, threads, args)?;
    Ok(Launch { shared_bytes: 4 * threads, ..launch })
}

/// Returns a launch that computes `acc + a W^T` of shape `[rows, cols]`, with inner dimension `inner`. `a` and `w` are
/// integers, each with the factors of its rows. `acc` consists of an address and whether it is one row, which is added
/// to every row of the result.
pub(crate) fn gemm_quantized(
    op: &'static str,
    format: &Format,
    [rows, cols, inner]: [usize; 3],
    (a, from_integer): (Address, Address),
    (w, scale): (Address, Address),
    acc: Option<(Address, bool)>,
    out: Address,
) -> Result<Launch> {
    let (acc, acc_is_row) = acc.unwrap_or((0, false));
    let args = GemmQuantizedArgs {
        a,
        from_integer,
        w,
        scale,
        acc,
        out,
        len: (rows * cols) as u64,
        cols: checked_u32(op, cols)?,
        inner: checked_u32(op, inner)?,
        block: checked_u32(op, format.block)?,
        acc_is_row: acc_is_row.into(),
    };
    Launch::elementwise(op, "gemm_quantized", rows * cols, args)
}
