//! A GPU: first the bits against the CPU, then times. `benches/cuda_side_by_side.py` asks it for rounds between those
//! of PyTorch, so that both meet the same clocks.
//!
//! Without arguments it checks the bits of every shape and prints a time for each. With `--serve` it reads lines `PASS
//! HIDDEN BATCH STEPS REPEATS`, where PASS is `check`, `forward` or `train`, and answers each with one line:
//! `identical` or what differs, or microseconds for one pass, the median, or `not run: ` and why. `paths` asks how a
//! shape's steps go. `check-tf32` and so on are the same in the fast mode, which is not exact: how far it is from the
//! CPU. `check-clusters`, `check-persistent` and `check-steps` and so on are the same by other paths: by clusters,
//! wherever they can have the weights, by all blocks together, and by one kernel per step.
//!
//! `--prebuild DIR` compiles the kernels for machines without NVRTC, and needs no GPU.

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

/// A GPU's bits against the CPU, and times
#[derive(Parser)]
struct Args {
    /// Answer questions from standard input
    #[arg(long, conflicts_with = "prebuild")]
    serve: bool,
    /// Compile the kernels into files of this directory instead, which LSTM_CUDA_KERNELS then points to
    #[arg(long, value_name = "DIR")]
    prebuild: Option<PathBuf>,
    /// For these architectures
    #[arg(long, value_delimiter = ',', default_value = "90", requires = "prebuild")]
    architectures: Vec<u32>,
}

/// Hidden size (and features), batch, steps.
const SHAPES: [[usize; 3]; 7] =
    [[128, 1, 1000], [256, 1, 1000], [512, 1, 512], [512, 16, 512], [1024, 16, 256], [1024, 64, 256], [2048, 64, 128]];

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || {
        if let Some(dir) = &args.prebuild {
            kernels::prebuild(dir, &args.architectures)?.iter().for_each(|path| println!("{}", path.display()));
            return Ok(true);
        }
        let cuda = Cuda::new(0)?;
        eprintln!("{}: {:?}", cuda.device(), cuda.arithmetic());
        if args.serve { serve(&cuda) } else { all(&cuda) }
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

fn all(cuda: &Cuda) -> Result<bool> {
    let mut identical = true;
    for shape in SHAPES {
        let want = values(&Cpu::new(), shape)?;
        let checked = check(cuda, shape, &want, false)?;
        identical &= checked == "identical";
        let [forward, train] = [microseconds(cuda, shape, false, 20)?, microseconds(cuda, shape, true, 20)?];
        let [hidden, batch, steps] = shape;
        let label = format!("hidden {hidden} batch {batch} steps {steps}");
        println!("{label}: {checked}; forward {forward:.1} us, forward and backward {train:.1} us");
        let fast = || -> Result<String> {
            let fast = Cuda::builder().allow_tf32(true).build()?;
            let [forward, train] = [microseconds(&fast, shape, false, 20)?, microseconds(&fast, shape, true, 20)?];
            let checked = check(&fast, shape, &want, true)?;
            Ok(format!("{checked}; forward {forward:.1} us, forward and backward {train:.1} us"))
        };
        println!("{label}, lstm-cuda tf32: {}", fast().unwrap_or_else(|error| format!("not run: {error}")));
    }
    Ok(identical)
}

fn serve(cuda: &Cuda) -> Result<bool> {
    // Opened when they are asked for first.
    let fast = LazyCell::new(|| Cuda::builder().allow_tf32(true).build());
    let [clusters, persistent, steps] = [(true, false), (false, true), (false, false)].map(|(clusters, persistent)| {
        LazyCell::new(move || {
            Cuda::builder().limit_kernels(KernelLimits { clusters, persistent, ..KernelLimits::default() }).build()
        })
    });
    let mut known = HashMap::new();
    let mut answer = |line: &str| -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers: Vec<usize> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
        let (pass, way) = words.first().map_or(("", ""), |word| word.split_once('-').unwrap_or((word, "")));
        let (true, &[hidden, batch, steps_there, repeats]) = (words.len() == 5, &numbers[..]) else {
            return Ok(format!("not run: expected PASS HIDDEN BATCH STEPS REPEATS, got `{line}`"));
        };
        // A path that was asked for and that a shape does not take on this device is not timed as if it did.
        let (device, path) = match way {
            "" => (Ok(cuda), None),
            "tf32" => (fast.as_ref(), None),
            "clusters" => (clusters.as_ref(), Some("cluster")),
            "persistent" => (persistent.as_ref(), Some("persistent")),
            "steps" => (steps.as_ref(), Some("one kernel per step")),
            _ => return Ok(format!("not run: expected -tf32, -clusters, -persistent or -steps, got `{line}`")),
        };
        let device = match device {
            Ok(device) => device,
            Err(error) => return Ok(format!("not run: {error}")),
        };
        let shape = [hidden, batch, steps_there];
        let takes = device.load(&weights(hidden)?.layers()[0])?.paths(batch);
        let takes = &takes[..if pass == "forward" { 1 } else { 2 }];
        if path.is_some_and(|path| takes.iter().any(|takes| *takes != path)) {
            return Ok(format!("not run: it takes another path: {}", takes.join(", back ")));
        }
        match pass {
            "paths" => Ok(takes.join(", back ")),
            "check" => {
                let want = match known.entry(shape) {
                    Entry::Occupied(there) => there.into_mut(),
                    Entry::Vacant(none) => none.insert(values(&Cpu::new(), shape)?),
                };
                check(device, shape, want, way == "tf32")
            }
            "forward" | "train" if repeats > 0 => {
                Ok(microseconds(device, shape, pass == "train", repeats)?.to_string())
            }
            _ => Ok(format!("not run: expected paths or check, or forward or train and repeats, got `{line}`")),
        }
    };
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line.unwrap_or_default()).unwrap_or_else(|error| format!("not run: {error}"));
        // One line, whatever words a compiler has.
        println!("{}", answer.replace('\n', " / "));
        // The other side waits for it; that it has gone away is not for us to report.
        let _ = std::io::stdout().flush();
    }
    Ok(true)
}

