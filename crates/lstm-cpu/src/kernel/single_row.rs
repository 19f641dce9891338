//! The kernel for a whole time step of one sequence in a small layer: matrix products and cell at once.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::{CellKind, arithmetic::DOT_BLOCK};

use crate::kernel::{
    cell::{CellArgs, add_bias_and_products, cell_forward_vectors, load_panel_gates},
    simd::Simd,
    table::PANEL_VECTORS,
};

/// Arguments of a [`SingleRowKernel`].
pub(crate) struct SingleRowArgs {
    /// Number of elements of `recurrent_operand`.
    pub(crate) recurrent_operand_len: usize,
    /// The row by which the recurrent weights are multiplied: `h`, or `c` in the dense peephole cell.
    pub(crate) recurrent_operand: *const f32,
    /// Recurrent weights, `[recurrent panels][recurrent_operand_len][panel]`.
    pub(crate) u: *const f32,
    /// Arguments of the cell kernel, whose items are the panels. `uh` and `item_count` are not used.
    pub(crate) cell_args: CellArgs,
    /// Number of elements of `input`.
    pub(crate) input_len: usize,
    /// The row by which the input weights are multiplied. If null, `cell_args.wx` already holds the products.
    pub(crate) input: *const f32,
    /// Input weights, `[panels][input_len][panel]`.
    pub(crate) w: *const f32,
}

/// A kernel that computes a whole time step of one row for a fixed number of panels.
///
/// # Safety
/// The pointers are valid for what [`SingleRowArgs`] describes.
pub(crate) type SingleRowKernel = unsafe fn(&SingleRowArgs);

/// A [`SingleRowKernel`] for `N` panels. It computes the matrix products of all panels at once, then the cell equations
/// of all panels.
///
/// # Safety
/// As for [`SingleRowKernel`] and [`Simd`].
#[inline(always)]
pub(crate) unsafe fn single_row<S: Simd, const N: usize>(args: &SingleRowArgs) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match args.cell_args.kind {
            CellKind::Fused | CellKind::Unfused => single_row_of_kind::<S, N, false, false>(args),
            CellKind::PeepholeDense => single_row_of_kind::<S, N, true, false>(args),
            CellKind::PeepholeDiagonal => single_row_of_kind::<S, N, false, true>(args),
        }
    }
}

/// Does what [`single_row`] does, with the kind of cell as compile-time constants.
///
/// # Safety
/// As for [`single_row`].
#[inline(always)]
unsafe fn single_row_of_kind<S: Simd, const N: usize, const DENSE_PEEPHOLE: bool, const DIAGONAL_PEEPHOLE: bool>(
    args: &SingleRowArgs,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let wx = match args.input.is_null() {
            true => load_panel_gates(args.cell_args.wx, args.cell_args.strides.wx),
            false => gate_products::<S, N, false>(args.input_len, args.input, args.w),
        };
        let uh = gate_products::<S, N, DENSE_PEEPHOLE>(args.recurrent_operand_len, args.recurrent_operand, args.u);
        let z = add_bias_and_products::<S, N, DENSE_PEEPHOLE>(&args.cell_args, wx, uh);
        cell_forward_vectors::<S, N, DENSE_PEEPHOLE, DIAGONAL_PEEPHOLE>(&args.cell_args, z);
    }
}

/// Multiplies a row of `k` elements by the weights of all gates of `N` panels. If `DENSE_PEEPHOLE`, the candidate has
/// no weights: the panels hold no vectors for it, and its products are zero.
///
/// # Safety
/// `k` valid floats at `row`, and `k` rows in each panel of `weights`; otherwise as for [`Simd`].
#[inline(always)]
unsafe fn gate_products<S: Simd, const N: usize, const DENSE_PEEPHOLE: bool>(
    k: usize,
    row: *const f32,
    weights: *const f32,
) -> [[S; N]; PANEL_VECTORS] {
    // SAFETY: guaranteed by the caller, as `k_in < k`.
    unsafe {
        let mut total = [[S::splat(0.0); N]; PANEL_VECTORS];
        let mut start = 0;
        while start < k {
            let mut sums = [[S::splat(0.0); N]; PANEL_VECTORS];
            for k_in in start..k.min(start + DOT_BLOCK) {
                let a = S::splat(*row.add(k_in));
                for n in 0..N {
                    for j in 0..PANEL_VECTORS {
                        if DENSE_PEEPHOLE && j == 2 {
                            continue;
                        }
                        let vector_index = if DENSE_PEEPHOLE { n * 3 + j.min(2) } else { n * PANEL_VECTORS + j };
                        let (panel, column) = (vector_index / PANEL_VECTORS, vector_index % PANEL_VECTORS);
                        let b = S::load(weights.add(((panel * k + k_in) * PANEL_VECTORS + column) * S::LANES));
                        sums[j][n] = a.fma(b, sums[j][n]);
                    }
                }
            }
            total = if start == 0 { sums } else { total.add(sums) };
            start += DOT_BLOCK;
        }
        total
    }
}
