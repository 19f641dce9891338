//! Checks that each primitive of a backend is bit-identical to the scalar definition, on sizes around the block and vector
//! lengths.

use anyhow::{Result, ensure};
use lstm_core::{Backend, ConcatAxis, MatrixRef, MatrixShape, arithmetic};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{activations, cases, compare::same_slices};

/// Name and function of a check.
pub type Check<B> = (&'static str, fn(&B) -> Result<()>);

/// All checks.
pub fn checks<B: Backend>() -> Vec<Check<B>> {
    vec![
        ("upload-download", upload_download),
        ("gemm", |b| gemm(b, false, false)),
        ("gemm-left-transposed", |b| gemm(b, true, false)),
        ("gemm-right-transposed", |b| gemm(b, false, true)),
        ("gemm-both-transposed", |b| gemm(b, true, true)),
        ("gemm-nan", gemm_nan),
        ("mul_add", mul_add),
        ("snap-clip", snap_clip),
        ("select_between", select_between),
        ("sigmoid", |b| activations::check_samples(b, activations::Activation::Sigmoid)),
        ("tanh", |b| activations::check_samples(b, activations::Activation::Tanh)),
        ("slice", slice),
        ("concat", concat),
        ("value-semantics", value_semantics),
    ]
}

/// A NaN with a payload that no computation returns.
const SENTINEL: u32 = 0x7fc5_e47e;

/// Number of guard elements on each side of an output.
const GUARD: usize = 67;

/// Passes a slice of `len` values in the middle of a larger buffer to `write`, and checks that nothing around the slice
/// changes. Returns the slice.
///
/// # Errors
/// `write` returns an error or overwrites a guard element.
pub fn guarded(len: usize, write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Vec<f32>> {
    let mut buffer = vec![f32::from_bits(SENTINEL); len + 2 * GUARD];
    write(&mut buffer[GUARD..GUARD + len])?;
    let guards = buffer[..GUARD].iter().chain(&buffer[GUARD + len..]);
    ensure!(guards.clone().all(|v| v.to_bits() == SENTINEL), "values next to the output were overwritten");
    buffer.truncate(GUARD + len);
    Ok(buffer.split_off(GUARD))
}

/// Downloads the values of a tensor.
///
/// # Errors
/// The backend returns an error or writes outside of the output.
pub fn download<B: Backend>(b: &B, x: &B::Tensor) -> Result<Vec<f32>> {
    guarded(b.shape(x).len(), |out| Ok(pollster::block_on(b.download(x, out))?))
}

/// Random snapped values, such as the operands of products in cells.
fn random_values(shape: MatrixShape, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..shape.len()).map(|_| arithmetic::snap(cases::random_value(&mut rng))).collect()
}

fn upload_download<B: Backend>(b: &B) -> Result<()> {
    let samples = activations::samples();
    for cols in [1, 2, 3, 17, 64, samples.len()] {
        let shape = MatrixShape::new(samples.len() / cols, cols);
        let tensor = b.upload(shape, &samples[..shape.len()])?;
        ensure!(b.shape(&tensor) == shape, "uploaded a tensor of shape {shape}, got {}", b.shape(&tensor));
        let got = download(b, &tensor)?;
        // NaN payloads must be preserved, because nothing is computed.
        let same = got.iter().zip(&samples).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same && got.len() == shape.len(), "upload and download changed values of shape {shape}");
    }
    Ok(())
}

fn gemm<B: Backend>(b: &B, left: bool, right: bool) -> Result<()> {
    for m in [1, 2, 5, 6, 7, 13, 33] {
        for n in [1, 3, 4, 8, 15, 16, 17, 33, 65] {
            for k in [1, 31, 32, 33, 63, 64, 65, 200] {
                gemm_of(b, [m, n, k], left, right)?;
            }
        }
    }
    // Large enough to be split among several threads.
    gemm_of(b, [130, 260, 100], left, right)
}

