//! The kernels' edges: every instruction set against the scalar definition, with guards around all that is written.

use lstm_core::{
    CellKind,
    arithmetic::{self, BLOCK},
};

use crate::{
    Isa,
    elementwise::ColumnArgs,
    kernels::{Kernels, Strided, TileArgs},
    layer::{GATES, seeing},
    step::{Apart, CellArgs, SoloArgs},
};

const GUARD: f32 = -12345.678;

fn kernels() -> impl Iterator<Item = (Isa, &'static Kernels)> {
    Isa::available().into_iter().map(|isa| (isa, isa.kernels().expect("available")))
}

/// Values of all magnitudes that a product meets, from a small generator.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_769) | 1;
    let mut next = move || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        s >> 8
    };
    (0..n).map(|_| (next() as f32 / 8_388_608.0 - 1.0) * f32::from_bits((next() % 16 + 119) << 23)).collect()
}

#[test]
fn tiles_sum_in_the_specified_order_and_stay_in_bounds() {
    for (isa, kernels) in kernels() {
        let (width, most) = (kernels.panel(), kernels.tiles.len());
        for k in [1, 2, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 160, 256, 257, 300] {
            for rows in [0, 1, 2, 3, most, most + 1, 2 * most + 1, 8, 9, 10, 13] {
                let ldo = width + 5;
                // Row-major, transposed, and blocks of columns apart from one another.
                for (lda, ka, block) in
                    [(k + 3, 1, BLOCK), (1, rows + 2, BLOCK * (rows + 2)), (BLOCK, 1, BLOCK * rows + 7)]
                {
                    let place = |row: usize, k: usize| row * lda + k / BLOCK * block + k % BLOCK * ka;
                    let (a, panel) = (values(place(rows, k) + 1, 1), values(k * width, 2));
                    let mut out = vec![GUARD; rows * ldo + 7];
                    // SAFETY: an available instruction set; the slices have the sizes that the strides say.
                    unsafe {
                        let (a, panel, out) = (a.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
                        let a = Strided { at: a, row: lda, col: ka, block };
                        kernels.rows(rows, TileArgs { ahead: panel, pace: 64, ..TileArgs::new(k, a, panel, out, ldo) });
                    }
                    for (at, &got) in out.iter().enumerate() {
                        let (row, col) = (at / ldo, at % ldo);
                        let want = if row < rows && col < width {
                            arithmetic::dot(k, |k| a[place(row, k)], |k| panel[k * width + col])
                        } else {
                            GUARD
                        };
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa}: k {k}, {rows} rows, at [{row}, {col}]");
                    }
                }
            }
        }
    }
}

#[test]
fn maps_reach_every_element_and_no_further() {
    for (isa, kernels) in kernels() {
        for n in 0..70 {
            let mut x = values(n, n as u32);
            x.iter_mut()
                .zip([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-30, -1e-13, 60.0, -60.0])
                .for_each(|(x, v)| *x = v);
            let check = |name: &str, kernel: &dyn Fn(*mut f32), want: &dyn Fn(f32) -> f32| {
                let mut got = vec![GUARD; n + 20];
                got[10..10 + n].copy_from_slice(&x);
                kernel(got[10..].as_mut_ptr());
                for (k, &got) in got.iter().enumerate() {
                    let want = if (10..10 + n).contains(&k) { want(x[k - 10]) } else { GUARD };
                    assert_eq!(got.to_bits(), want.to_bits(), "{isa}: {name} of {n} at {k}");
                }
            };
            let maps = [
                ("snap", kernels.snap, arithmetic::snap as fn(f32) -> f32),
                ("sigmoid", kernels.sigmoid, arithmetic::sigmoid),
                ("tanh", kernels.tanh, arithmetic::tanh),
            ];
            for (name, kernel, want) in maps {
                // SAFETY: an available instruction set; n elements follow the pointer.
                check(name, &|p| unsafe { kernel(p, n) }, &want);
            }
            // SAFETY: as above.
            check("clip", &|p| unsafe { (kernels.clip)(p, n, 0.25) }, &|v| arithmetic::clip(v, 0.25));
            let (b, c) = (values(n, 5), values(n, 6));
            let mut out = vec![GUARD; n + 20];
            // SAFETY: as above.
            unsafe { (kernels.mul_add)(-2.0, x.as_ptr(), b.as_ptr(), c.as_ptr(), out[10..].as_mut_ptr(), n) };
            for (k, &got) in out.iter().enumerate() {
                let want = match k.checked_sub(10) {
                    Some(k) if k < n => (-2.0 * x[k]).mul_add(b[k], c[k]),
                    _ => GUARD,
                };
                assert_eq!(got.to_bits(), want.to_bits(), "{isa}: mul_add of {n} at {k}");
            }
        }
    }
}

