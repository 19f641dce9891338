//! Tests of the kernels of every available instruction set against the scalar definition. Guard values around each
//! output detect writes out of bounds.

#[cfg(target_arch = "x86_64")]
mod speed;

use lstm_core::{
    CellKind,
    arithmetic::{self, DOT_BLOCK},
};

use crate::{
    Isa,
    kernel::{
        cell::{CellArgs, CellStrides},
        elementwise::ColumnSumArgs,
        single_row::SingleRowArgs,
        strided::StridedMatrix,
        table::Kernels,
        tile::TileArgs,
    },
    layer::{ALL_GATES, recurrent_gates},
};

/// Value that the tests write around the outputs. No kernel computes this value.
const GUARD_VALUE: f32 = -12345.678;

/// The available instruction sets and their kernels.
fn kernels() -> impl Iterator<Item = (Isa, &'static Kernels)> {
    Isa::available().into_iter().map(|isa| (isa, isa.kernels().expect("available")))
}

/// Pseudo-random values of various magnitudes.
fn random_values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    let mut next_random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    (0..n)
        .map(|_| (next_random() as f32 / 8_388_608.0 - 1.0) * f32::from_bits((next_random() % 16 + 119) << 23))
        .collect()
}

#[test]
fn tiles_match_dot_and_stay_in_bounds() {
    for (isa, kernels) in kernels() {
        let (width, max_rows) = (kernels.panel_width(), kernels.tile_kernels.len());
        for k in [1, 2, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 160, 256, 257, 300] {
            for rows in [0, 1, 2, 3, max_rows, max_rows + 1, 2 * max_rows + 1, 8, 9, 10, 13] {
                let ldo = width + 5;
                // Row-major, transposed, and in blocks of columns.
                for (row_stride, col_stride, block_stride) in
                    [(k + 3, 1, DOT_BLOCK), (1, rows + 2, DOT_BLOCK * (rows + 2)), (DOT_BLOCK, 1, DOT_BLOCK * rows + 7)]
                {
                    let element_index = |row: usize, k: usize| {
                        row * row_stride + k / DOT_BLOCK * block_stride + k % DOT_BLOCK * col_stride
                    };
                    let (a, panel) = (random_values(element_index(rows, k) + 1, 1), random_values(k * width, 2));
                    let mut out = vec![GUARD_VALUE; rows * ldo + 7];
                    // SAFETY: the processor supports the kernels; the slices have the sizes that follow from the
                    // strides.
                    unsafe {
                        let (a, panel, out) = (a.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
                        let a = StridedMatrix { ptr: a, row_stride, col_stride, block_stride };
                        let args = TileArgs::new(k, a, panel, out, ldo);
                        kernels.multiply_panel(rows, TileArgs { prefetch_ptr: panel, prefetch_stride: 64, ..args });
                    }
                    for (offset, &actual) in out.iter().enumerate() {
                        let (row, col) = (offset / ldo, offset % ldo);
                        let expected = if row < rows && col < width {
                            arithmetic::dot(k, |k| a[element_index(row, k)], |k| panel[k * width + col])
                        } else {
                            GUARD_VALUE
                        };
                        assert_eq!(
                            actual.to_bits(),
                            expected.to_bits(),
                            "{isa}: k {k}, {rows} rows, at [{row}, {col}]"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn elementwise_kernels_match_scalar_functions_and_stay_in_bounds() {
    for (isa, kernels) in kernels() {
        for n in 0..70 {
            let mut x = random_values(n, n as u32);
            x.iter_mut()
                .zip([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-30, -1e-13, 60.0, -60.0])
                .for_each(|(x, v)| *x = v);
            let check_kernel = |name: &str, kernel: &dyn Fn(*mut f32), expected: &dyn Fn(f32) -> f32| {
                let mut actual = vec![GUARD_VALUE; n + 20];
                actual[10..10 + n].copy_from_slice(&x);
                kernel(actual[10..].as_mut_ptr());
                for (k, &actual) in actual.iter().enumerate() {
                    let expected = if (10..10 + n).contains(&k) { expected(x[k - 10]) } else { GUARD_VALUE };
                    assert_eq!(actual.to_bits(), expected.to_bits(), "{isa}: {name} of {n} at {k}");
                }
            };
            let unary_kernels = [
                ("snap", kernels.snap, arithmetic::snap as fn(f32) -> f32),
                ("sigmoid", kernels.sigmoid, arithmetic::sigmoid),
                ("tanh", kernels.tanh, arithmetic::tanh),
            ];
            for (name, kernel, expected) in unary_kernels {
                // SAFETY: the processor supports the kernels; `n` elements follow the pointer.
                check_kernel(name, &|p| unsafe { kernel(p, n) }, &expected);
            }
            // SAFETY: as for the kernels above.
            check_kernel("clip", &|p| unsafe { (kernels.clip)(p, n, 0.25) }, &|v| arithmetic::clip(v, 0.25));
            let (b, c) = (random_values(n, 5), random_values(n, 6));
            let mut out = vec![GUARD_VALUE; n + 20];
            // SAFETY: the processor supports the kernels; each slice has `n` elements.
            unsafe { (kernels.mul_add)(-2.0, x.as_ptr(), b.as_ptr(), c.as_ptr(), out[10..].as_mut_ptr(), n) };
            for (k, &actual) in out.iter().enumerate() {
                let expected = match k.checked_sub(10) {
                    Some(k) if k < n => (-2.0 * x[k]).mul_add(b[k], c[k]),
                    _ => GUARD_VALUE,
                };
                assert_eq!(actual.to_bits(), expected.to_bits(), "{isa}: mul_add of {n} at {k}");
            }
        }
    }
}

#[test]
fn column_sums_match_dot_with_ones() {
    for (isa, kernels) in kernels() {
        let lanes = kernels.lanes;
        for rows in [0, 1, 31, 32, 33, 64, 65, 100] {
            let (ldx, ldy) = (lanes + 3, lanes + 1);
            let (x, y) = (random_values(rows * ldx, 7), random_values(rows * ldy, 8));
            for with_factors in [false, true] {
                let mut out = vec![GUARD_VALUE; lanes + 2];
                // SAFETY: the processor supports the kernels; the slices have `rows` rows with these leading
                // dimensions, and `out` has `lanes` elements.
                unsafe {
                    let y = if with_factors { y.as_ptr() } else { std::ptr::null() };
                    let out = out[1..].as_mut_ptr();
                    (kernels.column_sums)(&ColumnSumArgs { rows, x: x.as_ptr(), ldx, y, ldy, out });
                }
                assert_eq!((out[0], out[lanes + 1]), (GUARD_VALUE, GUARD_VALUE), "{isa}: {rows} rows");
                for (col, &actual) in out[1..=lanes].iter().enumerate() {
                    let term = |r: usize| x[r * ldx + col] * if with_factors { y[r * ldy + col] } else { 1.0 };
                    let expected = arithmetic::dot(rows, |_| 1.0, term);
                    assert_eq!(actual.to_bits(), expected.to_bits(), "{isa}: {rows} rows, column {col}");
                }
            }
        }
    }
}

#[test]
fn cells_of_many_panels_and_single_row_steps_match_one_panel_at_a_time() {
    for (isa, kernels) in kernels() {
        let (lanes, width) = (kernels.lanes, kernels.panel_width());
        // With more panels than the single-row kernels support, only the cell kernel is tested.
        for p in 0..kernels.single_row_kernels.len() + 2 {
            for (cell, n, k) in [
                (CellKind::Fused, 1, p * lanes + 1),
                (CellKind::PeepholeDense, 33, (p + 1) * lanes),
                (CellKind::PeepholeDiagonal, 5, (p + 1) * lanes),
            ] {
                let (panels, units) = (p + 1, p * lanes + lanes.div_ceil(2));
                let padded_units = panels * lanes;
                let [input, recurrent_operand, w, u] =
                    [(n, 1), (k, 2), (panels * n * width, 3), (panels * k * width, 4)]
                        .map(|(n, seed)| random_values(n, seed));
                let [bias, peephole, c] = [(panels * width, 5), (3 * padded_units, 6), (padded_units, 7)]
                    .map(|(n, seed)| random_values(n, seed));
                // Outputs: c, h, y without padding, and the gates, each followed by a guard.
                let outputs = [padded_units, padded_units, units, panels * width].map(|len| vec![GUARD_VALUE; len + 1]);
                // Methods: the cell kernel one panel at a time, all panels at once, and the single-row kernel with and
                // without the input products.
                let method_count = if p < kernels.single_row_kernels.len() { 4 } else { 2 };
                let mut outputs_per_method = vec![outputs; method_count];
                for (method, [c_new, h, y, gates]) in outputs_per_method.iter_mut().enumerate() {
                    let mut sums = [vec![0.0; panels * width], vec![0.0; panels * width]];
                    for (sums, (row, weights)) in sums.iter_mut().zip([(&input, &w), (&recurrent_operand, &u)]) {
                        for panel in 0..panels {
                            let k = row.len();
                            let a = StridedMatrix::row_major(row.as_ptr(), k);
                            let out = sums[panel * width..].as_mut_ptr();
                            let panel = weights[panel * k * width..].as_ptr();
                            // SAFETY: the processor supports the kernels; one row, and a panel of `k` rows.
                            unsafe {
                                kernels.multiply_panel(1, TileArgs::new(k, a, panel, out, width));
                            }
                        }
                    }
                    // Packed as in `PackedLayer`: the vectors of all gates that have recurrent weights, without gaps.
                    let gate_indices = recurrent_gates(cell);
                    let mut packed_u = vec![0.0; u.len()];
                    for (vector_index, k_in) in (0..panels * gate_indices.len())
                        .flat_map(|vector_index| (0..k).map(move |k_in| (vector_index, k_in)))
                    {
                        let offset = |panel: usize, column: usize| (panel * k + k_in) * width + column * lanes;
                        let source_offset =
                            offset(vector_index / gate_indices.len(), gate_indices[vector_index % gate_indices.len()]);
                        packed_u[offset(vector_index / 4, vector_index % 4)..][..lanes]
                            .copy_from_slice(&u[source_offset..][..lanes]);
                    }
                    let args = |panel: usize, [c_new, h, y, gates]: [*mut f32; 4]| CellArgs {
                        item_count: if method == 1 { panels } else { 1 },
                        strides: CellStrides::for_panels(kernels, width, width, width),
                        wx: sums[0][panel * width..].as_ptr(),
                        uh: ALL_GATES.map(|gate| sums[1][panel * width + gate * lanes..].as_ptr()),
                        bias: bias[panel * width..].as_ptr(),
                        peephole: peephole[panel * 3 * lanes..].as_ptr(),
                        c_old: c[panel * lanes..].as_ptr(),
                        c_new: c_new.wrapping_add(panel * lanes),
                        h: h.wrapping_add(panel * lanes),
                        y: y.wrapping_add(panel * lanes),
                        units: units - panel * lanes,
                        gates: gates.wrapping_add(panel * width),
                        kind: cell,
                        coupled: false,
                        clip: Some(3.0),
                    };
                    let outputs = [c_new, h, y, gates].map(|output| output.as_mut_ptr());
                    // SAFETY: the processor supports the kernels; the outputs are as long as `panels` panels of one
                    // row.
                    unsafe {
                        if method == 0 {
                            (0..panels).for_each(|panel| (kernels.cell_forward)(&args(panel, outputs)));
                        } else if method == 1 {
                            (kernels.cell_forward)(&args(0, outputs));
                        } else {
                            (kernels.single_row_kernels[p])(&SingleRowArgs {
                                recurrent_operand: recurrent_operand.as_ptr(),
                                recurrent_operand_len: k,
                                u: packed_u.as_ptr(),
                                cell_args: args(0, outputs),
                                input: if method == 2 { input.as_ptr() } else { std::ptr::null() },
                                input_len: n,
                                w: w.as_ptr(),
                            });
                        }
                    }
                }
                for method_outputs in &outputs_per_method {
                    for (actual, expected) in
                        method_outputs.iter().flatten().zip(outputs_per_method[0].iter().flatten())
                    {
                        assert_eq!(actual.to_bits(), expected.to_bits(), "{isa}: {cell:?}, {panels} panels");
                    }
                    assert!(
                        method_outputs.iter().all(|output| output.last() == Some(&GUARD_VALUE)),
                        "{isa}: {panels} panels"
                    );
                }
            }
        }
    }
}