fn gemm_of<B: Backend>(b: &B, [m, n, k]: [usize; 3], left: bool, right: bool) -> Result<()> {
    let stored =
        |rows, cols, transposed| if transposed { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
    let (shape_a, shape_b) = (stored(m, k, left), stored(k, n, right));
    let (data_a, data_b) = (random_values(shape_a, 1), random_values(shape_b, 2));
    let at = |data: &[f32], shape: MatrixShape, transposed, i, j| {
        data[if transposed { j * shape.cols + i } else { i * shape.cols + j }]
    };
    let dot = |i, j| arithmetic::dot(k, |p| at(&data_a, shape_a, left, i, p), |p| at(&data_b, shape_b, right, p, j));
    let product: Vec<f32> = (0..m * n).map(|at| dot(at / n, at % n)).collect();

    let (a, right_b) = (b.upload(shape_a, &data_a)?, b.upload(shape_b, &data_b)?);
    let a = MatrixRef { tensor: &a, transposed: left };
    let right_b = MatrixRef { tensor: &right_b, transposed: right };
    for acc_rows in [0, 1, m] {
        let what = format!("{m} x {k} times {k} x {n}, accumulator of {acc_rows} rows");
        let acc = random_values(MatrixShape::new(acc_rows, n), 3);
        let on_device = (acc_rows > 0).then(|| b.upload(MatrixShape::new(acc_rows, n), &acc)).transpose()?;
        let got = b.gemm(a, right_b, on_device.as_ref())?;
        ensure!(b.shape(&got) == MatrixShape::new(m, n), "{what}: shape {}", b.shape(&got));
        let add = |(at, &v): (usize, &f32)| if acc.is_empty() { v } else { acc[at % acc.len()] + v };
        let want: Vec<f32> = product.iter().enumerate().map(add).collect();
        same_slices(&what, &want, &download(b, &got)?)?;
    }
    Ok(())
}

/// A NaN must only affect its own row and column, even if kernels pad their operands.
fn gemm_nan<B: Backend>(b: &B) -> Result<()> {
    for (m, n, k) in [(3, 5, 33), (7, 17, 40), (1, 33, 5)] {
        let (sa, sb) = (MatrixShape::new(m, k), MatrixShape::new(k, n));
        let (mut da, mut db) = (random_values(sa, 4), random_values(sb, 5));
        let (row, col) = (m / 2, n / 2);
        da[row * k + k - 1] = f32::NAN;
        db[col] = f32::NAN;
        let got = download(b, &b.gemm((&b.upload(sa, &da)?).into(), (&b.upload(sb, &db)?).into(), None)?)?;
        let dot = |at: usize| arithmetic::dot(k, |p| da[at / n * k + p], |p| db[p * n + at % n]);
        same_slices("gemm with NaN", &(0..m * n).map(dot).collect::<Vec<_>>(), &got)?;
    }
    Ok(())
}

fn mul_add<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (1, 17), (3, 5), (4, 33), (7, 16), (65, 70)] {
        let full = MatrixShape::new(rows, cols);
        // No operand, one row that is broadcast, or the shape of the result.
        let operands = [MatrixShape::new(0, cols), MatrixShape::new(1, cols), full];
        let a = random_values(full, 6);
        let ta = b.upload(full, &a)?;
        for (sb, sc) in operands.iter().flat_map(|sb| operands.map(|sc| (*sb, sc))) {
            let (x, y) = (random_values(sb, 7), random_values(sc, 8));
            let tensor =
                |shape: MatrixShape, data: &[f32]| (!shape.is_empty()).then(|| b.upload(shape, data)).transpose();
            let (tx, ty) = (tensor(sb, &x)?, tensor(sc, &y)?);
            for alpha in [1.0, -1.0, 0.75] {
                let want = |at: usize| {
                    let pick = |v: &[f32]| (!v.is_empty()).then(|| v[at % v.len()]);
                    let (a, b) = (alpha * a[at], pick(&x).unwrap_or(1.0));
                    pick(&y).map_or(a * b, |c| a.mul_add(b, c))
                };
                let want: Vec<f32> = (0..full.len()).map(want).collect();
                let got = download(b, &b.mul_add(alpha, &ta, tx.as_ref(), ty.as_ref())?)?;
                same_slices(&format!("{alpha} * {full} * {sb} + {sc}"), &want, &got)?;
            }
        }
    }
    Ok(())
}