#[test]
fn column_sums_are_products_with_ones() {
    for (isa, kernels) in kernels() {
        let lanes = kernels.lanes;
        for rows in [0, 1, 31, 32, 33, 64, 65, 100] {
            let (ldx, ldy) = (lanes + 3, lanes + 1);
            let (x, y) = (values(rows * ldx, 7), values(rows * ldy, 8));
            for factors in [false, true] {
                let mut out = vec![GUARD; lanes + 2];
                let from = |v: &[f32]| v.as_ptr();
                // SAFETY: an available instruction set; `rows` rows at these distances, and room for `lanes` sums.
                unsafe {
                    let y = if factors { from(&y) } else { std::ptr::null() };
                    let out = out[1..].as_mut_ptr();
                    (kernels.column_sums)(&ColumnArgs { rows, x: from(&x), ldx, y, ldy, out });
                }
                assert_eq!((out[0], out[lanes + 1]), (GUARD, GUARD), "{isa}: {rows} rows");
                for (col, &got) in out[1..=lanes].iter().enumerate() {
                    let term = |r: usize| x[r * ldx + col] * if factors { y[r * ldy + col] } else { 1.0 };
                    let want = arithmetic::dot(rows, |_| 1.0, term);
                    assert_eq!(got.to_bits(), want.to_bits(), "{isa}: {rows} rows, column {col}");
                }
            }
        }
    }
}

#[test]
fn panels_together_and_a_step_in_one_go_are_the_tiles_and_the_cell() {
    for (isa, kernels) in kernels() {
        let (lanes, width) = (kernels.lanes, kernels.panel());
        // Of more panels than a step in one go takes, only the gates are made together.
        for p in 0..kernels.solo.len() + 2 {
            for (cell, n, k) in [
                (CellKind::Fused, 1, p * lanes + 1),
                (CellKind::PeepholeDense, 33, (p + 1) * lanes),
                (CellKind::PeepholeDiagonal, 5, (p + 1) * lanes),
            ] {
                let (panels, units) = (p + 1, p * lanes + lanes.div_ceil(2));
                let padded = panels * lanes;
                let [input, operand, w, u] =
                    [(n, 1), (k, 2), (panels * n * width, 3), (panels * k * width, 4)].map(|(n, seed)| values(n, seed));
                let [bias, peephole, c] =
                    [(panels * width, 5), (3 * padded, 6), (padded, 7)].map(|(n, seed)| values(n, seed));
                // c, h, y without padding, and the gates, each with a guard after it.
                let places = [padded, padded, units, panels * width].map(|len| vec![GUARD; len + 1]);
                let ways = if p < kernels.solo.len() { 4 } else { 2 };
                let mut runs = vec![places; ways];
                for (way, [c_new, h, y, gates]) in runs.iter_mut().enumerate() {
                    let mut sums = [vec![0.0; panels * width], vec![0.0; panels * width]];
                    for (sums, (row, weights)) in sums.iter_mut().zip([(&input, &w), (&operand, &u)]) {
                        for panel in 0..panels {
                            let k = row.len();
                            let (a, out) = (Strided::rows(row.as_ptr(), k), sums[panel * width..].as_mut_ptr());
                            let panel = weights[panel * k * width..].as_ptr();
                            // SAFETY: an available instruction set; one row, and a panel of k rows.
                            unsafe {
                                kernels.rows(1, TileArgs::new(k, a, panel, out, width));
                            }
                        }
                    }
                    // As `Packed` has them: vectors of the gates that see the state, of one panel after the other.
                    let seen = seeing(cell);
                    let mut packed = vec![0.0; u.len()];
                    for (vector, k_in) in
                        (0..panels * seen.len()).flat_map(|vector| (0..k).map(move |k_in| (vector, k_in)))
                    {
                        let at = |panel: usize, column: usize| (panel * k + k_in) * width + column * lanes;
                        let from = at(vector / seen.len(), seen[vector % seen.len()]);
                        packed[at(vector / 4, vector % 4)..][..lanes].copy_from_slice(&u[from..][..lanes]);
                    }
                    let args = |panel: usize, [c_new, h, y, gates]: [*mut f32; 4]| CellArgs {
                        count: if way == 1 { panels } else { 1 },
                        apart: Apart::panels(kernels, width, width, width),
                        x: sums[0][panel * width..].as_ptr(),
                        z: GATES.map(|gate| sums[1][panel * width + gate * lanes..].as_ptr()),
                        bias: bias[panel * width..].as_ptr(),
                        peephole: peephole[panel * 3 * lanes..].as_ptr(),
                        c_old: c[panel * lanes..].as_ptr(),
                        c_new: c_new.wrapping_add(panel * lanes),
                        h: h.wrapping_add(panel * lanes),
                        y: y.wrapping_add(panel * lanes),
                        units: units - panel * lanes,
                        gates: gates.wrapping_add(panel * width),
                        cell,
                        coupled: false,
                        clip: Some(3.0),
                    };
                    let to = [c_new, h, y, gates].map(|place| place.as_mut_ptr());
                    // SAFETY: as above; the places are as long as `panels` panels of one row take.
                    unsafe {
                        if way == 0 {
                            (0..panels).for_each(|panel| (kernels.cell)(&args(panel, to)));
                        } else if way == 1 {
                            (kernels.cell)(&args(0, to));
                        } else {
                            let input = if way == 2 { input.as_ptr() } else { std::ptr::null() };
                            let (cell, operand, u, w) = (args(0, to), operand.as_ptr(), packed.as_ptr(), w.as_ptr());
                            (kernels.solo[p])(&SoloArgs { k, operand, u, cell, n, input, w });
                        }
                    }
                }
                for run in &runs {
                    for (got, want) in run.iter().flatten().zip(runs[0].iter().flatten()) {
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa}: {cell:?}, {panels} panels");
                    }
                    assert!(run.iter().all(|place| place.last() == Some(&GUARD)), "{isa}: {panels} panels");
                }
            }
        }
    }
}
