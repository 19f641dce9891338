//! TF32 mode of the CUDA backend, on the simulated device. Its results are not exact. Errors must be within bounds that
//! follow from TF32's 10 bits of mantissa, and large enough to show that TF32 was used.

use anyhow::{Result, ensure};
use lstm_core::{
    Arithmetic, CellKind, Checkpointing, ExecutionPath, Lstm, LstmConfig, MatrixRef, MatrixShape, Ops,
    ndarray::{ArrayView, Axis, IxDyn},
};
use lstm_cuda_sim::{CudaHost, Host, HostBuilder, Schedule};
use lstm_tests::{
    cases::{self, CELLS, Case, CaseData},
    check,
    compare::{self, PassResults},
    invalid_input, primitives,
};

/// The relative error of rounding to TF32, which has 11 significant bits.
const ROUNDING: f64 = 1.0 / 2048.0;

/// A simulated device in TF32 mode.
fn tf32_mode() -> HostBuilder {
    Host::builder().allow_tf32(true)
}

/// Rounds to the nearest TF32 number, ties away from zero. This uses arithmetic; the kernels use bit operations.
fn round_to_tf32(v: f32) -> f32 {
    let Some(exponent) = (v != 0.0 && v.is_finite()).then(|| (v.to_bits() >> 23 & 0xff).max(1) as i32 - 127) else {
        return v;
    };
    let unit = 2f64.powi(exponent - 10);
    ((f64::from(v) / unit).round() * unit) as f32
}

/// Rounds all values to TF32.
fn round_all<'a>(values: impl IntoIterator<Item = &'a mut f32>) {
    values.into_iter().for_each(|v| *v = round_to_tf32(*v));
}

/// Pseudorandom values in [-1, 1).
fn random_values(len: usize, seed: u32) -> Vec<f32> {
    let at = |k: usize| (k as u32 + seed).wrapping_mul(0x9e37_79b9).rotate_left(7);
    (0..len).map(|k| at(k) as i32 as f32 * 2f32.powi(-31)).collect()
}

/// Shapes of products (rows, columns, depth) around the sizes of both kinds of tiles, of blocks of depth, and of one
/// tensor core instruction.
const PRODUCTS: [[usize; 3]; 10] = [
    [16, 8, 8],
    [17, 9, 9],
    [64, 32, 64],
    [65, 33, 65],
    [63, 31, 63],
    [19, 200, 130],
    [130, 8, 8],
    [128, 512, 32],
    [129, 513, 33],
    [255, 257, 70],
];