fn weights(hidden: usize) -> Result<Weights> {
    Weights::init(LstmConfig::new(hidden, hidden).cell(CellKind::Fused), &Init::default(), 1)
}

fn number(k: usize) -> f32 {
    (k as u32).wrapping_mul(0x9e37_79b9) as i32 as f32 * 2f32.powi(-31)
}

/// What both passes give, by names.
type Values = Vec<(String, Vec<f32>)>;

fn values<B: Backend>(b: &B, [hidden, batch, steps]: [usize; 3]) -> Result<Values> {
    let x = Array3::from_shape_fn((batch, steps, hidden), |(b, t, k)| number((b * steps + t) * hidden + k));
    let pass = Lstm::new(b, weights(hidden)?)?.forward_train(&x, Checkpointing::Everything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&x).with_input())?;
    let of = |values: &mut dyn Iterator<Item = &f32>| values.copied().collect::<Vec<_>>();
    let mut all = vec![("y".to_owned(), of(&mut pass.y.iter())), ("c".to_owned(), of(&mut pass.state.c.iter()))];
    all.extend(gradients.x.iter().map(|x| ("dx".to_owned(), of(&mut x.iter()))));
    let layers = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
    all.extend(layers.map(|(param, values)| (format!("d{param:?}"), of(&mut values.iter()))));
    Ok(all)
}

/// Both passes against the CPU's: whether they are identical, or what differs; of the fast mode, how far off they are.
fn check(cuda: &Cuda, shape: [usize; 3], want: &Values, fast: bool) -> Result<String> {
    let got = values(cuda, shape)?;
    let answer = got.iter().zip(want).filter_map(|((name, got), (_, want))| {
        let most = |values: &mut dyn Iterator<Item = f32>| {
            values.map(f32::abs).fold(0.0f32, |most, v| if v > most || v.is_nan() { v } else { most })
        };
        let off = most(&mut got.iter().zip(want).map(|(a, b)| a - b)) / most(&mut want.iter().copied());
        if fast {
            return Some(format!("{name} {off:.1e}"));
        }
        let mut differ = got.iter().zip(want).enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits());
        let (at, (a, b)) = differ.next()?;
        let first = format!("the first at {at}: {a:e} ({:08x}), not {b:e} ({:08x})", a.to_bits(), b.to_bits());
        Some(format!("{name}: {} of {} values differ by at most {off:.1e}, {first}", differ.count() + 1, want.len()))
    });
    let answer = answer.collect::<Vec<_>>().join("; ");
    Ok(match answer.as_str() {
        "" => "identical".to_owned(),
        _ if fast => format!("not exact; off, of the largest value: {answer}"),
        _ => answer,
    })
}

/// One pass on data that are on the device already, until all of it is done.
fn microseconds(cuda: &Cuda, [hidden, batch, steps]: [usize; 3], train: bool, repeats: usize) -> Result<f64> {
    let layer = cuda.load(&weights(hidden)?.layers()[0])?;
    let mut plan = cuda.plan(&layer, batch, steps)?;
    let upload = |rows: usize| {
        let data: Vec<f32> = (0..rows * hidden).map(number).collect();
        cuda.upload(MatrixShape::new(rows, hidden), &data)
    };
    let (x, zeros) =
        (upload(steps * batch)?, cuda.upload(MatrixShape::new(batch, hidden), &vec![0.0; batch * hidden])?);
    let state = State { h: zeros.clone(), c: zeros };
    let mut once = || {
        let sequence = Sequence { x: &x, state: &state, steps, batch, lengths: None };
        if train {
            let (output, trace) = cuda.forward_train(&layer, &mut plan, sequence)?;
            let upstream = LayerOutputGradients { y: &output.y, state: &state, accumulate: None, need_x: true };
            cuda.backward(&layer, &mut plan, &trace, upstream)?;
        } else {
            cuda.forward(&layer, &mut plan, sequence)?;
        }
        cuda.synchronize()
    };
    for _ in 0..3 {
        once()?;
    }
    let mut times = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        once()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
