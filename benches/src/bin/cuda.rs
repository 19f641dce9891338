//! Checks the results of a GPU against the CPU, then measures times. `benches/cuda_side_by_side.py` runs this program
//! and requests its rounds in alternation with those of PyTorch, so that both run at the same clock rates.
//!
//! Without arguments, this program checks every shape and prints a time for each. With `--serve` it reads lines `PASS
//! HIDDEN BATCH STEPS REPEATS`, and answers each with one line:
//! - `check`: `identical`, or what differs.
//! - `forward` and `train` (forward and backward): the median time of one pass in microseconds.
//! - `paths`: the execution paths of the shape's forward and backward pass.
//! - `not run: ` and the reason, if there is no result.
//!
//! Each PASS may have a suffix. `check-tf32` and so on use TF32 mode, which is not exact: the answer to `check-tf32`
//! says how much the results differ from the CPU's. With the suffixes `-clusters`, `-persistent` and `-steps`, layers
//! run only on the execution path `cluster`, `persistent` or `one kernel per step`.
//!
//! `--prebuild DIR` compiles the kernels for machines without NVRTC. It needs no GPU.

use std::{
    cell::LazyCell,
    collections::{HashMap, hash_map::Entry},
    io::{BufRead, Write},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use lstm_core::{
    Backend, CellKind, Checkpointing, Init, LayerOutputGradients, Lstm, LstmConfig, MatrixShape, Ops, OutputGradients,
    Result, Sequence, State, Weights, ndarray::Array3,
};
use lstm_cpu::Cpu;
use lstm_cuda::{Cuda, KernelLimits, kernels};

/// Check a GPU against the CPU and measure times
#[derive(Parser)]
struct Args {
    /// Answer requests from standard input
    #[arg(long, conflicts_with = "prebuild")]
    serve: bool,
    /// Compile the kernels into files in this directory instead, for use with LSTM_CUDA_KERNELS
    #[arg(long, value_name = "DIR")]
    prebuild: Option<PathBuf>,
    /// The architectures for which --prebuild compiles
    #[arg(long, value_delimiter = ',', default_value = "90", requires = "prebuild")]
    architectures: Vec<u32>,
}

/// Problem sizes: the hidden size (which is also the input size), the batch size, and the number of steps.
const SHAPES: [[usize; 3]; 7] =
    [[128, 1, 1000], [256, 1, 1000], [512, 1, 512], [512, 16, 512], [1024, 16, 256], [1024, 64, 256], [2048, 64, 128]];

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || {
        if let Some(dir) = &args.prebuild {
            kernels::prebuild(dir, &args.architectures)?.iter().for_each(|path| println!("{}", path.display()));
            return Ok(true);
        }
        let cuda = Cuda::new()?;
        eprintln!("{}: {:?}", cuda.device_name(), cuda.arithmetic());
        if args.serve { serve_requests(&cuda) } else { run_all(&cuda) }
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Checks and measures all shapes. Returns whether all results are identical to the CPU's.
fn run_all(cuda: &Cuda) -> Result<bool> {
    let mut all_identical = true;
    for shape in SHAPES {
        let want = compute_values(&Cpu::new(), shape)?;
        let comparison = compare_with_cpu(cuda, shape, &want, false)?;
        all_identical &= comparison == "identical";
        let [forward_us, train_us] =
            [median_microseconds(cuda, shape, false, 20)?, median_microseconds(cuda, shape, true, 20)?];
        let [hidden, batch, steps] = shape;
        let label = format!("hidden {hidden} batch {batch} steps {steps}");
        println!("{label}: {comparison}; forward {forward_us:.1} us, forward and backward {train_us:.1} us");
        let run_tf32 = || -> Result<String> {
            let tf32_cuda = Cuda::builder().allow_tf32(true).build()?;
            let [forward_us, train_us] =
                [median_microseconds(&tf32_cuda, shape, false, 20)?, median_microseconds(&tf32_cuda, shape, true, 20)?];
            let comparison = compare_with_cpu(&tf32_cuda, shape, &want, true)?;
            Ok(format!("{comparison}; forward {forward_us:.1} us, forward and backward {train_us:.1} us"))
        };
        println!("{label}, lstm-cuda tf32: {}", run_tf32().unwrap_or_else(|error| format!("not run: {error}")));
    }
    Ok(all_identical)
}

/// Answers requests from standard input until it ends.
fn serve_requests(cuda: &Cuda) -> Result<bool> {
    // Each device is opened on its first use.
    let tf32_cuda = LazyCell::new(|| Cuda::builder().allow_tf32(true).build());
    let [cluster_cuda, persistent_cuda, step_cuda] =
        [(true, false), (false, true), (false, false)].map(|(clusters, persistent)| {
            LazyCell::new(move || {
                let limits = KernelLimits::default().allow_clusters(clusters).allow_persistent(persistent);
                Cuda::builder().limit_kernels(limits).build()
            })
        });
    let mut cpu_values = HashMap::new();
    let mut answer_request = |line: &str| -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let sizes: Vec<usize> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
        let (pass, suffix) = words.first().map_or(("", ""), |word| word.split_once('-').unwrap_or((word, "")));
        let (true, &[hidden, batch, step_count, repeats]) = (words.len() == 5, &sizes[..]) else {
            return Ok(format!("not run: expected PASS HIDDEN BATCH STEPS REPEATS, got `{line}`"));
        };
        let (device, wanted_path) = match suffix {
            "" => (Ok(cuda), None),
            "tf32" => (tf32_cuda.as_ref(), None),
            "clusters" => (cluster_cuda.as_ref(), Some("cluster")),
            "persistent" => (persistent_cuda.as_ref(), Some("persistent")),
            "steps" => (step_cuda.as_ref(), Some("one kernel per step")),
            _ => return Ok(format!("not run: expected -tf32, -clusters, -persistent or -steps, got `{line}`")),
        };
        let device = match device {
            Ok(device) => device,
            Err(error) => return Ok(format!("not run: {error}")),
        };
        let shape = [hidden, batch, step_count];
        let paths = device.load(&weights(hidden)?.layers()[0])?.paths(batch);
        let paths = &paths[..if pass == "forward" { 1 } else { 2 }];
        // If the shape can't use the requested path on this device, do not report a time of another path.
        if wanted_path.is_some_and(|wanted_path| paths.iter().any(|used| *used != wanted_path)) {
            return Ok(format!("not run: the layer uses another path: {}", paths.join(", backward ")));
        }
        match pass {
            "paths" => Ok(paths.join(", backward ")),
            "check" => {
                let want = match cpu_values.entry(shape) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(compute_values(&Cpu::new(), shape)?),
                };
                compare_with_cpu(device, shape, want, suffix == "tf32")
            }
            "forward" | "train" if repeats > 0 => {
                Ok(median_microseconds(device, shape, pass == "train", repeats)?.to_string())
            }
            _ => Ok(format!(
                "not run: expected paths, check, forward or train, and at least 1 repeat for times, got `{line}`"
            )),
        }
    };
    for line in std::io::stdin().lock().lines() {
        let answer = answer_request(&line.unwrap_or_default()).unwrap_or_else(|error| format!("not run: {error}"));
        // The answer must be one line, and errors of a compiler may have several.
        println!("{}", answer.replace('\n', " / "));
        // If the other side has gone away, there is nobody to report an error to.
        let _ = std::io::stdout().flush();
    }
    Ok(true)
}

