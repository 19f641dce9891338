//! Tests of the quantized kernels of every available instruction set against the definition.

use lstm_core::{
    Precision, arithmetic,
    quantized::{Format, ONE_BITS, OperandRange},
};

use super::{IntegerRows, QuantizeArgs, QuantizedKernels, QuantizedTileArgs};
use crate::{Isa, layer::quantized::QuantizedPanels};

const RANGES: [OperandRange; 2] = [OperandRange::Any, OperandRange::Unit];
/// Value that the tests write around the outputs. No kernel computes this value.
const GUARD_VALUE: f32 = -12345.678;

/// The available instruction sets and their kernels for both precisions.
fn kernels() -> impl Iterator<Item = (Isa, Format, &'static QuantizedKernels)> {
    let precisions = [Precision::Int8, Precision::Int12];
    let isas = Isa::available().into_iter().flat_map(move |isa| precisions.map(|precision| (isa, precision)));
    isas.map(|(isa, p)| (isa, p.format().unwrap(), isa.quantized_kernels(p).unwrap()))
}

/// Pseudo-random numbers below 2^24.
fn random_numbers(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

/// Pseudo-random values in [-1, 1).
fn random_values(n: usize, seed: u32) -> Vec<f32> {
    let mut next = random_numbers(seed);
    (0..n).map(|_| next() as f32 / 8_388_608.0 - 1.0).collect()
}

/// A row scale of a magnitude as bits, so that NaN equals itself.
fn bits(scale: lstm_core::quantized::RowScale) -> [u32; 2] {
    [scale.to_integer.to_bits(), scale.from_integer.to_bits()]
}

#[test]
fn row_scales_match_the_definition() {
    for format in [Precision::Int8, Precision::Int12].map(|p| p.format().unwrap()) {
        let table = format.scale_table();
        let edges = (0..=u32::from(u8::MAX) * 8 + 7).flat_map(|k| {
            let edge = (k << 20) & 0x7fff_ffff;
            [edge.wrapping_sub(1) & 0x7fff_ffff, edge, edge + 1]
        });
        let mut next = random_numbers(1);
        let random: Vec<_> = (0..10_000).map(|_| next() << 7).collect();
        let mut scales = std::collections::BTreeSet::new();
        for magnitude in edges.chain(random).chain([0, ONE_BITS, arithmetic::SNAP_THRESHOLD_BITS, 0x7f80_0000]) {
            for range in RANGES {
                let expected = bits(format.row_scale(magnitude, range));
                assert_eq!(bits(table.row_scale(magnitude, range)), expected, "{magnitude:#x} {range:?}");
                scales.insert(expected);
            }
        }
        assert!(scales.len() > 1000, "{}", scales.len());
    }
}

#[test]
fn quantized_rows_match_the_definition() {
    for (isa, format, kernels) in kernels() {
        let table = format.scale_table();
        let per_word = 4 / kernels.bytes;
        for k in [1, 2, 3, 4, 7, 8, 15, 16, 17, 24, 31, 33, 63, 64, 65, 130] {
            let ldx = k + 3;
            let mut rows = Vec::new();
            for (row, scale) in [1.0, 0.0, 0.37, 3.0, 1e-20, 1e20, 1.0, 1.0, 1.0, f32::MAX].into_iter().enumerate() {
                let mut values = random_values(ldx, row as u32 + k as u32);
                values.iter_mut().for_each(|v| *v = arithmetic::snap(*v * scale));
                match row {
                    6 => values[k / 2] = f32::NAN,
                    7 => values[k - 1] = f32::NEG_INFINITY,
                    8 => values[k / 3] = -1.0,
                    _ => {}
                }
                // What follows a row must not be read.
                values[k..].fill(f32::NAN);
                rows.extend(values);
            }
            let (count, stride) = (rows.len() / ldx, kernels.row_stride(k));
            for range in RANGES {
                let (mut q, mut factors) = (vec![0i32; count * stride], vec![GUARD_VALUE; count + 1]);
                let to = IntegerRows { q: q.as_mut_ptr(), stride, factors: factors.as_mut_ptr() };
                let args = QuantizeArgs { rows: count, k, x: rows.as_ptr(), ldx, range, table: &table, to };
                // SAFETY: the processor supports the kernels; the slices have the sizes that follow from the strides.
                unsafe { (kernels.quantize_rows)(&args) };
                assert_eq!(factors[count], GUARD_VALUE);
                for row in 0..count {
                    let mut expected = vec![0; k];
                    let values = &rows[row * ldx..][..k];
                    let magnitude = values.iter().fold(0, |max, v| v.abs().to_bits().max(max));
                    let scale = format.row_scale(magnitude, range);
                    if scale.to_integer != 0.0 {
                        let to_int = |&v| lstm_core::quantized::to_int(v, scale.to_integer);
                        expected = values.iter().map(to_int).collect();
                    }
                    assert!(expected.iter().all(|q| i32::from(*q).abs() <= format.max));
                    assert_eq!(factors[row].to_bits(), scale.from_integer.to_bits(), "{isa} {k} row {row}");
                    let words = &q[row * stride..];
                    let integer = |n: usize| {
                        let bytes = words[n / per_word].to_ne_bytes();
                        match kernels.bytes {
                            1 => i16::from(bytes[n % 4].wrapping_sub(kernels.activation_offset as u8) as i8),
                            _ => i16::from_ne_bytes([bytes[n % 2 * 2], bytes[n % 2 * 2 + 1]]),
                        }
                    };
                    let actual: Vec<_> = (0..k).map(integer).collect();
                    assert_eq!(actual, expected, "{isa} {k} row {row} {range:?}");
                }
            }
        }
    }
}

/// The sizes are around those of words, vectors and blocks.
#[test]
fn tiles_match_the_definition_and_stay_in_bounds() {
    for (isa, format, kernels) in kernels() {
        let (width, max_rows) = (kernels.kernels.panel_width(), kernels.tile_kernels.len());
        let table = format.scale_table();
        for k in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 2049] {
            for is_extreme in [false, true] {
                let mut next = random_numbers(k as u32);
                let q: Vec<i16> = (0..width * k)
                    .map(|_| match is_extreme {
                        true if !next().is_multiple_of(64) => format.max as i16,
                        true => -format.max as i16,
                        false => (next() as i32 % (2 * format.max + 1) - format.max) as i16,
                    })
                    .collect();
                let scale = random_values(width, 3);
                let matrix = lstm_core::QuantizedRows { q, scale: &scale, format };
                let panels = QuantizedPanels::new(kernels, &matrix, 1, |_, j| Some(j)).unwrap();
                for rows in [0, 1, 2, 3, max_rows, max_rows + 1, 2 * max_rows + 1] {
                    if k > 600 && isa == Isa::Plain && rows > 3 {
                        continue;
                    }
                    let mut x = random_values(rows * k, 4);
                    if is_extreme {
                        x.iter_mut().for_each(|v| *v = if *v > -0.9 { 1.0 } else { -1.0 });
                    }
                    let stride = kernels.row_stride(k);
                    let (mut words, mut factors) = (vec![0; rows * stride], vec![0.0; rows]);
                    let to = IntegerRows { q: words.as_mut_ptr(), stride, factors: factors.as_mut_ptr() };
                    let range = OperandRange::Unit;
                    let args = QuantizeArgs { rows, k, x: x.as_ptr(), ldx: k, range, table: &table, to };
                    // Each row has its own addend, or all have the first.
                    for addend_stride in [0, width + 1] {
                        let (ldo, addend) = (width + 5, random_values(rows.max(1) * (width + 1), 5));
                        let mut out = vec![GUARD_VALUE; rows * ldo + 7];
                        // SAFETY: the processor supports the kernels; the slices have the sizes that follow from the
                        // strides.
                        unsafe {
                            (kernels.quantize_rows)(&args);
                            let panel = panels.panel(0);
                            let (addend, out) = (addend.as_ptr(), out.as_mut_ptr());
                            let prefetch = std::ptr::null();
                            let args = QuantizedTileArgs { rows: to, panel, addend, addend_stride, out, ldo, prefetch };
                            kernels.multiply_panel(rows, args, panel.weights);
                        }
                        for row in 0..rows {
                            let mut expected = addend[row * addend_stride..][..width].to_vec();
                            format.multiply_row(&x[row * k..][..k], range, &matrix.q, &scale, &mut expected);
                            let actual = &out[row * ldo..][..ldo];
                            for (col, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                                assert_eq!(actual.to_bits(), expected.to_bits(), "{isa} {k} {rows} [{row}, {col}]");
                            }
                            assert!(actual[width..].iter().all(|v| *v == GUARD_VALUE), "{isa} {k} {rows}");
                        }
                        assert!(out[rows * ldo..].iter().all(|v| *v == GUARD_VALUE), "{isa} {k} {rows}");
                    }
                }
            }
        }
    }
}
