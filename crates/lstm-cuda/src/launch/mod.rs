//! Launches of the kernels that several parts of the backend use: elementwise operations, products and column sums.

mod column_sums;
mod elementwise;
mod gemm;
mod gemm_quantized;
mod tile;

pub(crate) use column_sums::{column_sum_args, column_sums};
pub(crate) use elementwise::{MapFunction, copy, copy_rows, map};
pub(crate) use gemm::{Operand, checked_i32, gemm, launches_segments_separately};
pub(crate) use gemm_quantized::{gemm_quantized, quantize_rows};
pub(crate) use tile::{backward_tiles, step_tile};

use crate::driver::Address;

/// Returns the address of element `index` of the `f32` array at `address`.
pub(crate) fn offset(address: Address, index: usize) -> Address {
    address + 4 * index as Address
}