/// A matrix product. Bit 0 of `transposed` means that the left operand is stored transposed, bit 1 the right one.
fn product(b: &CudaHost, [m, n, k]: [usize; 3], transposed: usize, [left, right]: [&[f32]; 2]) -> Result<Vec<f32>> {
    let operand = |values: &[f32], rows: usize, cols: usize, transposed: bool| {
        let at = |i: usize| if transposed { values[i % rows * cols + i / rows] } else { values[i] };
        let shape = if transposed { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
        b.upload(shape, &(0..rows * cols).map(at).collect::<Vec<_>>())
    };
    let flags = [transposed & 1 != 0, transposed & 2 != 0];
    let (a, c) = (operand(left, m, k, flags[0])?, operand(right, k, n, flags[1])?);
    let (a, c) = (MatrixRef { tensor: &a, transposed: flags[0] }, MatrixRef { tensor: &c, transposed: flags[1] });
    primitives::download(b, &b.gemm(a, c, None)?)
}

#[test]
fn errors_of_products_are_those_of_rounded_operands() -> Result<()> {
    let tf32 = tf32_mode().cluster_size(2).build()?;
    for shape @ [m, n, k] in PRODUCTS {
        let (left, right) = (random_values(m * k, 1), random_values(k * n, 2));
        let sum = |i: usize, term: &dyn Fn(f32, f32) -> f64| -> f64 {
            (0..k).map(|p| term(left[i / n * k + p], right[p * n + i % n])).sum()
        };
        let (mut inexact, mut worst) = (0, 0.0f64);
        for transposed in 0..4 {
            let got = product(&tf32, shape, transposed, [&left, &right])?;
            for (i, &got) in got.iter().enumerate() {
                let magnitude = sum(i, &|a, b| (f64::from(a) * f64::from(b)).abs());
                let exact = sum(i, &|a, b| f64::from(a) * f64::from(b));
                let rounded = sum(i, &|a, b| f64::from(round_to_tf32(a)) * f64::from(round_to_tf32(b)));
                let (error, error_from_rounded) = ((f64::from(got) - exact).abs(), (f64::from(got) - rounded).abs());
                // The bound on the relative error of the sums in f32. The rounding of two factors of each term comes on
                // top.
                let sum_error = (k + 1) as f64 * 2f64.powi(-24);
                ensure!(
                    error <= (2.0 * ROUNDING + ROUNDING * ROUNDING + sum_error) * magnitude,
                    "{shape:?}, element {i}: error {error:e} is too large"
                );
                ensure!(
                    error_from_rounded <= sum_error * magnitude,
                    "{shape:?}, element {i}: not the sum of the products of rounded operands"
                );
                inexact += usize::from(error > sum_error * magnitude);
                worst = worst.max(error / magnitude);
            }
        }
        println!("{shape:?}: worst error {:.2} * 2^-11 * sum of the terms' magnitudes", worst / ROUNDING);
        ensure!(inexact > 2 * m * n, "{shape:?}: operands were not rounded for most elements");
    }
    Ok(())
}

#[test]
fn products_of_tf32_numbers_are_exact() -> Result<()> {
    let (tf32, exact) = (tf32_mode().schedule(Schedule::Random(1)).cluster_size(2).build()?, Host::builder().build()?);
    for shape @ [m, n, k] in PRODUCTS {
        // Integers below 2^10: sums are integers below 2^24, which f32 represents exactly.
        let integers =
            |len, seed| random_values(len, seed).into_iter().map(|v| (v * 100.0).round()).collect::<Vec<_>>();
        let (left, right) = (integers(m * k, 3), integers(k * n, 4));
        for transposed in 0..4 {
            let [got, want] = [&tf32, &exact].map(|b| product(b, shape, transposed, [&left, &right]));
            compare::check_same_slices(&format!("{shape:?}"), &want?, &got?)?;
        }
        // NaN and infinity propagate to their rows of the product only.
        let mut non_finite = left.clone();
        (non_finite[k - 1], non_finite[2 * k - 1]) = (f32::NAN, f32::INFINITY);
        let got = product(&tf32, shape, 0, [&non_finite, &vec![1.0; k * n]])?;
        ensure!(got[2 * n..].iter().all(|v| v.is_finite()), "{shape:?}: other rows are not finite");
        ensure!(got[..n].iter().all(|v| v.is_nan()) && got[n..2 * n].iter().all(|&v| v == f32::INFINITY), "{shape:?}");
    }
    Ok(())
}

/// Enlarges a case of the table so that its products run on tensor cores. The sizes are not multiples of tile sizes.
fn enlarged(case: Case) -> Case {
    let mut config = case.config;
    config.input_size = config.input_size.max(11);
    config.hidden_size = config.hidden_size.max(21);
    config.proj_size = config.proj_size.map(|size| size.max(10));
    let steps = case.steps.min(12);
    let shortened = |lengths: Vec<usize>| lengths.iter().map(|&len| len.min(steps)).cycle().take(19).collect();
    Case { config, batch: 19, steps, lengths: case.lengths.map(shortened), ..case }
}

/// Runs a case, with its weights rounded to TF32 if `round_weights`.
fn run(b: &CudaHost, case: &Case, data: &CaseData, round_weights: bool) -> Result<PassResults> {
    let mut weights = case.weights()?;
    if round_weights {
        weights.iter_mut().for_each(|(_, values)| round_all(values));
    }
    check::run_passes(&Lstm::new(b, weights)?, data, Checkpointing::SaveEverything)
}

/// The largest absolute difference of two arrays; NaN if a difference is NaN.
fn largest_difference(a: &ArrayView<'_, f32, IxDyn>, b: &ArrayView<'_, f32, IxDyn>) -> f64 {
    // `f64::max` would ignore NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        .fold(0.0, |most, v| if v > most || v.is_nan() { v } else { most })
}

/// Compares the results of a case in TF32 mode with the exact ones. The bound on the errors is a multiple of the change
/// of the exact results when weights and data are rounded to TF32: the mode rounds these, and also the states and the
/// gates' gradients of each step. Returns the largest error, as a fraction of its bound.
fn compare_case(exact: &CudaHost, tf32: &CudaHost, case: &Case) -> Result<f64> {
    let data = case.data();
    let mut rounded = data.clone();
    round_all(rounded.x.iter_mut().chain(&mut rounded.dy));
    rounded.state.iter_mut().for_each(|state| round_all(state.h.iter_mut().chain(&mut state.c)));
    let [want, perturbed, got] =
        [run(exact, case, &data, false)?, run(exact, case, &rounded, true)?, run(tf32, case, &data, false)?];
    ensure!(
        compare::check_same_passes("", &want, &got).is_err(),
        "{}: results are exact: nothing ran on tensor cores",
        case.name
    );
    let mut worst: f64 = 0.0;
    for (((name, want), (_, perturbed)), (_, got)) in want.arrays().iter().zip(perturbed.arrays()).zip(got.arrays()) {
        let largest = want.iter().fold(0.0f64, |largest, &v| largest.max(f64::from(v).abs()));
        let (error, change) = (largest_difference(want, &got), largest_difference(want, &perturbed));
        let bound = 4.0 * change + ROUNDING / 16.0 * largest;
        if error > 0.0 {
            worst = worst.max(error / bound);
        }
        ensure!(
            error <= bound,
            "{}: the error of {name} is {error:e}; the bound is {bound:e}, the largest value {largest:e}",
            case.name
        );
    }
    Ok(worst)
}

/// Compares all cases that `keep` selects.
fn compare_cases(tf32: &CudaHost, path: &str, keep: impl Fn(&Case) -> bool) -> Result<()> {
    let exact = Host::builder().resident_blocks(0).build()?;
    let (mut worst, mut count, mut failed) = (0.0f64, 0, Vec::new());
    for case in cases::all_cases().into_iter().filter(|case| keep(case)).map(enlarged) {
        count += 1;
        match compare_case(&exact, tf32, &case) {
            Ok(fraction) => worst = worst.max(fraction),
            Err(error) => failed.push(error.to_string()),
        }
    }
    println!("{path}: {count} cases, largest error / bound {worst:.3}");
    ensure!(failed.is_empty(), "{} of {count} cases fail:\n{}", failed.len(), failed.join("\n"));
    ensure!(count > 0, "no case was selected");
    Ok(())
}

/// Whether a case is small, has a step, and the default activation functions. Large cases would take minutes and test
/// nothing more; results without a step are exact; at the kinks of other functions, errors have no such bound.
fn is_small(case: &Case) -> bool {
    let steps = case.lengths.as_ref().map_or(case.steps, |lengths| lengths.iter().sum());
    case.config.hidden_size <= 130
        && case.config.num_layers <= 2
        && steps > 0
        && case.config.layer_specs()[0].has_default_kernels()
}

#[test]
fn errors_of_layers_with_one_kernel_per_step() -> Result<()> {
    compare_cases(&tf32_mode().resident_blocks(0).build()?, "one kernel per step", is_small)
}

#[test]
fn errors_of_layers_with_sequence_kernels() -> Result<()> {
    compare_cases(&tf32_mode().schedule(Schedule::Random(0)).cluster_size(2).build()?, "cluster, persistent", |case| {
        is_small(case) && case.group != "sizes"
    })
}

#[test]
fn reports_inexact_arithmetic() -> Result<()> {
    for (tf32, path) in [
        (tf32_mode().resident_blocks(0).build()?, "one kernel per step"),
        (tf32_mode().cluster_size(2).build()?, "cluster"),
    ] {
        ensure!(tf32.name() == "cuda-host-tf32", "{}", tf32.name());
        let Arithmetic::Inexact(reason) = tf32.arithmetic() else { panic!("{:?}", tf32.arithmetic()) };
        ensure!(reason.contains("TF32") && reason.contains("10 bits"), "{reason}");
        let paths = Lstm::new(&tf32, Case::new("", "", CellKind::Fused).weights()?)?.paths();
        ensure!(paths == [ExecutionPath::Fused(format!("{path}, products in tf32").into())], "{paths:?}");
    }
    ensure!(Host::builder().build()?.arithmetic() == Arithmetic::Exact, "TF32 mode is not the default");
    Ok(())
}

#[test]
fn rejects_invalid_input() -> Result<()> {
    let tf32 = tf32_mode().cluster_size(2).build()?;
    for (_, check) in invalid_input::checks::<CudaHost>() {
        check(&tf32)?;
    }
    CELLS.iter().try_for_each(|&(_, cell)| check::check_empty_inputs(&tf32, cell))
}

/// Streams with few rows use the exact kernels. Streams with many rows have errors like those of sequences.
#[test]
fn streams_are_exact_below_16_rows() -> Result<()> {
    let (tf32, exact) = (tf32_mode().cluster_size(2).build()?, Host::builder().build()?);
    for (name, cell) in CELLS {
        for batch in [1, 15, 16, 19] {
            let case = Case { batch, ..enlarged(Case::new("", name, cell)) };
            let data = case.data();
            let outputs = |b: &CudaHost| -> Result<Vec<f32>> {
                let mut stream = Lstm::new(b, case.weights()?)?.stream(batch)?;
                let mut y = Vec::new();
                for step in data.x.axis_chunks_iter(Axis(1), 1) {
                    y.extend(stream.chunk(step)?);
                }
                Ok(y)
            };
            let (want, got) = (outputs(&exact)?, outputs(&tf32)?);
            let is_exact = compare::check_same_slices(name, &want, &got).is_ok();
            ensure!(is_exact == (batch < 16), "{name}, batch {batch}: exact: {is_exact}");
            // |y| < 1, and a sum has at most 2 * 21 terms of at most 2 / sqrt(21).
            let is_near = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) < 42.0 * 0.44 * ROUNDING;
            ensure!(want.iter().zip(&got).all(is_near), "{name}, batch {batch}: the error is too large");
        }
    }
    Ok(())
}

/// Layers use one kernel per step on tensor cores only for large steps. Smaller steps run in one exact kernel for all
/// steps.
#[test]
fn only_large_steps_use_tensor_cores() -> Result<()> {
    let (tf32, exact) = (tf32_mode().build()?, Host::builder().build()?);
    // The input has too few features for tensor cores. With 4 multiprocessors, a large step has at least 4 * 2^21
    // multiplications, which is 128 * (4 * 128) * 128.
    let config = LstmConfig::new(3, 128);
    for batch in [127, 128] {
        let case = Case { config: config.clone(), batch, steps: 2, ..Case::new("", "", CellKind::Fused) };
        let [want, got] = [&exact, &tf32].map(|b| check::run_forward(&Lstm::new(b, case.weights()?)?, &case.data()));
        let is_exact = compare::check_same_outputs("", &want?, &got?).is_ok();
        ensure!(is_exact == (batch < 128), "batch {batch}: exact: {is_exact}");
    }
    Ok(())
}
