//! A GPU: first the bits against the CPU, then times. `benches/cuda_side_by_side.py` asks it for rounds between those of
//! PyTorch, so that both meet the same clocks.
//!
//! Without arguments it checks the bits of every shape and prints a time for each. With `--serve` it reads lines
//! `PASS HIDDEN BATCH STEPS REPEATS`, where PASS is `check`, `forward` or `train`, and answers each with one line: `identical`
//! or what differs, or microseconds for one pass, the median. `check-tf32` and so on are the same in the fast mode, which is
//! not exact: how far it is from the CPU, or microseconds; or why it can't run. `check-clusters`, `check-persistent` and
//! `check-steps` and so on are the same by other paths: by clusters, wherever they can have the weights, by all blocks
//! together, and by a kernel a step.

use std::{
    cell::LazyCell,
    io::{BufRead, Write},
    process::ExitCode,
    time::Instant,
};

use lstm_core::{
    Backend, CellKind, Init, Keep, LayerUpstream, Lstm, LstmConfig, Result, Sequence, Shape, State, Upstream, Weights,
    ndarray::Array3,
};
use lstm_cpu::Cpu;
use lstm_cuda::{Cuda, Limits};

/// Hidden size (and features), batch, steps.
const SHAPES: [[usize; 3]; 7] =
    [[128, 1, 1000], [256, 1, 1000], [512, 1, 512], [512, 16, 512], [1024, 16, 256], [1024, 64, 256], [2048, 64, 128]];

fn main() -> ExitCode {
    let run = || {
        let cuda = Cuda::new(0)?;
        eprintln!("{}: {:?}", cuda.device(), cuda.arithmetic());
        if std::env::args().any(|arg| arg == "--serve") { serve(&cuda) } else { all(&cuda) }
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
        let checked = check(cuda, shape)?;
        identical &= checked == "identical";
        let [forward, train] = [microseconds(cuda, shape, false, 20)?, microseconds(cuda, shape, true, 20)?];
        let [hidden, batch, steps] = shape;
        let label = format!("hidden {hidden} batch {batch} steps {steps}");
        println!("{label}: {checked}; forward {forward:.1} us, forward and backward {train:.1} us");
        let fast = || -> Result<String> {
            let fast = Cuda::fast(0)?;
            let [forward, train] = [microseconds(&fast, shape, false, 20)?, microseconds(&fast, shape, true, 20)?];
            let checked = check(&fast, shape)?;
            Ok(format!("{checked}; forward {forward:.1} us, forward and backward {train:.1} us"))
        };
        println!("{label}, lstm-cuda tf32: {}", fast().unwrap_or_else(|error| format!("not run: {error}")));
    }
    Ok(identical)
}

