//! The fast mode of CUDA on the host's stand-in, which is not exact: compared within bounds that follow from TF32's 10 bits of
//! mantissa, and looked at whether it is TF32 at all.

use anyhow::{Result, ensure};
use lstm_core::{
    Arithmetic, CellKind, Checkpointing, ExecutionPath, Lstm, LstmConfig, MatrixRef, MatrixShape, Ops,
    ndarray::{ArrayView, Axis, IxDyn},
};
use lstm_cuda_sim::{CudaHost, Host, HostBuilder, Schedule};
use lstm_tests::{
    cases::{self, CELLS, Case, Data},
    check,
    compare::{self, Passes},
    invalid_input, primitives,
};

/// Of a factor that is rounded to 11 bits.
const ROUNDING: f64 = 1.0 / 2048.0;

/// A simulated device in TF32 mode.
fn tf32_mode() -> HostBuilder {
    Host::builder().allow_tf32(true)
}

/// The nearest number with 10 bits of mantissa besides the leading one, ties away from zero: by arithmetic, not by bits.
fn tf32(v: f32) -> f32 {
    let Some(exponent) = (v != 0.0 && v.is_finite()).then(|| (v.to_bits() >> 23 & 0xff).max(1) as i32 - 127) else {
        return v;
    };
    let unit = 2f64.powi(exponent - 10);
    ((f64::from(v) / unit).round() * unit) as f32
}

fn round_all<'a>(values: impl IntoIterator<Item = &'a mut f32>) {
    values.into_iter().for_each(|v| *v = tf32(*v));
}

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let at = |k: usize| (k as u32 + seed).wrapping_mul(0x9e37_79b9).rotate_left(7);
    (0..len).map(|k| at(k) as i32 as f32 * 2f32.powi(-31)).collect()
}

/// Shapes around tiles of both sizes, blocks of the depth, and one instruction: rows, columns, depth.
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

/// A product with one of four arrangements of its operands.
fn product(b: &CudaHost, [m, n, k]: [usize; 3], turned: usize, [left, right]: [&[f32]; 2]) -> Result<Vec<f32>> {
    let operand = |values: &[f32], rows: usize, cols: usize, transposed: bool| {
        let at = |i: usize| if transposed { values[i % rows * cols + i / rows] } else { values[i] };
        let shape = if transposed { MatrixShape::new(cols, rows) } else { MatrixShape::new(rows, cols) };
        b.upload(shape, &(0..rows * cols).map(at).collect::<Vec<_>>())
    };
    let flags = [turned & 1 != 0, turned & 2 != 0];
    let (a, c) = (operand(left, m, k, flags[0])?, operand(right, k, n, flags[1])?);
    let (a, c) = (MatrixRef { tensor: &a, transposed: flags[0] }, MatrixRef { tensor: &c, transposed: flags[1] });
    primitives::download(b, &b.gemm(a, c, None)?)
}

#[test]
fn products_are_off_by_the_rounding_of_their_operands() -> Result<()> {
    let fast = tf32_mode().cluster_size(2).build()?;
    for shape @ [m, n, k] in PRODUCTS {
        let (left, right) = (numbers(m * k, 1), numbers(k * n, 2));
        let sum = |i: usize, term: &dyn Fn(f32, f32) -> f64| -> f64 {
            (0..k).map(|p| term(left[i / n * k + p], right[p * n + i % n])).sum()
        };
        let (mut differ, mut worst) = (0, 0.0f64);
        for turned in 0..4 {
            let got = product(&fast, shape, turned, [&left, &right])?;
            for (i, &got) in got.iter().enumerate() {
                let magnitude = sum(i, &|a, b| (f64::from(a) * f64::from(b)).abs());
                let exact = sum(i, &|a, b| f64::from(a) * f64::from(b));
                let rounded = sum(i, &|a, b| f64::from(tf32(a)) * f64::from(tf32(b)));
                let (off, from_rounded) = ((f64::from(got) - exact).abs(), (f64::from(got) - rounded).abs());
                // Two factors of each term, then the sums of f32.
                let sums = (k + 1) as f64 * 2f64.powi(-24);
                ensure!(
                    off <= (2.0 * ROUNDING + ROUNDING * ROUNDING + sums) * magnitude,
                    "{shape:?}, element {i}: {off:e} off"
                );
                ensure!(
                    from_rounded <= sums * magnitude,
                    "{shape:?}, element {i}: not a sum of rounded operands' products"
                );
                differ += usize::from(off > sums * magnitude);
                worst = worst.max(off / magnitude);
            }
        }
        println!("{shape:?}: worst {:.2} of 2^-11 of the terms' magnitudes", worst / ROUNDING);
        ensure!(differ > 2 * m * n, "{shape:?}: nothing was rounded in most elements");
    }
    Ok(())
}