/// Random weights of the layer that is timed, with equal input and hidden size.
fn weights(hidden: usize) -> Result<Weights> {
    Weights::init(LstmConfig::new(hidden, hidden).cell(CellKind::Fused), &Init::default(), 1)
}

/// A pseudorandom value in [-1, 1) for element `k` of an array.
fn pseudorandom_value(k: usize) -> f32 {
    (k as u32).wrapping_mul(0x9e37_79b9) as i32 as f32 * 2f32.powi(-31)
}

/// Result arrays of the forward and the backward pass, each with its name.
type NamedArrays = Vec<(String, Vec<f32>)>;

/// Runs the forward and the backward pass, and returns the outputs and all gradients.
fn compute_values<B: Backend>(b: &B, [hidden, batch, steps]: [usize; 3]) -> Result<NamedArrays> {
    let x = Array3::from_shape_fn((batch, steps, hidden), |(b, t, k)| pseudorandom_value((b * steps + t) * hidden + k));
    let pass = Lstm::new(b, weights(hidden)?)?.forward_train(&x, Checkpointing::SaveEverything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&x).with_input_gradient())?;
    let to_vec = |values: &mut dyn Iterator<Item = &f32>| values.copied().collect::<Vec<_>>();
    let mut arrays =
        vec![("y".to_owned(), to_vec(&mut pass.y.iter())), ("c".to_owned(), to_vec(&mut pass.state.c.iter()))];
    arrays.extend(gradients.x.iter().map(|x| ("dx".to_owned(), to_vec(&mut x.iter()))));
    let layers = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
    arrays.extend(layers.map(|(param, values)| (format!("d{param:?}"), to_vec(&mut values.iter()))));
    Ok(arrays)
}