fn serve(cuda: &Cuda) -> Result<bool> {
    // Opened when they are asked for first.
    let fast = LazyCell::new(|| Cuda::fast(0));
    let [clusters, persistent, steps] = [(true, false), (false, true), (false, false)].map(|(clusters, persistent)| {
        LazyCell::new(move || Cuda::within(0, Limits { clusters, persistent, ..Limits::default() }))
    });
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers: Option<Vec<usize>> = words.iter().skip(1).map(|word| word.parse().ok()).collect();
        let (pass, way) = words
            .first()
            .map_or(("", None), |word| word.split_once('-').map_or((*word, None), |(pass, way)| (pass, Some(way))));
        let device = match way {
            None => Ok(cuda),
            Some("tf32") => fast.as_ref(),
            Some("clusters") => clusters.as_ref(),
            Some("persistent") => persistent.as_ref(),
            Some("steps") => steps.as_ref(),
            Some(_) => {
                println!("expected -tf32, -clusters, -persistent or -steps, got `{line}`");
                continue;
            }
        };
        // A path that was asked for and that a shape does not take on this device is not timed as if it did.
        let wants = match way {
            Some("clusters") => "cluster",
            Some("persistent") => "persistent",
            _ => "",
        };
        let takes = match (&device, numbers.as_deref()) {
            (Ok(cuda), Some(&[hidden, ..])) if hidden > 0 => {
                Lstm::new(*cuda, weights(hidden)?)?.paths().first().map_or_else(String::new, ToString::to_string)
            }
            _ => String::new(),
        };
        let answer = match (device, pass, numbers.as_deref()) {
            (Err(error), ..) => format!("not run: {error}"),
            _ if !takes.contains(wants) => format!("not run: it takes another path, {takes}"),
            (Ok(cuda), "check", Some(&[hidden, batch, steps, _])) => check(cuda, [hidden, batch, steps])?,
            (Ok(cuda), pass @ ("forward" | "train"), Some(&[hidden, batch, steps, repeats])) if repeats > 0 => {
                microseconds(cuda, [hidden, batch, steps], pass == "train", repeats)?.to_string()
            }
            _ => format!("expected PASS HIDDEN BATCH STEPS REPEATS, got `{line}`"),
        };
        println!("{answer}");
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

/// Both passes against the CPU's: whether they are identical, or how far off where the device does not promise that.
fn check(cuda: &Cuda, [hidden, batch, steps]: [usize; 3]) -> Result<String> {
    let x = Array3::from_shape_fn((batch, steps, hidden), |(b, t, k)| number((b * steps + t) * hidden + k));
    fn values<B: Backend>(b: &B, weights: Weights, x: &Array3<f32>) -> Result<Vec<(String, Vec<f32>)>> {
        let pass = Lstm::new(b, weights)?.forward_train(x, Keep::Everything)?;
        let gradients = pass.tape.backward(Upstream::from(x).with_input())?;
        let of = |values: &mut dyn Iterator<Item = &f32>| values.copied().collect::<Vec<_>>();
        let mut all = vec![("y".to_owned(), of(&mut pass.y.iter())), ("c".to_owned(), of(&mut pass.state.c.iter()))];
        all.extend(gradients.x.iter().map(|x| ("dx".to_owned(), of(&mut x.iter()))));
        let layers = gradients.weights.layers().iter().flat_map(|layer| layer.iter());
        all.extend(layers.map(|(param, values)| (format!("d{param:?}"), of(&mut values.iter()))));
        Ok(all)
    }
    let (got, want) = (values(cuda, weights(hidden)?, &x)?, values(&Cpu::new(), weights(hidden)?, &x)?);
    if !cuda.arithmetic().is_exact() {
        let off = got.iter().zip(&want).map(|((name, got), (_, want))| {
            let most = |values: &mut dyn Iterator<Item = f32>| {
                values.map(f32::abs).fold(0.0f32, |most, v| if v > most || v.is_nan() { v } else { most })
            };
            let off = most(&mut got.iter().zip(want).map(|(a, b)| a - b)) / most(&mut want.iter().copied());
            format!("{name} {off:.1e}")
        });
        return Ok(format!("not exact; off, of the largest value: {}", off.collect::<Vec<_>>().join(", ")));
    }
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        let differ = got.iter().zip(want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if differ > 0 {
            return Ok(format!("{name}: {differ} of {} values differ", want.len()));
        }
    }
    Ok("identical".to_owned())
}

/// One pass on data that are on the device already, until all of it is done.
fn microseconds(cuda: &Cuda, [hidden, batch, steps]: [usize; 3], train: bool, repeats: usize) -> Result<f64> {
    let layer = cuda.load(&weights(hidden)?.layers()[0])?;
    let mut plan = cuda.plan(&layer, batch, steps)?;
    let upload = |rows: usize| {
        let data: Vec<f32> = (0..rows * hidden).map(number).collect();
        cuda.upload(Shape::new(rows, hidden), &data)
    };
    let (x, zeros) = (upload(steps * batch)?, cuda.upload(Shape::new(batch, hidden), &vec![0.0; batch * hidden])?);
    let state = State { h: zeros.clone(), c: zeros };
    let mut once = || {
        let sequence = Sequence { x: &x, state: &state, steps, batch, lengths: None };
        if train {
            let (output, trace) = cuda.forward_train(&layer, &mut plan, sequence)?;
            let upstream = LayerUpstream { y: &output.y, state: &state, onto: None, input: true };
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
