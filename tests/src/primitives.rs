//! Each primitive of a backend against the scalar definition, on sizes around every block and vector length.

use anyhow::{Result, ensure};
use lstm_core::{Backend, ConcatAxis, MatrixRef, MatrixShape, arithmetic};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{activations, cases, compare::same_slices};

/// A check and its name.
pub type Check<B> = (&'static str, fn(&B) -> Result<()>);

/// All of them.
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
        ("within", within),
        ("sigmoid", |b| activations::check_samples(b, activations::Activation::Sigmoid)),
        ("tanh", |b| activations::check_samples(b, activations::Activation::Tanh)),
        ("slice", slice),
        ("concat", concat),
        ("values-stay", values_stay),
    ]
}

/// A NaN that no computation gives.
const SENTINEL: u32 = 0x7fc5_e47e;

/// Elements around a download that must stay as they were.
const GUARD: usize = 67;

/// A slice for `len` values in the middle of a larger buffer, lent to `write`; fails if anything around it changes.
///
/// # Errors
/// That of `write`, or the guard that was overwritten.
pub fn guarded(len: usize, write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Vec<f32>> {
    let mut buffer = vec![f32::from_bits(SENTINEL); len + 2 * GUARD];
    write(&mut buffer[GUARD..GUARD + len])?;
    let around = buffer[..GUARD].iter().chain(&buffer[GUARD + len..]);
    ensure!(around.clone().all(|v| v.to_bits() == SENTINEL), "something was written around the output");
    buffer.truncate(GUARD + len);
    Ok(buffer.split_off(GUARD))
}

/// What a tensor holds.
///
/// # Errors
/// What the backend refuses, or a guard that was overwritten.
pub fn get<B: Backend>(b: &B, x: &B::Tensor) -> Result<Vec<f32>> {
    guarded(b.shape(x).len(), |out| Ok(pollster::block_on(b.download(x, out))?))
}

/// Snapped numbers, as the cells' products see them.
fn numbers(shape: MatrixShape, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..shape.len()).map(|_| arithmetic::snap(cases::number(&mut rng))).collect()
}

fn upload_download<B: Backend>(b: &B) -> Result<()> {
    let samples = activations::samples();
    for cols in [1, 2, 3, 17, 64, samples.len()] {
        let shape = MatrixShape::new(samples.len() / cols, cols);
        let tensor = b.upload(shape, &samples[..shape.len()])?;
        ensure!(b.shape(&tensor) == shape, "uploaded {shape}, is {}", b.shape(&tensor));
        let got = get(b, &tensor)?;
        // Bits, NaN payloads too: nothing is computed here.
        let same = got.iter().zip(&samples).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same && got.len() == shape.len(), "bits changed on the way, as {shape}");
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
    // Large enough that several threads share it.
    gemm_of(b, [130, 260, 100], left, right)
}