#[test]
fn what_tf32_has_is_exact() -> Result<()> {
    let (fast, exact) = (tf32_mode().schedule(Schedule::Random(1)).cluster_size(2).build()?, Host::builder().build()?);
    for shape @ [m, n, k] in PRODUCTS {
        // Whole numbers below 2^10: sums are whole, too, and below 2^24.
        let whole = |len, seed| numbers(len, seed).into_iter().map(|v| (v * 100.0).round()).collect::<Vec<_>>();
        let (left, right) = (whole(m * k, 3), whole(k * n, 4));
        for turned in 0..4 {
            let [got, want] = [&fast, &exact].map(|b| product(b, shape, turned, [&left, &right]));
            compare::same_slices(&format!("{shape:?}"), &want?, &got?)?;
        }
        // What is not finite stays so, where it belongs.
        let mut spoiled = left.clone();
        (spoiled[k - 1], spoiled[2 * k - 1]) = (f32::NAN, f32::INFINITY);
        let got = product(&fast, shape, 0, [&spoiled, &vec![1.0; k * n]])?;
        let finite = |row: usize| got[row * n..(row + 1) * n].iter().filter(|v| v.is_finite()).count();
        ensure!(
            finite(0) == 0 && finite(1) == 0 && got[2 * n..].iter().all(|v| v.is_finite()),
            "{shape:?}: not finite"
        );
        ensure!(got[..n].iter().all(|v| v.is_nan()) && got[n..2 * n].iter().all(|&v| v == f32::INFINITY), "{shape:?}");
    }
    Ok(())
}

/// The table's case with enough of everything for tensor cores, edges included.
fn filled(case: Case) -> Case {
    let mut config = case.config;
    config.input_size = config.input_size.max(11);
    config.hidden_size = config.hidden_size.max(21);
    config.proj_size = config.proj_size.map(|size| size.max(10));
    let steps = case.steps.min(12);
    let shortened = |lengths: Vec<usize>| lengths.iter().map(|&len| len.min(steps)).cycle().take(19).collect();
    Case { config, batch: 19, steps, lengths: case.lengths.map(shortened), ..case }
}

fn run(b: &CudaHost, case: &Case, data: &Data, rounded: bool) -> Result<Passes> {
    let mut weights = case.weights()?;
    if rounded {
        weights.iter_mut().for_each(|(_, values)| round_all(values));
    }
    check::passes(&Lstm::new(b, weights)?, data, Checkpointing::Everything)
}

fn largest_difference(a: &ArrayView<'_, f32, IxDyn>, b: &ArrayView<'_, f32, IxDyn>) -> f64 {
    // A NaN is as far away as can be.
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        .fold(0.0, |most, v| if v > most || v.is_nan() { v } else { most })
}

/// How much the exact results move when weights and data are rounded to TF32 is what rounding does to this very case: the mode
/// rounds these, and the states and the gates' gradients of each step as well.
fn compare_case(exact: &CudaHost, fast: &CudaHost, case: &Case) -> Result<f64> {
    let data = case.data();
    let mut rounded = data.clone();
    round_all(rounded.x.iter_mut().chain(&mut rounded.dy));
    rounded.state.iter_mut().for_each(|state| round_all(state.h.iter_mut().chain(&mut state.c)));
    let [want, moved, got] =
        [run(exact, case, &data, false)?, run(exact, case, &rounded, true)?, run(fast, case, &data, false)?];
    ensure!(compare::same_passes("", &want, &got).is_err(), "{}: exact bits: nothing ran on tensor cores", case.name);
    let mut worst: f64 = 0.0;
    for (((name, want), (_, moved)), (_, got)) in want.arrays().iter().zip(moved.arrays()).zip(got.arrays()) {
        let size = want.iter().fold(0.0f64, |most, &v| most.max(f64::from(v).abs()));
        let (off, moved) = (largest_difference(want, &got), largest_difference(want, &moved));
        let limit = 4.0 * moved + ROUNDING / 16.0 * size;
        if off > 0.0 {
            worst = worst.max(off / limit);
        }
        ensure!(
            off <= limit,
            "{}: {name} is {off:e} off, where {limit:e} is the limit and {size:e} the largest",
            case.name
        );
    }
    Ok(worst)
}

