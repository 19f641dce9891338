//! The kernel for a whole time step of one sequence in a small quantized layer.

#![allow(clippy::needless_range_loop, reason = "arrays of vectors stay in registers when plain constants index them")]

use lstm_core::{
    CellKind,
    quantized::{OperandRange, ScaleTable},
};

use crate::kernel::{
    cell::{CellArgs, cell_forward_vectors, load_panel_gates},
    quantized::{
        integers::Integers,
        quantize::quantize_row,
        tile::{BLOCK_WORDS, QuantizedPanel},
    },
    simd::Simd,
    table::PANEL_VECTORS,
};

/// Arguments of a [`QuantizedSingleRowKernel`].
pub(crate) struct QuantizedSingleRowArgs<'a> {
    /// The constants of the layer's format.
    pub(crate) table: &'a ScaleTable,
    /// Number of elements of `recurrent_operand`.
    pub(crate) recurrent_operand_len: usize,
    /// The row by which the recurrent weights are multiplied: `h`, or `c` in the dense peephole cell.
    pub(crate) recurrent_operand: *const f32,
    /// The range of `recurrent_operand`.
    pub(crate) range: OperandRange,
    /// The first panel of recurrent weights. The others follow.
    pub(crate) u: QuantizedPanel,
    /// Arguments of the cell kernel, whose items are the panels. `uh` and `item_count` are not used.
    pub(crate) cell_args: CellArgs,
    /// Number of elements of `input`.
    pub(crate) input_len: usize,
    /// The row by which the input weights are multiplied. If null, `cell_args.wx` already holds the sum of the bias and
    /// the products.
    pub(crate) input: *const f32,
    /// The first panel of input weights. The others follow.
    pub(crate) w: QuantizedPanel,
    /// Memory for the quantized input and recurrent operand; see
    /// [`IntegerRows::q`](super::tile::IntegerRows::q).
    pub(crate) scratch: [*mut i32; 2],
}

/// A kernel that computes a whole time step of one row for a fixed number of panels.
///
/// # Safety
/// The pointers are valid for what [`QuantizedSingleRowArgs`] describes.
pub(crate) type QuantizedSingleRowKernel = unsafe fn(&QuantizedSingleRowArgs<'_>);

/// A [`QuantizedSingleRowKernel`] for `N` panels. It splits each sum into `SPLITS` sums, as the tile kernel does.
///
/// # Safety
/// As for [`QuantizedSingleRowKernel`] and [`Integers`].
#[inline(always)]
pub(crate) unsafe fn quantized_single_row<
    I: Integers,
    const ELEMENT_BYTES: usize,
    const N: usize,
    const SPLITS: usize,
>(
    args: &QuantizedSingleRowArgs<'_>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (cell, [quantized_input, quantized_operand]) = (&args.cell_args, args.scratch);
        let z = if args.input.is_null() {
            load_panel_gates(cell.wx, cell.strides.wx)
        } else {
            let bias = load_panel_gates(cell.bias, PANEL_VECTORS * I::Floats::LANES);
            let factor = quantize_row::<I, ELEMENT_BYTES>(
                args.input,
                args.input_len,
                OperandRange::Any,
                args.table,
                quantized_input,
            );
            add_gate_products::<I, ELEMENT_BYTES, N, SPLITS>(bias, quantized_input, factor, args.w)
        };
        let (operand, len) = (args.recurrent_operand, args.recurrent_operand_len);
        let factor = quantize_row::<I, ELEMENT_BYTES>(operand, len, args.range, args.table, quantized_operand);
        let z = add_gate_products::<I, ELEMENT_BYTES, N, SPLITS>(z, quantized_operand, factor, args.u);
        match cell.kind {
            CellKind::Fused | CellKind::Unfused => cell_forward_vectors::<_, N, false, false>(cell, z),
            CellKind::PeepholeDense => cell_forward_vectors::<_, N, true, false>(cell, z),
            CellKind::PeepholeDiagonal => cell_forward_vectors::<_, N, false, true>(cell, z),
        }
    }
}

/// Adds the products of a quantized row and the weights of all gates of `N` panels, the first of which is `panel`.
///
/// # Safety
/// As for [`quantized_single_row`].
#[inline(always)]
unsafe fn add_gate_products<I: Integers, const ELEMENT_BYTES: usize, const N: usize, const SPLITS: usize>(
    mut z: [[I::Floats; N]; PANEL_VECTORS],
    row: *const i32,
    factor: f32,
    panel: QuantizedPanel,
) -> [[I::Floats; N]; PANEL_VECTORS] {
    let (lanes, width) = (I::Floats::LANES, PANEL_VECTORS * I::Floats::LANES);
    let (words, blocks) = (panel.words, panel.words.div_ceil(BLOCK_WORDS));
    // SAFETY: guaranteed by the caller, as `k < words`.
    unsafe {
        let factor = I::Floats::splat(factor);
        for block in 0..blocks {
            let mut sums = [[[I::splat(0); N]; PANEL_VECTORS]; SPLITS];
            for n in 0..N {
                for j in 0..PANEL_VECTORS {
                    sums[0][j][n] = I::load(panel.starts.add((n * blocks + block) * width + j * lanes));
                }
            }
            let (mut k, end) = (block * BLOCK_WORDS, words.min((block + 1) * BLOCK_WORDS));
            while k + SPLITS <= end {
                for split in 0..SPLITS {
                    add_products::<I, ELEMENT_BYTES, N>(row, k + split, panel, &mut sums[split]);
                }
                k += SPLITS;
            }
            while k < end {
                add_products::<I, ELEMENT_BYTES, N>(row, k, panel, &mut sums[0]);
                k += 1;
            }
            for n in 0..N {
                for j in 0..PANEL_VECTORS {
                    let mut sum = sums[0][j][n];
                    for split in 1..SPLITS {
                        sum = sum.add(sums[split][j][n]);
                    }
                    let scale = I::Floats::load(panel.scales.add(n * width + j * lanes)).mul(factor);
                    z[j][n] = sum.to_floats().fma(scale, z[j][n]);
                }
            }
        }
    }
    z
}

/// Adds the products of word `k` of a row and of `N` panels, the first of which is `panel`.
///
/// # Safety
/// As for [`quantized_single_row`], with `k < panel.words`.
#[inline(always)]
unsafe fn add_products<I: Integers, const ELEMENT_BYTES: usize, const N: usize>(
    row: *const i32,
    k: usize,
    panel: QuantizedPanel,
    sums: &mut [[I; N]; PANEL_VECTORS],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let a = I::splat(*row.add(k));
        for n in 0..N {
            for j in 0..PANEL_VECTORS {
                let column = (n * panel.words + k) * PANEL_VECTORS + j;
                sums[j][n] = sums[j][n].dot::<ELEMENT_BYTES>(a, I::load(panel.weights.add(column * I::Floats::LANES)));
            }
        }
    }
}
