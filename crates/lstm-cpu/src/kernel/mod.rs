//! Kernels: the inner loops, each written once, generic over the vector type, and compiled for each instruction set.
//!
//! Weights are packed into *panels*. A panel is a matrix with [`PANEL_VECTORS`](table::PANEL_VECTORS) vectors per row.
//! A *tile* kernel multiplies a few rows of activations by one panel and keeps the sums in registers.

pub(crate) mod activation;
pub(crate) mod cell;
pub(crate) mod cell_backward;
pub(crate) mod dot;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod matmul;
mod panel;
pub(crate) mod quantized;
pub(crate) mod simd;
pub(crate) mod single_row;
pub(crate) mod strided;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

// `table::kernel_table!` calls these by their path in this module.
use quantized::{single_row::quantized_single_row, tile::quantized_tile};
use single_row::single_row;
use tile::tile;