fn gemm_of<B: Backend>(b: &B, [m, n, k]: [usize; 3], left: bool, right: bool) -> Result<()> {
    let own = |rows, cols, turned| if turned { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
    let (shape_a, shape_b) = (own(m, k, left), own(k, n, right));
    let (data_a, data_b) = (numbers(shape_a, 1), numbers(shape_b, 2));
    let at = |data: &[f32], shape: MatrixShape, turned, i, j| {
        data[if turned { j * shape.cols + i } else { i * shape.cols + j }]
    };
    let dot = |i, j| arithmetic::dot(k, |p| at(&data_a, shape_a, left, i, p), |p| at(&data_b, shape_b, right, p, j));
    let product: Vec<f32> = (0..m * n).map(|at| dot(at / n, at % n)).collect();

    let (a, right_b) = (b.upload(shape_a, &data_a)?, b.upload(shape_b, &data_b)?);
    let a = MatrixRef { tensor: &a, transposed: left };
    let right_b = MatrixRef { tensor: &right_b, transposed: right };
    for acc_rows in [0, 1, m] {
        let what = format!("{m} x {k} times {k} x {n} onto {acc_rows} rows");
        let acc = numbers(MatrixShape::new(acc_rows, n), 3);
        let on_device = (acc_rows > 0).then(|| b.upload(MatrixShape::new(acc_rows, n), &acc)).transpose()?;
        let got = b.gemm(a, right_b, on_device.as_ref())?;
        ensure!(b.shape(&got) == MatrixShape::new(m, n), "{what}: shape {}", b.shape(&got));
        let add = |(at, &v): (usize, &f32)| if acc.is_empty() { v } else { acc[at % acc.len()] + v };
        let want: Vec<f32> = product.iter().enumerate().map(add).collect();
        same_slices(&what, &want, &get(b, &got)?)?;
    }
    Ok(())
}

/// A NaN reaches its own row and column, and nothing beside them: kernels that pad must not let it through.
fn gemm_nan<B: Backend>(b: &B) -> Result<()> {
    for (m, n, k) in [(3, 5, 33), (7, 17, 40), (1, 33, 5)] {
        let (sa, sb) = (MatrixShape::new(m, k), MatrixShape::new(k, n));
        let (mut da, mut db) = (numbers(sa, 4), numbers(sb, 5));
        let (row, col) = (m / 2, n / 2);
        da[row * k + k - 1] = f32::NAN;
        db[col] = f32::NAN;
        let got = get(b, &b.gemm((&b.upload(sa, &da)?).into(), (&b.upload(sb, &db)?).into(), None)?)?;
        let dot = |at: usize| arithmetic::dot(k, |p| da[at / n * k + p], |p| db[p * n + at % n]);
        same_slices("gemm with NaN", &(0..m * n).map(dot).collect::<Vec<_>>(), &got)?;
    }
    Ok(())
}

fn mul_add<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (1, 17), (3, 5), (4, 33), (7, 16), (65, 70)] {
        let full = MatrixShape::new(rows, cols);
        // Absent, one row for all, or as large as the result.
        let operands = [MatrixShape::new(0, cols), MatrixShape::new(1, cols), full];
        let a = numbers(full, 6);
        let ta = b.upload(full, &a)?;
        for (sb, sc) in operands.iter().flat_map(|sb| operands.map(|sc| (*sb, sc))) {
            let (x, y) = (numbers(sb, 7), numbers(sc, 8));
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
                let got = get(b, &b.mul_add(alpha, &ta, tx.as_ref(), ty.as_ref())?)?;
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
    same_slices("snap", &snapped, &get(b, &b.snap(tensor.clone())?)?)?;
    for bound in [0.25, 1.0, 3e4] {
        let clipped: Vec<f32> = x.iter().map(|&v| arithmetic::clip(v, bound)).collect();
        same_slices(&format!("clip to {bound}"), &clipped, &get(b, &b.clip(tensor.clone(), bound)?)?)?;
    }
    Ok(())
}

/// Bounds and values on both sides of them, equal to them and NaN.
fn within<B: Backend>(b: &B) -> Result<()> {
    for (rows, cols) in [(1, 1), (3, 5), (4, 33), (7, 16)] {
        let full = MatrixShape::new(rows, cols);
        let (x, mut by) = (numbers(full, 17), numbers(full, 18));
        let (low, high): (Vec<f32>, Vec<f32>) = (0..cols).map(|k| (-0.5 - k as f32 / 64.0, 0.25)).unzip();
        let odd = [f32::NAN, 0.25, low[cols - 1], f32::INFINITY, -0.0];
        by.iter_mut().rev().zip(odd).for_each(|(by, v)| *by = v);
        let want = |(k, &x): (usize, &f32)| {
            if by[k] <= low[k % cols] || by[k] >= high[k % cols] { 0.0 } else { x }
        };
        let want: Vec<f32> = x.iter().enumerate().map(want).collect();
        let row = MatrixShape::new(1, cols);
        let (tx, tby) = (b.upload(full, &x)?, b.upload(full, &by)?);
        let got = b.select_between(tx.clone(), &tby, &b.upload(row, &low)?, &b.upload(row, &high)?)?;
        same_slices(&format!("within of {full}"), &want, &get(b, &got)?)?;
        same_slices("the clone of what was overwritten", &x, &get(b, &tx)?)?;
    }
    Ok(())
}

fn slice<B: Backend>(b: &B) -> Result<()> {
    let shape = MatrixShape::new(9, 37);
    let data = numbers(shape, 9);
    let tensor = b.upload(shape, &data)?;
    for rows in [0..9, 0..1, 8..9, 2..7] {
        for cols in [0..37, 0..1, 36..37, 1..16, 16..33, 5..8] {
            let want: Vec<f32> =
                rows.clone().flat_map(|r| data[r * 37 + cols.start..r * 37 + cols.end].iter().copied()).collect();
            let part = b.slice(&tensor, rows.clone(), cols.clone())?;
            ensure!(b.shape(&part) == MatrixShape::new(rows.len(), cols.len()), "slice has shape {}", b.shape(&part));
            same_slices(&format!("rows {rows:?}, columns {cols:?}"), &want, &get(b, &part)?)?;
        }
    }
    Ok(())
}

fn concat<B: Backend>(b: &B) -> Result<()> {
    let make = |rows, cols, seed| {
        let shape = MatrixShape::new(rows, cols);
        let data = numbers(shape, seed);
        Ok::<_, anyhow::Error>((shape, b.upload(shape, &data)?, data))
    };
    let tensors = |parts: &[(MatrixShape, B::Tensor, Vec<f32>)]| parts.iter().map(|p| p.1.clone()).collect::<Vec<_>>();
    for count in 1..4 {
        let below = [make(1, 17, 10)?, make(4, 17, 11)?, make(2, 17, 12)?];
        let below = &below[..count];
        let want: Vec<f32> = below.iter().flat_map(|p| p.2.iter().copied()).collect();
        same_slices("concat rows", &want, &get(b, &b.concat(ConcatAxis::Rows, &tensors(below))?)?)?;

        let beside = [make(3, 1, 13)?, make(3, 16, 14)?, make(3, 5, 15)?];
        let beside = &beside[..count];
        let row = |r: usize| beside.iter().flat_map(move |p| p.2[r * p.0.cols..(r + 1) * p.0.cols].iter().copied());
        let want: Vec<f32> = (0..3).flat_map(row).collect();
        same_slices("concat columns", &want, &get(b, &b.concat(ConcatAxis::Cols, &tensors(beside))?)?)?;
    }
    Ok(())
}

/// Clones share memory, and an argument by value may be overwritten: never so that a clone sees it.
fn values_stay<B: Backend>(b: &B) -> Result<()> {
    let (shape, data) = (MatrixShape::new(5, 19), numbers(MatrixShape::new(5, 19), 16));
    let kept = b.upload(shape, &data)?;
    b.sigmoid(kept.clone())?;
    b.tanh(kept.clone())?;
    b.clip(kept.clone(), 0.5)?;
    b.snap(kept.clone())?;
    let copy = b.slice(&kept, 0..5, 0..19)?;
    let joined = b.concat(ConcatAxis::Rows, std::slice::from_ref(&kept))?;
    b.tanh(copy)?;
    b.tanh(joined)?;
    same_slices("a tensor whose clones were overwritten", &data, &get(b, &kept)?)
}