fn all_cases(fast: &CudaHost, path: &str, keep: impl Fn(&Case) -> bool) -> Result<()> {
    let exact = Host::builder().resident_blocks(0).build()?;
    let (mut worst, mut count, mut failed) = (0.0f64, 0, Vec::new());
    for case in cases::table().into_iter().filter(|case| keep(case)).map(filled) {
        count += 1;
        match compare_case(&exact, fast, &case) {
            Ok(ratio) => worst = worst.max(ratio),
            Err(error) => failed.push(error.to_string()),
        }
    }
    println!("{path}: {count} cases, worst error / limit {worst:.3}");
    ensure!(failed.is_empty(), "{} of {count} cases fail:\n{}", failed.len(), failed.join("\n"));
    ensure!(count > 0, "no case");
    Ok(())
}

/// Large ones would take minutes, and hold nothing new. Without a step there is nothing to be off.
fn is_small(case: &Case) -> bool {
    let steps = case.lengths.as_ref().map_or(case.steps, |lengths| lengths.iter().sum());
    case.config.hidden_size <= 130 && case.config.num_layers <= 2 && steps > 0
}

#[test]
fn layers_by_a_kernel_a_step() -> Result<()> {
    all_cases(&tf32_mode().resident_blocks(0).build()?, "one kernel per step", is_small)
}

#[test]
fn layers_whose_steps_are_one_kernel() -> Result<()> {
    all_cases(&tf32_mode().schedule(Schedule::Random(0)).cluster_size(2).build()?, "cluster, persistent", |case| {
        is_small(case) && case.group != "sizes"
    })
}

#[test]
fn it_says_that_it_is_not_exact() -> Result<()> {
    for (fast, path) in [
        (tf32_mode().resident_blocks(0).build()?, "one kernel per step"),
        (tf32_mode().cluster_size(2).build()?, "cluster"),
    ] {
        ensure!(fast.name() == "cuda-host-tf32", "{}", fast.name());
        let Arithmetic::Inexact(why) = fast.arithmetic() else { panic!("{:?}", fast.arithmetic()) };
        ensure!(why.contains("TF32") && why.contains("10 bits"), "{why}");
        let paths = Lstm::new(&fast, Case::new("", "", CellKind::Fused).weights()?)?.paths();
        ensure!(paths == [ExecutionPath::Fused(format!("{path}, products in tf32").into())], "{paths:?}");
    }
    ensure!(Host::builder().build()?.arithmetic() == Arithmetic::Exact, "without being asked for");
    Ok(())
}

#[test]
fn it_refuses_what_the_exact_mode_refuses() -> Result<()> {
    let fast = tf32_mode().cluster_size(2).build()?;
    for (_, check) in invalid_input::checks::<CudaHost>() {
        check(&fast)?;
    }
    CELLS.iter().try_for_each(|&(_, cell)| check::empty(&fast, cell))
}

/// Step by step, small streams take the exact kernels; large ones are as far off as sequences.
#[test]
fn streams() -> Result<()> {
    let (fast, exact) = (tf32_mode().cluster_size(2).build()?, Host::builder().build()?);
    for (name, cell) in CELLS {
        for batch in [1, 15, 16, 19] {
            let case = Case { batch, ..filled(Case::new("", name, cell)) };
            let data = case.data();
            let outputs = |b: &CudaHost| -> Result<Vec<f32>> {
                let mut stream = Lstm::new(b, case.weights()?)?.stream(batch)?;
                let mut y = Vec::new();
                for step in data.x.axis_chunks_iter(Axis(1), 1) {
                    y.extend(stream.chunk(step)?);
                }
                Ok(y)
            };
            let (want, got) = (outputs(&exact)?, outputs(&fast)?);
            let same = compare::same_slices(name, &want, &got).is_ok();
            ensure!(same == (batch < 16), "{name}, batch {batch}: the exact bits: {same}");
            // |y| < 1, and no sum has more than 2 times 21 terms of up to 2 times 1 / sqrt(21).
            let near = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) < 42.0 * 0.44 * ROUNDING;
            ensure!(want.iter().zip(&got).all(near), "{name}, batch {batch}: far off");
        }
    }
    Ok(())
}

/// Steps stay with one kernel for all of them, and exact, up to a size for which one kernel per step is worth its start.
#[test]
fn large_steps_leave_the_persistent_kernel() -> Result<()> {
    let (fast, exact) = (tf32_mode().build()?, Host::builder().build()?);
    // Too few features for tensor cores. 4 multiprocessors of 2^21 multiplications are 4 * 128 * 128 * 128.
    let config = LstmConfig::new(3, 128);
    for batch in [127, 128] {
        let case = Case { config: config.clone(), batch, steps: 2, ..Case::new("", "", CellKind::Fused) };
        let [want, got] = [&exact, &fast].map(|b| check::outputs(&Lstm::new(b, case.weights()?)?, &case.data()));
        let same = compare::same_outputs("", &want?, &got?).is_ok();
        ensure!(same == (batch < 128), "batch {batch}: the exact bits: {same}");
    }
    Ok(())
}