/// Computes the same results on the GPU and compares them with `want`, those of the CPU. Returns `identical` or a text
/// that lists the differences. In TF32 mode, the text always lists the relative difference of each array.
fn compare_with_cpu(cuda: &Cuda, shape: [usize; 3], want: &NamedArrays, is_tf32: bool) -> Result<String> {
    let got = compute_values(cuda, shape)?;
    let differences = got.iter().zip(want).filter_map(|((name, got), (_, want))| {
        let max_abs = |values: &mut dyn Iterator<Item = f32>| {
            values.map(f32::abs).fold(0.0f32, |max, v| if v > max || v.is_nan() { v } else { max })
        };
        let relative_difference = max_abs(&mut got.iter().zip(want).map(|(a, b)| a - b)) / max_abs(&mut want.iter().copied());
        if is_tf32 {
            return Some(format!("{name} {relative_difference:.1e}"));
        }
        let mut different_values = got.iter().zip(want).enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits());
        let (index, (a, b)) = different_values.next()?;
        let first_difference = format!(
            "the first at index {index}: got {a:e} ({:08x}), expected {b:e} ({:08x})",
            a.to_bits(),
            b.to_bits()
        );
        Some(format!(
            "{name}: {} of {} values differ, by at most {relative_difference:.1e} of the largest value, {first_difference}",
            different_values.count() + 1,
            want.len()
        ))
    });
    let differences = differences.collect::<Vec<_>>().join("; ");
    Ok(match differences.as_str() {
        "" => "identical".to_owned(),
        _ if is_tf32 => format!("not exact; largest differences relative to the largest value: {differences}"),
        _ => differences,
    })
}

/// Times a forward pass, or a forward and a backward pass if `with_backward`, `repeats` times and returns the median in
/// microseconds. All data is on the device already, and each time ends when the device has finished.
fn median_microseconds(
    cuda: &Cuda,
    [hidden, batch, steps]: [usize; 3],
    with_backward: bool,
    repeats: usize,
) -> Result<f64> {
    let layer = cuda.load(&weights(hidden)?.layers()[0])?;
    let mut plan = cuda.plan(&layer, batch, steps)?;
    let upload_pseudorandom = |rows: usize| {
        let data: Vec<f32> = (0..rows * hidden).map(pseudorandom_value).collect();
        cuda.upload(MatrixShape::new(rows, hidden), &data)
    };
    let (x, zeros) = (
        upload_pseudorandom(steps * batch)?,
        cuda.upload(MatrixShape::new(batch, hidden), &vec![0.0; batch * hidden])?,
    );
    let state = State { h: zeros.clone(), c: zeros };
    let mut run_pass = || {
        let sequence = Sequence { x: &x, state: &state, steps, batch, lengths: None };
        if with_backward {
            let (output, trace) = cuda.forward_train(&layer, &mut plan, sequence)?;
            let output_gradients =
                LayerOutputGradients { y: &output.y, state: &state, accumulate: None, needs_input_gradient: true };
            cuda.backward(&layer, &mut plan, &trace, output_gradients)?;
        } else {
            cuda.forward(&layer, &mut plan, sequence)?;
        }
        cuda.synchronize()
    };
    for _ in 0..3 {
        run_pass()?;
    }
    let mut times = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        run_pass()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
