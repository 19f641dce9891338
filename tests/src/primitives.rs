//! Checks that each primitive of a backend is bit-identical to the scalar definition, on sizes around the block and vector
//! lengths.

use anyhow::{Result, ensure};
use lstm_core::{
    Backend, ConcatAxis, MatrixRef, MatrixShape, QuantizedMatrix, arithmetic,
    quantized::{Format, INT8, INT12, OperandRange},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{activations, cases, compare::check_same_slices};

/// A check of a backend: its name, and the function that runs it.
pub type NamedCheck<B> = (&'static str, fn(&B) -> Result<()>);

/// All checks of primitives.
pub fn checks<B: Backend>() -> Vec<NamedCheck<B>> {
    vec![
        ("upload-download", check_upload_download),
        ("gemm", |b| check_gemm(b, false, false)),
        ("gemm-left-transposed", |b| check_gemm(b, true, false)),
        ("gemm-right-transposed", |b| check_gemm(b, false, true)),
        ("gemm-both-transposed", |b| check_gemm(b, true, true)),
        ("gemm-nan", check_gemm_nan),
        ("gemm-int8", |b| check_gemm_quantized(b, INT8)),
        ("gemm-int12", |b| check_gemm_quantized(b, INT12)),
        ("mul_add", check_mul_add),
        ("snap-clip", check_snap_clip),
        ("select_between", check_select_between),
        ("sigmoid", |b| activations::check_samples(b, activations::Activation::Sigmoid)),
        ("tanh", |b| activations::check_samples(b, activations::Activation::Tanh)),
        ("slice", check_slice),
        ("concat", check_concat),
        ("value-semantics", check_value_semantics),
    ]
}

/// Bits of the guard elements: a NaN with a payload that no computation returns.
const SENTINEL: u32 = 0x7fc5_e47e;

/// Number of guard elements on each side of an output. They must not be overwritten.
const GUARD_LEN: usize = 67;

/// Passes a slice of `len` values in the middle of a larger buffer to `write`, and checks that nothing around the slice
/// changes. Returns the slice.
///
/// # Errors
/// `write` returns an error or overwrites a guard element.
pub fn write_guarded(len: usize, write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Vec<f32>> {
    let mut buffer = vec![f32::from_bits(SENTINEL); len + 2 * GUARD_LEN];
    write(&mut buffer[GUARD_LEN..GUARD_LEN + len])?;
    let guards = buffer[..GUARD_LEN].iter().chain(&buffer[GUARD_LEN + len..]);
    ensure!(guards.clone().all(|v| v.to_bits() == SENTINEL), "values next to the output were overwritten");
    buffer.truncate(GUARD_LEN + len);
    Ok(buffer.split_off(GUARD_LEN))
}

/// Downloads the values of a tensor.
///
/// # Errors
/// The backend returns an error or writes outside of the output.
pub fn download<B: Backend>(b: &B, x: &B::Tensor) -> Result<Vec<f32>> {
    write_guarded(b.shape(x).len(), |out| Ok(pollster::block_on(b.download(x, out))?))
}

/// Random values after `snap`, like the operands of the matrix products in cells.
fn random_values(shape: MatrixShape, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..shape.len()).map(|_| arithmetic::snap(cases::random_value(&mut rng))).collect()
}

fn check_upload_download<B: Backend>(b: &B) -> Result<()> {
    let samples = activations::samples();
    for cols in [1, 2, 3, 17, 64, samples.len()] {
        let shape = MatrixShape::new(samples.len() / cols, cols);
        let tensor = b.upload(shape, &samples[..shape.len()])?;
        ensure!(b.shape(&tensor) == shape, "uploaded a tensor of shape {shape}, got {}", b.shape(&tensor));
        let got = download(b, &tensor)?;
        // NaN payloads must be preserved, because nothing is computed.
        let is_identical = got.iter().zip(&samples).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(is_identical && got.len() == shape.len(), "upload and download changed values of shape {shape}");
    }
    Ok(())
}

fn check_gemm<B: Backend>(b: &B, transpose_a: bool, transpose_b: bool) -> Result<()> {
    for m in [1, 2, 5, 6, 7, 13, 33] {
        for n in [1, 3, 4, 8, 15, 16, 17, 33, 65] {
            for k in [1, 31, 32, 33, 63, 64, 65, 200] {
                check_gemm_of_size(b, [m, n, k], transpose_a, transpose_b)?;
            }
        }
    }
    // Large enough to be split among several threads.
    check_gemm_of_size(b, [130, 260, 100], transpose_a, transpose_b)
}

fn check_gemm_of_size<B: Backend>(b: &B, [m, n, k]: [usize; 3], transpose_a: bool, transpose_b: bool) -> Result<()> {
    let stored_shape =
        |rows, cols, transposed| if transposed { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
    let (shape_a, shape_b) = (stored_shape(m, k, transpose_a), stored_shape(k, n, transpose_b));
    let (data_a, data_b) = (random_values(shape_a, 1), random_values(shape_b, 2));
    let element_at = |data: &[f32], shape: MatrixShape, transposed, i, j| {
        data[if transposed { j * shape.cols + i } else { i * shape.cols + j }]
    };
    let dot_product = |i, j| {
        arithmetic::dot(
            k,
            |p| element_at(&data_a, shape_a, transpose_a, i, p),
            |p| element_at(&data_b, shape_b, transpose_b, p, j),
        )
    };
    let product: Vec<f32> = (0..m * n).map(|index| dot_product(index / n, index % n)).collect();

    let (tensor_a, tensor_b) = (b.upload(shape_a, &data_a)?, b.upload(shape_b, &data_b)?);
    let ref_a = MatrixRef { tensor: &tensor_a, transposed: transpose_a };
    let ref_b = MatrixRef { tensor: &tensor_b, transposed: transpose_b };
    for acc_rows in [0, 1, m] {
        let what = format!("{m} x {k} times {k} x {n}, accumulator of {acc_rows} rows");
        let acc = random_values(MatrixShape::new(acc_rows, n), 3);
        let acc_tensor = (acc_rows > 0).then(|| b.upload(MatrixShape::new(acc_rows, n), &acc)).transpose()?;
        let got = b.gemm(ref_a, ref_b, acc_tensor.as_ref())?;
        ensure!(b.shape(&got) == MatrixShape::new(m, n), "{what}: shape {}", b.shape(&got));
        let add_acc = |(index, &v): (usize, &f32)| if acc.is_empty() { v } else { acc[index % acc.len()] + v };
        let want: Vec<f32> = product.iter().enumerate().map(add_acc).collect();
        check_same_slices(&what, &want, &download(b, &got)?)?;
    }
    Ok(())
}

/// Checks that a NaN affects only its own row and column of a matrix product, even if kernels pad their operands.
fn check_gemm_nan<B: Backend>(b: &B) -> Result<()> {
    for (m, n, k) in [(3, 5, 33), (7, 17, 40), (1, 33, 5)] {
        let (shape_a, shape_b) = (MatrixShape::new(m, k), MatrixShape::new(k, n));
        let (mut data_a, mut data_b) = (random_values(shape_a, 4), random_values(shape_b, 5));
        let (row, col) = (m / 2, n / 2);
        data_a[row * k + k - 1] = f32::NAN;
        data_b[col] = f32::NAN;
        let got =
            download(b, &b.gemm((&b.upload(shape_a, &data_a)?).into(), (&b.upload(shape_b, &data_b)?).into(), None)?)?;
        let dot_product =
            |index: usize| arithmetic::dot(k, |p| data_a[index / n * k + p], |p| data_b[p * n + index % n]);
        check_same_slices("gemm with NaN", &(0..m * n).map(dot_product).collect::<Vec<_>>(), &got)?;
    }
    Ok(())
}

/// Each makes another kind of row from random values: from the number of the value, counted from the last, and the value.
const QUANTIZED_ROWS: [fn(usize, f32) -> f32; 11] = [
    |_, v| v,
    |_, v| v * 0.4,
    |_, v| v * 300.0,
    |_, v| v * 2f32.powi(-25),
    |_, _| 0.0,
    |_, v| 2f32.powi(-40).copysign(v),
    |k, v| if k == 0 { 2f32.powi(126) } else { v },
    |k, v| if k == 0 { f32::from_bits(0x7ef0_0000) } else { v },
    |k, v| if k == 0 { -2f32.powi(127) } else { v },
    |k, v| if k == 0 { f32::NAN } else { v },
    |k, v| if k == 0 { f32::NEG_INFINITY } else { v },
];

/// Checks products with quantized matrices, with numbers of inputs around the lengths of vectors and blocks.
fn check_gemm_quantized<B: Backend>(b: &B, format: Format) -> Result<()> {
    for inputs in [1, 3, 4, 5, 31, 32, 33, 511, 512, 513, 1023, 1024, 1025, 2049] {
        // Two results are large enough for kernels that compute blocks of elements.
        let (rows, cols) = match inputs {
            33 => (6 * QUANTIZED_ROWS.len(), 130),
            1025 => (6 * QUANTIZED_ROWS.len(), 70),
            _ => (QUANTIZED_ROWS.len(), 1 + inputs % 7),
        };
        let (shape_a, shape_w) = (MatrixShape::new(rows, inputs), MatrixShape::new(cols, inputs));
        let (mut a, mut w) = (random_values(shape_a, 19), random_values(shape_w, 20));
        for (a, make) in a.chunks_exact_mut(inputs).zip(QUANTIZED_ROWS.iter().cycle()) {
            a.iter_mut().rev().enumerate().for_each(|(k, v)| *v = arithmetic::snap(make(k, *v)));
        }
        // One row of weights is zero, unless there is only one.
        w[..inputs * (cols / 2).min(1)].fill(0.0);
        let mut q = vec![0; w.len()];
        let rows_of_w = w.chunks_exact(inputs).zip(q.chunks_exact_mut(inputs));
        let scale: Vec<f32> = rows_of_w.map(|(w, q)| format.quantize_weights(w, q)).collect();
        let tensor_a = b.upload(shape_a, &a)?;
        let weights = QuantizedMatrix {
            q: b.upload(shape_w, &q.iter().map(|&q| f32::from(q)).collect::<Vec<f32>>())?,
            scale: b.upload(MatrixShape::new(1, cols), &scale)?,
            format,
        };
        for (range, acc_rows) in
            [OperandRange::Any, OperandRange::Unit].into_iter().flat_map(|range| [0, 1, rows].map(|n| (range, n)))
        {
            let acc_shape = MatrixShape::new(acc_rows, cols);
            let acc = random_values(acc_shape, 21);
            let mut want = match acc_rows {
                0 => vec![0.0; rows * cols],
                _ => acc.repeat(rows / acc_rows),
            };
            for (z, a) in want.chunks_exact_mut(cols).zip(a.chunks_exact(inputs)) {
                format.multiply_row(a, range, &q, &scale, z);
            }
            let acc = (acc_rows > 0).then(|| b.upload(acc_shape, &acc)).transpose()?;
            let got = b.gemm_quantized(&tensor_a, &weights, range, acc.as_ref())?;
            let what = format!("{inputs} inputs, {range:?}, accumulator of {acc_rows} rows");
            ensure!(b.shape(&got) == MatrixShape::new(rows, cols), "{what}: shape {}", b.shape(&got));
            check_same_slices(&what, &want, &download(b, &got)?)?;
        }
    }
    Ok(())
}

fn check_mul_add<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (1, 17), (3, 5), (4, 33), (7, 16), (65, 70)] {
        let full_shape = MatrixShape::new(rows, cols);
        // No operand, one row that is broadcast, or the shape of the result.
        let operand_shapes = [MatrixShape::new(0, cols), MatrixShape::new(1, cols), full_shape];
        let a = random_values(full_shape, 6);
        let tensor_a = b.upload(full_shape, &a)?;
        for (shape_b, shape_c) in
            operand_shapes.iter().flat_map(|shape_b| operand_shapes.map(|shape_c| (*shape_b, shape_c)))
        {
            let (x, y) = (random_values(shape_b, 7), random_values(shape_c, 8));
            let tensor =
                |shape: MatrixShape, data: &[f32]| (!shape.is_empty()).then(|| b.upload(shape, data)).transpose();
            let (tensor_x, tensor_y) = (tensor(shape_b, &x)?, tensor(shape_c, &y)?);
            for alpha in [1.0, -1.0, 0.75] {
                let want = |index: usize| {
                    let element_of = |v: &[f32]| (!v.is_empty()).then(|| v[index % v.len()]);
                    let (a, b) = (alpha * a[index], element_of(&x).unwrap_or(1.0));
                    element_of(&y).map_or(a * b, |c| a.mul_add(b, c))
                };
                let want: Vec<f32> = (0..full_shape.len()).map(want).collect();
                let got = download(b, &b.mul_add(alpha, &tensor_a, tensor_x.as_ref(), tensor_y.as_ref())?)?;
                check_same_slices(&format!("{alpha} * {full_shape} * {shape_b} + {shape_c}"), &want, &got)?;
            }
        }
    }
    Ok(())
}

fn check_snap_clip<B: Backend>(b: &B) -> Result<()> {
    let x = activations::samples();
    let tensor = b.upload(MatrixShape::new(1, x.len()), &x)?;
    let snapped: Vec<f32> = x.iter().map(|&v| arithmetic::snap(v)).collect();
    check_same_slices("snap", &snapped, &download(b, &b.snap(tensor.clone())?)?)?;
    for bound in [0.25, 1.0, 3e4] {
        let clipped: Vec<f32> = x.iter().map(|&v| arithmetic::clip(v, bound)).collect();
        check_same_slices(&format!("clip to {bound}"), &clipped, &download(b, &b.clip(tensor.clone(), bound)?)?)?;
    }
    Ok(())
}

/// Checks `select_between` on values inside and outside of the bounds, equal to a bound, infinite and NaN.
fn check_select_between<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (3, 5), (4, 33), (7, 16)] {
        let full_shape = MatrixShape::new(rows, cols);
        let (x, mut by) = (random_values(full_shape, 17), random_values(full_shape, 18));
        let (low, high): (Vec<f32>, Vec<f32>) = (0..cols).map(|k| (-0.5 - k as f32 / 64.0, 0.25)).unzip();
        let special_values = [f32::NAN, 0.25, low[cols - 1], f32::INFINITY, -0.0];
        by.iter_mut().rev().zip(special_values).for_each(|(by, v)| *by = v);
        let want = |(k, &x): (usize, &f32)| {
            if by[k] <= low[k % cols] || by[k] >= high[k % cols] { 0.0 } else { x }
        };
        let want: Vec<f32> = x.iter().enumerate().map(want).collect();
        let row = MatrixShape::new(1, cols);
        let (tensor_x, tensor_by) = (b.upload(full_shape, &x)?, b.upload(full_shape, &by)?);
        let got = b.select_between(tensor_x.clone(), &tensor_by, &b.upload(row, &low)?, &b.upload(row, &high)?)?;
        check_same_slices(&format!("select_between of {full_shape}"), &want, &download(b, &got)?)?;
        check_same_slices("clone of an overwritten tensor", &x, &download(b, &tensor_x)?)?;
    }
    Ok(())
}