fn snap_clip<B: Backend>(b: &B) -> Result<()> {
    let x = activations::samples();
    let tensor = b.upload(MatrixShape::new(1, x.len()), &x)?;
    let snapped: Vec<f32> = x.iter().map(|&v| arithmetic::snap(v)).collect();
    same_slices("snap", &snapped, &download(b, &b.snap(tensor.clone())?)?)?;
    for bound in [0.25, 1.0, 3e4] {
        let clipped: Vec<f32> = x.iter().map(|&v| arithmetic::clip(v, bound)).collect();
        same_slices(&format!("clip to {bound}"), &clipped, &download(b, &b.clip(tensor.clone(), bound)?)?)?;
    }
    Ok(())
}

/// Checks values inside and outside of the bounds, equal to a bound, infinite and NaN.
fn select_between<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (3, 5), (4, 33), (7, 16)] {
        let full = MatrixShape::new(rows, cols);
        let (x, mut by) = (random_values(full, 17), random_values(full, 18));
        let (low, high): (Vec<f32>, Vec<f32>) = (0..cols).map(|k| (-0.5 - k as f32 / 64.0, 0.25)).unzip();
        let special = [f32::NAN, 0.25, low[cols - 1], f32::INFINITY, -0.0];
        by.iter_mut().rev().zip(special).for_each(|(by, v)| *by = v);
        let want = |(k, &x): (usize, &f32)| {
            if by[k] <= low[k % cols] || by[k] >= high[k % cols] { 0.0 } else { x }
        };
        let want: Vec<f32> = x.iter().enumerate().map(want).collect();
        let row = MatrixShape::new(1, cols);
        let (tensor_x, tensor_by) = (b.upload(full, &x)?, b.upload(full, &by)?);
        let got = b.select_between(tensor_x.clone(), &tensor_by, &b.upload(row, &low)?, &b.upload(row, &high)?)?;
        same_slices(&format!("select_between of {full}"), &want, &download(b, &got)?)?;
        same_slices("clone of an overwritten tensor", &x, &download(b, &tensor_x)?)?;
    }
    Ok(())
}

fn slice<B: Backend>(b: &B) -> Result<()> {
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
            same_slices(&format!("rows {rows:?}, columns {cols:?}"), &want, &download(b, &part)?)?;
        }
    }
    Ok(())
}

fn concat<B: Backend>(b: &B) -> Result<()> {
    let make = |rows, cols, seed| {
        let shape = MatrixShape::new(rows, cols);
        let data = random_values(shape, seed);
        Ok::<_, anyhow::Error>((shape, b.upload(shape, &data)?, data))
    };
    let tensors = |parts: &[(MatrixShape, B::Tensor, Vec<f32>)]| parts.iter().map(|p| p.1.clone()).collect::<Vec<_>>();
    for count in 1..4 {
        let parts = [make(1, 17, 10)?, make(4, 17, 11)?, make(2, 17, 12)?];
        let parts = &parts[..count];
        let want: Vec<f32> = parts.iter().flat_map(|p| p.2.iter().copied()).collect();
        same_slices("concat rows", &want, &download(b, &b.concat(ConcatAxis::Rows, &tensors(parts))?)?)?;

        let parts = [make(3, 1, 13)?, make(3, 16, 14)?, make(3, 5, 15)?];
        let parts = &parts[..count];
        let row = |r: usize| parts.iter().flat_map(move |p| p.2[r * p.0.cols..(r + 1) * p.0.cols].iter().copied());
        let want: Vec<f32> = (0..3).flat_map(row).collect();
        same_slices("concat columns", &want, &download(b, &b.concat(ConcatAxis::Cols, &tensors(parts))?)?)?;
    }
    Ok(())
}

/// Clones share memory, and primitives may overwrite arguments that they take by value. Clones must not change.
fn value_semantics<B: Backend>(b: &B) -> Result<()> {
    let (shape, data) = (MatrixShape::new(5, 19), random_values(MatrixShape::new(5, 19), 16));
    let original = b.upload(shape, &data)?;
    b.sigmoid(original.clone())?;
    b.tanh(original.clone())?;
    b.clip(original.clone(), 0.5)?;
    b.snap(original.clone())?;
    let copy = b.slice(&original, 0..5, 0..19)?;
    let joined = b.concat(ConcatAxis::Rows, std::slice::from_ref(&original))?;
    b.tanh(copy)?;
    b.tanh(joined)?;
    same_slices("tensor whose clones were overwritten", &data, &download(b, &original)?)
}