fn check_slice<B: Backend>(b: &B) -> Result<()> {
    let shape = MatrixShape::new(9, 37);
    let data = random_values(shape, 9);
    let tensor = b.upload(shape, &data)?;
    for rows in [0..9, 0..1, 8..9, 2..7] {
        for cols in [0..37, 0..1, 36..37, 1..16, 16..33, 5..8] {
            let want: Vec<f32> =
                rows.clone().flat_map(|r| data[r * 37 + cols.start..r * 37 + cols.end].iter().copied()).collect();
            let part = b.slice(&tensor, rows.clone(), cols.clone())?;
            ensure!(
                b.shape(&part) == MatrixShape::new(rows.len(), cols.len()),
                "the slice has shape {}",
                b.shape(&part)
            );
            check_same_slices(&format!("rows {rows:?}, columns {cols:?}"), &want, &download(b, &part)?)?;
        }
    }
    Ok(())
}

fn check_concat<B: Backend>(b: &B) -> Result<()> {
    let upload_random = |rows, cols, seed| {
        let shape = MatrixShape::new(rows, cols);
        let data = random_values(shape, seed);
        Ok::<_, anyhow::Error>((shape, b.upload(shape, &data)?, data))
    };
    let tensors = |parts: &[(MatrixShape, B::Tensor, Vec<f32>)]| parts.iter().map(|p| p.1.clone()).collect::<Vec<_>>();
    for count in 1..4 {
        let parts = [upload_random(1, 17, 10)?, upload_random(4, 17, 11)?, upload_random(2, 17, 12)?];
        let parts = &parts[..count];
        let want: Vec<f32> = parts.iter().flat_map(|p| p.2.iter().copied()).collect();
        check_same_slices("concat rows", &want, &download(b, &b.concat(ConcatAxis::Rows, &tensors(parts))?)?)?;

        let parts = [upload_random(3, 1, 13)?, upload_random(3, 16, 14)?, upload_random(3, 5, 15)?];
        let parts = &parts[..count];
        let row = |r: usize| parts.iter().flat_map(move |p| p.2[r * p.0.cols..(r + 1) * p.0.cols].iter().copied());
        let want: Vec<f32> = (0..3).flat_map(row).collect();
        check_same_slices("concat columns", &want, &download(b, &b.concat(ConcatAxis::Cols, &tensors(parts))?)?)?;
    }
    Ok(())
}

/// Checks that the clones of a tensor do not change when a primitive overwrites an argument that it takes by value, although
/// clones share memory.
fn check_value_semantics<B: Backend>(b: &B) -> Result<()> {
    let (shape, data) = (MatrixShape::new(5, 19), random_values(MatrixShape::new(5, 19), 16));
    let original = b.upload(shape, &data)?;
    b.sigmoid(original.clone())?;
    b.tanh(original.clone())?;
    b.clip(original.clone(), 0.5)?;
    b.snap(original.clone())?;
    let copy = b.slice(&original, 0..5, 0..19)?;
    let concatenated = b.concat(ConcatAxis::Rows, std::slice::from_ref(&original))?;
    b.tanh(copy)?;
    b.tanh(concatenated)?;
    check_same_slices("tensor whose clones were overwritten", &data, &download(b, &original)?)
}
